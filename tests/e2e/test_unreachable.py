# SPDX-License-Identifier: Apache-2.0
"""Peers that cannot be reached: connections to their pods fail at once, and those to others do not notice.

dut namespace                                       far namespace
overlayd run, overlay0 10.244.1.0                   nothing listens but what a test opens
under0 192.0.2.1 ──────────── veth ──────────────── wire0  .2 .3 (VXLAN)  .4 (IPIP)  fd00:192::5

The sender is the host itself, by a real socket: what it is told is what its kernel believes.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.lab import Namespace, wait_for
from tests.e2e import frames
from tests.e2e.frames import DUAL, FOUR, IPIP, PEERS, PORT, SIX, US, Node
from tests.e2e.rig import DEFAULT_FLAGS, ROOT, Daemon

DUT = f"""
link set lo up
link set under0 up
addr add {US.ip}/24 dev under0
addr add {US.ip6}/64 dev under0 nodad
"""
FAR = f"""
link set lo up
link set wire0 up
addr add {DUAL.ip}/24 dev wire0
addr add {FOUR.ip}/24 dev wire0
addr add {IPIP.ip}/24 dev wire0
addr add {SIX.ip6}/64 dev wire0 nodad
"""
OFF = Node(7, "192.0.2.7")  # in a lease, and nowhere else
ANSWER_S = 15  # to believe takes 1 s, a SYN is repeated after 1, 3 and 7 s


class Site:
    """Both namespaces, and overlayd in one of them."""

    def __init__(self, directory: Path) -> None:
        """Build it, and start overlayd."""
        name = f"unreach-{os.getpid()}"
        self.dut, self.far = Namespace(f"{name}-dut"), Namespace(f"{name}-far")
        self.dut.ip(f"link add under0 type veth peer name wire0 netns {self.far.name}")
        self.dut.ip(DUT)
        self.far.ip(FAR)
        self.far.run("sysctl", "-qw", "net.ipv4.icmp_ratelimit=0", "net.ipv6.icmp.ratelimit=0")
        self.daemon = Daemon(
            self.dut, directory, frames.peers_file((*PEERS, OFF)), (*DEFAULT_FLAGS, "--ip-masq=false")
        )

    def close(self) -> None:
        """End overlayd, and remove both."""
        try:
            self.daemon.close()
        finally:
            self.dut.close()
            self.far.close()

    def peer(self, node: Node) -> dict[str, Any]:
        """Return what status says of a peer."""
        return next(peer for peer in self.daemon.status()["peers"] if node.subnet in peer["subnet"])

    def sent_to(self, node: Node) -> int:
        """Return how many packets have been sent to a peer."""
        return int(self.peer(node)["tx_packets"])

    def connect(self, node: Node) -> int:
        """Try to connect to a pod of a node; return the error, EINPROGRESS if there is no answer.

        The kernel waits, since it looks at the state of the connection. poll() does not: an ICMP error stands
        in the socket's error queue, and wakes who polls, before it is the error of the socket; who asks for
        that at once, as Python does where a socket has a timeout, is told of none.
        """
        with self.dut.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.bind((US.pod(0), 0))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", ANSWER_S, 0))
            return sock.connect_ex((node.pod(), 9))

    def carried(self) -> int:
        """Return how many bytes have left by the underlay."""
        (link,) = json.loads(self.dut.run("ip", "-j", "-s", "link", "show", "under0").stdout)
        return int(link["stats64"]["tx"]["bytes"])

    def answers(self, node: Node) -> int:
        """Send a packet to a pod of a node, and return how many ICMP errors come of it."""
        before = self.daemon.settled()
        with self.dut.socket(socket.AF_INET, socket.SOCK_DGRAM) as pod:
            pod.bind((US.pod(0), 0))
            pod.sendto(b"hello", (node.pod(), 5201))
        return self.daemon.settled(tx=before.tx.offered + 1).icmp_sent - before.icmp_sent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Yield the site, shared by the tests of this module."""
    built = Site(tmp_path_factory.mktemp("unreachable") / "node")
    try:
        built.daemon.start()
        yield built
    finally:
        built.close()


UNREACHABLE = {
    "case_139 VXLAN": (DUAL, DUAL.ip, "port unreachable"),
    "IPIP": (IPIP, IPIP.ip, "protocol unreachable"),
    "VXLAN over IPv6": (SIX, SIX.ip6, "port unreachable"),
}


