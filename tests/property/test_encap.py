# SPDX-License-Identifier: Apache-2.0
"""Encapsulation against an independent encoder, and offloads against whole checksums."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests import oracle, probe
from tests.inner import GOOD
from tests.oracle import DST4, DST6, PROTO_TCP, PROTO_UDP, SRC4, SRC6, ip4, ip6, tcp, udp, with_check
from tests.probe import GSO_NONE, NEEDS_CSUM, Vnet

vnis = st.integers(0, 0xFFFFFF)
tos = st.integers(0, 255)
payloads = st.binary(max_size=64)
packets = payloads.map(ip4) | payloads.map(ip6)
words16 = st.integers(0, 0xFFFF)


@given(packets, vnis)
def test_pushed_frames_are_those_of_the_oracle(packet: bytes, vni: int) -> None:
    """Every VNI and family gives the frame that the RFC describes, and it can be taken off again."""
    family = packet[0] >> 4
    frame = probe.vxlan_push(packet, family, vni)
    assert frame == oracle.vxlan(packet, vni=vni)
    assert probe.vxlan_pull(frame, vni=vni) == ("none", family, packet)


@given(st.binary(min_size=22, max_size=22), payloads, vnis, st.booleans())
def test_only_exact_headers_are_pulled(headers: bytes, rest: bytes, vni: int, reserved_ignore: bool) -> None:
    """Whatever 22 bytes come first: accepted are those alone that the RFC allows, for us, from a peer."""
    drop, family, inner = probe.vxlan_pull(headers + rest, vni=vni, reserved_ignore=reserved_ignore)
    assert drop in {"vxlan_flags", "vni", "ethertype", "inner_mac", "none"}
    if drop == "none":
        assert inner == rest
        assert oracle.vxlan(rest, vni=vni, src_mac=headers[14:20])[:22] == headers
        assert family in {4, 6}


@given(st.sampled_from(sorted(name for name in GOOD if len(GOOD[name]) < 1000)), st.data())
def test_changed_header_bytes_are_refused_or_harmless(name: str, data: st.DataObject) -> None:
    """In a good frame only the source MAC may differ; any other changed byte of the headers is noticed."""
    frame = bytearray(oracle.vxlan(GOOD[name]))
    at = data.draw(st.integers(0, 21))
    frame[at] ^= data.draw(st.integers(1, 255))
    drop, _, inner = probe.vxlan_pull(bytes(frame))
    if 14 <= at < 20:  # the address may also have become ours or a group's
        assert drop in {"none", "inner_mac"}
        assert drop != "none" or inner == GOOD[name]
    else:
        assert drop != "none"


@given(packets | st.binary(max_size=80), st.binary(max_size=20))
def test_bare_payloads_are_ipv4_packets_or_refused(packet: bytes, padding: bytes) -> None:
    """Whatever a datagram carries: taken is exactly an IPv4 packet, less what stands behind it."""
    drop, taken = probe.decap_bare(packet + padding)
    inner, flow = probe.parse(packet + padding)
    if drop == "none":
        assert flow is not None
        assert (flow.family, taken) == (4, (packet + padding)[: flow.total_len])
    else:
        assert drop == ("short" if not packet + padding else "inner_version" if flow else inner)


@given(packets, tos, tos)
def test_marks_combine_as_the_rfc_says(packet: bytes, inner_tos: int, outer_tos: int) -> None:
    """Any two TOS bytes combine to RFC 6040's mark and the inner DSCP, in a packet that is still valid."""

    def build(tos: int) -> bytes:
        return ip4(packet[20:], tos=tos) if packet[0] >> 4 == 4 else ip6(packet[40:], tclass=tos)

    drop, combined = probe.decap_ecn(build(inner_tos), outer_tos)
    mark = oracle.ecn_decap(inner_tos & 3, outer_tos & 3)
    if mark is None:
        assert (drop, combined) == ("ecn", build(inner_tos))
    else:
        assert (drop, combined) == ("none", build(inner_tos & 0xFC | mark))


@given(st.sampled_from([4, 6]), st.sampled_from([PROTO_TCP, PROTO_UDP]), payloads)
def test_partial_checksums_are_found_and_completed(family: int, proto: int, payload: bytes) -> None:
    """A bare pseudo-header sum is described, and completing by that description gives a right checksum."""
    src, dst = (SRC4, DST4) if family == 4 else (SRC6, DST6)
    segment = (tcp if proto == PROTO_TCP else udp)(payload)
    field = oracle.l4_partial(segment, proto, src, dst)
    packet = (ip4 if family == 4 else ip6)(with_check(segment, proto, field), proto)
    units, vnet = probe.describe(packet)
    at = 20 if family == 4 else 40
    if oracle.is_l4_right(packet[at:], proto, src, dst):
        assert (units, vnet) == (1, Vnet())
        return
    assert (units, vnet.flags, vnet.gso_type) == (1, NEEDS_CSUM, GSO_NONE)
    drop, completed = probe.complete(packet, vnet)
    assert drop == "none"
    assert oracle.is_l4_right(completed[at:], proto, src, dst)


@given(
    packets,
    st.integers(0, 3),
    st.integers(0, 300) | words16,
    st.integers(0, 300) | words16,
    st.integers(0, 20),
)
def test_no_virtio_header_writes_elsewhere(
    packet: bytes, flags: int, start: int, offset: int, padding: int
) -> None:
    """Any header either is refused, or changes at most the two bytes that it names, inside the packet."""
    data = packet + b"\xee" * padding
    drop, after = probe.complete(data, Vnet(flags, csum_start=start, csum_offset=offset))
    at = start + offset
    if drop == "none" and flags & NEEDS_CSUM:
        assert (20 if packet[0] >> 4 == 4 else 40) <= start
        assert at + 2 <= len(packet)
        assert after[:at] + after[at + 2 :] == data[:at] + data[at + 2 :]
    else:
        assert drop in {"none", "vnet_header"}
        assert after == data
