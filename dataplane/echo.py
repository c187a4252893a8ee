# SPDX-License-Identifier: Apache-2.0
"""Sends echo requests of exact sizes by the overlay device, and reads the answers.

A raw socket for each family, bound to our overlay address and the device. What routes say of the path's MTU
does not stop a request, nor is one cut: DF is set, and IPv6 needs none. A request carries nothing but its
token, over and over: so an answer tells by itself whether it is whole, and nobody can make one up who has not
seen the request.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address

from dataplane.model import Address
from dataplane.probing import TOKEN_BYTES, Probe

ICMP = struct.Struct("!BBHHH")  # type, code, checksum, identifier, sequence number
REQUEST, ANSWER = {4: 8, 6: 128}, {4: 0, 6: 129}
HEADERS = {4: 20 + ICMP.size, 6: 40 + ICMP.size}
RECEIVE_BYTES = 1 << 16

# linux/in.h, in6.h, icmp.h, icmpv6.h; Python 3.11 has no names for them
IP_MTU_DISCOVER, IPV6_MTU_DISCOVER = 10, 23
PMTUDISC_PROBE = 3
SOL_RAW, ICMP_FILTER = 255, 1
ICMP6_FILTER = 1
ALL = 0xFFFFFFFF
# What does not pass, as bits: all but answers.
FILTER4 = struct.pack("=I", ALL & ~(1 << ANSWER[4]))
FILTER6 = struct.pack("=8I", *[ALL] * 4, ALL & ~(1 << ANSWER[6] % 32), *[ALL] * 3)


def pattern(token: int, count: int) -> bytes:
    """Return as many bytes of a token repeated."""
    piece = token.to_bytes(TOKEN_BYTES, "big")
    return (piece * (count // TOKEN_BYTES + 1))[:count]


def checksum(data: bytes) -> int:
    """Return the checksum of the Internet (RFC 1071)."""
    padded = data + b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def write_request(probe: Probe) -> bytes:
    """Return the ICMP message of a request; that of IPv6 gets its checksum from the kernel."""
    version = probe.target.version
    words = probe.token & 0xFFFF, probe.token >> 16 & 0xFFFF
    data = pattern(probe.token, probe.size - HEADERS[version])
    head = ICMP.pack(REQUEST[version], 0, 0, *words)
    if version == 4:
        head = ICMP.pack(REQUEST[version], 0, checksum(head + data), *words)
    return head + data


def read_answer(version: int, data: bytes) -> tuple[int, int] | None:
    """Return token and size of an answer as received, with its header if it is IPv4; None if it is none."""
    if version == 4:
        data = data[(data[0] & 0xF) * 4 :] if data else b""
    if len(data) < ICMP.size + TOKEN_BYTES or data[0] != ANSWER[version]:
        return None
    body = data[ICMP.size :]
    token = int.from_bytes(body[:TOKEN_BYTES], "big")
    return (token, HEADERS[version] + len(body)) if body == pattern(token, len(body)) else None


def open_socket(device: str, source: Address) -> socket.socket:
    """Open a socket that sends from an overlay address by its device."""
    is_ipv4 = source.version == 4
    proto = socket.IPPROTO_ICMP if is_ipv4 else socket.IPPROTO_ICMPV6
    sock = socket.socket(socket.AF_INET if is_ipv4 else socket.AF_INET6, socket.SOCK_RAW, proto)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
        if is_ipv4:
            sock.setsockopt(SOL_RAW, ICMP_FILTER, FILTER4)
            sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_PROBE)
        else:
            sock.setsockopt(socket.IPPROTO_ICMPV6, ICMP6_FILTER, FILTER6)
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, PMTUDISC_PROBE)
        sock.bind((str(source), 0))
    except OSError:
        sock.close()
        raise
    return sock


class Echo:
    """The sockets of one overlay device."""

    def __init__(self, device: str, sources: Iterable[IPv4Address | IPv6Address]) -> None:
        """Open a socket for each of our overlay addresses, one of each family at most; OSError."""
        self._socks: dict[int, socket.socket] = {}
        try:
            for source in sources:
                self._socks[source.version] = open_socket(device, source)
        except OSError:
            self.close()
            raise

    def sockets(self) -> tuple[socket.socket, ...]:
        """Return the sockets, which become readable when answers have come."""
        return tuple(self._socks.values())

    def send(self, probe: Probe) -> None:
        """Send a request; OSError. One of a family that we have no address of is not sent."""
        sock = self._socks.get(probe.target.version)
        if sock is not None:
            sock.sendto(write_request(probe), (str(probe.target), 0))

    def receive(self) -> Iterator[tuple[int, int]]:
        """Yield token and size of each answer that has come."""
        for version, sock in self._socks.items():
            while True:
                try:
                    data = sock.recv(RECEIVE_BYTES)
                except OSError:  # nothing more, or the device is gone, which sending will show
                    break
                if (answer := read_answer(version, data)) is not None:
                    yield answer

    def close(self) -> None:
        """Close them. May be called again."""
        for sock in self._socks.values():
            sock.close()
        self._socks = {}
