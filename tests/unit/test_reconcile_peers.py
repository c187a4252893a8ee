# SPDX-License-Identifier: Apache-2.0
"""Reconciliation: who is a peer and under which id, what the table says of it, and who is refused."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from dataplane import flannel
from dataplane.model import (
    Address,
    Alarm,
    Encap,
    Entry,
    Event,
    HostFacts,
    Interface,
    Lease,
    Listed,
    MacAddress,
    Network,
    NetworkPut,
    Peer,
    Rejected,
    SubnetEntry,
    SubnetKey,
)
from dataplane.peerids import GRACE_S
from dataplane.peers import FULL
from dataplane.reconcile import Reconciler
from tests.leases import (
    CONFIG,
    DUAL,
    FACTS,
    FACTS_DUAL,
    IP1,
    IP2,
    IP2_6,
    NET,
    address,
    deleted,
    dual,
    entry,
    ids,
    lease,
    listed,
    mac,
    only6,
    plan_of,
    put,
    table_of,
)

# --- ids -------------------------------------------------------------------------------------------------


def test_ids_stay() -> None:
    """Who stays keeps its id, whoever comes and goes."""
    reconciler = Reconciler(CONFIG, FACTS)
    first = ids(table_of(reconciler.apply(listed(lease(1), lease(2), lease(3), lease(4)), 0.0)))
    assert sorted(first.values()) == [0, 1, 2]
    second = ids(table_of(reconciler.apply(deleted(2, lease(3).key), 1.0)))
    assert second == {ip: n for ip, n in first.items() if ip != address(3)}
    third = ids(table_of(reconciler.apply(listed(lease(5), lease(4), lease(1), lease(2), revision=3), 2.0)))
    assert {ip: third[ip] for ip in second} == second


@pytest.mark.parametrize(
    ("after_s", "expected"),
    [
        pytest.param(1.0, 1, id="at once"),
        pytest.param(GRACE_S - 0.1, 1, id="just before the end"),
        pytest.param(GRACE_S, 0, id="after 60 s"),
    ],
)
def test_ids_rest(after_s: float, expected: int) -> None:
    """An id that became free is nobody's for 60 s, so that late counters are nobody else's."""
    assert GRACE_S == 60.0
    reconciler = Reconciler(CONFIG, FACTS)
    reconciler.apply(listed(lease(1), lease(2)), 100.0)
    reconciler.apply(deleted(2, lease(2).key), 100.0)
    assert ids(table_of(reconciler.apply(put(3, lease(3)), 100.0 + after_s))) == {address(3): expected}


@pytest.mark.parametrize(("away_s", "expected"), [(1.0, 1), (GRACE_S - 0.1, 1), (GRACE_S, 0)])
def test_who_comes_back_gets_its_id_again(away_s: float, expected: int) -> None:
    """A node that was gone for less than 60 s is counted where it was before."""
    reconciler = Reconciler(CONFIG, FACTS)
    reconciler.apply(listed(lease(1), lease(3), lease(2)), 100.0)
    reconciler.apply(deleted(2, lease(2).key), 100.0)
    reconciler.apply(deleted(3, lease(3).key), 100.0)
    table = table_of(reconciler.apply(put(4, lease(2)), 100.0 + away_s))
    assert ids(table) == {IP2: expected}


def test_ids_survive_a_restart() -> None:
    """The ids of the table in force stay with their nodes; those of nodes that are gone rest first."""
    known = (Peer(7, (IP2, IP2_6)), Peer(0, (address(3),)))
    reconciler = Reconciler(CONFIG, FACTS, known)
    table = table_of(reconciler.apply(listed(lease(1), lease(2), lease(4)), 0.0))
    assert ids(table) == {IP2: 7, address(4): 1}
    later = table_of(reconciler.apply(put(2, lease(5)), GRACE_S))
    assert ids(later) == {IP2: 7, address(4): 1, address(5): 0}


def test_one_node_with_two_subnets() -> None:
    """Two leases with one address are one peer."""
    other = replace(lease(2), key=SubnetKey(IPv4Network("10.244.200.0/24")))
    table = table_of(Reconciler(CONFIG, FACTS).apply(listed(lease(1), other, lease(2)), 0.0))
    assert table.peers == (Peer(0, (IP2,)),)
    assert [(str(entry.prefix), entry.peer_id) for entry in table.subnets] == [
        ("10.244.2.0/24", 0),
        ("10.244.200.0/24", 0),
    ]


# --- entries -----------------------------------------------------------------------------------------------

V4, V6 = IPv4Network("10.244.2.0/24"), IPv6Network("fd00:244:0:2::/64")


@pytest.mark.parametrize(
    ("own", "peer", "entries"),
    [
        pytest.param(lease(1), lease(2), [(V4, IP2, mac(2))], id="4 to 4"),
        pytest.param(dual(1), lease(2), [(V4, IP2, mac(2))], id="dual to 4"),
        pytest.param(lease(1), dual(2), [(V4, IP2, mac(2)), (V6, IP2, mac(0x62))], id="4 to dual"),
        pytest.param(dual(1), dual(2), [(V4, IP2, mac(2)), (V6, IP2_6, mac(0x62))], id="dual to dual"),
        pytest.param(only6(1), dual(2), [(V4, IP2_6, mac(2)), (V6, IP2_6, mac(0x62))], id="6 to dual"),
        pytest.param(only6(1), only6(2), [(V6, IP2_6, mac(0x62))], id="6 to 6"),
        pytest.param(
            dual(1),
            replace(dual(2), vtep_mac6=None),
            [(V4, IP2, mac(2)), (V6, IP2_6, mac(2))],
            id="one MAC for both",
        ),
        pytest.param(
            dual(1),
            replace(dual(2), vtep_mac=None),
            [(V4, IP2, mac(0x62)), (V6, IP2_6, mac(0x62))],
            id="one MAC for both, of IPv6",
        ),
    ],
)
def test_entries(own: Lease, peer: Lease, entries: list[tuple[Network, Address, MacAddress]]) -> None:
    """Each subnet goes over the underlay of its family, else over the other, to the MAC of its family."""
    actions = Reconciler(CONFIG, FACTS_DUAL).apply(listed(own, peer, network=DUAL), 0.0)
    assert table_of(actions).subnets == tuple(
        SubnetEntry(prefix, 0, Encap.VXLAN, vtep, to) for prefix, vtep, to in entries
    )
    assert table_of(actions).peers == (Peer(0, peer.public_ips()),)


@pytest.mark.parametrize("encap", [Encap.IPIP, Encap.FLANNEL_UDP])
def test_entries_of_ipip_and_udp(encap: Encap) -> None:
    """A peer of IPIP or UDP has no MAC, and is taken where that is the network's or told by flag."""
    for network, encaps in ((replace(NET, encap=encap), ()), (NET, (encap,))):
        reconciler = Reconciler(replace(CONFIG, encap=encaps), FACTS)
        own = lease(1, network.encap)
        table = table_of(reconciler.apply(listed(own, lease(2, encap), network=network), 0.0))
        assert table.subnets == (SubnetEntry(V4, 0, encap, IP2, None),)


