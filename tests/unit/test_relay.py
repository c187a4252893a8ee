# SPDX-License-Identifier: Apache-2.0
"""The planned hand-over between two real forwarders: whatever fails in it, one of the two carries then."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from bench.lab import stands_still, wait_for
from dataplane.backend import relay
from dataplane.control import ForwarderClient
from dataplane.errors import ControlError, NotRunning
from dataplane.native import ForwarderConfig, MessageType, State
from dataplane.slots import Fd
from tests.unit.test_control import CONFIG
from tests.unit.test_turns import Bench

RUN_S = 0.3  # how long a successor may take here
MESSAGES = 5  # of a hand-over: two HELLO, QUIESCE, GO, STOP


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """Yield two forwarders, of which the first one carries."""
    with Bench(tmp_path) as built:
        yield built


def carrying(bench: Bench) -> list[int]:
    """Return which of the two say that they carry."""
    found = []
    for index in range(2):
        with suppress(NotRunning, ControlError):  # it ends, or has ended
            if bench.state(index) == State.RUNNING:
                found.append(index)
    return found


def test_successor_carries(bench: Bench) -> None:
    """The successor carries with the counters there were, and what came meanwhile; nothing was in flight."""
    with bench.command(0) as old, bench.command(1) as successor:
        bench.carries()
        assert 0 < relay.hand_over(old, successor, CONFIG, bench.fds) < 5
        assert carrying(bench) == [1]
        bench.carries()
    assert bench.processes[0].wait(10) == 0
    totals = bench.counters.totals()
    assert (totals.tx.offered, totals.tx.drops.get("restart", 0)) == (2, 0)


def test_successor_that_refuses(bench: Bench) -> None:
    """A successor that cannot work with what it is given says so, and the old one goes on."""
    with bench.command(0) as old, bench.command(1) as successor:
        with pytest.raises(ControlError, match="refused GO: configuration or descriptors"):
            relay.hand_over(old, successor, CONFIG, {Fd.COUNTERS: bench.fds[Fd.COUNTERS]})
        assert old.is_open
        assert carrying(bench) == [0]
        bench.carries()


class Faulty(ForwarderClient):
    """A connection on which something is done to the forwarder just before a message is sent."""

    def fail_before(self, kind: MessageType, fault: Callable[[], None]) -> None:
        """Do it before the next message of this kind."""
        self._kind, self._fault = kind, fault

    def begin(
        self,
        kind: MessageType,
        config: ForwarderConfig | None = None,
        fds: object = None,
        turn: int = 0,
    ) -> None:
        """Send a message."""
        if kind == getattr(self, "_kind", None):
            self._fault()
        super().begin(kind, config, fds, turn)  # type: ignore[arg-type]


def faulty(bench: Bench, index: int, kind: MessageType, fault: Callable[[], None]) -> Faulty:
    """Be the control of one of the two, on such a connection."""
    client = Faulty(bench.where[index].forwarder_socket, epoch=1)
    client.hello()
    client.fail_before(kind, fault)
    return client


def test_successor_that_dies(bench: Bench) -> None:
    """A successor that is gone when it is to go costs nothing but the time to find that out."""

    def die() -> None:
        bench.processes[1].kill()
        bench.processes[1].wait()

    with bench.command(0) as old, faulty(bench, 1, MessageType.GO, die) as successor:
        with pytest.raises(ControlError, match="GO"):
            relay.hand_over(old, successor, CONFIG, bench.fds)
        assert old.is_open
        assert carrying(bench) == [0]
        bench.carries()


def test_successor_that_hangs(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A successor that hangs is not waited for; when it wakes it refuses that, and may be told again."""
    monkeypatch.setattr(relay, "RUN_S", RUN_S)

    def hang() -> None:
        bench.processes[1].send_signal(signal.SIGSTOP)
        wait_for(lambda: stands_still(bench.processes[1].pid), "the successor hangs")

    with bench.command(0) as old:
        with (
            faulty(bench, 1, MessageType.GO, hang) as successor,
            pytest.raises(ControlError, match="does not answer GO"),
        ):
            relay.hand_over(old, successor, CONFIG, bench.fds)
        assert old.is_open
        bench.carries()
        bench.processes[1].send_signal(signal.SIGCONT)
        with bench.command(1) as successor:  # behind what it was told first
            assert carrying(bench) == [0]
            relay.hand_over(old, successor, CONFIG, bench.fds)
            assert carrying(bench) == [1]
            bench.carries()


