# SPDX-License-Identifier: Apache-2.0
"""Reconciliation: which lease is ours, who is a peer and under which id, and what is said to be done."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from unittest.mock import patch

import pytest

from dataplane.config import RunConfig
from dataplane.gate import refuse
from dataplane.model import (
    Alarm,
    Encap,
    Event,
    HostFacts,
    HostPlan,
    Interface,
    Lease,
    NetworkConfig,
    Peer,
    PlanHost,
    Publish,
    Rejected,
    SubnetEntry,
    Table,
)
from dataplane.reconcile import Reconciler
from tests.leases import (
    CONFIG,
    DUAL,
    FACTS,
    FACTS_DUAL,
    IP1,
    IP1_6,
    IP2,
    LO,
    NET,
    NET6,
    address,
    deleted,
    dual,
    ids,
    lease,
    listed,
    mac,
    only6,
    plan_of,
    put,
    table_of,
)

# --- the first list -------------------------------------------------------------------------------------


def test_waits_for_the_store() -> None:
    """Before the first list nothing is done, and the reason says what is waited for."""
    reconciler = Reconciler(CONFIG, FACTS)
    assert reconciler.host_changed(FACTS_DUAL, 0.0) == []
    assert reconciler.reason == "waiting for the store"
    assert (reconciler.own, reconciler.underlay, reconciler.revision, reconciler.peers()) == (None,) * 3 + (
        (),
    )


def test_two_nodes() -> None:
    """From a list follow the whole host plan and the whole table, the host first."""
    reconciler = Reconciler(CONFIG, FACTS)
    assert reconciler.apply(listed(lease(1), lease(2), revision=5), 0.0) == [
        PlanHost(HostPlan("overlay0", 1450, (IPv4Address("10.244.1.0"),), (IPv4Network("10.244.0.0/16"),))),
        Publish(
            Table(
                peers=(Peer(0, (IP2,)),),
                subnets=(SubnetEntry(IPv4Network("10.244.2.0/24"), 0, Encap.VXLAN, IP2, mac(2)),),
                own=(IPv4Network("10.244.1.0/24"),),
                sources=(IPv4Network("10.244.1.0/24"), IPv4Network("192.0.2.1/32")),
            )
        ),
    ]
    assert reconciler.reason is None
    assert reconciler.revision == 5
    assert reconciler.own == lease(1)
    assert reconciler.underlay == FACTS.interfaces[1]
    assert [(view.id, view.entry.lease, view.refused) for view in reconciler.peers()] == [(0, lease(2), None)]


def test_dual_stack_plan() -> None:
    """In both families the TUN has both addresses and both networks behind it."""
    plan = plan_of(Reconciler(CONFIG, FACTS_DUAL).apply(listed(dual(1), network=DUAL), 0.0))
    assert plan == HostPlan(
        "overlay0",
        1430,
        (IPv4Address("10.244.1.0"), IPv6Address("fd00:244:0:1::")),
        (IPv4Network("10.244.0.0/16"), IPv6Network("fd00:244::/48")),
    )


def test_names_and_sources_of_the_configuration() -> None:
    """The TUN is called as told, and sources allowed by flag are in the table."""
    allowed = (IPv4Network("10.9.0.0/16"),)
    config = replace(CONFIG, tun_name="pods", allow_source=allowed)
    actions = Reconciler(config, FACTS).apply(listed(lease(1)), 0.0)
    assert plan_of(actions).tun_name == "pods"
    assert table_of(actions).allowed == allowed


def test_blackholes() -> None:
    """Our own subnets are led nowhere if somebody asks for that."""
    actions = Reconciler(CONFIG, FACTS_DUAL).apply(listed(dual(1), network=DUAL), 0.0)
    assert plan_of(actions).blackholes == ()
    config = replace(CONFIG, blackhole_route=True)
    actions = Reconciler(config, FACTS_DUAL).apply(listed(dual(1), network=DUAL), 0.0)
    assert plan_of(actions).blackholes == (IPv4Network("10.244.1.0/24"), IPv6Network("fd00:244:0:1::/64"))


# --- which lease is ours ----------------------------------------------------------------------------------

TWO_HELD = HostFacts((LO, Interface("eth0", 2, 1500, (IP1,)), Interface("eth1", 3, 9000, (IP2,))))


@pytest.mark.parametrize(
    ("config", "facts", "leases", "expected"),
    [
        pytest.param(CONFIG, FACTS, (lease(1), lease(2)), lease(1), id="by held address"),
        pytest.param(CONFIG, FACTS_DUAL, (only6(1), only6(2)), only6(1), id="by held IPv6 address"),
        pytest.param(
            replace(CONFIG, public_ip=IP2), TWO_HELD, (lease(1), lease(2)), lease(2), id="by told address"
        ),
        pytest.param(
            replace(CONFIG, public_ip6=IP1_6), FACTS_DUAL, (dual(1), lease(2)), dual(1), id="by told IPv6"
        ),
        pytest.param(
            replace(CONFIG, public_ip=IP1, public_ip6=IP1_6),
            FACTS_DUAL,
            (dual(1), dual(2)),
            dual(1),
            id="by both",
        ),
    ],
)
def test_own_lease(config: RunConfig, facts: HostFacts, leases: tuple[Lease, ...], expected: Lease) -> None:
    """Our lease is the one with an address that we were told, else that we hold; it is never a peer."""
    reconciler = Reconciler(config, facts)
    table = table_of(reconciler.apply(listed(*leases, network=DUAL), 0.0))
    assert reconciler.own == expected
    assert table.own == expected.key.subnets()
    assert not {entry.prefix for entry in table.subnets} & set(expected.key.subnets())
    assert expected not in [view.entry.lease for view in reconciler.peers()]


@pytest.mark.parametrize(
    ("config", "facts", "leases", "reason"),
    [
        pytest.param(
            CONFIG,
            FACTS_DUAL,
            (lease(2), lease(3)),
            "no lease has a PublicIP of this host (192.0.2.1, 2001:db8::1); add one, or give --public-ip",
            id="none held",
        ),
        pytest.param(CONFIG, HostFacts((LO,)), (lease(2),), "of this host (none); add one", id="no address"),
        pytest.param(
            replace(CONFIG, public_ip=address(9)),
            FACTS,
            (lease(1),),
            "no lease has a PublicIP of this host (192.0.2.9)",
            id="none told",
        ),
        pytest.param(
            CONFIG,
            TWO_HELD,
            (lease(1), lease(2)),
            "leases 10.244.1.0/24, 10.244.2.0/24 all have an address of this host; choose one with",
            id="two",
        ),
        pytest.param(
            replace(CONFIG, public_ip=IP2),
            FACTS,
            (lease(1), lease(2)),
            "no interface of this host has the address 192.0.2.2",
            id="told but not held",
        ),
    ],
)
def test_no_own_lease(config: RunConfig, facts: HostFacts, leases: tuple[Lease, ...], reason: str) -> None:
    """Without one lease of ours there is an alarm that says why and what to do, told once."""
    reconciler = Reconciler(config, facts)
    (alarm,) = reconciler.apply(listed(*leases), 0.0)
    assert isinstance(alarm, Alarm)
    assert reason in alarm.text
    assert reconciler.reason == alarm.text
    assert reconciler.apply(listed(*leases, revision=2), 1.0) == []


def test_lost_lease_keeps_the_table() -> None:
    """When our lease goes, what was in force stays, and comes back without a word when nothing changed."""
    reconciler = Reconciler(CONFIG, FACTS)
    reconciler.apply(listed(lease(1), lease(2)), 0.0)
    (alarm,) = reconciler.apply(deleted(2, lease(1).key), 1.0)
    assert isinstance(alarm, Alarm)
    assert reconciler.reason == alarm.text
    assert [view.id for view in reconciler.peers()] == [0]
    assert reconciler.apply(put(3, lease(1)), 2.0) == []
    assert reconciler.reason is None
    assert reconciler.apply(deleted(4, lease(1).key), 3.0) == [alarm]


# --- events ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "event",
    [
        pytest.param(listed(lease(1), lease(2), lease(3), revision=2), id="the same list"),
        pytest.param(listed(lease(3), lease(1), lease(2), revision=2), id="in another order"),
        pytest.param(put(2, lease(2)), id="a lease as it is"),
        pytest.param(put(2, lease(1)), id="our lease as it is"),
        pytest.param(deleted(2, lease(9).key), id="deletion of what is not there"),
        pytest.param(put(2, replace(lease(2), vni=1)), id="a change of no consequence"),
    ],
)
def test_nothing_new(event: Event) -> None:
    """What must be already is not said again, but the revision counts on."""
    reconciler = Reconciler(CONFIG, FACTS)
    reconciler.apply(listed(lease(1), lease(2), lease(3)), 0.0)
    assert reconciler.apply(event, 1.0) == []
    assert reconciler.revision == 2


def test_rejected() -> None:
    """An unusable store is an alarm and nothing else."""
    reconciler = Reconciler(CONFIG, FACTS)
    reconciler.apply(listed(lease(1), lease(2)), 0.0)
    before = reconciler.peers()
    assert reconciler.apply(Rejected(1, "peers.json line 3: bad"), 1.0) == [Alarm("peers.json line 3: bad")]
    assert (reconciler.peers(), reconciler.revision, reconciler.reason) == (before, 1, None)
    assert reconciler.apply(listed(lease(1), lease(2)), 2.0) == []


def test_mac_change() -> None:
    """A node with a new MAC keeps its id, and the table is published again."""
    reconciler = Reconciler(CONFIG, FACTS)
    before = table_of(reconciler.apply(listed(lease(1), lease(2)), 0.0))
    actions = reconciler.apply(put(2, replace(lease(2), vtep_mac=mac(0x42))), 1.0)
    entry = replace(before.subnets[0], vtep_mac=mac(0x42))
    assert actions == [Publish(replace(before, subnets=(entry,)))]


def test_list_replaces_everything() -> None:
    """Whatever is not in a list is gone, the network's settings too."""
    reconciler = Reconciler(CONFIG, FACTS)
    reconciler.apply(listed(lease(1), lease(2), lease(3)), 0.0)
    network = replace(NET, network=IPv4Network("10.0.0.0/8"), underlay_mtu=1400)
    actions = reconciler.apply(listed(lease(1), lease(3), network=network, revision=2), 1.0)
    assert set(ids(table_of(actions))) == {address(3)}
    assert plan_of(actions).networks == (network.network,)
    assert plan_of(actions).mtu == 1350


