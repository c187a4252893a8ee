# SPDX-License-Identifier: Apache-2.0
"""How peers are reached: which node is on our link, and what follows for the table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address, ip_network
from unittest.mock import patch

import pytest

from dataplane import reach
from dataplane.model import (
    ALWAYS,
    CROSS_SUBNET,
    NEVER,
    Encap,
    HostFacts,
    NetworkConfig,
    SubnetEntry,
    Way,
)
from dataplane.reach import Near, find_near, find_reach, is_unreached, list_entries
from dataplane.reconcile import Reconciler
from tests.leases import CONFIG, DUAL, FACTS_DUAL, IP1_6, NET, dual, lease, listed, put, table_of

UNDERLAY = FACTS_DUAL.interfaces[1]
ROUTER, ROUTER6 = ip_address("192.0.2.254"), ip_address("2001:db8::ff")


def way(prefix: str, gateway: str | None = None, iface: int | None = 2, metric: int = 0) -> Way:
    """Return a route, of the underlay interface unless told."""
    return Way(ip_network(prefix), metric, iface, None if gateway is None else ip_address(gateway))


LINK, LINK6 = way("192.0.2.0/24"), way("2001:db8::/64")
DEFAULT = way("0.0.0.0/0", "192.0.2.254")


def facts(*ways: Way) -> HostFacts:
    """Return the usual host with these routes."""
    return replace(FACTS_DUAL, ways=ways)


@pytest.mark.parametrize(
    ("ways", "address", "is_near"),
    [
        pytest.param((LINK,), "192.0.2.9", True, id="on the link"),
        pytest.param((LINK,), "198.51.100.9", False, id="no route"),
        pytest.param((LINK, DEFAULT), "198.51.100.9", False, id="by the default route"),
        pytest.param((LINK, way("192.0.2.9/32", "192.0.2.254")), "192.0.2.9", False, id="behind a router"),
        pytest.param((LINK, way("192.0.2.9/32", "192.0.2.254")), "192.0.2.10", True, id="its neighbour"),
        pytest.param((way("0.0.0.0/0"),), "198.51.100.9", True, id="everything is on the link"),
        pytest.param((way("198.51.100.9/32"),), "198.51.100.9", True, id="a host route without gateway"),
        pytest.param(
            (LINK, way("192.0.2.0/28", "192.0.2.254"), way("192.0.2.9/32")), "192.0.2.9", True, id="nested"
        ),
        pytest.param((way("192.0.2.0/24", iface=3),), "192.0.2.9", False, id="on another interface's link"),
        pytest.param(
            (LINK, way("192.0.2.8/31", iface=None)), "192.0.2.9", False, id="unreachable, or several"
        ),
        pytest.param(
            (LINK, way("192.0.2.0/24", "192.0.2.254", metric=100)), "192.0.2.9", True, id="better metric"
        ),
        pytest.param(
            (way("192.0.2.0/24", metric=100), way("192.0.2.0/24", "192.0.2.254", metric=50)),
            "192.0.2.9",
            False,
            id="worse metric",
        ),
        pytest.param((LINK6,), "2001:db8::9", True, id="IPv6"),
        pytest.param((LINK6, way("2001:db8::9/128", "2001:db8::ff")), "2001:db8::9", False, id="IPv6 router"),
        pytest.param((LINK,), "2001:db8::9", False, id="other family"),
    ],
)
def test_near(ways: tuple[Way, ...], address: str, is_near: bool) -> None:
    """A node is on our link if the route to it leads to the underlay interface and has no gateway."""
    found = ip_address(address)
    host = facts(*ways)
    assert find_near(host, UNDERLAY, DUAL).holds(found) == is_near
    chosen = host.way_to(found)
    assert is_near == (chosen is not None and chosen.iface == UNDERLAY.index and chosen.gateway is None)


@pytest.mark.parametrize(
    "other",
    [
        way("10.244.1.7/32", iface=9),
        way("10.244.9.0/24", "192.0.2.9"),
        way("172.17.0.0/16", iface=7),
        way("198.51.100.0/24", "192.0.2.254"),
        way("10.244.9.0/24"),
        way("fe80::/64"),
        DEFAULT,
    ],
    ids=["pod", "peer", "bridge", "far", "pods on the link", "link-local", "default"],
)
def test_what_has_nothing_to_do_with_it(other: Way) -> None:
    """Routes of pods and to elsewhere make no other value, so that no lease is judged anew for them."""
    assert find_near(facts(LINK, LINK6, other), UNDERLAY, DUAL) == find_near(
        facts(LINK, LINK6), UNDERLAY, DUAL
    )


def test_lookup_costs_the_same_for_any_number() -> None:
    """With ten thousand prefixes an address is looked up once per length of prefix."""
    near = Near(frozenset(ip_network((0x0A000000 + n, 32)) for n in range(10_000)))
    with patch("dataplane.reach._spot", side_effect=reach._spot) as asked:
        assert near.holds(ip_address("10.0.39.15"))
        assert not near.holds(ip_address("10.0.39.16"))
    assert asked.call_count == 2


BEYOND = replace(dual(3), public_ip=IPv4Address("198.51.100.3"), public_ip6=IPv6Address("2001:db8:9::3"))
HALF = replace(dual(3), public_ip6=IPv6Address("2001:db8:9::3"))
GATEWAY = replace(dual(2), encap=Encap.DIRECT, vtep_mac=None, vtep_mac6=None)


@pytest.mark.parametrize(
    ("mode", "peer", "expected"),
    [
        pytest.param(ALWAYS, dual(2), [("VXLAN", False)] * 2, id="always"),
        pytest.param(CROSS_SUBNET, dual(2), [("VXLAN", True)] * 2, id="cross-subnet, near"),
        pytest.param(CROSS_SUBNET, BEYOND, [("VXLAN", False)] * 2, id="cross-subnet, beyond"),
        pytest.param(CROSS_SUBNET, HALF, [("VXLAN", True), ("VXLAN", False)], id="cross-subnet, half"),
        pytest.param(NEVER, dual(2), [("DIRECT", True)] * 2, id="never, near"),
        pytest.param(NEVER, BEYOND, [("DIRECT", False)] * 2, id="never, beyond"),
        pytest.param(ALWAYS, GATEWAY, [("DIRECT", True)] * 2, id="host-gw"),
        pytest.param(
            CROSS_SUBNET,
            replace(dual(2), public_ip6=None),
            [("VXLAN", True), ("VXLAN", False)],
            id="IPv6 pods behind an IPv4 node",
        ),
    ],
)
def test_entries(mode: str, peer: object, expected: list[tuple[str, bool]]) -> None:
    """Each subnet of a peer is reached directly or not, by way of a node address of its own family."""
    found = list_entries(
        peer,  # type: ignore[arg-type]
        7,
        dual(1),
        reach.Reach(mode, find_near(facts(LINK, LINK6), UNDERLAY, DUAL)),
    )
    assert [(entry.encap.name, entry.is_direct) for entry in found] == expected
    assert [is_unreached(entry) for entry in found] == [pair == ("DIRECT", False) for pair in expected]
    assert [entry.peer_id for entry in found] == [7, 7]


@pytest.mark.parametrize(
    ("told", "network", "mode"),
    [
        pytest.param(None, NET, ALWAYS, id="nobody says anything"),
        pytest.param(None, replace(NET, has_direct_routing=True), CROSS_SUBNET, id="DirectRouting"),
        pytest.param("always", replace(NET, has_direct_routing=True), ALWAYS, id="told against it"),
        pytest.param("never", NET, NEVER, id="told"),
        pytest.param("never", replace(NET, encap=Encap.NONE), ALWAYS, id="alloc"),
    ],
)
def test_mode(told: str | None, network: NetworkConfig, mode: str) -> None:
    """What this node was told beats the network."""
    assert find_reach(told, facts(LINK), UNDERLAY, network, {Encap.VXLAN}).mode == mode


def reconciler(*ways: Way) -> Reconciler:
    """Return a reconciler of a node in a network with direct routing, which knows two peers."""
    found = Reconciler(replace(CONFIG, encapsulate="cross-subnet"), facts(*ways))
    table = table_of(found.apply(listed(lease(1), lease(2), lease(3)), 0.0))
    assert [entry.is_direct for entry in table.subnets] == [LINK in ways] * 2
    return found


def test_routes_are_followed() -> None:
    """A route that moves a peer behind a router, and its end, are each a table in which that differs."""
    found = reconciler(LINK)
    for ways, is_direct in (((LINK, way("192.0.2.2/32", "192.0.2.254")), False), ((LINK,), True)):
        table = table_of(found.host_changed(facts(*ways), 1.0))
        assert [entry.is_direct for entry in table.subnets] == [is_direct, True]
    assert found.host_changed(facts(LINK, way("10.244.1.9/32", iface=9)), 2.0) == []


def count_judged(change: Callable[[Reconciler], object]) -> int:
    """Return how many leases are judged for a change, of three."""
    found = reconciler(LINK)
    with patch("dataplane.peers.refuse", return_value=None) as judged:
        change(found)
    return judged.call_count


def test_one_change_is_judged_alone() -> None:
    """A lease that changes is judged alone, a route of pods judges nothing; one of the link, all."""
    assert count_judged(lambda found: found.apply(put(2, lease(4)), 1.0)) == 1
    assert (
        count_judged(lambda found: found.host_changed(facts(LINK, way("10.244.1.9/32", iface=9)), 1.0)) == 0
    )
    assert (
        count_judged(lambda found: found.host_changed(facts(LINK, way("192.0.2.9/32", iface=None)), 1.0)) == 3
    )


def test_host_gw_needs_our_own_address() -> None:
    """In a network of host-gw each public address of ours must be the underlay interface's."""
    network = replace(DUAL, encap=Encap.DIRECT)
    mine = replace(dual(1), encap=Encap.DIRECT, vtep_mac=None, vtep_mac6=None)
    found = Reconciler(CONFIG, facts(LINK, LINK6))
    table = table_of(found.apply(listed(mine, GATEWAY, network=network), 0.0))
    assert [entry.is_direct for entry in table.subnets] == [True, True]
    bare = replace(
        FACTS_DUAL,
        interfaces=(FACTS_DUAL.interfaces[0], replace(UNDERLAY, addresses=(mine.public_ips()[0],))),
    )
    found.host_changed(bare, 1.0)
    assert found.reason == (
        "host-gw needs node addresses that routes can lead to: "
        f"eth0 does not have the address {IP1_6} of our lease"
    )


def test_entry_stands_for_itself() -> None:
    """Whether a peer is direct makes another entry: the kernel is told of it."""
    entry = SubnetEntry(IPv4Network("10.244.2.0/24"), 0, Encap.VXLAN, ip_address("192.0.2.2"), None)
    assert replace(entry, is_direct=True) != entry
