# SPDX-License-Identifier: Apache-2.0
"""Listens for ICMP errors about our tunnel packets. They are hints: whoever hears one looks for himself.

The kernel filters: only errors, only from the underlay or from itself, only those that quote a packet of our
shape. What passes is read a little at a time, so that a flood of forged ones costs next to nothing; the
socket's small buffer then loses the rest.
"""

from __future__ import annotations

import asyncio
import ctypes
import socket
import struct
from collections.abc import Callable, Mapping
from ipaddress import IPv6Address

from dataplane import icmp
from dataplane.icmp import IcmpError, Tunnels
from dataplane.journal import Journal
from dataplane.model import Address, Table

log = Journal("icmp")

BATCH = 64  # messages that are read in PAUSE_S
PAUSE_S = 0.1
MESSAGE_MAX = 2048  # bytes; none is longer than the minimum MTU of its family
BUFFER_BYTES = 64 << 10
LOOPBACK = 1  # index: what the kernel of this host says itself arrives there

# linux/icmp.h, linux/icmpv6.h: bits of the types that are not wanted.
SOL_RAW, ICMP_FILTER, ICMP6_FILTER = 255, 1, 1
SO_ATTACH_FILTER = 26

# Classic BPF (linux/filter.h). Jumps are relative.
_LD_B, _LD_H, _LD_W = 0x30, 0x28, 0x20  # of an absolute offset
_LD_B_X, _LD_H_X, _LD_W_X = 0x50, 0x48, 0x40  # behind X
_LDX_HEADER = 0xB1  # X = length of the IPv4 header that begins there
_AND, _SHIFT, _ADD_X, _TO_X, _EQUAL, _RETURN = 0x54, 0x64, 0x0C, 0x07, 0x15, 0x06
_IFACE = 0xFFFFF000 + 8  # SKF_AD_OFF + SKF_AD_IFINDEX
_ALL = 0xFFFFFFFF

_Code = list[tuple[int, int, int, int]]  # operation, jump if true, jump if not, operand


def _one_of(values: list[int]) -> _Code:
    """Go on if the accumulator is one of some values; else refuse."""
    tests = [(_EQUAL, len(values) - at, 0, value) for at, value in enumerate(values)]
    return [*tests, (_RETURN, 0, 0, 0)]


def filter4(tunnels: Tunnels) -> _Code:
    """Accept IPv4 packets that hold an ICMP error which quotes a tunnel packet of ours."""
    addresses = sorted(int(ip) for ip in tunnels.addresses if ip.version == 4)
    protocols = ([icmp.UDP] if tunnels.ports else []) + ([icmp.IPIP] if tunnels.has_ipip else [])
    quote = icmp.ICMP_LEN
    return [
        *((_LD_W, 0, 0, _IFACE), *_one_of([LOOPBACK, tunnels.iface])),
        *((_LDX_HEADER, 0, 0, 0), (_LD_W_X, 0, 0, quote + 12), *_one_of(addresses)),
        *((_LD_B_X, 0, 0, quote + 9), *_one_of(protocols)),
        *((_EQUAL, 0, 1, icmp.IPIP), (_RETURN, 0, 0, _ALL)),
        *((_LD_B_X, 0, 0, quote), (_AND, 0, 0, 15), (_SHIFT, 0, 0, 2), (_ADD_X, 0, 0, 0), (_TO_X, 0, 0, 0)),
        *((_LD_H_X, 0, 0, quote + 2), *_one_of(sorted(tunnels.ports)), (_RETURN, 0, 0, _ALL)),
    ]


def filter6(tunnels: Tunnels) -> _Code:
    """Accept ICMPv6 messages that quote a tunnel packet of ours."""
    quote = icmp.ICMP_LEN
    last = sorted(int(ip) & 0xFFFFFFFF for ip in tunnels.addresses if ip.version == 6)
    return [
        *((_LD_W, 0, 0, _IFACE), *_one_of([LOOPBACK, tunnels.iface])),
        *((_LD_B, 0, 0, quote + 6), *_one_of([icmp.UDP])),
        *((_LD_W, 0, 0, quote + 20), *_one_of(last)),
        *((_LD_H, 0, 0, quote + icmp.IP6_LEN + 2), *_one_of(sorted(tunnels.ports)), (_RETURN, 0, 0, _ALL)),
    ]


