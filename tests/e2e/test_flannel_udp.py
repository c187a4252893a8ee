# SPDX-License-Identifier: Apache-2.0
"""Two of our nodes in a cluster of flannel's `udp`, and a node that does what flannel's proxy does.

    pod a ── host a: overlayd        host b: flannel_proxy.py ── pod b        pod c ── host c: overlayd
                     under0 ───────────────── router ───────────────────────────────── under0

Drawn in full at the head of bench/lab.py. The leases are flannel's, in a store that both of ours use.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.lab import Lab, Node, wait_for
from tests.e2e import frames
from tests.e2e.frames import BARE, DUAL, US
from tests.e2e.leased import NETWORK as VXLAN
from tests.e2e.leased import LeasedDaemon, LeasedRig
from tests.e2e.rig import hasten, risen
from tests.e2e.test_integrity import digest_of_stream

MTU = 1472
NETWORK = "10.244.0.0/16"
CONFIG: dict[str, Any] = {"Network": NETWORK, "Backend": {"Type": "udp"}}
BYTES = 1 << 20
WAYS = [pytest.param(*pair, id="-to-".join(pair)) for pair in itertools.permutations("abc", 2)]


def flannels_lease(node: Node) -> str:
    """Return a lease as flannel's udp writes it: it says nothing of itself."""
    return json.dumps({"PublicIP": node.address, "PublicIPv6": None}, separators=(",", ":"))


class SharedDaemon(LeasedDaemon):
    """An overlayd on the store of another one."""

    store: Path | None = None

    @property
    def store_path(self) -> Path:
        """The file of the store."""
        return self.store or super().store_path


class Cluster:
    """The drawing above."""

    def __init__(self, directory: Path) -> None:
        """Build it; a has the store."""
        self.lab = Lab(f"e2efu{os.getpid() % 100000}", mtu=MTU)
        self.nodes = self.lab.nodes
        self.daemons: dict[str, SharedDaemon] = {}
        self.proxy: subprocess.Popen[bytes] | None = None
        try:
            leases = {node.subnet(): flannels_lease(node) for node in self.nodes.values()}
            b = self.nodes["b"]
            routes = (f"{n.subnet()}={n.address}" for n in self.nodes.values() if n is not b)
            proxy = [sys.executable, str(Path(__file__).with_name("flannel_proxy.py"))]
            self.proxy = b.host.spawn(*proxy, "10.244.2.0/32", NETWORK, str(MTU), b.address, *routes)
            for name in ("a", "c"):
                host = self.nodes[name].host
                hasten(host)
                daemon = SharedDaemon(
                    host, directory / name, {"network": CONFIG, "leases": leases if name == "a" else {}}, ()
                )
                if name == "c":
                    daemon.store = self.daemons["a"].store_path
                self.daemons[name] = daemon
                daemon.start()
                daemon.wait_quiet()
            wait_for(lambda: "flannel0" in b.host.run("ip", "link").stdout, "the proxy's device")
            for daemon in self.daemons.values():
                daemon.sync()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Take it down."""
        for daemon in self.daemons.values():
            daemon.close()
        self.lab.close()
        if self.proxy is not None:
            self.proxy.wait()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Yield the cluster, shared by all tests."""
    built = Cluster(tmp_path_factory.mktemp("udp"))
    yield built
    built.close()


@pytest.fixture(autouse=True)
def nothing_dropped(cluster: Cluster) -> Iterator[None]:
    """Assert that honest traffic costs not one packet, and that all of them are accounted for."""
    before = {name: daemon.settled() for name, daemon in cluster.daemons.items()}
    yield
    for name, daemon in cluster.daemons.items():
        assert risen(before[name], daemon.settled()) == {}


@pytest.mark.parametrize(("source", "target"), WAYS)
def test_largest_packet_passes(cluster: Cluster, source: str, target: str) -> None:
    """A packet of exactly the pods' MTU, 28 bytes less than the underlay's, passes whole and comes back."""
    ping = ("ping", "-n", "-q", "-c", "3", "-i", "0.02", "-W", "2", "-M", "do", "-s", str(MTU - 28))
    to = cluster.nodes[target].pod_ip()
    assert " 0% packet loss" in cluster.nodes[source].pod.run(*ping, to, check=False).stdout


@pytest.mark.parametrize(("source", "target"), WAYS)
def test_hosts_and_pods_ping(cluster: Cluster, source: str, target: str) -> None:
    """A host reaches the pod of another and its overlay address."""
    ping = ("ping", "-n", "-q", "-c", "2", "-i", "0.02", "-W", "2")
    for to in (cluster.nodes[target].pod_ip(), f"10.244.{cluster.nodes[target].third}.0"):
        assert " 0% packet loss" in cluster.nodes[source].host.run(*ping, to, check=False).stdout


@pytest.mark.parametrize(("source", "target"), WAYS)
def test_streams_arrive_unchanged(cluster: Cluster, source: str, target: str) -> None:
    """A TCP stream arrives bit for bit, from ours in super-packets that are cut for the proxy."""
    data = os.urandom(BYTES)
    totals = {name: daemon.settled() for name, daemon in cluster.daemons.items()}
    nodes = cluster.nodes
    came = digest_of_stream(nodes[source].pod, nodes[target].pod, nodes[target].pod_ip(), data)
    assert came == hashlib.sha256(data).hexdigest()
    for name in {source, target} - {"b"}:
        assert cluster.daemons[name].settled().supers > totals[name].supers


