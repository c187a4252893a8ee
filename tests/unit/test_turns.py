# SPDX-License-Identifier: Apache-2.0
"""Of several forwarders that have the same counters one carries, whatever becomes of who commands them."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import subprocess
import termios
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from bench.lab import wait_for
from dataplane import native
from dataplane.backend.process import wait_listening
from dataplane.control import ForwarderClient
from dataplane.engine import Engine
from dataplane.errors import ControlError
from dataplane.native import State
from dataplane.rundir import RunDir
from dataplane.slots import Fd
from tests.unit.test_control import CONFIG, TABLE, close_all, end, start_forwarder

START_S = 10.0


class Bench:
    """Two forwarders, each with a run directory, and what both are given; a pipe stands for the TUN."""

    def __init__(self, directory: Path) -> None:
        """Start them; the first one goes."""
        self._stack = ExitStack()
        self._read_end, self._write_end = os.pipe2(os.O_NONBLOCK)
        self.fds: dict[int, int] = {
            Fd.TUN: self._read_end,
            Fd.COUNTERS: native.counters_create(),
            Fd.FIB: native.fib_create(TABLE, 5),
        }
        self._stack.callback(close_all, {**self.fds, -1: self._write_end})
        self.counters = self._stack.enter_context(native.Counters(self.fds[Fd.COUNTERS]))
        self.where = [RunDir(directory / name) for name in ("old", "new")]
        self.processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Bench:
        for where in self.where:
            where.prepare()
            process = start_forwarder(where.path)
            self._stack.callback(end, process)
            self.processes.append(process)
            asyncio.run(wait_listening(where, 0, process)).close()
        with self.command(0) as client:
            client.go(CONFIG, self.fds)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    @contextmanager
    def command(self, index: int, epoch: int = 1) -> Iterator[ForwarderClient]:
        """Be the control of one of them, and hang up at the end."""
        with ForwarderClient(self.where[index].forwarder_socket, epoch=epoch) as client:
            client.hello()
            yield client

    def state(self, index: int) -> State:
        """Return what one of them says of itself."""
        with ForwarderClient(self.where[index].forwarder_socket) as client:
            reply, fds = client.inspect()
        close_all(fds)
        return reply.state

    @property
    def turn(self) -> int:
        """Whose turn it is."""
        return self.counters.header().turn

    def offer(self) -> None:
        """Let something arrive that is counted, whatever becomes of it."""
        os.write(self._write_end, b"packet")

    def waiting(self) -> int:
        """Return how many bytes nobody has taken yet."""
        space = bytearray(4)
        fcntl.ioctl(self._read_end, termios.FIONREAD, space)
        return int.from_bytes(space, "little")

    def carries(self) -> None:
        """Make sure that somebody takes what arrives."""
        before = self.counters.totals().tx.offered
        self.offer()
        wait_for(lambda: self.counters.totals().tx.offered == before + 1, "somebody to carry")
        assert self.waiting() == 0


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """Yield two forwarders, of which the first one carries."""
    with Bench(tmp_path) as built:
        yield built


def test_control_dies_after_parking(bench: Bench) -> None:
    """A forwarder whose control hangs up while it is parked goes on by itself."""
    with bench.command(0) as client:
        client.quiesce()
        assert bench.state(0) == State.QUIESCED
        bench.offer()
    wait_for(lambda: bench.state(0) == State.RUNNING, "the forwarder goes on")
    wait_for(lambda: bench.waiting() == 0, "what arrived meanwhile is taken")
    bench.carries()


def test_who_parks_is_who_is_waited_for(bench: Bench) -> None:
    """The end of another connection than that of the control which parked it changes nothing."""
    with bench.command(0) as client:
        client.quiesce()
        with bench.command(0):
            pass
        with ForwarderClient(bench.where[0].forwarder_socket):
            pass
        assert client.hello().state == State.QUIESCED
        bench.offer()
        assert client.hello().state == State.QUIESCED
        assert bench.waiting()


@pytest.mark.parametrize("is_first_gone", [True, False])
def test_control_dies_that_came_after_the_one_that_parked(bench: Bench, is_first_gone: bool) -> None:
    """A parked forwarder waits for the newest control alone, and goes on by itself when that hangs up."""
    with ExitStack() as first:
        first.enter_context(bench.command(0)).quiesce()
        with bench.command(0, epoch=2) as second:
            if is_first_gone:
                first.close()
            assert second.hello().state == State.QUIESCED
            assert second.hello().state == State.QUIESCED
            bench.offer()
            assert bench.waiting()
        wait_for(lambda: bench.waiting() == 0, "the forwarder goes on")
    bench.carries()


def test_control_dies_when_the_successor_goes(bench: Bench) -> None:
    """A parked forwarder whose control hangs up after another took its turn ends, and that one carries."""
    with bench.command(0) as client, bench.command(1) as successor:
        client.quiesce()
        successor.go(CONFIG, bench.fds, turn=bench.turn)
    assert bench.processes[0].wait(START_S) == 0
    assert bench.state(1) == State.RUNNING
    bench.carries()
    assert bench.counters.header().restarts == 1
    assert "restart" not in bench.counters.totals().tx.drops  # nothing was in flight


def test_go_that_comes_too_late_is_refused(bench: Bench) -> None:
    """A successor that reads its GO when the old one went on already does not go, and can be told again."""
    with bench.command(0) as client, bench.command(1) as successor:
        client.quiesce()
        turn = bench.turn
        client.resume(turn)
        with pytest.raises(ControlError, match="another forwarder carries by now"):
            successor.go(CONFIG, bench.fds, turn)
        assert (bench.state(0), bench.state(1)) == (State.RUNNING, State.EMPTY)
        bench.carries()
        client.quiesce()
        successor.go(CONFIG, bench.fds, bench.turn)
        assert (bench.state(0), bench.state(1)) == (State.QUIESCED, State.RUNNING)
        bench.carries()


def test_resume_that_comes_too_late_is_refused(bench: Bench) -> None:
    """The old one does not go on if its successor went after all; told the turn that is, it takes it back."""
    with bench.command(0) as client, bench.command(1) as successor:
        client.quiesce()
        turn = bench.turn
        successor.go(CONFIG, bench.fds, turn)
        with pytest.raises(ControlError, match="another forwarder carries by now"):
            client.resume(turn)
        bench.carries()
        successor.quiesce()
        client.resume(bench.turn)
        assert (bench.state(0), bench.state(1)) == (State.RUNNING, State.QUIESCED)
        bench.carries()


def test_stopped_forwarder_that_was_replaced_ends(bench: Bench) -> None:
    """A forwarder that was stopped while another took its turn carries nothing when it wakes, and ends."""
    with bench.command(0):
        bench.processes[0].send_signal(signal.SIGSTOP)
        with bench.command(1) as successor:
            successor.go(CONFIG, bench.fds)
            bench.carries()
    bench.processes[0].send_signal(signal.SIGCONT)
    assert bench.processes[0].wait(START_S) == 0
    bench.carries()


def test_worker_whose_turn_is_over_takes_nothing(tmp_path: Path) -> None:
    """Workers that another engine replaced behind their backs leave what arrives where it is."""
    with Bench(tmp_path) as bench:
        with bench.command(0) as client:
            client.stop()
        with Engine(CONFIG, bench.fds) as old, Engine(CONFIG, bench.fds) as new:
            old.start()
            bench.carries()
            new.start()
            new.quiesce()
            bench.offer()
            old.quiesce()  # after the look that it was in, which shows what arrived
            assert bench.waiting()
            new.resume()
            wait_for(lambda: not bench.waiting(), "the new one to take it")
