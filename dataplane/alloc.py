# SPDX-License-Identifier: Apache-2.0
"""Which subnet a node takes: one that fits the network, overlaps no lease, and is picked at random.

Every free subnet is as likely as every other, however many there are: the gaps between the taken ones are
counted, not walked. A network of 2^48 subnets costs as much as one of four.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from ipaddress import IPv4Network, IPv6Network

from dataplane.model import Network, NetworkConfig, SubnetKey, SubnetRange

Choose = Callable[[int], int]  # choose(n) returns a number from 0 to n-1, each as likely


def is_in_range(subnet: Network, subnets: SubnetRange) -> bool:
    """Return whether a subnet has the network's length and lies between SubnetMin and SubnetMax."""
    first = int(subnet.network_address)
    return subnet.prefixlen == subnets.length and subnets.first <= first <= subnets.last


def fits(key: SubnetKey, network: NetworkConfig) -> bool:
    """Return whether this lease can be taken in a network: each family that it has, and no other."""
    pairs = ((key.subnet, network.subnets), (key.subnet6, network.subnets6))
    return all(
        subnets is None if subnet is None else subnets is not None and is_in_range(subnet, subnets)
        for subnet, subnets in pairs
    )


def _find_gaps(taken: Iterable[Network], subnets: SubnetRange, step: int) -> list[tuple[int, int]]:
    """Return the runs of free subnets as (where the first begins, how many)."""
    spans = sorted((int(net.network_address), int(net.broadcast_address)) for net in taken)
    gaps = []
    at = subnets.first
    for first, last in spans:
        free = (min(first, subnets.last + step) - at) // step
        if free > 0:
            gaps.append((at, free))
        # On to the first boundary behind the taken one.
        at = max(at, (last // step + 1) * step)
    if at <= subnets.last:
        gaps.append((at, (subnets.last - at) // step + 1))
    return gaps


def pick(
    taken: Iterable[Network], subnets: SubnetRange, kind: type[IPv4Network | IPv6Network], choose: Choose
) -> Network | None:
    """Pick a subnet that overlaps none of those `taken`, all of one family; None if there is none left."""
    step = 1 << kind(0).max_prefixlen - subnets.length
    gaps = _find_gaps(taken, subnets, step)
    total = sum(count for _, count in gaps)
    if total == 0:
        return None
    chosen = choose(total)
    for first, count in gaps:
        if chosen < count:
            return kind((first + chosen * step, subnets.length))
        chosen -= count
    raise AssertionError("choose() went beyond its bound")


def claims(key: SubnetKey, network: NetworkConfig) -> tuple[Network, ...]:
    """Return the subnets of a lease that nobody else can take: those of the network, and of its length.

    The others are refused by every node. They block nothing, or one bad lease of 0.0.0.0/0 would end it all.
    """
    pairs = (
        (key.subnet, network.network, network.subnets),
        (key.subnet6, network.network6, network.subnets6),
    )
    return tuple(
        subnet
        for subnet, whole, subnets in pairs
        if subnet is not None and whole is not None and subnets is not None
        if subnet.prefixlen == subnets.length and overlap(subnet, whole)
    )


def belongs(key: SubnetKey, network: NetworkConfig) -> bool:
    """Return whether a lease can be kept in a network, even where it could not be taken any more."""
    return claims(key, network) == key.subnets()


def pick_key(taken: Iterable[Network], network: NetworkConfig, choose: Choose) -> SubnetKey | None:
    """Pick a subnet in each family of the network; None if one of them has none left."""
    nets = list(taken)
    subnet: Network | None = None
    subnet6: Network | None = None
    if network.subnets is not None:
        subnet = pick((net for net in nets if net.version == 4), network.subnets, IPv4Network, choose)
    if network.subnets6 is not None:
        subnet6 = pick((net for net in nets if net.version == 6), network.subnets6, IPv6Network, choose)
    if (subnet is None and network.subnets) or (subnet6 is None and network.subnets6):
        return None
    assert not isinstance(subnet, IPv6Network)
    assert not isinstance(subnet6, IPv4Network)
    return SubnetKey(subnet, subnet6)


def overlap(one: Network, other: Network) -> bool:
    """Return whether two networks share addresses."""
    if one.version != other.version:
        return False
    # The larger one has the first bits of both; overlaps() takes five times as long to say so.
    rest = one.max_prefixlen - min(one.prefixlen, other.prefixlen)
    return int(one.network_address) >> rest == int(other.network_address) >> rest
