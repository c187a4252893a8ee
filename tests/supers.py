# SPDX-License-Identifier: Apache-2.0
"""Super-packets and the packets they stand for, cut by the book: the oracle of split.c and merge.c."""

from __future__ import annotations

from collections.abc import Mapping

from tests import oracle
from tests.oracle import DST4, DST6, PROTO_TCP, PROTO_UDP, SRC4, SRC6
from tests.probe import GSO_ECN, GSO_TCP4, GSO_TCP6, GSO_UDP_L4, NEEDS_CSUM, Vnet

FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = (1 << n for n in range(8))
CHECK_AT = {PROTO_TCP: 16, PROTO_UDP: 6}


def put(data: bytes, at: int, value: int, size: int = 2) -> bytes:
    """Return bytes with a number written over them."""
    return data[:at] + (value % (1 << 8 * size)).to_bytes(size, "big") + data[at + size :]


def get(data: bytes, at: int, size: int = 2) -> int:
    """Return a number out of bytes."""
    return int.from_bytes(data[at : at + size], "big")


def layout(packet: bytes) -> tuple[int, int, int]:
    """Return protocol, bytes of IP header, and bytes of both headers; IPv6 without extensions."""
    is4 = packet[0] >> 4 == 4
    proto, l3len = (packet[9], (packet[0] & 15) * 4) if is4 else (packet[6], 40)
    return proto, l3len, l3len + ((packet[l3len + 12] >> 4) * 4 if proto == PROTO_TCP else 8)


def addresses(packet: bytes) -> tuple[str, str]:
    """Return source and destination as text."""
    at, size = (12, 4) if packet[0] >> 4 == 4 else (8, 16)
    return oracle.shown(packet[at : at + size]), oracle.shown(packet[at + size : at + 2 * size])


def finish(packet: bytes) -> bytes:
    """Return a packet with lengths and checksums set right."""
    proto, l3len, _ = layout(packet)
    if packet[0] >> 4 == 4:
        packet = put(put(packet, 2, len(packet)), 10, 0)
        packet = put(packet, 10, oracle.checksum(packet[:l3len]))
    else:
        packet = put(packet, 4, len(packet) - 40)
    if proto == PROTO_UDP:
        packet = put(packet, l3len + 4, len(packet) - l3len)
    at = l3len + CHECK_AT[proto]
    packet = put(packet, at, 0)
    check = oracle.l4_check(packet[l3len:], proto, *addresses(packet))
    return put(packet, at, 0xFFFF if proto == PROTO_UDP and not check else check)


def partial(packet: bytes) -> bytes:
    """Return a packet with lengths right and the L4 checksum left to be computed."""
    packet = finish(packet)
    proto, l3len, _ = layout(packet)
    return put(packet, l3len + CHECK_AT[proto], oracle.l4_partial(packet[l3len:], proto, *addresses(packet)))


def segment(
    payload: bytes = b"payload", *, family: int = 4, proto: int = PROTO_TCP, **fields: int | bytes
) -> bytes:
    """Build a packet; fields: sport, TCP's flags, seq, ack, window, options, IP's ident, frag, ttl, tos."""
    named: Mapping[str, int | bytes] = fields
    number = {name: value for name, value in named.items() if isinstance(value, int)}
    if proto == PROTO_TCP:
        options = named.get("options", b"")
        assert isinstance(options, bytes)
        l4 = oracle.tcp(payload, number.get("sport", 40000), options=options, flags=number.get("flags", ACK))
        l4 = put(put(l4, 4, number.get("seq", 1000), 4), 8, number.get("ack", 2000), 4)
        l4 = put(l4, 14, number.get("window", 65535))
    else:
        l4 = oracle.udp(payload, number.get("sport", 40000))
    if family == 6:
        packet = oracle.ip6(
            *(l4, proto, SRC6, DST6),
            hop_limit=number.get("ttl", 64),
            tclass=number.get("tos", 0),
            flow_label=number.get("label", 0x54321),
        )
    else:
        packet = oracle.ip4(
            *(l4, proto, SRC4, DST4),
            ttl=number.get("ttl", 64),
            tos=number.get("tos", 0),
            frag=number.get("frag", oracle.IP4_DF),
        )
        packet = put(packet, 4, number.get("ident", 7))
    return finish(packet)


def described(packet: bytes, size: int) -> Vnet:
    """Return the virtio header with which the kernel hands a super-packet to us."""
    proto, l3len, headers = layout(packet)
    gso = GSO_UDP_L4 if proto == PROTO_UDP else GSO_TCP4 if packet[0] >> 4 == 4 else GSO_TCP6
    if proto == PROTO_TCP and packet[l3len + 13] & CWR:
        gso |= GSO_ECN
    return Vnet(NEEDS_CSUM, gso, headers, size, l3len, CHECK_AT[proto])


def cut(packet: bytes, size: int) -> list[bytes]:
    """Cut a super-packet as a sender without offloads would have sent it."""
    proto, l3len, headers = layout(packet)
    payload = packet[headers:]
    starts = range(0, len(payload), size) if payload else [0]
    segments = []
    for number, start in enumerate(starts):
        found = packet[:headers] + payload[start : start + size]
        if packet[0] >> 4 == 4:
            found = put(found, 4, get(packet, 4) + number)
        if proto == PROTO_TCP:
            found = put(found, l3len + 4, get(packet, l3len + 4, 4) + start, 4)
            flags = packet[l3len + 13]
            flags &= ~CWR if number else 255
            flags &= 255 if start + size >= len(payload) else ~(FIN | PSH)
            found = put(found, l3len + 13, flags, 1)
        segments.append(finish(found))
    return segments


def unpack_all(packets: list[tuple[Vnet, bytes]]) -> list[bytes]:
    """Return the packets that the kernel would make of what is written to the TUN."""
    found = []
    for vnet, packet in packets:
        found += cut(packet, vnet.gso_size) if vnet.gso_type else [packet]
    return found