# --- MTU ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "network", "encaps", "expected"),
    [
        pytest.param(lease(1), NET, (), 1450, id="VXLAN over IPv4"),
        pytest.param(dual(1), DUAL, (), 1430, id="VXLAN over both"),
        pytest.param(only6(1), NET6, (), 1430, id="VXLAN over IPv6"),
        pytest.param(lease(1, Encap.IPIP), replace(NET, encap=Encap.IPIP), (), 1480, id="IPIP"),
        pytest.param(lease(1, Encap.FLANNEL_UDP), replace(NET, encap=Encap.FLANNEL_UDP), (), 1472, id="udp"),
        pytest.param(lease(1), NET, (Encap.IPIP,), 1450, id="VXLAN and IPIP"),
        pytest.param(lease(1), replace(NET, underlay_mtu=1400), (), 1350, id="Backend.MTU smaller"),
        pytest.param(lease(1), replace(NET, underlay_mtu=9000), (), 8950, id="Backend.MTU larger"),
        pytest.param(lease(1), replace(NET, underlay_mtu=626), (), 576, id="just large enough"),
        pytest.param(only6(1), replace(NET6, underlay_mtu=1350), (), 1280, id="just large enough for IPv6"),
    ],
)
def test_mtu(own: Lease, network: NetworkConfig, encaps: tuple[Encap, ...], expected: int) -> None:
    """The TUN's MTU fits through every enabled encapsulation, over the MTU that is told or found."""
    reconciler = Reconciler(replace(CONFIG, encap=encaps), FACTS_DUAL)
    assert plan_of(reconciler.apply(listed(own, network=network), 0.0)).mtu == expected


