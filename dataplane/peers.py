# SPDX-License-Identifier: Apache-2.0
"""Which leases are peers, under which ids, and what the table says of them. Sans-IO.

Peers is told what the store says, lease by lease, and is then asked to judge(): only what changed since the
last time is looked at, together with what collides with it, directly or through others; so a change costs the
same among ten leases and among a hundred thousand. If the scene changed, that is every lease, the same way.

Only so many leases count. One that does counts for as long as it is there; the others wait, and of these the
oldest is the next. So a store that is flooded takes no peer from anybody. One that is only held
(withdrawal.py) counts while no other waits.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from typing import Generic, TypeVar

from dataplane.gate import Refusal, Scene, find_collisions, is_same_node, refuse
from dataplane.model import (
    Address,
    Entry,
    Lease,
    Peer,
    SubnetEntry,
)
from dataplane.peerids import ADDRESS, PEERS_MAX, Claim, PeerIds, number, number_subnet
from dataplane.reach import list_entries

FULL = Refusal("count", "as many leases count already as may; see --max-peers")
PATCH_MAX = 200  # values moved one by one; with more of them all are put in order

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class PeerView:
    """A lease of another node, and what became of it."""

    id: int | None  # None: refused
    entry: Entry
    refused: Refusal | None = None
    subnets: tuple[SubnetEntry, ...] = ()  # how it is reached


class InOrder(Generic[V]):
    """Values in order of their keys, as a tuple that keeps the objects that did not change."""

    def __init__(self) -> None:
        """Begin empty."""
        self._keys: list[int] = []
        self._values: list[V] = []
        self._changes: dict[int, V | None] = {}
        self._shown: tuple[V, ...] = ()

    def put(self, key: int, value: V) -> None:
        """Have this value under this key."""
        self._changes[key] = value

    def drop(self, key: int) -> None:
        """Have no value under this key."""
        self._changes[key] = None

    def values(self) -> tuple[V, ...]:
        """Return the values; the same object as long as nothing changed."""
        changes, self._changes = self._changes, {}
        if len(changes) > PATCH_MAX:
            known: dict[int, V | None] = dict(zip(self._keys, self._values, strict=True))
            known |= {key: value for key, value in changes.items() if known.get(key) != value}
            self._keys = sorted(key for key, value in known.items() if value is not None)
            self._values = [value for key in self._keys if (value := known[key]) is not None]
            self._shown = tuple(self._values)
        elif sum([self._patch(key, value) for key, value in changes.items()]):
            self._shown = tuple(self._values)
        return self._shown

    def _patch(self, key: int, value: V | None) -> bool:
        """Put one value where it belongs, or take it away; return whether that changed anything."""
        at = bisect_left(self._keys, key)
        is_there = at < len(self._keys) and self._keys[at] == key
        if value is None:
            if is_there:
                del self._keys[at], self._values[at]
            return is_there
        if not is_there:
            self._keys.insert(at, key)
            self._values.insert(at, value)
        elif self._values[at] == value:
            return False
        self._values[at] = value
        return True


@dataclass(slots=True, eq=False)
class _Node:
    """A node with leases that count."""

    name: Claim  # its first address
    id: int = -1  # given in the pass in which it comes
    leases: list[_Known] = field(default_factory=list)

    def addresses(self) -> tuple[Address, ...]:
        """Return all its addresses, in the order of the store."""
        if len(self.leases) == 1:  # nearly always
            return _ips(self.leases[0])
        found = [ip for known in sorted(self.leases, key=_rank) for ip in _ips(known)]
        return tuple(dict.fromkeys(found))


@dataclass(slots=True, eq=False)
class _Known:
    """A lease, and what became of it."""

    entry: Entry
    rank: int  # its place in the order of the store
    is_own: bool = False
    is_counted: bool = False  # among those of which there may only be so many
    is_waiting: bool = False  # to be
    refused: Refusal | None = None  # for what it is
    collided: Refusal | None = None  # for what others are
    # What it claims, unless it is refused for what it is, our own, or gone.
    subnets: tuple[Claim, ...] = ()
    addresses: tuple[Claim, ...] = ()
    node: _Node | None = None  # None: it does not count
    told: Refusal | None = None  # why it is no peer, as far as that was told

    def reason(self) -> Refusal | None:
        """Say why it is no peer; None if it is one, or our own."""
        return self.refused or (FULL if self.is_waiting else self.collided)


class Peers:
    """All leases, and the peers among them."""

    def __init__(self, in_force: Iterable[Peer], count_max: int = PEERS_MAX) -> None:
        """Begin with no leases; the ids of the peers of the table in force stay theirs."""
        self._count, self._count_max = 0, count_max  # leases that count
        # A heap; some of them wait no longer, or elsewhere in it.
        self._waiting: list[tuple[bool, bool, int, int, _Known]] = []
        self._held: dict[_Known, None] = {}  # those that count and are only held
        self._ids = PeerIds(in_force)
        self._unseen = self._ids.known()  # peers in force, until the first pass
        self._scene: Scene | None = None
        self._known: dict[str, _Known] = {}
        self._ranks = 0
        self._entries: dict[str, Entry] = {}  # what the store says
        self._sought: frozenset[Address] = frozenset()
        self._found: set[str] = set()  # leases that have one of these
        # What it said since the last pass: first these are gone, then those are here.
        self._gone: set[str] = set()
        self._come: dict[str, Entry] = {}
        # Who claims what: one of them; and where there are several, all of them.
        self._claimant: dict[Claim, _Known] = {}
        self._shared: dict[Claim, list[_Known]] = {}
        self._nodes: dict[Claim, _Node] = {}
        self._peers: InOrder[Peer] = InOrder()
        self._subnets: InOrder[SubnetEntry] = InOrder()

    # --- what is told -----------------------------------------------------------------------------------

    def views(self) -> tuple[PeerView, ...]:
        """Return the leases of all other nodes, in the order of the store."""
        return tuple(self._view(known) for known in self._known.values() if not known.is_own)

    def _view(self, known: _Known) -> PeerView:
        view = _view(known)
        if view.id is None:
            return view
        assert self._scene is not None  # in which it got its id
        entries = list_entries(_lease(known), view.id, self._scene.own, self._scene.reach)
        return replace(view, subnets=tuple(entries))

    def peers(self) -> tuple[Peer, ...]:
        """Return the peers in order of their ids; the same object as long as nothing changed."""
        return self._peers.values()

    def subnets(self) -> tuple[SubnetEntry, ...]:
        """Return the subnets of the peers in their order; the same object as long as nothing changed."""
        return self._subnets.values()

    def find(self, name: str) -> Entry | None:
        """Return a lease if it is that of a peer."""
        known = self._known.get(name)
        return None if known is None or known.node is None else known.entry

    def in_force(self) -> dict[str, Entry]:
        """Return the leases that are those of peers, by name."""
        return {name: known.entry for name, known in self._known.items() if known.node is not None}

    def count_waiting(self) -> int:
        """Return how many leases do not count, since as many do as may."""
        return len({known.entry.name for *_, known in self._waiting if known.is_waiting})

    def leases_at(self, addresses: Iterable[Address]) -> list[Lease]:
        """Return the leases that have one of these addresses; asking again for the same ones is cheap."""
        sought = frozenset(addresses)
        if sought != self._sought:
            self._sought = sought
            self._found = self._select(self._entries.values())
        names = (
            self._found if len(self._found) < 2 else [name for name in self._entries if name in self._found]
        )
        return [lease for name in names if (lease := self._entries[name].lease) is not None]

    # --- what the store says ----------------------------------------------------------------------------

    def replace(self, entries: Iterable[Entry]) -> None:
        """Take a whole list: whatever is not in it is gone."""
        self._entries = {entry.name: entry for entry in entries}
        self._found = self._select(self._entries.values())
        self._gone, self._come = set(self._known), self._entries.copy()

    def put(self, entry: Entry) -> None:
        """Take a new or changed lease."""
        self._entries[entry.name] = self._come[entry.name] = entry
        self._found.discard(entry.name)
        self._found |= self._select([entry])

    def remove(self, name: str) -> None:
        """Take that a lease is gone."""
        self._entries.pop(name, None)
        self._come.pop(name, None)
        self._found.discard(name)
        self._gone.add(name)

    def _select(self, entries: Iterable[Entry]) -> set[str]:
        return {
            entry.name
            for entry in entries
            if (lease := entry.lease) is not None
            if lease.public_ip in self._sought or lease.public_ip6 in self._sought
        }

    # --- what follows -----------------------------------------------------------------------------------

    def judge(self, scene: Scene, now: float) -> list[PeerView]:
        """Decide which leases become peers; return those that are refused, and were not, or not for that."""
        # Leases to look at. Whoever shares a contested claim with one of them is among them, too.
        moved = self._take_in(scene)
        self._collide(moved)
        nodes: dict[Claim, _Node] = {}
        for known in moved:
            self._assign(known, nodes)
        self._serve(nodes, now)
        for known in moved:
            if known.node is not None:
                entries = list_entries(_lease(known), known.node.id, scene.own, scene.reach)
                for claim, entry in zip(known.subnets, entries, strict=True):
                    self._subnets.put(claim, entry)
        for node in nodes.values():
            if node.leases:
                self._peers.put(node.id, Peer(node.id, node.addresses()))
        return _tell(moved)

    # --- steps of judge() -------------------------------------------------------------------------------

    def _take_in(self, scene: Scene) -> dict[_Known, None]:
        """Judge each lease by itself that changed, or all if the scene did; return those that moved."""
        is_new = scene != self._scene
        gone, come = self._gone, self._come
        self._scene, self._gone, self._come = scene, set(), {}
        if is_new:
            come = {name: known.entry for name, known in self._known.items() if name not in gone} | come
        moved: dict[_Known, None] = {}
        for name in gone.difference(come):
            if (known := self._known.pop(name, None)) is not None:
                known.refused = None
                self._release(known)
                self._claim(known, None, moved)
        for name, entry in come.items():
            old = self._known.get(name)
            if old is None or name in gone:  # in its place in the order
                self._ranks += 1
                known = _Known(entry, 0) if old is None else self._known.pop(name)
                known.rank, self._known[name] = self._ranks, known
            else:
                known = old
            was, known.entry = known.entry, entry
            if old is None or is_new or not _is_judged_alike(was, entry):
                refused = refuse(entry, scene)
                known.is_own = refused is not None and _is_own(entry, scene.own)  # it collides with itself
                known.refused = None if known.is_own else refused
                if refused is None and not known.is_counted:
                    moved[known] = None
                    if not known.is_waiting or not _is_queued_alike(was, entry):
                        self._let_wait(known)
                    continue
                if refused is not None:
                    self._release(known)
                self._note_held(known)
                self._claim(known, entry.lease if refused is None else None, moved)
            elif known.node is not None and len(known.node.leases) > 1:
                moved[known] = None  # maybe only within its node
        self._count_in(moved)
        return moved

    def _let_wait(self, known: _Known) -> None:
        """Let a lease wait until it may count; peers of the table in force come first, then the oldest."""
        is_new = not self._ids.has(number(_ips(known)[0]))
        known.is_waiting = True
        heappush(self._waiting, (known.entry.is_held, is_new, known.entry.created, known.rank, known))

    def _count_in(self, moved: dict[_Known, None]) -> None:
        """Let as many of those that wait count as may."""
        while self._waiting and (self._count < self._count_max or self._held):
            is_held, *_, known = self._waiting[0]
            if not known.is_waiting or known.entry.is_held != is_held:
                heappop(self._waiting)
                continue
            if self._count >= self._count_max:
                if is_held:
                    break
                self._put_back(moved)
            heappop(self._waiting)
            known.is_waiting, known.is_counted = False, True
            self._count += 1
            self._note_held(known)
            self._claim(known, known.entry.lease, moved)

    def _put_back(self, moved: dict[_Known, None]) -> None:
        """Let one that is only held make room."""
        known, _ = self._held.popitem()
        self._release(known)
        self._claim(known, None, moved)
        self._let_wait(known)

    def _note_held(self, known: _Known) -> None:
        if known.is_counted and known.entry.is_held:
            self._held[known] = None
        else:
            self._held.pop(known, None)

    def _release(self, known: _Known) -> None:
        """Take that a lease counts no longer, nor waits to."""
        self._count -= known.is_counted
        known.is_counted = known.is_waiting = False
        self._held.pop(known, None)

    def _claim(self, known: _Known, lease: Lease | None, moved: dict[_Known, None]) -> None:
        """Let a lease claim what it says, and nothing else; it moves, and all that collided with it."""
        moved[known] = None
        subnets = () if lease is None else tuple(map(number_subnet, lease.key.subnets()))
        addresses = () if lease is None else tuple(map(number, lease.public_ips()))
        if (subnets, addresses) == (known.subnets, known.addresses):
            return
        for claim in (*known.subnets, *known.addresses):
            moved |= dict.fromkeys(self._find_rivals(claim))
        for claim in known.subnets:
            self._subnets.drop(claim)
        for claim in (*known.subnets, *known.addresses):
            shared = self._shared.get(claim)
            if shared is None:
                del self._claimant[claim]
                continue
            shared.remove(known)
            self._claimant[claim] = shared[0]
            if len(shared) == 1:
                del self._shared[claim]
        known.subnets, known.addresses = subnets, addresses
        for claim in (*subnets, *addresses):
            first = self._claimant.setdefault(claim, known)
            if first is not known:
                self._shared.setdefault(claim, [first]).append(known)

    def _find_rivals(self, claim: Claim) -> list[_Known]:
        """Return all leases that claim the same, if they cannot all have it."""
        shared = self._shared.get(claim, [])
        if claim >= ADDRESS and all(known.addresses[0] == shared[0].addresses[0] for known in shared):
            return []  # several leases of one node
        return shared

    def _collide(self, moved: dict[_Known, None]) -> None:
        """Decide who stays of those that collide with one that moved, or with one that does, and so on."""
        colliding: dict[_Known, None] = {}
        seen: set[Claim] = set()
        left = list(moved)
        while left:
            known = left.pop()
            for claim in (*known.subnets, *known.addresses):
                if claim in self._shared and claim not in seen:
                    seen.add(claim)
                    found = [rival for rival in self._find_rivals(claim) if rival not in colliding]
                    colliding |= dict.fromkeys(found)
                    left += found
        moved |= colliding
        reasons = find_collisions(known.entry for known in colliding)
        for known in moved:
            known.collided = reasons.get(known.entry.name)

    def _assign(self, known: _Known, nodes: dict[Claim, _Node]) -> None:
        """Put a lease that counts to its node, and take any other from where it was; note those nodes."""
        counts = bool(known.addresses) and known.collided is None
        name = known.addresses[0] if counts else None
        if known.node is not None and known.node.name != name:
            known.node.leases.remove(known)
            nodes[known.node.name], known.node = known.node, None
        if name is None:
            for claim in known.subnets:  # who has them instead, if anybody, moved as well
                self._subnets.drop(claim)
            return
        if known.node is None:
            known.node = self._nodes.get(name)
            if known.node is None:
                known.node = self._nodes[name] = _Node(name)
            known.node.leases.append(known)
        nodes[name] = known.node

    def _serve(self, nodes: dict[Claim, _Node], now: float) -> None:
        """Give each of these nodes its id, and take it from those that are gone."""
        for node in nodes.values():
            if not node.leases:
                del self._nodes[node.name]
                if node.id >= 0:
                    self._peers.drop(node.id)
                    self._ids.rest(node.name, now)
        for name in self._unseen:
            if name not in self._nodes:
                self._ids.rest(name, now)
        self._unseen = []
        self._ids.expire(now)
        newcomers = [node for node in nodes.values() if node.id < 0 and node.leases]
        for node in newcomers:
            node.id = self._ids.find(node.name)
        for node in sorted((node for node in newcomers if node.id < 0), key=_first_rank):
            node.id = self._ids.give(node.name)


def _rank(known: _Known) -> int:
    return known.rank


def _first_rank(node: _Node) -> int:
    return min(map(_rank, node.leases))


def _lease(known: _Known) -> Lease:
    assert known.entry.lease is not None
    return known.entry.lease


def _ips(known: _Known) -> tuple[Address, ...]:
    return _lease(known).public_ips()


def _view(known: _Known) -> PeerView:
    peer_id = None if known.node is None else known.node.id
    return PeerView(peer_id, known.entry, known.reason())


def _tell(moved: Iterable[_Known]) -> list[PeerView]:
    """Return the leases that are refused, unless that was told."""
    news = []
    for known in moved:
        reason = known.reason()
        if reason is not None and reason != known.told:
            news.append(known)
        known.told = reason
    return [_view(known) for known in sorted(news, key=_rank)]


def _is_judged_alike(one: Entry, other: Entry) -> bool:
    """Return whether all that leases are judged by is the same: not when one was renewed, or ends."""
    return (one.lease, one.problem) == (other.lease, other.problem) and _is_queued_alike(one, other)


def _is_queued_alike(one: Entry, other: Entry) -> bool:
    return (one.created, one.is_held) == (other.created, other.is_held)


def _is_own(entry: Entry, own: Lease) -> bool:
    """Return whether an entry is our own lease, as it is or as it was before its last change."""
    lease = entry.lease
    if lease is None or lease.key != own.key:
        return False
    mac = own.vtep_mac or own.vtep_mac6  # stays when the address does not
    return is_same_node(lease, own) or (mac is not None and mac in (lease.vtep_mac, lease.vtep_mac6))
