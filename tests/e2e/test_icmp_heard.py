# SPDX-License-Identifier: Apache-2.0
"""Real ICMP errors of real kernels, and forged ones, at the listener.

dut namespace                                  peer namespace
listener   under0 192.0.2.1, 2001:db8::1 ───── wire0 192.0.2.2, 2001:db8::2   (nothing listens)
           pod0   10.244.1.1 ───────────────── podw0 10.244.1.2               a pod that forges
           192.0.2.9: nobody
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.packet import Packet, Raw

from bench.lab import Namespace, wait_for
from dataplane.icmp import IcmpError, Trouble, Tunnels
from dataplane.icmpsocket import BATCH, PAUSE_S, IcmpListener
from dataplane.model import Peer, Table

US, PEER, NOBODY, US6, PEER6 = "192.0.2.1", "192.0.2.2", "192.0.2.9", "2001:db8::1", "2001:db8::2"
POD = "10.244.1.2"
SPORT, PORT = 49152, 8472
PEERS = Table(
    peers=(Peer(3, (ip_address(PEER), ip_address(PEER6))), Peer(4, (ip_address(NOBODY),))),
)
QUOTED = IP(src=US, dst=PEER, flags="DF") / UDP(sport=SPORT, dport=PORT) / Raw(bytes(30))
DUT = f"""
link set lo up
link set under0 up
link set pod0 up
addr add {US}/24 dev under0
addr add {US6}/64 dev under0 nodad
addr add 10.244.1.1/24 dev pod0
"""
OTHER = f"""
link set lo up
link set wire0 up
link set podw0 up
addr add {PEER}/24 dev wire0
addr add {PEER6}/64 dev wire0 nodad
addr add {POD}/24 dev podw0
"""


class Site:
    """Both namespaces, and what the listener heard."""

    def __init__(self) -> None:
        """Join them."""
        name = f"heard-{os.getpid()}"
        self.dut, self.other = Namespace(f"{name}-dut"), Namespace(f"{name}-peer")
        self.heard: list[tuple[int, IcmpError]] = []
        for near, far in (("under0", "wire0"), ("pod0", "podw0")):
            self.dut.ip(f"link add {near} type veth peer name {far} netns {self.other.name}")
        self.dut.ip(DUT)
        self.other.ip(OTHER)
        for knob in ("neigh.under0.retrans_time_ms=20", "neigh.under0.mcast_solicit=1"):
            self.dut.run("sysctl", "-qw", f"net.ipv4.{knob}")
        self.other.run("sysctl", "-qw", "net.ipv4.icmp_ratelimit=0")
        with self.dut.inside():
            self.under0 = socket.if_nametoindex("under0")

    def close(self) -> None:
        """Remove both."""
        self.dut.close()
        self.other.close()

    def tunnels(self) -> Tunnels:
        """Return what the tunnel packets of the dut look like."""
        addresses = frozenset({ip_address(US), ip_address(US6)})
        return Tunnels(self.under0, addresses, frozenset({SPORT}), frozenset({PORT}), has_ipip=True)

    def listen(self, act: Callable[[], None], is_done: Callable[[], bool]) -> None:
        """Do something while the listener hears, until it is done."""

        async def hear() -> None:
            listener = IcmpListener(lambda peer, error: self.heard.append((peer, error)))
            with self.dut.inside():
                listener.heed(self.tunnels(), PEERS)
            try:
                await asyncio.to_thread(act)
                await asyncio.to_thread(wait_for, is_done, "all that is due is heard")
            finally:
                listener.close()

        self.heard.clear()
        asyncio.run(hear())

    def send(self, to: str, *, is_ipip: bool = False) -> None:
        """Send a tunnel packet of the dut."""
        family = socket.AF_INET6 if ":" in to else socket.AF_INET
        kind, proto = (socket.SOCK_RAW, 4) if is_ipip else (socket.SOCK_DGRAM, 17)
        with self.dut.socket(family, kind, proto) as sock:
            sock.bind((US6 if ":" in to else US, 0 if is_ipip else SPORT))
            sock.sendto(bytes(IP(src="10.244.1.2", dst="10.244.2.2") / UDP() / Raw(bytes(30))), (to, PORT))

    def forge(self, *packets: Packet, times: int = 1) -> None:
        """Send packets with their IP headers from the peer's namespace."""
        with self.other.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
            for packet in packets:
                data, to = bytes(packet), (packet[IP].dst, 0)
                for _ in range(times):
                    sock.sendto(data, to)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """Yield the two namespaces."""
    built = Site()
    try:
        yield built
    finally:
        built.close()