def test_order_of_the_table() -> None:
    """A table is in order of ids and prefixes, so that equal states are equal tables."""
    table = table_of(
        Reconciler(CONFIG, FACTS_DUAL).apply(listed(dual(9), dual(1), dual(3), network=DUAL), 0.0)
    )
    assert [peer.id for peer in table.peers] == [0, 1]
    assert [str(entry.prefix) for entry in table.subnets] == [
        *("10.244.3.0/24", "10.244.9.0/24", "fd00:244:0:3::/64", "fd00:244:0:9::/64")
    ]


# --- refused leases ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "peer", "reason"),
    [
        pytest.param(
            dual(1), lease(2, Encap.IPIP), "its backend ipip is not enabled here; see --encap", id="encap"
        ),
        pytest.param(dual(1), replace(lease(2), vtep_mac=None), "it has no VtepMAC", id="no MAC"),
        pytest.param(
            dual(1),
            replace(lease(2), public_ip=IPv4Address("198.51.100.1")),
            "its PublicIP 198.51.100.1 is an address of this host",
            id="own address",
        ),
        pytest.param(
            dual(1),
            replace(dual(2), public_ip6=IPv6Address("2001:db8:1::1")),
            "its PublicIPv6 2001:db8:1::1 is an address of this host",
            id="own IPv6 address",
        ),
        pytest.param(
            dual(1), replace(lease(2), vni=7), "its VNI 7 is not the network's VNI 1", id="other VNI"
        ),
        pytest.param(
            dual(1),
            replace(lease(2), key=SubnetKey(IPv4Network("10.244.0.0/23"))),
            "its subnet 10.244.0.0/23 overlaps our own",
            id="around our subnet",
        ),
        pytest.param(
            dual(1),
            replace(dual(2), key=SubnetKey(IPv4Network("10.244.2.0/24"), IPv6Network("fd00:244:0:1::/80"))),
            "its subnet fd00:244:0:1::/80 overlaps our own",
            id="in our subnet",
        ),
        pytest.param(lease(1), only6(2), "it has no underlay address of a family that we have", id="family"),
    ],
)
def test_refused(own: Lease, peer: Lease, reason: str) -> None:
    """A lease that cannot be a peer is listed with the reason, has no id, and harms nobody else."""
    more = Interface("eth1", 3, 1500, (IPv4Address("198.51.100.1"), IPv6Address("2001:db8:1::1")))
    config = replace(CONFIG, public_ip=IP1)
    reconciler = Reconciler(config, HostFacts((*FACTS_DUAL.interfaces, more)))
    table = table_of(reconciler.apply(listed(own, peer, lease(3), network=DUAL), 0.0))
    assert ids(table) == {address(3): 0}
    assert [(view.id, view.entry.lease, view.refused) for view in reconciler.peers()] == [
        (None, peer, reason),
        (0, lease(3), None),
    ]
    assert reconciler.reason is None


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        pytest.param(
            replace(dual(3), key=SubnetKey(lease(2).key.subnet, dual(3).key.subnet6)),
            "its subnet 10.244.2.0/24 is also leased to 192.0.2.2",
            id="subnet",
        ),
        pytest.param(
            replace(dual(3), public_ip6=IP2_6),
            "its PublicIP 2001:db8::2 is also that of 10.244.2.0/24",
            id="second address",
        ),
    ],
)
@pytest.mark.parametrize("is_reversed", [False, True])
def test_collision(other: Lease, reason: str, is_reversed: bool) -> None:
    """Of two nodes that claim the same only the one with the lower key is a peer, whoever came first."""
    stays = replace(lease(2), public_ip6=IP2_6)
    reconciler = Reconciler(CONFIG, FACTS_DUAL)
    found = (other, stays) if is_reversed else (stays, other)
    table = table_of(reconciler.apply(listed(lease(1), *found, network=DUAL), 0.0))
    assert table.peers == (Peer(0, (IP2, IP2_6)),)
    assert [entry.prefix for entry in table.subnets] == [stays.key.subnet]
    assert {view.entry.lease: view.refused for view in reconciler.peers()} == {stays: None, other: reason}
    again = table_of(reconciler.apply(deleted(2, stays.key), 1.0))
    assert [peer.addresses for peer in again.peers] == [other.public_ips()]


