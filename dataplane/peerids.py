# SPDX-License-Identifier: Apache-2.0
"""The ids of peers, and nodes and subnets as numbers. Pure.

A node is one peer, known by its first public address; its id stays with it from publish to publish, and
through a restart of control (the forwarder's table tells). An id that became free is not given away for
GRACE_S, so that late counters are nobody else's.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heappop, heappush

from dataplane.model import Address, Network, Peer

GRACE_S = 60.0
PEERS_MAX = 131072

# What no two nodes may have, as one number: a subnet or, from ADDRESS on, an address. Numbers compare and
# hash quicker than subnets do, and sort as they do.
Claim = int
ADDRESS = 1 << 144
IPV6 = 1 << 140


def number(ip: Address) -> Claim:
    """Return an address as a number."""
    return ADDRESS | (0 if ip.version == 4 else IPV6) | int(ip)


def number_subnet(net: Network) -> Claim:
    """Return a subnet as a number."""
    return (0 if net.version == 4 else IPV6) | int(net.network_address) << 8 | net.prefixlen


class PeerIds:
    """Gives each peer an id that stays with it."""

    def __init__(self, known: Iterable[Peer]) -> None:
        """Begin with the ids of a table that is in force."""
        self._ids = {number(peer.addresses[0]): peer.id for peer in known if peer.addresses}
        self._resting: dict[Claim, tuple[int, float]] = {}  # gone peer -> its id, and until when it rests
        self._taken = set(self._ids.values())  # those that rest among them
        self._next = 0  # from here on an id is free unless it is taken; below, if it is in the heap
        self._freed: list[int] = []

    def known(self) -> list[Claim]:
        """Return the peers that have an id."""
        return list(self._ids)

    def has(self, node: Claim) -> bool:
        """Return whether a peer has an id."""
        return node in self._ids

    def rest(self, node: Claim, now: float) -> None:
        """Take that a peer is gone. Who comes back while its id rests gets the same again."""
        peer_id = self._ids.pop(node, None)
        if peer_id is not None:
            self._resting[node] = (peer_id, now + GRACE_S)

    def expire(self, now: float) -> None:
        """Make free what rested long enough."""
        while self._resting:
            node, (peer_id, until) = next(iter(self._resting.items()))  # the first that went
            if until > now:
                break
            del self._resting[node]
            self._taken.discard(peer_id)
            if peer_id < self._next:
                heappush(self._freed, peer_id)

    def find(self, node: Claim) -> int:
        """Return the id that a peer has, or had until now; -1 if there is none."""
        rest = self._resting.pop(node, None)
        if rest is not None:
            self._ids[node] = rest[0]
        return self._ids.get(node, -1)

    def give(self, node: Claim) -> int:
        """Return a new id for a peer, the lowest that is free; there are at most PEERS_MAX peers."""
        while self._next in self._taken:
            self._next += 1
        if self._freed:
            peer_id = heappop(self._freed)
        elif self._next < PEERS_MAX:
            peer_id, self._next = self._next, self._next + 1
        else:
            # Only a cluster that is replaced whole within the grace period gets here.
            peer_id, _ = self._resting.pop(next(iter(self._resting)))
        self._taken.add(peer_id)
        self._ids[node] = peer_id
        return peer_id
