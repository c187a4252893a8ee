# SPDX-License-Identifier: Apache-2.0
"""Congestion marks through the tunnel, both ways, for every pair of families: cases 46 to 81.

    wire0 (the test as peers) ── VXLAN over IPv4 or IPv6, IPIP ── under0  overlayd  overlay0, pod0 ── the test

Drawn in full at the head of rig.py. RFC 6040: what comes out is a function of both marks. DSCP stays on its
own side of the tunnel (RFC 2983, pipe model), so each row has one that must not leak.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from tests.e2e.frames import DUAL, FOUR, IPIP, SIX, US, from_peer, inner4, inner6, ipip, vxlan, vxlan6
from tests.e2e.rig import Rig

NOT_ECT, ECT1, ECT0, CE = range(4)
NAMES = {NOT_ECT: "not_ect", ECT0: "ect0", ECT1: "ect1", CE: "ce"}
MARKS = (NOT_ECT, ECT0, ECT1, CE)  # in the order of RFC 6040, which numbers the cases
OUTER_DSCP, INNER_DSCP = 0xB8, 0x28

# (inner, outer) -> what is delivered; None: dropped. RFC 6040 figure 4.
COMBINED: dict[tuple[int, int], int | None] = {
    (NOT_ECT, NOT_ECT): NOT_ECT,
    (NOT_ECT, ECT0): NOT_ECT,
    (NOT_ECT, ECT1): NOT_ECT,
    (NOT_ECT, CE): None,
    (ECT0, NOT_ECT): ECT0,
    (ECT0, ECT0): ECT0,
    (ECT0, ECT1): ECT1,
    (ECT0, CE): CE,
    (ECT1, NOT_ECT): ECT1,
    (ECT1, ECT0): ECT1,
    (ECT1, ECT1): ECT1,
    (ECT1, CE): CE,
    (CE, NOT_ECT): CE,
    (CE, ECT0): CE,
    (CE, ECT1): CE,
    (CE, CE): CE,
}


def _v4(tos: int) -> dict[str, int]:
    return {"tos": tos}


def _v6(tos: int) -> dict[str, int]:
    return {"tc": tos}


# inner and outer family -> (inner packet, tunnel packet) of two TOS bytes
DECAP: dict[str, Callable[[int, int], tuple[Packet, Packet]]] = {
    "v4-vxlan4": lambda i, o: (inner := from_peer(DUAL, **_v4(i)), vxlan(inner, DUAL, **_v4(o))),
    "v4-vxlan6": lambda i, o: (inner := from_peer(SIX, **_v4(i)), vxlan6(inner, SIX, **_v6(o))),
    "v4-ipip": lambda i, o: (inner := from_peer(IPIP, **_v4(i)), ipip(inner, IPIP, **_v4(o))),
    "v6-vxlan4": lambda i, o: (inner := from_peer(FOUR, 6, **_v6(i)), vxlan(inner, FOUR, **_v4(o))),
    "v6-vxlan6": lambda i, o: (inner := from_peer(DUAL, 6, **_v6(i)), vxlan6(inner, DUAL, **_v6(o))),
}

DECAP_ROWS = [
    pytest.param(
        way, inner, outer, id=f"case_{first + 4 * row + column:03}-{way}-{NAMES[inner]}-{NAMES[outer]}"
    )
    for way in DECAP
    for first in (50 if way.startswith("v4") else 66,)
    for row, inner in enumerate(MARKS)
    for column, outer in enumerate(MARKS)
]


@pytest.mark.parametrize(("way", "inner_mark", "outer_mark"), DECAP_ROWS)
def test_decap_combines_both_marks(rig: Rig, way: str, inner_mark: int, outer_mark: int) -> None:
    """What is delivered carries the mark of RFC 6040 figure 4, its own DSCP and a right header checksum."""
    inner, frame = DECAP[way](INNER_DSCP | inner_mark, OUTER_DSCP | outer_mark)
    combined = COMBINED[inner_mark, outer_mark]
    if combined is None:
        rig.refused(frame, "ecn")
        return
    expected = inner.copy()
    if IP in expected:
        expected.tos = INNER_DSCP | combined
    else:
        expected.tc = INNER_DSCP | combined
    rig.accepted(frame, expected)


ENCAP: dict[str, Callable[[int], Packet]] = {
    "v4-vxlan4": lambda tos: inner4(US.pod(), DUAL.pod(), tos=tos),
    "v4-vxlan6": lambda tos: inner4(US.pod(), SIX.pod(), tos=tos),
    "v4-ipip": lambda tos: inner4(US.pod(), IPIP.pod(), tos=tos),
    "v6-vxlan4": lambda tos: inner6(US.pod6(), FOUR.pod6(), tc=tos),
    "v6-vxlan6": lambda tos: inner6(US.pod6(), DUAL.pod6(), tc=tos),
}
ENCAP_ROWS = [
    pytest.param(way, mark, id=f"case_{46 + row:03}-{way}-{NAMES[mark]}")
    for way in ENCAP
    for row, mark in enumerate(MARKS)
]


@pytest.mark.parametrize(("way", "mark"), ENCAP_ROWS)
def test_encap_copies_the_mark(rig: Rig, way: str, mark: int) -> None:
    """The outer header has the mark of the inner one, so that a router can set it, and DSCP 0 (case 38)."""
    outer = Ether(rig.sent(ENCAP[way](INNER_DSCP | mark))).payload
    assert (outer.tc if IPv6 in outer and outer.version == 6 else outer.tos) == mark
