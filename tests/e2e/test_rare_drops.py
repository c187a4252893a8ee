# SPDX-License-Identifier: Apache-2.0
"""The reasons that no kernel and no honest configuration gives: each is counted all the same.

    the test ── socketpair, in place of the TUN ── the engine, in this process ── UDP sockets on lo

The other reasons are met from outside, by the other files of this directory.
"""

from __future__ import annotations

import mmap
import os
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network

import pytest

from bench.lab import wait_for
from dataplane import native
from dataplane.engine import Engine
from dataplane.model import Encap, MacAddress, Peer, SubnetEntry, Table
from dataplane.native import ForwarderConfig
from dataplane.slots import SLOTS, Fd
from tests.e2e.frames import inner4, vxlan_payload
from tests.e2e.rig import conserves

OURS, PEER = IPv4Address("127.0.0.1"), IPv4Address("127.0.0.2")
OWN, REMOTE = IPv4Network("10.244.1.0/24"), IPv4Network("10.244.2.0/24")
PEERS_MAC = MacAddress(bytes.fromhex("024f00000402"))
OURS_MAC = MacAddress(bytes.fromhex("024f00000401"))
LO = 1  # its index in every network namespace
BUFFER_BYTES = 1 << 16

# A table with one peer, whose second subnet holds its own underlay address, and whose third is out of reach.
TABLE = Table(
    peers=(Peer(0, (PEER,)),),
    subnets=(
        SubnetEntry(REMOTE, 0, Encap.VXLAN, PEER, PEERS_MAC),
        SubnetEntry(IPv4Network("127.0.0.0/24"), 0, Encap.VXLAN, PEER, PEERS_MAC),
        SubnetEntry(IPv4Network("10.244.3.0/24"), 0, Encap.IPIP, PEER, None),
    ),
    own=(OWN,),
    sources=(OWN,),
)


class Bench:
    """An engine between two ends of socketpairs and lo, and all descriptors it needs."""

    def __init__(self, vnet_hdr_len: int = 0) -> None:
        """Open everything; the engine is not there yet, so that a test can put something else in."""
        self.tun, tun = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sender.bind((str(PEER), 0))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind(("0.0.0.0", 0))
            self.port = probe.getsockname()[1]
        tun.setblocking(False)
        self.config = ForwarderConfig(
            vni=1,
            vxlan_port=self.port,
            underlay_ifindex=LO,
            tun_mtu=1450,
            vnet_hdr_len=vnet_hdr_len,
            underlay4=OURS,
            vtep_mac4=OURS_MAC,
            vtep_mac6=OURS_MAC,
            encaps=frozenset({Encap.VXLAN}),
        )
        self.fds: dict[int, int] = {
            Fd.TUN: tun.detach(),
            Fd.COUNTERS: native.counters_create(max_peers=1),
            Fd.FIB: native.fib_create(TABLE, 1),
            Fd.UDP4: native.underlay_open(Fd.UDP4, self.config, "lo", BUFFER_BYTES)[0],
            Fd.UDP4_TX: native.underlay_open(Fd.UDP4_TX, self.config, "lo", BUFFER_BYTES)[0],
        }
        self.counters = native.Counters(self.fds[Fd.COUNTERS])
        self.engine: Engine | None = None

    def put(self, role: Fd, fd: int) -> None:
        """Put another descriptor in the place of one."""
        os.close(self.fds[role])
        self.fds[role] = fd

    def start(self) -> None:
        """Let the engine run."""
        self.engine = Engine(self.config, self.fds)
        self.engine.start()

    def send_tunnel(self) -> None:
        """Send a good tunnel packet from the peer."""
        inner = inner4(str(REMOTE[5]), str(OWN[5]))
        eth = {"src": str(PEERS_MAC), "dst": str(OURS_MAC)}
        self.sender.sendto(vxlan_payload(inner, eth=eth), (str(OURS), self.port))

    def expect(self, way: str, reason: str, forwarded: int = 0) -> None:
        """Wait until something was dropped; it must be for this reason only."""
        wait_for(lambda: self._drops(way) and conserves(self.counters.totals()), f"a drop of {way}")
        assert set(self._drops(way)) == {reason}
        assert getattr(self.counters.totals(), way).forwarded >= forwarded

    def _drops(self, way: str) -> dict[str, int]:
        drops: dict[str, int] = getattr(self.counters.totals(), way).drops
        return drops

    def close(self) -> None:
        """Stop the engine and close everything."""
        if self.engine is not None:
            self.engine.close()
        self.counters.close()
        for fd in self.fds.values():
            os.close(fd)
        self.tun.close()
        self.sender.close()


