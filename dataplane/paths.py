# SPDX-License-Identifier: Apache-2.0
"""Finds out what paths take while the node runs, and puts it into the table.

The kernel believes routers, after checking what they say; we only find out that it learned something. An
ICMP error that quotes a packet of ours is a hint to ask for that peer. So is a packet that the kernel refused
us for its size, since hints can be lost; those are looked for once a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import islice

from dataplane import routemtu, step
from dataplane.backend import Backend, Settings
from dataplane.icmp import IcmpError, Trouble
from dataplane.journal import Journal
from dataplane.model import Address, Table
from dataplane.pathmtu import ICMP, PROBE, ROUTE, PathMtu, Paths

log = Journal("paths")

LOOK_LEAST_S = 0.75  # they are in step with others, and not quite as far apart
LOOK_S = 1.0  # between looks at what the kernel refused, and at what has expired
PAUSE_S = 0.05  # after one that was hinted at: a flood of hints costs no more than that
ROUTE_S = 60.0  # until a route that somebody set up is looked at again
TURN = 32  # peers in doubt that are asked for at a time: where all paths are small, that may be thousands
TOLD_MAX = 10  # peers of which one look tells
TOO_BIG = "too_big"


class PathWatch:
    """Keeps what is known of paths, and tables, in step with the kernel."""

    def __init__(self, backend: Backend, on_change: Callable[[], None]) -> None:
        """`on_change` is called when the table in force does not say what is known any more."""
        self.known = Paths()
        self.on_word: Callable[[Address], None] = lambda peer: None  # the kernel speaks of its path
        self._backend = backend
        self._on_change = on_change
        self._hints: set[Address] = set()  # to be asked for at once
        self._doubts: dict[Address, None] = {}  # to be asked for in turn
        self._is_due = asyncio.Event()
        self._table: Table | None = None
        self._peers: frozenset[Address] = frozenset()
        self._iface = 0  # index of the underlay
        self._underlay_mtu = 0
        self._refused = 0  # packets, when last looked at
        self._looked_s = 0.0

    # --- for the daemon -------------------------------------------------------------------------------

    async def fit(self, settings: Settings, table: Table) -> tuple[Settings, Table]:
        """Return settings and table with what is known of paths in them."""
        is_first, link = self._table is None, settings.underlay
        if table is not self._table:
            self._table = table
            self._peers = frozenset(ip for peer in table.peers for ip in peer.addresses)
            self.known.keep(self._peers)
        if (link.index, link.mtu) != (self._iface, self._underlay_mtu):
            self._iface, self._underlay_mtu = link.index, link.mtu
            self.doubt()
        if is_first:  # what the kernel learned while an earlier control ran
            await self._look(await asyncio.to_thread(_list_learned))
        table = self.known.narrow(table, settings.mtu)
        self._warn()
        return replace(settings, trusts_paths=not self.known.forced), table

    def hint(self, peer: Address) -> None:
        """Take that the kernel may have learned something of the path to a peer."""
        if peer in self._peers:
            self._hints.add(peer)
            self._is_due.set()

    def hear(self, _: int, error: IcmpError) -> None:
        """Take an ICMP error about a packet of ours: what it says is not believed, but looked after."""
        if error.trouble is Trouble.TOO_BIG:
            self.hint(error.peer)

    def doubt(self) -> None:
        """Take that routes of this host are different: what they say of paths may be, too."""
        self._doubts |= dict.fromkeys(peer for peer, _ in self.known)
        self._is_due.set()

    def learn(self, peer: Address, path: PathMtu) -> None:
        """Take what somebody else than the kernel says of a path."""
        if peer in self._peers and self.known.learn(peer, path):
            self._change([peer])

    def forget(self, peer: Address, source: str) -> None:
        """Take that somebody else than the kernel says nothing of a path any more."""
        if self.known.forget(peer, source):
            self._change([peer])

    # --- following the kernel -------------------------------------------------------------------------

    async def run(self) -> None:
        """Follow what the kernel learns, for ever."""
        again: set[Address] = set()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PAUSE_S if again or self._doubts else step.pause_s(LOOK_S)):
                    await self._is_due.wait()
            now = time.monotonic()
            self._find_refused(now)
            changed = self.known.expire(now, PROBE)
            self._doubts |= dict.fromkeys(self.known.due(now))  # the kernel may say it again
            hinted, doubted = self._take_due()
            changed += await self._look({*hinted, *again, *doubted})
            if changed:
                self._change(changed)
            # A hint may come before the kernel has read it itself.
            again = {peer for peer in hinted if self.known.of(peer) is None}
            if hinted:
                await asyncio.sleep(PAUSE_S)

    def _take_due(self) -> tuple[set[Address], list[Address]]:
        """Take all that was hinted at, and some of what is in doubt."""
        hinted, self._hints = self._hints, set()
        doubted = list(islice(self._doubts, TURN))
        for peer in doubted:
            del self._doubts[peer]
        self._is_due.clear()
        return hinted, doubted

    def _find_refused(self, now: float) -> None:
        """Look for which peers packets were too big since the last look, as far as can be told."""
        counters = self._backend.describe().counters
        if counters is None or self._table is None or now < self._looked_s + LOOK_LEAST_S:
            return
        self._looked_s = now
        tx = counters.totals().tx
        refused, before = tx.drops.get(TOO_BIG, 0), self._refused
        self._refused = refused
        if refused == before:
            return
        self._doubts |= dict.fromkeys(_list_learned())
        last = tx.last.get(TOO_BIG)
        if last is not None and last.address is not None:
            self._hints |= {entry.vtep for entry in self._table.subnets if last.address in entry.prefix}

    async def _look(self, peers: Iterable[Address]) -> list[Address]:
        """Ask the kernel for paths; return of which peers it says something else than before."""
        wanted = [peer for peer in peers if peer in self._peers]
        if not wanted:
            return []
        now, found = time.monotonic(), await asyncio.to_thread(self._ask, wanted)
        changed = [peer for peer, path in found.items() if self._take(peer, path, now)]
        for peer in changed:
            self.on_word(peer)
        return changed

    def _ask(self, peers: list[Address]) -> dict[Address, PathMtu | None]:
        now = time.monotonic()
        return {peer: routemtu.ask(peer, self._iface, now) for peer in peers}

    def _take(self, peer: Address, path: PathMtu | None, now: float) -> bool:
        if path is None or path.mtu >= self._underlay_mtu:
            return self.known.forget(peer, ICMP, ROUTE)
        is_routes = path.source == ROUTE
        if is_routes:
            path = replace(path, expires_s=now + ROUTE_S)
        return self.known.learn(peer, path) | self.known.forget(peer, ICMP if is_routes else ROUTE)

    # --- telling --------------------------------------------------------------------------------------

    def _change(self, peers: list[Address]) -> None:
        for peer in peers[:TOLD_MAX]:
            path = self.known.of(peer)
            if path is None:
                log.info("path takes what the interface does", node=peer, mtu=self._underlay_mtu)
            else:
                log.info("path takes less", node=peer, mtu=path.mtu, source=path.source)
        if len(peers) > TOLD_MAX:
            log.info("more paths changed", nodes=len(peers) - TOLD_MAX)
        self._on_change()

    def _warn(self) -> None:
        for line in self.known.alarms(time.monotonic()):
            log.warning(line)


def _list_learned() -> set[Address]:
    return set(routemtu.list_learned())
