# SPDX-License-Identifier: Apache-2.0
"""Backend type host-gw with real pods: drawn at linked.py."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

import pytest

from bench.lab import wait_for
from tests.e2e.cluster import NETWORK
from tests.e2e.linked import Linked, Wire
from tests.e2e.rig import ROOT
from tests.e2e.stream import Stream

FAR = "10.244.251.0/24"
FAR6 = "fd00:244:0:77::/64"
REPAIR_S = 1.0
STALL_S = 2.0
MTU = 1500


@pytest.fixture(scope="module")
def linked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Linked]:
    """Yield the lab as a network of host-gw."""
    network = {**NETWORK, "Backend": {"Type": "host-gw"}}
    built = Linked(tmp_path_factory.mktemp("hostgw"), network, {"a": (), "e": (), "b": ()})
    try:
        built.settle(("a", "e"), ("e", "a"))
        yield built
    finally:
        built.close()


def far(number: int) -> dict[str, object]:
    """Return the lease of a node on our link that is only a lease."""
    return {
        "PublicIP": f"192.0.2.{number}",
        "PublicIPv6": f"2001:db8:1::{number:x}",
        "BackendType": "host-gw",
    }


def test_pods_talk_without_encapsulation(linked: Linked) -> None:
    """Pods on one link talk in packets as large as the link's, by flannel's routes and leases."""
    near, there = linked.hosts["a"], linked.hosts["e"]
    wire = Wire(near, there)
    try:
        for family, headers in ((4, 28), (6, 48)):
            assert linked.can_ping("a", "e", family, MTU - headers)
            with Stream(near.pod, there.pod, there.pod_of(family)) as stream:
                assert stream.longest_s() < STALL_S
        counts = wire.take()
    finally:
        wire.close()
    assert counts["plain"] > 10
    assert counts["vxlan"] == 0
    node = linked.daemons["a"]
    assert node.env()["FLANNEL_MTU"] == str(MTU)
    net, net6 = (f"{there.pod_ip[:-1]}0/24", f"{there.pod_ip6[:-1]}/64")
    assert linked.routes("a", "show", "proto", "112") == [
        f"{net} via {there.ip} dev under0",
        f"{net6} via {there.ip6} dev under0 metric 1024 pref medium",
    ]
    found = node.find(f"subnets/{net}&{net6}".replace("/", "-").replace("subnets-", "subnets/"))
    assert found is not None
    assert json.loads(str(found.value)) == {
        "PublicIP": there.ip,
        "PublicIPv6": there.ip6,
        "BackendType": "host-gw",
    }
    links = linked.hosts["a"].host.run("ip", "-br", "link").stdout
    assert "overlay0" not in links
    assert node.forwarder_pid() == 0
    assert "READY  kernel direct" in node.say("status")


def test_peer_behind_a_router_has_no_route(linked: Linked) -> None:
    """A peer that is not on our link gets no route; it is named, and packets to it leak nowhere."""
    node, there = linked.daemons["a"], linked.hosts["b"]
    assert node.reached() == {linked.hosts["e"].ip: "direct", there.ip: "none"}
    (warning,) = [line for line in node.status()["warnings"] if "no route to" in line]
    assert f"{there.pod_ip[:-1]}0/24 of {there.ip}" in warning
    assert "peer not on our link" in node.log()
    wire = Wire(linked.hosts["a"], there)
    try:
        for family in (4, 6):
            command = ("ping", "-c", "1", "-W", "1", there.pod_of(family))
            assert "nreachable" in linked.hosts["a"].pod.run(*command, check=False).stdout
        assert linked.can_ping("a", "e", 4)
        assert wire.take() == {"plain": 0, "vxlan": 0}
    finally:
        wire.close()


BREAKAGE = {
    "flush": "route flush proto 112",
    "one": "-6 route del {net6}",
    "other way": "route replace {net} via 192.0.2.126 proto 112",
    "unreachable": "route del unreachable 10.244.0.0/16 metric 4278190080",
}


@pytest.mark.alone
@pytest.mark.parametrize("command", BREAKAGE.values(), ids=BREAKAGE.keys())
def test_routes_are_put_right(linked: Linked, command: str) -> None:
    """Whatever somebody does to our routes is undone within a second."""
    pod = linked.hosts["e"]

    def look() -> list[str]:
        return linked.routes("a", "show", "proto", "112") + linked.routes("a", "show", "type", "unreachable")

    before = look()
    words = command.format(net=f"{pod.pod_ip[:-1]}0/24", net6=f"{pod.pod_ip6[:-1]}/64").split()
    linked.hosts["a"].host.run("ip", *words)
    wait_for(
        lambda: look() == before, lambda: f"repair after {command}: {linked.daemons['a'].log()}", REPAIR_S
    )


def test_link_down_and_up(linked: Linked) -> None:
    """When the underlay's link comes back, so do the routes, although nobody told that they had gone."""
    host = linked.hosts["a"].host
    before = linked.routes("a", "show", "proto", "112")
    host.run("sysctl", "-qw", "net.ipv6.conf.under0.keep_addr_on_down=1")
    host.run("ip", "link", "set", "under0", "down")
    wait_for(lambda: linked.routes("a", "show", "proto", "112") == [], "the routes are gone")
    host.run("ip", "link", "set", "under0", "up")
    wait_for(lambda: linked.routes("a", "show", "proto", "112") == before, "the routes are back", 10.0)
    host.ip("route replace default via 192.0.2.126\nroute replace default via 2001:db8:1::fe\n")
    linked.settle(("a", "e"))


