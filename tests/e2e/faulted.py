# SPDX-License-Identifier: Apache-2.0
"""A node whose system calls fail: strace injects an errno into the running processes.

    wire0 (the test as a peer) ── under0  overlayd ⟵ strace  pod0 ── podw0 (the test as a pod)

Drawn in full at the head of rig.py, with leases in a store (leased.py). Meanwhile numbered packets go both
ways, addresses of the host and leases change, the lease is renewed, and somebody asks for status and metrics.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import select
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bench.lab import Namespace, wait_for
from dataplane.control import ForwarderClient, ask
from dataplane.errors import RuntimeFailure
from dataplane.store.keyvalue import Conflict
from tests.e2e import frames
from tests.e2e.frames import DUAL, US, inner4
from tests.e2e.leased import LEASES, LeasedDaemon, LeasedRig, value
from tests.e2e.test_idle import cpu_s
from tests.e2e.test_watched import METRICS, Page

ERRNOS = (
    *("EAGAIN", "ENOBUFS", "ENOMEM", "EINTR", "EPERM", "ENETUNREACH", "EHOSTUNREACH", "EMSGSIZE"),
    *("EINVAL", "EIO", "ECONNREFUSED", "EBADFD"),
)
INJECT_S, LOOKS = 0.3, 5
RECOVER_S = 1.0  # promised
SLACK_S = 5.0  # while others load this machine
CPU_SHARE = 0.2
RENEW_MARGIN_S = 3600.0
CALL = re.compile(r"^(?:\d+ +)?(\w+)\(")


def is_traced(pid: int) -> bool:
    """Tell whether somebody traces every thread of a process."""
    found = [path.read_text(encoding="ascii") for path in Path(f"/proc/{pid}/task").glob("*/status")]
    return all("TracerPid:\t0\n" not in status for status in found)


def states_of(pid: int) -> set[str]:
    """Return in which states the threads of a process are."""
    found = set()
    for path in Path(f"/proc/{pid}/task").glob("*/stat"):
        with contextlib.suppress(OSError):
            found.add(path.read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[0])
    return found


class Strace:
    """strace on a running process, until the block ends."""

    def __init__(self, pid: int, *options: str, log: Path) -> None:
        """Say what it is to do."""
        self._pid = pid
        self._command = ["strace", "-f", "-qq", "-o", str(log), "-p", str(pid), *options]
        self._log = log
        self._tracer: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._tracer = subprocess.Popen(self._command, stderr=subprocess.DEVNULL)
        wait_for(lambda: is_traced(self._pid), "strace is attached to every thread")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None
    ) -> None:
        assert self._tracer is not None
        # Let go in the middle of a call, strace would leave it with what the kernel did in its place.
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGSTOP)
        try:
            wait_for(self._is_still, "the process stands still")
            self._tracer.send_signal(signal.SIGINT)
            self._tracer.wait(10)
        finally:
            self._tracer.kill()
            self._tracer.wait()
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGCONT)

    def _is_still(self) -> bool:
        """Tell whether all threads have stopped, or ended: at a call that fails they do for a moment."""
        return all(states_of(self._pid) <= {"T", "t", "Z"} for _ in range(10))

    def lines(self) -> list[str]:
        """Return what it wrote."""
        return self._log.read_text(encoding="utf-8", errors="replace").splitlines()

    def injected(self) -> int:
        """Return how many calls have failed because of it."""
        return sum("(INJECTED)" in line for line in self.lines())

    def calls(self) -> Counter[str]:
        """Return which calls were made, and how often."""
        return Counter(match[1] for line in self.lines() if (match := CALL.match(line)))


class FaultedDaemon(LeasedDaemon):
    """A daemon that is tormented, with its run directory and subnet.env on small disks."""

    def __init__(self, namespace: Namespace, directory: Path, *args: Any) -> None:
        """Make the disks."""
        super().__init__(namespace, directory, *args)
        self.disks = {name: directory / name for name in ("volatile", "lasting")}
        for disk in self.disks.values():
            disk.mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)], check=True)
        self.flags += ["--metrics-port", str(METRICS)]
        self.run_dir = self.disks["volatile"] / "run"
        self.subnet_file = self.disks["lasting"] / "subnet.env"

    def close(self) -> None:
        """End everything, and take the disks away."""
        try:
            super().close()
        finally:
            for disk in self.disks.values():
                subprocess.run(["umount", "-l", str(disk)], check=True)

    @contextlib.contextmanager
    def full(self, name: str) -> Iterator[None]:
        """Let a disk have no room."""
        filler = self.disks[name] / "filler"
        try:
            with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(1 << 12))
            yield
        finally:
            filler.unlink()

    @contextlib.contextmanager
    def read_only(self, name: str) -> Iterator[None]:
        """Let a disk be read-only."""
        where = str(self.disks[name])
        subprocess.run(["mount", "-o", "remount,ro", where], check=True)
        try:
            yield
        finally:
            subprocess.run(["mount", "-o", "remount,rw", where], check=True)

    def pids(self) -> dict[str, int]:
        """Return the pids of both processes; 0: there is none."""
        control = 0 if self.process is None or self.process.poll() is not None else self.process.pid
        return {"control": control, "forwarder": self.forwarder_pid()}


class FaultedRig(LeasedRig):
    """The rig of which processes are tormented."""

    daemon: FaultedDaemon

    def __init__(self, directory: Path, name: str = "") -> None:
        """Build it and start the daemon."""
        self._numbers = itertools.count(1)
        super().__init__(directory, FaultedDaemon, name=name)

    # --- that it works --------------------------------------------------------------------------------

    def send_numbered(self) -> bytes:
        """Send a packet each way; return what both carry."""
        mark = b"number %08d" % next(self._numbers)
        self.wire.send(frames.vxlan(inner4(DUAL.pod(), US.pod(), payload=mark)))
        self.pod.send(self.to_pod_side(inner4(US.pod(), DUAL.pod(), payload=mark)))
        return mark

    def passes(self, deadline_s: float = SLACK_S) -> float:
        """Return how long it took until a numbered packet had passed each way."""
        begun_s = time.monotonic()
        marks: dict[str, set[bytes]] = {"in": set(), "out": set()}
        sent: list[bytes] = []

        def has_passed() -> bool:
            sent.append(self.send_numbered())
            for way, tap in (("in", self.overlay), ("out", self.wire)):
                for frame in tap.take():
                    marks[way] |= {mark for mark in sent if mark in frame}
            return all(marks.values())

        wait_for(has_passed, f"numbered packets each way: {marks}", deadline_s)
        return time.monotonic() - begun_s

    # --- what happens meanwhile -----------------------------------------------------------------------

    def stir(self, number: int) -> None:
        """Let happen what can happen to a node."""
        self.send_numbered()
        address = f"198.51.100.{number % 200 + 1}/32"
        self.dut.ip(f"addr add {address} dev under0\n")
        self.dut.ip(f"addr del {address} dev under0\n")
        lease = value(f"192.0.2.{number % 50 + 150}", f"02:00:00:00:01:{number % 256:02x}")
        self.daemon.put("10.244.9.0/24", lease)
        with contextlib.suppress(Conflict):  # it was just renewed
            self.daemon.put(US.subnet, LEASES[US.subnet], RENEW_MARGIN_S - 1)
        with contextlib.suppress(RuntimeFailure):
            ask(self.daemon.run_dir, {"cmd": "status"}, 0.1)
        with contextlib.suppress(OSError):
            Page(self.dut, METRICS).get("/metrics")
        with (
            contextlib.suppress(RuntimeFailure),
            ForwarderClient(self.daemon.run_dir / "forwarder.sock", timeout_s=0.1) as client,
        ):
            for fd in client.inspect()[1].values():
                os.close(fd)
        self.send_numbered()

    def is_in_order(self) -> bool:
        """Tell whether control has done all that happened lately, and answers."""
        revision = self.daemon.store_revision()
        try:
            status = self.daemon.status()
        except RuntimeFailure:
            return False
        return bool(status["ready"]) and (status["store"]["revision"] or 0) >= revision

    def wait_in_order(self, deadline_s: float = SLACK_S) -> float:
        """Return how long it took control to have done all."""
        begun_s = time.monotonic()
        wait_for(self.is_in_order, lambda: f"all in order: {self.daemon.log()[-500:]}", deadline_s)
        return time.monotonic() - begun_s


def share_of(pid: int, seconds: float) -> float:
    """Return how much of a core a process uses for some time; 0 if it has ended."""
    if not Path(f"/proc/{pid}").exists():
        return 0.0
    before, begun_s = cpu_s(pid), time.monotonic()
    select.select([], [], [], seconds)
    spent_s = cpu_s(pid) - before if Path(f"/proc/{pid}").exists() else 0.0
    return spent_s / (time.monotonic() - begun_s)


def lasting_share_of(pid: int) -> float:
    """Return how much of a core a process goes on to use: one pass weighs much in so short a time, but ends.

    What spins uses too much however often one looks.
    """
    share = share_of(pid, INJECT_S)
    for _ in range(LOOKS - 1):
        if share > CPU_SHARE:
            share = share_of(pid, INJECT_S)
    return share
