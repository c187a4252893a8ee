# SPDX-License-Identifier: Apache-2.0
"""Every mix of pods' and underlay's families, from the store to the pods, with two of our nodes.

    pod a ── host a: overlayd ── router ── host b: overlayd ── pod b
             under0 with the addresses of the underlay's families alone

The store is sqlite, and nothing is told but the network: nodes take their subnets, publish their
addresses and write subnet.env; pods get what that says. Drawn in full at the head of bench/lab.py.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

import pytest

from bench.lab import Lab, Node, wait_for
from dataplane.store.database import Database
from tests.e2e.leased import LeasedDaemon
from tests.e2e.rig import Daemon, hasten, risen
from tests.e2e.test_integrity import digest_of_stream

BYTES = 1 << 20
NETWORK, NETWORK6 = "10.244.0.0/16", "fd00:244::/48"


@dataclass(frozen=True, slots=True)
class Mix:
    """Which families pods and underlay have, and what the pods' MTU must be."""

    pods: tuple[int, ...]
    underlay: tuple[int, ...]
    mtu: int
    encap: str = "vxlan"
    backend_mtu: int = 0  # Backend.MTU
    underlay_b: tuple[int, ...] = ()  # of host b, where it has others
    mtu_b: int = 0

    def __str__(self) -> str:
        sides = (self.pods, self.underlay, self.underlay_b)
        pods, underlay, other = ("".join(f"v{family}" for family in of) for of in sides)
        more = (f"-and-{other}" if other else "") + (f"-mtu{self.backend_mtu}" if self.backend_mtu else "")
        return f"{self.encap}-{pods}-over-{underlay}{more}"

    def underlay_of(self, name: str) -> tuple[int, ...]:
        """Return the families of the underlay of a host."""
        return self.underlay_b if name == "b" and self.underlay_b else self.underlay

    def mtu_of(self, name: str) -> int:
        """Return the MTU of the pods of a host."""
        return self.mtu_b if name == "b" and self.mtu_b else self.mtu

    def publishes(self, name: str) -> set[int]:
        """Return the families of a host's published addresses: those of the pods, or what there is."""
        has = set(self.underlay_of(name))
        return set(self.pods) & has or has

    def network(self) -> dict[str, Any]:
        """Return flannel's network config."""
        config: dict[str, Any] = {"Backend": {"Type": self.encap, "MTU": self.backend_mtu}}
        config |= {"Network": NETWORK} if 4 in self.pods else {"EnableIPv4": False}
        return config | ({"EnableIPv6": True, "IPv6Network": NETWORK6} if 6 in self.pods else {})


MIXES = [
    Mix((4,), (4,), 1450),
    Mix((4,), (6,), 1430),
    Mix((4, 6), (4, 6), 1430),
    Mix((6,), (6,), 1430),
    Mix((6,), (4,), 1450),
    Mix((4, 6), (6,), 1350, backend_mtu=1420),
    Mix((4, 6), (4, 6), 1430, underlay_b=(6,)),
    Mix((4, 6), (4, 6), 1430, underlay_b=(4,), mtu_b=1450),
    Mix((4,), (4, 6), 1480, "ipip"),
    Mix((4,), (4, 6), 1472, "udp"),
]
# What lies between those; only with -m soak.
MORE_MIXES = [
    Mix((4,), (4, 6), 1450),
    Mix((4, 6), (4,), 1450),
    Mix((4, 6), (6,), 1430),
    Mix((6,), (4, 6), 1430),
]


class Member(LeasedDaemon):
    """An overlayd on a store that several share, and with nothing of its own."""

    def write_peers(self, peers: dict[str, Any] | str) -> None:
        """Leave the store to its owner."""

    @property
    def store_path(self) -> Path:
        """The file of the store."""
        return self.directory.parent / "store.db"

    def env(self) -> dict[str, str]:
        """Return the fields of subnet.env."""
        lines = self.subnet_file.read_text(encoding="ascii").splitlines()
        return dict(line.split("=", 1) for line in lines)


