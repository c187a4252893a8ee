# SPDX-License-Identifier: Apache-2.0
"""How a peer is reached: by a plain route where its node is on our link, encapsulated otherwise. Pure.

A node is on our link if the route to its address leads to the underlay interface and has no gateway; so
whatever moves a node behind a router, or back, is a change of this host's routes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from dataplane.alloc import overlap
from dataplane.model import (
    ALWAYS,
    CROSS_SUBNET,
    NEVER,
    Address,
    Encap,
    HostFacts,
    Interface,
    Lease,
    Network,
    NetworkConfig,
    SubnetEntry,
    Way,
)

POINT_TO_POINT = 31  # bits of a prefix that has no broadcast address (RFC 3021)
_Spot = tuple[int, int, int]  # IP version, bits of prefix, the prefix as a number without what follows it


def _spot(address: Address, length: int) -> _Spot:
    return address.version, length, int(address) >> (address.max_prefixlen - length)


@dataclass(frozen=True, slots=True)
class Near:
    """The prefixes that are on our link, and those inside them that are not, the longest one counts."""

    links: frozenset[Network] = frozenset()
    holes: frozenset[Network] = frozenset()
    # What follows, worked out once and not for each lease.
    _spots: dict[_Spot, bool] = field(init=False, compare=False, repr=False)
    _lengths: tuple[int, ...] = field(init=False, compare=False, repr=False)  # the longest first

    def __post_init__(self) -> None:
        """Work out what follows."""
        spots = {_spot(net.network_address, net.prefixlen): True for net in self.links}
        spots |= {_spot(net.network_address, net.prefixlen): False for net in self.holes}
        object.__setattr__(self, "_spots", spots)
        object.__setattr__(self, "_lengths", tuple(sorted({spot[1] for spot in spots}, reverse=True)))

    def holds(self, address: Address) -> bool:
        """Return whether an address is on our link; costs the same for any number of prefixes."""
        for length in self._lengths:
            if length <= address.max_prefixlen:
                found = self._spots.get(_spot(address, length))
                if found is not None:
                    return found
        return False


NOWHERE = Near()


def find_near(facts: HostFacts, underlay: Interface, network: NetworkConfig) -> Near:
    """Return what is on the link of the underlay interface.

    Routes that have nothing to do with it are left out, above all those of pods, which come and go: what is
    the same gives the same value.
    """
    ways: dict[Network, Way] = {}
    for way in facts.ways:
        known = ways.get(way.prefix)
        if known is None or way.metric < known.metric:
            ways[way.prefix] = way
    found = [way for way in ways.values() if not _is_of(way.prefix, network)]
    links = frozenset(way.prefix for way in found if _is_on_link(way, underlay))
    near = Near(links)
    holes = (way.prefix for way in found if near.holds(way.prefix.network_address))
    return Near(links, frozenset(holes) - links)


def find_broadcasts(facts: HostFacts, underlay: Interface) -> frozenset[Address]:
    """Return the broadcast addresses of the link of the underlay interface."""
    links = (way.prefix for way in facts.ways if way.prefix.version == 4 and _is_on_link(way, underlay))
    return frozenset(link.broadcast_address for link in links if link.prefixlen < POINT_TO_POINT)


def _is_on_link(way: Way, underlay: Interface) -> bool:
    return way.iface == underlay.index and way.gateway is None


def _is_of(prefix: Network, network: NetworkConfig) -> bool:
    """Return whether a prefix is of pods, or of one link alone: they have no nodes among them."""
    nets = network.networks()
    is_inside = any(overlap(prefix, net) and prefix.prefixlen >= net.prefixlen for net in nets)
    return is_inside or prefix.is_link_local


@dataclass(frozen=True, slots=True)
class Reach:
    """Which nodes are reached by a plain route, and whether the others are reached at all."""

    mode: str = ALWAYS  # when to encapsulate
    near: Near = NOWHERE


ENCAPSULATED = Reach()


def find_reach(
    told: str | None, facts: HostFacts, underlay: Interface, network: NetworkConfig, encaps: Iterable[Encap]
) -> Reach:
    """Return how nodes are reached: as this node was `told`, or else as the network says."""
    if network.encap is Encap.NONE:
        return ENCAPSULATED  # by somebody else
    mode = told or (CROSS_SUBNET if network.has_direct_routing else ALWAYS)
    is_needed = mode != ALWAYS or Encap.DIRECT in encaps
    return Reach(mode, find_near(facts, underlay, network) if is_needed else NOWHERE)


def list_entries(lease: Lease, peer_id: int, own: Lease, reach: Reach) -> list[SubnetEntry]:
    """Return the entries of a peer: each subnet over the underlay of its family, else over the other."""
    vtep4 = None if own.public_ip is None else lease.public_ip
    vtep6 = None if own.public_ip6 is None else lease.public_ip6
    can_be_direct = reach.mode != ALWAYS or lease.encap is Encap.DIRECT
    encap = Encap.DIRECT if reach.mode == NEVER else lease.encap
    entries = []
    for subnet in lease.key.subnets():
        if subnet.version == 4:
            vtep, mac = vtep4 or vtep6, lease.vtep_mac or lease.vtep_mac6
        else:
            vtep, mac = vtep6 or vtep4, lease.vtep_mac6 or lease.vtep_mac
        assert vtep is not None  # the gate saw to that
        is_direct = can_be_direct and vtep.version == subnet.version and reach.near.holds(vtep)
        entries.append(SubnetEntry(subnet, peer_id, encap, vtep, mac, is_direct=is_direct))
    return entries


def is_unreached(entry: SubnetEntry) -> bool:
    """Return whether nothing leads to a subnet: not encapsulated, and its node is not on our link."""
    return entry.encap is Encap.DIRECT and not entry.is_direct
