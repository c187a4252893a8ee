# SPDX-License-Identifier: Apache-2.0
"""Slow and obvious: what the C units must agree with, written from the RFCs and sharing no code with them.

Every packet builder makes a good packet; a case states only how it deviates, by keyword. Lengths and
checksums are computed unless they are given.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address

PROTO_HOPOPTS, PROTO_ICMP, PROTO_IPIP, PROTO_TCP, PROTO_UDP = 0, 1, 4, 6, 17
PROTO_IPV6, PROTO_ROUTING, PROTO_FRAGMENT, PROTO_ICMP6, PROTO_NONE, PROTO_DSTOPTS = 41, 43, 44, 58, 59, 60
ETHERTYPE_V4, ETHERTYPE_V6 = 0x0800, 0x86DD
IP4_DF, IP4_MF = 0x4000, 0x2000

# One pod of a peer, one of ours, and the nodes between them.
SRC4, DST4 = "10.244.2.5", "10.244.1.5"
SRC6, DST6 = "fd00:244:0:2::5", "fd00:244:0:1::5"
OUTER_SRC, OUTER_DST = "192.0.2.2", "192.0.2.1"
OUR_MAC4, OUR_MAC6 = bytes.fromhex("024f00000401"), bytes.fromhex("024f00000601")
PEER_MAC = bytes.fromhex("024f00000402")
VNI = 0x00A1B2

# --- RFC 6040 -----------------------------------------------------------------------------------------

NOT_ECT, ECT1, ECT0, CE = range(4)
ECN_NAMES = {NOT_ECT: "not_ect", ECT0: "ect0", ECT1: "ect1", CE: "ce"}
ECN_ORDER = (NOT_ECT, ECT0, ECT1, CE)  # of rows and columns in the RFC's figures

# Figure 4: inner -> what is delivered for an outer of each column; None: dropped.
ECN_DECAP: dict[int, tuple[int | None, ...]] = {
    NOT_ECT: (NOT_ECT, NOT_ECT, NOT_ECT, None),
    ECT0: (ECT0, ECT0, ECT1, CE),
    ECT1: (ECT1, ECT1, ECT1, CE),
    CE: (CE, CE, CE, CE),
}


def ecn_decap(inner: int, outer: int) -> int | None:
    """Return the mark that is delivered, None if the packet is dropped."""
    return ECN_DECAP[inner][ECN_ORDER.index(outer)]


# --- RFC 1071 -----------------------------------------------------------------------------------------


def ones_sum(data: bytes) -> int:
    """Return the ones' complement sum of big-endian 16-bit words, an odd last byte padded with 0."""
    total = 0
    for (word,) in struct.iter_unpack("!H", data + bytes(len(data) % 2)):
        total += word
        total = (total & 0xFFFF) + (total >> 16)
    return total


def ones_sums(data: bytes) -> list[int]:
    """Return ones_sum(data[:n]) for every n from 0 to len(data)."""
    sums = [0]
    for n in range(1, len(data) + 1):
        # A byte at an even offset is the high half of its word.
        total = sums[-1] + (data[n - 1] << 8 if n % 2 else data[n - 1])
        sums.append((total & 0xFFFF) + (total >> 16))
    return sums


def checksum(data: bytes) -> int:
    """Return the internet checksum."""
    return ones_sum(data) ^ 0xFFFF


def packed(address: str) -> bytes:
    """Return an address in wire order."""
    return ip_address(address).packed


def pseudo_header(src: bytes, dst: bytes, proto: int, length: int) -> bytes:
    """Return the pseudo-header of RFC 9293 section 3.1 or RFC 8200 section 8.1."""
    if len(src) == 4:
        return src + dst + struct.pack("!BBH", 0, proto, length)
    return src + dst + struct.pack("!IHBB", length, 0, 0, proto)


# --- IP -----------------------------------------------------------------------------------------------


def ip4(
    payload: bytes = b"",
    proto: int = 253,
    src: str = SRC4,
    dst: str = DST4,
    *,
    version: int = 4,
    ihl: int | None = None,
    total_len: int | None = None,
    options: bytes = b"",
    frag: int = IP4_DF,
    ttl: int = 64,
    tos: int = 0,
    check: int | None = None,
) -> bytes:
    """Build an IPv4 packet (RFC 791)."""
    ihl = 5 + len(options) // 4 if ihl is None else ihl
    total_len = 20 + len(options) + len(payload) if total_len is None else total_len
    first = (version << 4 | ihl, tos, total_len, 0x1234, frag, ttl, proto)
    header = struct.pack("!BBHHHBBH", *first, 0) + packed(src) + packed(dst) + options
    # Over what the header says it is, as a receiver sees it.
    check = checksum((header + payload)[: ihl * 4]) if check is None else check
    return header[:10] + struct.pack("!H", check) + header[12:] + payload


def ip6(
    payload: bytes = b"",
    proto: int = PROTO_NONE,
    src: str = SRC6,
    dst: str = DST6,
    *,
    version: int = 6,
    payload_len: int | None = None,
    hop_limit: int = 64,
    tclass: int = 0,
    flow_label: int = 0x54321,
) -> bytes:
    """Build an IPv6 packet (RFC 8200)."""
    payload_len = len(payload) if payload_len is None else payload_len
    first = version << 28 | tclass << 20 | flow_label
    return struct.pack("!IHBB", first, payload_len, proto, hop_limit) + packed(src) + packed(dst) + payload


