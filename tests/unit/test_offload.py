# SPDX-License-Identifier: Apache-2.0
"""Work that one side leaves to the other: checksums from the TUN, and what kernel peers nearby send."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests import inner, oracle
from tests.inner import DATA, GOOD
from tests.oracle import (
    DST4,
    DST6,
    IP4_MF,
    PROTO_DSTOPTS,
    PROTO_FRAGMENT,
    PROTO_ICMP,
    PROTO_ICMP6,
    PROTO_TCP,
    PROTO_UDP,
    SRC4,
    SRC6,
    extension6,
    fragment6,
    ip4,
    ip6,
    l4_check,
    l4_partial,
    tcp,
    udp,
    with_check,
)
from tests.probe import (
    GSO_ECN,
    GSO_NONE,
    GSO_TCP4,
    GSO_TCP6,
    GSO_UDP_L4,
    NEEDS_CSUM,
    Vnet,
    complete,
    describe,
    flow_of,
)

MTU = 1450
DATA_VALID = 2
CHECK_OFF = {PROTO_TCP: 16, PROTO_UDP: 6}
SEGMENT: dict[int, Callable[[bytes], bytes]] = {PROTO_TCP: tcp, PROTO_UDP: udp}


@dataclass(frozen=True, slots=True)
class Way:
    """How an L4 message is carried: its protocol, its addresses and the IP header in front."""

    proto: int
    src: str
    dst: str
    wrap: Callable[[bytes], bytes]

    def packet(self, segment: bytes, check: int) -> bytes:
        """Return the packet with this in its checksum field."""
        return self.wrap(with_check(segment, self.proto, check))

    def right(self, segment: bytes) -> bytes:
        """Return the packet with a right checksum."""
        return self.packet(segment, l4_check(segment, self.proto, self.src, self.dst))

    def partial(self, segment: bytes) -> bytes:
        """Return the packet with the checksum left to hardware."""
        return self.packet(segment, l4_partial(segment, self.proto, self.src, self.dst))

    def vnet(self, packet: bytes) -> Vnet:
        """Return the virtio header that a kernel writes in front of a partial one."""
        l3len = flow_of(packet).l3len
        return Vnet(NEEDS_CSUM, csum_start=l3len, csum_offset=CHECK_OFF[self.proto])


WAYS = {
    "udp4": Way(PROTO_UDP, SRC4, DST4, lambda segment: ip4(segment, PROTO_UDP)),
    "tcp4": Way(PROTO_TCP, SRC4, DST4, lambda segment: ip4(segment, PROTO_TCP)),
    "udp6": Way(PROTO_UDP, SRC6, DST6, lambda segment: ip6(segment, PROTO_UDP)),
    "tcp6": Way(PROTO_TCP, SRC6, DST6, lambda segment: ip6(segment, PROTO_TCP)),
    "udp4-options": Way(PROTO_UDP, SRC4, DST4, lambda s: ip4(s, PROTO_UDP, options=b"\x01" * 40)),
    "tcp6-extension": Way(
        PROTO_TCP, SRC6, DST6, lambda segment: ip6(extension6(PROTO_TCP, 24) + segment, PROTO_DSTOPTS)
    ),
}
PLAIN = [name for name in WAYS if "-" not in name]


def compensated(way: Way, segment: bytes, field: int, total: int) -> bytes:
    """Return the message with its last two bytes such that with this checksum field it sums up to `total`."""
    blank = with_check(segment, way.proto, field)[:-2] + b"\x00\x00"
    pseudo = oracle.pseudo_header(oracle.packed(way.src), oracle.packed(way.dst), way.proto, len(blank))
    missing = (total - oracle.ones_sum(pseudo + blank)) % 0xFFFF
    return segment[:-2] + missing.to_bytes(2, "big")


# --- completing what the TUN gave us ------------------------------------------------------------------


@pytest.mark.parametrize("name", WAYS, ids="case_085-{}".format)
@pytest.mark.parametrize("size", [0, 1, 2, 3, 31, 32, 33, 1000, 1401])
def test_needs_csum_is_completed(name: str, size: int) -> None:
    """The checksum left to us is what the sender would have computed, and nothing else changes."""
    way = WAYS[name]
    segment = SEGMENT[way.proto](bytes(i % 251 for i in range(size)))
    packet = way.partial(segment)
    assert complete(packet, way.vnet(packet)) == ("none", way.right(segment))


@pytest.mark.parametrize("name", PLAIN, ids="case_085-zero-{}".format)
def test_result_of_zero(name: str) -> None:
    """A UDP checksum that comes out as 0 is sent as 0xffff, since 0 says "none"; in TCP 0 is 0."""
    way = WAYS[name]
    segment = compensated(way, SEGMENT[way.proto](DATA), 0, 0xFFFF)
    assert l4_check(segment, way.proto, way.src, way.dst) == 0
    packet = way.partial(segment)
    expected = 0xFFFF if way.proto == PROTO_UDP else 0
    assert complete(packet, way.vnet(packet)) == ("none", way.packet(segment, expected))


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("flags", [0, DATA_VALID])
def test_complete_packet_is_left_alone(name: str, flags: int) -> None:
    """Without NEEDS_CSUM nothing is touched, not even a wrong checksum, whatever the other fields say."""
    way = WAYS[name]
    packet = way.packet(SEGMENT[way.proto](DATA), 0x1234)
    assert complete(packet, Vnet(flags, csum_start=20, csum_offset=6)) == ("none", packet)
    assert complete(packet, Vnet(flags, csum_start=0xFFFF, csum_offset=0xFFFF)) == ("none", packet)


def test_padding_is_not_summed() -> None:
    """Bytes behind the packet are not part of what the checksum covers."""
    way = WAYS["udp4"]
    packet = way.partial(udp(DATA))
    padding = b"\xee" * 18
    assert complete(packet + padding, way.vnet(packet)) == ("none", way.right(udp(DATA)) + padding)


@pytest.mark.parametrize(
    ("start", "offset"),
    [
        (0, 6),
        (19, 6),
        (20, 21),
        (20, 27),
        (20, 0xFFFF),
        (40, 1),
        (41, 6),
        (42, 0),
        (43, 0),
        (0xFFFF, 0),
        (0xFFFF, 0xFFFF),
        (20, 0xFFEC),
    ],
    ids="case_088-{}".format,
)
def test_contradictory_header_is_refused(start: int, offset: int) -> None:
    """A sum from inside the IP header, or a field partly outside of the packet, is refused unwritten."""
    packet = WAYS["udp4"].partial(udp(bytes(14)))
    assert len(packet) == 42
    header = Vnet(NEEDS_CSUM, csum_start=start, csum_offset=offset)
    if (start, offset) == (20, 21):
        # The last place that still fits is one byte further to the front.
        assert complete(packet, header._replace(csum_offset=20))[0] == "none"
    assert complete(packet, header) == ("vnet_header", packet)
    # Room behind the packet does not count.
    assert complete(packet + bytes(8), header) == ("vnet_header", packet + bytes(8))


@pytest.mark.parametrize(
    "gso_type", [GSO_TCP4, GSO_TCP6, GSO_UDP_L4, 3, GSO_ECN, GSO_TCP4 | GSO_ECN, 0xFF, 2]
)
def test_case_088_super_packet_is_refused(gso_type: int) -> None:
    """Super-packets were not asked for, so one is a contradiction, with or without a checksum to complete."""
    packet = WAYS["tcp4"].partial(tcp(DATA))
    for flags in (0, NEEDS_CSUM):
        header = Vnet(flags, gso_type, 40, 1000, 20, 16)
        assert complete(packet, header) == ("vnet_header", packet)


def test_other_protocols_are_completed_where_the_header_says() -> None:
    """The header names the field, so ICMPv6 is completed like the rest; 0 stays 0 there."""
    blank = b"\x80\x00\x00\x00" + DATA
    field = oracle.l4_partial(blank, PROTO_ICMP6, SRC6, DST6).to_bytes(2, "big")
    packet = ip6(blank[:2] + field + blank[4:], PROTO_ICMP6)
    drop, done = complete(packet, Vnet(NEEDS_CSUM, csum_start=40, csum_offset=2))
    assert drop == "none"
    assert oracle.is_l4_right(done[40:], PROTO_ICMP6, SRC6, DST6)


# --- recognising what a kernel peer left to us --------------------------------------------------------


@pytest.mark.parametrize("name", GOOD)
def test_complete_packets_stand_for_themselves(name: str) -> None:
    """A packet with a right checksum, or none that could be offloaded, gets an empty virtio header."""
    assert describe(GOOD[name]) == (1, Vnet())


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("size", [0, 1, 28, 1000])
def test_partial_checksum_is_recognised(name: str, size: int) -> None:
    """A bare pseudo-header sum is handed on as NEEDS_CSUM, pointing at the right field."""
    way = WAYS[name]
    packet = way.partial(SEGMENT[way.proto](b"\x5a" * size))
    l3len = flow_of(packet).l3len
    header_len = 20 if way.proto == PROTO_TCP else 8
    expected = Vnet(NEEDS_CSUM, GSO_NONE, l3len + header_len, 0, l3len, CHECK_OFF[way.proto])
    assert describe(packet, MTU) == (1, expected)


@pytest.mark.parametrize("name", WAYS)
def test_described_packet_completes_to_the_right_one(name: str) -> None:
    """What is described for the kernel to finish is what offload_complete() finishes, too."""
    way = WAYS[name]
    segment = SEGMENT[way.proto](DATA)
    packet = way.partial(segment)
    assert complete(packet, describe(packet)[1]) == ("none", way.right(segment))


@pytest.mark.parametrize("name", PLAIN)
def test_right_checksum_that_looks_partial_is_left_alone(name: str) -> None:
    """Once in 65536 a complete checksum equals the pseudo-header sum; then the whole sum decides."""
    way = WAYS[name]
    segment = SEGMENT[way.proto](DATA)
    field = l4_partial(segment, way.proto, way.src, way.dst)
    segment = compensated(way, segment, field, 0xFFFF)
    packet = way.packet(segment, field)
    assert packet == way.right(segment) == way.partial(segment)
    assert describe(packet) == (1, Vnet())


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("off_by", [1, -1, 0x100, 0x8000])
def test_wrong_checksum_is_not_blessed(name: str, off_by: int) -> None:
    """A damaged checksum is delivered as it is: only the exact pseudo-header sum asks for completion."""
    way = WAYS[name]
    segment = SEGMENT[way.proto](DATA)
    field = (l4_partial(segment, way.proto, way.src, way.dst) + off_by) % 0x10000
    assert describe(way.packet(segment, field)) == (1, Vnet())


def test_udp_without_checksum_is_left_alone() -> None:
    """0 in an IPv4 UDP header means that there is none to complete."""
    assert describe(ip4(udp(DATA), PROTO_UDP)) == (1, Vnet())


ECHO = b"\x08" + bytes(27)  # its sequence number lies where UDP has its checksum
NOT_OFFLOADED = {
    "first-fragment4": ip4(with_check(udp(DATA), 17, l4_partial(udp(DATA), 17, SRC4, DST4)), 17, frag=IP4_MF),
    "later-fragment4": ip4(udp(DATA), PROTO_UDP, frag=4),
    "fragment6": ip6(fragment6(PROTO_TCP) + tcp(DATA), PROTO_FRAGMENT),
    "atomic-fragment6": ip6(fragment6(PROTO_TCP, 0, 0) + tcp(DATA), PROTO_FRAGMENT),
    "icmp4": ip4(b"\x08\x00" + bytes(26), PROTO_ICMP),
    "icmp6": ip6(b"\x80\x00" + bytes(26), PROTO_ICMP6),
    "icmp4-sequence": ip4(
        ECHO[:6] + l4_partial(ECHO, 1, SRC4, DST4).to_bytes(2, "big") + ECHO[8:], PROTO_ICMP
    ),
    "udp4-cut": ip4(bytes(7), PROTO_UDP),
    "tcp4-cut": ip4(bytes(19), PROTO_TCP),
    "udp6-empty": ip6(b"", PROTO_UDP),
    "tcp6-cut": ip6(bytes(19), PROTO_TCP),
}


@pytest.mark.parametrize("name", NOT_OFFLOADED)
def test_what_cannot_be_offloaded_is_left_alone(name: str) -> None:
    """Fragments, other protocols and headers that are cut are not looked into."""
    assert describe(NOT_OFFLOADED[name]) == (1, Vnet())


@pytest.mark.parametrize(("name", "cut"), [("udp4", 7), ("tcp4", 17), ("udp6", 7), ("tcp6", 17)])
def test_checksum_field_in_the_padding_is_not_looked_at(name: str, cut: int) -> None:
    """Padding that happens to complete a header cut in its checksum field makes no partial packet."""
    way = WAYS[name]
    segment = SEGMENT[way.proto](b"")[:cut]
    field = l4_partial(segment, way.proto, way.src, way.dst).to_bytes(2, "big")
    packet = way.wrap(segment[: CHECK_OFF[way.proto]] + field[:1])
    assert describe(packet + field[1:] + bytes(8)) == (1, Vnet())


# --- super-packets ------------------------------------------------------------------------------------

SUPER = {"tcp4": (GSO_TCP4, 40), "tcp6": (GSO_TCP6, 60), "tcp6-extension": (GSO_TCP6, 84)}


@pytest.mark.parametrize("name", SUPER)
@pytest.mark.parametrize("mtu", [576, 1280, MTU, 8950])
@pytest.mark.parametrize("excess", [1, 2, 1000, 20000, 50000])
def test_super_packet_is_cut_into_what_fits(name: str, mtu: int, excess: int) -> None:
    """A partial TCP packet longer than the MTU is cut into the largest segments that fit, and counted so."""
    way = WAYS[name]
    gso_type, headers = SUPER[name]
    packet = way.partial(tcp(bytes(mtu - headers + excess)))
    gso_size = mtu - headers
    units = -(-(len(packet) - headers) // gso_size)
    expected = Vnet(NEEDS_CSUM, gso_type, headers, gso_size, headers - 20, 16)
    assert describe(packet, mtu) == (units, expected)
    assert units >= 2


@pytest.mark.parametrize("name", SUPER)
def test_packet_of_exactly_the_mtu_is_no_super_packet(name: str) -> None:
    """What fits is one packet."""
    gso_type, headers = SUPER[name]
    packet = WAYS[name].partial(tcp(bytes(MTU - headers)))
    assert len(packet) == MTU
    assert describe(packet, MTU)[0] == 1
    assert describe(packet, MTU)[1].gso_type == GSO_NONE
    assert describe(packet, MTU - 1)[0] == 2
    assert describe(packet, MTU - 1)[1].gso_type == gso_type


def test_tcp_options_are_part_of_the_headers() -> None:
    """Every segment repeats the options, so they shrink its payload."""
    way = WAYS["tcp4"]
    packet = way.partial(tcp(bytes(5000), options=b"\x01" * 12))
    units, header = describe(packet, MTU)
    assert (header.hdr_len, header.gso_size) == (52, MTU - 52)
    assert units == -(-5000 // (MTU - 52))


def test_cwr_marks_the_super_packet() -> None:
    """CWR may appear on the first segment only, which the ECN flavour of GSO sees to."""
    way = WAYS["tcp4"]
    assert describe(way.partial(tcp(bytes(5000), flags=0x98)))[1].gso_type == GSO_TCP4 | GSO_ECN
    assert describe(way.partial(tcp(bytes(5000), flags=0x58)))[1].gso_type == GSO_TCP4


def test_long_packet_with_right_checksum_is_no_super_packet() -> None:
    """Only what its sender left undone is cut: a whole packet above the MTU is the kernel's to judge."""
    assert describe(WAYS["tcp4"].right(tcp(bytes(5000)))) == (1, Vnet())


