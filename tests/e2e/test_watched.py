# SPDX-License-Identifier: Apache-2.0
"""A node as others watch it: probes, metrics, the service manager; and what is changed while it runs.

far0 ─── veth ─── under0 192.0.2.1  host namespace: overlayd run, and who asks it by HTTP
notify socket ◀── READY, STATUS, WATCHDOG … ──┘
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from bench.lab import Namespace, wait_for
from tests.e2e.frames import DUAL, US
from tests.e2e.hoststate import look
from tests.e2e.leased import LEASES, NETWORK, LeasedDaemon, value
from tests.e2e.rig import ROOT, START_S, Daemon

PROBES, METRICS = 8081, 9465
FLAGS = ("--healthz-port", str(PROBES), "--metrics-port", str(METRICS), "--public-ip", str(US.ip))
WATCHDOG_S = 2.0


class Manager:
    """A service manager that reads at once, as systemd does: few messages fit into its socket."""

    def __init__(self, host: Namespace) -> None:
        """Listen at an abstract address, which is one of a network namespace."""
        self.told = f"@{host.name}"
        self._sock = host.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(f"\0{host.name}")
        self._heard: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        while text := self._sock.recv(4096):  # descriptors beside it are not taken
            self._heard.append(text.decode())

    def heard(self) -> list[str]:
        """Return all that was said so far."""
        return list(self._heard)

    def count(self, start: str) -> int:
        """Return how many messages begin like this."""
        return sum(text.startswith(start) for text in self.heard())

    def close(self) -> None:
        """Listen no more."""
        self._sock.shutdown(socket.SHUT_RDWR)
        self._reader.join()
        self._sock.close()


class Page:
    """Asks pages of a node, from its own namespace."""

    def __init__(self, host: Namespace, port: int) -> None:
        """Ask at a port of the loopback interface."""
        self._host = host
        self._port = port

    def get(self, path: str, ip: str = "127.0.0.1") -> tuple[int, str]:
        """Return status and body."""
        connection = http.client.HTTPConnection(ip, self._port, timeout=5)
        connection.sock = self._host.socket(socket.AF_INET, socket.SOCK_STREAM)
        with closing(connection):
            connection.sock.settimeout(5)
            connection.sock.connect((ip, self._port))
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def metric(self, name: str, **labels: str) -> float | None:
        """Return a sample of /metrics; None if it is not there."""
        status, text = self.get("/metrics")
        assert status == 200
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if (sample.name, sample.labels) == (f"overlayd_{name}", labels):
                    return float(sample.value)
        return None


class WatchedDaemon(LeasedDaemon):
    """A daemon that a service manager has started."""

    manager: Manager

    def run_command(self) -> list[str]:
        """Return the command line, with what a service manager tells by the environment."""
        command = super().run_command()
        inner = len(self.namespace.command())
        told = [f"NOTIFY_SOCKET={self.manager.told}", f"WATCHDOG_USEC={int(WATCHDOG_S * 1e6)}"]
        return [*command[:inner], "env", *told, *command[inner:]]


@contextmanager
def lone_host(name: str) -> Iterator[Namespace]:
    """Yield a host with an underlay interface, and nobody behind it."""
    with closing(Namespace(f"{name}{os.getpid() % 100000}")) as space:
        space.ip("link set lo up\nlink add under0 type veth peer name far0\n")
        space.ip(f"link set under0 up\nlink set far0 up\naddr add {US.ip}/24 dev under0\n")
        space.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.disable_ipv6=1")
        yield space


@pytest.fixture
def host() -> Iterator[Namespace]:
    """Yield a lone host."""
    with lone_host("watch") as space:
        yield space


@pytest.fixture
def daemon(host: Namespace, tmp_path: Path) -> Iterator[WatchedDaemon]:
    """Yield a daemon that is not started, and its service manager."""
    made = WatchedDaemon(host, tmp_path / "node", {"network": NETWORK, "leases": LEASES}, FLAGS)
    made.manager = Manager(host)
    try:
        yield made
    finally:
        made.close()
        made.manager.close()


def test_watched(host: Namespace, daemon: WatchedDaemon) -> None:
    """Probes, metrics and service manager tell what status tells, from the first moment to the end."""
    probes, metrics = Page(host, PROBES), Page(host, METRICS)
    daemon.start()
    manager = daemon.manager
    wait_for(lambda: manager.count("READY=1"), "READY=1")
    assert manager.count("STATUS=ready") == 1
    assert manager.heard()[0] == "WATCHDOG=1"  # while it starts, too
    assert probes.get("/healthz") == (200, "overlayd is running\n")
    code, text = probes.get("/readyz")
    parts = dict.fromkeys(("store", "lease", "host", "forwarder"), "ok")
    assert (code, json.loads(text)) == (200, {"ready": True, "reason": "ok", "parts": parts})
    # What is said of the network is not said where probes are, nor to others than this host.
    assert probes.get("/metrics")[0] == 404
    with pytest.raises(ConnectionRefusedError):
        metrics.get("/metrics", str(US.ip))
    assert metrics.metric("ready") == 1
    assert metrics.metric("peers", state="known") == len(LEASES) - 1

    told = {"subnet": DUAL.subnet, "public_ip": str(DUAL.ip), "direction": "tx"}
    before = metrics.metric("convergence_seconds_count", change="lease") or 0.0
    pod = host.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with pod:
        for _ in range(3):
            pod.sendto(b"x", (DUAL.pod(), 9))
        pod.sendto(b"x", ("10.244.200.9", 9))  # nobody's
    wait_for(lambda: (metrics.metric("peer_packets_total", **told) or 0) >= 3, "packets of a peer")
    status = daemon.status()
    wait_for(
        lambda: metrics.metric("packets_offered_total", direction="tx") == status["tx"]["offered"], "totals"
    )
    assert metrics.metric("packets_dropped_total", direction="tx", reason="no_peer") == 1
    assert status["tx"]["drops"] == {"no_peer": 1}

    daemon.put("10.244.77.0/24", value("192.0.2.77", "02:00:00:00:00:77"))
    daemon.sync()
    wait_for(lambda: metrics.metric("peers", state="known") == len(LEASES), "the new peer")
    assert (metrics.metric("convergence_seconds_count", change="lease") or 0) > before

    begun, alive = time.monotonic(), manager.count("WATCHDOG=1")
    wait_for(lambda: manager.count("WATCHDOG=1") >= alive + 2, "the watchdog hears of us")
    assert time.monotonic() - begun < 2 * WATCHDOG_S
    daemon.stop()
    assert manager.heard()[-1] == "STOPPING=1"
    assert manager.count("READY=1") == 1


def test_not_ready(host: Namespace, daemon: WatchedDaemon) -> None:
    """A node without a forwarder lives, is not ready and says which part it is; then it is ready again."""
    daemon.flags += ["--forwarder", "wait"]
    probes = Page(host, PROBES)
    with daemon.log_path.open("ab") as log:
        daemon.process = subprocess.Popen(daemon.run_command(), stdout=log, stderr=log, cwd=ROOT)

    def parts() -> dict[str, Any]:
        try:
            code, text = probes.get("/readyz")
        except OSError:
            return {}
        assert code in (200, 503)
        found: dict[str, Any] = json.loads(text)["parts"] if code == 503 else {"all": "ready"}
        return found

    waiting = {"store": "ok", "lease": "ok", "host": "ok", "forwarder": "waiting for a forwarder"}
    wait_for(lambda: parts() == waiting, lambda: f"waits: {daemon.log()}", START_S)
    assert probes.get("/healthz")[0] == 200
    assert daemon.manager.count("READY=1") == 0
    wait_for(lambda: daemon.manager.count("STATUS=not ready: waiting for a forwarder"), "status")
    forwarder = subprocess.Popen(daemon.command("forwarder"), cwd=ROOT)
    try:
        wait_for(lambda: parts() == {"all": "ready"}, "ready", START_S)
        wait_for(lambda: daemon.manager.count("READY=1") == 1, "READY=1")
        daemon.put_config({**NETWORK, "Network": "10.99.0.0/16"})
        wait_for(lambda: "does not fit the network" in str(parts().get("lease")), "the lease is named")
        assert parts()["forwarder"] == "ok"
        daemon.put_config(NETWORK)
        wait_for(lambda: parts() == {"all": "ready"}, "ready again")
    finally:
        daemon.close()
        forwarder.wait(START_S)
    assert daemon.manager.count("READY=1") == 1


def test_changed_while_it_runs(host: Namespace, daemon: WatchedDaemon) -> None:
    """What is logged changes at once; SIGHUP loses nothing; a bad one changes nothing and says so."""
    daemon.start()
    process, log_file = daemon.process, daemon.run_dir / "log.json"
    assert process is not None
    manager = daemon.manager
    before, table = look(host), daemon.peers().keys()

    assert daemon.say("log") == "level info format text\n"
    assert daemon.say("log", "--level", "debug", "--format", "json") == "level debug format json\n"
    assert json.loads(daemon.log().splitlines()[-1])["event"] == "logging changed"
    assert json.loads(daemon.say("log", "--json")) == {"level": "debug", "format": "json"}

    log_file.write_text('{"level": "loud"}')
    process.send_signal(signal.SIGHUP)
    wait_for(lambda: "not reloaded: everything stays as it was" in daemon.log(), "the bad reload is told")
    assert json.loads(daemon.say("log", "--json")) == {"level": "debug", "format": "json"}
    wait_for(lambda: manager.count("RELOADING=1\nMONOTONIC_USEC=") == 1, "RELOADING=1")
    wait_for(lambda: manager.count("READY=1") == 2, "the end of it")

    log_file.unlink()
    process.send_signal(signal.SIGHUP)
    wait_for(lambda: "INFO reloaded" in daemon.log(), "the good reload is told")
    assert daemon.say("log") == "level info format text\n"
    assert daemon.status()["ready"] is True
    assert daemon.peers().keys() == table
    assert (look(host), process.poll()) == (before, None)
    wait_for(lambda: manager.count("READY=1") == 3, "the end of it")


def test_dry_run(host: Namespace, daemon: WatchedDaemon) -> None:
    """A dry run says what a start does, and leaves store, host and files as they are; it fails as that."""

    def files() -> dict[str, tuple[int, bytes]]:
        paths = [path for path in daemon.directory.rglob("*") if path.is_file()]
        return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}

    def rehearse() -> subprocess.CompletedProcess[str]:
        command = [*daemon.run_command(), "--dry-run"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=START_S)

    before = look(host), files()
    done = rehearse()
    assert (done.returncode, done.stderr) == (0, "")
    assert (look(host), files()) == before
    assert daemon.manager.heard() == []
    said = " ".join(done.stdout.split())
    for text in (
        f"lease {US.subnet.replace('/', '-')}, which is ours already",
        *(f"table {len(LEASES) - 1} peers", f"underlay under0, {US.ip}, mtu 1500", "forwarder start one"),
        *("device make TUN overlay0, mtu 1450", f"address {US.subnet.replace('/24', '/32')}"),
        *("route 10.244.0.0/16 into", "sysctl net.ipv4.conf.overlay0.rp_filter = 2"),
        *(f"file {daemon.subnet_file}", f"127.0.0.1 port {METRICS}: /metrics"),
    ):
        assert text in said
    with host.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("0.0.0.0", 8472))
        done = rehearse()
    assert (done.returncode, done.stdout) == (1, "")
    assert f"UDP port 8472 is held by process {_name()} (pid {os.getpid()})" in done.stderr
    with host.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.bind(("127.0.0.1", METRICS))
        sock.listen()
        done = rehearse()
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1 port {METRICS}: Address already in use" in done.stderr
    assert (look(host), files()) == before
    daemon.start()
    running = look(host)
    done = rehearse()
    assert done.returncode == 1
    assert "another overlayd run" in done.stderr
    daemon.stop()
    done = rehearse()
    assert f"keep the one that runs, pid {daemon.forwarder_pid()}" in done.stdout
    assert "device keep TUN overlay0" in " ".join(done.stdout.split())
    assert look(host) == running


def _name() -> str:
    return Path("/proc/self/comm").read_text(encoding="utf-8").strip()


NODES = 1000


def many(changed: int = 0) -> dict[str, Any]:
    """Return a peers file of many nodes; the first one's MAC address can be changed."""
    network = {**NETWORK, "Network": "10.0.0.0/8"}
    leases = {US.subnet: value(US.ip, US.mac)}
    for n in range(NODES):
        mac = f"02:00:00:{changed if n == 0 else 0:02x}:{n >> 8:02x}:{n & 255:02x}"
        leases[f"10.{n >> 8}.{n & 255}.0/24"] = value(f"198.18.{n // 250}.{n % 250 + 1}", mac)
    return {"network": network, "leases": leases}


