# SPDX-License-Identifier: Apache-2.0
"""Joining packets (case 89): what wireguard-go's tables of its GRO say, asked of merge.c.

A row is packets that arrive together, and which of them leave as one. We differ in one row: a packet that
comes before its predecessor is not put in front of it, since nothing of a flow is reordered here.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from tests import oracle
from tests.oracle import IP4_MF
from tests.probe import GSO_NONE, GSO_UDP_L4, NEEDS_CSUM, Vnet, merge, parse
from tests.supers import ACK, PSH, cut, finish, get, layout, partial, put, segment

TCP, UDP = oracle.PROTO_TCP, oracle.PROTO_UDP
GRE = 47


class Row(NamedTuple):
    """Packets, and for each super-packet that is written the places of its packets among them."""

    packets: list[bytes]
    groups: list[list[int]]
    has_udp: bool = True


def tcp(number: int, flow: int = 1, family: int = 4, **fields: int) -> bytes:
    """Return 100 bytes of a TCP flow, the number-th of them."""
    named: dict[str, Any] = {"sport": flow, "seq": 1 + 100 * number, **fields}
    return segment(bytes([number]) * 100, family=family, **named)


def udp(number: int, flow: int = 1, family: int = 4, size: int = 100, **fields: int) -> bytes:
    """Return a datagram of a UDP flow, whose payload says that it is the number-th."""
    named: dict[str, Any] = {"sport": flow, **fields}
    return segment(bytes([number]) * size, family=family, proto=UDP, **named)


def damaged(packet: bytes) -> bytes:
    """Return a packet with all bits of its L4 checksum inverted."""
    proto, l3len, _ = layout(packet)
    at = l3len + (16 if proto == TCP else 6)
    return put(packet, at, get(packet, at) ^ 0xFFFF)


def differing(family: int = 4, **second: int) -> Row:
    """Return a row of two pairs, TCP and UDP, with IDs that count up: each second one differs in a field."""
    first = {"frag": 0} if second.get("frag") == oracle.IP4_DF else {}
    packets = [
        tcp(0, family=family, **first),
        tcp(1, family=family, ident=8, **second),
        udp(2, family=family, **first),
        udp(3, family=family, ident=8, **second),
    ]
    return Row(packets, [[0], [1], [2], [3]])


FLOWS = [
    *(tcp(0), udp(1), udp(2, flow=2), tcp(1), tcp(2, flow=2)),
    *(tcp(0, family=6), tcp(1, family=6), tcp(2, flow=2, family=6)),
    *(udp(3), udp(4, family=6), udp(5, family=6)),
]

ROWS = {
    "several protocols and flows": Row(FLOWS, [[0, 3], [1, 8], [2], [4], [5, 6], [7], [9, 10]]),
    "the same, UDP is not joined": Row(
        FLOWS, [[0, 3], [1], [2], [4], [5, 6], [7], [8], [9], [10]], has_udp=False
    ),
    "PSH in between": Row(
        [
            *(tcp(0), tcp(1, flags=ACK | PSH), tcp(2), tcp(3)),
            *(tcp(0, family=6), tcp(1, family=6, flags=ACK | PSH), tcp(2, family=6), tcp(3, family=6)),
        ],
        [[0, 1], [2, 3], [4, 5], [6, 7]],
    ),
    "a wrong checksum": Row(
        [damaged(tcp(0)), tcp(1), tcp(2), damaged(udp(3)), udp(4), udp(5)], [[0], [1, 2], [3], [4, 5]]
    ),
    "out of order": Row([tcp(1), tcp(0), tcp(2)], [[0], [1], [2]]),
    "TTL differs": differing(ttl=65),
    "TOS differs": differing(tos=1),
    "a fragment follows": differing(frag=IP4_MF),
    "DF differs": differing(frag=oracle.IP4_DF),
    "hop limit differs": differing(6, ttl=65),
    "traffic class differs": differing(6, tos=1),
    "datagrams of a size": Row([udp(0), udp(1)], [[0, 1]]),
    "a shorter datagram": Row([udp(0), udp(1, size=10)], [[0, 1]]),
    "behind a shorter datagram": Row([udp(0, size=110), udp(1), udp(2)], [[0, 1], [2]]),
    "a longer datagram": Row([udp(0), udp(1, size=110)], [[0], [1]]),
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_case_089_rows(row: Row) -> None:
    """Packets are joined as the row says, nothing is lost or changed, and no flow is reordered."""
    written = [
        cut(packet, vnet.gso_size) if vnet.gso_type else [packet]
        for vnet, packet in merge(row.packets, has_udp=row.has_udp)
    ]
    # IDs of packets with DF say nothing (RFC 6864), and cutting counts them up.
    known = [identity(packet) for packet in row.packets]
    groups = [[known.index(identity(packet)) for packet in group] for group in written]
    assert sorted(groups) == row.groups
    for flow in {flow_of(packet) for packet in row.packets}:
        of_flow = [number for group in groups for number in group if flow_of(row.packets[number]) == flow]
        assert of_flow == sorted(of_flow)


def identity(packet: bytes) -> bytes:
    """Return a packet without its ID where that says nothing, and without the header checksum over it."""
    is_atomic = packet[0] >> 4 == 4 and packet[6] & 0x40
    return put(put(packet, 4, 0), 10, 0) if is_atomic else packet


def flow_of(packet: bytes) -> tuple[int, int, bytes]:
    """Return what tells flows apart here: family, protocol and source port."""
    proto, l3len, _ = layout(packet)
    return l3len, proto, packet[l3len : l3len + 2]


# --- candidates -------------------------------------------------------------------------------------------


def shortened(packet: bytes, length: int) -> bytes:
    """Return a packet cut to a length, which its IP header tells."""
    if packet[0] >> 4 == 6:
        return put(packet[:length], 4, length - 40)
    packet = put(put(packet[:length], 2, length), 10, 0)
    return put(packet, 10, oracle.checksum(packet[:20]))


def with_first_byte(packet: bytes, value: int) -> bytes:
    """Return an IPv4 packet with another first byte, and the header checksum that goes with it."""
    packet = put(put(packet, 0, value, 1), 10, 0)
    return put(packet, 10, oracle.checksum(packet[: (value & 15) * 4]))


def of_protocol(packet: bytes, proto: int) -> bytes:
    """Return a packet that says it carries another protocol."""
    if packet[0] >> 4 == 6:
        return put(packet, 6, proto, 1)
    packet = put(put(packet, 9, proto, 1), 10, 0)
    return put(packet, 10, oracle.checksum(packet[:20]))


class Candidate(NamedTuple):
    """A packet, and whether it can be joined to one that follows it."""

    packet: bytes
    is_joined: bool
    has_udp: bool = True


TCP4, TCP6, UDP4, UDP6 = tcp(0), tcp(0, family=6), udp(0), udp(0, family=6)
CANDIDATES = {
    "TCP": Candidate(TCP4, True),
    "TCP over IPv6": Candidate(TCP6, True),
    "UDP": Candidate(UDP4, True),
    "UDP, not supported": Candidate(UDP4, False, has_udp=False),
    "UDP over IPv6": Candidate(UDP6, True),
    "UDP over IPv6, not supported": Candidate(UDP6, False, has_udp=False),
    "UDP too short": Candidate(shortened(UDP4, 27), False),
    "UDP over IPv6 too short": Candidate(shortened(UDP6, 47), False),
    "TCP too short": Candidate(shortened(TCP4, 39), False),
    "TCP over IPv6 too short": Candidate(shortened(TCP6, 59), False),
    "a longer IP header": Candidate(with_first_byte(TCP4, 0x46), False),
    "another protocol": Candidate(of_protocol(TCP4, GRE), False),
    "another protocol over IPv6": Candidate(of_protocol(TCP6, GRE), False),
}


@pytest.mark.parametrize("row", CANDIDATES.values(), ids=CANDIDATES.keys())
def test_case_089_candidates(row: Candidate) -> None:
    """A candidate is joined to the packet that follows it in its flow; what is none passes as it came."""
    assert parse(row.packet)[0] == "none"
    if not row.is_joined:
        assert merge([row.packet] * 2, has_udp=row.has_udp) == [(Vnet(), row.packet)] * 2
        return
    proto, l3len, headers = layout(row.packet)
    following = put(row.packet, l3len + 4, 101, 4) if proto == TCP else row.packet
    ((vnet, joined),) = merge([row.packet, finish(following)], has_udp=row.has_udp)
    assert joined == partial(row.packet + row.packet[headers:])
    assert (vnet.flags, vnet.gso_size, vnet.hdr_len, vnet.csum_start) == (NEEDS_CSUM, 100, headers, l3len)
    assert (vnet.gso_type == GSO_UDP_L4) == (proto == UDP)
    assert vnet.gso_type != GSO_NONE


@pytest.mark.parametrize(
    ("packet", "drop"),
    [
        pytest.param(b"\0", "inner_version", id="IP version 0"),
        pytest.param(TCP4[:39], "inner_length", id="TCP cut"),
        pytest.param(TCP6[:59], "inner_length", id="TCP over IPv6 cut"),
        pytest.param(UDP4[:27], "inner_length", id="UDP cut"),
        pytest.param(UDP6[:47], "inner_length", id="UDP over IPv6 cut"),
    ],
)
def test_case_089_no_candidate_at_all(packet: bytes, drop: str) -> None:
    """What is no whole packet is dropped by name before it gets that far."""
    assert parse(packet)[0] == drop
