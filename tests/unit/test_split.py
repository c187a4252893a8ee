# SPDX-License-Identifier: Apache-2.0
"""Cutting super-packets: every segment as the sender would have sent it (oracle: supers.cut)."""

from __future__ import annotations

import pytest
from scapy.layers.inet import IP
from scapy.layers.inet import TCP as SCAPY_TCP
from scapy.layers.inet import UDP as SCAPY_UDP
from scapy.layers.inet6 import IPv6

from tests import oracle
from tests.probe import GSO_NONE, GSO_TCP4, GSO_TCP6, GSO_UDP_L4, NEEDS_CSUM, Vnet, split
from tests.supers import ACK, CWR, ECE, FIN, PSH, cut, described, get, layout, partial, put, segment

TCP, UDP = oracle.PROTO_TCP, oracle.PROTO_UDP
DATA = bytes(range(256)) * 255
OPTIONS = bytes((1, 1, 8, 10, *range(8)))

TCP_SHAPES = {
    "a burst of 64 KiB": (segment(DATA[:65000]), 1398),
    "IPv6": (segment(DATA[:65000], family=6), 1378),
    "options": (segment(DATA[:9000], options=OPTIONS), 1386),
    "all options": (segment(DATA[:9000], options=bytes([1]) * 40), 1000),
    "a multiple of the size": (segment(DATA[:4000]), 1000),
    "one byte more": (segment(DATA[:4001]), 1000),
    "odd size": (segment(DATA[:4001]), 333),
    "one segment": (segment(DATA[:500]), 500),
    "shorter than one segment": (segment(DATA[:500]), 1400),
    "no payload": (segment(b""), 1400),
    "tiny segments": (segment(DATA[:300]), 1),
    "FIN and PSH": (segment(DATA[:3000], flags=ACK | FIN | PSH), 1000),
    "CWR and ECE": (segment(DATA[:3000], flags=ACK | CWR | ECE | PSH), 1000),
    "ID wraps": (segment(DATA[:3000], ident=0xFFFF), 1000),
    "sequence number wraps": (segment(DATA[:3000], seq=0xFFFFFFFF - 1500), 1000),
    "no DF, TOS, TTL": (segment(DATA[:3000], frag=0, tos=0xBA, ttl=3), 1000),
}
UDP_SHAPES = {
    "as many as fit": (segment(DATA[:50000], proto=UDP), 1400),
    "IPv6": (segment(DATA[:50000], proto=UDP, family=6), 1400),
    "a multiple of the size": (segment(DATA[:4000], proto=UDP), 1000),
    "one byte more": (segment(DATA[:4001], proto=UDP), 1000),
    "odd size over IPv6": (segment(DATA[:4001], proto=UDP, family=6), 333),
    "shorter than one segment": (segment(DATA[:500], proto=UDP), 1400),
    "tiny segments": (segment(DATA[:300], proto=UDP), 1),
    "ID wraps, no DF, TOS, TTL": (
        segment(DATA[:3000], proto=UDP, ident=0xFFFF, frag=0, tos=0xBA, ttl=3),
        999,
    ),
}


def check_segments(packet: bytes, size: int) -> list[bytes]:
    """Cut a super-packet, whatever its own checksum field says, as the oracle does; return its segments."""
    expected = cut(packet, size)
    for whole in (partial(packet), packet):
        assert split(whole, described(packet, size)) == ("none", expected)
    assert b"".join(found[layout(found)[2] :] for found in expected) == packet[layout(packet)[2] :]
    return expected


@pytest.mark.parametrize(("packet", "size"), TCP_SHAPES.values(), ids=TCP_SHAPES.keys())
def test_case_086_tcp_segments(packet: bytes, size: int) -> None:
    """A TCP super-packet is cut into what the oracle cuts it into."""
    check_segments(packet, size)


@pytest.mark.parametrize(("packet", "size"), UDP_SHAPES.values(), ids=UDP_SHAPES.keys())
def test_case_087_udp_segments(packet: bytes, size: int) -> None:
    """A UDP super-packet is cut into datagrams, each with a length and a checksum of its own."""
    check_segments(packet, size)


def decoded(packet: bytes) -> IP | IPv6:
    """Return a packet as scapy reads it, which finds all its lengths and checksums right."""
    found = IP(packet) if packet[0] >> 4 == 4 else IPv6(packet)
    again = found.copy()
    for layer, name in ((IP, "chksum"), (IP, "len"), (IPv6, "plen"), (SCAPY_UDP, "len")):
        if layer in again:
            delattr(again[layer], name)
    del again[SCAPY_TCP if SCAPY_TCP in again else SCAPY_UDP].chksum
    assert bytes(again) == packet
    return found