def extension6(following: int, length: int = 8) -> bytes:
    """Build an IPv6 extension header of the common shape, `length` bytes of PadN (RFC 8200 section 4.2)."""
    return bytes([following, length // 8 - 1, 1, length - 4]) + bytes(length - 4)


def fragment6(following: int, offset: int = 0, more: int = 1) -> bytes:
    """Build an IPv6 fragment header; `offset` in units of 8 bytes (RFC 8200 section 4.5)."""
    return struct.pack("!BBHI", following, 0, offset << 3 | more, 0x01020304)


def chain6(protos: Iterable[int], last: int, payload: bytes = b"") -> bytes:
    """Build an IPv6 packet with these extension headers in front of protocol `last`."""
    chain = [*protos, last]
    headers = b""
    for proto, following in itertools.pairwise(chain):
        headers += fragment6(following, 0, 0) if proto == PROTO_FRAGMENT else extension6(following)
    return ip6(headers + payload, chain[0])


# --- L4 -----------------------------------------------------------------------------------------------


def l4_check(segment: bytes, proto: int, src: str, dst: str) -> int:
    """Return the checksum of a TCP, UDP or ICMPv6 message whose field is 0."""
    return checksum(pseudo_header(packed(src), packed(dst), proto, len(segment)) + segment)


def is_l4_right(segment: bytes, proto: int, src: str, dst: str) -> bool:
    """Return whether a receiver accepts the checksum in the message."""
    return ones_sum(pseudo_header(packed(src), packed(dst), proto, len(segment)) + segment) == 0xFFFF


def l4_partial(segment: bytes, proto: int, src: str, dst: str) -> int:
    """Return what a kernel leaves in the field for hardware: the bare pseudo-header sum."""
    return ones_sum(pseudo_header(packed(src), packed(dst), proto, len(segment)))


def udp(payload: bytes = b"", sport: int = 40000, dport: int = 53, check: int = 0) -> bytes:
    """Build a UDP datagram (RFC 768); its checksum is the caller's."""
    return struct.pack("!HHHH", sport, dport, 8 + len(payload), check) + payload


def tcp(payload: bytes = b"", sport: int = 40000, *, options: bytes = b"", flags: int = 0x18) -> bytes:
    """Build a TCP segment (RFC 9293) with checksum 0."""
    doff = (20 + len(options)) // 4 << 4
    return struct.pack("!HHIIBBHHH", sport, 80, 1000, 2000, doff, flags, 65535, 0, 0) + options + payload


def with_check(segment: bytes, proto: int, value: int) -> bytes:
    """Return the message with its checksum field set."""
    at = 16 if proto == PROTO_TCP else 6
    return segment[:at] + struct.pack("!H", value) + segment[at + 2 :]


# --- encapsulation ------------------------------------------------------------------------------------


def ethernet(payload: bytes, ethertype: int, dst: bytes, src: bytes = PEER_MAC) -> bytes:
    """Build an Ethernet II frame."""
    return dst + src + struct.pack("!H", ethertype) + payload


def vxlan(
    inner: bytes,
    *,
    vni: int = VNI,
    flags: int = 0x08000000,
    last: int = 0,
    dst_mac: bytes | None = None,
    src_mac: bytes = PEER_MAC,
    ethertype: int | None = None,
) -> bytes:
    """Build a VXLAN payload of a UDP datagram (RFC 7348 section 5)."""
    is_v6 = bool(inner) and inner[0] >> 4 == 6
    if ethertype is None:
        ethertype = ETHERTYPE_V6 if is_v6 else ETHERTYPE_V4
    if dst_mac is None:
        dst_mac = OUR_MAC6 if is_v6 else OUR_MAC4
    return struct.pack("!II", flags, vni << 8 | last) + ethernet(inner, ethertype, dst_mac, src_mac)


def ipip(inner: bytes, *, tos: int = 0, options: bytes = b"") -> bytes:
    """Build an IPIP packet as a raw socket gives it, outer header included (RFC 2003)."""
    return ip4(inner, PROTO_IPIP, OUTER_SRC, OUTER_DST, tos=tos, options=options)


# --- longest prefix -----------------------------------------------------------------------------------


class SlowTable:
    """Prefixes in a dict, asked from the longest length to the shortest."""

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.prefixes: dict[tuple[int, int], int] = {}  # (address >> host bits, length) -> value
        self._lengths: list[int] = []

    def insert(self, address: int, length: int, value: int) -> None:
        """Add a prefix, or change its value; host bits of `address` are ignored."""
        self.prefixes[address >> (self.bits - length), length] = value
        self._lengths = sorted({length for _, length in self.prefixes}, reverse=True)

    def remove(self, key: tuple[int, int]) -> None:
        """Take a prefix out."""
        del self.prefixes[key]
        self._lengths = sorted({length for _, length in self.prefixes}, reverse=True)

    def lookup(self, address: int) -> int:
        """Return the value of the longest prefix that holds the address, 0 if none does."""
        for length in self._lengths:
            value = self.prefixes.get((address >> (self.bits - length), length))
            if value is not None:
                return value
        return 0

    def edges(self) -> list[int]:
        """Return the first and last address of every prefix, and their neighbours."""
        found = set()
        for number, length in self.prefixes:
            host_bits = self.bits - length
            first = number << host_bits
            found |= {first - 1, first, first + (1 << host_bits) - 1, first + (1 << host_bits)}
        return sorted(address for address in found if 0 <= address < 1 << self.bits)


def wire(addresses: Sequence[int], bits: int) -> bytes:
    """Return numbers as addresses in wire order, one behind the other."""
    return b"".join(address.to_bytes(bits // 8, "big") for address in addresses)


def shown(address: bytes) -> str:
    """Return an address in wire order as text."""
    return str(IPv4Address(address) if len(address) == 4 else IPv6Address(address))