def forged(code: int = 1, quoted: Packet = QUOTED, source: str = PEER, to: str = US) -> Packet:
    """Return a forged ICMP unreachable."""
    return IP(src=source, dst=to) / ICMP(type=3, code=code) / Raw(bytes(quoted))


@pytest.mark.parametrize(
    ("to", "is_ipip", "trouble", "router"),
    [
        pytest.param(PEER, False, Trouble.PORT_UNREACHABLE, PEER, id="case_139 port"),
        pytest.param(PEER, True, Trouble.PROTOCOL_UNREACHABLE, PEER, id="protocol"),
        pytest.param(PEER6, False, Trouble.PORT_UNREACHABLE, PEER6, id="IPv6 port"),
        pytest.param(NOBODY, False, Trouble.HOST_UNREACHABLE, US, id="nobody answers ARP"),
    ],
)
def test_kernels_are_heard(site: Site, to: str, is_ipip: bool, trouble: Trouble, router: str) -> None:
    """What real kernels say of our packets is heard, our own kernel included, with the peer it is about."""
    site.listen(lambda: site.send(to, is_ipip=is_ipip), lambda: bool(site.heard))
    (peer, error), *_ = site.heard
    assert (error.trouble, str(error.router), str(error.peer)) == (trouble, router, to)
    assert peer == (4 if to == NOBODY else 3)


def test_what_is_not_heard(site: Site) -> None:
    """Errors by way of a pod, about packets of others, and other ICMP are not heard; the next good one is."""
    marker = forged(code=0)
    bad = [
        forged(source=POD, to="10.244.1.1"),
        forged(quoted=IP(src=US, dst="192.0.2.77") / UDP(sport=SPORT, dport=PORT) / Raw(bytes(9))),
        forged(quoted=IP(src="192.0.2.8", dst=PEER) / UDP(sport=SPORT, dport=PORT) / Raw(bytes(9))),
        forged(quoted=IP(src=US, dst=PEER) / UDP(sport=SPORT, dport=53) / Raw(bytes(9))),
        forged(quoted=IP(src=US, dst=PEER) / UDP(sport=SPORT + 1, dport=PORT) / Raw(bytes(9))),
        IP(src=PEER, dst=US) / ICMP(type=8) / Raw(bytes(QUOTED)),
        IP(src=PEER, dst=US) / ICMP(type=5, code=1) / Raw(bytes(QUOTED)),
        IP(src=PEER, dst=US) / ICMP(type=3, code=1, chksum=7) / Raw(bytes(QUOTED)),
    ]
    site.listen(lambda: site.forge(*bad, marker), lambda: bool(site.heard))
    assert [error.trouble for _, error in site.heard] == [Trouble.NET_UNREACHABLE]


def test_case_141_flood_of_forged_errors_costs_little(site: Site) -> None:
    """Of a flood no more is read than so many a second, and afterwards what is true is heard again."""
    started_s, sent = time.monotonic(), 0

    def flood() -> None:
        nonlocal sent
        while time.monotonic() < started_s + 1:
            site.forge(forged(), times=1000)
            sent += 1000

    def is_over() -> bool:
        site.forge(forged(code=0))
        return site.heard[-1][1].trouble is Trouble.NET_UNREACHABLE

    site.listen(flood, is_over)
    steps = (time.monotonic() - started_s) / PAUSE_S + 1
    assert BATCH <= len(site.heard) <= BATCH * steps < sent