@pytest.mark.parametrize(("node", "router", "says"), UNREACHABLE.values(), ids=UNREACHABLE)
def test_nobody_listens_at_the_peer(site: Site, node: Node, router: str, says: str) -> None:
    """Who connects to a pod there is told, packets are sent all the same, and those to another peer pass."""
    sent = site.sent_to(node)
    with (
        site.far.socket(socket.AF_INET, socket.SOCK_DGRAM) as other,
        site.dut.socket(socket.AF_INET, socket.SOCK_DGRAM) as pod,
    ):
        other.bind((FOUR.ip, PORT))
        other.settimeout(5.0)
        pod.bind((US.pod(0), 0))
        before = site.daemon.settled()
        for number in range(50):  # after each error the next packet to somebody else leaves
            pod.sendto(b"lost", (node.pod(), 5201))
            pod.sendto(number.to_bytes(4, "big"), (FOUR.pod(), 5201))
            assert other.recv(2048)[-4:] == number.to_bytes(4, "big")
        after = site.daemon.settled(tx=before.tx.offered + 100)
        assert after.tx.drops == before.tx.drops
        assert site.connect(node) == errno.EHOSTUNREACH
        said = site.peer(node)["unreachable"]
        assert (said["by"], said["says"]) == (router, says)
        assert site.peer(FOUR)["unreachable"] is None
        assert site.sent_to(node) >= sent + 51
    shown = subprocess.run(
        site.daemon.command("peers"), cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    assert f"unreachable, as {router} said " in shown


def test_a_peer_that_comes_to_life_is_believed(site: Site) -> None:
    """The first good packet from a peer ends what was said of it, and its pods can be talked to."""
    assert site.connect(DUAL) == errno.EHOSTUNREACH
    with site.far.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind((DUAL.ip, PORT))
        datagram = frames.vxlan_payload(frames.from_peer(DUAL, dst=US.pod(0)))
        peer.sendto(datagram, (US.ip, PORT))
        wait_for(lambda: site.peer(DUAL)["unreachable"] is None, "it is not believed any more", 5.0)
        wait_for(lambda: site.answers(DUAL) == 0, "nobody is told any more")
        peer.settimeout(5.0)
        wait_for(lambda: peer.recv(2048)[-5:] == b"hello", "what a pod sent is there")


def test_nobody_is_on_the_link(site: Site) -> None:
    """Where no peer answers ARP, our own kernel says so, and the sender is told."""
    site.dut.run("sysctl", "-qw", "net.ipv4.neigh.under0.retrans_time_ms=50")
    assert site.connect(OFF) == errno.EHOSTUNREACH
    said = site.peer(OFF)["unreachable"]
    assert (said["by"], said["says"]) == (US.ip, "host unreachable")


@pytest.mark.parametrize("node", [DUAL, IPIP], ids=["VXLAN", "IPIP"])
def test_no_routing_loop(site: Site, node: Node) -> None:
    """Where the host routes a peer into the overlay itself, packets do not go round in circles."""
    route = f"route add {node.ip}/32 dev overlay0"
    before, carried = site.daemon.settled(), site.carried()
    site.dut.ip(route)
    try:
        with site.dut.socket(socket.AF_INET, socket.SOCK_DGRAM) as pod:
            pod.bind((US.pod(0), 0))
            for _ in range(20):
                pod.sendto(bytes(1000), (node.pod(), 5201))
        after = site.daemon.settled(tx=before.tx.offered + 20)
    finally:
        site.dut.ip(route.replace("add", "del"))
    assert after.tx.offered < before.tx.offered + 40, "a few more may be the kernel's own"
    assert after.tx.forwarded >= before.tx.forwarded + 20, "they leave by the underlay"
    assert site.carried() - carried < 70_000


def test_this_host_has_no_way(site: Site) -> None:
    """What the kernel refuses to send is counted, and its sender is told at once."""
    before = site.daemon.settled()
    site.dut.ip("link set under0 down")
    assert site.answers(OFF) == 1, "not one more for what is said already"
    assert site.answers(FOUR) == 1
    assert site.connect(FOUR) == errno.ENETUNREACH
    after = site.daemon.settled()
    assert after.tx.drops["unreachable"] > before.tx.drops.get("unreachable", 0)
    assert after.icmp_sent > before.icmp_sent