def test_age_decides_again_when_it_changes() -> None:
    """A lease that was made anew, word for word, is the younger one from then on."""
    other = replace(lease(3), key=SubnetKey(lease(2).key.subnet, dual(3).key.subnet6))
    for first, holder in ((1, IP2), (9, address(3))):
        entries = (entry(lease(1)), entry(lease(2), created=first), entry(other, created=5))
        reconciler = Reconciler(CONFIG, FACTS)
        reconciler.apply(listed(lease(1), network=DUAL), 0.0)
        # The other age first, so that the second list changes nothing but that.
        before = (entries[0], replace(entries[1], created=10 - first), entries[2])
        reconciler.apply(Listed(2, DUAL, before), 0.0)
        table = table_of(reconciler.apply(Listed(3, DUAL, entries), 0.0))
        assert list(ids(table)) == [holder]


def test_addresses_of_a_node_in_the_order_of_the_list() -> None:
    """A list in another order is another order of the addresses of a node whose leases differ in them."""
    one = replace(dual(2), public_ip6=IP2_6)
    other = replace(dual(3), public_ip=IP2)
    reconciler = Reconciler(CONFIG, FACTS_DUAL)
    found = []
    for order in ((one, other), (other, one)):
        table = table_of(reconciler.apply(listed(dual(1), *order, network=DUAL), 0.0))
        found.append(table.peers[0].addresses)
    assert found == [(IP2, IP2_6, other.public_ip6), (IP2, other.public_ip6, IP2_6)]