def _mac(daemon: Daemon) -> str:
    peers = {peer["subnet"]: peer for peer in daemon.settled_status()["peers"]}
    return str(peers["10.0.0.0/24"]["vtep_mac"])


@pytest.mark.alone
def test_many_scrapes_disturb_nobody(host: Namespace, tmp_path: Path) -> None:
    """While many scrape the metrics of 1000 peers, and some never read, changes are in force as ever."""
    daemon = Daemon(host, tmp_path / "node", many(), FLAGS)
    metrics, found, is_over = Page(host, METRICS), [], threading.Event()

    def scrape() -> None:
        while not is_over.is_set():
            begun = time.monotonic()
            page = metrics.get("/metrics")[1]
            found.append((time.monotonic() - begun, page.count("\noverlayd_peer_packets_total{")))

    threads = [threading.Thread(target=scrape) for _ in range(4)]
    lazy = [host.socket(socket.AF_INET, socket.SOCK_STREAM) for _ in range(8)]
    try:
        daemon.start()
        for sock in lazy:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect(("127.0.0.1", METRICS))
            sock.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        for thread in threads:
            thread.start()
        for changed in range(1, 6):
            begun = time.monotonic()
            daemon.write_peers(many(changed))
            text = f"02:00:00:{changed:02x}:00:00"
            wait_for(lambda text=text: _mac(daemon) == text, "in force", 3.0)  # type: ignore[misc]
            assert time.monotonic() - begun < 3.0
        wait_for(lambda: len(found) >= 20, "20 scrapes")
    finally:
        is_over.set()
        for thread in threads:
            if thread.ident is not None:
                thread.join(START_S)
        for sock in lazy:
            sock.close()
        daemon.close()
    assert {count for _, count in found} == {2 * NODES}
    assert max(took_s for took_s, _ in found) < 3.0