@pytest.mark.parametrize(
    ("own", "network", "mtu", "least"),
    [
        pytest.param(lease(1), replace(NET, underlay_mtu=625), 575, 576, id="IPv4"),
        pytest.param(dual(1), replace(DUAL, underlay_mtu=1349), 1279, 1280, id="IPv6"),
    ],
)
def test_mtu_too_small(own: Lease, network: NetworkConfig, mtu: int, least: int) -> None:
    """An MTU that no host may have is an alarm, and nothing is done."""
    reconciler = Reconciler(CONFIG, FACTS_DUAL)
    text = f"pods would get an MTU of {mtu}, at least {least} is needed; raise that of the underlay"
    assert reconciler.apply(listed(own, network=network), 0.0) == [Alarm(text)]
    assert reconciler.reason == text


def test_mtu_follows_the_underlay() -> None:
    """When the underlay's MTU changes, only the host's plan does."""
    reconciler = Reconciler(CONFIG, FACTS)
    before = plan_of(reconciler.apply(listed(lease(1), lease(2)), 0.0))
    facts = HostFacts((LO, replace(FACTS.interfaces[1], mtu=9000)))
    assert reconciler.host_changed(facts, 1.0) == [PlanHost(replace(before, mtu=8950))]


# --- the host ----------------------------------------------------------------------------------------------


