# SPDX-License-Identifier: Apache-2.0
"""ICMP errors about size: how large packets may be, to those who asked to be told."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6

from tests import oracle
from tests.oracle import DST4, DST6, PROTO_ICMP, PROTO_ICMP6, PROTO_TCP, PROTO_UDP, SRC4, SRC6
from tests.probe import flow_of, no_route, too_big
from tests.supers import segment

DATA = bytes(range(256)) * 255


@pytest.mark.parametrize("proto", [PROTO_TCP, PROTO_UDP], ids=["TCP", "UDP"])
@pytest.mark.parametrize("length", [1400, 65000], ids=["packet", "super-packet"])
def test_case_098_ipv4(proto: int, length: int) -> None:
    """Fragmentation needed (3/4) with the MTU in its own 16 bits (RFC 1191), quoting 548 bytes."""
    packet = segment(DATA[:length], proto=proto)
    error = too_big(packet, 1300)
    flow = flow_of(error)
    assert (flow.src, flow.dst, flow.proto, flow.ttl, flow.tos) == (DST4, SRC4, PROTO_ICMP, 64, 0)
    assert error[20:22] == b"\x03\x04"
    assert error[24:28] == b"\0\0" + (1300).to_bytes(2, "big")
    assert error[28:] == packet[: 576 - 28]
    assert oracle.ones_sum(error[20:]) == 0xFFFF


@pytest.mark.parametrize("proto", [PROTO_TCP, PROTO_UDP], ids=["TCP", "UDP"])
@pytest.mark.parametrize("length", [1400, 65000], ids=["packet", "super-packet"])
def test_case_098_ipv6(proto: int, length: int) -> None:
    """Packet too big (2/0) with the MTU (RFC 4443 section 3.2), quoting as much as the minimum MTU holds."""
    packet = segment(DATA[:length], proto=proto, family=6)
    error = too_big(packet, 1300)
    flow = flow_of(error)
    assert (flow.src, flow.dst, flow.proto, flow.ttl) == (DST6, SRC6, PROTO_ICMP6, 64)
    assert error[40:42] == b"\x02\x00"
    assert error[44:48] == (1300).to_bytes(4, "big")
    assert error[48:] == packet[: 1280 - 48]
    assert oracle.is_l4_right(error[40:], PROTO_ICMP6, DST6, SRC6)


def test_another_decoder_understands() -> None:
    """scapy reads the errors as what they are, with their MTU."""
    error4 = IP(too_big(segment(DATA[:1400]), 1234))
    assert (error4[ICMP].type, error4[ICMP].code, error4[ICMP].nexthopmtu) == (3, 4, 1234)
    error6 = IPv6(too_big(segment(DATA[:1400], family=6), 1400))
    assert error6[ICMPv6PacketTooBig].mtu == 1400


@pytest.mark.parametrize(("mtu", "told"), [(68, 1280), (1279, 1280), (1280, 1280), (1281, 1281)])
def test_case_097_ipv6_is_never_told_of_less_than_1280(mtu: int, told: int) -> None:
    """Every link takes 1280 bytes (RFC 8200 section 5), so nothing below is told."""
    assert int.from_bytes(too_big(segment(DATA[:1400], family=6), mtu)[44:48], "big") == told


@pytest.mark.parametrize(("mtu", "is_told"), [(0, False), (575, False), (576, True)])
def test_case_097_ipv4_is_never_told_of_less_than_576(mtu: int, is_told: bool) -> None:
    """A path that takes less than every host must is forged, or no use: nobody is told of it."""
    assert bool(too_big(segment(DATA[:1400], proto=PROTO_UDP), mtu)) == is_told


def test_without_df_nobody_is_told() -> None:
    """Who lets routers fragment is not told to send less (RFC 1191 section 3)."""
    assert too_big(segment(DATA[:1400], frag=0), 1300) == b""
    assert no_route(segment(DATA[:1400], frag=0))


@pytest.mark.parametrize(
    "packet",
    [
        pytest.param(oracle.ip4(b"\x03\x04" + bytes(1400), PROTO_ICMP), id="ICMP error"),
        pytest.param(oracle.ip6(b"\x02\x00" + bytes(1400), PROTO_ICMP6), id="ICMPv6 error"),
        pytest.param(oracle.ip4(DATA[:1400], dst="224.0.0.1"), id="group"),
        pytest.param(oracle.ip4(DATA[:1400], src="0.1.2.3"), id="no sender"),
        pytest.param(oracle.ip4(DATA[:1400], frag=oracle.IP4_DF | 1), id="later fragment"),
        pytest.param(b"\0" * 40, id="no packet"),
    ],
)
def test_what_must_not_be_answered(packet: bytes) -> None:
    """None about errors, groups, later fragments and senders that cannot be, whatever their size."""
    assert too_big(packet, 1300) == b""
