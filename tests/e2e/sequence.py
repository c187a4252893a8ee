# SPDX-License-Identifier: Apache-2.0
"""Numbered datagrams of which every byte is known beforehand, in many flows at a time, paced.

A datagram of a flow is its number, least byte first, and then what a keyed function says of flow and number,
cut to its size: so each byte that is changed shows, and each datagram that is lost, doubled or late.
"""

from __future__ import annotations

import errno
import hashlib
import random
import select
import socket
import struct
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.lab import Namespace

SIZE_MAX = 1400
RUN_MAX = 40  # datagrams of one message of a sender that uses UDP_SEGMENT
RUN_BYTES_MAX = 60_000
TICK_S = 0.001
TICK_DATAGRAMS = 12  # 12 000 a second
UNDERWAY_MAX = 240  # a receiver that the machine kept waiting is waited for, not flooded
QUEUE_BYTES = 8 << 20
PATIENCE_S = 2.0  # without one datagram: the rest is lost
KEY = b"overlayd, in order and unchanged"
SO_RCVBUFFORCE = 33
SOL_UDP, UDP_SEGMENT = 17, 103


@dataclass(slots=True, eq=False)
class Flow:
    """One flow: who sends to whom, what, and what has come."""

    source: Namespace
    target: Namespace
    address: str
    port: int
    size_max: int
    has_runs: bool  # the sender uses UDP_SEGMENT
    messages: list[list[bytes]] = field(default_factory=list)
    sent: list[bytes] = field(default_factory=list)
    came: list[bytes] = field(default_factory=list)

    @property
    def family(self) -> socket.AddressFamily:
        """The inner family."""
        return socket.AF_INET6 if ":" in self.address else socket.AF_INET

    def plan(self, count: int) -> None:
        """Decide what is sent: `count` datagrams of mixed sizes, often some of one size after another."""
        draw = random.Random(f"{self.address} {self.port}")
        number = 0
        while number < count:
            size = draw.randint(1, self.size_max)
            run = min(draw.randint(1, RUN_MAX if self.has_runs else 6), RUN_BYTES_MAX // size, count - number)
            sizes = [size] * (run - 1) + [draw.randint(1, size)]
            datagrams = [self._datagram(number + index, length) for index, length in enumerate(sizes)]
            self.messages += [datagrams] if self.has_runs else [[datagram] for datagram in datagrams]
            number += run

    def _datagram(self, number: int, size: int) -> bytes:
        name = f"{self.address} {self.port} {number}".encode()
        return (number.to_bytes(4, "little") + hashlib.shake_128(KEY + name).digest(size))[:size]

    def verdict(self) -> str:
        """Say what is wrong with what came; nothing if nothing is."""
        if self.came == self.sent:
            return ""
        lost = Counter(self.sent) - Counter(self.came)
        extra = Counter(self.came) - Counter(self.sent)
        changed = sum(count for datagram, count in extra.items() if datagram not in set(self.sent))
        first = next(
            (at for at, pair in enumerate(zip(self.sent, self.came, strict=False)) if pair[0] != pair[1]),
            min(len(self.sent), len(self.came)),
        )
        how = "with" if self.has_runs else "without"
        return (
            f"to {self.address} port {self.port}, {how} UDP_SEGMENT: of {len(self.sent)} datagrams "
            f"{lost.total()} are missing, {changed} came changed, {extra.total() - changed} doubled; "
            f"the first that differs, or is out of order, is number {first}"
        )


class Exchange:
    """The sockets of all flows, and the loop that sends and receives."""

    def __init__(self, flows: Sequence[Flow]) -> None:
        """Open and bind them."""
        self._flows = flows
        self._poll = select.epoll()
        self._in: dict[int, tuple[socket.socket, Flow]] = {}
        self._out: dict[int, socket.socket] = {}
        for flow in flows:
            there = flow.target.socket(flow.family, socket.SOCK_DGRAM)
            there.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, QUEUE_BYTES)
            there.setblocking(False)
            there.bind((flow.address, flow.port))
            self._in[there.fileno()] = (there, flow)
            self._poll.register(there, select.EPOLLIN)
            here = self._out[flow.port] = flow.source.socket(flow.family, socket.SOCK_DGRAM)
            here.connect((flow.address, flow.port))

    def close(self) -> None:
        """Close them."""
        self._poll.close()
        for sock in (*self._out.values(), *(sock for sock, _ in self._in.values())):
            sock.close()

    def run(self) -> None:
        """Send all messages, a few each tick, and receive until as many came, or none does any more."""
        order = self._mix()
        sent = due = received = 0
        last_s = time.monotonic()
        while (received < sent or order) and time.monotonic() < last_s + PATIENCE_S:
            due += TICK_DATAGRAMS
            while order and sent < due and sent - received < UNDERWAY_MAX:
                sent += self._send(order.pop())
            due = min(due, sent)  # what was not sent in time is not made up for
            self._receive(TICK_S)
            if self._received() > received:
                received, last_s = self._received(), time.monotonic()

    def _mix(self) -> list[Flow]:
        """Return which flow sends when, last first: each several messages in a row, now and then."""
        draw = random.Random(0)
        left = {flow.port: len(flow.messages) for flow in self._flows}
        order: list[Flow] = []
        while waiting := [flow for flow in self._flows if left[flow.port]]:
            flow = draw.choice(waiting)
            turn = min(draw.randint(1, 6), left[flow.port])
            left[flow.port] -= turn
            order += [flow] * turn
        return order

    def _received(self) -> int:
        return sum(len(flow.came) for flow in self._flows)

    def _send(self, flow: Flow) -> int:
        message = flow.messages.pop(0)
        flow.sent += message
        sock = self._out[flow.port]
        try:
            if len(message) > 1:
                segment = (SOL_UDP, UDP_SEGMENT, struct.pack("@H", len(message[0])))
                sock.sendmsg([b"".join(message)], [segment])
                return len(message)
        except OSError as err:
            if err.errno != errno.EIO:  # a device that cannot add up checksums; before Linux 6.11
                raise
        for datagram in message:
            sock.send(datagram)
        return len(message)

    def _receive(self, wait_s: float) -> None:
        """Take what comes within a time."""
        end_s = time.monotonic() + wait_s
        while True:
            for number, _ in self._poll.poll(max(end_s - time.monotonic(), 0.0)):
                sock, flow = self._in[number]
                try:
                    while True:
                        flow.came.append(sock.recv(2 * SIZE_MAX))
                except BlockingIOError:
                    pass
            if time.monotonic() >= end_s:
                return

    def take(self) -> None:
        """Take what still came although all were there."""
        self._receive(0.0)


def size_max(mtu: int, address: str) -> int:
    """Return the largest size of datagrams that pass whole."""
    return min(SIZE_MAX, mtu - (48 if ":" in address else 28))
