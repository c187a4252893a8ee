# SPDX-License-Identifier: Apache-2.0
"""A pair of hosts with a daemon on each, a numbered load from one to the other, and `ip monitor`.

        a namespace                              b namespace
        overlay0 10.244.1.0/32                   overlay0 10.244.2.0/32
        overlayd run, overlayd forwarder         the same
        under0 192.0.2.1 ─────────── veth ────── under0 192.0.2.2

A sender in `a` numbers its datagrams; the receiver in `b` says which came, and in what order.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from bench.lab import Namespace, wait_for
from dataplane import control
from dataplane.errors import NotRunning, RuntimeFailure
from tests.e2e.rig import Daemon

NODES = {"a": ("192.0.2.1", "10.244.1"), "b": ("192.0.2.2", "10.244.2")}
PORT = 9999
RATE_PPS = 10_000
BATCH_MAX = 64  # what a forwarder has in hand at a time
WINDOW = 3000  # datagrams on their way: less than the queue of a TUN holds, and 0.3 s of them
SO_RCVBUFFORCE = 33
MARK = "203.0.113.0/24"
START_S = 20.0


EXTRA = {"PublicIP": "192.0.2.7", "BackendType": "vxlan", "BackendData": {"VtepMAC": "02:4f:00:00:00:07"}}


def peers_file(extra: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return a peers file with both nodes, and with a third one that is not there."""
    leases = {
        f"{prefix}.0/24": {
            "PublicIP": address,
            "BackendType": "vxlan",
            "BackendData": {"VNI": 1, "VtepMAC": f"02:4f:00:00:00:0{number}"},
        }
        for number, (address, prefix) in enumerate(NODES.values(), 1)
    }
    if extra is not None:
        leases["10.244.7.0/24"] = extra
    return {"network": {"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}, "leases": leases}


class Pair:
    """The drawing above: two hosts, and a daemon on each."""

    def __init__(self, directory: Path, flags: Sequence[str] = ()) -> None:
        """Build the hosts and start the daemons, with these flags too, and a spare forwarder each."""
        prefix = f"two{os.getpid() % 100000}"
        self.spaces = {name: Namespace(f"{prefix}{name}") for name in NODES}
        self.daemons: dict[str, Daemon] = {}
        try:
            self._build()
            for name in NODES:
                own = ["--public-ip", NODES[name][0], "--spare", "true", *flags]
                self.daemons[name] = self.make_daemon(name, directory / name, own)
                self.daemons[name].start()
        except BaseException:
            self.close()
            raise

    def make_daemon(self, name: str, directory: Path, flags: list[str]) -> Daemon:
        """Return the daemon of a host, not started yet."""
        return Daemon(self.spaces[name], directory, peers_file(), flags)

    def _build(self) -> None:
        far = self.spaces["b"].name
        self.spaces["a"].ip(f"link add under0 type veth peer name under0 netns {far}\n")
        for name, (address, _) in NODES.items():
            # No IPv6 on the underlay: duplicate address detection would speak up seconds later.
            self.spaces[name].run("sysctl", "-qw", "net.ipv6.conf.under0.disable_ipv6=1")
            self.spaces[name].ip(f"link set lo up\nlink set under0 up\naddr add {address}/24 dev under0\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        try:
            if kind is None:
                for daemon in self.daemons.values():
                    if daemon._counters is not None:  # or the kernel carries its packets
                        daemon.settled()
        finally:
            self.close()

    def close(self) -> None:
        """Take all of it down, whatever of it says that something is wrong."""
        with ExitStack() as stack:
            for space in self.spaces.values():
                stack.callback(space.close)
            for daemon in self.daemons.values():
                stack.callback(daemon.close)


class Load:
    """Numbered datagrams from `a` to `b` at RATE_PPS, for as long as the block lasts (15 s at most).

    On a machine so busy that a process takes longer to start than queues hold what comes, the sender waits.
    """

    LIMIT = 15 * RATE_PPS

    def __init__(self, pair: Pair, port: int = PORT, window: int = WINDOW) -> None:
        """Open both ends; with several at once each has its part of the window."""
        self._window = window
        self._out = pair.spaces["a"].socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._out.bind((f"{NODES['a'][1]}.0", 0))
        self._out.connect((f"{NODES['b'][1]}.0", port))
        self._in = pair.spaces["b"].socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._in.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 32 << 20)
        self._in.bind((f"{NODES['b'][1]}.0", port))
        self._is_over = threading.Event()
        self.sent = 0
        self.received: list[int] = []

    def __enter__(self) -> Load:
        self._threads = [threading.Thread(target=self._send), threading.Thread(target=self._receive)]
        for thread in self._threads:
            thread.start()
        try:
            wait_for(lambda: len(self.received) > RATE_PPS // 10, "the load to flow")
        except AssertionError:
            self.__exit__()  # or the threads would keep the whole run from ending
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()
        self._out.close()
        self._in.close()

    def _send(self) -> None:
        start_s = time.monotonic()
        while self.sent < self.LIMIT and not self._is_over.is_set():
            due = min(self.LIMIT, int((time.monotonic() - start_s) * RATE_PPS))
            # What is lost for good takes from the window: with more than that, nothing flows on.
            while self.sent < min(due, len(self.received) + self._window):
                self._out.send(self.sent.to_bytes(4, "big"))
                self.sent += 1
            self._is_over.wait(0.001)

    def _receive(self) -> None:
        # Until the sender is done and nothing came for as long as anything could be queued.
        while select.select([self._in], [], [], 0.5)[0] or not self._is_over.is_set():
            while select.select([self._in], [], [], 0)[0]:
                self.received.append(int.from_bytes(self._in.recv(16), "big"))

    def flow_on(self, count: int = RATE_PPS // 2) -> None:
        """Return after that many more datagrams came."""
        goal = len(self.received) + count
        wait_for(lambda: len(self.received) >= goal, "the load to flow on", START_S)

    def lost(self) -> int:
        """Return how many did not come; those that did must have come once and in order."""
        assert self.received == sorted(set(self.received))
        return self.sent - len(self.received)


class Monitor:
    """`ip monitor` on one host: what it said of links, addresses and routes while the block lasted."""

    KINDS = ("link", "address", "route", "rule")

    def __init__(self, space: Namespace, *more: str) -> None:
        """Watch a host, and `more` kinds of things there."""
        self._space = space
        self._kinds = (*self.KINDS, *more)
        self.said = ""

    def __enter__(self) -> Monitor:
        # Not a pipe: while that is full, `ip` hears nothing. It says so; and that it knows no other one.
        self._file = tempfile.TemporaryFile("w+", encoding="utf-8")
        command = self._space.command("ip", "-o", "monitor", *self._kinds)
        self._process = subprocess.Popen(command, stdout=self._file, stderr=self._file)
        self._read = 0
        self._mark()
        return self

    def _mark(self) -> None:
        """Make something happen that is seen, so that all before it has been seen, too."""
        text = ""

        def is_seen() -> bool:
            nonlocal text
            # Until it listens it hears nothing, so more than once.
            self._space.ip(f"route replace blackhole {MARK}\nroute del blackhole {MARK}\n")
            octets = os.pread(self._file.fileno(), 1 << 30, self._read)
            self._read += len(octets)
            text += octets.decode()
            return MARK.removesuffix("/24") in text

        wait_for(is_seen, "ip monitor")
        lines = [line for line in text.splitlines() if MARK[:-3] not in line]
        self.said += "".join(f"{line}\n" for line in lines if not line.startswith("Error: Peer netns"))

    def __exit__(self, *exc: object) -> None:
        self._mark()
        self._process.kill()
        self._process.wait()
        self._file.close()


def kill(daemon: Daemon) -> None:
    """SIGKILL an `overlayd run`."""
    assert daemon.process is not None
    daemon.process.kill()
    daemon.process.wait()
    daemon.process = None


def state_of(daemon: Daemon) -> dict[str, Any]:
    """Return the status of a node's dataplane whether control lives or not."""
    try:
        return daemon.status()
    except NotRunning:
        return control.inspect_status(daemon.run_dir)


def is_replaced(daemon: Daemon, pid: int) -> bool:
    """Tell whether another forwarder than `pid` carries packets."""
    forwarder = daemon.status()["forwarder"]
    return forwarder["pid"] not in (None, pid) and forwarder["state"] == "running"


def replace_forwarder(daemon: Daemon, number: signal.Signals = signal.SIGKILL) -> int:
    """End a forwarder by a signal and wait for the next one; return the pid of the one that ended."""
    pid: int = daemon.status()["forwarder"]["pid"]
    os.kill(pid, number)
    wait_for(lambda: is_replaced(daemon, pid), "another forwarder", START_S)
    return pid


def restart(daemon: Daemon) -> None:
    """Start a daemon whose counters are new ones."""
    forget_counters(daemon)
    daemon.start()


def forget_counters(daemon: Daemon) -> None:
    """Let go of the counters of a dataplane that has ended; start() opens those of the next."""
    if daemon._counters is not None:
        daemon._counters[0].close()
        os.close(daemon._counters[1])
        daemon._counters = None


def is_ready(daemon: Daemon) -> bool:
    """Tell whether a node says it is ready."""
    try:
        return daemon.status()["ready"] is True
    except RuntimeFailure:
        return False