def test_refused_lease_is_mended() -> None:
    """A refused lease becomes a peer as soon as it can."""
    reconciler = Reconciler(CONFIG, FACTS)
    reconciler.apply(listed(lease(1), replace(lease(2), vtep_mac=None)), 0.0)
    assert ids(table_of(reconciler.apply(put(2, lease(2)), 1.0))) == {IP2: 0}


def test_more_leases_than_may_count() -> None:
    """More leases than --max-peers are refused with the reason, and a warning says so; the others work."""
    reconciler = Reconciler(replace(CONFIG, max_peers=1), FACTS)
    table = table_of(reconciler.apply(listed(lease(1), lease(2), lease(3)), 0.0))
    assert ids(table) == {IP2: 0}
    assert [view.refused for view in reconciler.peers()] == [None, FULL]
    assert reconciler.warnings() == ("1 leases are refused: 1 count, the --max-peers allowed",)


def test_who_waits_counts_later() -> None:
    """A lease that was one too many counts once another has gone, though nothing was said of itself."""
    reconciler = Reconciler(replace(CONFIG, max_peers=1), FACTS)
    assert ids(table_of(reconciler.apply(listed(lease(1), lease(2), lease(3)), 0.0))) == {IP2: 0}
    table = table_of(reconciler.apply(deleted(2, lease(2).key), 1.0))
    assert ids(table) == {address(3): 1}
    assert [entry.prefix for entry in table.subnets] == [lease(3).key.subnet]
    assert [view.refused for view in reconciler.peers()] == [None]
    assert reconciler.warnings() == ()


def test_a_flood_of_leases_displaces_nobody() -> None:
    """Whoever floods the store takes nothing from a peer of the table, however young, nor from old ones."""
    config, known = replace(CONFIG, max_peers=3), (Peer(5, (address(9),)),)
    flood = [entry(lease(n), created=100 + n) for n in range(20, 40)]
    old = [entry(lease(8), created=7), entry(lease(9), created=900), entry(lease(7), created=8)]
    event = Listed(1, NET, (entry(lease(1)), *flood, *old))
    reconciler = Reconciler(config, FACTS, known)
    actions = reconciler.apply(event, 0.0)
    assert ids(table_of(actions)).keys() == {address(9), address(8), address(7)}
    assert ids(table_of(actions))[address(9)] == 5
    assert len([action for action in actions if isinstance(action, Alarm)]) == 11
    more = [reconciler.apply(put(n, lease(n)), 0.1) for n in range(40, 240)]
    assert len([action for actions in more for action in actions]) == 90  # told, and nothing else
    said = [alarm.text for alarm in reconciler.apply(put(999, lease(250)), 10.0) if isinstance(alarm, Alarm)]
    assert said == [
        f"lease 10.244.250.0-24 refused: {FULL}",
        "110 more leases refused; see overlayd peers --all",
    ]


def test_peers_are_listed_as_the_table_has_them() -> None:
    """While our own lease is gone nothing is decided: a peer of the table is listed, its lease or not."""
    reconciler = Reconciler(CONFIG, FACTS)
    reconciler.apply(listed(lease(1), lease(2)), 0.0)
    reconciler.apply(deleted(2, lease(1).key), 1.0)
    assert reconciler.reason is not None
    reconciler.apply(deleted(3, lease(2).key), 2.0)
    assert [view.entry.lease for view in reconciler.peers()] == [lease(2)]
    table = table_of(reconciler.apply(put(4, lease(1)), 3.0))
    assert (table.peers, reconciler.peers()) == ((), ())


