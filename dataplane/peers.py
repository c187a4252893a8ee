# SPDX-License-Identifier: Apache-2.0
"""Which leases of other nodes become peers, and what the table says of them. Sans-IO, and incremental.

What one changed lease can change is itself and those that it collides with, directly or through others; only
these are looked at again, so a change costs the same among ten leases and among a hundred thousand. What all
are judged by, the scene, rarely changes: then everything is looked at.

A node is one peer, known by its first public address; its id stays with it from publish to publish, and
through a restart of control (the forwarder's table tells). An id that became free is not given away for
GRACE_S, so that late counters are nobody else's.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Generic, TypeVar

from dataplane.gate import Scene, find_collisions, is_same_node, refuse
from dataplane.model import Address, Entry, Lease, MacAddress, Network, Peer, SubnetEntry

GRACE_S = 60.0
PEERS_MAX = 131072

PATCH_MAX = 100  # values that are moved one by one; with more of them all are sorted

T = TypeVar("T")
K = TypeVar("K")

Key = tuple[int, ...]
Claim = Address | Network  # what no two nodes may have


@dataclass(frozen=True, slots=True)
class PeerView:
    """A lease of another node, and what became of it."""

    id: int | None  # None: refused
    entry: Entry
    refused: str | None = None


class PeerIds:
    """Gives each peer an id that stays with it."""

    def __init__(self, known: Iterable[Peer]) -> None:
        """Begin with the ids of a table that is in force."""
        self._ids = {peer.addresses[0]: peer.id for peer in known if peer.addresses}
        self._resting: dict[Address, tuple[int, float]] = {}  # gone peer -> its id, and until when it rests
        taken = frozenset(self._ids.values())
        self._fresh = (peer_id for peer_id in range(PEERS_MAX) if peer_id not in taken)
        self._newest = -1  # the only one of the free ids that nobody ever had
        self._free: list[int] = []  # a heap
        self._add_fresh()

    def get(self, address: Address) -> int | None:
        """Return the id of a peer, if there was one for it."""
        return self._ids.get(address)

    def keep(self, wanted: Iterable[Address], now: float) -> None:
        """Give ids to all of these, as far as there are ids, and to nobody else."""
        wanted = dict.fromkeys(wanted)
        self.change([address for address in self._ids if address not in wanted], wanted, now)

    def change(self, gone: Iterable[Address], come: Iterable[Address], now: float) -> None:
        """Take ids from peers that are gone, then give ids to those that have come.

        Who comes back while its id rests gets the same again.
        """
        for address in gone:
            if address in self._ids:
                self._resting[address] = (self._ids.pop(address), now + GRACE_S)
        self._wake(now)
        for address in come:
            if address in self._ids:
                continue
            peer_id = self._resting.pop(address)[0] if address in self._resting else self._next()
            if peer_id is not None:
                self._ids[address] = peer_id

    def _wake(self, now: float) -> None:
        while self._resting:
            address = next(iter(self._resting))  # the one that has rested the longest
            peer_id, until = self._resting[address]
            if until > now:
                return
            del self._resting[address]
            heappush(self._free, peer_id)

    def _next(self) -> int | None:
        if self._free:
            peer_id = heappop(self._free)
            if peer_id == self._newest:
                self._add_fresh()
            return peer_id
        if self._resting:  # only a cluster that is replaced whole within the grace period gets here
            return self._resting.pop(next(iter(self._resting)))[0]
        return None

    def _add_fresh(self) -> None:
        newest = next(self._fresh, None)
        if newest is not None:
            self._newest = newest
            heappush(self._free, newest)


class Row(Generic[T]):
    """Values in order of a key that no two share, as a tuple that stays the same while nothing changes."""

    def __init__(self, key: Callable[[T], Key]) -> None:
        """Begin with no values."""
        self._key = key
        self._values: list[T] = []
        self.shown: tuple[T, ...] = ()

    def change(self, gone: list[T], come: list[T]) -> None:
        """Take values out, then put others in."""
        if not gone and not come:
            return
        if len(gone) + len(come) > PATCH_MAX:
            values = {self._key(value): value for value in self._values}
            for value in gone:
                del values[self._key(value)]
            values |= {self._key(value): value for value in come}
            self._values = [values[key] for key in sorted(values)]
        else:
            for value in gone:
                del self._values[self._place(value)]
            for value in come:
                self._values.insert(self._place(value), value)
        self.shown = tuple(self._values)

    def _place(self, value: T) -> int:
        return bisect_left(self._values, self._key(value), key=self._key)


class Peers:
    """Knows the leases, judges those of other nodes, and holds the table's values of them."""

    def __init__(self, known: Iterable[Peer]) -> None:
        """Begin with no leases; `known` are the peers of the table in force, whose ids stay theirs."""
        self._ids = PeerIds(known)
        self._entries: dict[str, Entry] = {}
        self._order: dict[str, int] = {}  # of entries
        self._at: dict[Address, set[str]] = {}  # leases by each of their public addresses
        self._dirty: set[str] = set()
        self._scene: Scene | None = None
        self._is_full = False
        # Of the leases of others, by name; and who claims what, who is accepted of a node.
        self._refusals: dict[str, str | None] = {}  # why each is refused by itself
        self._claims: dict[str, tuple[Claim, ...]] = {}  # of those that are good by themselves
        self._claimants: dict[Claim, set[str]] = {}
        self._node_of: dict[str, Address] = {}  # of those that are accepted
        self._nodes: dict[Address, set[str]] = {}
        self._views: dict[str, PeerView] = {}
        # What the table has of each lease and each node, and of all.
        self._subnets_of: dict[str, tuple[SubnetEntry, ...]] = {}
        self._peer_of: dict[Address, Peer] = {}
        self._subnets: Row[SubnetEntry] = Row(_prefix_key)
        self._peers: Row[Peer] = Row(lambda peer: (peer.id,))

    # --- what the store says ----------------------------------------------------------------------------

    def replace(self, entries: Iterable[Entry]) -> None:
        """Take a whole list: whatever is not in it is gone."""
        listed = {entry.name: entry for entry in entries}
        for name in [name for name in self._entries if name not in listed]:
            self.remove(name)
        for entry in listed.values():
            self.put(entry)
        self._entries = listed
        self._order = {name: index for index, name in enumerate(listed)}

    def put(self, entry: Entry) -> None:
        """Take a new or changed lease."""
        old = self._entries.get(entry.name)
        if old == entry:
            return
        if old is None:
            self._order[entry.name] = next(reversed(self._order.values()), -1) + 1
        else:
            self._forget(old)
        self._entries[entry.name] = entry
        for address in _addresses(entry):
            self._at.setdefault(address, set()).add(entry.name)
        self._dirty.add(entry.name)

    def remove(self, name: str) -> None:
        """Take that a lease is gone."""
        old = self._entries.pop(name, None)
        if old is not None:
            self._forget(old)
            del self._order[name]
            self._dirty.add(name)

    def _forget(self, entry: Entry) -> None:
        for address in _addresses(entry):
            _discard(self._at, address, entry.name)

    # --- what follows -----------------------------------------------------------------------------------

    def judge(self, scene: Scene, now: float) -> list[PeerView]:
        """Decide which leases become peers; return those that are refused, and were not, or not for that."""
        is_whole = scene != self._scene or self._is_full
        self._scene = scene
        if is_whole:
            self._dirty |= self._entries.keys()
        touched, contested = self._judge_dirty(scene)
        collisions = find_collisions(self._entries[name] for name in contested)
        accepted = self._sorted(name for name in touched if name in self._claims and name not in collisions)
        nodes = self._move(touched, accepted)
        if is_whole:
            self._ids.keep(self._nodes, now)
        else:
            gone = [node for node in nodes if node not in self._nodes]
            self._ids.change(gone, [self._node_of[name] for name in accepted], now)
        self._is_full = any(self._ids.get(node) is None for node in nodes if node in self._nodes)
        news = self._look(touched, collisions)
        self._list_subnets(touched, scene.own)
        self._list_peers(nodes)
        return news

    def views(self) -> tuple[PeerView, ...]:
        """Return all leases of other nodes."""
        return tuple(self._views[name] for name in self._entries if name in self._views)

    def peers(self) -> tuple[Peer, ...]:
        """Return the nodes that have an id, in order of it."""
        return self._peers.shown

    def subnets(self) -> tuple[SubnetEntry, ...]:
        """Return the subnets of these, in order."""
        return self._subnets.shown

    def leases_at(self, addresses: Iterable[Address]) -> list[Lease]:
        """Return the leases that have one of these public addresses."""
        names = {name for address in addresses for name in self._at.get(address, ())}
        leases = (self._entries[name].lease for name in self._sorted(names))
        return [lease for lease in leases if lease is not None]

    # --- steps of judge() -------------------------------------------------------------------------------

    def _judge_dirty(self, scene: Scene) -> tuple[set[str], set[str]]:
        """Judge each lease that changed by itself.

        Return those and all that they may collide with, or might have before; and of them those that may.
        """
        dirty, self._dirty = self._dirty, set()
        before, _ = self._connected(dirty)
        for name in dirty:
            for claim in self._claims.pop(name, ()):
                _discard(self._claimants, claim, name)
            entry = self._entries.get(name)
            if entry is None or _is_own(entry, scene.own):
                self._refusals.pop(name, None)
                continue
            self._refusals[name] = refuse(entry, scene)
            if self._refusals[name] is None and entry.lease is not None:
                self._claims[name] = (*entry.lease.public_ips(), *entry.lease.key.subnets())
                for claim in self._claims[name]:
                    self._claimants.setdefault(claim, set()).add(name)
        return self._connected(dirty | before)

    def _connected(self, names: set[str]) -> tuple[set[str], set[str]]:
        """Find those that claim the same as some leases, those that claim the same as these, and so on.

        Return all, and those of them that are not alone with a claim.
        """
        found, contested, queue = set(names), set(), list(names)
        while queue:
            for claim in self._claims.get(queue.pop(), ()):
                claimants = self._claimants[claim]
                if len(claimants) > 1:
                    contested |= claimants
                    queue += claimants - found
                    found |= claimants
        return found, contested

    def _move(self, touched: set[str], accepted: list[str]) -> set[Address]:
        """Note which leases each node has now; return the nodes of which it may have changed."""
        nodes = set()
        for name in touched:
            node = self._node_of.pop(name, None)
            if node is not None:
                _discard(self._nodes, node, name)
                nodes.add(node)
        for name in accepted:
            node = _addresses(self._entries[name])[0]
            self._node_of[name] = node
            self._nodes.setdefault(node, set()).add(name)
            nodes.add(node)
        return nodes

    def _look(self, touched: set[str], collisions: dict[str, str]) -> list[PeerView]:
        """View leases anew; return those that are refused and were not, or not for that reason."""
        news = []
        for name in touched:
            if name not in self._refusals:
                self._views.pop(name, None)
        for name in self._sorted(name for name in touched if name in self._refusals):
            refused = collisions.get(name) or self._refusals[name]
            peer_id = None if refused is not None else self._ids.get(self._node_of[name])
            if refused is None and peer_id is None:
                refused = f"the table is full: it holds {PEERS_MAX} peers"
            old = self._views.get(name)
            self._views[name] = PeerView(peer_id, self._entries[name], refused)
            if refused is not None and (old is None or old.refused != refused):
                news.append(self._views[name])
        return news

    def _list_subnets(self, names: set[str], own: Lease) -> None:
        gone: list[SubnetEntry] = []
        come: list[SubnetEntry] = []
        for name in names:
            old = self._subnets_of.pop(name, ())
            view = self._views.get(name)
            new = () if view is None or view.id is None else tuple(_subnet_entries(view, own))
            if new == old:
                new = old  # the same objects compare quickly
            else:
                gone += old
                come += new
            if new:
                self._subnets_of[name] = new
        self._subnets.change(gone, come)

    def _list_peers(self, nodes: set[Address]) -> None:
        gone, come = [], []
        for node in nodes:
            old, new = self._peer_of.pop(node, None), self._make_peer(node)
            if new is not None:
                self._peer_of[node] = new
            if new != old:
                gone += [] if old is None else [old]
                come += [] if new is None else [new]
        self._peers.change(gone, come)

    def _make_peer(self, node: Address) -> Peer | None:
        peer_id = self._ids.get(node)
        if node not in self._nodes or peer_id is None:
            return None
        names = self._nodes[node]
        entries = [self._entries[name] for name in (names if len(names) == 1 else self._sorted(names))]
        return Peer(peer_id, tuple(dict.fromkeys(ip for entry in entries for ip in _addresses(entry))))

    def _sorted(self, names: Iterable[str]) -> list[str]:
        return sorted(names, key=self._order.__getitem__)