def test_long_udp_packet_is_no_super_packet() -> None:
    """A kernel VXLAN device does not send UDP super-packets; only its checksum is completed."""
    units, header = describe(WAYS["udp4"].partial(udp(b"\x50" * 5000)))  # a TCP header, if it were one
    assert (units, header.flags, header.gso_type) == (1, NEEDS_CSUM, GSO_NONE)


@pytest.mark.parametrize("doff", [0, 4, 15], ids=["none", "below-minimum", "beyond-packet"])
def test_impossible_tcp_header_is_not_cut(doff: int) -> None:
    """A data offset that cannot be is not used for arithmetic."""
    way = WAYS["tcp4"]
    segment = bytearray(tcp(bytes(30)))
    segment[12] = doff << 4
    units, header = describe(way.partial(bytes(segment)), 68)
    assert (units, header.gso_type, header.flags) == (1, GSO_NONE, NEEDS_CSUM)


@pytest.mark.parametrize("mtu", [68, 79, 80, 81])
def test_headers_that_fill_the_mtu_are_not_cut(mtu: int) -> None:
    """Without room for payload there are no segments."""
    packet = WAYS["tcp4"].partial(tcp(bytes(100), options=b"\x01" * 40))
    units, header = describe(packet, mtu)
    if mtu <= 80:
        assert (units, header.gso_type) == (1, GSO_NONE)
    else:
        assert (units, header.gso_size) == (100, 1)


def test_largest_super_packet() -> None:
    """64 KiB is within every field of the header."""
    packet = WAYS["tcp4"].partial(tcp(bytes(65535 - 40)))
    units, header = describe(packet, MTU)
    assert (units, header.gso_size) == (-(-65495 // 1410), 1410)


def test_describing_looks_past_padding() -> None:
    """Padding behind the packet changes nothing."""
    packet = inner.UDP4 + b"\xee" * 18
    assert describe(packet) == (1, Vnet())
    partial = WAYS["udp4"].partial(udp(DATA))
    assert describe(partial + b"\xee" * 18) == describe(partial)
