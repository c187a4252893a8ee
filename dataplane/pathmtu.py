# SPDX-License-Identifier: Apache-2.0
"""How much the paths to peers take, who says so, and for how long. Sans-IO.

Routers of the underlay tell the kernel when a packet of ours is too big for the next link; probes find out
where routers are silent. What they say is kept here by the peer's underlay address, in bytes of the outer
packet. Where that is less than the underlay interface takes, subnets of the peer get a smaller MTU in the
table, but never less than every host must take: who forges the word of a router can do no more than that.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, replace

from dataplane.flannel import OVERHEAD
from dataplane.model import Address, SubnetEntry, Table

MTU_MIN = {4: 576, 6: 1280}  # bytes; what every host must take (RFC 1122, RFC 8200), by version of the pods
# The kernel's word of a router's, or of a route that somebody set up; and what got through.
ICMP, ROUTE, PROBE = SOURCES = ("icmp", "route", "probe")
SAYS = {ICMP: "a router says", ROUTE: "a route of this host says", PROBE: "probes found"}
TINY = 1280  # bytes; real links take more
ALARM_S = 600.0  # until the same peer is told of again
ALARMS_MAX = 10  # peers that one pass tells of


@dataclass(frozen=True, slots=True)
class PathMtu:
    """What somebody says of a path."""

    mtu: int  # bytes of an outer packet
    source: str  # of SOURCES
    expires_s: float | None = None  # CLOCK_MONOTONIC; None: until it is forgotten


class Paths:
    """The paths of which something is known. Methods that change it return whether they did."""

    def __init__(self) -> None:
        """Know of none."""
        self._found: dict[Address, dict[str, PathMtu]] = {}
        self._alarmed: dict[Address, float] = {}
        self.forced: frozenset[Address] = frozenset()  # peers whose pods get more than is said, by the table

    # --- what is told ---------------------------------------------------------------------------------

    def learn(self, peer: Address, path: PathMtu) -> bool:
        """Take what a source says of the path to a peer, in place of what it said before."""
        known = self._found.setdefault(peer, {})
        before = known.get(path.source)
        known[path.source] = path
        return before is None or before.mtu != path.mtu

    def forget(self, peer: Address, *sources: str) -> bool:
        """Take that sources say nothing of a path any more; without any, that none does."""
        known = self._found.get(peer, {})
        gone = [source for source in sources or SOURCES if known.pop(source, None)]
        if peer in self._found and not known:
            del self._found[peer]
        return bool(gone)

    def keep(self, peers: Container[Address]) -> bool:
        """Forget all that are no peers."""
        gone = [peer for peer in self._found if peer not in peers]
        for peer in gone:
            del self._found[peer]
        return bool(gone)

    def due(self, now: float) -> set[Address]:
        """Return the peers of which something does not hold any more, unless it is said again."""
        return {
            peer for peer, known in self._found.items() if any(_is_over(path, now) for path in known.values())
        }

    def expire(self, now: float, *sources: str) -> list[Address]:
        """Forget what sources said that does not hold any more, and return of whom; without any, of all."""
        gone = [
            (peer, path.source)
            for peer in self.due(now)
            for path in self._found[peer].values()
            if _is_over(path, now) and path.source in (sources or SOURCES)
        ]
        for peer, source in gone:
            self.forget(peer, source)
        return [peer for peer, _ in gone]

    # --- what follows ---------------------------------------------------------------------------------

    def of(self, peer: Address) -> PathMtu | None:
        """Return the smallest that is said of the path to a peer; None: it takes what the underlay takes."""
        known = self._found.get(peer)
        return None if known is None else min(known.values(), key=lambda path: path.mtu)

    def told(self, peer: Address) -> int | None:
        """Return the smallest that others than probes say, in bytes of an outer packet."""
        known = self._found.get(peer, {}).values()
        return min((path.mtu for path in known if path.source != PROBE), default=None)

    def __iter__(self) -> Iterator[tuple[Address, PathMtu]]:
        """Yield peers, each with the smallest that is said of its path."""
        for peer, known in self._found.items():
            yield peer, min(known.values(), key=lambda path: path.mtu)

    def describe(self, peers: Iterable[Address], now: float) -> dict[str, object] | None:
        """Return what `peers --json` shows of a node that has these addresses; None: nothing is known."""
        known = [path for path in map(self.of, peers) if path is not None]
        path = min(known, key=lambda path: path.mtu, default=None)
        if path is None:
            return None
        expires_in_s = None if path.expires_s is None else round(path.expires_s - now, 3)
        return {"mtu": path.mtu, "source": path.source, "expires_in_s": expires_in_s}

    def narrow(self, table: Table, mtu: int) -> Table:
        """Return a table with the paths that take less than `mtu`, the largest packet of pods, in it.

        What goes by a plain route is the kernel's business: it tells pods what it learns.
        """
        self.forced = frozenset()
        if not self._found:
            return table
        fitted = tuple(self._fit(entry, mtu) for entry in table.subnets)
        self.forced = frozenset(entry.vtep for entry in fitted if self._is_forced(entry, mtu))
        return replace(table, subnets=fitted)

    def _fit(self, entry: SubnetEntry, mtu: int) -> SubnetEntry:
        path = self.of(entry.vtep)
        if entry.is_direct or path is None:
            return entry
        inner = max(path.mtu - _overhead(entry), MTU_MIN[entry.prefix.version])
        return entry if inner >= (entry.mtu or mtu) else replace(entry, mtu=inner)

    def _is_forced(self, entry: SubnetEntry, mtu: int) -> bool:
        path, told = self.of(entry.vtep), min(entry.mtu or mtu, mtu)
        return not entry.is_direct and path is not None and told + _overhead(entry) > path.mtu

    # --- what is wrong --------------------------------------------------------------------------------

    def alarms(self, now: float) -> list[str]:
        """Return what is to be told of paths that are suspiciously small; of each only now and then."""
        self._alarmed = {peer: told_s for peer, told_s in self._alarmed.items() if told_s > now - ALARM_S}
        news = [(peer, path) for peer, path in self._tiny() if peer not in self._alarmed][:ALARMS_MAX]
        self._alarmed |= {peer: now for peer, _ in news}
        return [self._describe(peer, path) for peer, path in news]

    def warnings(self) -> tuple[str, ...]:
        """Return the same, of those that are now, for as long as they are."""
        tiny = list(self._tiny())
        more = [f"and {len(tiny) - ALARMS_MAX} more such paths"] if len(tiny) > ALARMS_MAX else []
        return (*(self._describe(peer, path) for peer, path in tiny[:ALARMS_MAX]), *more)

    def _tiny(self) -> Iterator[tuple[Address, PathMtu]]:
        # While probes look for what passes they say less than they will.
        return (
            (peer, path)
            for peer, path in self
            if (path.mtu < TINY and path.source != PROBE) or peer in self.forced
        )

    def _describe(self, peer: Address, path: PathMtu) -> str:
        text = f"path MTU of {peer} is {path.mtu}, {SAYS[path.source]}. "
        if peer in self.forced:
            text += (
                f"Pods are told no less than {MTU_MIN[4]} bytes (by IPv6 {MTU_MIN[6]}), so if that is true, "
                "what is larger is lost. "
            )
        return text + "If no link there is that small, somebody forges it"


def _is_over(path: PathMtu, now: float) -> bool:
    return path.expires_s is not None and path.expires_s <= now


def _overhead(entry: SubnetEntry) -> int:
    return OVERHEAD.get((entry.encap, entry.vtep.version), 0)
