# SPDX-License-Identifier: Apache-2.0
"""A node while its etcd is away, hangs, forgets, or is read over its shoulder: drawing in rig.py.

etcd runs in the namespace of the node (leased_etcd.py).
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.lab import wait_for
from dataplane.errors import RuntimeFailure
from tests.e2e.frames import DUAL, US
from tests.e2e.leased import LEASES, LeasedRig, shared_rig, value
from tests.e2e.leased_etcd import EtcdLeasedDaemon
from tests.e2e.rig import ROOT

NEW, NEW_POD = "10.244.9.0/24", "10.244.9.5"
NEW_IP, NEW_MAC, OTHER_MAC = "198.18.0.9", "02:4f:00:00:04:09", "02:4f:00:00:04:0a"
OWN_KEY = f"/coreos.com/network/subnets/{US.subnet.replace('/', '-')}"
BACK_S, HUNG_S, ANSWER_S = 15.0, 30.0, 1.0
LINES_MAX = 20  # of one outage
PASSWORD = "correct horse"


rig = shared_rig(EtcdLeasedDaemon)


@pytest.fixture
def daemon(rig: LeasedRig) -> Iterator[EtcdLeasedDaemon]:
    """Return its daemon; leave the store as it was found, and the node ready."""
    assert isinstance(rig.daemon, EtcdLeasedDaemon)
    yield rig.daemon
    for record in rig.daemon.records():
        if record.key != "config":
            rig.daemon.erase(record.key)
    for subnet, lease in LEASES.items():
        rig.daemon.put(subnet, lease)
    wait_for(lambda: set(rig.daemon.peers()) == {DUAL.subnet, "10.244.3.0/24"}, "as before", BACK_S)
    rig.daemon.wait_ready()


def reason_of(daemon: EtcdLeasedDaemon) -> str:
    """Return why the node is not ready; nothing if it cannot be asked."""
    try:
        return str(daemon.status()["reason"])
    except RuntimeFailure:
        return ""


def test_first_list_fails(rig: LeasedRig, daemon: EtcdLeasedDaemon) -> None:
    """A node that starts before its etcd waits, says why it is not ready, and then is; packets flow."""
    daemon.stop()
    member = daemon.etcd.members[0]
    member.stop()
    said = len(daemon.log())
    daemon.launch()
    wait_for(lambda: "connection refused" in reason_of(daemon), "it says why", BACK_S)
    assert reason_of(daemon).startswith("waiting for the store: etcd http://127.0.0.1:")
    assert rig.route_of(DUAL.pod()) == (str(DUAL.ip), DUAL.mac)
    member.start()
    wait_for(lambda: reason_of(daemon) == "ok", "it is ready", BACK_S)
    assert "store lost: over lasted_s=" in daemon.log()[said:]
    assert daemon.log()[said:].count("store lost error=") == 1


def test_changes_that_were_forgotten(rig: LeasedRig, daemon: EtcdLeasedDaemon) -> None:
    """What changed in an outage and was compacted away is seen all the same: a MAC, an address, an end."""
    for number in range(3):
        daemon.put(f"10.244.{9 + number}.0/24", value(f"198.18.0.{9 + number}", f"02:4f:00:00:04:1{number}"))
    daemon.sync()
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGSTOP)
    daemon.etcd.members[0].stop()  # the connection is lost, too
    daemon.etcd.members[0].start()
    daemon.etcd.members[0].wait_listening()
    daemon.gateway.close()
    daemon.etcd.wait_healthy()
    daemon.put(NEW, value("198.18.0.9", OTHER_MAC))
    daemon.put("10.244.10.0/24", value("198.18.0.77", "02:4f:00:00:04:11"))
    daemon.delete("10.244.11.0/24")
    daemon.gateway.compact()
    daemon.process.send_signal(signal.SIGCONT)
    wait_for(lambda: "10.244.11.0/24" not in daemon.peers(), "the end is seen", BACK_S)
    assert rig.route_of(NEW_POD) == ("198.18.0.9", OTHER_MAC)
    assert rig.route_of("10.244.10.5") == ("198.18.0.77", "02:4f:00:00:04:11")


@pytest.mark.soak
def test_etcd_that_hangs(rig: LeasedRig, daemon: EtcdLeasedDaemon) -> None:
    """While etcd is frozen status answers and says so, packets flow and the log stays short."""
    said = len(daemon.log())
    daemon.etcd.members[0].signal(signal.SIGSTOP)
    try:
        wait_for(lambda: daemon.status()["store"]["error"], "it is noticed", HUNG_S)
        begun_s = time.monotonic()
        status = daemon.status()
        assert time.monotonic() - begun_s < ANSWER_S
        assert status["ready"]
        assert any("etcd" in warning for warning in status["warnings"])
        assert rig.route_of(DUAL.pod()) == (str(DUAL.ip), DUAL.mac)
    finally:
        daemon.etcd.members[0].signal(signal.SIGCONT)
    daemon.put(NEW, value(NEW_IP, NEW_MAC))
    wait_for(lambda: NEW in daemon.peers(), "the change is seen", BACK_S)
    assert rig.route_of(NEW_POD) == (NEW_IP, NEW_MAC)
    assert daemon.log()[said:].count("\n") < LINES_MAX


def test_own_key_alone(daemon: EtcdLeasedDaemon, tmp_path: Path) -> None:
    """`etcdctl watch --prefix` sees a node take its subnet, take it back and give it back: one key."""
    daemon.delete(US.subnet)
    daemon.wait_ready()
    subnet = daemon.status()["subnet"]
    assert subnet == US.subnet
    revision = daemon.store_revision()
    log = tmp_path / "watch"
    words = ("watch", "--prefix", "/", "--rev", str(revision + 1), "-w", "json")
    url = daemon.etcd.urls[0]
    command = daemon.namespace.command("env", "ETCDCTL_API=3", "etcdctl", "--endpoints", url, *words)
    with log.open("wb") as out, subprocess.Popen(command, stdout=out) as watching:
        try:
            daemon.stop()
            daemon.start()
            daemon.delete(US.subnet)  # which is the one that we do; it is taken back
            wait_for(lambda: daemon.find(f"subnets/{US.subnet.replace('/', '-')}"), "taken back", BACK_S)
            daemon.wait_ready()
            assert daemon.say("lease", "release") != ""
            assert daemon.process is not None
            daemon.process.wait(BACK_S)
            daemon.process = None
            wait_for(lambda: log.read_text().count('"type":1') >= 2, "the release is seen", BACK_S)
        finally:
            watching.kill()
    daemon.start()
    keys = {
        json.dumps(event["kv"]["key"])
        for line in log.read_text().splitlines()
        for event in json.loads(line).get("Events") or ()
    }
    assert keys == {json.dumps(_encoded(OWN_KEY))}


def _encoded(text: str) -> str:
    from base64 import b64encode

    return b64encode(text.encode()).decode()


def ask_page(daemon: EtcdLeasedDaemon, port: int, path: str) -> str:
    """Return a page that a daemon serves on its loopback device."""
    with daemon.namespace.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.settimeout(BACK_S)
        sock.connect(("127.0.0.1", port))
        sock.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        with sock.makefile(encoding="utf-8") as file:
            return file.read()


def test_case_146_password_is_never_told(daemon: EtcdLeasedDaemon) -> None:
    """A password is in nothing that is logged, shown, served or written; metrics are for loopback alone."""
    before = list(daemon.flags)
    daemon.stop()
    daemon.flags += ["--log-level", "debug", "--etcd-username", "node", "--etcd-password", PASSWORD]
    daemon.flags += ["--metrics-port", "9477", "--healthz-port", "81"]
    try:
        rehearsed = subprocess.run(
            [*daemon.run_command(), "--dry-run"], capture_output=True, text=True, timeout=BACK_S, cwd=ROOT
        )
        daemon.start()
        daemon.put(NEW, value(NEW_IP, NEW_MAC))
        daemon.sync()
        told = [daemon.log(), json.dumps(daemon.status()), daemon.say("status"), daemon.say("peers", "--all")]
        told += [path.read_text("latin-1") for path in daemon.run_dir.iterdir() if path.is_file()]
        told += [rehearsed.stdout, rehearsed.stderr]
        pages = {path: ask_page(daemon, 9477, path) for path in ("/metrics", "/nothing")}
        pages |= {path: ask_page(daemon, 81, path) for path in ("/healthz", "/readyz")}
        assert "overlayd_ready" in pages["/metrics"]
        assert rehearsed.returncode == 0
        assert not [text for text in [*told, *pages.values()] if PASSWORD in text]
        listening = daemon.namespace.run("ss", "-Hltn", "sport", "=", "9477").stdout.split()
        assert listening[3] == "127.0.0.1:9477"
        assert len(listening) == 5
    finally:
        daemon.stop()
        daemon.flags = before
        daemon.start()
