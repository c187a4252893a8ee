# SPDX-License-Identifier: Apache-2.0
"""A forwarder that hangs is killed; one that cannot be is fenced off, without its names and counters."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from typing import Any, cast

import pytest

from dataplane import native
from dataplane.backend import Place
from dataplane.backend.hung import Fence
from dataplane.backend.kit import Kit
from dataplane.config import RunConfig
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
