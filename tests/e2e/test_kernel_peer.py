# SPDX-License-Identifier: Apache-2.0
"""A plain kernel VXLAN endpoint, programmed as flannel programs it, talks with pods behind overlayd.

    pod a 10.244.1.2 ─ host a: overlayd             host b: flannel.1, flannel-v6.1 ─ pod b 10.244.2.2
          fd00:244:0:1::2     192.0.2.2 ── router ── 192.0.2.6                              fd00:244:0:2::2

The veths keep their offloads (profile veth): the kernel sends datagrams of up to 64 KiB with partial inner
checksums. The wire profile turns them off. Drawn in full at the head of bench/lab.py.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.lab import Kernel, Namespace, Node
from tests.e2e.rig import Daemon, hasten, risen
from tests.e2e.staged import Staged

PORT = 5201
MEBIBYTE = 1 << 20


def mac6(node: Node) -> str:
    """Return the VTEP MAC of a node for inner IPv6."""
    return f"02:00:00:00:06:{node.index:02x}"


def lease(node: Node) -> dict[str, Any]:
    """Return the dual-stack lease of a node."""
    data = {"VNI": 1, "VtepMAC": mac6(node)}
    return {**node.lease(), "PublicIPv6": node.address6, "BackendV6Data": data}


def peers_file(nodes: list[Node]) -> dict[str, Any]:
    """Return a dual-stack peers file."""
    networks = {"Network": "10.244.0.0/16", "EnableIPv6": True, "IPv6Network": "fd00:244::/48"}
    leases = {f"{node.subnet()}&fd00:244:0:{node.index}::/64": lease(node) for node in nodes}
    return {"network": {**networks, "Backend": {"Type": "vxlan"}}, "leases": leases}


def program_kernel6(node: Node, peer: Node) -> None:
    """Make a node a kernel VXLAN endpoint for IPv6 over IPv6 too, as flannel does."""
    dev, overlay = "flannel-v6.1", f"fd00:244:0:{peer.index}::"
    node.host.ip(
        f"link add {dev} address {mac6(node)} mtu 1430 type vxlan id 1 dev under0 local {node.address6} "
        f"dstport 8472 nolearning\naddr add fd00:244:0:{node.index}::/128 dev {dev} nodad\n"
        f"link set {dev} up\n"
        f"neigh replace {overlay} lladdr {mac6(peer)} dev {dev} nud permanent\n"
        f"route replace {overlay}/64 via {overlay} dev {dev} onlink\n"
    )
    entry = ["fdb", "replace", mac6(peer), "dev", dev, "dst", peer.address6, "self", "permanent"]
    node.host.run("bridge", *entry)


class Pair(Staged):
    """The drawing above."""

    def __init__(self, name: str, directory: Path, profile: str, *flags: str) -> None:
        """Build it and start overlayd on host a."""
        super().__init__(name)
        self.ours, self.kernels = self.a, self.b
        self.lab.set_profile(profile)
        hasten(self.ours.host)
        for node in (self.ours, self.kernels):
            node.set_pod_mtu(1430)
        self.kernels.program_kernel([self.ours], Kernel())
        program_kernel6(self.kernels, self.ours)
        addresses = ("--public-ip", self.ours.address, "--public-ipv6", self.ours.address6)
        peers = peers_file([self.ours, self.kernels])
        self.daemon = Daemon(self.ours.host, directory / "node", peers, (*addresses, *flags))
        try:
            self.daemon.start()
            self.daemon.wait_quiet()
        except BaseException:
            self.lab.close()
            raise

    def pod(self, node: Node, family: int) -> str:
        """Return the address of the pod behind a node."""
        return node.pod_ip6 if family == 6 else node.pod_ip()

    def close(self) -> None:
        """Check conservation and take it down."""
        try:
            self.daemon.settled()
        finally:
            super().close()


@pytest.fixture(scope="module", params=["veth", "wire"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Yield the pair, once per underlay profile."""
    with Pair(request.param, tmp_path_factory.mktemp("pair"), request.param) as built:
        yield built


@pytest.fixture(autouse=True)
def nothing_dropped(pair: Pair) -> Iterator[None]:
    """Assert that honest traffic with a kernel peer costs not one packet."""
    before = pair.daemon.settled()
    yield
    assert risen(before, pair.daemon.settled()) == {}


def ways(pair: Pair, is_from_kernel: bool) -> tuple[Node, Node]:
    """Return sending and receiving node."""
    return (pair.kernels, pair.ours) if is_from_kernel else (pair.ours, pair.kernels)


BOTH_WAYS = pytest.mark.parametrize("is_from_kernel", [True, False], ids=["from-kernel", "to-kernel"])
FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["v4", "v6"])


# --- ping -------------------------------------------------------------------------------------------


