# SPDX-License-Identifier: Apache-2.0
"""What a forwarder costs: two labs that differ in one flag, processor time to the nanosecond, CPU quotas.

    pod a ── host a: forwarder ── router ── host b: forwarder ── pod b      once as it comes: `--spin-us 50`
    pod a ── host a: forwarder ── router ── host b: forwarder ── pod b      once with `--spin-us 0`

Both stand all the time, and only one has traffic; each is drawn in full at the head of bench/lab.py.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from bench.lab import NETWORK, Lab
from tests.e2e.rig import Daemon, hasten

PORT = 7000
VOLLEY = 10  # exchanges that follow each other at once: then looking pays
GROUP, MOMENT_S = 20, 30e-6  # datagrams, and how soon they follow each other
TIMEOUT_S = 5.0


def pass_time(until_s: float) -> None:
    """Return at a time of the monotonic clock."""
    while (left_s := until_s - time.monotonic()) > 0:
        select.select([], [], [], left_s)


def spent_s(pid: int) -> float:
    """Return the processor time that all threads of a process have used."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text(encoding="ascii").split()[0]) for task in tasks) / 1e9


# --- the labs ---------------------------------------------------------------------------------------


class Priced:
    """overlayd on two hosts, with a socket in each pod."""

    def __init__(self, name: str, directory: Path, flags: Sequence[str]) -> None:
        """Build it."""
        with ExitStack() as stack:
            lab = stack.enter_context(Lab(f"e2e{name}{os.getpid() % 100000}", names=("a", "b")))
            self.nodes = a, b = tuple(lab.nodes.values())
            leases = {node.subnet(): node.lease() for node in self.nodes}
            network = {"Network": NETWORK, "Backend": {"Type": "vxlan"}}
            peers = {"network": network, "leases": leases}
            self.daemons: list[Daemon] = []
            for node in self.nodes:
                hasten(node.host)
                own = ("--public-ip", node.address, *flags)
                self.daemons.append(Daemon(node.host, directory / f"{name}-{node.name}", peers, own))
                stack.callback(self.daemons[-1].close)
                self.daemons[-1].start()
            self.forwarders = [daemon.forwarder_pid() for daemon in self.daemons]
            self._here = stack.enter_context(a.pod.socket(socket.AF_INET, socket.SOCK_DGRAM))
            self._there = stack.enter_context(b.pod.socket(socket.AF_INET, socket.SOCK_DGRAM))
            for sock, near, far in ((self._here, a, b), (self._there, b, a)):
                sock.settimeout(TIMEOUT_S)
                sock.bind((near.pod_ip(), PORT))
                sock.connect((far.pod_ip(), PORT))
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Check conservation and take it down."""
        with self._stack:
            for daemon in self.daemons:
                daemon.settled()

    def spin_us(self) -> list[int]:
        """Return how long its forwarders look before they sleep."""
        return [daemon.status()["workers"]["spin_us"] for daemon in self.daemons]

    def spent_s(self) -> list[float]:
        """Return the processor time of each forwarder."""
        return [spent_s(pid) for pid in self.forwarders]

    def exchange(self) -> float:
        """Send a request and its answer; return the seconds it took."""
        start_s = time.perf_counter()
        self._here.send(b"request")
        self._there.recv(16)
        self._there.send(b"answer")
        self._here.recv(16)
        return time.perf_counter() - start_s

    def send(self) -> None:
        """Send a datagram."""
        self._here.send(b"datagram")

    def receive(self) -> None:
        """Receive one."""
        self._there.recv(16)


# --- loads: packets a second that each forwarder carries, for some seconds --------------------------


def _paced(act: Callable[[], None], per_s: float, seconds: float) -> None:
    """Do something at even distances."""
    start_s = time.monotonic()
    for turn in range(max(1, round(per_s * seconds))):
        pass_time(start_s + turn / per_s)
        act()
    pass_time(start_s + seconds)


def even(system: Priced, rate_pps: float, seconds: float) -> list[float]:
    """Send single datagrams."""

    def single() -> None:
        system.send()
        system.receive()

    _paced(single, rate_pps, seconds)
    return []


def groups(system: Priced, rate_pps: float, seconds: float) -> list[float]:
    """Send datagrams a moment after each other, then none for a while."""

    def group() -> None:
        start_s = time.perf_counter()
        for turn in range(GROUP):
            while time.perf_counter() < start_s + turn * MOMENT_S:
                pass
            system.send()
        for _ in range(GROUP):
            system.receive()

    _paced(group, rate_pps / GROUP, seconds)
    return []


def requests(system: Priced, rate_pps: float, seconds: float) -> list[float]:
    """Send requests, each with its answer; return how long each took."""
    took_s: list[float] = []
    _paced(lambda: took_s.append(system.exchange()), rate_pps / 2, seconds)
    return took_s


def volleys(system: Priced, rate_pps: float, seconds: float) -> list[float]:
    """Send requests, some directly after each other, then none for a while; return how long each took."""
    took_s: list[float] = []

    def volley() -> None:
        for _ in range(VOLLEY):
            took_s.append(system.exchange())

    _paced(volley, rate_pps / 2 / VOLLEY, seconds)
    return took_s
