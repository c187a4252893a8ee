# SPDX-License-Identifier: Apache-2.0
"""Tells a service manager how we are, by systemd's protocol: datagrams to the socket in NOTIFY_SOCKET.

Our own few lines, because the protocol is no more than that, and the packages for it block when nobody
reads, or know nothing of abstract sockets and watchdogs.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Mapping, MutableMapping, Sequence
from itertools import zip_longest

from dataplane.errors import one_line

STATUS_MAX = 500  # characters
SETTLE_S = 1.0  # at most, for a service manager that does not read, or does not know the word
FIRST_FD = 3  # of those that are handed down


class Notifier:
    """Speaks to whoever started us, if they listen; what cannot be said is not said, and harms nothing."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        """Read where to speak to, and how often a watchdog wants to hear of us."""
        path = environ.get("NOTIFY_SOCKET", "")
        # systemd writes the NUL of an abstract address as "@".
        self._address = f"\0{path[1:]}" if path.startswith("@") else path
        self._status = ""
        self.watchdog_s = _read_watchdog(environ) if self.is_heard else None

    @property
    def is_heard(self) -> bool:
        """Whether anybody wants to know."""
        return self._address.startswith(("/", "\0"))

    def _send(self, *lines: str, fds: Sequence[int] = (), wait_s: float = 0.0) -> bool:
        if not self.is_heard:
            return False
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.settimeout(wait_s)
                sock.connect(self._address)  # send_fds() forgets addresses (CPython 3.11)
                socket.send_fds(sock, ["\n".join(lines).encode()], fds)
        except OSError:
            return False  # nobody listens, or nobody reads: not our trouble
        return True

    def ready(self) -> None:
        """Say that the node works, or that a reload is over."""
        self._send("READY=1")

    def status(self, text: str) -> None:
        """Say in a line how things are, unless that was said last."""
        text = one_line(text)[:STATUS_MAX]
        if text != self._status:
            self._status = text
            self._send(f"STATUS={text}")

    def reloading(self) -> None:
        """Say that a reload begins; ready() ends it."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Say that we end."""
        self._send("STOPPING=1")

    def alive(self) -> None:
        """Say to a watchdog that we do not hang."""
        self._send("WATCHDOG=1")

    def keep(self, name: str, fd: int) -> bool:
        """Have a descriptor kept under a name for our next start; errors on it are no reason to drop it.

        Blocks until somebody reads, as all that is about such descriptors; return whether that was in time.
        """
        return self._send("FDSTORE=1", f"FDNAME={name}", "FDPOLL=0", fds=(fd,), wait_s=SETTLE_S)

    def drop(self, name: str) -> bool:
        """Have what is kept under a name kept no more."""
        return self._send("FDSTOREREMOVE=1", f"FDNAME={name}", wait_s=SETTLE_S)

    def settle(self) -> None:
        """Return when all that was said is done, or after SETTLE_S. Blocks."""
        if not self.is_heard:
            return
        here, there = os.pipe2(os.O_CLOEXEC)
        try:
            self._send("BARRIER=1", fds=(there,), wait_s=SETTLE_S)
            os.close(there)
            poll = select.poll()
            poll.register(here, 0)
            poll.poll(1000 * SETTLE_S)
        finally:
            os.close(here)


def take_kept(environ: MutableMapping[str, str]) -> dict[str, int]:
    """Return the descriptors that a service manager kept for us, by name; they are the caller's.

    Our children are not to take them for theirs, so the variables go.
    """
    pid, count, names = (environ.pop(f"LISTEN_{word}", "") for word in ("PID", "FDS", "FDNAMES"))
    if pid != str(os.getpid()) or not (count.isascii() and count.isdigit() and len(count) <= 4):
        return {}
    kept: dict[str, int] = {}
    for fd, name in zip_longest(range(FIRST_FD, FIRST_FD + int(count)), names.split(":")):
        if fd is None:
            break
        try:
            os.set_inheritable(fd, False)
        except OSError:
            continue  # somebody else's mistake
        if name is None or name in kept:
            os.close(fd)
        else:
            kept[name] = fd
    return kept


def _read_watchdog(environ: Mapping[str, str]) -> float | None:
    """Return within how many seconds a watchdog wants to hear of this process; None if none does."""
    text, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not (text.isascii() and text.isdigit() and 0 < len(text) <= 18) or int(text) == 0:
        return None
    return int(text) / 1e6 if pid in ("", str(os.getpid())) else None
