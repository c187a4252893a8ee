# SPDX-License-Identifier: Apache-2.0
"""A steady stream of numbered datagrams, sent by a process of its own; the kernel says when each one came.

    a namespace: this file as a program                      b namespace: a socket of the test
    sender ── pods' route ── overlay0 ═══ tunnel ═══ overlay0 ── receiver

Each datagram has its number and the time at which it was sent, so what it waited is known whoever keeps the
test itself waiting.
"""

from __future__ import annotations

import select
import socket
import struct
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Self

from bench.lab import Namespace, wait_for

ROOT = Path(__file__).resolve().parents[2]
STAMP = struct.Struct("=IQ")  # number, CLOCK_REALTIME in nanoseconds
SO_TIMESTAMPNS = 35
SO_RCVBUFFORCE = 33
TICK_S = 0.001
QUIET_S = 0.6  # longer than anything is queued
SECOND_NS = 1_000_000_000


@dataclass(slots=True)
class Stream:
    """Datagrams from one place to another for as long as the block lasts, and what came of them."""

    source: Namespace
    target: Namespace
    sender_ip: str
    receiver_ip: str
    port: int
    rate_pps: int = 10_000
    came: list[tuple[int, int, int]] = field(default_factory=list)  # number, sent and came, in nanoseconds
    sent: int = 0
    _is_over: threading.Event = field(default_factory=threading.Event)
    _process: subprocess.Popen[bytes] | None = None
    _thread: threading.Thread | None = None
    _sock: socket.socket | None = None

    def __enter__(self) -> Self:
        sock = self._sock = self.target.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        sock.bind((self.receiver_ip, self.port))
        self._thread = threading.Thread(target=self._receive, daemon=True)
        self._thread.start()
        command = [sys.executable, "-m", "tests.e2e.stamped", self.sender_ip, self.receiver_ip]
        command += [str(self.port), str(self.rate_pps)]
        self._process = subprocess.Popen(
            self.source.command(*command), cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            wait_for(lambda: len(self.came) > self.rate_pps // 20, "the stream flows")
        except AssertionError:
            self._end()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._end()

    def _end(self) -> None:
        assert self._process is not None
        assert self._thread is not None
        assert self._sock is not None
        try:
            said, _ = self._process.communicate(timeout=10)  # closes its input: it ends
            self.sent = int(said)
        finally:
            self._process.kill()
            self._process.wait()
            self._is_over.set()
            self._thread.join()
            self._sock.close()

    def _receive(self) -> None:
        assert self._sock is not None
        while select.select([self._sock], [], [], QUIET_S)[0] or not self._is_over.is_set():
            try:
                while True:
                    data, ancillary, _, _ = self._sock.recvmsg(64, 64, socket.MSG_DONTWAIT)
                    seconds, nanoseconds = struct.unpack("=qq", ancillary[0][2])
                    self.came.append((*STAMP.unpack(data), seconds * SECOND_NS + nanoseconds))
            except BlockingIOError:
                pass

    def flow_on(self, count: int = 1000) -> None:
        """Return after that many more came."""
        goal = len(self.came) + count
        wait_for(lambda: len(self.came) >= goal, "the stream flows on", 20.0)

    def stalls_ms(self, moments_ns: list[int]) -> list[float]:
        """Return for each moment (CLOCK_REALTIME) how long what was sent after it had to wait at most."""
        found, at = [], 0
        for begin, end in zip(moments_ns, [*moments_ns[1:], moments_ns[-1] + SECOND_NS], strict=True):
            worst = 0
            while at < len(self.came) and self.came[at][1] < end:
                _, sent, came = self.came[at]
                worst = max(worst, came - sent if sent + SECOND_NS // 50 >= begin else 0)
                at += 1
            found.append(worst / 1e6)
        return found

    def gaps(self) -> list[tuple[int, int]]:
        """Return which numbers did not come, as (first, how many); those that did came once and in order."""
        numbers = [number for number, _, _ in self.came]
        assert numbers == sorted(set(numbers))
        edges = [-1, *numbers, self.sent]
        return [(before + 1, after - before - 1) for before, after in pairwise(edges) if after - before > 1]


def main() -> None:
    """Send until our input ends; then say how many that were."""
    sender_ip, receiver_ip, port, rate = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((sender_ip, 0))
    sock.connect((receiver_ip, port))
    number, start = 0, time.monotonic()
    while not select.select([sys.stdin], [], [], TICK_S)[0]:
        # What could not be sent in time is not made up for: a burst would be somebody else's loss.
        due = int((time.monotonic() - start) * rate)
        if due - number > rate // 50:
            start += (due - number - rate // 50) / rate
            due = number + rate // 50
        while number < due:
            sock.send(STAMP.pack(number, time.clock_gettime_ns(time.CLOCK_REALTIME)))
            number += 1
    print(number)


if __name__ == "__main__":
    main()
