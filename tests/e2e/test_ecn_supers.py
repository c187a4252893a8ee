# SPDX-License-Identifier: Apache-2.0
"""Marks through super-packets and what is joined, both ways: cases 82 and 83, and what must not be joined.

    wire0 (the test as peers) ── runs of VXLAN datagrams ── under0  overlayd  overlay0, pod0 ── the test

Drawn in full at the head of rig.py. test_ecn.py has the rows of single packets.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from bench.lab import wait_for
from tests import oracle
from tests.e2e import supersent
from tests.e2e.frames import DUAL, IPIP, SIX, US, from_peer, inner4, inner6, ipip, vxlan, vxlan6
from tests.e2e.rig import Rig, risen
from tests.e2e.tap import Tap
from tests.e2e.test_ecn import CE, COMBINED, ECT0, ECT1, INNER_DSCP, MARKS, NAMES, OUTER_DSCP
from tests.oracle import PROTO_UDP as UDP_PROTO
from tests.probe import merge
from tests.supers import cut, finish, put, segment
from tests.unit.test_merge_gro import TABLES

COUNT, SIZE = 4, 100
FLOOD = 1000
SOL_UDP, UDP_SEGMENT = 17, 103

# --- to the underlay ----------------------------------------------------------------------------------------

TX: dict[str, Callable[[int], Packet]] = {
    "v4-vxlan4": lambda tos: IP(src=US.pod(), dst=DUAL.pod(), tos=tos),
    "v4-vxlan6": lambda tos: IP(src=US.pod(), dst=SIX.pod(), tos=tos),
    "v6-vxlan6": lambda tos: IPv6(src=US.pod6(), dst=DUAL.pod6(), tc=tos),
    "v4-ipip": lambda tos: IP(src=US.pod(), dst=IPIP.pod(), tos=tos),
}
L4: dict[str, Callable[[], Packet]] = {
    "tso": lambda: TCP(sport=40000, dport=80, flags="A", seq=1, ack=1),
    "uso": lambda: UDP(sport=40000, dport=5201),
}


def marks(frame: bytes) -> tuple[int, int]:
    """Return the TOS of outer and inner header of what left; the inner packet must be right."""
    outer = Ether(frame).payload
    payload = bytes(outer.payload)
    inner = payload if getattr(outer, "proto", 17) == 4 else payload[8 + 8 + 14 :]
    packet = IP(inner) if inner[0] >> 4 == 4 else IPv6(inner)
    source, destination = packet.src, packet.dst
    if inner[0] >> 4 == 4:
        assert oracle.checksum(inner[:20]) == 0
    l4 = inner[20:] if inner[0] >> 4 == 4 else inner[40:]
    assert oracle.is_l4_right(l4, 6 if TCP in packet else 17, source, destination)
    return (outer.tc if outer.version == 6 else outer.tos), (packet.tc if packet.version == 6 else packet.tos)


@pytest.mark.parametrize("mark", MARKS, ids=NAMES.get)
@pytest.mark.parametrize("kind", [pytest.param(kind, id=f"case_082-{kind}") for kind in L4])
def test_every_segment_has_the_mark(rig: Rig, kind: str, mark: int) -> None:
    """Each datagram that a super-packet becomes has its mark outside, and inside what the pod wrote."""
    for way in TX.values():
        before = rig.daemon.settled()
        rig.wire.take()
        packet = way(INNER_DSCP | mark) / L4[kind]() / bytes(COUNT * SIZE)
        supersent.send(rig.pod, rig.to_pod_side(packet), SIZE)
        seen = supersent.take(rig.wire, COUNT)
        after = rig.daemon.settled(tx=before.tx.offered + COUNT)
        assert [marks(frame) for frame in seen] == [(mark, INNER_DSCP | mark)] * COUNT
        assert (after.tx.forwarded, after.supers) == (before.tx.forwarded + COUNT, before.supers + 1)


# --- from the underlay --------------------------------------------------------------------------------------


def flow(family: int, tos: int, first: int = 0) -> list[bytes]:
    """Return datagrams of one flow from a peer's pod; `first` is what the first one is numbered."""
    return [
        segment(bytes([first + n]) * SIZE, family=family, proto=UDP_PROTO, tos=tos, ident=first + n)
        for n in range(COUNT)
    ]


def tunnelled(packet: bytes, tos: int) -> Packet:
    """Return the frame from the peer that carries a packet, over the underlay of the packet's family."""
    return vxlan(packet, DUAL, tos=tos) if packet[0] >> 4 == 4 else vxlan6(packet, DUAL, tc=tos)


