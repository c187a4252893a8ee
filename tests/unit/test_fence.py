# SPDX-License-Identifier: Apache-2.0
"""A forwarder that hangs is killed; one that cannot be is fenced off, without its names and counters."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from typing import Any, cast

import pytest

from dataplane import native, succession
from dataplane.backend import Place, hung
from dataplane.backend.hung import Fence
from dataplane.backend.kit import Kit
from dataplane.config import RunConfig
from dataplane.errors import RuntimeFailure
from dataplane.grip import Grip
from dataplane.native import Counters
from dataplane.rundir import RunDir
from dataplane.slots import Fd


class FakeGrip:
    """Holds on to a process that ends, or does not."""

    pid = 7

    def __init__(self, *, ends: bool) -> None:
        self._ends = ends

    def end(self) -> bool:
        """Kill it."""
        return self._ends

    def close(self) -> None:
        """Let go of it."""


@pytest.mark.parametrize("is_spare", [False, True], ids=["in_use", "spare"])
@pytest.mark.parametrize("ends", [True, False], ids=["killed", "out_of_reach"])
def test_names_and_counters(tmp_path: Path, ends: bool, is_spare: bool) -> None:
    """Who is killed leaves names and counters to the next; who cannot be loses them, and is told of once."""
    run_dir = RunDir(tmp_path / "run")
    run_dir.prepare()
    path = run_dir.spare_socket if is_spare else run_dir.forwarder_socket
    fd = native.counters_create(1)
    kit = Kit(fds={Fd.COUNTERS: fd}, counters=Counters(fd), is_due=False)
    asked = None

    async def main() -> None:
        nonlocal asked
        fence = Fence(Place(RunConfig(store="file:///x"), run_dir, 1), kit, asyncio.Lock())
        assert fence.warnings() == []
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(os.fspath(path))
            listener.listen(1)
            listener.setblocking(False)
            await fence.end(cast(Grip, FakeGrip(ends=ends)), is_spare=is_spare)
            try:
                asked, _ = listener.accept()
            except BlockingIOError:
                asked = None
        assert len(fence.warnings()) == (not ends)
        if asked is not None:
            asked.close()
            async with asyncio.timeout(20):
                while fence.warnings():  # it hung up: it has read its order
                    await asyncio.to_thread(int)
        fence.close()

    asyncio.run(main())
    assert (asked is None, path.exists(), kit.fds[Fd.COUNTERS] == fd, kit.is_due) == (
        ends,
        ends,
        ends,
        not ends,
    )
    cast(Any, kit.counters).close()
    os.close(kit.fds[Fd.COUNTERS])


def test_names_that_somebody_holds(where: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever keeps us from taking its names away: they are taken as soon as can be, all else before."""
    monkeypatch.setattr(hung, "RENAME_RETRY_S", 0.001)
    fd = native.counters_create(1)
    kit = Kit(fds={Fd.COUNTERS: fd}, counters=Counters(fd), is_due=False)
    where.forwarder_socket.touch()
    tries: list[bool] = []

    def disown(run_dir: RunDir, *, is_spare: bool) -> None:
        tries.append(kit.is_due)
        if len(tries) < 3:
            raise RuntimeFailure("somebody else arranges forwarders")
        succession.disown(run_dir, is_spare=is_spare)

    monkeypatch.setattr(hung, "disown", disown)

    async def main() -> None:
        fence = Fence(Place(RunConfig(store="file:///x"), where, 1), kit, asyncio.Lock())
        await fence.end(cast(Grip, FakeGrip(ends=False)))

    asyncio.run(main())
    assert tries == [True] * 3
    assert not where.forwarder_socket.exists()
    cast(Any, kit.counters).close()
    os.close(kit.fds[Fd.COUNTERS])
