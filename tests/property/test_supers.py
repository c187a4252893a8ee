# SPDX-License-Identifier: Apache-2.0
"""Super-packets of any shape are cut by the book; what was cut and mixed is joined without loss, in order."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests import oracle
from tests.probe import merge, split
from tests.supers import ACK, CWR, ECE, FIN, PSH, cut, described, finish, partial, put, segment, unpack_all

DATA = bytes(range(256)) * 40
FLAGS = st.sampled_from([ACK, ACK | PSH, ACK | FIN | PSH, ACK | CWR, ACK | CWR | ECE | PSH])


@st.composite
def super_packets(draw: st.DrawFn) -> tuple[bytes, int]:
    """A super-packet and the payload of each of its segments."""
    length = draw(st.integers(0, 5000))
    start = draw(st.integers(0, 255))
    packet = segment(
        DATA[start : start + length],
        family=draw(st.sampled_from([4, 6])),
        proto=draw(st.sampled_from([oracle.PROTO_TCP, oracle.PROTO_UDP])),
        flags=draw(FLAGS),
        seq=draw(st.integers(0, 0xFFFFFFFF)),
        ident=draw(st.integers(0, 0xFFFF)),
        options=bytes([1]) * draw(st.sampled_from([0, 12, 40])),
        tos=draw(st.integers(0, 255)),
        frag=draw(st.sampled_from([0, oracle.IP4_DF])),
        sport=draw(st.integers(1, 3)),
    )
    return packet, draw(st.integers(50, 1500))


@given(super_packets())
@settings(max_examples=300, deadline=None)
def test_cut(case: tuple[bytes, int]) -> None:
    """Cutting agrees with the oracle."""
    packet, size = case
    assert split(partial(packet), described(packet, size)) == ("none", cut(packet, size))


@given(st.lists(super_packets(), min_size=1, max_size=4), st.randoms(use_true_random=False), st.booleans())
@settings(max_examples=300, deadline=None)
def test_mixed_and_joined(cases: list[tuple[bytes, int]], chance: object, is_mixed: bool) -> None:
    """Whatever is joined, cutting it gives every packet back, each flow in its order."""
    lanes = [cut(packet, size) for packet, size in cases]
    packets: list[bytes] = []
    if is_mixed:
        while any(lanes):
            lane = chance.choice([lane for lane in lanes if lane])  # type: ignore[attr-defined]
            packets.append(lane.pop(0))
    else:
        packets = [packet for lane in lanes for packet in lane]
    found = [without_id(packet) for packet in unpack_all(merge(packets))]
    packets = [without_id(packet) for packet in packets]
    assert sorted(found) == sorted(packets)
    for flow in {flow_of(packet) for packet in packets}:
        assert [p for p in found if flow_of(p) == flow] == [p for p in packets if flow_of(p) == flow]


@given(super_packets(), st.data())
@settings(max_examples=600, deadline=None)
def test_run(case: tuple[bytes, int], data: st.DataObject) -> None:
    """A run is joined as the same packets one by one are, also if bytes of them are different or damaged."""
    packets = cut(*case)
    for number in data.draw(st.sets(st.integers(0, len(packets) - 1), max_size=2)):
        at = data.draw(st.integers(0, min(len(packets[number]), 80) - 1))
        other = put(packets[number], at, packets[number][at] ^ 1 << data.draw(st.integers(0, 7)), 1)
        asked = (0, 9 if packets[number][0] >> 4 == 4 else 6)  # by finish(), for what to do
        is_damaged = data.draw(st.booleans()) or at in asked
        packets[number] = other if is_damaged else finish(other)
    assert merge(packets, is_run=True) == merge(packets)


def without_id(packet: bytes) -> bytes:
    """Return a packet without its ID where DF makes that meaningless (RFC 6864)."""
    is_atomic = packet[0] >> 4 == 4 and packet[6] & 0x40
    return finish(put(packet, 4, 0)) if is_atomic else packet


def flow_of(packet: bytes) -> tuple[int, int, bytes]:
    """Return what tells flows apart here: family, protocol and source port."""
    is4 = packet[0] >> 4 == 4
    at = (packet[0] & 15) * 4 if is4 else 40
    return packet[0] >> 4, packet[9] if is4 else packet[6], packet[at : at + 2]
