# SPDX-License-Identifier: Apache-2.0
"""Which offloads may be used here, and why the others are not."""

from __future__ import annotations

from collections.abc import Iterable

from dataplane import native
from dataplane.backend.sockets import open_tun
from dataplane.kernels import known_bad
from dataplane.model import OFFLOAD_NEEDS, Offload, offloads_without
from dataplane.native import TunHandle

# Those that a descriptor of the TUN has; the others can be chosen anew for every forwarder.
OF_SOCKETS = Offload.MMSG | Offload.UDP_GSO | Offload.UDP_GRO


def _unite(offloads: Iterable[Offload]) -> Offload:
    united = Offload(0)
    for offload in offloads:
        united |= offload
    return united


class Offloads:
    """What --disable, and what is known to be broken, leave of what the kernel can do."""

    def __init__(self, disabled: Iterable[Offload], release: str) -> None:
        """Go by the switches and by `uname -r`; nothing is asked of the kernel yet."""
        self._disabled = _unite(disabled)
        self._broken = known_bad(release)
        self._allowed = offloads_without(self._disabled | _unite(self._broken))

    @property
    def of_tun(self) -> int:
        """What may be tried on the TUN."""
        return int(self._allowed & ~OF_SOCKETS)

    def of_sockets(self) -> int:
        """Return what the underlay sockets of this kernel can do, as far as it may be used."""
        return native.socket_tier() & self._allowed

    def open_tun(self, name: str) -> TunHandle:
        """Open a queue of the TUN with all that may be used and can be."""
        return open_tun(name, self.of_tun)

    def explain(self, tier: int) -> dict[str, str]:
        """Say of each offload that a tier lacks why it does."""
        reasons = {}
        for offload in Offload:
            if offload & tier:
                continue
            needed = OFFLOAD_NEEDS.get(offload)
            if offload in self._disabled:
                reasons[offload.label] = "--disable"
            elif offload in self._broken:
                reasons[offload.label] = self._broken[offload]
            elif needed is not None and not needed & tier:
                reasons[offload.label] = f"needs {needed.label}"
            else:
                reasons[offload.label] = "this kernel does not know it"
        return reasons