@pytest.mark.parametrize("size", [1, 1444, 1445, 8000, 60000])
@pytest.mark.parametrize(("source", "target"), WAYS)
def test_datagrams_arrive_unchanged(cluster: Cluster, source: str, target: str, size: int) -> None:
    """Datagrams of every size arrive bit for bit, those beyond the MTU as fragments."""
    payload, to = os.urandom(size), cluster.nodes[target].pod_ip()
    with (
        cluster.nodes[target].pod.socket(socket.AF_INET, socket.SOCK_DGRAM) as there,
        cluster.nodes[source].pod.socket(socket.AF_INET, socket.SOCK_DGRAM) as here,
    ):
        there.bind((to, 7000))
        there.settimeout(5)
        here.sendto(payload, (to, 7000))
        assert there.recv(1 << 16) == payload


def test_each_side_does_what_its_kind_does_with_the_ttl(cluster: Cluster) -> None:
    """From pod a to b two hosts and the proxy take one each from the TTL, to c the two hosts alone."""
    for target, hops in (("b", 4), ("c", 3)):
        to = cluster.nodes[target].pod_ip()
        ping = ("ping", "-n", "-q", "-c", "1", "-W", "2", to)
        assert " 0% packet loss" in cluster.nodes["a"].pod.run(*ping, "-t", str(hops)).stdout
        short = cluster.nodes["a"].pod.run(*ping, "-W", "1", "-t", str(hops - 1), check=False)
        assert "100% packet loss" in short.stdout


def test_what_we_publish_is_flannels(cluster: Cluster) -> None:
    """Our leases stand in the store as flannel's udp writes them, and subnet.env has its MTU."""
    daemon = cluster.daemons["a"]
    for name in ("a", "c"):
        node = cluster.nodes[name]
        found = daemon.find(f"subnets/{node.subnet().replace('/', '-')}")
        assert found is not None
        assert found.value == flannels_lease(node)
        assert "FLANNEL_MTU=1472\n" in cluster.daemons[name].subnet_file.read_text()
    status = daemon.status()
    assert (status["encap"], status["port"], status["mtu"]) == ("flannel-udp", 8285, MTU)
    assert "flannel-udp port 8285" in daemon.say("status")


def test_a_lease_taken_anew_is_flannels(cluster: Cluster) -> None:
    """A lease that we write ourselves, byte for byte, has no BackendType."""
    daemon, node = cluster.daemons["c"], cluster.nodes["c"]
    daemon.delete(node.subnet())
    key = f"subnets/{node.subnet().replace('/', '-')}"
    wait_for(lambda: daemon.find(key) is not None, "our lease is back")
    found = daemon.find(key)
    assert found is not None
    assert found.value == flannels_lease(node)
    for each in cluster.daemons.values():
        each.sync()
    test_hosts_and_pods_ping(cluster, "a", "c")


def test_lease_without_a_type_is_refused_in_another_network(tmp_path: Path) -> None:
    """Where udp is not enabled, a lease that says nothing of itself is no peer, and the others still are."""
    with LeasedRig(tmp_path / "node", name="n") as rig:
        rig.daemon.put("10.244.9.0/24", {"PublicIP": "192.0.2.9", "PublicIPv6": None})
        rig.daemon.sync()
        assert '"BackendType" is missing' in rig.daemon.peers()["10.244.9.0/24"]["refused"]
        rig.unsent(frames.inner4(US.pod(), "10.244.9.5"), "no_peer")


def test_a_live_network_becomes_udp_and_vxlan_again(tmp_path: Path) -> None:
    """With another Type in the store a node changes its sockets, its lease and its MTU, and back."""
    with LeasedRig(tmp_path / "node", name="t") as rig:
        key = f"subnets/{US.subnet.replace('/', '-')}"

        def becomes(network: dict[str, Any], encap: str, mtu: int) -> str:
            rig.daemon.put_config(network)
            wait_for(lambda: rig.daemon.status()["encap"] == encap, f"{encap} in force")
            wait_for(lambda: f"FLANNEL_MTU={mtu}\n" in rig.daemon.subnet_file.read_text(), "another MTU")
            rig.daemon.sync()
            rig.daemon.wait_ready()
            found = rig.daemon.find(key)
            assert found is not None
            return found.value or ""

        bare_lease = frames.Node(US.number, US.ip, encap="udp", has_subnet6=False).lease
        value = becomes(CONFIG, "flannel-udp", MTU)
        assert json.loads(value) == {name: bare_lease[name] for name in ("PublicIP", "PublicIPv6")}
        rig.daemon.put(BARE.subnet, {"PublicIP": BARE.ip, "PublicIPv6": None})
        rig.daemon.sync()
        rig.dut.ip(f"neigh replace {BARE.ip} lladdr {frames.WIRE_MAC} dev under0 nud permanent\n")
        inner = frames.from_peer(BARE)
        rig.accepted(frames.bare(inner), inner)
        assert "is not enabled here" in rig.daemon.peers()[DUAL.subnet]["refused"]
        assert '"BackendType":"vxlan"' in becomes(VXLAN, "vxlan", 1450)
        inner = frames.from_peer(DUAL)
        rig.accepted(frames.vxlan(inner), inner)
        assert "BackendType" in rig.daemon.peers()[BARE.subnet]["refused"]