@pytest.fixture
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """Yield a bench; a parameter is the length of the virtio header."""
    built = Bench(getattr(request, "param", 0))
    yield built
    built.close()


def test_bench_carries_good_packets_both_ways(bench: Bench) -> None:
    """Before anything is broken, packets pass."""
    bench.start()
    bench.send_tunnel()
    assert bench.tun.recv(2048)[:1] == b"\x45"
    bench.tun.send(bytes(inner4(str(OWN[5]), str(REMOTE[5]))))
    wait_for(lambda: bench.counters.totals().tx.forwarded == 1, "the packet leaves")
    totals = bench.counters.totals()
    assert (totals.rx.forwarded, totals.tx.drops) == (1, {})  # what left came back to lo, for another address


@pytest.mark.parametrize("bench", [12], indirect=True)
def test_vnet_header_that_contradicts_its_packet_is_counted(bench: Bench) -> None:
    """A virtio header that asks for what was not agreed on: vnet_header."""
    bench.start()
    header = struct.pack("=BBHHHHH", 0, 1, 40, 1000, 0, 0, 0)  # GSO_TCPV4
    bench.tun.send(header + bytes(inner4(str(OWN[5]), str(REMOTE[5]))))
    bench.expect("tx", "vnet_header")


def test_destination_that_is_its_own_vtep_is_counted(bench: Bench) -> None:
    """A packet to the very address it would be tunnelled to: loop."""
    bench.start()
    bench.tun.send(bytes(inner4(str(OWN[5]), str(PEER))))
    bench.expect("tx", "loop")


def test_subnet_of_another_encapsulation_is_counted(bench: Bench) -> None:
    """A packet for a subnet that only an encapsulation we do not run reaches: no_encap."""
    bench.start()
    bench.tun.send(bytes(inner4(str(OWN[5]), "10.244.3.5")))
    bench.expect("tx", "no_encap")


def test_send_that_fails_for_an_unknown_reason_is_counted(bench: Bench) -> None:
    """A send that fails in a way nobody expects: send_error."""
    bench.put(Fd.UDP4_TX, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).detach())
    bench.start()
    bench.tun.send(bytes(inner4(str(OWN[5]), str(REMOTE[5]))))
    bench.expect("tx", "send_error")


def test_message_larger_than_the_buffer_is_counted(bench: Bench) -> None:
    """A message that did not fit the receive buffer: truncated."""
    far, near = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    bench.put(Fd.UDP4, near.detach())
    bench.start()
    far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    far.send(bytes(70_000))
    bench.expect("rx", "truncated")
    far.close()


def test_tun_without_room_is_counted(bench: Bench) -> None:
    """Packets that the TUN has no room for: tun_full."""
    bench.start()
    for _ in range(3000):
        bench.send_tunnel()
        if "tun_full" in bench.counters.totals().rx.drops:
            break
    bench.expect("rx", "tun_full", forwarded=1)


def test_write_that_fails_for_an_unknown_reason_is_counted(bench: Bench) -> None:
    """A write to the TUN that fails in a way nobody expects: tun_error."""
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    bench.put(Fd.TUN, reading)
    bench.start()
    bench.send_tunnel()
    bench.expect("rx", "tun_error")
    os.close(writing)


def test_packets_that_a_dead_forwarder_took_are_counted(bench: Bench) -> None:
    """What a forwarder took in and never accounted for, its successor books: restart."""
    # struct dp_counters_header, then seven words and a word per slot
    offered_at = 128 + 8 * (7 + len(SLOTS))
    with mmap.mmap(bench.fds[Fd.COUNTERS], 0) as words:
        words[offered_at : offered_at + 16] = struct.pack("=QQ", 3, 4)
    totals = bench.counters.totals()
    assert (totals.tx.offered, totals.rx.offered) == (3, 4)
    bench.start()
    bench.expect("tx", "restart")
    totals = bench.counters.totals()
    assert (totals.tx.drops, totals.rx.drops) == ({"restart": 3}, {"restart": 4})
