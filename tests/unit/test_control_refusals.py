# SPDX-License-Identifier: Apache-2.0
"""What the forwarder refuses of a control that it obeys."""

from __future__ import annotations

import errno
import os
import socket
import struct
import subprocess

import pytest

from dataplane.control import ForwarderClient
from dataplane.errors import ControlError
from dataplane.message import Message
from dataplane.native import MessageType, State
from dataplane.rundir import RunDir
from tests.unit.test_control import CONFIG, close_all, fds, forwarder

__all__ = ["fds", "forwarder"]  # fixtures
ERROR_AT = 20  # in a message
SLOTS = 160


def _taken(client: ForwarderClient) -> set[int]:
    taken = client.take()[1]
    close_all(taken)
    return set(taken)


@pytest.mark.parametrize("kind", ["TAKE", "PUBLISH", "QUIESCE", "RESUME"])
def test_empty_forwarder_has_nothing_to_do(
    where: RunDir, forwarder: subprocess.Popen[bytes], fds: dict[int, int], kind: str
) -> None:
    """Before GO there is nothing to take, to publish to or to park; GO works as ever then."""
    with ForwarderClient(where.forwarder_socket, epoch=1) as client:
        client.hello()
        with pytest.raises(ControlError, match="has no descriptors yet"):
            client.request(MessageType[kind])
        client.go(CONFIG, fds)
        assert client.hello().state == State.RUNNING
    assert forwarder.poll() is None


def test_publish_needs_a_table(
    where: RunDir, forwarder: subprocess.Popen[bytes], fds: dict[int, int]
) -> None:
    """PUBLISH without a descriptor is refused in words, and the table in force stays."""
    with ForwarderClient(where.forwarder_socket, epoch=1) as client:
        client.hello()
        client.go(CONFIG, fds)
        with pytest.raises(ControlError, match="refused PUBLISH: configuration or descriptors"):
            client.request(MessageType.PUBLISH)
        assert client.hello().generation == 5
    assert forwarder.poll() is None


def test_only_take_and_inspect_hand_out_descriptors(
    where: RunDir, forwarder: subprocess.Popen[bytes], fds: dict[int, int]
) -> None:
    """An answer to anything else carries none: who did not ask for them would never close them."""
    with ForwarderClient(where.forwarder_socket, epoch=1) as client:
        client.hello()
        client.go(CONFIG, fds)
        for kind in (MessageType.HELLO, MessageType.QUIESCE, MessageType.RESUME):
            assert client.request(kind)[1] == {}
    assert forwarder.poll() is None


def test_descriptors_that_the_kernel_cut_off(where: RunDir, forwarder: subprocess.Popen[bytes]) -> None:
    """With one descriptor more than there are slots the kernel drops one: the message is not whole."""
    everything = Message(MessageType.HELLO, epoch=1, fd_mask=(1 << SLOTS) - 1).pack()
    with ForwarderClient(where.forwarder_socket, epoch=1) as client:
        client.hello()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
            stranger.settimeout(5)
            stranger.connect(os.fspath(where.forwarder_socket))
            socket.send_fds(stranger, [everything], [0] * (SLOTS + 1))
            assert stranger.recv(1) == b""
        assert client.hello().state == State.EMPTY
    assert forwarder.poll() is None


def test_unknown_request_is_refused(
    where: RunDir, forwarder: subprocess.Popen[bytes], fds: dict[int, int]
) -> None:
    """A request that this version does not know is answered, and not with success."""
    with ForwarderClient(where.forwarder_socket, epoch=1) as client:
        client.hello()
        client.go(CONFIG, fds)
        data = bytearray(Message(MessageType.HELLO, epoch=1).pack())
        data[6] = 99
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.settimeout(5)
            sock.connect(os.fspath(where.forwarder_socket))
            sock.send(Message(MessageType.HELLO, epoch=1).pack())
            sock.recv(4096)
            sock.send(data)
            assert struct.unpack_from("=i", sock.recv(4096), ERROR_AT) == (-errno.EOPNOTSUPP,)
        assert client.hello().state == State.RUNNING
    assert forwarder.poll() is None


def test_who_is_refused_gets_no_descriptors(
    where: RunDir, forwarder: subprocess.Popen[bytes], fds: dict[int, int]
) -> None:
    """TAKE before HELLO, or by a control that was replaced, is answered without a single descriptor."""
    with ForwarderClient(where.forwarder_socket, epoch=2) as client:
        client.hello()
        client.go(CONFIG, fds)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
            stranger.settimeout(5)
            stranger.connect(os.fspath(where.forwarder_socket))
            stranger.send(Message(MessageType.TAKE, epoch=2).pack())
            data, received, _, _ = socket.recv_fds(stranger, 4096, 8)
            assert struct.unpack_from("=i", data, ERROR_AT) == (-errno.EPERM,)
            assert received == []
        assert _taken(client) == fds.keys()
    assert forwarder.poll() is None
