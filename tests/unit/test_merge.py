# SPDX-License-Identifier: Apache-2.0
"""Joining packets: only what cutting gives back bit for bit, and in order (oracle: supers.cut)."""

from __future__ import annotations

from typing import Any

import pytest

from tests import oracle
from tests.probe import GSO_NONE, GSO_TCP4, GSO_TCP6, GSO_UDP_L4, NEEDS_CSUM, Vnet, merge
from tests.supers import (
    ACK,
    ECE,
    PSH,
    cut,
    finish,
    get,
    layout,
    partial,
    put,
    segment,
    unpack_all,
)

TCP, UDP = oracle.PROTO_TCP, oracle.PROTO_UDP
DATA = bytes(range(256)) * 255
OPTIONS = bytes((1, 1, 8, 10, *range(8)))
OTHER = bytes((1, 1, 8, 10, *range(1, 9)))
NONE = Vnet()


def two(**second: int | bytes) -> list[bytes]:
    """Return two packets that could be joined but for how the second deviates."""
    fields: dict[str, Any] = {"seq": 2000, "ident": 8, "options": OPTIONS, **second}
    return [segment(DATA[:1000], options=OPTIONS), segment(DATA[1000:2000], **fields)]


BURSTS = {
    "TCP": (segment(DATA[:40000]), 1398, GSO_TCP4),
    "TCP over IPv6": (segment(DATA[:40000], family=6), 1378, GSO_TCP6),
    "TCP with options": (segment(DATA[:40000], options=OPTIONS), 1386, GSO_TCP4),
    "UDP": (segment(DATA[:40000], proto=UDP), 1400, GSO_UDP_L4),
    "UDP over IPv6": (segment(DATA[:40000], proto=UDP, family=6), 1400, GSO_UDP_L4),
    "a multiple of the size": (segment(DATA[:4000]), 1000, GSO_TCP4),
    "PSH on the last": (segment(DATA[:4000], flags=ACK | PSH), 1000, GSO_TCP4),
    "ECE on all": (segment(DATA[:4000], flags=ACK | ECE), 1000, GSO_TCP4),
    "IDs that count up without DF": (segment(DATA[:4000], frag=0, ident=0xFFFE), 1000, GSO_TCP4),
    "sequence number wraps": (segment(DATA[:4000], seq=0xFFFFFFFF - 1500), 1000, GSO_TCP4),
}


@pytest.mark.parametrize(("packet", "size", "gso"), BURSTS.values(), ids=BURSTS.keys())
def test_burst(packet: bytes, size: int, gso: int) -> None:
    """What was cut from one super-packet becomes that again, described for the kernel."""
    proto, l3len, headers = layout(packet)
    assert merge(cut(packet, size)) == [
        (Vnet(NEEDS_CSUM, gso, headers, size, l3len, 16 if proto == TCP else 6), partial(packet))
    ]


def test_constant_id_with_df() -> None:
    """With DF the ID says nothing (RFC 6864), so senders that leave it alone are joined too."""
    ((vnet, packet),) = merge(two(ident=7))
    assert (vnet.gso_size, len(packet)) == (1000, 2052)


def test_two_packets_that_fit() -> None:
    """The pair from which deviations start, here and in test_merge_gro.py, is joined."""
    assert len(merge(two())) == 1


def test_urgent_pointer() -> None:
    """Packets whose urgent pointers differ are not joined, though without URG they mean nothing."""
    first, second = two()
    at = layout(second)[1] + 18
    packets = [first, finish(put(second, at, 1))]
    assert merge(packets) == [(NONE, packet) for packet in packets]


def test_other_differences() -> None:
    """Nor are packets of another peer, family or port, longer ones, or IDs that jump without DF."""
    first, second = two()
    assert len(merge([first, second], [1, 2])) == 2
    assert len(merge([first, segment(DATA[:1000], options=OPTIONS, seq=2000, sport=1)])) == 2
    longer = segment(DATA[:1001], options=OPTIONS, seq=2000)
    assert merge([first, longer]) == [(NONE, first), (NONE, longer)]
    free = [segment(DATA[:1000], frag=0, ident=1), segment(DATA[:1000], frag=0, ident=3, seq=2000)]
    assert len(merge(free)) == 2
    labels = [segment(DATA[:9], family=6, label=1), segment(DATA[:9], family=6, label=2, seq=1009)]
    assert len(merge(labels)) == 2


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("proto", [TCP, UDP], ids=["TCP", "UDP"])
@pytest.mark.parametrize("damaged", range(4))
def test_case_090_damage_is_never_hidden(family: int, proto: int, damaged: int) -> None:
    """A packet with a wrong checksum is handed on as it came, for the pod to refuse; others still join."""
    packets = cut(segment(DATA[:4000], family=family, proto=proto), 1000)
    packets[damaged] = put(packets[damaged], len(packets[damaged]) - 1, packets[damaged][-1] ^ 1, 1)
    written = merge(packets)
    assert unpack_all(written) == packets
    assert [packet for vnet, packet in written if vnet == NONE and packet == packets[damaged]]
    assert all(vnet == NONE or vnet.flags == NEEDS_CSUM for vnet, _ in written)
    assert len(written) == (2 if damaged in (0, 3) else 3)


