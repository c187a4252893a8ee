# SPDX-License-Identifier: Apache-2.0
"""Which leases become peers: what is found step by step is what is found from the whole at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any, cast
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.gate import Scene, find_collisions, refuse
from dataplane.model import Address, Encap, Entry, Lease, MacAddress, NetworkConfig, Peer, SubnetKey
from dataplane.peerids import GRACE_S, PEERS_MAX
from dataplane.peers import FULL, Peers

NET = NetworkConfig(IPv4Network("10.244.0.0/16"), IPv6Network("fd00:244::/48"), Encap.VXLAN)
MACS = (None, MacAddress(bytes(6 * [2])), MacAddress(bytes(6 * [6])))


def make_lease(subnet: int, subnet6: int, node: int, node6: int, mac: int) -> Lease:
    """Return a lease with subnets and addresses by number; 0 is none."""
    net = IPv4Network(f"10.244.{subnet}.0/24") if subnet else None
    net6 = IPv6Network(f"fd00:244:0:{subnet6}::/64") if subnet6 or net is None else None
    ip = IPv4Address(f"192.0.2.{node}") if node else None
    ip6 = IPv6Address(f"2001:db8::{node6}") if node6 or ip is None else None
    return Lease(SubnetKey(net, net6), ip, ip6, Encap.VXLAN, MACS[mac])


LEASES = st.builds(
    make_lease,
    *(st.integers(0, 4), st.integers(0, 3), st.integers(0, 4), st.integers(0, 3), st.integers(0, 2)),
)
NAMES = st.sampled_from("abcdefgh")
ENTRIES = st.builds(
    lambda name, lease, created: Entry(name, lease, None if lease else "unreadable", created),
    *(NAMES, st.one_of(LEASES, LEASES, st.none()), st.integers(0, 5)),
)
OWN = make_lease(9, 9, 9, 9, 1)
STRANGER = make_lease(1, 1, 1, 1, 1)
SCENES = st.builds(
    lambda own, held, is_leased: Scene(NET, own, frozenset(held), frozenset({Encap.VXLAN}), is_leased),
    *(st.sampled_from((OWN, OWN, OWN, STRANGER)), st.sets(st.just(IPv4Address("192.0.2.3"))), st.booleans()),
)
STEPS = st.one_of(
    st.tuples(st.just("put"), ENTRIES),
    st.tuples(st.just("put"), ENTRIES),
    st.tuples(st.just("remove"), NAMES),
    st.tuples(st.just("replace"), st.lists(ENTRIES, max_size=8, unique_by=lambda entry: entry.name)),
    st.tuples(st.just("scene"), SCENES),
)


def is_ours(lease: Lease, own: Lease) -> bool:
    """Return whether a lease under our key says an address or a MAC of ours."""
    mac = own.vtep_mac or own.vtep_mac6
    has_mac = mac is not None and mac in (lease.vtep_mac, lease.vtep_mac6)
    return lease.key == own.key and (lease.public_ips()[0] == own.public_ips()[0] or has_mac)


def judge_whole(entries: dict[str, Entry], scene: Scene) -> dict[str, str | None]:
    """Return why each lease of another node is refused, from scratch."""
    others = {
        name: entry
        for name, entry in entries.items()
        if entry.lease is None or not is_ours(entry.lease, scene.own)
    }
    refusals: dict[str, str | None] = {name: refuse(entry, scene) for name, entry in others.items()}
    return refusals | find_collisions(others[name] for name, why in refusals.items() if why is None)


def check_values(
    peers: Peers, entries: dict[str, Entry], refusals: dict[str, str | None], own: Lease
) -> None:
    """Check views and the table's values against what must follow."""
    views = peers.views()
    assert [(view.entry, view.refused) for view in views] == [
        (entries[name], refusals[name]) for name in entries if name in refusals
    ]
    nodes: dict[Address, dict[Address, None]] = {}
    ids: dict[Address, int | None] = {}
    prefixes = []
    for view in views:
        lease = view.entry.lease
        if view.refused is not None or lease is None:
            assert view.id is None
            continue
        node = lease.public_ips()[0]
        assert ids.setdefault(node, view.id) == view.id
        nodes.setdefault(node, {}).update(dict.fromkeys(lease.public_ips()))
        prefixes += [(subnet, view.id) for subnet in lease.key.subnets()]
    assert len(set(ids.values())) == len(ids)
    assert peers.peers() == tuple(
        sorted((Peer(ids[node] or 0, tuple(ips)) for node, ips in nodes.items()), key=lambda peer: peer.id)
    )
    prefixes.sort(key=lambda pair: (pair[0].version, pair[0]))
    assert [(entry.prefix, entry.peer_id) for entry in peers.subnets()] == prefixes
    again = Peers(())
    again.replace(entries.values())
    again.judge(Scene(NET, own, frozenset(), frozenset({Encap.VXLAN}), is_leased=False), 0.0)
    assert again.leases_at([IPv4Address("192.0.2.1")]) == peers.leases_at([IPv4Address("192.0.2.1")])


