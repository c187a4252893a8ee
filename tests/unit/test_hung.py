# SPDX-License-Identifier: Apache-2.0
"""Which forwarder hangs, what is left behind for it, and how often is too often."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace

import pytest

from dataplane import grip as grip_module
from dataplane import native
from dataplane.backend.crashes import CRASH_WINDOW_S, PAUSE_MAX_S, Crashes
from dataplane.backend.hung import Pulse, find_waiting, read_beats, worker_of
from dataplane.backend.kit import Kit, copy_counters
from dataplane.grip import Grip
from dataplane.native import Counters
from dataplane.slots import Fd, slot_of
from tests.unit.test_control import CONFIG

# --- who hangs --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("looks", "hangs"),
    [
        pytest.param([((), (5,))] * 9, [False] * 9, id="idle"),
        pytest.param([((0,), (5,))] * 3, [False, False, True], id="stuck"),
        pytest.param([((0,), (beat,)) for beat in range(9)], [False] * 9, id="busy"),
        pytest.param([((0,), (5,)), ((0,), (5,)), ((), (5,)), ((0,), (5,))], [False] * 4, id="emptied"),
        pytest.param(
            [((0,), (5,)), ((0,), (6,)), ((0,), (6,)), ((0,), (6,))], [False, False, False, True], id="late"
        ),
        pytest.param([((0, 1), (beat, 5)) for beat in range(3)], [False, False, True], id="one_of_two"),
        pytest.param([((beat % 2,), (5, 5)) for beat in range(9)], [False] * 9, id="in_turns"),
    ],
)
def test_pulse(looks: list[tuple[tuple[int, ...], tuple[int, ...]]], hangs: list[bool]) -> None:
    """A forwarder hangs once packets wait for a worker in three looks, and it made no round meanwhile."""
    pulse = Pulse()
    assert [pulse.feel(waiting, beats) for waiting, beats in looks] == hangs


def test_workers_of_slots() -> None:
    """Each queue is that worker's who serves it, and what only sends is nobody's."""
    config = replace(CONFIG, threads=2, queues=4)
    served = {
        **{slot_of(Fd.TUN, index): index % 2 for index in range(4)},
        **{slot_of(Fd.UDP4, index + 1): index % 2 for index in range(4)},
        Fd.UDP4: 0,
        Fd.UDP6: 0,
        Fd.BARE4: 0,
        Fd.RAW4: 0,
        slot_of(Fd.BARE4, 2): 1,
        Fd.UDP4_TX: None,
        Fd.UDP6_TX: None,
        Fd.RAW4_TX: None,
        Fd.FIB: None,
        Fd.COUNTERS: None,
    }
    assert {slot: worker_of(slot, config) for slot in served} == served


def test_what_waits_is_seen_and_left(fd_pair: tuple[socket.socket, socket.socket]) -> None:
    """A worker has packets waiting if a queue of its has; to look takes none; what only sends is none."""
    near, far = fd_pair
    fds: dict[int, int] = {Fd.TUN: near.fileno(), Fd.UDP4_TX: far.fileno()}
    near.send(b"to the one that only sends")
    assert find_waiting(fds, CONFIG) == set()
    far.send(b"packet")
    for _ in range(2):
        assert find_waiting(fds, CONFIG) == {0}
    near.recv(64)
    assert find_waiting(fds, CONFIG) == set()


@pytest.fixture
def fd_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Yield two ends of a connection."""
    near, far = socket.socketpair()
    with near, far:
        yield near, far


# --- its counters -----------------------------------------------------------------------------------


def write_word(fd: int, place: int, value: int) -> None:
    """Write a counter."""
    os.pwrite(fd, value.to_bytes(8, "little"), place)


