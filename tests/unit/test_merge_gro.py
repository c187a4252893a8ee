# SPDX-License-Identifier: Apache-2.0
"""Joining packets: what the kernel's own selftest of GRO asks of it, asked of merge.c, for both families.

A row is packets that arrive together, and how many of them each packet that is written stands for. We are
stricter than the kernel where cutting would not give the packets back, and never join behind IP options.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests import oracle
from tests.probe import merge
from tests.supers import ACK, CWR, ECE, FIN, PSH, RST, SYN, URG, cut, finish, layout, put, segment

TCP, UDP = oracle.PROTO_TCP, oracle.PROTO_UDP
SIZE = 100
DATA = bytes(range(250)) * 300
STAMP = bytes((1, 1, 8, 10, *range(8)))
LATER = bytes((1, 1, 8, 10, *range(1, 9)))
SACK_OK = bytes((1, 1, 4, 2))
FLAGS = {"SYN": ACK | SYN, "FIN": ACK | FIN, "RST": ACK | RST, "URG": ACK | URG, "CWR": ACK | CWR}

Row = tuple[list[bytes], list[int]]


def flow(*sizes: int, **fields: Any) -> list[bytes]:
    """Return packets of a flow with these payloads, one behind the other."""
    packets, at = [], 0
    for number, size in enumerate(sizes):
        named = {"seq": 1000 + at, "ident": 7 + number, **fields}
        packets.append(segment(DATA[at : at + size], **named))
        at += size
    return packets


def differing(of: dict[str, Any], **second: Any) -> Row:
    """Return a row of two packets that fit, but for fields of the second: they stay two."""
    first, _ = flow(SIZE, SIZE, options=STAMP, **of)
    _, other = flow(SIZE, SIZE, **{"options": STAMP, **of, **second})
    return [first, other], [1, 1]


def extended(packet: bytes, kind: int = oracle.PROTO_DSTOPTS) -> bytes:
    """Return an IPv6 packet with an extension header in front of its payload."""
    longer = packet[:40] + oracle.extension6(packet[6]) + packet[40:]
    return put(put(longer, 6, kind, 1), 4, len(longer) - 40)


def optioned(packet: bytes) -> bytes:
    """Return an IPv4 packet with four NOP options."""
    longer = put(packet[:20] + b"\1\1\1\1" + packet[20:], 0, 0x46, 1)
    longer = put(put(longer, 2, len(longer)), 10, 0)
    return put(longer, 10, oracle.checksum(longer[:24]))


def pushed(packet: bytes) -> bytes:
    """Return a TCP packet with PSH."""
    return finish(put(packet, layout(packet)[1] + 13, ACK | PSH, 1))


def tcp_rows(family: int) -> dict[str, Row]:
    """Return the rows of TCP."""
    of: dict[str, Any] = {"family": family}
    one, two, three = flow(SIZE, SIZE, SIZE, **of)
    differences: dict[str, dict[str, Any]] = {
        **{name: {"flags": flags} for name, flags in FLAGS.items()},
        "ECE": {"flags": ACK | ECE},
        "no ACK": {"flags": PSH},
        "acknowledgement": {"ack": 2001},
        "window": {"window": 1},
        "gap": {"seq": 1001 + SIZE},
        "overlap": {"seq": 999 + SIZE},
        "timestamp": {"options": LATER},
        "no timestamp": {"options": b""},
        "option": {"options": SACK_OK},
        "port": {"sport": 1},
    }
    return {
        "equal": ([one, two, three], [3]),
        "larger": (flow(SIZE, SIZE + 1, **of), [1, 1]),
        "smaller ends it": (flow(SIZE, SIZE, 50, SIZE, **of), [3, 1]),
        "one byte": (flow(SIZE, 1, **of), [2]),
        "pure ACK between": (flow(SIZE, 0, SIZE, **of), [1, 1, 1]),
        "pure ACKs": (flow(0, 0, **of), [1, 1]),
        "out of order": ([one, three, two], [1, 1, 1]),
        "doubled": ([one, one, two], [1, 2]),
        "more than 64 KiB": (flow(*(1398,) * 48, **of), [46, 2]),
        "PSH ends it": ([one, pushed(two), three], [2, 1]),
        **{name: differing(of, **second) for name, second in differences.items()},
    }


def udp_rows(family: int) -> dict[str, Row]:
    """Return the rows of UDP; ten datagrams are ten again when the kernel has cut them."""
    of: dict[str, Any] = {"family": family, "proto": UDP}
    return {
        "ten": (flow(*(SIZE,) * 10, **of), [10]),
        "ten of two sizes": (flow(*(SIZE, 50) * 5, **of), [2] * 5),
        "larger": (flow(SIZE, SIZE + 1, **of), [1, 1]),
        "empty between": (flow(SIZE, 0, SIZE, **of), [1, 1, 1]),
        "port": differing(of, sport=1),
    }


def ip4_rows(proto: int) -> dict[str, Row]:
    """Return the rows of IPv4 itself."""
    of: dict[str, Any] = {"proto": proto}
    free = {**of, "frag": 0}
    one, two, three = flow(SIZE, SIZE, SIZE, **of)
    return {
        "DSCP": differing(of, tos=4),
        "mark": differing(of, tos=1),
        "congestion": differing({**of, "tos": 2}, tos=3),
        "TTL": differing(of, ttl=63),
        "no DF": differing(of, frag=0),
        "DF": differing(free, frag=oracle.IP4_DF),
        "MF": differing(of, frag=oracle.IP4_MF),
        "reserved bit": differing(of, frag=oracle.IP4_DF | 0x8000),
        "IDs stay, DF": (flow(SIZE, SIZE, SIZE, ident=7, **of), [3]),
        "IDs stop, DF": ([one, two, flow(SIZE, SIZE, SIZE, ident=8, **of)[2]], [3]),
        "IDs count up": (flow(SIZE, SIZE, SIZE, **free), [3]),
        "IDs stay": (flow(SIZE, SIZE, ident=7, **free), [1, 1]),
        "IDs stop": ([*flow(SIZE, SIZE, **free), flow(SIZE, SIZE, SIZE, ident=8, **free)[2]], [2, 1]),
        "options": ([optioned(one), optioned(two)], [1, 1]),
        "options of one": ([one, optioned(two), three], [1, 1, 1]),
    }


def ip6_rows(proto: int) -> dict[str, Row]:
    """Return the rows of IPv6 itself."""
    of: dict[str, Any] = {"family": 6, "proto": proto}
    one, two, three = flow(SIZE, SIZE, SIZE, **of)
    return {
        "traffic class": differing(of, tos=4),
        "mark": differing(of, tos=1),
        "congestion": differing({**of, "tos": 2}, tos=3),
        "hop limit": differing(of, ttl=63),
        "flow label": differing(of, label=1),
        "extensions": ([extended(one), extended(two)], [1, 1]),
        "extension of one": ([one, extended(two), three], [1, 1, 1]),
        "other extensions": ([extended(one), extended(two, oracle.PROTO_HOPOPTS)], [1, 1]),
    }


TABLES = {
    **{f"TCP/IPv{family}": tcp_rows(family) for family in (4, 6)},
    **{f"UDP/IPv{family}": udp_rows(family) for family in (4, 6)},
    "IPv4 of TCP": ip4_rows(TCP),
    "IPv4 of UDP": ip4_rows(UDP),
    "IPv6 of TCP": ip6_rows(TCP),
    "IPv6 of UDP": ip6_rows(UDP),
}
ROWS = [
    pytest.param(*row, id=f"{table} {name}") for table, rows in TABLES.items() for name, row in rows.items()
]


def atomic(packet: bytes) -> bytes:
    """Return a packet without its ID where DF makes that say nothing (RFC 6864)."""
    is_atomic = packet[0] >> 4 == 4 and packet[6] & 0x40
    return put(put(packet, 4, 0), 10, 0) if is_atomic else packet


@pytest.mark.parametrize("is_run", [False, True], ids=["batch", "run"])
@pytest.mark.parametrize(("packets", "groups"), ROWS)
def test_case_089_gro(packets: list[bytes], groups: list[int], is_run: bool) -> None:
    """Packets are joined as the row says and in order, whether they came one by one or in one message."""
    written = [
        cut(packet, vnet.gso_size) if vnet.gso_type else [packet]
        for vnet, packet in merge(packets, is_run=is_run)
    ]
    assert [atomic(one) for group in written for one in group] == [atomic(one) for one in packets]
    assert [len(group) for group in written] == groups