def take(peers: Peers, entries: dict[str, Entry], scene: Scene, what: str, value: Any) -> Scene:
    """Take one step, as a dictionary of entries does; return the scene then."""
    if what == "put":
        peers.put(value)
        entries[value.name] = value
    elif what == "remove":
        peers.remove(value)
        entries.pop(value, None)
    elif what == "replace":
        peers.replace(value)
        entries.clear()
        entries |= {entry.name: entry for entry in value}
    else:
        return cast(Scene, value)
    return scene


@settings(max_examples=400)
@given(SCENES, st.lists(st.tuples(STEPS, st.integers(0, 1)), max_size=25))
def test_step_by_step_is_as_whole(scene: Scene, steps: list[tuple[tuple[str, Any], int]]) -> None:
    """After any steps, judged together or one by one, all is as from scratch, and just the news are told."""
    peers, entries, told, now = Peers(()), dict[str, Entry](), dict[str, str | None](), 0.0
    for (what, value), is_judged in [*steps, (("remove", "-"), 1)]:
        now += GRACE_S / 3
        scene = take(peers, entries, scene, what, value)
        if not is_judged:
            continue
        news = peers.judge(scene, now)
        refusals = judge_whole(entries, scene)
        check_values(peers, entries, refusals, scene.own)
        expected = [name for name in entries if refusals.get(name) and told.get(name) != refusals[name]]
        assert [view.entry.name for view in news] == expected
        told = refusals


@settings(max_examples=200)
@given(SCENES, st.integers(0, 4), st.lists(STEPS, max_size=25))
def test_so_many_count_and_stay(scene: Scene, count_max: int, steps: list[tuple[str, Any]]) -> None:
    """At most so many leases count, as many as may; one that counts does for as long as it is there."""
    peers, entries, counted = Peers((), count_max), dict[str, Entry](), set[str]()
    for what, value in steps:
        scene = take(peers, entries, scene, what, value)
        peers.judge(scene, 0.0)
        valid = {name for name, entry in entries.items() if refuse(entry, scene) is None}
        refusals = {view.entry.name: view.refused for view in peers.views()}
        waiting = {name for name, reason in refusals.items() if reason == FULL}
        assert waiting <= valid
        assert len(valid - waiting) == min(count_max, len(valid))
        assert peers.count_waiting() == len(waiting)
        assert not waiting & counted  # nobody is displaced
        counted = valid - waiting
        others = {name: entry for name, entry in entries.items() if name not in waiting}
        check_values(peers, entries, judge_whole(others, scene) | dict.fromkeys(waiting, FULL), scene.own)


def count_refusals(change: Callable[[Peers], object]) -> int:
    """Return how many leases are judged for one change among many."""
    peers = Peers(())
    peers.replace(
        Entry(
            str(n),
            Lease(
                SubnetKey(IPv4Network((0x0AF40000 + 16 * n, 28))),
                IPv4Address(0x0A000001 + n),
                None,
                Encap.VXLAN,
                MACS[1],
            ),
        )
        for n in range(3000)
    )
    scene = Scene(NET, OWN, frozenset(), frozenset({Encap.VXLAN}), is_leased=False)
    peers.judge(scene, 0.0)
    with patch("dataplane.peers.refuse", side_effect=refuse) as judged:
        change(peers)
        peers.judge(scene, 1.0)
    return judged.call_count


def renew(peers: Peers) -> None:
    """Let a lease be renewed."""
    (entry,) = (view.entry for view in peers.views() if view.entry.name == "7")
    peers.put(replace(entry, changed=9, expires_s=99.0))


def test_one_change_is_judged_alone() -> None:
    """Among thousands of leases, a change costs a look at what changed, and nothing at what did not."""
    changed = Entry("7", make_lease(5, 0, 200, 0, 1))
    assert count_refusals(lambda peers: peers.put(changed)) == 1
    assert count_refusals(lambda peers: peers.remove("7")) == 0
    assert count_refusals(renew) == 0
    assert count_refusals(lambda peers: None) == 0


def test_leases_of_one_node_do_not_collide() -> None:
    """Many leases of one node move alone, too: only what two nodes claim is a collision."""
    peers = Peers(())
    scene = Scene(NET, OWN, frozenset(), frozenset({Encap.VXLAN}), is_leased=False)
    entries = [Entry(str(n), make_lease(n, 0, 7, 0, 1)) for n in range(1, 9)]
    peers.replace(entries)
    with patch("dataplane.peers.find_collisions", side_effect=lambda found: {} if not list(found) else 1 / 0):
        assert peers.judge(scene, 0.0) == []
        peers.put(Entry("3", make_lease(3, 0, 7, 0, 2)))
        assert peers.judge(scene, 0.0) == []
    assert len(peers.subnets()) == 8


def test_ids_outlast_a_cluster_that_is_replaced() -> None:
    """As many nodes as there are ids can be replaced by others within the grace period."""
    with patch("dataplane.peerids.PEERS_MAX", 4):
        peers = Peers(())
        scene = Scene(NET, OWN, frozenset(), frozenset({Encap.VXLAN}), is_leased=True)
        for first in (1, 5):
            peers.replace(Entry(str(n), make_lease(n, 0, 100 + n, 0, 1)) for n in range(first, first + 4))
            peers.judge(scene, 0.0)
            assert [peer.id for peer in peers.peers()] == [0, 1, 2, 3]
    assert PEERS_MAX == 131072
