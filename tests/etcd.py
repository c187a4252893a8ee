# SPDX-License-Identifier: Apache-2.0
"""A real etcd of one member or more on a loopback device, ours or that of a namespace, for tests."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Self

from bench.lab import Namespace, stands_still, wait_for
from tests.gateway import TXN_MAX, Gateway

START_S = 20.0


# Below those that the kernel gives to anybody who asks for none; each process of the suite has its own.
PORTS = count(20_000 + 1000 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw9").removeprefix("gw")))


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody has now; not twice the same one."""
    for port in PORTS:
        with suppress(OSError), socket.socket() as sock:
            sock.bind(("127.0.0.1", port))
            return port
    raise AssertionError("unreachable")


@dataclass(frozen=True, slots=True)
class Seat:
    """Where an etcd listens, and in which namespace; etcdctl runs beside it."""

    scheme: str = "http"
    address: str = "127.0.0.1"
    within: Namespace | None = None

    def command(self, *args: str) -> list[str]:
        """Return the command line that runs a program there."""
        return list(args) if self.within is None else self.within.command(*args)


class Member:
    """One etcd process. It can be stopped, frozen and started again on its data."""

    def __init__(self, name: str, directory: Path, flags: Sequence[str], seat: Seat) -> None:
        """Choose its ports; nothing is started."""
        self.name = name
        self.seat = seat
        self.url = f"{seat.scheme}://{seat.address}:{free_port()}"
        self.peer_url = f"http://127.0.0.1:{free_port()}"
        self.flags = list(flags)
        self.cluster = ""
        self._directory = directory / name
        self._log = directory / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; it may take a while until it answers."""
        beat_ms = 50 if "," in self.cluster else 20  # so that no leader is lost because the machine is busy
        command = [
            *("etcd", "--name", self.name, "--data-dir", str(self._directory), "--log-level", "error"),
            *("--listen-client-urls", self.url, "--advertise-client-urls", self.url),
            *("--listen-peer-urls", self.peer_url, "--initial-advertise-peer-urls", self.peer_url),
            *("--initial-cluster", self.cluster or f"{self.name}={self.peer_url}", "--unsafe-no-fsync"),
            *("--heartbeat-interval", str(beat_ms), "--election-timeout", str(10 * beat_ms)),
            *("--max-txn-ops", str(TXN_MAX)),
            *self.flags,
        ]
        command = self.seat.command(*command)
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env={"PATH": os.environ["PATH"]})

    def wait_listening(self) -> None:
        """Wait until it takes connections, whatever becomes of them."""

        def is_listening() -> bool:
            try:
                self.connect().close()
            except ConnectionError:
                return False
            return True

        wait_for(is_listening, "etcd listens", START_S)

    def connect(self) -> socket.socket:
        """Return a connection to it."""
        kind = socket.AF_INET, socket.SOCK_STREAM
        within = self.seat.within
        sock = socket.socket(*kind) if within is None else within.socket(*kind)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.connect((self.seat.address, int(self.url.rpartition(":")[2])))
        except BaseException:
            sock.close()
            raise
        return sock

    def gateway(self) -> Gateway:
        """Return a way to read and write that has nothing of our own client."""
        return Gateway(self.connect, self.url.partition("//")[2])

    def signal(self, number: int) -> None:
        """Send it a signal; after SIGSTOP wait until it stands still, since its threads may still answer."""
        assert self.process is not None
        self.process.send_signal(number)
        if number == signal.SIGSTOP:
            pid = self.process.pid
            wait_for(lambda: stands_still(pid), "etcd stands still", 5.0)

    def stop(self) -> None:
        """End it at once."""
        if self.process is not None:
            self.signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def log(self) -> str:
        """Return what it wrote."""
        return self._log.read_text(encoding="utf-8", errors="replace")


class Etcd:
    """A cluster of members."""

    def __init__(
        self,
        directory: Path,
        members: int = 1,
        flags: Sequence[str] = (),
        *,
        seat: Seat | None = None,
    ) -> None:
        """Start it; `flags` are etcd's."""
        directory.mkdir(parents=True, exist_ok=True)
        self.control_flags: list[str] = []  # of etcdctl
        self.seat = seat or Seat()
        self.members = [Member(f"m{turn}", directory, flags, self.seat) for turn in range(members)]
        cluster = ",".join(f"{member.name}={member.peer_url}" for member in self.members)
        with ExitStack() as stack:
            for member in self.members:
                member.cluster = cluster
                stack.callback(member.stop)
                member.start()
            self._stack = stack.pop_all()

    def wait_healthy(self) -> None:
        """Wait until it takes writes."""
        wait_for(lambda: self.run("endpoint", "health").returncode == 0, "etcd is healthy", START_S)

    @property
    def urls(self) -> tuple[str, ...]:
        """Where its members listen."""
        return tuple(member.url for member in self.members)

    def run(self, *args: str, urls: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
        """Run etcdctl."""
        endpoints = ("--endpoints", ",".join(urls or self.urls))
        command = self.seat.command("etcdctl", *endpoints, *self.control_flags, *args)
        environment = {"PATH": os.environ["PATH"], "ETCDCTL_API": "3"}
        return subprocess.run(command, capture_output=True, text=True, timeout=20, env=environment)

    def ctl(self, *args: str) -> str:
        """Run etcdctl; return what it prints."""
        done = self.run(*args)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def get(self, key: str) -> str | None:
        """Return the value of a key."""
        found = self.ctl("get", "--print-value-only", key).rstrip("\n")
        return found or None

    def put(self, key: str, value: str) -> None:
        """Write a key that never expires."""
        self.ctl("put", "--", key, value)

    def leases(self) -> list[str]:
        """Return the etcd leases that there are."""
        return [line.strip() for line in self.ctl("lease", "list").splitlines()[1:] if line.strip()]

    def clear(self) -> None:
        """Take away all keys and etcd leases."""
        self.ctl("del", "--prefix", "/")
        for lease in self.leases():
            done = self.run("lease", "revoke", lease)
            assert done.returncode == 0 or lease not in self.leases(), done.stderr  # or it has just expired

    def close(self) -> None:
        """End it."""
        self._stack.close()

    def __enter__(self) -> Self:
        self.wait_healthy()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()
