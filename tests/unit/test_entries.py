# SPDX-License-Identifier: Apache-2.0
"""What the kernel is told of peers: which entries they have, and the messages from one state to another."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from dataplane import entries
from dataplane.backend.kernel import tell_shared
from dataplane.entries import (
    AF_INET,
    AF_INET6,
    RTM_DELROUTE,
    RTM_NEWLINK,
    RTM_NEWROUTE,
    RTMSG,
    Entries,
    Hop,
    Links,
    difference,
    find_shared,
    note,
    split,
    undoes,
    wanted,
)
from dataplane.model import Encap, MacAddress, SubnetEntry

MAC = MacAddress(bytes((2, 0, 0, 0, 0, 2)))
NODE, NODE6 = ip_address("192.0.2.2"), ip_address("2001:db8::2")
SUBNET, SUBNET6 = ip_network("10.244.2.0/24"), ip_network("fd00:244:0:2::/64")
FAR = SubnetEntry(SUBNET, 0, Encap.VXLAN, NODE, MAC)
FAR6 = SubnetEntry(SUBNET6, 0, Encap.VXLAN, NODE6, MAC)
NEAR, NEAR6 = replace(FAR, is_direct=True), replace(FAR6, is_direct=True)
OVERLAY, UNDERLAY = 7, 2
BOTH, PLAIN, TUN = Links(OVERLAY, UNDERLAY, 1450), Links(0, UNDERLAY), Links(0, UNDERLAY, tun=9)


def routes(before: Entries, after: Entries) -> list[tuple[int, str, Hop | None]]:
    """Return what becomes of routes: the kind of each message, its prefix, and where it leads."""
    found = []
    for kind, body in split(b"".join(difference(OVERLAY, before, after))):
        if kind in (RTM_NEWROUTE, RTM_DELROUTE):
            seen = Entries()
            note(seen, OVERLAY, RTM_NEWROUTE, body)
            length = RTMSG.unpack_from(body)[1]
            prefix = ip_network((entries.attributes(body, RTMSG.size)[entries.RTA_DST], length))
            found.append((kind, str(prefix), seen.routes.get(prefix)))
    return found


@pytest.mark.parametrize(
    ("entry", "links", "hop", "has_mac"),
    [
        pytest.param(FAR, BOTH, Hop(SUBNET[0], OVERLAY, is_onlink=True), True, id="behind the device"),
        pytest.param(
            replace(FAR, mtu=1300), BOTH, Hop(SUBNET[0], OVERLAY, True, 1300), True, id="its own MTU"
        ),
        pytest.param(NEAR, BOTH, Hop(NODE, UNDERLAY, mtu=1450), True, id="direct: as much as by the device"),
        pytest.param(
            replace(NEAR, mtu=1300), BOTH, Hop(NODE, UNDERLAY, mtu=1300), True, id="direct, its own MTU"
        ),
        pytest.param(NEAR, PLAIN, Hop(NODE, UNDERLAY), False, id="direct: no device"),
        pytest.param(FAR, PLAIN, None, False, id="the forwarder's"),
        pytest.param(FAR, TUN, None, False, id="the forwarder's, whose device has one route for all"),
        pytest.param(replace(FAR, mtu=1250), TUN, Hop(None, 9, mtu=1250), False, id="of a smaller path"),
        pytest.param(replace(NEAR, mtu=1250), TUN, Hop(NODE, UNDERLAY, mtu=1250), False, id="never both"),
        pytest.param(replace(FAR, encap=Encap.DIRECT), BOTH, None, True, id="never, and not on our link"),
        pytest.param(FAR6, BOTH, None, False, id="of the other family"),
    ],
)
def test_wanted(entry: SubnetEntry, links: Links, hop: Hop | None, has_mac: bool) -> None:
    """A peer has a route the way it is reached; where there is a device, the rest of it stays."""
    found = wanted((entry,), 4, links)
    assert found.routes == ({} if hop is None else {SUBNET: hop})
    assert (found.neighbours, found.forwarding) == (({SUBNET[0]: MAC}, {MAC: NODE}) if has_mac else ({}, {}))


@pytest.mark.parametrize("entry", [FAR, NEAR, FAR6, NEAR6], ids=["far", "near", "far6", "near6"])
def test_read_back(entry: SubnetEntry) -> None:
    """What is told is what is read back, so that nothing is told twice."""
    version = entry.prefix.version
    told, seen = wanted((entry,), version, BOTH), Entries()
    for kind, body in split(b"".join(difference(OVERLAY, Entries(), told))):
        note(seen, OVERLAY, kind, body)
    assert seen == told
    assert list(difference(OVERLAY, seen, told)) == []


def test_read_back_of_a_smaller_path() -> None:
    """So is a route that says how much the path to a peer takes."""
    told, seen = wanted((replace(FAR, mtu=1250),), 4, TUN), Entries()
    for kind, body in split(b"".join(difference(0, Entries(), told))):
        note(seen, 0, kind, body)
    assert seen == told
    assert routes(told, Entries()) == [(RTM_DELROUTE, str(SUBNET), Hop(None, 9))]


@pytest.mark.parametrize(("before", "after"), [(FAR, NEAR), (NEAR, FAR)], ids=["comes near", "goes away"])
def test_route_is_replaced_in_one_step(before: SubnetEntry, after: SubnetEntry) -> None:
    """A peer that moves has its route replaced: nothing is removed, and nothing else told."""
    was, now = wanted((before,), 4, BOTH), wanted((after,), 4, BOTH)
    assert routes(was, now) == [(RTM_NEWROUTE, str(SUBNET), now.routes[SUBNET])]
    assert len(list(difference(OVERLAY, was, now))) == 1


def test_ipv6_route_is_replaced_beneath_another() -> None:
    """IPv6 takes no gateway to which a route on another device leads: so one to it comes first."""
    was, now = wanted((NEAR6,), 6, BOTH), wanted((FAR6,), 6, BOTH)
    spot = f"{SUBNET6[0]}/128"
    assert routes(was, now) == [
        (RTM_NEWROUTE, spot, Hop(None, OVERLAY)),
        (RTM_NEWROUTE, str(SUBNET6), now.routes[SUBNET6]),
        (RTM_DELROUTE, spot, Hop(None, OVERLAY)),
    ]
    assert routes(now, was) == [(RTM_NEWROUTE, str(SUBNET6), was.routes[SUBNET6])]


def test_peer_that_leaves() -> None:
    """A plain route goes with its peer."""
    was = wanted((NEAR,), 4, PLAIN)
    assert routes(was, Entries()) == [(RTM_DELROUTE, str(SUBNET), Hop(NODE, UNDERLAY))]


def link_message(index: int) -> bytes:
    """Return the body of a message about a link."""
    return entries.IFINFOMSG.pack(0, 0, 1, index, 0, 0)


@pytest.mark.parametrize(
    ("kind", "body", "is_ours"),
    [
        pytest.param(RTM_DELROUTE, RTMSG.pack(AF_INET, 24, 0, 0, 254, 112, 0, 1, 0), True, id="route"),
        pytest.param(
            RTM_DELROUTE, RTMSG.pack(AF_INET6, 64, 0, 0, 254, 112, 0, 1, 0), False, id="other family"
        ),
        pytest.param(RTM_DELROUTE, RTMSG.pack(AF_INET, 24, 0, 0, 254, 3, 0, 1, 0), False, id="other's route"),
        pytest.param(RTM_NEWLINK, link_message(UNDERLAY), True, id="underlay"),
        pytest.param(RTM_NEWLINK, link_message(9), True, id="the forwarder's device"),
        pytest.param(RTM_NEWLINK, link_message(8), False, id="other link"),
        pytest.param(RTM_DELROUTE, b"", False, id="cut short"),
    ],
)
def test_what_others_do(kind: int, body: bytes, is_ours: bool) -> None:
    """Only what may have changed something of ours is looked after."""
    assert undoes(AF_INET, TUN, kind, body) == is_ours


def test_mac_of_two_nodes_is_told() -> None:
    """A VTEP MAC of two nodes is found and named; subnets and families of one node are no two."""
    other = replace(FAR, prefix=ip_network("10.244.9.0/24"), vtep=ip_address("192.0.2.9"))
    more = replace(FAR, prefix=ip_network("10.244.8.0/24"))
    assert find_shared([FAR, FAR6, more, replace(other, vtep_mac=None)]) == {}
    shared = find_shared([FAR, FAR6, other, more])
    assert shared == {MAC: {NODE, other.vtep}}
    (line,) = tell_shared(shared)
    assert line.startswith("nodes 192.0.2.2, 192.0.2.9 have one VTEP MAC, 02:00:00:00:00:02: ")
    assert "overlayd lease rm" in line