@pytest.mark.parametrize("bits", [0x0001, 0x0100, 0xFFFF])
@pytest.mark.parametrize("proto", [TCP, UDP], ids=["TCP", "UDP"])
def test_case_090_wrong_field(proto: int, bits: int) -> None:
    """The same if only the checksum field was hit."""
    packets = cut(segment(DATA[:2000], proto=proto), 1000)
    at = 36 if proto == TCP else 26
    packets[1] = put(packets[1], at, get(packets[1], at) ^ bits)
    assert merge(packets) == [(NONE, packet) for packet in packets]


@pytest.mark.parametrize(
    "odd",
    [
        pytest.param(segment(b"", seq=2000), id="pure ACK"),
        pytest.param(finish(put(segment(DATA[:9], seq=2000), 32, 0x51, 1)), id="reserved bit"),
        pytest.param(segment(DATA[:9], frag=oracle.IP4_MF), id="fragment"),
        pytest.param(oracle.ip4(DATA[:9], oracle.PROTO_ICMP), id="ICMP"),
        pytest.param(oracle.ip4(oracle.tcp(DATA[:9]), TCP, options=bytes(4)), id="IPv4 options"),
        pytest.param(oracle.ip4(oracle.udp(DATA[:9], check=0), UDP), id="UDP without checksum"),
        pytest.param(oracle.ip4(b"", TCP), id="no L4 header"),
    ],
)
def test_what_can_never_be_joined(odd: bytes) -> None:
    """Packets that are never part of a super-packet pass unchanged, also twice, and behind their flow."""
    first = segment(DATA[:1000])
    assert merge([odd, odd]) == [(NONE, odd)] * 2
    written = merge([first, odd])
    assert sorted(packet for _, packet in written) == sorted([first, odd])
    is_same_flow = (odd[9] == TCP and len(odd) > 40) or odd[6] & 0x20
    assert written[0][1] == first or not is_same_flow


@pytest.mark.parametrize("last", [{"flags": ACK | PSH}, {}], ids=["PSH", "short"])
def test_what_ends_a_super_packet(last: dict[str, int]) -> None:
    """Behind a PSH or a short packet a new super-packet begins."""
    first = segment(DATA[:1000], ident=1)
    size = 1000 if "flags" in last else 500
    ended = segment(DATA[1000 : 1000 + size], seq=2000, ident=2, flags=last.get("flags", ACK))
    more = [segment(DATA[:500], seq=2000 + size + 500 * n, ident=3 + n) for n in range(2)]
    written = merge([first, ended, *more])
    assert [len(packet) for _, packet in written] == [1040 + size, 1040]
    assert unpack_all(written) == [first, ended, *more]


def test_bounds() -> None:
    """A super-packet holds at most 64 packets and 65535 bytes."""
    small = cut(segment(DATA[:1000]), 10)
    assert [len(packet) for _, packet in merge(small)] == [40 + 640, 40 + 360]
    large = [segment(DATA[:8000], seq=1000 + 8000 * n, ident=n) for n in range(10)]
    written = merge(large)
    assert [len(packet) for _, packet in written] == [40 + 64000, 40 + 16000]
    assert unpack_all(written) == large


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("proto", [TCP, UDP], ids=["TCP", "UDP"])
@pytest.mark.parametrize("frag", [0, oracle.IP4_DF], ids=["free", "DF"])
def test_run_is_joined_as_its_packets_are(family: int, proto: int, frag: int) -> None:
    """Whatever bit of whatever header is another, a run becomes what its packets become one by one."""
    packets = cut(segment(DATA[:4000], family=family, proto=proto, frag=frag, options=OPTIONS), 1000)
    assert len(merge(packets, is_run=True)) == 1
    own, l3len, headers = layout(packets[2])
    asked = {0, 9 if family == 4 else 6, *([l3len + 12] if own == TCP else [])}  # by finish(), for what to do
    for at in range(headers + 1):
        for bit in range(8):
            other = put(packets[2], at, packets[2][at] ^ 1 << bit, 1)
            for changed in (other, *([] if at in asked else [finish(other)])):
                burst = [*packets[:2], changed, packets[3]]
                assert merge(burst, is_run=True) == merge(burst), (at, bit)


