# SPDX-License-Identifier: Apache-2.0
"""Nodes of different kinds in one cluster on a real etcd: drawn at cluster.py."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import permutations

import pytest

from bench.lab import wait_for
from tests.e2e.cluster import NETWORK, SEATS, START_S, Cluster, settled
from tests.e2e.flannel_node import PREFIX
from tests.e2e.rig import risen
from tests.e2e.stream import Stream

PAIRS = list(permutations(SEATS, 2))
FAMILIES = (4, 6)
LARGE = (1, 1000, 1372, 20000)  # bytes of a ping: the largest that crosses in one piece, and one in fragments
UDP_BYTES = 1200
NETWORKS = {
    "encapsulated": NETWORK,
    "direct": {**NETWORK, "Backend": {**NETWORK["Backend"], "DirectRouting": True}},
}
NEW_OCTET, NEW_MAC_END = 140, 0xEE
STALL_S = 2.0
OURS: dict[str, tuple[str, ...]] = {"a": (), "b": (), "c": ("--datapath", "kernel")}


@pytest.fixture(scope="module", params=list(NETWORKS))
def cluster(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Yield the cluster, in which everybody reaches everybody; with DirectRouting, neighbours by host-gw."""
    with settled(tmp_path_factory.mktemp("cluster"), NETWORKS[request.param], OURS) as built:
        yield built


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("sender", "receiver"), PAIRS, ids=lambda name: name)
def test_matrix(cluster: Cluster, sender: str, receiver: str, family: int) -> None:
    """Pings of all sizes, UDP and TCP cross between every two pods, in both families; nothing is dropped."""
    near, far = cluster.hosts[sender], cluster.hosts[receiver]
    before = cluster.totals()
    for size in LARGE:
        assert cluster.can_ping(near, far, family, size), size
    kind = socket.AF_INET6 if family == 6 else socket.AF_INET
    with (
        far.pod.socket(kind, socket.SOCK_DGRAM) as receiving,
        near.pod.socket(kind, socket.SOCK_DGRAM) as sending,
    ):
        receiving.bind((far.pod_of(family), 0))
        receiving.settimeout(START_S)
        sending.sendto(bytes(UDP_BYTES), receiving.getsockname())
        data, (source, *_) = receiving.recvfrom(65536)
        assert (len(data), source) == (UDP_BYTES, near.pod_of(family))
    with Stream(near.pod, far.pod, far.pod_of(family)) as stream:
        assert stream.longest_s() < START_S
    after = cluster.totals()
    assert {name: risen(was, after[name]) for name, was in before.items()} == {name: {} for name in before}


def test_each_writes_its_own_key_alone(cluster: Cluster) -> None:
    """What etcd has kept of all that was written shows one writer a key, in flannel's own words."""
    found = cluster.etcdctl("get", "--prefix", f"{PREFIX}/subnets", "-w", "json")
    keys = json.loads(found)["kvs"]
    assert len(keys) == len(SEATS)
    assert [key["version"] for key in keys] == [1] * len(SEATS)
    assert all(int(key["lease"]) != 0 for key in keys)


@pytest.mark.alone
def test_datapath_changes_live(cluster: Cluster) -> None:
    """A node changes to the kernel's devices and back, and the connections of its pod live through it."""
    node, near = cluster.daemons["a"], cluster.hosts["a"]
    flags = list(node.flags)
    far = [cluster.hosts[name] for name in ("b", "c", "d", "e")]
    with ExitStack() as stack:
        streams = [stack.enter_context(Stream(near.pod, host.pod, host.pod_of(4))) for host in far]
        for datapath in ("kernel", "userspace"):
            node.restart(*flags, *(("--datapath", "kernel") if datapath == "kernel" else ()))
            assert node.status()["datapath"] == datapath
            assert max(stream.longest_s() for stream in streams) < STALL_S
    cluster.settle()


def test_node_leaves_and_comes_back(cluster: Cluster) -> None:
    """A node that leaves is forgotten; with another address and another MAC it is found again by all."""
    leaver = cluster.flannels["d"]
    subnet = leaver.sides[0].subnet

    def found(name: str) -> list[str]:
        peers = cluster.daemons[name].status()["peers"]
        return [peer["public_ip"] for peer in peers if subnet in peer["subnet"]]

    leaver.leave()
    for name in cluster.daemons:
        wait_for(lambda n=name: not found(n), f"{name} forgets d", START_S)  # type: ignore[misc]
    moved = cluster.move_flannel("d", NEW_OCTET, NEW_MAC_END)
    for name in cluster.daemons:
        wait_for(
            lambda n=name: found(n) == [moved.sides[0].ip],  # type: ignore[misc]
            f"{name} finds d at its new address",
            START_S,
        )
    cluster.settle()
