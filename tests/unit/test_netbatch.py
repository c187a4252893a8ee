# SPDX-License-Identifier: Apache-2.0
"""Lists that the kernel gives, and what is an error in place of one."""

from __future__ import annotations

import errno
import sys

import pytest

from dataplane import netbatch
from dataplane.entries import (
    AF_INET,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    RTM_GETROUTE,
    RTM_NEWROUTE,
    RTMSG,
    ask_routes,
    message,
)
from dataplane.errors import KernelError
from dataplane.netbatch import NLMSG_DONE, NLMSG_ERROR, dump

NO_TABLE = 250  # nobody makes it


def ask(table: int, tos: int = 0) -> bytes:
    """Return a request for the routes of a table; a kernel that is strict refuses one with a TOS."""
    body = RTMSG.pack(AF_INET, 0, 0, tos, table, 0, 0, 0, 0)
    return message(RTM_GETROUTE, NLM_F_REQUEST | NLM_F_DUMP, body)


def test_refused_list() -> None:
    """A list that the kernel refuses is an error with its reason, not an empty list; the next one is read."""
    with pytest.raises(KernelError, match=r"reading what .*: Invalid argument") as caught:
        list(dump(ask(254, tos=4), is_filtered=True))
    assert caught.value.errno == errno.EINVAL
    assert {kind for kind, _ in dump(ask_routes(AF_INET), is_filtered=True)} <= {RTM_NEWROUTE}


def test_no_table() -> None:
    """A table that was never made is empty."""
    assert list(dump(ask(NO_TABLE), is_filtered=True)) == []


@pytest.mark.parametrize("kind", [NLMSG_DONE, NLMSG_ERROR])
@pytest.mark.parametrize(
    ("code", "is_error"),
    [(0, False), (errno.ENOENT, False), (errno.EOPNOTSUPP, False), (errno.ENOBUFS, True)],
)
def test_end_of_a_list(monkeypatch: pytest.MonkeyPatch, kind: int, code: int, *, is_error: bool) -> None:
    """A list that breaks off is an error whichever way the kernel says so; what came before is not all."""
    route = message(RTM_NEWROUTE, 0, RTMSG.pack(AF_INET, 0, 0, 0, 254, 0, 0, 0, 0))

    class Kernel:
        """Says one route, and then how the list ends."""

        def __enter__(self) -> Kernel:
            return self

        def __exit__(self, *exc: object) -> None:
            pass

        def sendall(self, data: bytes) -> None:
            """Take the request."""

        def recv(self, size: int) -> bytes:
            """Say all at once."""
            return route + message(kind, 0, (-code).to_bytes(4, sys.byteorder, signed=True))

    monkeypatch.setattr(netbatch, "_open", Kernel)
    told = dump(b"")
    assert next(told)[0] == RTM_NEWROUTE
    if is_error:
        with pytest.raises(KernelError):
            next(told)
    else:
        assert list(told) == []
