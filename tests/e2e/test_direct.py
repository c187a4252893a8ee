# SPDX-License-Identifier: Apache-2.0
"""Direct routing in a network of VXLAN, in userspace and by the kernel: drawn at linked.py."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from bench.lab import wait_for
from tests.e2e.cluster import NETWORK
from tests.e2e.linked import Linked, Numbers, Wire
from tests.e2e.stream import Stream

DATAPATHS = ("userspace", "kernel")
FAMILIES = (4, 6)
STALL_S = 2.0
MTU = 1430  # of pods: VXLAN over IPv6
MOVES = 3
ON = ("--encapsulate", "cross-subnet")
AWAY = {
    4: ("route replace 192.0.2.5/32 via 192.0.2.126", "route del 192.0.2.5/32"),
    6: ("route replace 2001:db8:1::5/128 via 2001:db8:1::fe", "route del 2001:db8:1::5/128"),
}


@pytest.fixture(scope="module")
def linked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Linked]:
    """Yield the lab as a network of VXLAN with direct routing; how a reaches the others, each test says."""
    network = {**NETWORK, "Backend": {"Type": "vxlan", "DirectRouting": True}}
    built = Linked(tmp_path_factory.mktemp("direct"), network, {"a": (), "e": (), "b": ()})
    try:
        yield built
    finally:
        built.close()


def have(linked: Linked, datapath: str, *flags: str) -> None:
    """Restart a with other flags, unless they are those it has."""
    wanted = ["--datapath", datapath, *flags]
    if linked.daemons["a"].flags != wanted:
        linked.daemons["a"].restart(*wanted)
    linked.settle(("a", "e"))


def direct_routes(linked: Linked) -> list[str]:
    """Return the plain routes of a."""
    return [line for line in linked.routes("a", "show", "proto", "112") if "dev under0" in line]


@pytest.mark.parametrize("datapath", DATAPATHS)
def test_each_peer_is_reached_its_way(linked: Linked, datapath: str) -> None:
    """Peers on our link get plain packets, those behind the router VXLAN; status says which."""
    have(linked, datapath)
    linked.settle(("a", "b"), ("b", "a"))
    near, there, beyond = (linked.hosts[name] for name in ("a", "e", "b"))
    for receiver, kind, other in ((there, "plain", "vxlan"), (beyond, "vxlan", "plain")):
        wire = Wire(near, receiver)
        try:
            for family in FAMILIES:
                with Stream(near.pod, receiver.pod, receiver.pod_of(family)) as stream:
                    assert stream.longest_s() < STALL_S
                assert linked.can_ping("a", receiver.name, family, MTU - (48 if family == 6 else 28))
            counts = wire.take()
        finally:
            wire.close()
        assert counts[kind] > 10
        assert counts[other] == 0
    node = linked.daemons["a"]
    assert node.reached() == {there.ip: "direct", beyond.ip: "vxlan"}
    assert " direct " in node.say("peers")
    # What this host sends of itself is no larger than what pods may send.
    assert len(direct_routes(linked)) == 2
    assert all(f" mtu {MTU} " in f"{line} " for line in direct_routes(linked))
    shown = linked.hosts["a"].host.run("ping", "-c1", "-W1", "-Mdo", "-s1450", there.pod_ip, check=False)
    assert f"mtu={MTU}" in shown.stdout + shown.stderr


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("datapath", DATAPATHS)
def test_peer_moves_behind_a_router_and_back(linked: Linked, datapath: str, family: int) -> None:
    """A route that makes a peer remote, and its end, change how it is reached; no datagram is lost."""
    have(linked, datapath)
    near, there = linked.hosts["a"], linked.hosts["e"]
    away, back = AWAY[family]
    wire = Wire(near, there)
    try:
        with Numbers(near, there, family) as numbers:
            for command, kind in [(away, "vxlan"), (back, "plain")] * MOVES:
                near.host.run("ip", *command.split())
                count = numbers.count()

                def has_changed(kind: str = kind) -> bool:
                    counts = wire.take()
                    return counts[kind] > 0 and sum(counts.values()) == counts[kind]

                wait_for(has_changed, f"packets leave {kind} after ip {command}", 10.0)
                wait_for(lambda count=count: numbers.count() > count + 100, "datagrams arrive")  # type: ignore[misc]
            assert numbers.finish() == []
    finally:
        wire.close()
    assert linked.daemons["a"].reached()[there.ip] == "direct"


@pytest.mark.alone
def test_removed_routes_cost_nothing(linked: Linked) -> None:
    """Direct routes that are removed are back within a second; the forwarder carries what comes meanwhile."""
    have(linked, "userspace")
    before = direct_routes(linked)
    with Numbers(linked.hosts["a"], linked.hosts["e"], 4) as numbers:
        linked.hosts["a"].host.run("ip", "route", "flush", "proto", "112")
        wait_for(lambda: direct_routes(linked) == before, linked.daemons["a"].log, 1.0)
        assert numbers.finish() == []


def test_both_kinds_are_taken(linked: Linked) -> None:
    """A node that encapsulates always talks with one that does not: each takes what the other sends."""
    have(linked, "userspace", "--encapsulate", "always")
    near, there = linked.hosts["a"], linked.hosts["e"]
    assert direct_routes(linked) == []
    wire, other = Wire(near, there), Wire(there, near)
    try:
        for family in FAMILIES:
            with Stream(near.pod, there.pod, there.pod_of(family)) as stream:
                assert stream.longest_s() < STALL_S
        ours, theirs = wire.take(), other.take()
    finally:
        wire.close()
        other.close()
    assert (ours["plain"], theirs["vxlan"]) == (0, 0)
    assert min(ours["vxlan"], theirs["plain"]) > 10


def test_never_encapsulates(linked: Linked) -> None:
    """With never, who is not on our link cannot be sent to, is named, and still heard; the others talk."""
    have(linked, "userspace", "--encapsulate", "never")
    near, beyond, node = linked.hosts["a"], linked.hosts["b"], linked.daemons["a"]
    assert node.reached() == {linked.hosts["e"].ip: "direct", beyond.ip: "none"}
    assert any(f"of {beyond.ip}" in line for line in node.status()["warnings"])
    drops = node.status()["tx"]["drops"]
    for family in FAMILIES:
        command = ("ping", "-c1", "-W1", beyond.pod_of(family))
        assert "nreachable" in near.pod.run(*command, check=False).stdout
    assert node.status()["tx"]["drops"] == {**drops, "no_encap": drops.get("no_encap", 0) + len(FAMILIES)}
    with (
        near.pod.socket(socket.AF_INET, socket.SOCK_DGRAM) as here,
        beyond.pod.socket(socket.AF_INET, socket.SOCK_DGRAM) as there,
    ):
        here.bind((near.pod_ip, 0))
        here.settimeout(5.0)
        there.sendto(b"hello", here.getsockname())
        assert here.recv(16) == b"hello"
    assert linked.can_ping("a", "e", 4)


def test_restart_keeps_routes_that_are_right(linked: Linked) -> None:
    """A restart loses no datagram, and one with always removes the direct routes of the run before."""
    have(linked, "userspace", *ON)
    node = linked.daemons["a"]
    assert len(direct_routes(linked)) == 2
    with Numbers(linked.hosts["a"], linked.hosts["e"], 4) as numbers:
        node.restart("--datapath", "userspace", *ON)
        assert len(direct_routes(linked)) == 2
        node.restart("--datapath", "userspace", "--encapsulate", "always")
        assert direct_routes(linked) == []
        assert numbers.finish() == []


def test_host_gw_lease_in_a_vxlan_network(linked: Linked) -> None:
    """A lease of host-gw is refused with a reason; with --encap host-gw it is a peer, reached directly."""
    have(linked, "userspace", *ON)
    node = linked.daemons["a"]
    subnet = "10.244.251.0/24"
    node.put(subnet, {"PublicIP": "192.0.2.9", "PublicIPv6": None, "BackendType": "host-gw"})
    node.sync()
    assert node.peers()[subnet]["refused"] == "its backend host-gw is not enabled here; see --encap"
    assert len(direct_routes(linked)) == 2
    have(linked, "userspace", "--encap", "host-gw")
    assert node.peers()[subnet]["reached"] == "direct"
    shown = [line for line in direct_routes(linked) if line.startswith(subnet)]
    assert len(shown) == 1
    assert " via 192.0.2.9 " in shown[0]
    node.delete(subnet)
    node.sync()
    assert len(direct_routes(linked)) == 2
