# SPDX-License-Identifier: Apache-2.0
"""What an inner packet is: fields, limits, and every way in which it can be wrong."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address

import pytest

from tests import inner, oracle, probe
from tests.inner import DATA, GOOD, INVALID4, INVALID6
from tests.oracle import (
    IP4_DF,
    IP4_MF,
    PROTO_DSTOPTS,
    PROTO_FRAGMENT,
    PROTO_HOPOPTS,
    PROTO_ICMP,
    PROTO_NONE,
    PROTO_ROUTING,
    PROTO_TCP,
    PROTO_UDP,
    chain6,
    extension6,
    fragment6,
    ip4,
    ip6,
    tcp,
    udp,
)
from tests.probe import ffi, flow_of, lib, parse

# --- good packets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GOOD)
def test_good_packet_is_accepted(name: str) -> None:
    """A valid packet is valid, and as long as it is."""
    packet = GOOD[name]
    flow = flow_of(packet)
    assert flow.family == packet[0] >> 4
    assert flow.total_len == len(packet)
    assert (flow.is_martian, flow.is_multicast) == (False, False)


def test_fields_of_ipv4() -> None:
    """Each field of an IPv4 header arrives where it belongs."""
    flow = flow_of(ip4(DATA, 99, "10.1.2.3", "10.4.5.6", tos=0xB9, ttl=7, options=b"\x01" * 8))
    assert (flow.family, flow.proto, flow.tos, flow.ttl, flow.l3len) == (4, 99, 0xB9, 7, 28)
    assert (flow.src, flow.dst) == ("10.1.2.3", "10.4.5.6")
    assert (flow.is_fragment, flow.is_later_fragment) == (False, False)


def test_fields_of_ipv6() -> None:
    """Each field of an IPv6 header arrives where it belongs; flow label and traffic class do not mix."""
    src, dst = "2001:db8:1:2:3:4:5:6", "fd12:3456:789a:bcde:f012:3456:789a:bcde"
    flow = flow_of(ip6(DATA, 99, src, dst, tclass=0xB9, hop_limit=7, flow_label=0xFFFFF))
    assert (flow.family, flow.proto, flow.tos, flow.ttl, flow.l3len) == (6, 99, 0xB9, 7, 40)
    assert (flow.src, flow.dst) == (src, dst)
    assert flow_of(ip6(tclass=0, flow_label=0xFFFFF)).tos == 0


@pytest.mark.parametrize("words", range(11), ids="ihl-{}".format)
def test_every_length_of_ipv4_options(words: int) -> None:
    """Options count as part of the IP header."""
    assert flow_of(ip4(DATA, options=b"\x01" * 4 * words)).l3len == 20 + 4 * words


@pytest.mark.parametrize(
    ("frag", "is_fragment", "is_later"),
    [
        (0, False, False),
        (IP4_DF, False, False),
        (0x8000, False, False),
        (IP4_MF, True, False),
        (IP4_MF | 1, True, True),
        (1, True, True),
        (0x1FFF, True, True),
        (IP4_DF | 0x1000, True, True),
    ],
)
def test_fragments_of_ipv4(frag: int, is_fragment: bool, is_later: bool) -> None:
    """The first fragment has ports, later ones have none; DF and the reserved bit make no fragment."""
    flow = flow_of(ip4(DATA, PROTO_UDP, frag=frag))
    assert (flow.is_fragment, flow.is_later_fragment) == (is_fragment, is_later)


@pytest.mark.parametrize(
    ("offset", "more", "is_later"),
    [(0, 0, False), (0, 1, False), (1, 0, True), (1, 1, True), (0x1FFF, 0, True)],
)
def test_fragments_of_ipv6(offset: int, more: int, is_later: bool) -> None:
    """A fragment header makes a fragment; one with offset 0 still carries the L4 header."""
    flow = flow_of(ip6(fragment6(PROTO_UDP, offset, more) + udp(DATA), PROTO_FRAGMENT))
    assert (flow.is_fragment, flow.is_later_fragment) == (True, is_later)
    assert (flow.proto, flow.l3len) == (PROTO_UDP, 48)


@pytest.mark.parametrize(
    "chain",
    [
        (),
        (PROTO_HOPOPTS,),
        (PROTO_ROUTING,),
        (PROTO_DSTOPTS,),
        (PROTO_FRAGMENT,),
        (PROTO_HOPOPTS, PROTO_DSTOPTS, PROTO_ROUTING, PROTO_FRAGMENT, PROTO_DSTOPTS),
        (PROTO_DSTOPTS,) * 8,
    ],
    ids=str,
)
@pytest.mark.parametrize("last", [PROTO_TCP, PROTO_NONE, 50, 51, 255])
def test_extension_headers_are_followed(chain: tuple[int, ...], last: int) -> None:
    """The protocol behind the extension headers is found, and they count as part of the IP header."""
    flow = flow_of(chain6(chain, last, tcp(DATA)))
    assert (flow.proto, flow.l3len) == (last, 40 + 8 * len(chain))
    assert flow.is_fragment == (PROTO_FRAGMENT in chain)


@pytest.mark.parametrize("length", [8, 16, 24, 128, 2040, 2048])
def test_extension_headers_of_every_length(length: int) -> None:
    """An extension header is as long as it says, in units of 8 bytes, the first of which is not counted."""
    header = bytes([PROTO_UDP, length // 8 - 1]) + bytes(length - 2)
    assert flow_of(ip6(header + udp(DATA), PROTO_DSTOPTS)).l3len == 40 + length
    assert parse(ip6(header[:-1], PROTO_DSTOPTS))[0] == "inner_header"


def test_nothing_is_read_behind_a_later_fragment() -> None:
    """What follows a fragment header with an offset is data, whatever the next header says."""
    flow = flow_of(ip6(fragment6(PROTO_HOPOPTS, 4) + b"\x00", PROTO_FRAGMENT))
    assert (flow.proto, flow.l3len, flow.is_later_fragment) == (PROTO_HOPOPTS, 48, True)


# --- bad packets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", INVALID4, ids="case_012-{}".format)
def test_invalid_ipv4_is_refused(name: str) -> None:
    """A header that contradicts itself or what arrived is refused for that reason."""
    drop, packet = INVALID4[name]
    assert parse(packet)[0] == drop


@pytest.mark.parametrize("name", INVALID6, ids="case_015-{}".format)
def test_invalid_ipv6_is_refused(name: str) -> None:
    """A header or a chain of headers that contradicts itself or what arrived is refused for that reason."""
    drop, packet = INVALID6[name]
    assert parse(packet)[0] == drop


@pytest.mark.parametrize("packet", [inner.UDP4, inner.UDP6], ids=["case_012", "case_015"])
@pytest.mark.parametrize("version", [v for v in range(16) if v not in (4, 6)])
def test_other_versions_are_refused(version: int, packet: bytes) -> None:
    """There is IPv4, there is IPv6, and nothing else."""
    assert parse(bytes([version << 4 | packet[0] & 15]) + packet[1:])[0] == "inner_version"


@pytest.mark.parametrize("bit", range(160), ids="case_014-bit-{}".format)
def test_flipped_bit_in_ipv4_header_is_refused(bit: int) -> None:
    """No header with a flipped bit passes: the checksum is verified, and its own field counts too."""
    packet = bytearray(inner.UDP4)
    packet[bit // 8] ^= 0x80 >> bit % 8
    drop, _ = parse(bytes(packet))
    assert drop in {"inner_csum", "inner_version", "inner_header", "inner_length"}
    if bit >= 32:  # behind version and lengths, which are looked at first
        assert drop == "inner_csum"


def test_case_014_checksum_covers_options() -> None:
    """A flipped bit in the last option is noticed."""
    packet = bytearray(ip4(DATA, options=b"\x01" * 40))
    packet[59] ^= 1
    assert parse(bytes(packet))[0] == "inner_csum"


def test_case_014_checksum_zero_is_no_exception() -> None:
    """IPv4 has no "no checksum": 0 is refused unless it is right."""
    assert parse(ip4(DATA, check=0))[0] == "inner_csum"


@pytest.mark.parametrize("name", ["udp4", "udp6", "options4", "header4-only", "header6-only"])
@pytest.mark.parametrize("padding", [1, 7, 18, 1000])
def test_padding_is_told_from_the_packet(name: str, padding: int) -> None:
    """What follows the packet in its frame is not part of it (cases 13 and 15)."""
    packet = GOOD[name]
    assert flow_of(packet + b"\xee" * padding) == flow_of(packet)


@pytest.mark.parametrize("ttl", [1, 2, 255])
def test_ttl_above_zero_passes(ttl: int) -> None:
    """A packet with one hop left may still be delivered; case 29 refuses only 0."""
    assert flow_of(ip4(DATA, ttl=ttl)).ttl == ttl
    assert flow_of(ip6(DATA, hop_limit=ttl)).ttl == ttl


def test_header_is_judged_in_order() -> None:
    """Of several faults the one of the outermost check is named."""
    assert parse(ip4(DATA, ihl=4, total_len=5, check=0, ttl=0))[0] == "inner_header"
    assert parse(ip4(DATA, total_len=5, check=0, ttl=0))[0] == "inner_length"
    assert parse(ip4(DATA, check=0, ttl=0))[0] == "inner_csum"
    assert parse(ip6(b"", PROTO_HOPOPTS, hop_limit=0))[0] == "inner_ttl"


@pytest.mark.parametrize("name", [name for name, packet in GOOD.items() if len(packet) < 1000])
def test_packet_cut_at_every_byte_is_refused(name: str) -> None:
    """No prefix of a good packet is a good packet."""
    packet = GOOD[name]
    for length in range(len(packet)):
        assert parse(packet[:length])[0] in {"inner_header", "inner_length"}


# --- addresses ----------------------------------------------------------------------------------------

MARTIANS = [
    *("0.0.0.0", "0.255.255.255", "127.0.0.1", "127.255.255.255", "224.0.0.1", "239.255.255.255"),
    *("240.0.0.1", "255.255.255.254", "255.255.255.255"),
    *("::", "::1", "::2", "::10.1.2.3", "::255.255.255.255", "::ffff:0.0.0.0", "::ffff:10.1.2.3"),
    *("::ffff:255.255.255.255", "ff00::", "ff02::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
    *("fe80::", "fe80::1", "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
]
HONEST = [
    *("1.0.0.0", "10.0.0.1", "126.255.255.255", "128.0.0.1", "169.254.1.1", "192.168.1.1", "223.255.255.255"),
    *("::1:0:0", "0:0:0:0:1::", "::fffe:0:0", "::1:0:0:0", "1::", "2001:db8::1", "64:ff9b::a01:203"),
    *("fd00::1", "fe00::1", "fe7f::1", "fec0::1", "feff::1"),
]
MULTICAST = ["224.0.0.0", "239.1.2.3", "240.0.0.1", "255.255.255.255", "0.0.0.0", "::", "ff00::", "ff02::1"]
UNICAST = [
    "0.0.0.1",
    "10.255.255.255",
    "127.0.0.1",
    "223.255.255.255",
    "::1",
    "fe80::1",
    "feff::1",
    "2001:db8::1",
]


def _between(src: str, dst: str) -> bytes:
    if ip_address(src).version == 4:
        return ip4(DATA, src=src, dst=dst)
    return ip6(DATA, src=src, dst=dst)


def _other_end(address: str) -> str:
    return oracle.DST4 if ip_address(address).version == 4 else oracle.DST6


@pytest.mark.parametrize("src", MARTIANS, ids="case_016-{}".format)
def test_martian_source_is_seen(src: str) -> None:
    """A source that is never right on a network is called a martian."""
    assert flow_of(_between(src, _other_end(src))).is_martian


@pytest.mark.parametrize("src", HONEST)
def test_other_source_is_no_martian(src: str) -> None:
    """The neighbours of every such range are ordinary addresses."""
    assert not flow_of(_between(src, _other_end(src))).is_martian


@pytest.mark.parametrize("dst", MULTICAST, ids="case_017-{}".format)
def test_destination_of_many_is_seen(dst: str) -> None:
    """Multicast, broadcast and unspecified destinations are not one host."""
    flow = flow_of(_between(_other_end(dst), dst))
    assert (flow.is_multicast, flow.is_martian) == (True, False)


@pytest.mark.parametrize("dst", UNICAST)
def test_destination_of_one_is_seen(dst: str) -> None:
    """Everything else is one host, whether it makes sense or not."""
    assert not flow_of(_between(_other_end(dst), dst)).is_multicast


ADDRESSES = [
    "10.1.2.3",
    "10.1.2.4",
    "0.0.0.0",
    "::",
    "::a01:203",
    "2001:db8::1",
    "2001:db8::2",
    "2001:db9::1",
]


@pytest.mark.parametrize("left", ADDRESSES)
@pytest.mark.parametrize("right", [*ADDRESSES, None])
def test_addresses_are_equal_only_within_a_family(left: str, right: str | None) -> None:
    """10.1.2.3 is not ::10.1.2.3, 0.0.0.0 is not ::, and an address that is not set equals nothing."""
    addr = ffi.new("struct dp_addr *", probe.addr_fields(oracle.packed(left)))
    other = ffi.new("struct dp_addr *", probe.addr_fields(oracle.packed(right)) if right else {"family": 0})
    assert bool(lib.probe_parse_equals(addr, other)) == (left == right)


# --- flow hash ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [ip4, ip6], ids=["v4", "v6"])
@pytest.mark.parametrize("proto", [PROTO_UDP, PROTO_TCP])
def test_hash_is_of_the_flow(build: Callable[..., bytes], proto: int) -> None:
    """Packets of a flow hash alike whatever else they carry; another port makes another flow."""
    segment: Callable[..., bytes] = udp if proto == PROTO_UDP else tcp
    first = flow_of(build(segment(DATA, 1000), proto)).hash
    assert first == flow_of(build(segment(DATA * 9, 1000), proto)).hash
    assert first != flow_of(build(segment(DATA, 1001), proto)).hash


@pytest.mark.parametrize("proto", [PROTO_UDP, PROTO_TCP])
def test_case_036_fragments_hash_alike(proto: int) -> None:
    """Every fragment of a datagram hashes alike, the first one with its ports and the last one included."""
    first = ip4(udp(DATA), proto, frag=IP4_MF)
    later = [ip4(DATA, proto, frag=IP4_MF | 3), ip4(b"\x99" * 40, proto, frag=7)]
    assert {flow_of(packet).hash for packet in later} == {flow_of(first).hash}
    assert flow_of(ip4(b"\x99" * 40, proto, frag=7, dst="10.244.1.6")).hash != flow_of(first).hash


def test_case_036_ipv6_fragments_hash_alike() -> None:
    """Fragments of IPv6 hash alike too, although their L4 header is behind another one."""
    packets = [
        ip6(fragment6(PROTO_UDP) + udp(DATA), PROTO_FRAGMENT),
        ip6(fragment6(PROTO_UDP, 5) + DATA, PROTO_FRAGMENT),
        ip6(fragment6(PROTO_UDP, 9, 0) + b"\x77" * 3, PROTO_FRAGMENT),
    ]
    assert len({flow_of(packet).hash for packet in packets}) == 1


def test_hash_of_a_packet_cut_in_its_ports() -> None:
    """A UDP header too short for ports still hashes, by addresses and protocol."""
    assert flow_of(ip4(b"\x01\x02\x03", PROTO_UDP)).hash == flow_of(ip4(b"\x09\x08", PROTO_UDP)).hash


def test_hash_tells_protocols_and_addresses_apart() -> None:
    """Each part of the 3-tuple reaches the hash, each half of an IPv6 address too."""
    packets = [
        ip4(DATA, PROTO_ICMP),
        ip4(DATA, PROTO_NONE),
        ip4(DATA, PROTO_ICMP, src="10.244.2.6"),
        ip4(DATA, PROTO_ICMP, dst="10.244.1.6"),
        ip4(DATA, PROTO_ICMP, oracle.DST4, oracle.SRC4),
        *(ip6(DATA, src=src) for src in ("fd00::1", "fd01::1", "fd00::2")),
        *(ip6(DATA, dst=dst) for dst in ("fd00::1", "fd01::1", "fd00::2")),
    ]
    assert len({flow_of(packet).hash for packet in packets}) == len(packets)


def test_hash_spreads_neighbouring_flows() -> None:
    """4096 consecutive source ports fall on all of 64 queues, none with more than twice its share."""
    queues = [0] * 64
    for port in range(4096):
        queues[flow_of(ip4(udp(DATA, 20000 + port), PROTO_UDP)).hash % 64] += 1
    assert max(queues) <= 128
    assert min(queues) > 0


def test_extension_header_before_ports_is_skipped() -> None:
    """The ports that are hashed are those behind the extension headers."""
    packets = [ip6(extension6(PROTO_UDP) + udp(DATA, port), PROTO_DSTOPTS) for port in (1, 2)]
    assert flow_of(packets[0]).hash != flow_of(packets[1]).hash
