# SPDX-License-Identifier: Apache-2.0
"""Sends many netlink messages at once and collects what the kernel says to each; and reads all there is."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Iterable, Iterator
from itertools import islice

from dataplane.entries import (
    AF_BRIDGE,
    ROUTE_PROTOCOL,
    Entries,
    ask_neighbours,
    ask_routes,
    difference,
    note,
    split,
)
from dataplane.errors import KernelError
from dataplane.model import Network

NLMSG_ERROR, NLMSG_DONE = 2, 3
SOL_NETLINK, NETLINK_GET_STRICT_CHK = 270, 12
BATCH = 400  # messages, which fit one datagram, as their answers fit the buffer
BUFFER_BYTES = 4 << 20
RECEIVE_BYTES = 1 << 17
ANSWER_S = 5.0
# What must be gone already is, and what is there already is as well.
HARMLESS = {errno.ESRCH, errno.ENOENT, errno.EEXIST}
# A list of what is in a table that was never made, or of an IP family that the kernel does not have.
NOTHING = {errno.ENOENT, errno.EOPNOTSUPP, errno.EAFNOSUPPORT}


@contextlib.contextmanager
def _open() -> Iterator[socket.socket]:
    """Yield a socket, whose errors are KernelErrors; nobody waits for ever for an answer that was lost."""
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
    try:
        with socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
            sock.settimeout(ANSWER_S)
            sock.bind((0, 0))
            yield sock
    except OSError as err:
        raise KernelError("asking the kernel by netlink", err.errno or errno.ETIMEDOUT) from None


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
        raise KernelError("telling the kernel of peers", failed)


def dump(request: bytes, *, is_filtered: bool = False) -> Iterator[tuple[int, bytes]]:
    """Yield type and body of all that the kernel has; `is_filtered`: it may leave out what is not asked for.

    It filters from Linux 4.20 on; before, and for what it does not filter by, the caller must. KernelError if
    it does not, or stops in between: an error is not the end of a list.
    """
    with _open() as sock:
        if is_filtered:
            with contextlib.suppress(OSError):
                sock.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
        sock.sendall(request)
        while True:
            for kind, body in split(sock.recv(RECEIVE_BYTES)):
                if kind in (NLMSG_DONE, NLMSG_ERROR):
                    _check_end(body)
                    return
                yield kind, body


def ask(request: bytes) -> tuple[int, bytes]:
    """Return type and body of the one answer to a request; KernelError if it is none."""
    with _open() as sock:
        sock.sendall(request)
        kind, body = next(split(sock.recv(RECEIVE_BYTES)))
    if kind == NLMSG_ERROR:
        raise KernelError("asking the kernel for a route", -struct.unpack_from("=i", body)[0])
    return kind, body


def _check_end(body: bytes) -> None:
    """Raise KernelError if a list ends with an error: it is not whole, or there is none."""
    code = -struct.unpack_from("=i", body)[0]
    if code and code not in NOTHING:
        raise KernelError("reading what the kernel knows of routes and neighbours", code)


def read(index: int, family: int, networks: tuple[Network, ...]) -> Entries:
    """Return what the kernel knows of our peers in one IP family.

    They are those behind the VXLAN device `index`, if it is not 0, and those in our networks: the plain
    routes of other daemons of this host look like ours.
    """
    entries = Entries()
    if index:
        for request in (ask_neighbours(family), ask_neighbours(AF_BRIDGE)):
            for kind, body in dump(request):
                note(entries, index, kind, body)
    for kind, body in dump(ask_routes(family, ROUTE_PROTOCOL), is_filtered=True):
        note(entries, index, kind, body)
    strange = [net for net, hop in entries.routes.items() if hop.iface != index and not is_in(net, networks)]
    for net in strange:
        del entries.routes[net]
    return entries


def is_in(net: Network, networks: tuple[Network, ...]) -> bool:
    """Return whether a subnet is part of one of some networks."""
    return any(net.version == wide.version and net.subnet_of(wide) for wide in networks)  # type: ignore[arg-type]


def forget_routes(networks: tuple[Network, ...]) -> list[str]:
    """Remove the routes to peers in some networks; return what was removed."""
    changes = []
    for family, version in ((socket.AF_INET, 4), (socket.AF_INET6, 6)):
        found = read(0, family, networks)
        if send(difference(0, found, Entries())):
            changes.append(f"no IPv{version} routes to {len(found.routes)} subnets of peers")
    return changes
