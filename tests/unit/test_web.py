# SPDX-License-Identifier: Apache-2.0
"""Pages by HTTP: what is answered to whom, over real connections, and that nobody holds up anybody."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from ipaddress import ip_address
from pathlib import Path

import pytest
import uvloop

from dataplane import web
from dataplane.errors import RuntimeFailure
from dataplane.web import CLIENTS_MAX, HEAD_MAX, Page, Server

LARGE = Page(b"x" * (32 << 20))  # more than the kernel takes in one go


async def _small() -> Page:
    return Page(b"small\n")


async def _large() -> Page:
    return LARGE


def free_port() -> int:
    """Return a TCP port of the loopback interface that nobody has."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[int]:
    """Serve two pages; yield the port."""
    port = free_port()
    server = Server(ip_address("127.0.0.1"), port, {"/small": _small, "/large": _large})
    await server.open()
    try:
        yield port
    finally:
        await server.close()


def run(scenario: Callable[[int], Awaitable[None]]) -> None:
    """Run a scenario beside a server, on the event loop that control uses."""

    async def main() -> None:
        async with serving() as port, asyncio.timeout(20):
            await scenario(port)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


async def ask(port: int, request: bytes) -> bytes:
    """Send a request; return all that comes back."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        return await reader.read()
    finally:
        await hang_up(writer)


async def hang_up(*writers: asyncio.StreamWriter) -> None:
    """Close connections, and wait until they are."""
    for writer in writers:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def get(path: str) -> bytes:
    """Return a request."""
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


@pytest.mark.parametrize(
    ("request_", "head", "body"),
    [
        pytest.param(get("/small"), "200 OK", b"small\n", id="page"),
        pytest.param(get("/small?x=1"), "200 OK", b"small\n", id="with a query"),
        pytest.param(b"GET /small HTTP/1.0\r\n\r\n", "200 OK", b"small\n", id="HTTP/1.0"),
        pytest.param(b"HEAD /small HTTP/1.1\r\n\r\n", "200 OK", b"", id="HEAD"),
        pytest.param(get("/"), "404 Not Found", b"there are: /small, /large\n", id="another path"),
        pytest.param(b"POST /small HTTP/1.1\r\n\r\n", "405 Method Not", b"Method Not Allowed\n", id="POST"),
        pytest.param(b"hello\r\n\r\n", "400 Bad Request", b"Bad Request\n", id="no request"),
        pytest.param(b"\x16\x03\x01\xff\r\n\r\n", "400 Bad Request", b"Bad Request\n", id="TLS"),
        pytest.param(b"GET /small HTTP/2\r\n\r\n", "400 Bad Request", b"Bad Request\n", id="HTTP/2"),
        pytest.param(
            b"GET /small HTTP/1.1\r\nX: " + b"x" * HEAD_MAX * 2,
            *("431 Request Header", b"Request Header Fields Too Large\n"),
            id="too long",
        ),
    ],
)
def test_answer(request_: bytes, head: str, body: bytes) -> None:
    """Every request has one answer, complete and with its length, and then the connection ends."""

    async def scenario(port: int) -> None:
        first, _, rest = (await ask(port, request_)).partition(b"\r\n\r\n")
        lines = first.decode().split("\r\n")
        assert lines[0].startswith(f"HTTP/1.1 {head}")
        length = len(body) or len(b"small\n")
        assert f"Content-Length: {length}" in lines
        assert rest == body

    run(scenario)


def test_large_page_arrives_whole() -> None:
    """A page larger than all buffers arrives to the last byte."""

    async def scenario(port: int) -> None:
        assert (await ask(port, get("/large"))).endswith(b"\r\n\r\n" + LARGE.body)

    run(scenario)


def test_slow_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who sends or reads nothing is hung up on in time, and others are answered meanwhile."""
    monkeypatch.setattr(web, "TIMEOUT_S", 0.5)

    async def scenario(port: int) -> None:
        silent = await asyncio.open_connection("127.0.0.1", port)
        lazy = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        lazy[1].write(get("/large"))
        assert (await ask(port, get("/small"))).endswith(b"small\n")
        assert (await silent[0].read()).startswith(b"HTTP/1.1 408 ")
        got = 0
        with contextlib.suppress(ConnectionError):
            # Nothing was read for longer than the server waits.
            await asyncio.wait_for(_is_closed(port), 10)
            while chunk := await lazy[0].read(1 << 20):
                got += len(chunk)
        assert got < len(LARGE.body)
        await hang_up(silent[1], lazy[1])

    run(scenario)


async def _is_closed(port: int) -> None:
    """Wait until the server has no connection but those of who asks here."""
    needle = f"0100007F:{port:04X}"
    while True:
        lines = Path("/proc/self/net/tcp").read_text(encoding="ascii").splitlines()
        rows = [line.split() for line in lines[1:]]
        if not any(row[1] == needle and row[3] == "01" for row in rows):  # ESTABLISHED
            return
        await ask(port, get("/small"))


def test_too_many() -> None:
    """Of more than so many at a time the rest is hung up on at once, and the next one is answered again."""

    async def scenario(port: int) -> None:
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(CLIENTS_MAX)]
        while await _is_answered(port):
            pass
        await hang_up(*(writer for _, writer in silent))
        while not await _is_answered(port):
            pass

    run(scenario)


async def _is_answered(port: int) -> bool:
    try:
        return (await ask(port, get("/small"))).startswith(b"HTTP/1.1 200 ")
    except ConnectionError:
        return False


def test_address_is_taken() -> None:
    """Where another listens, or the address is not ours, one line says which and why."""

    async def scenario(port: int) -> None:
        with pytest.raises(RuntimeFailure, match=rf"cannot listen on 127.0.0.1 port {port}: Address already"):
            await Server(ip_address("127.0.0.1"), port, {}).open()
        with pytest.raises(RuntimeFailure, match=r"cannot listen on 192.0.2.77 port 1: Cannot assign req"):
            await Server(ip_address("192.0.2.77"), 1, {}).open()

    run(scenario)
