# SPDX-License-Identifier: Apache-2.0
"""ICMP errors to pods: right in every byte, and none where the RFCs forbid one."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import ICMPv6DestUnreach, IPv6

from tests import inner, oracle
from tests.inner import DATA, GOOD, INVALID4, INVALID6
from tests.oracle import (
    DST4,
    DST6,
    IP4_MF,
    PROTO_DSTOPTS,
    PROTO_FRAGMENT,
    PROTO_ICMP,
    PROTO_ICMP6,
    PROTO_UDP,
    SRC4,
    SRC6,
    extension6,
    fragment6,
    ip4,
    ip6,
    udp,
)
from tests.probe import ICMP_MAX, flow_of, no_route

ICMP4_MAX, ICMP6_MAX = 576, 1280


def quote4(packet: bytes) -> bytes:
    """Return what an ICMPv4 error quotes of a packet."""
    return packet[: ICMP4_MAX - 28]


@pytest.mark.parametrize("name", ["udp4", "tcp4", "header4-only", "options4", "first-fragment4", "largest4"])
def test_ipv4_error(name: str) -> None:
    """Net unreachable (3/0) from the original destination, quoting as much as 576 bytes hold (case 45)."""
    packet = GOOD[name]
    error = no_route(packet)
    flow = flow_of(error)
    assert (flow.src, flow.dst, flow.proto, flow.ttl, flow.tos) == (DST4, SRC4, PROTO_ICMP, 64, 0)
    assert (len(error), flow.l3len, flow.is_fragment) == (min(28 + len(packet), ICMP4_MAX), 20, False)
    assert error[20:22] == b"\x03\x00"
    assert error[24:28] == bytes(4)
    assert error[28:] == quote4(packet)
    assert oracle.ones_sum(error[20:]) == 0xFFFF


@pytest.mark.parametrize(
    "name", ["udp6", "tcp6", "header6-only", "extensions6", "first-fragment6", "largest6"]
)
def test_ipv6_error(name: str) -> None:
    """No route (1/0) from the original destination, quoting as much as the minimum MTU holds (case 45)."""
    packet = GOOD[name]
    error = no_route(packet)
    flow = flow_of(error)
    assert (flow.src, flow.dst, flow.proto, flow.ttl, flow.tos) == (DST6, SRC6, PROTO_ICMP6, 64, 0)
    assert len(error) == min(48 + len(packet), ICMP6_MAX)
    assert error[40:42] == b"\x01\x00"
    assert error[44:48] == bytes(4)
    assert error[48:] == packet[: ICMP6_MAX - 48]
    assert oracle.is_l4_right(error[40:], PROTO_ICMP6, DST6, SRC6)


def test_errors_are_understood_by_another_decoder() -> None:
    """scapy reads the errors as what they are, and would compute the same checksums."""
    error4 = IP(no_route(inner.UDP4))
    assert (error4[ICMP].type, error4[ICMP].code) == (3, 0)
    again4 = error4.copy()
    del again4.chksum
    del again4[ICMP].chksum
    assert bytes(again4) == bytes(error4)

    error6 = IPv6(no_route(inner.UDP6))
    assert (error6[ICMPv6DestUnreach].type, error6[ICMPv6DestUnreach].code) == (1, 0)
    again6 = error6.copy()
    del again6[ICMPv6DestUnreach].cksum
    assert bytes(again6) == bytes(error6)


def test_every_length_of_the_original() -> None:
    """Each length around the limits gives an error of its length with right checksums, without padding."""
    for size in [*range(64), *range(515, 540), *range(1180, 1245)]:
        error4 = no_route(ip4((bytes(range(256)) * 5)[:size]) + b"\xee" * 11)
        assert len(error4) == min(48 + size, ICMP4_MAX)
        assert oracle.ones_sum(error4[:20]) == oracle.ones_sum(error4[20:]) == 0xFFFF
        error6 = no_route(ip6((bytes(range(256)) * 5)[:size]) + b"\xee" * 11)
        assert len(error6) == min(88 + size, ICMP6_MAX) <= ICMP_MAX
        assert oracle.is_l4_right(error6[40:], PROTO_ICMP6, DST6, SRC6)


# --- none may be sent ---------------------------------------------------------------------------------

ICMP4_ERRORS = [3, 4, 5, 11, 12]
ICMP4_QUERIES = [0, 8, 13, 14, 15, 16, 17, 18]
ICMP6_ERRORS = [1, 2, 3, 4, 100, 101, 127]
ICMP6_QUERIES = [128, 129, 133, 135, 136, 255]

SILENT: dict[str, bytes] = {
    "later-fragment4": ip4(udp(DATA), PROTO_UDP, frag=1),
    "last-fragment4": ip4(udp(DATA), PROTO_UDP, frag=0x1FFF),
    "later-fragment6": ip6(fragment6(PROTO_UDP, 1) + DATA, PROTO_FRAGMENT),
    **{f"icmp4-error-{kind}": ip4(bytes([kind]) + bytes(35), PROTO_ICMP) for kind in ICMP4_ERRORS},
    **{
        f"icmp4-unknown-{kind}": ip4(bytes([kind]) + bytes(35), PROTO_ICMP) for kind in (1, 2, 7, 19, 30, 255)
    },
    **{f"icmp6-error-{kind}": ip6(bytes([kind]) + bytes(55), PROTO_ICMP6) for kind in ICMP6_ERRORS},
    "icmp6-error-behind-extension": ip6(extension6(PROTO_ICMP6) + b"\x01" + bytes(55), PROTO_DSTOPTS),
    "icmp4-cut": ip4(b"", PROTO_ICMP),
    "icmp6-cut": ip6(b"", PROTO_ICMP6),
    **{f"to-{dst}": ip4(DATA, dst=dst) for dst in ("224.0.0.1", "239.1.1.1", "255.255.255.255", "0.0.0.0")},
    **{f"to-{dst}": ip6(DATA, dst=dst) for dst in ("ff02::1", "ff0e::1", "::")},
    **{f"from-{src}": ip4(DATA, src=src) for src in ("0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.1")},
    "from-255.255.255.255": ip4(DATA, src="255.255.255.255"),
    **{f"from-{src}": ip6(DATA, src=src) for src in ("::", "::1", "ff02::1", "fe80::1", "::ffff:10.1.2.3")},
}


@pytest.mark.parametrize("name", SILENT)
def test_no_error_about_what_must_not_be_answered(name: str) -> None:
    """None about errors, later fragments, groups and senders that cannot be (RFC 1122 3.2.2, 4443 2.4)."""
    assert no_route(SILENT[name]) == b""


@pytest.mark.parametrize("name", [name for name, packet in GOOD.items() if "later" not in name])
def test_error_about_everything_else(name: str) -> None:
    """Every other good packet is answered, and the answer is itself a good packet."""
    assert no_route(GOOD[name])
    assert flow_of(no_route(GOOD[name])).family == GOOD[name][0] >> 4


@pytest.mark.parametrize("kind", ICMP4_QUERIES)
def test_icmp_queries_are_answered(kind: int) -> None:
    """A ping to nowhere gets its answer."""
    assert no_route(ip4(bytes([kind]) + bytes(35), PROTO_ICMP))


@pytest.mark.parametrize("kind", ICMP6_QUERIES)
def test_icmp6_queries_are_answered(kind: int) -> None:
    """A ping to nowhere gets its answer in IPv6, too."""
    assert no_route(ip6(bytes([kind]) + bytes(55), PROTO_ICMP6))


@pytest.mark.parametrize("name", ["icmp4-first-fragment", "icmp6-first-fragment"])
def test_first_fragment_of_a_ping_is_answered(name: str) -> None:
    """The first fragment stands for its datagram."""
    packets = {
        "icmp4-first-fragment": ip4(b"\x08" + bytes(35), PROTO_ICMP, frag=IP4_MF),
        "icmp6-first-fragment": ip6(fragment6(PROTO_ICMP6) + b"\x80" + bytes(35), PROTO_FRAGMENT),
    }
    assert no_route(packets[name])


def test_an_error_is_never_answered() -> None:
    """Two hosts cannot play ping-pong with errors."""
    assert no_route(no_route(inner.UDP4)) == b""
    assert no_route(no_route(inner.UDP6)) == b""


@pytest.mark.parametrize("packet", [packet for _, packet in (*INVALID4.values(), *INVALID6.values())])
def test_invalid_packets_are_not_answered(packet: bytes) -> None:
    """What cannot be parsed has no sender."""
    assert no_route(packet) == b""
