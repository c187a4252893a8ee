# SPDX-License-Identifier: Apache-2.0
"""SIGHUP: what is read anew, in which order, and that nothing changes when something is wrong."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from dataplane.config import RunConfig
from dataplane.health import Health
from dataplane.logsetting import LogSetting
from dataplane.model import Heard, Listed
from dataplane.reload import Reload
from dataplane.report import Report
from dataplane.rundir import RunDir
from dataplane.store.registry import Registry
from tests.keys import Keys

CONFIG = RunConfig(store="etcd")
NETWORK = '{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}'


class Scene:
    """A reload, the store that it reopens, and what came of that."""

    def __init__(self, tmp_path: Path) -> None:
        """Follow a store in memory."""
        self.keys = Keys()
        self.keys.write("config", NETWORK)
        self.store = Registry(self.keys)
        self.log_file = tmp_path / "log.json"
        self.setting = LogSetting(CONFIG, RunDir(tmp_path))
        health = Health(CONFIG, cast(Report, None))
        health._was_ready = True
        self.reload = Reload(self.store, self.setting, health)
        self.events: list[Any] = []
        self.looks = 0

    async def _follow(self) -> None:
        async for event in self.store.events():
            self.events.append(event)
            if isinstance(event, Listed):
                self.reload.note_list()
        raise AssertionError("the store has an end")

    def _look(self) -> None:
        self.looks += 1

    async def play(self, scenario: Callable[[], Awaitable[None]]) -> None:
        """Do what the daemon does while a scenario is played."""
        tasks = [
            asyncio.create_task(self.reload.follow(self._follow)),
            asyncio.create_task(self.reload.run(self._look)),
        ]
        try:
            async with asyncio.timeout(10):
                await scenario()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until something holds."""
        while not condition():
            await asyncio.to_thread(lambda: None)


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Yield the socket of a service manager."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        sock.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield sock


def heard(sock: socket.socket) -> list[str]:
    """Return the first line of each message so far."""
    found = []
    while True:
        try:
            found.append(sock.recv(1000).decode().split("\n")[0])
        except BlockingIOError:
            return found


def test_everything_is_read_anew(tmp_path: Path, manager: socket.socket, logs: object) -> None:
    """The store is listed whole, the host looked at, the log file read; the service manager hears of it."""
    scene = Scene(tmp_path)

    async def scenario() -> None:
        await scene.until(lambda: len(scene.events) == 1)
        scene.keys.write("subnets/10.244.1.0-24", "{}")
        await scene.until(lambda: len(scene.events) == 2)
        scene.log_file.write_text('{"level": "error"}')
        scene.reload.ask()
        await scene.until(lambda: len(scene.events) == 3)
        scene.keys.write("subnets/10.244.1.0-24", None)  # and followed from there
        await scene.until(lambda: len(scene.events) == 4)

    asyncio.run(scene.play(scenario))
    lists = [event for event in scene.events if isinstance(event, Listed)]
    assert [len(event.entries) for event in lists] == [0, 1]
    assert scene.keys.watches == [1, 2]
    assert scene.looks == 1
    assert scene.setting.answer({"cmd": "log"})["level"] == "error"
    assert heard(manager) == ["RELOADING=1", "READY=1"]


@pytest.mark.parametrize("trouble", ["store", "log.json"])
def test_bad_reload_changes_nothing(
    tmp_path: Path, trouble: str, manager: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    """When the store or the file is not usable, the log says so, and the store is followed as before."""
    scene = Scene(tmp_path)

    async def scenario() -> None:
        await scene.until(lambda: len(scene.events) == 1)
        if trouble == "store":
            scene.keys.is_down = True  # without waking who follows
        else:
            scene.log_file.write_text('{"level": "loud"}')
        scene.reload.ask()
        await scene.until(lambda: "not reloaded" in caplog.text)
        scene.keys.is_down = False
        scene.keys.write("subnets/10.244.1.0-24", "{}")
        await scene.until(lambda: len(scene.events) == 2)

    asyncio.run(scene.play(scenario))
    (record,) = caplog.records
    assert record.getMessage() == "not reloaded: everything stays as it was"
    error = str(record.__dict__["fields"]["error"])
    assert ("allowed are debug, info" if trouble == "log.json" else "down") in error
    assert [type(event).__name__ for event in scene.events] == ["Listed", "LeasePut"]
    assert scene.keys.watches == [1]
    assert scene.looks == 0
    assert scene.setting.answer({"cmd": "log"})["level"] == "info"
    assert heard(manager) == ["RELOADING=1", "READY=1"]


def test_end_of_following_is_told(tmp_path: Path) -> None:
    """What ends the following for good is not swallowed."""
    scene = Scene(tmp_path)

    async def broken() -> None:
        raise ZeroDivisionError

    async def main() -> None:
        await scene.reload.follow(broken)

    with pytest.raises(ZeroDivisionError):
        asyncio.run(main())
    assert not any(isinstance(event, Heard) for event in scene.events)