def lie(packet: bytes, at: int, value: int) -> bytes:
    """Return a packet with a field that lies, and checksums that are right nevertheless."""
    _, l3len, _ = layout(packet)
    packet = put(put(packet, at, value), 10, 0)
    packet = put(packet, 10, oracle.checksum(packet[:l3len]))
    old, new = (get(packet, l3len + 4), value) if at == l3len + 4 else (0, 0)
    check_at = l3len + (16 if layout(packet)[0] == TCP else 6)
    return put(packet, check_at, (get(packet, check_at) + old - new) % 0xFFFF)


@pytest.mark.parametrize(
    ("proto", "field"),
    [(TCP, "IP length"), (UDP, "IP length"), (UDP, "UDP length"), (UDP, "no UDP checksum")],
)
def test_run_with_a_packet_that_lies(proto: int, field: str) -> None:
    """Lengths of a packet of a run are looked at, and that it has a checksum."""
    whole = segment(DATA[:3000], proto=proto, options=OPTIONS)
    packets = cut(whole, 1000)
    if field == "IP length":
        packets[1] = lie(packets[1], 2, len(packets[1]) + 1)
    elif field == "UDP length":
        packets[1] = lie(packets[1], 24, 1000)
    else:  # one whose sum is right although there is none
        missing = get(packets[1], 26)
        packets[1] = put(put(packets[1], 28, (get(packets[1], 28) + missing) % 0xFFFF), 26, 0)
    written = merge(packets, is_run=True)
    assert written == merge(packets)
    assert max(len(packet) for _, packet in written) < len(whole)


@pytest.mark.parametrize("cut_off", [1, 100, 1000])
def test_run_with_a_packet_that_says_more_than_it_is(cut_off: int) -> None:
    """A packet of a run that lacks bytes, or all its payload, is treated as by itself."""
    packets = cut(segment(DATA[:3000]), 1000)
    for shorter in (packets[1][:-cut_off], finish(packets[1][:-cut_off])):
        burst = [packets[0], shorter, packets[2]]
        assert merge(burst, is_run=True) == merge(burst)


def test_flows_side_by_side() -> None:
    """Interleaved flows are joined each by itself; more flows than fit lose nothing."""
    bursts = [cut(segment(DATA[: 5 * 100], sport=n), 100) for n in range(1, 41)]
    turns = [burst[turn] for turn in range(5) for burst in bursts]
    written = merge(turns)
    found = unpack_all(written)
    assert sorted(found) == sorted(turns)
    for burst in bursts:
        assert [packet for packet in found if packet in burst] == burst
    assert len(merge([packet for turn in range(5) for packet in (bursts[0][turn], bursts[1][turn])])) == 2
    assert all(vnet.gso_type in (GSO_NONE, GSO_TCP4) for vnet, _ in written)


def test_pure_ack_overtakes_nothing() -> None:
    """A pure ACK of a flow leaves behind the data that came before it, and ahead of what came after."""
    data = cut(segment(DATA[:3000]), 1000)
    ack = segment(b"", seq=3000, ack=9999)
    written = merge([data[0], data[1], ack, data[2]])
    assert [len(packet) for _, packet in written] == [2040, 40, 1040]
    assert unpack_all(written) == [data[0], data[1], ack, data[2]]


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("proto", [TCP, UDP], ids=["TCP", "UDP"])
def test_fragment_overtakes_nothing(family: int, proto: int) -> None:
    """A later fragment, which tells no ports, leaves behind all that came before it between its hosts."""
    data = cut(segment(DATA[:2000], family=family, proto=proto), 1000)
    if family == 4:
        fragment = oracle.ip4(DATA[:100], proto, frag=185)
    else:
        fragment = oracle.ip6(oracle.fragment6(proto, 185, 0) + DATA[:100], oracle.PROTO_FRAGMENT)
    written = merge([*data, fragment])
    assert [len(packet) for _, packet in written] == [len(data[0]) + 1000, len(fragment)]
    assert unpack_all(written) == [*data, fragment]
