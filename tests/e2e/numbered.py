# SPDX-License-Identifier: Apache-2.0
"""Numbered datagrams both ways between two namespaces, at a steady rate: which of them did not come?

The work is done by a process of its own, this file run as a program, so that whatever the test does
meanwhile costs the stream nothing. It gets its sockets from the test; "?" asks it how many have come, the
end of its input ends it, and it answers with lines of JSON.
"""

from __future__ import annotations

import json
import select
import socket
import subprocess
import sys
import time
from types import TracebackType
from typing import Self

from bench.lab import ROOT, Namespace, wait_for

RATE_PPS = 10_000  # each way
BURST_MAX = 64
TURN_S = 0.001
QUIET_S = 0.5  # in which whatever is queued anywhere comes
SHOWN = 20  # gaps
PATIENCE_S = 20.0
SO_RCVBUFFORCE = 33


Place = tuple[Namespace, str]


def connect(here: Place, there: Place, buffer_bytes: int) -> tuple[socket.socket, socket.socket]:
    """Return sender and receiver of a flow of datagrams; as many bytes wait for the receiver at most."""
    receiver = there[0].socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, buffer_bytes)
    receiver.bind((there[1], 0))
    sender = here[0].socket(socket.AF_INET, socket.SOCK_DGRAM)
    sender.bind((here[1], 0))
    sender.connect(receiver.getsockname())
    return sender, receiver


class Numbered:
    """The stream, for as long as the block lasts: `ends` are a namespace and an address there, twice."""

    def __init__(self, *ends: Place, rate_pps: int = RATE_PPS) -> None:
        """Start it, and wait until it flows both ways."""
        socks: list[socket.socket] = []
        for near, far in (ends, ends[::-1]):
            socks += connect(near, far, 32 << 20)
        fds = [sock.fileno() for sock in socks]
        command = [sys.executable, "-m", "tests.e2e.numbered", str(rate_pps), *map(str, fds)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=fds, cwd=ROOT
        )
        for sock in socks:
            sock.close()
        self.sent = self.came = 0
        self.wrong: list[str] = ["the stream was not ended"]

    def _ask(self) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("?\n")
        self._process.stdin.flush()
        return min(map(int, json.loads(self._process.stdout.readline())))

    def flow_on(self, count: int = RATE_PPS // 10) -> None:
        """Return after that many more datagrams came each way."""
        goal = self._ask() + count
        patience_s = PATIENCE_S + 3 * count / RATE_PPS  # a busy machine sends less
        wait_for(lambda: self._ask() >= goal, "the stream flows on", patience_s)

    def __enter__(self) -> Self:
        self.flow_on()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None
    ) -> None:
        try:
            said, _ = self._process.communicate(timeout=PATIENCE_S)
        finally:
            self._process.kill()
            self._process.wait()
        if kind is None:
            self.sent, self.came, self.wrong = json.loads(said)


# --- the program ------------------------------------------------------------------------------------------


class Way:
    """One direction."""

    def __init__(self, here: socket.socket, there: socket.socket, name: str) -> None:
        """Send nothing yet."""
        self._here, self._there, self._name = here, there, name
        there.setblocking(False)
        self.sent = self.came = 0
        self._next = 0
        self.wrong: list[str] = []

    def send(self, count: int) -> None:
        """Send some."""
        for _ in range(count):
            self._here.send(self.sent.to_bytes(4, "big"))
            self.sent += 1

    def receive(self) -> bool:
        """Take what has come; tell whether anything has."""
        came = self.came
        try:
            while True:
                self._take(int.from_bytes(self._there.recv(16), "big"))
        except BlockingIOError:
            return self.came > came

    def _take(self, number: int) -> None:
        if number != self._next:
            kind = "lost" if number > self._next else "late or doubled"
            self.wrong.append(f"{self._name}: {kind}: {self._next}, then came {number}")
        self._next = max(self._next, number + 1)
        self.came += 1

    def finish(self) -> None:
        """Note what did not come at the end."""
        if self._next != self.sent:
            self.wrong.append(f"{self._name}: lost: the last {self.sent - self._next}")


def run(rate_pps: int, ways: list[Way]) -> None:
    """Send and receive until the input ends, and then what is under way."""
    last_s, due = time.monotonic(), 0.0
    while True:
        if select.select([sys.stdin], [], [], TURN_S)[0]:
            if not sys.stdin.readline():
                break
            print(json.dumps([way.came for way in ways]), flush=True)
        now = time.monotonic()
        due, last_s = min(due + (now - last_s) * rate_pps, BURST_MAX), now  # what is late is not made up for
        for way in ways:
            way.send(int(due))
        due -= int(due)
        for way in ways:
            way.receive()
    last_s = time.monotonic()
    while time.monotonic() < last_s + QUIET_S:
        if [way for way in ways if way.receive()]:
            last_s = time.monotonic()
        select.select([], [], [], TURN_S)


def main() -> None:
    """Do what the test wants."""
    socks = [socket.socket(fileno=int(fd)) for fd in sys.argv[2:]]
    ways = [Way(socks[0], socks[1], "there"), Way(socks[2], socks[3], "back")]
    run(int(sys.argv[1]), ways)
    for way in ways:
        way.finish()
    wrong = [text for way in ways for text in way.wrong[:SHOWN]]
    print(json.dumps([sum(way.sent for way in ways), sum(way.came for way in ways), wrong]))


if __name__ == "__main__":
    main()
