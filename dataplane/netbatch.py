# SPDX-License-Identifier: Apache-2.0
"""Sends many netlink messages at once and collects what the kernel says to each."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable
from itertools import islice

from dataplane.entries import AF_BRIDGE, RTM_GETNEIGH, RTM_GETROUTE, Entries, ask, note, split
from dataplane.errors import KernelError

NLMSG_ERROR, NLMSG_DONE = 2, 3
BATCH = 400  # messages, which fit one datagram, as their answers fit the buffer
BUFFER_BYTES = 4 << 20
RECEIVE_BYTES = 1 << 17
# What must be gone already is, and what is there already is as well.
HARMLESS = {errno.ESRCH, errno.ENOENT, errno.EEXIST}


def _open() -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
    sock.bind((0, 0))
    return sock


def send(messages: Iterable[bytes]) -> int:
    """Send messages that ask for an answer each; return how many. KernelError for the first that fails."""
    count, source = 0, iter(messages)
    with _open() as sock:
        while batch := list(islice(source, BATCH)):
            sock.sendall(b"".join(batch))
            _collect(sock, len(batch))
            count += len(batch)
    return count


def _collect(sock: socket.socket, count: int) -> None:
    failed = 0
    while count > 0:
        for kind, body in split(sock.recv(RECEIVE_BYTES)):
            if kind != NLMSG_ERROR:
                continue
            code = -struct.unpack_from("=i", body)[0]
            count -= 1
            if code and code not in HARMLESS and not failed:
                failed = code
    if failed:
        raise KernelError(f"telling the kernel of peers ({os.strerror(failed)})", failed)


def read(index: int, family: int) -> Entries:
    """Return what the kernel knows of the peers behind a device, in one IP family."""
    entries = Entries()
    with _open() as sock:
        for request in (ask(RTM_GETNEIGH, family), ask(RTM_GETNEIGH, AF_BRIDGE), ask(RTM_GETROUTE, family)):
            sock.sendall(request)
            is_done = False
            while not is_done:
                for kind, body in split(sock.recv(RECEIVE_BYTES)):
                    is_done |= kind in (NLMSG_DONE, NLMSG_ERROR)
                    note(entries, index, kind, body)
    return entries