def ping(namespace: Namespace, address: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Send three quick pings; every one must come back."""
    result = namespace.run(
        "ping", "-n", "-q", "-c", "3", "-i", "0.02", "-W", "2", *args, address, check=False
    )
    assert " 0% packet loss" in result.stdout, result.stdout + result.stderr
    return result


@FAMILIES
@BOTH_WAYS
def test_pods_ping(pair: Pair, is_from_kernel: bool, family: int) -> None:
    """Pods behind either host ping each other."""
    source, target = ways(pair, is_from_kernel)
    ping(source.pod, pair.pod(target, family))


@FAMILIES
@BOTH_WAYS
def test_host_pings_pod_from_its_overlay_address(pair: Pair, is_from_kernel: bool, family: int) -> None:
    """A host pings the other's pod, source as the kernel chooses it: the first address of its subnet."""
    source, target = ways(pair, is_from_kernel)
    ping(source.host, pair.pod(target, family))


@FAMILIES
@BOTH_WAYS
def test_host_pings_pod_from_its_node_address(pair: Pair, is_from_kernel: bool, family: int) -> None:
    """A host pings the other's pod from its underlay address, which is in no subnet."""
    source, target = ways(pair, is_from_kernel)
    ping(source.host, pair.pod(target, family), "-I", source.address6 if family == 6 else source.address)


@FAMILIES
@BOTH_WAYS
def test_pod_pings_overlay_address(pair: Pair, is_from_kernel: bool, family: int) -> None:
    """A pod pings the first address of the other host's subnet."""
    source, target = ways(pair, is_from_kernel)
    network = f"fd00:244:0:{target.index}::" if family == 6 else f"10.244.{target.index}.0"
    ping(source.pod, network)


@FAMILIES
def test_largest_packet_passes(pair: Pair, family: int) -> None:
    """A packet of exactly the pods' MTU passes unfragmented, and comes back."""
    headers = 48 if family == 6 else 28
    mtu = int(pair.daemon.status()["mtu"])
    ping(pair.ours.pod, pair.pod(pair.kernels, family), "-M", "do", "-s", str(mtu - headers))


# --- TCP --------------------------------------------------------------------------------------------


def transfer(source: Namespace, target: Namespace, address: str, data: bytes) -> tuple[str, float]:
    """Send data by TCP; return the digest of what arrived and the seconds it took."""
    family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
    digest = hashlib.sha256()
    with target.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, PORT))
        listener.listen()
        listener.settimeout(20)

        def receive() -> None:
            with listener.accept()[0] as connection:
                connection.settimeout(20)
                while chunk := connection.recv(MEBIBYTE):
                    digest.update(chunk)

        receiver = threading.Thread(target=receive)
        receiver.start()
        start = time.monotonic()
        with source.socket(family, socket.SOCK_STREAM) as sender:
            sender.settimeout(20)
            sender.connect((address, PORT))
            sender.sendall(data)
        receiver.join(20)
        return digest.hexdigest(), time.monotonic() - start


@pytest.mark.alone
@FAMILIES
@BOTH_WAYS
def test_tcp_arrives_whole_and_fast(pair: Pair, is_from_kernel: bool, family: int) -> None:
    """32 MiB arrive bit for bit, at more than 200 Mbit/s: mishandled super-datagrams crawl at 0.25."""
    source, target = ways(pair, is_from_kernel)
    data = os.urandom(32 * MEBIBYTE)
    digest, seconds = transfer(source.pod, target.pod, pair.pod(target, family), data)
    assert digest == hashlib.sha256(data).hexdigest()
    assert len(data) * 8 / seconds > 200e6


def test_super_datagrams_are_counted_as_their_segments(pair: Pair, request: pytest.FixtureRequest) -> None:
    """Over veth the kernel's super-datagrams are recognised; each counts as the packets it stands for."""
    before = pair.daemon.settled()
    data = os.urandom(4 * MEBIBYTE)
    transfer(pair.kernels.pod, pair.ours.pod, pair.ours.pod_ip(), data)
    after = pair.daemon.settled()
    packets, seen_bytes = after.rx.offered - before.rx.offered, after.rx.bytes - before.rx.bytes
    assert after.rx.forwarded - before.rx.forwarded == packets
    assert seen_bytes > len(data)
    if request.node.callspec.params["pair"] == "veth":
        assert after.supers > before.supers
        # the kernel's segments have 1450 bytes at most, so there are at least this many
        assert packets >= len(data) / 1450
    else:
        assert after.supers == before.supers


# --- UDP --------------------------------------------------------------------------------------------


@FAMILIES
@BOTH_WAYS
def test_udp_of_all_sizes(pair: Pair, is_from_kernel: bool, family: int) -> None:
    """Datagrams of all sizes arrive unchanged; those above the MTU in fragments of the inner packet."""
    source, target = ways(pair, is_from_kernel)
    kind = socket.AF_INET6 if family == 6 else socket.AF_INET
    payloads = [
        os.urandom(size) for size in (0, 1, 2, 17, 18, 511, 1371, 1372, 1382, 1383, 1402, 1403, 4000, 32000)
    ]
    with (
        target.pod.socket(kind, socket.SOCK_DGRAM) as receiver,
        source.pod.socket(kind, socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind((pair.pod(target, family), PORT))
        receiver.settimeout(5)
        for payload in payloads:
            sender.sendto(payload, (pair.pod(target, family), PORT))
            assert receiver.recv(65535) == payload


@pytest.mark.parametrize("size", [1300, 1390], ids="case_022-kernel-{}".format)
def test_kernels_outer_fragments_are_reassembled(pair: Pair, size: int) -> None:
    """A kernel peer fragments its tunnel packets where its path is smaller: they arrive whole."""
    payload = os.urandom(size)
    before = pair.daemon.kernel("Ip.ReasmOKs")
    pair.kernels.host.ip(
        f"route add {pair.ours.address}/32 via {pair.kernels.gateway} dev under0 mtu lock 1000\n"
    )
    try:
        with (
            pair.ours.pod.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
            pair.kernels.pod.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        ):
            receiver.bind((pair.ours.pod_ip(), PORT))
            receiver.settimeout(5)
            sender.sendto(payload, (pair.ours.pod_ip(), PORT))
            assert receiver.recv(65535) == payload
    finally:
        pair.kernels.host.ip(f"route del {pair.ours.address}/32\n")
    assert pair.daemon.kernel("Ip.ReasmOKs") > before
