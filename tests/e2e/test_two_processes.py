# SPDX-License-Identifier: Apache-2.0
"""Either process may die, hang or be replaced, and packets keep flowing; drawing in pair.py."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.lab import wait_for
from dataplane import native
from tests.e2e.hoststate import look
from tests.e2e.pair import (
    BATCH_MAX,
    EXTRA,
    START_S,
    Load,
    Monitor,
    Pair,
    forget_counters,
    is_ready,
    is_replaced,
    kill,
    peers_file,
    restart,
    state_of,
)
from tests.e2e.rig import ROOT, Daemon


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Yield the pair; at the end each side must have accounted for every packet."""
    with Pair(tmp_path_factory.mktemp("pair")) as built:
        yield built


# --- control dies -----------------------------------------------------------------------------------


def test_kill_of_control_loses_nothing_and_takeover_is_silent(pair: Pair) -> None:
    """SIGKILL of run under 10 kpps loses no packet; the next one touches no link, address, route or table."""
    daemon = pair.daemons["a"]
    before = daemon.status()
    with Monitor(pair.spaces["a"]) as monitor, Load(pair) as load:
        kill(daemon)
        load.flow_on()
        daemon.start()
        load.flow_on()
    after = daemon.status()
    assert load.lost() == 0
    assert monitor.said == ""
    assert after["forwarder"]["pid"] == before["forwarder"]["pid"]
    assert after["forwarder"]["restarts"] == before["forwarder"]["restarts"]
    assert after["control"]["pid"] != before["control"]["pid"]
    assert [peer["id"] for peer in after["peers"]] == [peer["id"] for peer in before["peers"]]


def test_takeover_does_not_publish_an_equal_table(pair: Pair) -> None:
    """What is in force already is not put in force again; what changed meanwhile is."""
    daemon = pair.daemons["a"]
    generation = daemon.counters.header().generation
    kill(daemon)
    daemon.start()
    assert daemon.counters.header().generation == generation
    kill(daemon)
    daemon.write_peers(peers_file(EXTRA))
    daemon.start()
    assert daemon.counters.header().generation == generation + 1
    assert {peer["subnet"] for peer in daemon.status()["peers"]} == {"10.244.2.0/24", "10.244.7.0/24"}
    daemon.write_peers(peers_file())
    wait_for(lambda: daemon.counters.header().generation == generation + 2, "the old table")


def test_takeover_with_another_tier(pair: Pair) -> None:
    """A run that may use other offloads than the one before gets its way; the host stays as it is."""
    daemon = pair.daemons["a"]
    usual = list(daemon.flags)
    for flags, tier in (
        (["--disable", "all"], "plain"),
        (["--disable", "udp-gro"], "full but udp-gro"),
        ([], "full"),
    ):
        daemon.stop()
        daemon.flags = usual + flags
        daemon.start()
        assert daemon.status()["tier"] == tier
        with Load(pair) as load:
            pass
        assert load.lost() == 0
    assert daemon.flags == usual


def test_status_is_shown_while_control_is_dead(pair: Pair) -> None:
    """Without control the dataplane's figures come from shared memory; ready is false and says why."""
    daemon = pair.daemons["a"]
    before = daemon.status()
    kill(daemon)
    status = state_of(daemon)
    assert status["ready"] is False
    assert "overlayd run is not running" in status["reason"]
    for key in ("node", "tier", "encap", "vni", "port", "subnet", "mtu", "tun", "underlay"):
        assert status[key] == before[key], key
    assert status["forwarder"]["pid"] == before["forwarder"]["pid"]
    assert status["tx"]["offered"] >= before["tx"]["offered"]
    assert status["peers"][0]["public_ip"] == before["peers"][0]["public_ip"]
    daemon.start()


def test_second_run_is_refused(pair: Pair) -> None:
    """There is one control per run directory, even while it is stopped; the second one says whose it is."""
    daemon = pair.daemons["a"]
    assert daemon.process is not None
    owner = daemon.status()["control"]["pid"]
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        second = subprocess.run(
            daemon.run_command(), cwd=ROOT, capture_output=True, text=True, timeout=START_S
        )
    finally:
        daemon.process.send_signal(signal.SIGCONT)
    assert second.returncode == 1
    assert second.stderr == f"overlayd: another overlayd run (pid {owner}) owns {daemon.run_dir}\n"
    assert daemon.status()["ready"] is True