def test_copy_of_counters_goes_its_own_way() -> None:
    """All that counters say is in their copy, to the last peer; what is written to one is not in it then."""
    fd = native.counters_create(2, 1000)
    size = os.fstat(fd).st_size
    places = [native.HEAD_BYTES, native.HEAD_BYTES + native.THREAD_BYTES, size - 8]
    for value, place in enumerate(places, 7):
        write_word(fd, place, value)
    kit = Kit(fds={Fd.COUNTERS: fd}, counters=Counters(fd), is_due=False)
    old = os.dup(fd)
    kit.renew_counters()
    new = kit.fds[Fd.COUNTERS]
    try:
        assert read_beats(new, 2) == [7, 8]
        assert os.pread(new, size, 0) == os.pread(old, size, 0)
        assert kit.is_due
        write_word(old, places[0], 99)
        assert kit.counters is not None
        assert (kit.counters.totals().heartbeat, read_beats(old, 1)) == (15, [99])
        kit.counters.close()
    finally:
        os.close(old)
        os.close(new)


def test_copy_of_counters_is_as_small_as_they_are() -> None:
    """Room for peers that nobody uses costs no memory in the copy either."""
    fd = native.counters_create(1)
    copy = copy_counters(fd)
    try:
        assert os.fstat(copy).st_size == os.fstat(fd).st_size
        assert os.fstat(copy).st_blocks <= os.fstat(fd).st_blocks
    finally:
        os.close(fd)
        os.close(copy)


# --- its end ----------------------------------------------------------------------------------------


def test_grip_ends_who_was_meant(fd_pair: tuple[socket.socket, socket.socket]) -> None:
    """A stopped process is gone when end() returns, and who is gone already is no error."""
    with subprocess.Popen(["sleep", "60"]) as process:
        grip = Grip(process.pid, fd_pair[0])
        process.send_signal(19)
        assert grip.end()
        assert process.wait() == -9
        assert grip.end()
        grip.close()


def test_who_does_not_go_is_not_gone(
    fd_pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is there when the time is over is not said to have ended."""
    monkeypatch.setattr(grip_module, "END_TIMEOUT_S", 0.01)
    with subprocess.Popen(["sleep", "60"]) as process:
        grip = Grip(process.pid, fd_pair[0])
        with monkeypatch.context() as patch:
            patch.setattr(signal, "pidfd_send_signal", lambda *_: None)
            assert not grip.end()
        monkeypatch.undo()
        assert grip.end()
        grip.close()


@pytest.mark.parametrize("how", ["unseen", "hung_up"])
def test_grip_ends_nobody_else(fd_pair: tuple[socket.socket, socket.socket], how: str) -> None:
    """Who cannot be seen, or may have left his pid to another, is not killed."""
    near, far = fd_pair
    with subprocess.Popen(["sleep", "60"]) as process:
        if how == "hung_up":
            far.close()
        grip = Grip(0 if how == "unseen" else process.pid, near)
        assert not grip.end()
        assert process.poll() is None
        grip.close()
        process.kill()


# --- how often --------------------------------------------------------------------------------------


def test_three_ends_within_the_window_are_a_loop() -> None:
    """Two ends are none, three within ten seconds are, three that take longer are none."""
    crashes = Crashes()
    assert not crashes.is_alarm(0.0)
    for now in (0.0, 1.0):
        crashes.note(now)
        assert not crashes.is_looping
    crashes.note(CRASH_WINDOW_S + 0.5)
    assert not crashes.is_looping
    crashes.note(CRASH_WINDOW_S + 0.6)
    assert crashes.is_looping
    assert crashes.is_alarm(CRASH_WINDOW_S + 1.0)
    assert not crashes.is_alarm(2 * CRASH_WINDOW_S + PAUSE_MAX_S)
    crashes.begin_anew()
    assert not crashes.is_looping


def test_pauses_grow_until_a_forwarder_works() -> None:
    """Each pause is twice as long, up to a limit; one that works begins anew."""
    crashes = Crashes()
    assert [crashes.next_pause_s() for _ in range(6)] == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0]
    crashes.work_again()
    assert crashes.next_pause_s() == 1.0
    for now in (0.0, 0.1, 0.2):
        crashes.note(now)
    crashes.work_again()  # but for how long?
    assert crashes.next_pause_s() == 2.0
