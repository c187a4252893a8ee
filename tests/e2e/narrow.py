# SPDX-License-Identifier: Apache-2.0
"""Paths that take less than the interfaces at their ends, the silence about it, and who suffers."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time

from bench.lab import Lab, Namespace, wait_for

DATA = os.urandom(1 << 16)
PAUSE_S = 0.01  # between pieces: the machine has other work
DEADLINE_S = 20.0
ERRORS = (
    "icmp type { destination-unreachable, parameter-problem } drop",
    "icmpv6 type { destination-unreachable, packet-too-big, parameter-problem } drop",
)


def deafen(*places: Namespace) -> None:
    """Have hosts and routers neither hear nor tell of ICMP errors."""
    for place in places:
        place.run("nft", "add table inet deaf")
        for hook in ("input", "output", "forward"):
            place.run("nft", f"add chain inet deaf {hook} {{ type filter hook {hook} priority -200; }}")
            for error in ERRORS:
                place.run("nft", f"add rule inet deaf {hook} {error}")


def narrow(lab: Lab, name: str, mtu: int, ways: tuple[str, ...] = ("oifname", "iifname")) -> None:
    """Let the link between router and a node take so much from now on, and say nothing of it."""
    table = "table inet narrow"
    lab.router.run("nft", f"add {table}; delete {table}; add {table}")
    lab.router.run("nft", "add chain inet narrow path { type filter hook forward priority 0; }")
    for way in ways:
        lab.router.run("nft", f"add rule inet narrow path {way} r{name} meta length > {mtu} counter drop")


class Flow:
    """Bytes from one pod to another by TCP, as fast as they go, until it is closed."""

    def __init__(self, source: Namespace, target: Namespace, address: str) -> None:
        """Connect and begin."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with target.socket(family, socket.SOCK_STREAM) as listener:
            listener.bind((address, 0))
            listener.listen()
            self._near = source.socket(family, socket.SOCK_STREAM)
            # What Linux takes by itself. BBR paces by what it saw last, which may be a hole of some seconds.
            self._near.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
            self._near.connect(listener.getsockname())
            self._far, _ = listener.accept()
        self.count = 0  # bytes that came
        self._last_s = time.monotonic()
        self._longest_s = 0.0
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._send, self._receive)]
        for thread in self._threads:
            thread.start()

    def _send(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._near.sendall(DATA)
                time.sleep(PAUSE_S)

    def _receive(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._far.recv(len(DATA)):
                now = time.monotonic()
                self._longest_s, self._last_s = max(self._longest_s, now - self._last_s), now
                self.count += len(data)

    def longest_s(self) -> float:
        """Return for how long nothing came, at most until now, and begin anew."""
        found, self._longest_s = max(self._longest_s, time.monotonic() - self._last_s), 0.0
        return found

    def wait(self, count: int, deadline_s: float) -> None:
        """Wait until so many more bytes have come."""
        end = self.count + count
        wait_for(lambda: self.count >= end, f"{count} bytes of a connection", deadline_s)

    def close(self) -> None:
        """End it, whatever is still on its way."""
        for sock in (self._near, self._far):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(DEADLINE_S)
        self._near.close()
        self._far.close()