@pytest.mark.parametrize("family", [4, 6])
def test_case_086_each_field_of_64_kib(family: int) -> None:
    """IDs and sequence numbers count up, FIN and PSH are on the last segment only, CWR on the first only."""
    size, headers = (1398, 40) if family == 4 else (1378, 60)
    length = 65535 - headers
    packet = segment(
        (DATA + DATA)[:length], family=family, flags=ACK | FIN | PSH | CWR | ECE, seq=7, ident=0xFFF0
    )
    segments = [decoded(found) for found in check_segments(packet, size)]
    last = len(segments) - 1
    assert last == (length - 1) // size
    for number, found in enumerate(segments):
        tcp = found[SCAPY_TCP]
        assert tcp.seq == 7 + number * size
        expected = "AE" + "C" * (number == 0) + "FP" * (number == last)
        assert set(str(tcp.flags)) == set(expected)
        assert (tcp.ack, tcp.window, tcp.sport) == (2000, 65535, 40000)
        assert len(tcp.payload) == (size if number < last else length - last * size)
        if family == 4:
            assert (found.id, found.flags, found.ttl) == ((0xFFF0 + number) & 0xFFFF, "DF", 64)


@pytest.mark.parametrize("family", [4, 6])
def test_case_087_each_field_of_64_datagrams(family: int) -> None:
    """IDs count up, and each datagram tells its own length."""
    packet = segment(DATA[: 63 * 1000 + 1], proto=UDP, family=family, ident=0xFFF0)
    segments = [decoded(found) for found in check_segments(packet, 1000)]
    assert [found[SCAPY_UDP].len for found in segments] == [1008] * 63 + [9]
    if family == 4:
        assert [found.id for found in segments] == [(0xFFF0 + number) & 0xFFFF for number in range(64)]


def test_case_088_header_lengths_are_not_believed() -> None:
    """hdr_len and csum_start of forwarded packets can be wrong: what counts is the packet."""
    packet = segment(DATA[:3000], options=OPTIONS)
    wrong = described(packet, 1000)._replace(hdr_len=9, csum_start=77)
    assert split(partial(packet), wrong) == ("none", cut(packet, 1000))


def test_case_087_udp_checksum_is_never_0() -> None:
    """A UDP sum of 0 would mean that there is none: it is sent as 0xffff."""
    packet = segment(bytes(8), proto=UDP)
    at = layout(packet)[1] + 6
    # One word of payload makes the sum anything; try until it would be 0.
    zeros = (put(packet, len(packet) - 2, word) for word in range(0x10000))
    packet = next(found for found in zeros if get(cut(found, 1400)[0], at) == 0xFFFF)
    (found,) = split(partial(packet), described(packet, 1400))[1]
    assert get(found, at) == 0xFFFF


GOOD = segment(DATA[:3000])
GOOD6 = segment(DATA[:3000], family=6)
GOOD_UDP = segment(DATA[:3000], proto=UDP)
RAW = Vnet(NEEDS_CSUM, GSO_TCP4, 40, 1000, 20, 16)
BAD = {
    "no size": (GOOD, RAW._replace(gso_size=0)),
    "checksum not left to us": (GOOD, RAW._replace(flags=0)),
    "TCP6 for IPv4": (GOOD, RAW._replace(gso_type=GSO_TCP6)),
    "TCP4 for IPv6": (GOOD6, RAW),
    "UDP for TCP": (GOOD, RAW._replace(gso_type=GSO_UDP_L4)),
    "TCP for UDP": (GOOD_UDP, RAW),
    "unknown type": (GOOD, RAW._replace(gso_type=3)),
    "TCP header too short": (put(GOOD, 32, 0x40, 1), RAW),
    "TCP header longer than the packet": (put(segment(b""), 32, 0xF0, 1), RAW),
    "headers longer than any that we repeat": (
        oracle.ip6(oracle.extension6(TCP, 136) + oracle.tcp(DATA[:3000]), oracle.PROTO_DSTOPTS),
        RAW._replace(gso_type=GSO_TCP6),
    ),
    "fragment": (segment(DATA[:3000], frag=oracle.IP4_MF), RAW),
    "another protocol": (oracle.ip4(DATA[:3000], oracle.PROTO_ICMP), RAW),
}


@pytest.mark.parametrize(("packet", "vnet"), BAD.values(), ids=BAD.keys())
def test_case_088_contradictions(packet: bytes, vnet: Vnet) -> None:
    """A virtio header that contradicts its packet is refused."""
    assert vnet.gso_type != GSO_NONE
    assert split(packet, vnet) == ("vnet_header", [])
