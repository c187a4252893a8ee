# SPDX-License-Identifier: Apache-2.0
"""Hears what the kernel tells of changes, by netlink, without an end.

Changes may come faster than they are read: then the kernel throws some away, and says so (ENOBUFS). Whoever
listens must look at everything then. A socket that only fails is let be for a moment, so that it costs no
processor time.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable
from typing import ClassVar

from dataplane.entries import MAIN_TABLE, ROUTE_PROTOCOL
from dataplane.journal import Journal

RECEIVE_BYTES = 1 << 17
PAUSE_S = 0.05  # after a failure
TELL_S = 60.0  # losses are told once in so long
# Links, IPv4 and IPv6 addresses and routes, and settings of interfaces such as rp_filter.
HOST_GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400 | 1 << 23 | 1 << 24

HEADER = struct.Struct("=IHHII")
RTM_NEWROUTE, RTM_DELROUTE = 24, 25
RTMSG_TABLE, RTMSG_PROTOCOL = HEADER.size + 4, HEADER.size + 5

log = Journal("netwatch")


class Watch:
    """A socket that hears of changes in the running event loop."""

    _told_s: ClassVar[float] = -TELL_S  # that some were lost, of whichever socket

    def __init__(self, protocol: int, groups: int, hear: Callable[[bytes], None]) -> None:
        """Open it; OSError. `hear` gets what came, and nothing (b"") where some of it was lost."""
        self._hear = hear
        self._pause: asyncio.TimerHandle | None = None
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        self._sock = socket.socket(socket.AF_NETLINK, kind, protocol)
        try:
            self._sock.bind((0, groups))
        except OSError:
            self._sock.close()
            raise

    def start(self) -> None:
        """Hear what comes from now on, and what came meanwhile."""
        self._end_pause()
        asyncio.get_running_loop().add_reader(self._sock, self._read)

    def stop(self) -> None:
        """Leave what comes to drain(), or to the next start."""
        self._end_pause()
        asyncio.get_running_loop().remove_reader(self._sock)

    def drain(self) -> bool:
        """Take what has come; return whether it could be read."""
        while True:
            try:
                data = self._sock.recv(RECEIVE_BYTES)
            except BlockingIOError:
                return True
            except OSError as err:
                self._tell(err)
                self._hear(b"")
                return False
            self._hear(data)

    def _read(self) -> None:
        if not self.drain():
            self.stop()
            self._pause = asyncio.get_running_loop().call_later(PAUSE_S, self.start)

    def _end_pause(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None

    def _tell(self, err: OSError) -> None:
        now = time.monotonic()
        if now - Watch._told_s < TELL_S:
            return
        Watch._told_s = now
        why = "faster than read" if err.errno == errno.ENOBUFS else os.strerror(err.errno or 0)
        log.warning("changes of this host were lost: everything is looked at", error=why)

    def close(self) -> None:
        """Hear nothing more. May be called again."""
        if self._sock.fileno() >= 0:
            self.stop()
        self._sock.close()


def is_about_host(data: bytes) -> bool:
    """Tell whether a batch of netlink messages is about more than what netbatch.py tells the kernel."""
    offset = 0
    while offset + HEADER.size <= len(data):
        length, kind, *_ = HEADER.unpack_from(data, offset)
        if kind not in (RTM_NEWROUTE, RTM_DELROUTE):
            return True
        # How peers are reached depends on the routes of others, too.
        if data[offset + RTMSG_TABLE] == MAIN_TABLE and data[offset + RTMSG_PROTOCOL] != ROUTE_PROTOCOL:
            return True
        offset += max(HEADER.size, (length + 3) & ~3)
    return False


async def host_changes() -> AsyncIterator[None]:
    """Yield after each change of links, addresses or routes; several at once count as one."""
    changed = asyncio.Event()

    def hear(data: bytes) -> None:
        if not data or is_about_host(data):
            changed.set()

    watch = Watch(socket.NETLINK_ROUTE, HOST_GROUPS, hear)
    watch.start()
    try:
        while True:
            await changed.wait()
            changed.clear()
            yield
    finally:
        watch.close()
