# SPDX-License-Identifier: Apache-2.0
"""Tells the kernel of peers, remembers what was told, and hears what somebody else removes of it.

A changed lease costs a few netlink messages. After something was removed, all is read back once and put
right; and at first, when what an earlier run left is found, with the peers that have gone since.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from dataplane import entries, netbatch
from dataplane.entries import Entries, Links
from dataplane.journal import Journal
from dataplane.model import Address, Network, SubnetEntry
from dataplane.netwatch import Watch
from dataplane.reach import is_unreached

log = Journal("backend")

GROUPS = 0x1 | 0x4 | 0x40 | 0x400  # links, neighbours, IPv4 and IPv6 routes
NAMED_MAX = 10  # peers that one warning names


@dataclass(slots=True)
class Side:
    """What the kernel knows of peers whose pods are of one IP version."""

    version: int
    links: Links
    wanted: Entries = field(default_factory=Entries)
    known: Entries = field(default_factory=Entries)  # what it was told, or had, last
    told: Entries | None = None  # the same; None: to be read back
    found: Entries | None = None  # what was there at first
    networks: tuple[Network, ...] = ()  # that our peers are or were in
    doubts: int = 0  # how often somebody may have changed something
    is_paused: bool = False  # somebody undoes it: not to be read back now, and so not told again

    def belong_to(self, networks: Iterable[Network]) -> None:
        """Have peers in these networks now; routes that are left of earlier ones stay ours."""
        self.networks = tuple(dict.fromkeys((*networks, *self.networks)))

    @property
    def family(self) -> int:
        """AF_INET or AF_INET6."""
        return socket.AF_INET if self.version == 4 else socket.AF_INET6


class Unreached:
    """Tells of peers that nothing leads to: not on our link, and not to be encapsulated."""

    def __init__(self) -> None:
        """There is none yet."""
        self._nodes: dict[Network, Address] = {}

    def take(self, subnets: Iterable[SubnetEntry]) -> None:
        """Take what the table says; log those that are new."""
        known = self._nodes
        self._nodes = {entry.prefix: entry.vtep for entry in subnets if is_unreached(entry)}
        news = [net for net in self._nodes if net not in known]
        for net in news[:NAMED_MAX]:
            log.warning("peer not on our link: no route", subnet=net, node=self._nodes[net])
        if len(news) > NAMED_MAX:
            log.warning("more peers not on our link", peers=len(news) - NAMED_MAX)

    def warnings(self) -> tuple[str, ...]:
        """Return what the operator should know."""
        if not self._nodes:
            return ()
        names = [f"{net} of {node}" for net, node in list(self._nodes.items())[:NAMED_MAX]]
        more = f" and {len(self._nodes) - NAMED_MAX} more" if len(self._nodes) > NAMED_MAX else ""
        return (
            f"no route to {', '.join(names)}{more}: not on the link of our underlay interface, "
            "and only --encapsulate always or cross-subnet in a network of vxlan, ipip or udp goes further",
        )


def _is_news(side: Side, telling: Side | None, kind: int, body: bytes) -> bool:
    if entries.replaces(kind, body, side.wanted.routes):
        return True
    if not entries.undoes(side.family, side.links, kind, body):
        return False
    return side is not telling or entries.contradicts(side.wanted, side.links.overlay, kind, body)


class Teller:
    """Keeps the kernel's entries of peers as they must be."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        """`on_change` is called when somebody removed what we told the kernel."""
        self._on_change = on_change
        self._watch: Watch | None = None
        self._sides: tuple[Side, ...] = ()
        self._telling: Side | None = None  # of what we do ourselves there is no news

    def have(self, sides: Mapping[int, Side]) -> None:
        """Keep these sides from now on."""
        self._sides = tuple(sides.values())
        self._start_hearing()

    async def look(self, side: Side) -> bool:
        """Read back what may be different now; return whether it is."""
        if side.told is not None or side.is_paused:
            return False
        doubts = side.doubts
        side.known = await asyncio.to_thread(netbatch.read, side.links.overlay, side.family, side.networks)
        if side.doubts == doubts:  # or it may be different again, and is looked at once more
            side.told = side.known
        if side.found is None:
            side.found = side.known
        return side.known != side.wanted

    async def tell(self, side: Side, wanted: Entries) -> int:
        """Tell the kernel what it does not know, and to forget the rest; return the number of messages."""
        side.wanted = wanted
        await self.look(side)  # somebody meddled since
        if side.known == wanted:
            return 0
        before, is_sure, side.told = side.known, side.told is not None, None
        if self._watch is not None:
            self._watch.stop()
        try:
            messages = entries.difference(side.links.overlay, before, wanted)
            count = await asyncio.to_thread(netbatch.send, messages)
            side.known = wanted
            side.told = wanted if is_sure else None
            if self._watch is not None:
                self._telling = side
                self._watch.drain()
        finally:
            self._telling = None
            self._start_hearing()
        return count

    # --- what somebody else does ----------------------------------------------------------------------

    def _start_hearing(self) -> None:
        if self._watch is None:
            self._watch = Watch(socket.NETLINK_ROUTE, GROUPS, self._hear)
        self._watch.start()

    def _hear(self, data: bytes) -> None:
        """Take what the kernel tells; nothing means that some was lost, so everything is looked at."""
        has_changed = not data and self._doubt(self._sides)
        for kind, body in entries.split(data):
            sides = [side for side in self._sides if _is_news(side, self._telling, kind, body)]
            has_changed = self._doubt(sides) or has_changed
        if has_changed:
            self._on_change()

    def _doubt(self, sides: Iterable[Side]) -> bool:
        found = list(sides)
        for side in found:
            side.told = None
            side.doubts += 1
        return bool(found)

    def close(self) -> None:
        """Let go: the kernel keeps what it was told. May be called again."""
        if self._watch is not None:
            self._watch.close()
            self._watch = None
