# SPDX-License-Identifier: Apache-2.0
"""Tells a service manager how we are, by systemd's protocol: datagrams to the socket in NOTIFY_SOCKET.

Our own few lines, because the protocol is no more than that, and the packages for it block when nobody
reads, or know nothing of abstract sockets and watchdogs.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping

from dataplane.errors import one_line

STATUS_MAX = 500  # characters


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

    def _send(self, *lines: str) -> None:
        if not self.is_heard:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
                sock.sendto("\n".join(lines).encode(), self._address)
        except OSError:
            pass  # nobody listens, or nobody reads: not our trouble

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


def _read_watchdog(environ: Mapping[str, str]) -> float | None:
    """Return within how many seconds a watchdog wants to hear of this process; None if none does."""
    text, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not (text.isascii() and text.isdigit() and 0 < len(text) <= 18) or int(text) == 0:
        return None
    return int(text) / 1e6 if pid in ("", str(os.getpid())) else None
