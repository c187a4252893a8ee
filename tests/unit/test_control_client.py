# SPDX-License-Identifier: Apache-2.0
"""The client of a forwarder, and the one who asks control, where the other side breaks its word."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Thread

import pytest

from dataplane import control, native
from dataplane.control import ForwarderClient, Silent
from dataplane.errors import ControlError
from dataplane.message import Message
from dataplane.model import Table
from dataplane.native import MessageType
from dataplane.rundir import RunDir
from dataplane.slots import SLOTS, Fd

ALL_SLOTS = sum(1 << slot for slot in SLOTS)


def count_descriptors() -> int:
    """Return how many this process has open, and the one by which it looks."""
    return len(list(Path("/proc/self/fd").iterdir()))


@contextmanager
def answering(path: Path, kind: socket.SocketKind, data: bytes, fds: list[int]) -> Iterator[None]:
    """Answer the first request with this, and hang up."""
    with socket.socket(socket.AF_UNIX, kind) as listener:
        listener.bind(os.fspath(path))
        listener.listen(1)
        listener.settimeout(10)

        def answer() -> None:
            for _ in range(1 if data else 2):  # who gets none tries again, as with an older forwarder
                accepted, _ = listener.accept()
                with accepted:
                    accepted.recv(1 << 16)
                    if data:
                        socket.send_fds(accepted, [data], fds)

        thread = Thread(target=answer)
        thread.start()
        try:
            yield
        finally:
            thread.join()


@contextmanager
def forwarder(where: RunDir, reply: Message | None, fds: list[int]) -> Iterator[None]:
    """Be a forwarder that answers one request with this, and hangs up; it must cost no descriptor."""
    held = count_descriptors()
    data = b"" if reply is None else reply.pack()
    with answering(where.forwarder_socket, socket.SOCK_SEQPACKET, data, fds):
        yield
    assert count_descriptors() == held


def test_client_is_open_until_the_forwarder_hangs_up(where: RunDir) -> None:
    """A client that can ask says so, and the error says who closed the connection without an answer."""
    with forwarder(where, None, []), ForwarderClient(where.forwarder_socket) as client:
        assert client.is_open
        with pytest.raises(ControlError, match=rf"forwarder \(pid {os.getpid()}\) closed the connection"):
            client.hello()
        assert not client.is_open


def test_more_descriptors_than_there_are_roles_are_refused(where: RunDir) -> None:
    """Where the kernel could not hand over all that was sent, those that came are not taken for the whole."""
    reply = Message(MessageType.INSPECT, seq=1, fd_mask=ALL_SLOTS)
    with forwarder(where, reply, [0] * (len(SLOTS) + 1)), ForwarderClient(where.forwarder_socket) as client:
        with pytest.raises(ControlError, match="other descriptors than it sent"):
            client.inspect()
        assert not client.is_open


@pytest.mark.parametrize("role", [Fd.COUNTERS, Fd.FIB], ids=lambda role: role.name)
def test_status_needs_counters_and_table(where: RunDir, role: Fd) -> None:
    """With only one of the two the status tells what is known without them, and keeps no descriptor."""
    fd = native.counters_create() if role == Fd.COUNTERS else native.fib_create(Table((), ()), 1)
    try:
        with forwarder(where, Message(MessageType.INSPECT, seq=1, fd_mask=1 << role), [fd]):
            status = control.inspect_status(where.path)
    finally:
        os.close(fd)
    assert (status["ready"], status["reason"]) == (False, "overlayd run is not running")


@pytest.mark.parametrize("line", ['["error"]', '"error"', "[]", "7", "null"])
def test_answer_that_is_no_object_is_nonsense(where: RunDir, line: str) -> None:
    """Whoever asks control gets an object, or an error that says it was none."""
    with (
        answering(where.control_socket, socket.SOCK_STREAM, line.encode() + b"\n", []),
        pytest.raises(ControlError, match="answered nonsense"),
    ):
        control.ask(where.path, {"cmd": "status"})


@pytest.mark.parametrize("is_confined", [True, False])
def test_whether_a_forwarder_is_confined(where: RunDir, is_confined: bool) -> None:
    """What a forwarder says of its filter of system calls is what is believed."""
    reply = Message(MessageType.HELLO, seq=1, is_confined=is_confined)
    with forwarder(where, reply, []), ForwarderClient(where.forwarder_socket) as client:
        assert not client.is_confined
        client.hello()
        assert client.is_confined is is_confined


def test_who_hangs_up_later_is_no_older_forwarder(where: RunDir) -> None:
    """Only the first request is made again in older words: who has answered before has understood."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(os.fspath(where.forwarder_socket))
        listener.listen(2)
        listener.setblocking(False)

        def hang_up(far: socket.socket) -> None:
            with far:
                assert far.recv(1 << 16)

        with ForwarderClient(where.forwarder_socket) as client:
            far, _ = listener.accept()
            far.send(Message(MessageType.HELLO, seq=1).pack())
            client.hello()
            assert far.recv(1 << 16)
            thread = Thread(target=hang_up, args=(far,))
            thread.start()
            with pytest.raises(ControlError, match="closed the connection"):
                client.quiesce()
            thread.join()
        with pytest.raises(BlockingIOError):  # nobody has connected anew
            listener.accept()


@pytest.mark.parametrize("is_ended", [True, False])
def test_who_does_not_answer_is_ended(where: RunDir, monkeypatch: pytest.MonkeyPatch, is_ended: bool) -> None:
    """A forwarder that hangs is killed when all are to end; if it cannot be, that is told."""

    class FakeGrip:
        def __init__(self, *_: object) -> None:
            pass

        def end(self) -> bool:
            return is_ended

        def close(self) -> None:
            pass

    monkeypatch.setattr(control, "Grip", FakeGrip)
    monkeypatch.setattr(control, "ForwarderClient", partial(ForwarderClient, timeout_s=0.05))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(os.fspath(where.forwarder_socket))
        listener.listen(1)
        if is_ended:
            assert control.stop_forwarders(where, 1)
        else:
            with pytest.raises(Silent):
                control.stop_forwarders(where, 1)
