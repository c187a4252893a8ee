# SPDX-License-Identifier: Apache-2.0
"""Holds on to another process, so that it can be ended whatever it does, and no other one is meant."""

from __future__ import annotations

import os
import select
import signal
import socket
from contextlib import suppress

END_TIMEOUT_S = 2.0  # of a process that was killed


class Grip:
    """A descriptor of the process at the other end of a connection, if it can be seen from here."""

    def __init__(self, pid: int, sock: socket.socket) -> None:
        """Take hold of a process by its pid, 0 if that cannot be seen; `sock` leads to it."""
        self.pid = pid
        self._fd = -1
        if not pid:
            return
        with suppress(OSError):
            self._fd = os.pidfd_open(pid)
        poll = select.poll()
        poll.register(sock, 0)
        if poll.poll(0):  # it has hung up: by now its pid is perhaps somebody else's
            self.close()

    def end(self) -> bool:
        """Kill the process, and return whether it is gone. Blocks until it is, or for END_TIMEOUT_S."""
        if self._fd < 0:
            return False
        try:
            signal.pidfd_send_signal(self._fd, signal.SIGKILL)
        except ProcessLookupError:
            return True
        except OSError:
            return False
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(1000 * END_TIMEOUT_S))

    def close(self) -> None:
        """Let go of it. May be called again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
