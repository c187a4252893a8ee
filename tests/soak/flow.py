# SPDX-License-Identifier: Apache-2.0
"""The traffic of a soak: numbered datagrams between pods, and one TCP connection whose bytes are known.

A process of its own does it, this file run as a program, on sockets that it is given. It answers "?" with a
line of JSON: what was sent and came so far, and what was found wrong since the last time. The end of its
input ends it; it takes what is still under way, and says all that once more.
"""

from __future__ import annotations

import json
import random
import select
import socket
import struct
import subprocess
import sys
import time
from typing import Any

from bench.lab import ROOT
from tests.e2e.numbered import Place, connect
from tests.soak.verdict import Gap

STAMP = struct.Struct("=Qd")  # number, CLOCK_MONOTONIC in seconds
PADDING = bytes(64 - STAMP.size)
TURN_S = 0.002
BURST_MAX = 64
QUIET_S = 1.0
PATIENCE_S = 30.0
PIECE = 1 << 16
TCP_BYTES_S = 2_000_000
RECEIVE_BUFFER = 16 << 20


class Flow:
    """What the soak sees of the process."""

    def __init__(self, pairs: dict[str, tuple[Place, Place]], tcp: tuple[Place, Place], pps: int) -> None:
        """Start it: `pps` datagrams a second in all, both ways of each pair."""
        ends = [pair.split("-") for pair in pairs]
        self.names = [
            f"{here} to {there}" for one, other in ends for here, there in ((one, other), (other, one))
        ]
        socks: list[socket.socket] = []
        for places in pairs.values():
            for here, there in (places, places[::-1]):
                socks += connect(here, there, RECEIVE_BUFFER)
        socks += connect_tcp(*tcp)
        fds = [sock.fileno() for sock in socks]
        command = [sys.executable, "-m", "tests.soak.flow", str(pps / len(self.names)), *map(str, fds)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=fds, cwd=ROOT
        )
        for sock in socks:
            sock.close()
        self.sent = self.came = 0
        self.tcp_sent = self.tcp_came = 0
        self.gaps: list[Gap] = []
        self.wrong: list[str] = []

    def look(self) -> None:
        """Take what has happened so far."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("?\n")
        self._process.stdin.flush()
        self._take(self._process.stdout.readline())

    def _take(self, said: str) -> None:
        told: dict[str, Any] = json.loads(said)
        self.sent, self.came = told["sent"], told["came"]
        self.tcp_sent, self.tcp_came = told["tcp"]
        self.gaps += [Gap(self.names[way], *rest) for way, *rest in told["gaps"]]
        self.wrong += [f"{self.names[way]}: {text}" for way, text in told["wrong"]]
        if told["refused"] and told["refused"] not in self.wrong:
            self.wrong.append(told["refused"])

    def finish(self) -> None:
        """End the traffic, and take the last of what has happened."""
        said, _ = self._process.communicate(timeout=PATIENCE_S)
        self._take(said)

    def close(self) -> None:
        """End the process, if it has not ended."""
        self._process.kill()
        self._process.communicate()


def connect_tcp(here: Place, there: Place) -> list[socket.socket]:
    """Return both ends of a connection."""
    with there[0].socket(socket.AF_INET, socket.SOCK_STREAM) as listening:
        listening.bind((there[1], 0))
        listening.listen(1)
        listening.settimeout(PATIENCE_S)
        sender = here[0].socket(socket.AF_INET, socket.SOCK_STREAM)
        sender.settimeout(PATIENCE_S)
        sender.connect(listening.getsockname())
        receiver, _ = listening.accept()
    return [sender, receiver]


# --- the program ------------------------------------------------------------------------------------------


class Way:
    """One direction of numbered datagrams."""

    def __init__(self, sender: socket.socket, receiver: socket.socket) -> None:
        """Send nothing yet."""
        self._sender, self._receiver = sender, receiver
        receiver.setblocking(False)
        self.sent = self.came = self._next = 0
        self._last_s = time.monotonic()  # when what came last was sent
        self.gaps: list[tuple[int, float, float]] = []
        self.wrong: list[str] = []

    def send(self, count: int) -> None:
        """Send some."""
        for _ in range(count):
            self._sender.send(STAMP.pack(self.sent, time.monotonic()) + PADDING)
            self.sent += 1

    def receive(self) -> bool:
        """Take what has come; tell whether anything has."""
        came = self.came
        try:
            while True:
                self.take(*STAMP.unpack_from(self._receiver.recv(128)))
        except BlockingIOError:
            return self.came > came

    def take(self, number: int, sent_s: float) -> None:
        """Take one."""
        if number < self._next:
            self.wrong.append(f"{number} came late or twice, after {self._next - 1}")
        elif number > self._next:
            self.gaps.append((number - self._next, self._last_s, sent_s))
        self._next, self._last_s = max(self._next, number + 1), sent_s
        self.came += 1

    def finish(self) -> None:
        """Note what did not come at the end."""
        if self._next < self.sent:
            self.gaps.append((self.sent - self._next, self._last_s, time.monotonic()))


class Transfer:
    """A TCP connection that carries a text known to both sides, again and again."""

    def __init__(self, sender: socket.socket, receiver: socket.socket) -> None:
        """Send nothing yet."""
        self._sender, self._receiver = sender, receiver
        for sock in (sender, receiver):
            sock.setblocking(False)
        text = random.Random(147).randbytes(1 << 20)
        self._length = len(text)
        self._text = memoryview(text + text[:PIECE])
        self._due = 0.0
        self.sent = self.came = 0
        self.wrong = ""

    def _piece(self, at: int, length: int) -> memoryview:
        return self._text[at % self._length :][:length]

    def send(self, seconds: float) -> None:
        """Send what is due after that long."""
        self._due = min(self._due + seconds * TCP_BYTES_S, 4.0 * PIECE)
        try:
            while self._due >= PIECE and not self.wrong:
                count = self._sender.send(self._piece(self.sent, PIECE))
                self.sent += count
                self._due -= count
        except BlockingIOError:
            pass
        except OSError as err:
            self.wrong = f"TCP sender: {err.strerror}"

    def receive(self) -> bool:
        """Take what has come; tell whether anything has."""
        came = self.came
        try:
            while data := self._receiver.recv(PIECE):
                if self._piece(self.came, len(data)) != data and not self.wrong:
                    self.wrong = f"TCP: other bytes than were sent, after {self.came}"
                self.came += len(data)
        except BlockingIOError:
            pass
        except OSError as err:
            self.wrong = self.wrong or f"TCP receiver: {err.strerror}"
        return self.came > came


def say(ways: list[Way], transfer: Transfer) -> None:
    """Say what has happened, and of what was wrong what was not said yet."""
    told = {
        "sent": sum(way.sent for way in ways),
        "came": sum(way.came for way in ways),
        "gaps": [[turn, *gap] for turn, way in enumerate(ways) for gap in way.gaps],
        "wrong": [[turn, text] for turn, way in enumerate(ways) for text in way.wrong],
        "tcp": [transfer.sent, transfer.came],
        "refused": transfer.wrong,
    }
    for way in ways:
        way.gaps, way.wrong = [], []
    print(json.dumps(told), flush=True)


def run(rate_pps: float, ways: list[Way], transfer: Transfer) -> None:
    """Send and receive until the input ends, and then what is under way."""
    all_of_them: list[Way | Transfer] = [*ways, transfer]
    last_s, due = time.monotonic(), 0.0
    while True:
        if select.select([sys.stdin], [], [], TURN_S)[0]:
            if not sys.stdin.readline():
                break
            say(ways, transfer)
        now = time.monotonic()
        due = min(due + (now - last_s) * rate_pps, BURST_MAX)  # what is late is not made up for
        for way in ways:
            way.send(int(due))
        transfer.send(now - last_s)
        due, last_s = due - int(due), now
        for each in all_of_them:
            each.receive()
    last_s = time.monotonic()
    while time.monotonic() < last_s + QUIET_S:
        if [each for each in all_of_them if each.receive()]:
            last_s = time.monotonic()
        select.select([], [], [], TURN_S)


def main() -> None:
    """Do what the soak wants."""
    socks = [socket.socket(fileno=int(fd)) for fd in sys.argv[2:]]
    *pairs, tcp = zip(socks[::2], socks[1::2], strict=True)
    ways, transfer = [Way(*pair) for pair in pairs], Transfer(*tcp)
    run(float(sys.argv[1]), ways, transfer)
    for way in ways:
        way.finish()
    say(ways, transfer)


if __name__ == "__main__":
    main()