def far_routes(linked: Linked) -> list[str]:
    """Return the routes of a to the node that is only a lease."""
    return [line for line in linked.routes("a", "show", "proto", "112") if line.startswith((FAR, FAR6))]


def check_gateway(linked: Linked, family: int) -> None:
    """Let the lease name one node and then another: there is one route, by way of the second."""
    node, key = linked.daemons["a"], f"{FAR}&{FAR6}"
    for number in (7, 8):
        node.put(key, far(number))
        node.sync()
        gateway = f"192.0.2.{number}" if family == 4 else f"2001:db8:1::{number:x}"
        shown = [line for line in far_routes(linked) if (":" in line) == (family == 6)]
        assert len(shown) == 1
        assert f" via {gateway} dev under0" in shown[0]
    node.delete(key)
    node.sync()
    assert far_routes(linked) == []


def test_route_cache(linked: Linked) -> None:
    """flannel's TestRouteCache: a changed gateway replaces the route, and there is still one."""
    check_gateway(linked, 4)


def test_v6_route_cache(linked: Linked) -> None:
    """flannel's TestV6RouteCache: the same by IPv6."""
    check_gateway(linked, 6)


def test_restart_removes_what_is_stale(linked: Linked) -> None:
    """Routes of nodes that left while we were down are removed at start; the others are not touched."""
    node, key = linked.daemons["a"], f"{FAR}&{FAR6}"
    others = linked.routes("a", "show", "proto", "112")
    node.put(key, far(7))
    node.sync()
    assert len(far_routes(linked)) == 2
    watch = linked.hosts["a"].host.spawn("ip", "monitor", "route", log=node.directory / "monitor")
    try:
        node.stop()
        node.delete(key)
        node.start()
        assert far_routes(linked) == []
        assert linked.routes("a", "show", "proto", "112") == others
    finally:
        watch.kill()
        watch.wait()
    told = (node.directory / "monitor").read_text(encoding="utf-8").splitlines()
    assert len([line for line in told if "proto 112" in line]) == 2, told


def test_public_address_must_be_the_interfaces(linked: Linked) -> None:
    """A public address that the underlay interface does not have is refused with a reason."""
    node = linked.daemons["b"]
    node.stop()
    host = linked.hosts["b"].host
    host.ip("link add other0 type veth peer name other1\naddr add 198.51.100.1/24 dev other0\n")
    host.ip("link set other0 up\nlink set other1 up\n")
    flags = ("--iface", "under0", "--public-ip", "198.51.100.1", "--public-ipv6", linked.hosts["b"].ip6)
    command = [*node.run_command(), *flags]
    with node.log_path.open("ab") as log:
        node.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)
    node.wait_ready(
        "host-gw needs node addresses that routes can lead to: under0 does not have the address 198.51.100.1"
    )
    assert linked.routes("b", "show", "proto", "112") == []
    node.stop()
    host.ip("link del other0\n")
    node.start()


def test_down_removes_the_routes(linked: Linked) -> None:
    """`overlayd down` leaves no route of ours."""
    assert linked.daemons["e"].say("down") == ""
    process = linked.daemons["e"].process
    assert process is not None
    process.wait(10)
    linked.daemons["e"].process = None
    assert linked.routes("e", "show", "proto", "112") == linked.routes("e", "show", "proto", "111") == []
    linked.daemons["e"].start()
