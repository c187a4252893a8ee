# SPDX-License-Identifier: Apache-2.0
"""Reconciliation, whatever the store says in whatever order: what holds after every event."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane import flannel
from dataplane.config import RunConfig
from dataplane.model import (
    Address,
    Alarm,
    Encap,
    Event,
    HostFacts,
    Interface,
    Lease,
    LeaseDeleted,
    LeasePut,
    Listed,
    MacAddress,
    NetworkConfig,
    PlanHost,
    Publish,
    SubnetEntry,
    SubnetKey,
    Table,
)
from dataplane.peerids import GRACE_S
from dataplane.reconcile import Reconciler
from tests.leases import deleted, listed, put

OWN_IP = IPv4Address("192.0.2.1")
CONFIG = RunConfig(store="file:///x")
NET = NetworkConfig(IPv4Network("10.244.0.0/16"), None, Encap.VXLAN)
FACTS = HostFacts((Interface("eth0", 2, 1500, (OWN_IP,)),))
NODES, SUBNETS = 6, 8


def key(n: int) -> SubnetKey:
    """Return subnet n."""
    return SubnetKey(IPv4Network(f"10.244.{n}.0/24"))


def make_lease(subnet: int, node: int, mac: int, encap: Encap) -> Lease:
    """Return a lease of a subnet by a node; MAC 0 is none."""
    vtep_mac = MacAddress(bytes((2, 0, 0, 0, 0, mac))) if mac else None
    return Lease(key(subnet), IPv4Address(f"192.0.2.{node}"), None, encap, vtep_mac)


def leases() -> st.SearchStrategy[Lease]:
    """Leases of few subnets by few nodes, ours (1) among them, some without MAC or of a foreign backend."""
    return st.builds(
        make_lease,
        st.integers(1, SUBNETS),
        st.integers(1, NODES),
        st.integers(0, 3),
        st.sampled_from((Encap.VXLAN, Encap.VXLAN, Encap.IPIP)),
    )


def events() -> st.SearchStrategy[Event]:
    """What a store may say; the revision is filled in later."""
    lists = st.lists(leases(), max_size=SUBNETS, unique_by=lambda lease: lease.key)
    return st.one_of(
        st.builds(lambda found: listed(*found, revision=0), lists),
        st.builds(lambda lease: put(0, lease), leases()),
        st.builds(lambda n: deleted(0, key(n)), st.integers(1, SUBNETS)),
    )


class Naive:
    """What the store holds after the events so far, and what follows from it, the simple way."""

    def __init__(self) -> None:
        self.leases: dict[SubnetKey, Lease] | None = None

    def apply(self, event: Event) -> None:
        """Take an event."""
        if isinstance(event, Listed):
            self.leases = {entry.lease.key: entry.lease for entry in event.entries if entry.lease}
        elif isinstance(event, LeasePut) and self.leases is not None and event.entry.lease:
            self.leases[event.entry.lease.key] = event.entry.lease
        elif isinstance(event, LeaseDeleted) and self.leases is not None:
            self.leases.pop(flannel.parse_key(event.name), None)

    def own(self) -> Lease | None:
        """Return our lease, if there is just one."""
        ours = [lease for lease in (self.leases or {}).values() if lease.public_ip == OWN_IP]
        return ours[0] if len(ours) == 1 else None

    def peers(self) -> set[Lease]:
        """Return the leases that can be peers."""
        return {
            lease
            for lease in (self.leases or {}).values()
            if lease.public_ip != OWN_IP and lease.encap is Encap.VXLAN and lease.vtep_mac is not None
        }


def check_table(table: Table, own: Lease, peers: set[Lease]) -> None:
    """Check all that must hold within a table, and between it and the leases."""
    ids = [peer.id for peer in table.peers]
    by_id = {peer.id: peer.addresses for peer in table.peers}
    assert len(set(ids)) == len(ids)
    assert len(set(by_id.values())) == len(ids)
    assert table.own == own.key.subnets()
    assert own.key.subnet not in [entry.prefix for entry in table.subnets]
    assert all(by_id[entry.peer_id] == (entry.vtep,) for entry in table.subnets)
    assert set(table.subnets) == {
        SubnetEntry(lease.key.subnet, by_peer, lease.encap, lease.public_ip, lease.vtep_mac)
        for lease in peers
        for by_peer, addresses in by_id.items()
        if addresses == (lease.public_ip,) and lease.key.subnet and lease.public_ip
    }
    assert {entry.prefix for entry in table.subnets} == {lease.key.subnet for lease in peers}
    assert set(by_id.values()) == {(lease.public_ip,) for lease in peers}


@settings(max_examples=300)
@given(st.lists(st.tuples(events(), st.integers(0, 40)), max_size=25))
def test_any_sequence(steps: list[tuple[Event, int]]) -> None:
    """After any events the last table is what a naive reading gives, and ids stay, and rest when free."""
    naive, reconciler, now = Naive(), Reconciler(CONFIG, FACTS), 0.0
    published: Table | None = None
    ids: dict[Address, int] = {}
    gone: dict[Address, tuple[int, float]] = {}  # node -> the id it had, and when it went
    for revision, (event, wait_s) in enumerate(steps, 1):
        now += wait_s
        naive.apply(event)
        actions = reconciler.apply(replace(event, revision=revision), now)
        assert reconciler.revision == revision
        own = naive.own()
        tables = [action.table for action in actions if isinstance(action, Publish)]
        if own is None:
            assert not [action for action in actions if not isinstance(action, Alarm)]
            assert reconciler.reason is not None
            continue
        assert reconciler.reason is None
        assert len(tables) <= 1
        assert sum(isinstance(action, PlanHost) for action in actions) <= 1
        if tables:
            assert tables[0] != published
            published = tables[0]
        assert published is not None
        check_table(published, own, naive.peers())
        now_ids = {peer.addresses[0]: peer.id for peer in published.peers}
        for ip, peer_id in now_ids.items():
            resting = {one: rest[0] for one, rest in gone.items() if now - rest[1] < GRACE_S}
            if ip in ids or ip in resting:
                assert peer_id == ids.get(ip, resting.get(ip))
            else:
                assert peer_id not in resting.values()
        gone = {ip: rest for ip, rest in gone.items() if ip not in now_ids}
        gone |= {ip: (peer_id, now) for ip, peer_id in ids.items() if ip not in now_ids}
        ids = now_ids
        refused = {view.entry.lease for view in reconciler.peers() if view.id is None}
        assert naive.leases is not None
        assert refused == set(naive.leases.values()) - naive.peers() - {own}
        assert all((view.id is None) == (view.refused is not None) for view in reconciler.peers())
        again = reconciler.apply(put(revision, own), now)
        assert again == []


@given(st.lists(leases(), max_size=SUBNETS, unique_by=lambda lease: lease.key))
def test_order_of_a_list(found: list[Lease]) -> None:
    """The order in which a list names its leases does not change which subnets go where."""
    one, other = Reconciler(CONFIG, FACTS), Reconciler(CONFIG, FACTS)
    tables = []
    for reconciler, order in ((one, found), (other, found[::-1])):
        actions = reconciler.apply(listed(*order), 0.0)
        tables.append([action.table for action in actions if isinstance(action, Publish)])
    shown = [[(e.prefix, e.vtep, e.vtep_mac) for t in found for e in t.subnets] for found in tables]
    assert shown[0] == shown[1]


def colliding() -> st.SearchStrategy[Lease]:
    """Leases in both families whose subnets and addresses are so few that they collide, with ours too."""
    return st.builds(
        lambda v4, v6, ip, ip6: Lease(
            SubnetKey(v4, v6),
            IPv4Address(f"192.0.2.{ip}"),
            ip6,
            Encap.VXLAN,
            MacAddress(bytes((2, 0, 0, 0, 0, ip))),
        ),
        st.sampled_from(("10.244.2.0/24", "10.244.3.0/24", "10.244.1.128/25", "10.244.0.0/22")).map(
            IPv4Network
        ),
        st.none() | st.sampled_from([IPv6Network(f"fd00:0:0:{n}::/64") for n in range(3)]),
        st.integers(2, 5),
        st.none() | st.sampled_from([IPv6Address(f"2001:db8::{n}") for n in range(2, 5)]),
    )


@given(st.lists(colliding(), max_size=8, unique_by=lambda lease: lease.key), st.randoms())
def test_collisions(found: list[Lease], random: Random) -> None:
    """No table holds a prefix or an address twice or touches our subnet, whatever the order of the list."""
    own = make_lease(1, 1, 1, Encap.VXLAN)
    shuffled = random.sample(found, len(found))
    accepted = []
    for order in (found, shuffled):
        reconciler = Reconciler(CONFIG, FACTS)
        actions = reconciler.apply(listed(own, *order), 0.0)
        (table,) = (action.table for action in actions if isinstance(action, Publish))
        prefixes = [entry.prefix for entry in table.subnets]
        addresses = [ip for peer in table.peers for ip in peer.addresses]
        assert len(set(prefixes)) == len(prefixes)
        assert len(set(addresses)) == len(addresses)
        assert not [net for net in prefixes if net.version == 4 and net.overlaps(own.key.subnets()[0])]
        accepted.append({view.entry.lease for view in reconciler.peers() if view.refused is None})
    assert accepted[0] == accepted[1]
