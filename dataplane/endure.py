# SPDX-License-Identifier: Apache-2.0
"""Parts of the daemon that never end: what a system call does to one of them is told, and it begins again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from dataplane.journal import Journal, Trouble

RETRY_S = 0.5

log = Journal("daemon")


async def endure(part: Callable[[], Awaitable[None]], is_settled: Callable[[], bool]) -> None:
    """Do a part of the work, again and again if the world fails it; but a start that fails is one."""
    trouble = Trouble(log, "a part of the work failed and begins again")
    while True:
        try:
            return await part()
        except OSError as err:
            if not is_settled():
                raise
            trouble.failed(str(err))
        await asyncio.sleep(RETRY_S)
