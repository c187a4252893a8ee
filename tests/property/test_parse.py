# SPDX-License-Identifier: Apache-2.0
"""No bytes whatever make parse_inner() accept what it should not; what it accepts, it describes rightly."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from tests import oracle
from tests.inner import GOOD
from tests.oracle import PROTO_DSTOPTS, PROTO_FRAGMENT, PROTO_HOPOPTS, PROTO_ROUTING, extension6, fragment6
from tests.probe import flow_of, parse

EXTENSIONS = (PROTO_HOPOPTS, PROTO_ROUTING, PROTO_DSTOPTS, PROTO_FRAGMENT)
REASONS = {"none", "inner_version", "inner_header", "inner_length", "inner_csum", "inner_ttl"}

payloads = st.binary(max_size=64)
bytes8 = st.integers(0, 255)
upper = bytes8.filter(lambda proto: proto not in EXTENSIONS)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Draw a good packet with a few bytes overwritten, cut or padded."""
    packet = bytearray(draw(st.sampled_from([packet for packet in GOOD.values() if len(packet) < 1000])))
    for at, value in draw(st.lists(st.tuples(st.integers(0, 63), bytes8), max_size=4)):
        packet[at % len(packet)] = value
    if draw(st.booleans()) and len(packet) >= 20:
        # With its checksum repaired it gets further than the checksum.
        length = max(20, (packet[0] & 15) * 4)
        packet[10:12] = b"\0\0"
        packet[10:12] = oracle.checksum(bytes(packet[:length])).to_bytes(2, "big")
    return bytes(packet[: draw(st.integers(0, len(packet)))]) if draw(st.booleans()) else bytes(packet)


@given(payloads | damaged())
def test_accepted_packets_keep_their_promises(packet: bytes) -> None:
    """A packet is refused for a reason of its own, or everything that was said of it is true."""
    drop, flow = parse(packet)
    assert drop in REASONS
    if flow is None:
        return
    assert flow.family == packet[0] >> 4
    assert flow.l3len <= flow.total_len <= len(packet)
    assert flow.ttl > 0
    assert flow.is_fragment or not flow.is_later_fragment
    if flow.family == 4:
        assert flow.l3len == (packet[0] & 15) * 4 >= 20
        assert flow.total_len == int.from_bytes(packet[2:4], "big")
        assert oracle.ones_sum(packet[: flow.l3len]) == 0xFFFF
    else:
        assert flow.l3len >= 40
        assert flow.total_len == 40 + int.from_bytes(packet[4:6], "big")
    assert flow_of(packet[: flow.total_len]) == flow  # padding never matters


@given(payloads, bytes8, st.integers(0, 10), bytes8, st.integers(1, 255), st.integers(0, 0xFFFF))
def test_every_ipv4_header_is_read(
    payload: bytes, proto: int, words: int, tos: int, ttl: int, frag: int
) -> None:
    """Any legal header is accepted and read field by field."""
    flow = flow_of(oracle.ip4(payload, proto, options=bytes(4 * words), tos=tos, ttl=ttl, frag=frag))
    assert (flow.proto, flow.l3len, flow.tos, flow.ttl) == (proto, 20 + 4 * words, tos, ttl)
    assert flow.total_len == flow.l3len + len(payload)
    assert flow.is_fragment == bool(frag & 0x3FFF)
    assert flow.is_later_fragment == bool(frag & 0x1FFF)


@given(st.lists(st.tuples(st.sampled_from(EXTENSIONS), st.integers(1, 4)), max_size=8), upper, payloads)
def test_every_chain_of_extension_headers_is_followed(
    chain: list[tuple[int, int]], last: int, payload: bytes
) -> None:
    """Up to eight extension headers of any kind and length lead to the protocol behind them."""
    following, headers = last, b""
    for proto, words in reversed(chain):
        header = fragment6(following, 0, 1) if proto == PROTO_FRAGMENT else extension6(following, 8 * words)
        following, headers = proto, header + headers
    flow = flow_of(oracle.ip6(headers + payload, following))
    assert (flow.proto, flow.l3len) == (last, 40 + len(headers))
    assert flow.is_fragment == any(proto == PROTO_FRAGMENT for proto, _ in chain)


@given(bytes8, bytes8, st.integers(0, 0xFFFFF))
def test_every_traffic_class_is_read(tclass: int, hop_limit: int, flow_label: int) -> None:
    """Traffic class and flow label share bytes and do not mix."""
    packet = oracle.ip6(tclass=tclass, hop_limit=hop_limit, flow_label=flow_label)
    drop, flow = parse(packet)
    assert drop == ("none" if hop_limit else "inner_ttl")
    if flow is not None:
        assert (flow.tos, flow.ttl) == (tclass, hop_limit)


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_ipv4_addresses_are_judged_by_the_registry(src: int, dst: int) -> None:
    """0/8, 127/8 and 224/3 are no sources; 224/3 and 0.0.0.0 are not one destination."""
    packet = oracle.ip4(src=oracle.shown(struct.pack("!I", src)), dst=oracle.shown(struct.pack("!I", dst)))
    flow = flow_of(packet)
    assert flow.is_martian == (src >> 24 in {0, 127} or src >> 29 == 7)
    assert flow.is_multicast == (dst == 0 or dst >> 29 == 7)


sixteen = st.binary(min_size=16, max_size=16)
specials = st.sampled_from(["::", "::ffff:0:0", "ff02::", "fe80::", "fec0::", "::1:0:0"]).map(oracle.packed)


@given(sixteen | specials, sixteen | specials, st.binary(min_size=4, max_size=4))
def test_ipv6_addresses_are_judged_by_the_registry(src: bytes, dst: bytes, low: bytes) -> None:
    """::/96, mapped, multicast and link-local are no sources; multicast and :: are not one destination."""
    src = src[:12] + low
    flow = flow_of(oracle.ip6(src=oracle.shown(src), dst=oracle.shown(dst)))
    is_local = src[0] == 0xFE and src[1] >> 6 == 2
    is_embedded = src[:12] in {bytes(12), bytes(10) + b"\xff\xff"}
    assert flow.is_martian == (is_local or is_embedded or src[0] == 0xFF)
    assert flow.is_multicast == (dst[0] == 0xFF or dst == bytes(16))