def run(packets: list[bytes], tos: int) -> tuple[bytes, int]:
    """Return such frames joined into one message, for supersent.send()."""
    return supersent.joined([tunnelled(packet, tos) for packet in packets])


def marked(packet: bytes, mark: int | None) -> bytes:
    """Return a packet with another congestion mark."""
    assert mark is not None
    if packet[0] >> 4 == 4:
        return finish(put(packet, 1, packet[1] & 0xFC | mark, 1))
    return put(packet, 1, packet[1] & 0xCF | mark << 4, 1)


def datagrams(frame: bytes) -> list[bytes]:
    """Return the datagrams of a packet that was written to the TUN; a longer one is cut as it was."""
    headers = 28 if frame[0] >> 4 == 4 else 48
    return cut(frame, SIZE) if len(frame) > headers + SIZE else [frame]


def delivered(rig: Rig, count: int) -> list[list[bytes]]:
    """Return the datagrams of each packet that was written to the TUN once that many came out."""
    found: list[list[bytes]] = []

    def is_there() -> bool:
        found.extend(datagrams(frame) for frame in rig.overlay.take())
        return sum(map(len, found)) >= count

    wait_for(is_there, f"{count} datagrams")
    return found


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("inner", [pytest.param(mark, id=f"case_082-{NAMES[mark]}") for mark in MARKS])
def test_run_of_one_mark_is_combined_as_one(rig: Rig, family: int, inner: int) -> None:
    """Datagrams that came as one message all get what RFC 6040 says and stay joined, or are all dropped."""
    for outer in MARKS:
        packets = flow(family, INNER_DSCP | inner)
        combined = COMBINED[inner, outer]
        probe = from_peer(DUAL, family)  # by the same socket
        expected = [] if combined is None else [[marked(packet, combined) for packet in packets]]
        before = rig.daemon.settled()
        rig.overlay.take()
        supersent.send(rig.wire, *run(packets, OUTER_DSCP | outer))
        rig.wire.send(tunnelled(bytes(probe), 0))
        seen = rig.overlay.wait(lambda got, last=bytes(probe): got == last, "the good packet")  # type: ignore[misc]
        after = rig.daemon.settled(rx=before.rx.offered + COUNT + 1)
        assert [datagrams(got) for got in seen] == [*expected, [bytes(probe)]]
        assert risen(before, after) == ({} if expected else {"ecn": COUNT})


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(
    ("outers", "groups"),
    [
        pytest.param((ECT0, OUTER_DSCP | ECT0), [8], id="case_082-another-dscp"),
        pytest.param((ECT0, CE, CE, ECT1), [4, 8, 4], id="case_082-other-marks"),
    ],
)
def test_runs_of_one_batch(rig: Rig, family: int, outers: tuple[int, ...], groups: list[int]) -> None:
    """What came in one batch is joined where it got equal marks, and only there; nothing else leaks in."""
    runs = [flow(family, INNER_DSCP | ECT0, number * COUNT) for number in range(len(outers))]
    expected = [
        marked(packet, COMBINED[ECT0, outer & 3])
        for packets, outer in zip(runs, outers, strict=True)
        for packet in packets
    ]
    before = rig.daemon.settled()
    rig.overlay.take()
    with supersent.held(rig):
        for packets, outer in zip(runs, outers, strict=True):
            supersent.send(rig.wire, *run(packets, outer))
    seen = delivered(rig, len(expected))
    after = rig.daemon.settled(rx=before.rx.offered + len(expected))
    assert after.rx.forwarded == before.rx.forwarded + len(expected)
    assert [len(group) for group in seen] == groups
    assert [packet for group in seen for packet in group] == expected


@contextmanager
def joining(rig: Rig) -> Iterator[Tap]:
    """Have the kernel join what arrives within 20 ms; yield a tap that sees it joined."""
    timeout = "/sys/class/net/under0/gro_flush_timeout"
    rig.far.run("ethtool", "-K", "wire0", "tso", "off")  # or a veth sees no need to join
    rig.dut.run("ethtool", "-K", "under0", "gro", "on")
    rig.dut.run("sh", "-c", f"echo 20000000 > {timeout}")
    tap = Tap(rig.dut, "under0")
    try:
        yield tap
    finally:
        tap.close()
        rig.dut.run("sh", "-c", f"echo 0 > {timeout}")
        rig.dut.run("ethtool", "-K", "under0", "gro", "off")
        rig.far.run("ethtool", "-K", "wire0", "tso", "on")


