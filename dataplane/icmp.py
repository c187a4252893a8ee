# SPDX-License-Identifier: Apache-2.0
"""ICMP errors about our tunnel packets, as the underlay sends them (RFC 792, RFC 4443): pure, and strict.

Anybody can send one. So it is read only if every byte that must be there is, and believed only if the packet
that it quotes is one that we could have sent: from our address and one of our ports to a peer.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv6Address

from dataplane.model import Address

ICMP, IPIP, UDP = 1, 4, 17
IP4_LEN, IP6_LEN, ICMP_LEN = 20, 40, 8
QUOTE_MIN = 8  # bytes behind the quoted IP header: RFC 792
FRAGMENT_OFFSET = 0x1FFF

UNREACHABLE, TIME_EXCEEDED, PARAMETER_PROBLEM = TYPES4 = (3, 11, 12)
UNREACHABLE6, TOO_BIG6, TIME_EXCEEDED6, PARAMETER_PROBLEM6 = TYPES6 = (1, 2, 3, 4)


class Trouble(Enum):
    """What an ICMP error says, the same in both families."""

    NET_UNREACHABLE = "net unreachable"
    HOST_UNREACHABLE = "host unreachable"
    PROTOCOL_UNREACHABLE = "protocol unreachable"
    PORT_UNREACHABLE = "port unreachable"
    PROHIBITED = "administratively prohibited"
    SOURCE_ROUTE = "source route failed"
    TOO_BIG = "packet too big"
    TIME_EXCEEDED = "time exceeded"  # on the way: a loop, or too long a way
    REASSEMBLY = "reassembly time exceeded"
    PARAMETER = "parameter problem"


_UNREACHABLE4 = {
    **dict.fromkeys((0, 6, 11), Trouble.NET_UNREACHABLE),
    **dict.fromkeys((1, 7, 8, 12), Trouble.HOST_UNREACHABLE),
    2: Trouble.PROTOCOL_UNREACHABLE,
    3: Trouble.PORT_UNREACHABLE,
    4: Trouble.TOO_BIG,
    5: Trouble.SOURCE_ROUTE,
    **dict.fromkeys((9, 10, 13, 14, 15), Trouble.PROHIBITED),
}
_UNREACHABLE6 = {
    **dict.fromkeys((0, 2, 6), Trouble.NET_UNREACHABLE),
    **dict.fromkeys((1, 5), Trouble.PROHIBITED),
    3: Trouble.HOST_UNREACHABLE,
    4: Trouble.PORT_UNREACHABLE,
}
_EXCEEDED = {0: Trouble.TIME_EXCEEDED, 1: Trouble.REASSEMBLY}
_PARAMETER6 = {0: Trouble.PARAMETER, 1: Trouble.PROTOCOL_UNREACHABLE, 2: Trouble.PARAMETER}


@dataclass(frozen=True, slots=True)
class IcmpError:
    """An ICMP error, and what it quotes of the packet it is about."""

    trouble: Trouble
    router: Address  # who says so
    source: Address  # of the quoted packet
    peer: Address  # its destination
    protocol: int  # IPIP or UDP
    source_port: int = 0  # UDP
    port: int = 0
    mtu: int = 0  # TOO_BIG: bytes of an outer packet; 0 if it does not say (before RFC 1191)


@dataclass(frozen=True, slots=True)
class Tunnels:
    """What tunnel packets of ours look like."""

    iface: int  # index of the underlay interface
    addresses: frozenset[Address] = frozenset()
    source_ports: frozenset[int] = frozenset()
    ports: frozenset[int] = frozenset()  # UDP destination ports
    has_ipip: bool = False


def is_ours(error: IcmpError, tunnels: Tunnels, peers: Container[Address]) -> bool:
    """Return whether an error quotes a packet that we could have sent."""
    if error.source not in tunnels.addresses or error.peer not in peers:
        return False
    if error.protocol == IPIP:
        return tunnels.has_ipip
    return error.source_port in tunnels.source_ports and error.port in tunnels.ports


def _is_intact(data: bytes) -> bool:
    """Return whether the Internet checksum in the data (RFC 1071) is right."""
    # 2^16 is 1 modulo 2^16 - 1: the sum of all 16-bit words is the whole number, modulo that.
    return int.from_bytes(data + bytes(len(data) % 2), "big") % 0xFFFF == 0


def _quoted_udp(quote: bytes, start: int) -> tuple[int, int]:
    ports = quote[start : start + 4]
    return int.from_bytes(ports[:2], "big"), int.from_bytes(ports[2:], "big")


def parse4(packet: bytes) -> IcmpError | None:
    """Read an IPv4 packet; None if it is no whole ICMP error, or none about a tunnel packet."""
    if len(packet) < IP4_LEN or packet[0] >> 4 != 4 or packet[9] != ICMP:
        return None
    header = (packet[0] & 15) * 4
    icmp = packet[header:]
    if header < IP4_LEN or int.from_bytes(packet[2:4], "big") != len(packet):
        return None
    if len(icmp) < ICMP_LEN + IP4_LEN or not _is_intact(icmp):
        return None
    trouble = _trouble4(icmp[0], icmp[1])
    quote = icmp[ICMP_LEN:]
    start = (quote[0] & 15) * 4
    is_fragment = int.from_bytes(quote[6:8], "big") & FRAGMENT_OFFSET != 0
    if trouble is None or quote[0] >> 4 != 4 or start < IP4_LEN or len(quote) < start + QUOTE_MIN:
        return None
    if is_fragment or quote[9] not in (IPIP, UDP):
        return None
    source_port, port = _quoted_udp(quote, start) if quote[9] == UDP else (0, 0)
    return IcmpError(
        trouble,
        router=IPv4Address(packet[12:16]),
        source=IPv4Address(quote[12:16]),
        peer=IPv4Address(quote[16:20]),
        protocol=quote[9],
        source_port=source_port,
        port=port,
        mtu=int.from_bytes(icmp[6:8], "big") if trouble is Trouble.TOO_BIG else 0,
    )


def _trouble4(kind: int, code: int) -> Trouble | None:
    if kind == UNREACHABLE:
        return _UNREACHABLE4.get(code)
    if kind == TIME_EXCEEDED:
        return _EXCEEDED.get(code)
    return Trouble.PARAMETER if kind == PARAMETER_PROBLEM else None


def parse6(icmp: bytes, router: IPv6Address) -> IcmpError | None:
    """Read an ICMPv6 message whose checksum the kernel has verified, as its raw sockets do."""
    if len(icmp) < ICMP_LEN + IP6_LEN + QUOTE_MIN:
        return None
    trouble = _trouble6(icmp[0], icmp[1])
    quote = icmp[ICMP_LEN:]
    # No tunnel packet of ours has extension headers.
    if trouble is None or quote[0] >> 4 != 6 or quote[6] != UDP:
        return None
    source_port, port = _quoted_udp(quote, IP6_LEN)
    return IcmpError(
        trouble,
        router=router,
        source=IPv6Address(quote[8:24]),
        peer=IPv6Address(quote[24:40]),
        protocol=UDP,
        source_port=source_port,
        port=port,
        mtu=int.from_bytes(icmp[4:8], "big") if trouble is Trouble.TOO_BIG else 0,
    )


def _trouble6(kind: int, code: int) -> Trouble | None:
    if kind == UNREACHABLE6:
        return _UNREACHABLE6.get(code)
    if kind == TOO_BIG6:
        return Trouble.TOO_BIG if code == 0 else None
    if kind == TIME_EXCEEDED6:
        return _EXCEEDED.get(code)
    return _PARAMETER6.get(code) if kind == PARAMETER_PROBLEM6 else None
