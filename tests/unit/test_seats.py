# SPDX-License-Identifier: Apache-2.0
"""Which forwarder of a run directory is in use and which one waits, whenever control is killed."""

from __future__ import annotations

import asyncio
import fcntl
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from bench.lab import wait_for
from dataplane import seats, succession
from dataplane.backend.process import wait_listening
from dataplane.control import ForwarderClient, connect_in_use, inspect, newest_epoch, stop_forwarders
from dataplane.errors import NotRunning, RuntimeFailure
from dataplane.native import State
from dataplane.rundir import RunDir
from tests.unit.test_control import CONFIG, end, fds, start_forwarder

__all__ = ["fds"]  # fixtures

Start = Callable[[], subprocess.Popen[bytes]]


@pytest.fixture
def start(where: RunDir) -> Iterator[Start]:
    """Yield what starts a forwarder, and waits until it listens as the one in use or as the spare."""
    with ExitStack() as stack:

        def begin() -> subprocess.Popen[bytes]:
            process = start_forwarder(where.path)
            stack.callback(end, process)
            is_spare = pid_of(where, spare=False) is not None
            asyncio.run(wait_listening(where, 0, process, is_spare=is_spare)).close()
            return process

        yield begin


def pid_of(where: RunDir, *, spare: bool) -> int | None:
    """Return who answers as the spare, or as the one in use."""
    reply = inspect(where.spare_socket if spare else where.forwarder_socket)
    return None if reply is None else reply.pid


def pids(where: RunDir) -> tuple[int | None, int | None]:
    """Return who is in use, and who waits."""
    return pid_of(where, spare=False), pid_of(where, spare=True)


def promote(where: RunDir, fds: dict[int, int], first: subprocess.Popen[bytes]) -> None:
    """Kill the one in use and let the spare go: its names are still those of a spare."""
    end(first)
    with ForwarderClient(where.spare_socket, epoch=1) as client:
        client.hello()
        client.go(CONFIG, fds)


def refused(where: RunDir) -> str:
    """Return what a forwarder says that nobody needs."""
    process = start_forwarder(where.path)
    said = process.communicate(timeout=10)[1].decode()
    assert process.returncode == 1
    return said.splitlines()[-1]


def test_second_forwarder_waits_and_a_third_is_refused(where: RunDir, start: Start) -> None:
    """Who comes second is the spare; who comes third is told whose the directory is, and who waits."""
    first, second = start(), start()
    assert pids(where) == (first.pid, second.pid)
    assert refused(where).endswith(
        f"another overlayd forwarder (pid {first.pid}) owns {where.path}, and one (pid {second.pid}) waits "
        "already"
    )
    assert pids(where) == (first.pid, second.pid)


def test_spare_is_put_in_use(where: RunDir, start: Start, fds: dict[int, int]) -> None:
    """With its new names it is the forwarder, and who comes next waits; to do it again changes nothing."""
    first, second = start(), start()
    promote(where, fds, first)
    for _ in range(2):
        succession.put_in_use(where, 1)
        assert pids(where) == (second.pid, None)
    third = start()
    assert pids(where) == (second.pid, third.pid)
    assert "waits already" in refused(where)


def test_control_dies_before_it_renames(where: RunDir, start: Start, fds: dict[int, int]) -> None:
    """A spare that was given all is found by status and by the next control, whoever came meanwhile."""
    first, second = start(), start()
    promote(where, fds, first)
    with connect_in_use(where) as client:
        assert client.pid == second.pid
    third = start()  # by whoever supervises forwarders
    assert pids(where) == (third.pid, second.pid)
    with succession.connect(where, 2) as client:
        assert client.pid == second.pid
        assert client.hello().state == State.RUNNING
    assert third.wait(timeout=10) == 0
    assert pids(where) == (second.pid, None)
    assert newest_epoch(where) == 2


@pytest.mark.parametrize("who", ["control", "forwarder"])
def test_control_dies_between_its_renames(where: RunDir, start: Start, fds: dict[int, int], who: str) -> None:
    """With the socket renamed and the lock not, whoever comes next renames it and takes nobody's place."""
    first, second = start(), start()
    promote(where, fds, first)
    where.spare_socket.replace(where.forwarder_socket)
    if who == "control":
        succession.connect(where, 2).close()
        assert not where.spare_lock.exists()
    third = start()
    assert pids(where) == (second.pid, third.pid)
    assert "waits already" in refused(where)


def test_dead_forwarders_socket_is_nobodys(where: RunDir, start: Start) -> None:
    """A spare that waits keeps its names while nobody is in use, and who comes next is in use."""
    first, second = start(), start()
    end(first)
    with pytest.raises(NotRunning):
        succession.connect(where, 1)
    with pytest.raises(NotRunning):
        connect_in_use(where)
    third = start_forwarder(where.path)
    try:
        wait_for(lambda: pids(where) == (third.pid, second.pid), "the third in the place of the first")
        assert stop_forwarders(where, 1)
        assert (third.wait(timeout=10), second.wait(timeout=10)) == (0, 0)
    finally:
        end(third)
    assert not stop_forwarders(where, 2)


def test_directory_that_is_held_is_given_up(where: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who stops while he takes a seat costs the others an error, not for ever."""
    monkeypatch.setattr(seats, "ARRANGE_TIMEOUT_S", 0.05)
    directory = os.open(where.path, os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        with pytest.raises(RuntimeFailure, match="somebody has held"):
            succession.put_in_use(where, 1)
    finally:
        os.close(directory)
    succession.put_in_use(where, 1)


def test_lock_that_somebody_removed(where: RunDir, start: Start) -> None:
    """Who removes the lock of the one in use does not make the spare lose its own: each has its names."""
    first, second = start(), start()
    where.forwarder_lock.unlink()
    seats.mend(where)
    assert where.spare_lock.exists()
    assert not where.forwarder_lock.exists()
    assert pids(where) == (first.pid, second.pid)


def test_lock_that_a_spare_left(where: RunDir, start: Start) -> None:
    """The lock of the one in use stays its own, whatever a spare that is gone has left behind."""
    first = start()
    where.spare_lock.touch()
    held = where.forwarder_lock.stat().st_ino
    seats.mend(where)
    assert where.forwarder_lock.stat().st_ino == held
    assert not seats.is_free(where.forwarder_lock)
    second = start()
    assert pids(where) == (first.pid, second.pid)