def test_host_changed_adds_sources() -> None:
    """A new address of this host may send; loopback, link-local and the like never."""
    reconciler = Reconciler(CONFIG, FACTS)
    before = table_of(reconciler.apply(listed(lease(1), lease(2)), 0.0))
    cni0 = Interface("cni0", 4, 1450, (IPv4Address("10.244.1.1"), IPv6Address("fe80::2")))
    actions = reconciler.host_changed(HostFacts((*FACTS_DUAL.interfaces, cni0)), 1.0)
    assert actions == [
        Publish(
            replace(
                before,
                sources=(
                    IPv4Network("10.244.1.0/24"),
                    IPv4Network("10.244.1.1/32"),
                    IPv4Network("192.0.2.1/32"),
                    IPv6Network("2001:db8::1/128"),
                ),
            )
        )
    ]
    assert reconciler.host_changed(FACTS, 2.0) == [Publish(before)]
    assert reconciler.host_changed(FACTS, 3.0) == []


def test_link_local_addresses_come_and_go() -> None:
    """The link-local address of a pod's new interface is no reason to judge all leases again; others are."""
    reconciler = Reconciler(CONFIG, FACTS)
    reconciler.apply(listed(lease(1), *map(lease, range(2, 9))), 0.0)
    for ip, expected in ((IPv6Address("fe80::9"), 0), (IPv4Address("203.0.113.9"), 8)):
        facts = HostFacts((*FACTS.interfaces, Interface("veth9", 9, 1500, (ip,))))
        with patch("dataplane.peers.refuse", side_effect=refuse) as judged:
            reconciler.host_changed(facts, 1.0)
        assert judged.call_count == expected


def test_underlay_goes_and_comes() -> None:
    """Without the interface of our address there is an alarm; when it is back, what was in force still is."""
    reconciler = Reconciler(replace(CONFIG, public_ip=IP1), FACTS)
    reconciler.apply(listed(lease(1), lease(2)), 0.0)
    (alarm,) = reconciler.host_changed(HostFacts((LO,)), 1.0)
    assert alarm == Alarm("no interface of this host has the address 192.0.2.1")
    assert reconciler.underlay is None
    assert reconciler.host_changed(FACTS, 2.0) == []
    assert reconciler.reason is None


def test_iface_must_hold_the_address() -> None:
    """With --iface the underlay is that interface, whichever else holds the address too."""
    both = HostFacts((*FACTS.interfaces, Interface("eth1", 3, 9000, (IP1,))))
    reconciler = Reconciler(replace(CONFIG, iface=("eth1",)), FACTS)
    assert reconciler.apply(listed(lease(1)), 0.0) == [
        Alarm("no interface is as told by --iface eth1 (there are: lo, eth0)")
    ]
    assert plan_of(reconciler.host_changed(both, 1.0)).mtu == 8950
    assert reconciler.underlay == both.interfaces[2]