def test_successor_whose_workers_hang(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A successor that says it goes, and whose workers make no round, is taken for one that does not go."""
    monkeypatch.setattr(relay, "RUN_S", RUN_S)

    class Stopping(Faulty):
        def go(self, *args: object) -> None:
            super().go(*args)  # type: ignore[arg-type]
            self.quiesce()
            self.rounds = bench.counters.totals().heartbeat

    with bench.command(0) as old, Stopping(bench.where[1].forwarder_socket, epoch=1) as successor:
        successor.hello()
        before = bench.counters.totals().heartbeat
        monkeypatch.setattr(relay, "_wait_for_round", make_wait(relay._wait_for_round, successor))
        with pytest.raises(ControlError, match="its workers do not"):
            relay.hand_over(old, successor, CONFIG, bench.fds)
        assert bench.counters.totals().heartbeat > before
        assert old.is_open
    wait_for(lambda: carrying(bench) == [0], "the old one alone carries")
    bench.carries()


def make_wait(wait: Callable[..., None], successor: object) -> Callable[..., None]:
    """Wait for a round after those that were made before the workers were parked."""
    return lambda client, counters, _: wait(client, counters, successor.rounds)  # type: ignore[attr-defined]


def test_old_one_that_dies(bench: Bench) -> None:
    """If the old one is gone when it is to park, that is said, and the successor can be given everything."""

    def die() -> None:
        bench.processes[0].kill()
        bench.processes[0].wait()

    with faulty(bench, 0, MessageType.QUIESCE, die) as old, bench.command(1) as successor:
        with pytest.raises(ControlError, match="QUIESCE"):
            relay.hand_over(old, successor, CONFIG, bench.fds)
        assert not old.is_open
        successor.go(CONFIG, bench.fds)
        bench.carries()


@pytest.mark.parametrize("is_sent", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("number", range(1, MESSAGES + 1))
def test_control_that_dies(bench: Bench, number: int, is_sent: bool) -> None:
    """Control is killed before or after any message of a hand-over: exactly one forwarder carries then."""
    pid = os.fork()
    if not pid:
        try:
            die_at(number, is_sent=is_sent)
            with bench.command(0) as old, bench.command(1) as successor:
                relay.hand_over(old, successor, CONFIG, bench.fds)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    wait_for(lambda: len(carrying(bench)) == 1, "one of them carries")
    bench.carries()
    has_gone = bench.counters.header().restarts == 1
    wait_for(lambda: (bench.processes[0].poll() is not None) == has_gone, "one that was replaced ends")
    assert carrying(bench) == [int(has_gone)]
    assert "restart" not in bench.counters.totals().tx.drops


def die_at(number: int, *, is_sent: bool) -> None:
    """Have this process killed before or after it sends so many messages of a hand-over."""
    begin, sent = ForwarderClient.begin, 0

    def count(self: ForwarderClient, *args: object, **more: object) -> None:
        nonlocal sent
        sent += 1
        if sent == number + 2 and not is_sent:  # behind the two HELLO of command()
            os.kill(os.getpid(), signal.SIGKILL)
        begin(self, *args, **more)  # type: ignore[arg-type]
        if sent == number + 2:
            os.kill(os.getpid(), signal.SIGKILL)

    ForwarderClient.begin = count  # type: ignore[method-assign]
