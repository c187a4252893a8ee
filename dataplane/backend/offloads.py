# SPDX-License-Identifier: Apache-2.0
"""Which offloads may be used here, and why the others are not."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterable
from functools import cache

from dataplane import native
from dataplane.backend.sockets import open_tun
from dataplane.errors import KernelError
from dataplane.journal import Journal
from dataplane.kernels import known_bad
from dataplane.model import ALL_OFFLOADS, OFFLOAD_NEEDS, OFFLOADS, Offload, offloads_without
from dataplane.native import TunHandle

log = Journal("offloads")

# What the self-test says of them besides the errors of system calls.
FAILURES = {
    errno.EBADMSG: "packets came out damaged",
    errno.ETIMEDOUT: "packets did not come out",
    errno.EOPNOTSUPP: "the kernel did the work itself",
}

# Those that a descriptor of the TUN has; the others can be chosen anew for every forwarder.
OF_SOCKETS = Offload.MMSG | Offload.UDP_GSO | Offload.UDP_GRO

# What is given up, step by step, where forwarders end again and again: first what joins and cuts packets.
STEPS = (
    Offload.TUN_TSO
    | Offload.TUN_USO
    | Offload.UDP_GSO
    | Offload.UDP_GRO
    | Offload.TUN_GRO
    | Offload.TUN_UGRO,
    ALL_OFFLOADS,
)


def _unite(offloads: Iterable[Offload]) -> Offload:
    united = Offload(0)
    for offload in offloads:
        united |= offload
    return united


@cache
def _selftest(wanted: Offload) -> dict[Offload, str]:
    """Return which offloads fail, and how; KernelError if nothing can be tried here, now."""
    begun = time.monotonic()
    failed = native.selftest(int(wanted))
    if errno.ETIMEDOUT in failed.values():
        failed = native.selftest(int(wanted))  # on a busy host a packet may be late, once
    reasons = {
        offload: f"self-test: {FAILURES.get(number) or errno.errorcode.get(number, str(number))}"
        for offload, number in failed.items()
    }
    shown = {offload.label.replace("-", "_"): why for offload, why in reasons.items()}
    log.debug("offloads tested", took_ms=round(1000 * (time.monotonic() - begun)), **shown)
    return reasons


class Offloads:
    """What --disable, and what is known or found to be broken, leave of what the kernel can do."""

    def __init__(self, disabled: Iterable[Offload], release: str) -> None:
        """Go by the switches and by `uname -r`; nothing is asked of the kernel before prove()."""
        self._disabled = _unite(disabled)
        self._broken = known_bad(release)
        self._tested = Offload(0)
        self._failed: dict[Offload, str] = {}
        self._refused = Offload(0)
        self._given_up = Offload(0)

    @property
    def _allowed(self) -> Offload:
        barred = self._disabled | _unite(self._broken) | _unite(self._failed) | self._given_up
        return offloads_without(barred)

    def lower(self) -> bool:
        """Give up the next step of what is used; return whether there was anything left."""
        step = next((step for step in STEPS if step & self._allowed), None)
        if step is None:
            return False
        given_up = self._allowed & step
        self._given_up |= given_up
        names = ", ".join(offload.label for offload in Offload if offload & given_up)
        log.error("forwarders end again and again: going on without offloads", without=names)
        return True

    def warnings(self) -> list[str]:
        """Return what the operator should know."""
        names = ", ".join(offload.label for offload in Offload if offload & self._given_up)
        if not names:
            return []
        return [
            f"forwarders ended again and again, so there is no {names} any more. Once that is mended, "
            "restart overlayd run"
        ]

    def prove(self) -> None:
        """Use each offload once, by packets on scratch devices; do without those that fail. Blocks for 20 ms.

        What was tried already is not tried again: kernels do not change, and by then control has given up
        what it takes. Where nothing can be tried, as without CAP_SYS_ADMIN, the kernel is believed.
        """
        wanted = self._allowed
        if not wanted & ~self._tested:
            return
        self._tested |= wanted
        try:
            self._failed |= _selftest(wanted)
        except KernelError as err:
            log.debug("offloads not tested", error=err)

    def tell_refused(self, refused: int) -> None:
        """Log what the kernel refused in use, of a mask that only grows, unless that was told already."""
        for offload in Offload:
            if offload & refused & ~self._refused:
                log.warning("the kernel refused an offload; going on without it", offload=offload.label)
        self._refused |= Offload(refused)

    def remember(self) -> dict[str, object]:
        """Return what was found, for a control that takes over."""
        failed = {offload.label: why for offload, why in self._failed.items()}
        return {"tested": int(self._tested), "failed": failed}

    def recall(self, found: object) -> None:
        """Rely on what an earlier control of this host remembered, as far as it can be understood."""
        match found:
            case {"tested": int(tested), "failed": dict(failed)}:
                self._tested = Offload(tested) & ALL_OFFLOADS
                self._failed = {OFFLOADS[name]: str(why) for name, why in failed.items() if name in OFFLOADS}

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
            elif offload in self._given_up:
                reasons[offload.label] = "given up: forwarders ended again and again"
            elif offload in self._broken:
                reasons[offload.label] = self._broken[offload]
            elif offload in self._failed:
                reasons[offload.label] = self._failed[offload]
            elif needed is not None and not needed & tier:
                reasons[offload.label] = f"needs {needed.label}"
            else:
                reasons[offload.label] = "this kernel does not know it"
        return reasons