# --- where nodes lease their subnets ------------------------------------------------------------------------


def test_leased_node_waits_for_its_lease() -> None:
    """Nothing is put in force before our own lease is told, and nothing is an alarm that will pass."""
    reconciler = Reconciler(CONFIG, FACTS, is_leased=True)
    assert reconciler.apply(listed(lease(1), lease(2)), 0.0) == []
    assert reconciler.own_changed(None, "taking a subnet", 1.0) == []
    assert reconciler.reason == "taking a subnet"
    actions = reconciler.own_changed(lease(1), None, 2.0)
    assert ids(table_of(actions)) == {IP2: 0}
    assert reconciler.reason is None


def test_lost_lease_keeps_the_node_working() -> None:
    """What is said of our lease makes a node unready and changes nothing else."""
    reconciler = Reconciler(CONFIG, FACTS, is_leased=True)
    reconciler.apply(listed(lease(1), lease(2)), 0.0)
    reconciler.own_changed(lease(1), None, 0.0)
    assert reconciler.own_changed(None, "our lease is lost", 1.0) == []
    assert (reconciler.reason, reconciler.own) == ("our lease is lost", lease(1))
    assert ids(table_of(reconciler.apply(put(2, lease(3)), 2.0))) == {IP2: 0, address(3): 1}


def test_our_key_in_strange_hands() -> None:
    """Our own subnet under another's address is never a peer: it is refused, with an alarm."""
    reconciler = Reconciler(CONFIG, FACTS, is_leased=True)
    reconciler.apply(listed(lease(1), lease(2)), 0.0)
    reconciler.own_changed(lease(1), None, 0.0)
    (alarm,) = reconciler.apply(put(2, replace(lease(1), public_ip=address(66), vtep_mac=mac(66))), 1.0)
    assert alarm == Alarm("lease 10.244.1.0-24 refused: its subnet 10.244.1.0/24 overlaps our own")


def test_alarms_are_bounded() -> None:
    """A store full of rubbish raises ten alarms and a sum, once."""
    reconciler = Reconciler(CONFIG, FACTS)
    rubbish = tuple(Entry(f"x{n}", None, "no subnet") for n in range(30))
    event = Listed(1, NET, (entry(lease(1)), *rubbish))
    alarms = [action.text for action in reconciler.apply(event, 0.0) if isinstance(action, Alarm)]
    assert alarms[:10] == [f"lease x{n} refused: no subnet" for n in range(10)]
    assert alarms[10:] == ["20 more leases refused; see overlayd peers --all"]
    assert reconciler.apply(event, 1.0) == []


def test_network_that_would_cut_us_off() -> None:
    """A leased node stays in the network in which its pods are; any other change is taken."""
    reconciler = Reconciler(CONFIG, FACTS, is_leased=True)
    reconciler.apply(listed(lease(1), lease(2)), 0.0)
    reconciler.own_changed(lease(1), None, 0.0)
    other = flannel.parse_network({"Network": "10.245.0.0/16", "Backend": {"Type": "vxlan"}})
    for network in (None, other):
        assert reconciler.apply(NetworkPut(2, network, "gone"), 1.0) == []
        assert reconciler.network == NET
    actions = reconciler.apply(NetworkPut(3, replace(NET, underlay_mtu=1400)), 2.0)
    assert plan_of(actions).mtu == 1350


def test_many_events_are_one_pass() -> None:
    """Events that arrive together are judged once: one table for all of them, and every refusal told."""
    reconciler = Reconciler(CONFIG, FACTS)
    events: list[Event] = [listed(lease(1)), *(put(n, lease(n)) for n in range(2, 9)), Rejected(8, "broken")]
    actions = reconciler.apply_all(events, 0.0)
    assert [action for action in actions if isinstance(action, Alarm)] == [Alarm("broken")]
    assert len(table_of(actions).peers) == 7