class Cluster:
    """The drawing above."""

    def __init__(self, mix: Mix, number: int, directory: Path) -> None:
        """Build it, and the pods as a CNI plugin would."""
        self.mix = mix
        self.members: dict[str, Member] = {}
        self.lab = Lab(f"e2efam{number}{os.getpid() % 100000}", names=("a", "b"), has_pods=False)
        try:
            database = Database(directory / "store.db")
            database.put("config", json.dumps(mix.network()), None, 0)
            database.close()
            for name, node in self.lab.nodes.items():
                self._strip(node)
                hasten(node.host)
                member = self.members[name] = Member(node.host, directory / name, {}, ())
                member.start()
                self._join_pod(node, member.env())
            for member in self.members.values():
                member.sync()
                wait_for(partial(has_peer, member), "the peer", 10.0)
                member.wait_quiet()
        except BaseException:
            self.close()
            raise

    def _strip(self, node: Node) -> None:
        """Take from the underlay the families that it does not have in this mix."""
        if 4 not in self.mix.underlay_of(node.name):
            node.host.ip(f"addr del {node.address}/30 dev under0\n")
        if 6 not in self.mix.underlay_of(node.name):
            node.host.ip(f"addr del {node.address6}/64 dev under0\n")

    def _join_pod(self, node: Node, env: dict[str, str]) -> None:
        """Join pod and host by a bridge, with what subnet.env says and nothing else."""
        mtu = env["FLANNEL_MTU"]
        node.host.ip(
            f"link add cni0 mtu {mtu} type bridge\nlink set cni0 up\n"
            f"link add pod0 mtu {mtu} type veth peer name eth0 netns {node.pod.name}\n"
            "link set pod0 master cni0 up\n"
        )
        node.pod.ip(f"link set lo up\nlink set eth0 mtu {mtu} up\n")
        for family, field in ((4, "FLANNEL_SUBNET"), (6, "FLANNEL_IPV6_SUBNET")):
            assert (field in env) == (family in self.mix.pods)
            if field not in env:
                continue
            gateway = ip_interface(env[field])
            dad = " nodad" if family == 6 else ""
            node.host.ip(f"addr add {gateway} dev cni0{dad}\n")
            node.pod.ip(
                f"addr add {gateway.ip + 1}/{gateway.network.prefixlen} dev eth0{dad}\n"
                f"route add default via {gateway.ip}\n"
            )

    def pod_ip(self, name: str, family: int) -> str:
        """Return the address of a pod."""
        field = "FLANNEL_SUBNET" if family == 4 else "FLANNEL_IPV6_SUBNET"
        return str(ip_interface(self.members[name].env()[field]).ip + 1)

    def ways(self) -> Iterator[tuple[Node, Node, str]]:
        """Yield source, target and address of the target, of all that can be carried."""
        for source, target in (("a", "b"), ("b", "a")):
            for family in self.mix.pods:
                yield self.lab.nodes[source], self.lab.nodes[target], self.pod_ip(target, family)

    def close(self) -> None:
        """Take it down."""
        for member in self.members.values():
            member.close()
        self.lab.close()


PARAMS = [
    pytest.param((number, mix), id=str(mix), marks=[pytest.mark.soak] if mix in MORE_MIXES else [])
    for number, mix in enumerate(MIXES + MORE_MIXES)
]


@pytest.fixture(scope="module", params=PARAMS)
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Yield a cluster of each mix."""
    number, mix = request.param
    built = Cluster(mix, number, tmp_path_factory.mktemp("families"))
    yield built
    built.close()


@pytest.fixture(autouse=True)
def nothing_dropped(cluster: Cluster) -> Iterator[None]:
    """Assert that honest traffic costs not one packet, and that all of them are accounted for."""
    before = {name: member.settled() for name, member in cluster.members.items()}
    yield
    for name, member in cluster.members.items():
        rise = risen(before[name], member.settled())
        rise.pop("multicast", None)  # what a host says of its own accord on a new device
        assert rise == {}


def test_subnet_env_and_leases(cluster: Cluster) -> None:
    """subnet.env has the families of the network and the MTU of the underlay in use; keys are flannel's."""
    mix = cluster.mix
    for name, member in cluster.members.items():
        env = member.env()
        expected = {"FLANNEL_MTU": str(mix.mtu_of(name)), "FLANNEL_IPMASQ": "false"}
        expected |= {"FLANNEL_NETWORK": NETWORK} if 4 in mix.pods else {}
        expected |= {"FLANNEL_IPV6_NETWORK": NETWORK6} if 6 in mix.pods else {}
        subnets = [env.pop(field) for field in ("FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET") if field in env]
        assert env == expected
        key = "&".join(str(ip_interface(subnet).network).replace("/", "-") for subnet in subnets)
        found = member.find(f"subnets/{key}")
        assert found is not None, key
        value = json.loads(found.value or "")
        node = cluster.lab.nodes[name]
        assert value["PublicIP"] == (node.address if 4 in mix.publishes(name) else "0.0.0.0")
        assert value["PublicIPv6"] == (node.address6 if 6 in mix.publishes(name) else None)
        assert value.get("BackendType") == (None if mix.encap == "udp" else mix.encap)
        assert ("BackendData" in value) == (mix.encap == "vxlan" and 4 in mix.pods)
        assert ("BackendV6Data" in value) == (mix.encap == "vxlan" and 6 in mix.pods)