def are_traced(threads: list[str]) -> bool:
    """Tell whether somebody traces each of these threads."""
    texts = [Path(f"/proc/{thread}/status").read_text(encoding="ascii") for thread in threads]
    return all("TracerPid:\t0\n" not in text for text in texts)


def test_worker_hangs(host: Namespace, daemon: WatchedDaemon) -> None:
    """While a pass hangs, though the event loop turns, the watchdog hears nothing, and the probe fails."""
    probes, manager = Page(host, PROBES), daemon.manager
    daemon.start()
    assert daemon.process is not None
    threads = {int(path.name) for path in Path(f"/proc/{daemon.process.pid}/task").iterdir()}
    beside = [word for thread in threads - {daemon.process.pid} for word in ("-p", str(thread))]
    # What its other threads say to the kernel takes for ever; a pass asks it what the host is like.
    delay = f"inject=sendto,sendmsg:delay_enter={int(3600e6)}"
    strace = subprocess.Popen(
        ["strace", "-qq", "-o", "/dev/null", "-e", "trace=sendto,sendmsg", "-e", delay, *beside]
    )
    try:
        wait_for(lambda: are_traced(beside[1::2]), "strace looks at them")
        host.ip("addr add 198.51.100.1/32 dev lo\n")
        wait_for(lambda: probes.get("/healthz")[0] == 503, "the probe fails", 10 * WATCHDOG_S)
        assert "a pass has not ended for" in probes.get("/healthz")[1]
        alive, statuses = manager.count("WATCHDOG=1"), manager.count("STATUS=")
        begun = time.monotonic()
        wait_for(lambda: time.monotonic() - begun > WATCHDOG_S, "time passes", 2 * WATCHDOG_S)
        assert manager.count("WATCHDOG=1") == alive
        assert manager.count("STATUS=") == statuses
    finally:
        strace.terminate()
        strace.wait(START_S)
    wait_for(lambda: probes.get("/healthz")[0] == 200, "the pass ends", START_S)
    wait_for(lambda: manager.count("WATCHDOG=1") > alive, "the watchdog hears of us again")
