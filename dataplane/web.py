# SPDX-License-Identifier: Apache-2.0
"""A few pages by HTTP, for probes and for those who collect metrics.

One request a connection, GET or HEAD. Nothing here wakes up unless somebody asks. Who asks may be anybody: a
request is small and soon complete, or refused; who reads slowly is hung up on; there are only so many at a
time, and none waits for another.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus

from dataplane.errors import RuntimeFailure
from dataplane.model import Address

HEAD_MAX = 8192  # bytes of a request
CLIENTS_MAX = 32
TIMEOUT_S = 5.0  # for the request to arrive, and for the answer to be taken
TEXT = "text/plain; charset=utf-8"
JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Page:
    """What is answered."""

    body: bytes
    kind: str = TEXT
    status: HTTPStatus = HTTPStatus.OK


Pages = Mapping[str, Callable[[], Awaitable[Page]]]  # by path


def _say(status: HTTPStatus, text: str = "") -> Page:
    return Page(f"{text or status.phrase}\n".encode(), status=status)


def _write(page: Page, *, has_body: bool = True) -> bytes:
    head = (
        f"HTTP/1.1 {page.status.value} {page.status.phrase}\r\nContent-Type: {page.kind}\r\n"
        f"Content-Length: {len(page.body)}\r\nConnection: close\r\nCache-Control: no-store\r\n"
    )
    head += "Allow: GET, HEAD\r\n" if page.status is HTTPStatus.METHOD_NOT_ALLOWED else ""
    return f"{head}\r\n".encode() + (page.body if has_body else b"")


async def _answer(reader: asyncio.StreamReader, pages: Pages) -> bytes:
    try:
        async with asyncio.timeout(TIMEOUT_S):
            head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError:
        return _write(_say(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE))
    except TimeoutError:
        return _write(_say(HTTPStatus.REQUEST_TIMEOUT))
    words = head.partition(b"\r\n")[0].decode("latin-1").split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        return _write(_say(HTTPStatus.BAD_REQUEST))
    method, path = words[0], words[1].partition("?")[0]
    if method not in ("GET", "HEAD"):
        return _write(_say(HTTPStatus.METHOD_NOT_ALLOWED))
    if path not in pages:
        return _write(_say(HTTPStatus.NOT_FOUND, f"there are: {', '.join(pages)}"))
    return _write(await pages[path](), has_body=method == "GET")


class Server:
    """Answers at one address until it is closed."""

    def __init__(self, address: Address, port: int, pages: Pages) -> None:
        """Listen nowhere yet."""
        self._address = address
        self._port = port
        self._pages = pages
        self._clients: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Listen, or raise RuntimeFailure."""
        try:
            self._server = await asyncio.start_server(
                self._serve, str(self._address), self._port, limit=HEAD_MAX
            )
        except OSError as err:
            # asyncio has words of its own around those of the system.
            why = os.strerror(err.errno) if err.errno else str(err)
            raise RuntimeFailure(f"cannot listen on {self._address} port {self._port}: {why}") from None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        # Done is what the kernel has, not what waits here: otherwise it would wait for ever.
        writer.transport.set_write_buffer_limits(high=0)
        if len(self._clients) >= CLIENTS_MAX:
            writer.transport.abort()
            return
        self._clients[task] = writer
        try:
            writer.write(await _answer(reader, self._pages))
            async with asyncio.timeout(TIMEOUT_S):
                await writer.drain()
        except (OSError, TimeoutError, EOFError):
            writer.transport.abort()  # who asked went away, or takes nothing
        finally:
            writer.close()
            del self._clients[task]

    async def close(self) -> None:
        """Listen no more, and hang up on all."""
        if self._server is not None:
            self._server.close()
        clients = dict(self._clients)
        for writer in clients.values():
            writer.transport.abort()  # which ends what serves it; asyncio of Python 3.11 takes no cancelling
        await asyncio.gather(*clients, return_exceptions=True)
