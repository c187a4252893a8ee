# SPDX-License-Identifier: Apache-2.0
"""What the kernel tells of changes, and what it could not: on a socket that says what the test wants."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import struct
import time
from collections.abc import Callable, Iterator

import pytest

from dataplane import netwatch
from dataplane.netwatch import HEADER, RTM_DELROUTE, RTM_NEWROUTE, Watch, is_about_host

LOST = "changes of this host were lost: everything is looked at"


class Wire(socket.socket):
    """A socket that is always readable, and gives what it is told to."""

    def say(self, *words: bytes | OSError) -> None:
        """Give these, then nothing."""
        self._words: Iterator[bytes | OSError] = iter(words)
        self.reads = 0

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Return or raise what is next."""
        self.reads += 1
        word = next(self._words, BlockingIOError(errno.EAGAIN, "nothing"))
        if isinstance(word, OSError):
            raise word
        return word


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    """Yield a socket that every Watch takes."""
    monkeypatch.setattr(Watch, "_told_s", -netwatch.TELL_S)
    near, far = socket.socketpair()
    with far, Wire(fileno=near.detach()) as made:
        far.send(b"readable")
        yield made


def watching(wire: Wire, hear: Callable[[bytes], None]) -> Watch:
    """Return a Watch on the socket."""
    watch = Watch(socket.NETLINK_ROUTE, 0, hear)
    watch._sock.close()
    watch._sock = wire
    return watch


def test_losses_are_heard_and_told(wire: Wire, caplog: pytest.LogCaptureFixture) -> None:
    """Each loss is heard, and what came before and comes after it; that there are any is told once."""
    heard: list[bytes] = []
    watch = watching(wire, heard.append)
    lost = OSError(errno.ENOBUFS, "lost")
    wire.say(b"one", lost, b"two", lost, b"three")
    with caplog.at_level(logging.WARNING, logger="overlayd"):
        assert [watch.drain(), watch.drain(), watch.drain()] == [False, False, True]
    assert heard == [b"one", b"", b"two", b"", b"three"]
    assert [record.getMessage() for record in caplog.records] == [LOST]


def test_socket_that_only_fails(wire: Wire) -> None:
    """A socket that fails whenever it is read is read some 20 times a second, and again when it works."""
    heard: list[bytes] = []

    async def watch_until(reads: int) -> float:
        done = asyncio.Event()

        def hear(data: bytes) -> None:
            heard.append(data)
            if data:
                done.set()

        watch = watching(wire, hear)
        wire.say(*[OSError(errno.EIO, "no")] * reads, b"again")
        begun_s = time.monotonic()
        watch.start()
        async with asyncio.timeout(10):
            await done.wait()
        watch.close()
        return time.monotonic() - begun_s

    assert asyncio.run(watch_until(6)) >= 6 * netwatch.PAUSE_S
    assert heard == [b""] * 6 + [b"again"]


def route(kind: int, table: int, protocol: int) -> bytes:
    """Return a message about a route."""
    body = struct.pack("=8BI", 2, 32, 0, 0, table, protocol, 0, 1, 0)
    return HEADER.pack(HEADER.size + len(body), kind, 0, 0, 0) + body


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", False),
        (route(RTM_NEWROUTE, 254, 3), True),
        (route(RTM_DELROUTE, 254, 111), True),
        (route(RTM_NEWROUTE, 254, 112), False),
        (route(RTM_NEWROUTE, 100, 3), False),
        (route(RTM_NEWROUTE, 100, 3) + route(RTM_DELROUTE, 254, 3), True),
        (route(RTM_NEWROUTE, 254, 112) + HEADER.pack(HEADER.size, 16, 0, 0, 0), True),
        (HEADER.pack(0, RTM_NEWROUTE, 0, 0, 0)[:8], False),
    ],
)
def test_what_is_about_the_host(data: bytes, *, expected: bool) -> None:
    """Routes to peers, and those of other tables, are no news; all else is."""
    assert is_about_host(data) is expected