def attach(sock: socket.socket, code: _Code) -> None:
    """Let the kernel pass only what a filter accepts."""
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in code))
    sock.setsockopt(
        socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", len(code), ctypes.addressof(program))
    )


def open4() -> socket.socket:
    """Open a socket that hears ICMP errors, and nothing before a filter is attached."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_ICMP)
    attach(sock, [(_RETURN, 0, 0, 0)])
    wanted = sum(1 << kind for kind in icmp.TYPES4)
    sock.setsockopt(SOL_RAW, ICMP_FILTER, struct.pack("=I", _ALL & ~wanted))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
    return sock


def open6() -> socket.socket:
    """Open a socket that hears ICMPv6 errors, and nothing before a filter is attached."""
    sock = socket.socket(socket.AF_INET6, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_ICMPV6)
    attach(sock, [(_RETURN, 0, 0, 0)])
    wanted = sum(1 << kind for kind in icmp.TYPES6)
    sock.setsockopt(socket.IPPROTO_ICMPV6, ICMP6_FILTER, struct.pack("=8I", _ALL & ~wanted, *[_ALL] * 7))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
    return sock


Hear = Callable[[int, IcmpError], None]  # the id of the peer, and what is said of it


class IcmpListener:
    """Hears ICMP errors that quote a tunnel packet of ours to a peer, on both families."""

    def __init__(self, *hearers: Hear) -> None:
        """Hear nothing before heed()."""
        self._hearers = hearers
        self._tunnels: Tunnels | None = None
        self._table: Table | None = None
        self._peers: Mapping[Address, int] = {}
        self._sockets: dict[int, socket.socket] = {}  # by family
        self._pauses: dict[int, asyncio.TimerHandle] = {}
        self._ends: dict[int, float] = {}  # by family, as the next: when more may be read
        self._left: dict[int, int] = {}  # messages that may be read until then
        self._is_told = False

    def heed(self, tunnels: Tunnels, table: Table) -> None:
        """Take what our tunnel packets look like by now, and who the peers are."""
        if table is not self._table:
            self._table = table
            self._peers = {address: peer.id for peer in table.peers for address in peer.addresses}
        if tunnels == self._tunnels:
            return
        self._tunnels = tunnels
        families = {address.version for address in tunnels.addresses}
        for family, code in ((4, filter4(tunnels)), (6, filter6(tunnels))):
            if family in families and (tunnels.ports or (tunnels.has_ipip and family == 4)):
                self._listen(family, code)
            elif family in self._sockets:
                self._shut(family)

    def _listen(self, family: int, code: _Code) -> None:
        try:
            if family not in self._sockets:
                self._sockets[family] = open4() if family == 4 else open6()
                self._resume(family)
            attach(self._sockets[family], code)
        except OSError as err:
            if not self._is_told:
                log.warning("ICMP errors of the underlay are not heard", error=err)
            self._is_told = True

    def _resume(self, family: int) -> None:
        self._pauses.pop(family, None)
        asyncio.get_running_loop().add_reader(self._sockets[family], self._read, family)

    def _shut(self, family: int) -> None:
        pause = self._pauses.pop(family, None)
        if pause is not None:
            pause.cancel()
        sock = self._sockets.pop(family)
        asyncio.get_running_loop().remove_reader(sock)
        sock.close()

    def _read(self, family: int) -> None:
        sock, loop = self._sockets[family], asyncio.get_running_loop()
        if loop.time() >= self._ends.get(family, 0.0):
            self._ends[family], self._left[family] = loop.time() + PAUSE_S, BATCH
        while self._left[family] > 0:
            self._left[family] -= 1
            try:
                data, sender = sock.recvfrom(MESSAGE_MAX)
            except OSError:  # there is no more; or a wrong checksum
                return
            error = icmp.parse4(data) if family == 4 else icmp.parse6(data, _address6(sender))
            if error is not None and self._tunnels and icmp.is_ours(error, self._tunnels, self._peers):
                self._tell(error)
        loop.remove_reader(sock)
        self._pauses[family] = loop.call_at(self._ends[family], self._resume, family)

    def _tell(self, error: IcmpError) -> None:
        for hear in self._hearers:
            hear(self._peers[error.peer], error)

    def close(self) -> None:
        """Hear nothing more."""
        for family in list(self._sockets):
            self._shut(family)
        self._tunnels = None


def _address6(sender: tuple[str, int, int, int]) -> IPv6Address:
    return IPv6Address(sender[0].partition("%")[0])
