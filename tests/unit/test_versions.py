# SPDX-License-Identifier: Apache-2.0
"""Control and forwarder of builds that are one version apart understand each other; two apart they say so."""

from __future__ import annotations

import errno
import os
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import pytest

from dataplane import VERSION, native
from dataplane.control import ForwarderClient
from dataplane.errors import ControlError
from dataplane.message import BUILD, BYTES_MIN, LAYOUTS, LAYOUTS_UNTOLD, NEWEST, OLDEST, Message
from dataplane.native import MessageType, State
from dataplane.rundir import RunDir
from tests.unit.test_control import CONFIG, fds, forwarder

__all__ = ["fds", "forwarder"]  # fixtures
ABI_AT = 4  # in a message
WHOLE = Message(
    MessageType.HELLO,
    *(7, 3, 0, 5, State.RUNNING, 11, 99, CONFIG),
    is_confined=True,
    turn=8,
    build=0x1234,
    layouts=(21, 22),
    version="9.8.7",
)


def of_version(data: bytes, abi: int, size: int) -> bytes:
    """Return a message as another version would send it: with its number, cut or with more behind it."""
    return (data[:ABI_AT] + struct.pack("=H", abi) + data[ABI_AT + 2 :]).ljust(size, b"\xff")[:size]


# --- messages ---------------------------------------------------------------------------------------


def test_older_message_lacks_only_its_end() -> None:
    """What the version before ours sends is ours without the end: its fields are read, the others are 0."""
    data = WHOLE.pack(OLDEST)
    assert data == of_version(WHOLE.pack(), OLDEST, BYTES_MIN)
    read = Message.unpack(data)
    assert (read.type, read.epoch, read.config, read.is_confined) == (MessageType.HELLO, 7, CONFIG, True)
    assert (read.turn, read.build, read.version, read.layouts) == (0, 0, "", LAYOUTS_UNTOLD)


def test_newer_message_is_read_without_its_end() -> None:
    """Of what the version after ours sends, what we know is read as it would be of ours."""
    assert Message.unpack(of_version(WHOLE.pack(), NEWEST, native.MESSAGE_BYTES + 100)) == WHOLE
    assert Message.unpack(WHOLE.pack()) == WHOLE


@pytest.mark.parametrize("abi", [OLDEST - 1, NEWEST + 1])
def test_message_of_two_versions_away_is_refused(abi: int) -> None:
    """Who is too far away is told from who talks nonsense."""
    with pytest.raises(ControlError, match=rf"speaks version {abi}, this overlayd {OLDEST} to {NEWEST}"):
        Message.unpack(of_version(WHOLE.pack(), abi, native.MESSAGE_BYTES))


def test_long_version_is_cut_to_its_room() -> None:
    """A version that does not fit ends early, and still ends with a NUL."""
    data = Message(MessageType.HELLO, version="1" * 99).pack()
    assert data[-1] == 0
    assert set(Message.unpack(data).version) == {"1"}


# --- a forwarder ------------------------------------------------------------------------------------


def say(where: RunDir, data: bytes) -> bytes:
    """Return what the forwarder answers."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(5)
        sock.connect(os.fspath(where.forwarder_socket))
        sock.send(data)
        return sock.recv(4096)


@pytest.mark.parametrize(
    ("abi", "size", "answers"),
    [
        (OLDEST, BYTES_MIN, (OLDEST, BYTES_MIN)),
        (native.ABI, native.MESSAGE_BYTES, (native.ABI, native.MESSAGE_BYTES)),
        (NEWEST, native.MESSAGE_BYTES + 64, (native.ABI, native.MESSAGE_BYTES)),
    ],
    ids=["older", "same", "newer"],
)
def test_forwarder_answers_as_it_is_asked(
    where: RunDir, forwarder: subprocess.Popen[bytes], abi: int, size: int, answers: tuple[int, int]
) -> None:
    """A control one version away is obeyed, and gets an answer of its own version and length, or of ours."""
    assert forwarder.poll() is None
    data = say(where, of_version(Message(MessageType.HELLO, epoch=4, seq=1).pack(), abi, size))
    assert (struct.unpack_from("=H", data, ABI_AT)[0], len(data)) == answers
    reply = Message.unpack(data)
    assert (reply.error, reply.epoch, reply.seq) == (0, 4, 1)


@pytest.mark.parametrize("abi", [OLDEST - 1, NEWEST + 1])
def test_forwarder_refuses_who_is_two_versions_away(
    where: RunDir, forwarder: subprocess.Popen[bytes], abi: int
) -> None:
    """A control two versions away is told so, obeyed in nothing, and the next one is served."""
    request = Message(MessageType.HELLO, epoch=4).pack()
    reply = Message.unpack(say(where, of_version(request, abi, native.MESSAGE_BYTES)))
    assert (reply.error, reply.epoch) == (-errno.EPROTO, 0)
    with ForwarderClient(where.forwarder_socket, epoch=1) as client:
        assert client.hello().epoch == 1
    assert forwarder.poll() is None


def test_forwarder_says_what_it_is(where: RunDir, forwarder: subprocess.Popen[bytes]) -> None:
    """Control learns version, build and layouts of the forwarder with any answer."""
    assert forwarder.poll() is None
    with ForwarderClient(where.forwarder_socket, epoch=1) as client:
        assert not client.is_of_our_build  # nothing is known yet
        client.hello()
        assert client.is_of_our_build
        assert (client.said.version, client.said.build) == (VERSION, BUILD)
        assert client.said.layouts == LAYOUTS


# --- a forwarder of version 5, which takes no other ----------------------------------------------------


@contextmanager
def strict_forwarder(path: Path) -> Iterator[None]:
    """Serve requests as version 5 does: it hangs up on whatever is not exactly as long as its own."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(os.fspath(path))
        listener.listen(2)
        listener.settimeout(10)

        def serve() -> None:
            for _ in range(2):
                accepted, _ = listener.accept()
                with accepted:
                    while len(data := accepted.recv(1 << 16)) == BYTES_MIN:
                        accepted.send(data)

        thread = Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            thread.join()


def test_client_speaks_as_an_older_forwarder_does(where: RunDir) -> None:
    """One that hangs up on our first words is spoken to as the version before ours, from then on."""
    with (
        strict_forwarder(where.forwarder_socket),
        ForwarderClient(where.forwarder_socket, epoch=6) as client,
    ):
        assert client.hello().epoch == 6
        client.quiesce()
        assert not client.is_of_our_build
        assert (client.said.build, client.said.layouts) == (0, LAYOUTS_UNTOLD)
