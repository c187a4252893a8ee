# SPDX-License-Identifier: Apache-2.0
"""A keeper with real forwarders: who is in use and who waits, whatever happens while it recovers."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dataplane import seats
from dataplane.backend import Place, crashes, hung, keeper
from dataplane.backend.keeper import Keeper
from dataplane.backend.kit import Kit
from dataplane.config import RunConfig
from dataplane.control import peer_pid
from dataplane.errors import RuntimeFailure
from dataplane.native import Counters
from dataplane.rundir import RunDir
from dataplane.slots import Fd
from tests.unit.test_control import CONFIG, fds
from tests.unit.test_seats import Start, pids, start

__all__ = ["fds", "start"]  # fixtures

WAIT_S = 20.0
TURNS = 8


@dataclass(slots=True)
class Kept:
    """A keeper, and what it works with."""

    keeper: Keeper
    kit: Kit
    fatal: list[RuntimeFailure] = field(default_factory=list)

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Wait for it."""
        async with asyncio.timeout(WAIT_S):
            while not is_so():
                await asyncio.to_thread(lambda: None)
        assert not self.fatal

    async def give(self, *, is_new_table: bool = False) -> None:
        """Give a forwarder all there is, as a backend does."""
        async with self.keeper.lock:
            await self.keeper.give(is_new_table=is_new_table)


@asynccontextmanager
async def keeping(where: RunDir, fds: dict[int, int]) -> AsyncIterator[Kept]:
    """Keep forwarders that somebody else starts."""
    kit = Kit(fds=dict(fds), config=CONFIG, counters=Counters(fds[Fd.COUNTERS]), generation=5)

    async def no_lower() -> bool:
        return False

    place = Place(RunConfig(store="etcd", run_dir=where.path, forwarder="wait"), where, 1)
    kept = Kept(Keeper(place, kit, lambda _: {}, no_lower, lambda err: kept.fatal.append(err)), kit)
    try:
        yield kept
    finally:
        kept.keeper.close()
        assert kit.counters is not None
        kit.counters.close()


def kill(process: subprocess.Popen[bytes]) -> None:
    """Have it gone."""
    process.kill()
    process.wait()


def test_spare_that_comes_into_use_is_no_spare(
    where: RunDir, start: Start, fds: dict[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where forwarders end again and again, the spare is found as any other: then another one is to wait."""
    monkeypatch.setattr(crashes, "CRASHES_MAX", 1)
    monkeypatch.setattr(crashes, "PAUSE_MIN_S", 0.01)
    first, second = start(), start()

    async def main() -> None:
        async with keeping(where, fds) as kept:
            await kept.give()
            await kept.until(lambda: kept.keeper.spare_pid == second.pid)
            kill(first)
            await kept.until(lambda: kept.keeper.pid == second.pid)
            assert kept.keeper.spare_pid is None
            third = await asyncio.to_thread(start)
            await kept.until(lambda: kept.keeper.spare_pid == third.pid)
            assert pids(where) == (second.pid, third.pid)

    asyncio.run(main())


def connections(pid: int) -> int:
    """Return how many connections to the socket of a process this one has."""
    found = 0
    for path in Path("/proc/self/fd").iterdir():
        with suppress(OSError), socket.socket(fileno=os.dup(int(path.name))) as sock:
            found += sock.family == socket.AF_UNIX and peer_pid(sock) == pid
    return found


def recoveries() -> int:
    """Return how many recoveries are under way."""
    return sum("Keeper._recover" in str(task.get_coro()) for task in asyncio.all_tasks())


def test_one_recovery_at_a_time(
    where: RunDir, start: Start, fds: dict[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A spare that hangs before it has its new name is replaced once, over one connection."""
    monkeypatch.setattr(seats, "ARRANGE_TIMEOUT_S", 0.1)
    monkeypatch.setattr(hung, "RENAME_RETRY_S", 0.05)
    monkeypatch.setattr(keeper, "FORWARDER_TIMEOUT_S", 0.2)
    first, second = start(), start()

    async def main() -> None:
        async with keeping(where, fds) as kept:
            await kept.give()
            await kept.until(lambda: kept.keeper.spare_pid == second.pid)
            with seats.arranging(where):
                kill(first)
                await kept.until(lambda: kept.keeper.pid == second.pid)
                second.send_signal(signal.SIGSTOP)
                await kept.give(is_new_table=True)
                await asyncio.to_thread(second.wait)
            await kept.until(lambda: recoveries() == 1)
            third = await asyncio.to_thread(start)
            await kept.until(lambda: kept.keeper.pid == third.pid and not recoveries())
            assert connections(third.pid) == 1

    asyncio.run(main())


def test_who_is_stopped_is_gone(where: RunDir, start: Start, fds: dict[int, int]) -> None:
    """A forwarder that was told to end takes no connection any more that is meant for the next one."""

    async def main(turn: int) -> None:
        stopped = await asyncio.to_thread(start)
        async with keeping(where, fds) as kept:
            await kept.give()
            await kept.until(lambda: kept.keeper.state == "running" and not recoveries())
            await kept.keeper.stop()
            assert stopped.poll() is not None, f"the {turn + 1}. of {TURNS}"

    for turn in range(TURNS):
        asyncio.run(main(turn))