def _discard(sets: dict[K, set[str]], key: K, name: str) -> None:
    sets[key].discard(name)
    if not sets[key]:
        del sets[key]


def _addresses(entry: Entry) -> tuple[Address, ...]:
    return () if entry.lease is None else tuple(entry.lease.public_ips())


def _prefix_key(entry: SubnetEntry) -> Key:
    net = entry.prefix
    return net.version, int(net.network_address), net.prefixlen


def _is_own(entry: Entry, own: Lease) -> bool:
    """Return whether an entry is our own lease, as it is or as it was before its last change."""
    lease = entry.lease
    return lease is not None and lease.key == own.key and is_same_node(lease, own)


def _subnet_entries(view: PeerView, own: Lease) -> Iterator[SubnetEntry]:
    """Yield the table entries of a peer: each subnet over the underlay of its family, else over the other."""
    lease = view.entry.lease
    assert lease is not None
    reachable = {ip.version for ip in own.public_ips()}
    vteps = {ip.version: ip for ip in lease.public_ips() if ip.version in reachable}
    macs: dict[int, MacAddress | None] = {4: lease.vtep_mac, 6: lease.vtep_mac6}
    for subnet in lease.key.subnets():
        vtep = vteps.get(subnet.version) or next(iter(vteps.values()))
        mac = macs[subnet.version] or lease.vtep_mac or lease.vtep_mac6
        assert view.id is not None
        yield SubnetEntry(subnet, view.id, lease.encap, vtep, mac)