def longest_joined(rig: Rig, tap: Tap, outers: tuple[int, ...], family: int) -> int:
    """Send a flow one by one with these outer marks; return how many the kernel joined at most."""
    packets = flow(family, INNER_DSCP | ECT0)
    frames = [bytes(tunnelled(packet, outer)) for packet, outer in zip(packets, outers, strict=True)]
    expected = [marked(packet, COMBINED[ECT0, o]) for packet, o in zip(packets, outers, strict=True)]
    tap.take()
    rig.overlay.take()
    rig.wire.send(*frames)
    assert [packet for group in delivered(rig, COUNT) for packet in group] == expected
    outer = 14 + (20 if family == 4 else 40) + 8
    return (max(len(frame) for frame in tap.take()) - outer) // (len(frames[0]) - outer)


@pytest.mark.parametrize("family", [4, 6])
def test_case_082_the_kernel_joins_equal_marks_alone(rig: Rig, family: int) -> None:
    """Datagrams of one flow whose outer marks differ reach us apart, and each is combined with its own."""
    with joining(rig) as tap:
        wait_for(lambda: longest_joined(rig, tap, (ECT0,) * 4, family) == COUNT, "the kernel joins equals")
        for outers in ((ECT0, CE, ECT0, ECT1), (ECT1, ECT0, CE, 0)):
            assert longest_joined(rig, tap, outers, family) == 1


def test_case_083_flood_of_marks_that_cannot_be(rig: Rig) -> None:
    """Congestion marks on packets that cannot carry them are dropped and counted, and nothing is logged."""
    forwarder_log = rig.daemon.run_dir / "forwarder.log"
    before = rig.daemon.log(), forwarder_log.read_bytes()
    for family in (4, 6):
        rig.refused([bytes(tunnelled(flow(family, 0)[0], CE))] * FLOOD, "ecn")
    assert (rig.daemon.log(), forwarder_log.read_bytes()) == before


@pytest.mark.parametrize("ttl", [1, 99, 255])
def test_envelopes_ttl_does_not_matter(rig: Rig, ttl: int) -> None:
    """A tunnel packet is taken whatever TTL it has left, and the packet inside keeps its own."""
    for family in (4, 6):
        packet = segment(family=family, proto=UDP_PROTO, ttl=7)
        frame = vxlan(packet, DUAL, ttl=ttl) if family == 4 else vxlan6(packet, DUAL, hlim=ttl)
        rig.accepted(frame, packet)
    packet = bytes(from_peer(IPIP, ttl=7))
    rig.accepted(ipip(packet, IPIP, ttl=ttl), packet)


# --- what must not be joined, and what must be the same again -----------------------------------------------


@pytest.mark.parametrize("table", TABLES)
def test_case_089_gro_end_to_end(rig: Rig, table: str) -> None:
    """Rows of the kernel's GRO selftest, each a batch of its own, are joined as they are without a tunnel."""
    for packets, groups in TABLES[table].values():
        if sum(groups) > 10:
            continue
        before = rig.daemon.settled()
        rig.overlay.take()
        with supersent.held(rig):
            rig.wire.send(*(tunnelled(packet, 0) for packet in packets))
        seen = supersent.take(rig.overlay, len(groups), lambda frame: True)
        after = rig.daemon.settled(rx=before.rx.offered + len(packets))
        seen += rig.overlay.take()
        assert seen == [packet for _, packet in merge(packets)]
        assert after.rx.forwarded == before.rx.forwarded + len(packets)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("sizes", [(1372,) * 10, (100,) * 9 + (40,), tuple(range(100, 200, 10))], ids=str)
def test_ten_datagrams_stay_ten(rig: Rig, family: int, sizes: tuple[int, ...]) -> None:
    """Ten datagrams that came together are ten for a plain socket, with their lengths; and on the way out."""
    ours, theirs = (US.pod(0), DUAL.pod()) if family == 4 else (US.pod6(0), DUAL.pod6())
    with rig.dut.socket(socket.AF_INET if family == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.bind((ours, 5201))
        sock.settimeout(10)
        build = inner4 if family == 4 else inner6
        with supersent.held(rig):
            rig.wire.send(*(tunnelled(bytes(build(theirs, ours, bytes(size))), 0) for size in sizes))
        assert [len(sock.recv(1 << 16)) for _ in sizes] == list(sizes)
        rig.wire.take()
        segment_size = (SOL_UDP, UDP_SEGMENT, struct.pack("@H", sizes[0]))
        sock.sendmsg([bytes(sizes[0] * 9 + 40)], [segment_size], 0, (theirs, 5201))
        lengths = [len(frame) for frame in supersent.take(rig.wire, 10)]
        assert lengths == [lengths[0]] * 9 + [lengths[0] - sizes[0] + 40]
