# SPDX-License-Identifier: Apache-2.0
"""A node starts with nothing but its state directory while etcd is down; the other end is the kernel's.

    pod a 10.244.1.2 ─ host a: overlayd, etcd         host b: flannel.1 ─ pod b 10.244.2.2
                       192.0.2.2 ──────── router ──────── 192.0.2.6

Drawn in full at the head of bench/lab.py. etcd runs in the namespace of host a.
"""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.figures import figure
from bench.lab import Kernel, Namespace, wait_for
from dataplane import laststate
from dataplane.errors import RuntimeFailure
from tests.e2e.leased import NETWORK
from tests.e2e.leased_etcd import EtcdLeasedDaemon
from tests.e2e.pair import forget_counters
from tests.e2e.rig import conserves, hasten
from tests.e2e.staged import Staged

PORT = 5201
FIRST_S = 1.0  # from exec to the first packet at the other end, on a quiet machine
ROOM = 3  # times as long on a busy one, of which others are not counted that had the processor
EVERY_S = 0.002
SO_RCVBUFFORCE = 33
BACK_S = 15.0
OWN = "subnets/10.244.1.0-24"


class Numbers:
    """A pod sends numbers to another, all the time; what has come, and when the first did."""

    def __init__(self, source: Namespace, target: Namespace, address: str) -> None:
        """Begin."""
        self._out = source.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._in = target.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._in.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)  # of a busy machine, too
        self._in.bind((address, PORT))
        self._in.settimeout(0.1)
        self._address = address
        self._is_ending = False
        self._pause = threading.Event()  # never set
        self.sent = 0
        self.came: list[int] = []
        self.first_s: float | None = None
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._send, self._receive)]
        for thread in self._threads:
            thread.start()

    def _send(self) -> None:
        while not self._is_ending:
            self._out.sendto(self.sent.to_bytes(4, "big"), (self._address, PORT))
            self.sent += 1
            self._pause.wait(EVERY_S)

    def _receive(self) -> None:
        while True:
            try:
                data = self._in.recv(100)
            except TimeoutError:
                if self._is_ending:
                    return
                continue
            self.first_s = self.first_s or time.monotonic()
            self.came.append(int.from_bytes(data, "big"))

    def gaps(self) -> list[tuple[int, int]]:
        """Return between which numbers something is missing or out of order, since the first that came."""
        wanted = (*self.came[1:], self.sent)
        return [(one, other) for one, other in zip(self.came, wanted, strict=True) if other != one + 1]

    def end(self) -> None:
        """Send no more, and wait until all that is on its way has come."""
        self._is_ending = True
        for thread in self._threads:
            thread.join()
        self._out.close()
        self._in.close()


class ExecutedDaemon(EtcdLeasedDaemon):
    """A daemon that starts as on any node: it is measured."""

    def environment(self) -> dict[str, str]:
        """Return ours; a process that is given one is not forked from another."""
        return dict(os.environ)


class Scene(Staged):
    """The drawing above."""

    daemon: ExecutedDaemon

    def __init__(self, directory: Path) -> None:
        """Build it and start overlayd on host a."""
        super().__init__("cold")
        self.ours, self.kernels = self.a, self.b
        hasten(self.ours.host)
        self.kernels.program_kernel([self.ours], Kernel())
        self.daemon = ExecutedDaemon(
            self.ours.host,
            directory / "node",
            {"network": NETWORK, "leases": {self.kernels.subnet(): self.kernels.lease()}},
            ("--public-ip", self.ours.address),
        )
        try:
            (self.daemon.directory / "state" / "vtep-mac").write_text(f"{self.ours.mac}\n")
            self.daemon.put(self.ours.subnet(), self.ours.lease(), ttl_s=3600.0)
            self.daemon.start()
        except BaseException:
            self.close()
            raise

    @property
    def state_path(self) -> Path:
        """The file in which the state is."""
        return self.daemon.directory / "state" / laststate.NAME

    def numbers(self) -> Numbers:
        """Let our pod send to the other."""
        return Numbers(self.ours.pod, self.kernels.pod, self.kernels.pod_ip())

    def reboot(self) -> None:
        """Take down all there is but the state directory; etcd stays away."""
        wait_for(self.state_path.exists, "the state is written")
        self.daemon.stop()
        self.daemon.etcd.members[0].stop()
        self.daemon.gateway.close()
        assert self.daemon.say("down") == ""
        forget_counters(self.daemon)
        shutil.rmtree(self.daemon.run_dir, ignore_errors=True)
        self.daemon.subnet_file.unlink()
        assert "overlay0" not in self.ours.host.run("ip", "link").stdout

    def bring_etcd_back(self) -> None:
        """Start etcd on its data."""
        self.daemon.etcd.members[0].start()
        self.daemon.etcd.wait_healthy()

    def reason(self) -> str:
        """Return what the node says of itself."""
        try:
            return str(self.daemon.status()["reason"])
        except RuntimeFailure:
            return ""

    def waited_s(self) -> float:
        """Return how long control could have run, and others did."""
        assert self.daemon.process is not None
        stat = Path(f"/proc/{self.daemon.process.pid}/schedstat").read_text(encoding="ascii")
        return int(stat.split()[1]) / 1e9


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """Yield the drawing."""
    with Scene(tmp_path) as built:
        yield built


@pytest.mark.alone
def test_cold_start_without_store(scene: Scene) -> None:
    """Pods talk within a second of exec, the node says on what, and nothing is lost when etcd is back."""
    daemon = scene.daemon
    before: Any = daemon.find(OWN)
    assert before is not None
    scene.reboot()
    written = scene.state_path.read_bytes()
    said = len(daemon.log())
    numbers = scene.numbers()
    begun_s = time.monotonic()
    daemon.launch()
    try:
        wait_for(lambda: numbers.first_s, lambda: f"the first packet arrives: {daemon.log()[said:]}", BACK_S)
        assert numbers.first_s is not None
        took_s, waited_s = numbers.first_s - begun_s, scene.waited_s()
        figure("from exec to the first packet", [took_s], "s")
        figure("of that without a processor", [waited_s], "s")
        assert took_s - waited_s < ROOM * FIRST_S
        wait_for(lambda: "store not reached" in scene.reason(), "it says what it runs on", BACK_S)
        status = daemon.status()
        assert status["ready"]
        assert status["reason"].startswith("running on the state of ")
        assert status["reason"] in status["warnings"]
        assert status["parts"]["store"] == status["reason"]
        assert status["subnet"] == scene.ours.subnet()
        assert scene.state_path.read_bytes() == written
        scene.bring_etcd_back()
        wait_for(lambda: scene.reason() == "ok", "etcd is followed", BACK_S)
        wait_for(lambda: daemon.find(OWN).changed > before.changed, "the lease is renewed", BACK_S)  # type: ignore[union-attr]
        daemon.sync()
        seen = numbers.sent
        wait_for(lambda: numbers.came[-1] > seen, "packets flow on")
    finally:
        numbers.end()
    after = daemon.find(OWN)
    assert after is not None
    assert (after.value, after.created) == (before.value, before.created)
    assert numbers.gaps() == []
    log = daemon.log()[said:]
    assert "the store is not reached yet running_on=" in log
    assert log.count("forwarder goes") == 1
    assert "published" not in log.partition("store lost: over")[2]  # the table is what it was
    daemon._counters = daemon._open_counters()
    assert conserves(daemon.settled())
