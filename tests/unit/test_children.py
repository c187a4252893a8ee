# SPDX-License-Identifier: Apache-2.0
"""Forwarders that control starts: by which command, which of them live, and what is said of them."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dataplane.backend import process
from dataplane.backend.process import Children, confinement_warnings, end_forwarders, wait_listening
from dataplane.errors import RuntimeFailure
from dataplane.rundir import RunDir


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """Yield a process that never listens."""
    started = subprocess.Popen(["sleep", "60"])
    yield started
    started.kill()
    started.wait()


@pytest.mark.parametrize("setpriv", [None, "/usr/bin/setpriv"])
def test_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, setpriv: str | None) -> None:
    """A forwarder is started without privileges where there is what does that, and plainly where not."""
    monkeypatch.setattr(shutil, "which", lambda _: setpriv)
    command = process._command(tmp_path)
    assert command[0] == (setpriv or sys.executable)
    assert command[command.index(sys.executable) :][1:5] == ["-P", "-m", "dataplane", "forwarder"]


def test_who_lives(monkeypatch: pytest.MonkeyPatch, where: RunDir, sleeper: subprocess.Popen[bytes]) -> None:
    """Those who live are ours, others are not; who has ended is forgotten, and nobody else with it."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    starts = iter((ended, sleeper))
    monkeypatch.setattr(process, "spawn", lambda _: next(starts))
    children = Children()
    assert not children.has(ended.pid)
    children.spawn(where)
    assert children.has(ended.pid)
    children.spawn(where)
    children.reap()
    assert [children.has(pid) for pid in (ended.pid, sleeper.pid, 1)] == [False, True, False]
    children.kill()
    assert sleeper.poll() == -9
    assert not children.has(sleeper.pid)


def test_warned_of_while_not_confined() -> None:
    """A forwarder that could make any system call is told of; one that cannot, or is not there, is not."""
    clients = [None, *(cast(Any, SimpleNamespace(is_confined=is_confined)) for is_confined in (True, False))]
    assert [len(confinement_warnings(client)) for client in clients] == [0, 0, 1]


def wait(where: RunDir, started: subprocess.Popen[bytes]) -> str:
    """Return why a process that was started is not waited for any more."""

    async def main() -> None:
        async with asyncio.timeout(20):
            await wait_listening(where, 0, started)

    with pytest.raises(RuntimeFailure) as caught:
        asyncio.run(main())
    return str(caught.value)


def test_one_that_ends_at_once(where: RunDir) -> None:
    """Who ends before it listens is told of, with the last that it said."""
    where.forwarder_log.write_text("first\nno such thing\n")
    with subprocess.Popen(["true"]) as started:
        assert wait(where, started) == "forwarder ended at once: no such thing"


def test_one_that_takes_too_long(
    monkeypatch: pytest.MonkeyPatch, where: RunDir, sleeper: subprocess.Popen[bytes]
) -> None:
    """Who lives and does not listen in time is ended."""
    monkeypatch.setattr(process, "START_TIMEOUT_S", 0.05)
    assert wait(where, sleeper).startswith("forwarder did not listen within")
    assert sleeper.poll() == -9


@pytest.mark.parametrize("has_ended", [True, False])
def test_those_of_an_earlier_datapath(
    monkeypatch: pytest.MonkeyPatch, where: RunDir, has_ended: bool
) -> None:
    """Whether there were forwarders to end is what is said."""
    monkeypatch.setattr(process, "stop_forwarders", lambda *_: has_ended)
    assert asyncio.run(end_forwarders(where, 1)) is has_ended
