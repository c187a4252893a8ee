# SPDX-License-Identifier: Apache-2.0
"""What the outer header says of the inner one: DSCP and TTL as they were asked for, congestion marks always.

    wire0 (the test as peers) ── VXLAN over IPv4 or IPv6, IPIP, udp ── under0  overlayd  overlay0, pod0

Drawn in full at the head of rig.py. By default DSCP is 0 and TTL 64: test_encap.py, cases 37 and 38.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from scapy.layers.inet import UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from tests.e2e import frames, supersent
from tests.e2e.frames import BARE, DUAL, FOUR, IPIP, PEERS, SIX, US, WIRE_MAC, inner4, inner6
from tests.e2e.rig import DEFAULT_FLAGS, Rig

FLAGS = (*DEFAULT_FLAGS, "--encap", "udp")
EF, TTL = 0xB8, 77
WAYS: dict[str, Callable[[int, int], Packet]] = {
    "v4-vxlan4": lambda tos, ttl: inner4(US.pod(), DUAL.pod(), tos=tos, ttl=ttl),
    "v6-vxlan4": lambda tos, ttl: inner6(US.pod6(), FOUR.pod6(), tc=tos, hlim=ttl),
    "v4-vxlan6": lambda tos, ttl: inner4(US.pod(), SIX.pod(), tos=tos, ttl=ttl),
    "v6-vxlan6": lambda tos, ttl: inner6(US.pod6(), DUAL.pod6(), tc=tos, hlim=ttl),
    "v4-ipip": lambda tos, ttl: inner4(US.pod(), IPIP.pod(), tos=tos, ttl=ttl),
    "v4-udp": lambda tos, ttl: inner4(US.pod(), BARE.pod(), tos=tos, ttl=ttl),
}


def build(directory: Path, *flags: str) -> Rig:
    """Return a rig with a peer of each encapsulation, and these flags."""
    rig = Rig(directory / "node", frames.peers_file((*PEERS, BARE)), (*FLAGS, *flags))
    rig.dut.ip(f"neigh replace {BARE.ip} lladdr {WIRE_MAC} dev under0 nud permanent\n")
    return rig


@pytest.fixture(scope="module", params=["inherit", "fixed"])
def rigs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Rig, str]]:
    """Yield a rig that inherits both DSCP and TTL, then one that has a TTL of its own."""
    flags = (
        ("--dscp", "inherit", "--outer-ttl", "inherit")
        if request.param == "inherit"
        else ("--outer-ttl", "7")
    )
    with build(tmp_path_factory.mktemp("marks"), *flags) as built:
        yield built, request.param


def outer_marks(frame: bytes) -> tuple[int, int]:
    """Return TOS and TTL of an outer header."""
    outer = Ether(frame).payload
    return (outer.tc, outer.hlim) if isinstance(outer, IPv6) else (outer.tos, outer.ttl)


@pytest.mark.parametrize("way", [pytest.param(way, id=f"case_037-case_038-{way}") for way in WAYS])
def test_outer_marks_are_what_was_asked_for(rigs: tuple[Rig, str], way: str) -> None:
    """Outer DSCP and TTL are those of the packet that goes in, or fixed; its mark is copied either way."""
    rig, kind = rigs
    for tos, ttl in ((EF, TTL), (EF | 1, 64), (0x28 | 2, 255), (3, 2), (0, 65)):
        frame = rig.sent(WAYS[way](tos, ttl))
        assert outer_marks(frame) == ((tos, ttl - 1) if kind == "inherit" else (tos & 3, 7))


@pytest.mark.parametrize("way", [pytest.param(way, id=f"case_082-{way}") for way in WAYS if "vxlan" in way])
def test_super_packets_of_different_marks_share_no_run(rigs: tuple[Rig, str], way: str) -> None:
    """Each segment has the marks of its own super-packet, though all go to one peer in one batch."""
    rig, kind = rigs
    marks = [(EF, TTL), (EF, TTL - 1), (EF | 2, TTL), (EF | 3, TTL), (0x28, TTL)]
    before = rig.daemon.settled()
    rig.wire.take()
    with supersent.held(rig):
        for tos, ttl in marks:
            packet = WAYS[way](tos, ttl)
            packet[UDP].remove_payload()
            supersent.send(rig.pod, rig.to_pod_side(packet / bytes(400)), 100)
    seen = supersent.take(rig.wire, 4 * len(marks))
    after = rig.daemon.settled(tx=before.tx.offered + 4 * len(marks))
    assert after.tx.forwarded == before.tx.forwarded + 4 * len(marks)
    assert after.supers == before.supers + len(marks)
    left = [(tos, ttl - 1) if kind == "inherit" else (tos & 3, 7) for tos, ttl in marks]
    assert [outer_marks(frame) for frame in seen] == [mark for mark in left for _ in range(4)]
