# SPDX-License-Identifier: Apache-2.0
"""What a service manager hears of us, through a real socket of either kind."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataplane.notify import STATUS_MAX, Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """Yield the socket of a service manager, and NOTIFY_SOCKET as it would be."""
    told = str(tmp_path / "notify") if request.param == "path" else f"@overlayd-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0{told[1:]}" if told[0] == "@" else told)
        sock.settimeout(5.0)
        yield sock, told


def heard(sock: socket.socket) -> dict[str, str]:
    """Return the next message."""
    lines = sock.recv(4096).decode().split("\n")
    return dict(line.split("=", 1) for line in lines)


def test_what_is_said(manager: tuple[socket.socket, str]) -> None:
    """Each state is one datagram in systemd's words; a reload says when it began, by the right clock."""
    sock, told = manager
    notifier = Notifier({"NOTIFY_SOCKET": told})
    assert notifier.is_heard
    notifier.ready()
    assert heard(sock) == {"READY": "1"}
    before_us = time.monotonic_ns() // 1000
    notifier.reloading()
    said = heard(sock)
    assert said.pop("RELOADING") == "1"
    assert before_us <= int(said.pop("MONOTONIC_USEC")) <= time.monotonic_ns() // 1000
    assert said == {}
    notifier.alive()
    assert heard(sock) == {"WATCHDOG": "1"}
    notifier.stopping()
    assert heard(sock) == {"STOPPING": "1"}


def test_status_is_said_when_it_changes(manager: tuple[socket.socket, str]) -> None:
    """The same status is said once; one that somebody else wrote cannot say anything besides."""
    sock, told = manager
    notifier = Notifier({"NOTIFY_SOCKET": told})
    notifier.status("ready")
    notifier.status("ready")
    notifier.status("not ready: x\nWATCHDOG=trigger")
    assert heard(sock) == {"STATUS": "ready"}
    assert heard(sock) == {"STATUS": r"not ready: x\nWATCHDOG=trigger"}
    notifier.status("x" * 10_000)
    assert heard(sock) == {"STATUS": "x" * STATUS_MAX}


@pytest.mark.parametrize("told", ["", "relative", "/nowhere/notify", "@nobody-is-here", "/" + 200 * "x"])
def test_nobody_listens(told: str) -> None:
    """Where nobody listens, nothing happens."""
    notifier = Notifier({"NOTIFY_SOCKET": told})
    notifier.ready()
    notifier.status("ready")
    assert Notifier({}).is_heard is False


def test_nobody_reads(manager: tuple[socket.socket, str]) -> None:
    """A service manager that does not read never holds us up."""
    notifier = Notifier({"NOTIFY_SOCKET": manager[1]})
    begun = time.monotonic()
    for _ in range(5000):
        notifier.alive()
    assert time.monotonic() - begun < 5.0


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        pytest.param({"WATCHDOG_USEC": "3000000"}, 3.0, id="ours"),
        pytest.param({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 3.0, id="our pid"),
        pytest.param({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, None, id="somebody else's"),
        pytest.param({"WATCHDOG_USEC": "0"}, None, id="zero"),
        pytest.param({"WATCHDOG_USEC": "-1"}, None, id="negative"),
        pytest.param({"WATCHDOG_USEC": "9" * 50}, None, id="too many digits"),
        pytest.param({}, None, id="none"),
    ],
)
def test_watchdog(environ: dict[str, str], expected: float | None) -> None:
    """A watchdog counts if it is meant for this process, and says something sensible."""
    assert Notifier({"NOTIFY_SOCKET": "@x", **environ}).watchdog_s == expected
    assert Notifier(environ).watchdog_s is None


def test_address_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket that happens to lie where we are is not taken for that of a service manager."""
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("notify")
        sock.setblocking(False)
        Notifier({"NOTIFY_SOCKET": "notify"}).ready()
        with pytest.raises(BlockingIOError):
            sock.recv(4096)
        Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")}).ready()
        assert heard(sock) == {"READY": "1"}
