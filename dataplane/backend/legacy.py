# SPDX-License-Identifier: Apache-2.0
"""What a node leaves with its service manager, so that it outlives control and forwarder together.

Each descriptor that a forwarder works with is kept under the name of its slot, and beside them what the
forwarder was told. The next control finds all of it when nobody else is left: queues and sockets with what
waits in them, the table and the counters.

What we let go of ourselves must be dropped there, too: a socket or a queue of the TUN that somebody holds and
nobody reads swallows its share of the packets.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from dataplane import native
from dataplane.backend.kit import Kit
from dataplane.errors import RuntimeFailure
from dataplane.native import ForwarderConfig
from dataplane.notify import Notifier
from dataplane.slots import SLOTS, Fd, Fds

PREFIX = "overlayd-"
CONFIG = f"{PREFIX}config"
HEAD = b"overlayd %d\n" % native.ABI


def _name(slot: int) -> str:
    return f"{PREFIX}{slot}"


class Legacy:
    """What is kept for the next control, if anybody keeps it."""

    def __init__(self, notifier: Notifier) -> None:
        """Leave it with who started us."""
        self._notifier = notifier
        self._left: Fds = {}
        self._owed: set[int] = set()  # slots that are kept although they were to be dropped
        self._config: ForwarderConfig | None = None
        self._generation = 0

    def leave(self, kit: Kit) -> None:
        """Leave what is new since the last time. Blocks while nobody takes it, for a second."""
        if kit.config_in_force is None:
            return
        if kit.generation != self._generation:
            self._left.pop(Fd.FIB, None)
        self._owed = {slot for slot in self._owed if not self._notifier.drop(_name(slot))}
        for slot, fd in kit.fds.items():
            if self._left.get(slot) != fd:
                if not (self._notifier.drop(_name(slot)) and self._notifier.keep(_name(slot), fd)):
                    return  # the rest another time
                self._left[slot] = fd
        self._generation = kit.generation
        if kit.config_in_force != self._config and self._leave_config(kit.config_in_force):
            self._config = kit.config_in_force

    def _leave_config(self, config: ForwarderConfig) -> bool:
        fd = os.memfd_create("overlayd-config", os.MFD_CLOEXEC)
        try:
            os.write(fd, HEAD + native.pack_config(config))
            return self._notifier.drop(CONFIG) and self._notifier.keep(CONFIG, fd)
        finally:
            os.close(fd)

    def drop(self, slots: Iterable[int]) -> None:
        """Have these kept no more, before we let go of them ourselves. Blocks until that is so."""
        dropped = [slot for slot in slots if self._left.pop(slot, None) is not None]
        self._owed |= {slot for slot in dropped if not self._notifier.drop(_name(slot))}
        if dropped:
            self._notifier.settle()

    def drop_all(self) -> None:
        """Have nothing kept any more: the start failed."""
        self.drop(list(self._left))

    def forget(self, names: Iterable[str]) -> None:
        """Have nothing kept that an earlier control left under these names."""
        for name in names:
            self._notifier.drop(name)


def read(kept: dict[str, int]) -> tuple[ForwarderConfig, Fds]:
    """Return what an earlier control left, with the same descriptors; RuntimeFailure if it makes no sense."""
    if CONFIG not in kept:
        raise RuntimeFailure("nothing was kept that says what for")
    text = os.pread(kept[CONFIG], len(HEAD) + native.CONFIG_BYTES + 1, 0)
    if not text.startswith(HEAD) or len(text) != len(HEAD) + native.CONFIG_BYTES:
        raise RuntimeFailure("what was kept is of another version")
    try:
        config = native.unpack_config(text[len(HEAD) :])
    except ValueError as err:
        raise RuntimeFailure(f"what was kept makes no sense: {err}") from None
    fds = {slot: kept[_name(slot)] for slot in SLOTS if _name(slot) in kept}
    if not {Fd.TUN, Fd.COUNTERS, Fd.FIB} <= fds.keys():
        raise RuntimeFailure("of what was kept a part is missing")
    return config, fds