def has_peer(member: Member) -> bool:
    """Tell whether a node knows the other."""
    return len(member.status()["peers"]) == 1


def ping(source: Node, address: str, *args: str) -> str:
    """Send three quick pings; return what is said of them."""
    command = ("ping", "-n", "-q", "-c", "3", "-i", "0.02", "-W", "2", *args, address)
    done = source.pod.run(*command, check=False)
    return done.stdout + done.stderr


def test_case_093_case_094_largest_packet_passes(cluster: Cluster) -> None:
    """Pods ping each other with packets of exactly their MTU; one byte more is too long for the pod."""
    for source, target, address in cluster.ways():
        headers = 48 if ":" in address else 28
        own, other = (cluster.mix.mtu_of(node.name) for node in (source, target))
        assert " 0% packet loss" in ping(source, address, "-M", "do", "-s", str(min(own, other) - headers))
        said = ping(source, address, "-M", "do", "-s", str(own + 1 - headers), "-c", "1", "-W", "0.1")
        assert "100% packet loss" in said


def test_hosts_reach_pods(cluster: Cluster) -> None:
    """A host reaches the pod of the other, source as the kernel chooses it."""
    for source, _, address in cluster.ways():
        done = source.host.run("ping", "-n", "-q", "-c", "2", "-i", "0.02", "-W", "2", address, check=False)
        assert " 0% packet loss" in done.stdout


def test_streams_arrive_unchanged(cluster: Cluster) -> None:
    """TCP streams arrive bit for bit, with super-packets on both sides."""
    data = os.urandom(BYTES)
    for source, target, address in cluster.ways():
        before = {name: member.settled().supers for name, member in cluster.members.items()}
        came = digest_of_stream(source.pod, target.pod, address, data)
        assert came == hashlib.sha256(data).hexdigest()
        assert all(member.settled().supers > before[name] for name, member in cluster.members.items())


@pytest.mark.parametrize("size", [1, 1300, 8000, 60000])
def test_datagrams_arrive_unchanged(cluster: Cluster, size: int) -> None:
    """Datagrams of every size arrive bit for bit, those beyond the MTU as fragments.

    Where the pods of the other host have a smaller MTU, the first one may be what tells the sender so.
    """
    for source, target, address in cluster.ways():
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        payload = os.urandom(size)
        with (
            target.pod.socket(family, socket.SOCK_DGRAM) as there,
            source.pod.socket(family, socket.SOCK_DGRAM) as here,
        ):
            there.bind((address, 7000))
            if cluster.mix.mtu_of(source.name) > cluster.mix.mtu_of(target.name):
                there.settimeout(0.3)
                here.sendto(payload, (address, 7000))
                with contextlib.suppress(TimeoutError):
                    assert there.recv(1 << 16) == payload
            there.settimeout(5)
            here.sendto(payload, (address, 7000))
            assert there.recv(1 << 16) == payload


def test_restart_keeps_the_subnet(cluster: Cluster) -> None:
    """A node that comes back finds its lease in the store, of whatever families it is."""
    member = cluster.members["a"]
    before = member.status()["subnet"]
    member.stop()
    Daemon.start(member)
    assert member.status()["subnet"] == before
    test_hosts_reach_pods(cluster)
