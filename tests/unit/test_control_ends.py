# SPDX-License-Identifier: Apache-2.0
"""Control ends while somebody asks it."""

from __future__ import annotations

import asyncio
from pathlib import Path

from dataplane import control


def test_control_ends_before_it_answers(tmp_path: Path) -> None:
    """Who asks just then gets no answer, and nobody is told of an error."""
    path, told = tmp_path / "control.sock", []

    async def talk() -> bytes:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        is_asked, never = asyncio.Event(), asyncio.Event()

        async def answer(request: control.Request) -> control.Reply:
            is_asked.set()
            await never.wait()
            return request

        async with await control.serve_requests(path, answer):
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(b'{"cmd": "status"}\n')
            await asyncio.wait_for(is_asked.wait(), 5)
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            reply = await asyncio.wait_for(reader.read(), 5)
            writer.close()
        return reply

    assert asyncio.run(talk()) == b""
    assert told == []