def test_control_that_was_replaced_gives_up(pair: Pair) -> None:
    """A run woken from SIGSTOP after a newer one took over commands nothing any more, and ends."""
    daemon = pair.daemons["a"]
    old = daemon.process
    assert old is not None
    old.send_signal(signal.SIGSTOP)
    daemon.process = None
    # Locks lost with their files are how two controls come to be.
    (daemon.run_dir / "lock").unlink()
    daemon.subnet_file.with_name(f".{daemon.subnet_file.name}.lock").unlink()
    try:
        daemon.start()
        new = daemon.status()
        old.send_signal(signal.SIGCONT)
        # Both see the change; only one is obeyed.
        generation = daemon.counters.header().generation
        daemon.write_peers(peers_file(EXTRA))
        assert old.wait(START_S) == 1
        assert "newer" in daemon.log()
    finally:
        old.kill()
        old.wait()
    wait_for(lambda: daemon.counters.header().generation > generation, "the new control's table")
    assert daemon.status()["control"]["pid"] == new["control"]["pid"]
    assert daemon.status()["ready"] is True
    daemon.write_peers(peers_file())


# --- the forwarder dies -----------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["a", "b"])
def test_kill_of_forwarder_loses_one_batch_at_most(pair: Pair, side: str) -> None:
    """SIGKILL of a forwarder at 10 kpps costs what it had in hand; the next has the same sockets."""
    daemon = pair.daemons[side]
    before = daemon.status()["forwarder"]
    ports = listening(daemon)
    with Load(pair) as load:
        os.kill(before["pid"], signal.SIGKILL)
        wait_for(lambda: is_replaced(daemon, before["pid"]), "another forwarder", START_S)
        load.flow_on()
    after = daemon.status()["forwarder"]
    assert load.lost() <= BATCH_MAX
    assert after["restarts"] == before["restarts"] + 1
    assert listening(daemon) == ports
    totals = daemon.settled()
    # Books balance although a forwarder died in the middle: what it had in hand is known by name.
    assert sum(way.drops.get("restart", 0) for way in (totals.tx, totals.rx)) <= BATCH_MAX


def listening(daemon: Daemon) -> list[str]:
    """Return the inodes of the UDP sockets of a host: those that are the same are the same sockets."""
    assert daemon.process is not None
    table = Path(f"/proc/{daemon.process.pid}/net/udp").read_text(encoding="ascii").splitlines()[1:]
    return sorted(line.split()[9] for line in table)


def test_forwarder_outlives_everything_of_control(pair: Pair) -> None:
    """Control and forwarder killed together: a new control starts over, and packets flow."""
    daemon = pair.daemons["a"]
    pid = daemon.status()["forwarder"]["pid"]
    kill(daemon)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: daemon.forwarder_pid() == 0, "the forwarder's end")
    restart(daemon)
    with Load(pair) as load:
        pass
    assert load.lost() == 0


def test_garbage_on_the_control_socket_harms_nothing(pair: Pair) -> None:
    """Malformed and oversized messages close the connection they came over, and packets keep flowing."""
    daemon = pair.daemons["a"]
    before = daemon.status()
    with Load(pair) as load:
        for data in (b"x", bytes(native.MESSAGE_BYTES), bytes(native.MESSAGE_BYTES + 1), bytes(200_000)):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
                stranger.settimeout(5)
                stranger.connect(os.fspath(daemon.run_dir / "forwarder.sock"))
                stranger.send(data)
                try:
                    assert stranger.recv(1) == b""
                except ConnectionResetError:
                    pass
        load.flow_on(1000)
    assert load.lost() == 0
    after = daemon.status()
    assert (after["ready"], after["forwarder"]["pid"]) == (True, before["forwarder"]["pid"])


