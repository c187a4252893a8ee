# SPDX-License-Identifier: Apache-2.0
"""Cutting super-packets: every segment as the sender would have sent it (oracle: supers.cut)."""

from __future__ import annotations

import pytest

from tests import oracle
from tests.probe import GSO_NONE, GSO_TCP4, GSO_TCP6, GSO_UDP_L4, NEEDS_CSUM, Vnet, split
from tests.supers import ACK, CWR, ECE, FIN, PSH, cut, described, get, layout, partial, put, segment

TCP, UDP = oracle.PROTO_TCP, oracle.PROTO_UDP
DATA = bytes(range(256)) * 255
OPTIONS = bytes((1, 1, 8, 10, *range(8)))

SHAPES = {
    "a burst of 64 KiB": (segment(DATA[:65000]), 1398),
    "IPv6": (segment(DATA[:65000], family=6), 1378),
    "UDP": (segment(DATA[:50000], proto=UDP), 1400),
    "UDP over IPv6": (segment(DATA[:50000], proto=UDP, family=6), 1400),
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


@pytest.mark.parametrize(("packet", "size"), SHAPES.values(), ids=SHAPES.keys())
def test_segments(packet: bytes, size: int) -> None:
    """A super-packet is cut into what the oracle cuts it into, whatever its own checksum field says."""
    expected = cut(packet, size)
    for whole in (partial(packet), packet):
        assert split(whole, described(packet, size)) == ("none", expected)
    assert b"".join(found[layout(found)[2] :] for found in expected) == packet[layout(packet)[2] :]


def test_header_lengths_of_the_kernel_are_not_believed() -> None:
    """hdr_len and csum_start of forwarded packets can be wrong: what counts is the packet."""
    packet = segment(DATA[:3000], options=OPTIONS)
    wrong = described(packet, 1000)._replace(hdr_len=9, csum_start=77)
    assert split(partial(packet), wrong) == ("none", cut(packet, 1000))


def test_udp_checksum_is_never_0() -> None:
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
    "fragment": (segment(DATA[:3000], frag=oracle.IP4_MF), RAW),
    "another protocol": (oracle.ip4(DATA[:3000], oracle.PROTO_ICMP), RAW),
}


@pytest.mark.parametrize(("packet", "vnet"), BAD.values(), ids=BAD.keys())
def test_contradictions(packet: bytes, vnet: Vnet) -> None:
    """A virtio header that contradicts its packet is refused."""
    assert vnet.gso_type != GSO_NONE
    assert split(packet, vnet) == ("vnet_header", [])