# --- ends -------------------------------------------------------------------------------------------


def test_sigterm_leaves_the_dataplane_and_down_removes_it(pair: Pair) -> None:
    """SIGTERM of run exits 0 and packets flow on; `down` leaves the host as it was, and may be said twice."""
    daemon, space = pair.daemons["a"], pair.spaces["a"]
    with Load(pair) as load:
        daemon.stop()
        load.flow_on()
    assert load.lost() == 0
    assert daemon.forwarder_pid() != 0
    for _ in range(2):
        subprocess.run(daemon.command("down"), cwd=ROOT, check=True, timeout=START_S)
        assert daemon.forwarder_pid() == 0
        assert not daemon.run_dir.exists()
        links = json.loads(space.run("ip", "-j", "link").stdout)
        assert {link["ifname"] for link in links} == {"lo", "under0"}
        assert "10.244" not in space.run("ip", "route", "show", "table", "all").stdout
    before = look(space)
    restart(daemon)
    with Load(pair) as load:
        pass
    assert load.lost() == 0
    daemon.stop()
    assert look(space) != before
    subprocess.run(daemon.command("down"), cwd=ROOT, check=True, timeout=START_S)
    assert look(space) == before
    restart(daemon)


# --- two containers ---------------------------------------------------------------------------------


class Container:
    """A process that is the init of a pid namespace of its own, on a host, with the run directory shared."""

    def __init__(self, daemon: Daemon, command: list[str]) -> None:
        """Start it."""
        inner = command[len(daemon.namespace.command()) :]
        isolated = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", *inner]
        with daemon.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                daemon.namespace.command(*isolated), stdout=log, stderr=log, cwd=ROOT
            )

    def kill(self) -> None:
        """SIGKILL all of it."""
        self.process.kill()
        self.process.wait()


@pytest.fixture
def containers(pair: Pair) -> Iterator[dict[str, Container]]:
    """Yield control and forwarder of `a` as containers; afterwards the usual daemon is back."""
    daemon = pair.daemons["a"]
    daemon.stop()
    subprocess.run(daemon.command("down"), cwd=ROOT, check=True, timeout=START_S)
    forget_counters(daemon)
    made = {"forwarder": start_forwarder(daemon), "control": start_control(daemon)}
    try:
        wait_for(lambda: is_ready(daemon), "control in a container", START_S)
        yield made
    finally:
        for container in made.values():
            container.kill()
        wait_for(lambda: daemon.forwarder_pid() == 0, "the forwarder's end")
        subprocess.run(daemon.command("down"), cwd=ROOT, check=True, timeout=START_S)
        restart(daemon)


def start_forwarder(daemon: Daemon) -> Container:
    """Start a forwarder container."""
    return Container(daemon, daemon.command("forwarder"))


def start_control(daemon: Daemon) -> Container:
    """Start a control container that waits for the forwarder of another one."""
    return Container(daemon, [*daemon.run_command(), "--forwarder", "wait"])


def test_containers_control_dies(pair: Pair, containers: dict[str, Container]) -> None:
    """Control's container is killed under load and started again: no packet is lost, the forwarder stays."""
    daemon = pair.daemons["a"]
    with Load(pair) as load:
        containers["control"].kill()
        load.flow_on()
        containers["control"] = start_control(daemon)
        wait_for(lambda: is_ready(daemon), "the next control", START_S)
        load.flow_on(1000)
    assert load.lost() == 0
    assert daemon.status()["forwarder"]["restarts"] == 0


def test_containers_forwarder_dies(pair: Pair, containers: dict[str, Container]) -> None:
    """The forwarder's container is killed under load and started again: at most one batch is lost."""
    daemon = pair.daemons["a"]
    with Load(pair) as load:
        containers["forwarder"].kill()
        containers["forwarder"] = start_forwarder(daemon)
        wait_for(
            lambda: daemon.status()["forwarder"]["restarts"] == 1 and is_ready(daemon), "the next", START_S
        )
        load.flow_on(1000)
    assert load.lost() <= BATCH_MAX
    assert daemon.status()["ready"] is True
