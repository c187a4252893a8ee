# SPDX-License-Identifier: Apache-2.0
"""A forwarder that is killed, hangs or crashes again and again, and the spare that takes its place.

        a namespace                                        b namespace
        overlay0 10.244.1.0                                overlay0 10.244.2.0
        run, forwarder, spare                              the same
        under0 192.0.2.1 ──────────────── veth ─────────── under0 192.0.2.2
                 default route by under0, where an nft rule counts what leaves in clear

A stream of 10 000 numbered datagrams a second goes from `a` to `b`; either side's forwarder is killed.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.figures import figure
from bench.lab import Namespace, wait_for
from tests.e2e.pair import (
    BATCH_MAX,
    NODES,
    START_S,
    Pair,
    forget_counters,
    is_ready,
    is_replaced,
    kill,
    peers_file,
    restart,
)
from tests.e2e.rig import ROOT, Daemon
from tests.e2e.stamped import Stream
from tests.e2e.test_two_processes import Container, start_control, start_forwarder

STALL_MEDIAN_MS, STALL_MAX_MS = 20.0, 60.0
PORT = 9998
# Without its rule about crash loops: a hundred kills would be one.
PATIENT = "import sys; from dataplane.backend import crashes; crashes.CRASH_WINDOW_S = 0.0; "
PATIENT += "from dataplane.cli import main; sys.exit(main())"
CLEAR = """
table ip clear {
    chain out {
        type filter hook output priority 0
        oifname "under0" ip daddr 10.244.0.0/16 counter
    }
}
"""


class PatientDaemon(Daemon):
    """An `overlayd run` that takes no number of killed forwarders for a crash loop."""

    def run_command(self) -> list[str]:
        """Return the command line of `overlayd run`."""
        command = super().run_command()
        place = command.index("-m")
        return [*command[:place], "-c", PATIENT, *command[place + 2 :]]


class PatientPair(Pair):
    """A pair of those."""

    def make_daemon(self, name: str, directory: Path, flags: list[str]) -> Daemon:
        """Return the daemon of a host, not started yet."""
        return PatientDaemon(self.spaces[name], directory, peers_file(), flags)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Yield the pair, with a spare on each side; at the end both must have accounted for every packet."""
    with PatientPair(tmp_path_factory.mktemp("killed")) as built:
        for space in built.spaces.values():
            space.ip("route add default dev under0\n")
            space.run("nft", CLEAR)
        yield built


def stream(pair: Pair) -> Stream:
    """Return the stream, not flowing yet."""
    sender, receiver = (f"{NODES[name][1]}.0" for name in ("a", "b"))
    return Stream(pair.spaces["a"], pair.spaces["b"], sender, receiver, PORT)


def wait_spare(daemon: Daemon) -> dict[str, int]:
    """Wait until a spare waits; return what status says of the forwarder then."""
    wait_for(lambda: daemon.status()["forwarder"]["spare"], "a spare", START_S)
    found: dict[str, int] = daemon.status()["forwarder"]
    return found


def now_ns() -> int:
    """Return the time by the clock that datagrams are stamped with."""
    return time.clock_gettime_ns(time.CLOCK_REALTIME)


def is_gone(pid: int) -> bool:
    """Tell whether a process has ended, whether or not its parent has taken note."""
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except FileNotFoundError:
        return True


def kill_forwarder(daemon: Daemon) -> int:
    """Kill the forwarder while a spare waits, and wait until that carries; return when that was."""
    before = wait_spare(daemon)
    moment = now_ns()
    os.kill(before["pid"], signal.SIGKILL)
    wait_for(lambda: daemon.status()["forwarder"]["pid"] == before["spare"], "the spare to go", START_S)
    return moment


def leaked(space: Namespace) -> int:
    """Return how many packets to pods have left in clear."""
    rules = json.loads(space.run("nft", "-j", "list", "table", "ip", "clear").stdout)["nftables"]
    rule = next(item["rule"] for item in rules if "rule" in item)
    return int(next(part["counter"]["packets"] for part in rule["expr"] if "counter" in part))


def host_of(space: Namespace) -> list[Any]:
    """Return what the host knows of device, addresses and routes, without what only counts or runs down."""
    links = json.loads(space.run("ip", "-d", "-j", "link", "show", "overlay0").stdout)
    addresses = json.loads(space.run("ip", "-d", "-j", "address", "show", "overlay0").stdout)
    shown = (space.run("ip", version, "route", "show", "table", "all").stdout for version in ("-4", "-6"))
    routes = sorted(line for text in shown for line in text.splitlines())
    return [links, addresses, routes]


def full_queues(pair: Pair) -> int:
    """Return what the kernel dropped because queues were full: on a machine that had no time for us."""
    return sum(daemon.tun_dropped() + daemon.kernel("Udp.RcvbufErrors") for daemon in pair.daemons.values())


def kill_under_load(pair: Pair, kills: int) -> list[float]:
    """Kill forwarders, `a` and `b` in turn, under the stream; check all but the stalls; return them."""
    daemons = [pair.daemons[name] for name in NODES]
    hosts = [host_of(space) for space in pair.spaces.values()]
    books, full = [sum_restart(daemon) for daemon in daemons], full_queues(pair)
    moments = []
    with stream(pair) as flow:
        for number in range(kills):
            moments.append(kill_forwarder(daemons[number % 2]))
            flow.flow_on()
    gaps, stalls = flow.gaps(), flow.stalls_ms(moments)
    lost = sum(count for _, count in gaps)
    booked = sum(sum_restart(daemon) - before for daemon, before in zip(daemons, books, strict=True))
    print(f"{kills} kills, {flow.sent} sent, {lost} lost in {len(gaps)} gaps, {booked} booked")
    figure("stall", stalls, "ms")
    figure("lost in a gap", [count for _, count in gaps] or [0], "packets")
    figure("leaked in clear", [leaked(space) for space in pair.spaces.values()], "packets")
    # What was read and is not counted yet is not booked; what was sent and is not counted yet is, and came.
    assert max((count for _, count in gaps), default=0) <= BATCH_MAX + full_queues(pair) - full
    assert len(gaps) <= kills
    assert booked <= kills * BATCH_MAX
    assert [host_of(space) for space in pair.spaces.values()] == hosts
    assert [leaked(space) for space in pair.spaces.values()] == [0, 0]
    return stalls


def sum_restart(daemon: Daemon) -> int:
    """Return how many packets were booked as lost in the hands of a forwarder."""
    totals = daemon.settled()
    return sum(way.drops.get("restart", 0) for way in (totals.tx, totals.rx))


def test_case_126_ten_kills(pair: Pair) -> None:
    """Of ten forwarders killed at 10 kpps each costs a batch at most, booked; the host stays as it is."""
    stalls = kill_under_load(pair, 10)
    assert statistics.median(stalls) < 10 * STALL_MEDIAN_MS  # a busy machine; the hundred are measured


@pytest.mark.soak
@pytest.mark.alone
def test_case_126_hundred_kills(pair: Pair) -> None:
    """Of a hundred kills the median stall is 20 ms at most, the longest 60 ms."""
    stalls = kill_under_load(pair, 100)
    assert statistics.median(stalls) <= STALL_MEDIAN_MS
    assert max(stalls) <= STALL_MAX_MS


def test_connection_survives_kills(pair: Pair) -> None:
    """A bulk transfer by TCP goes on through kills on both sides, and arrives as it was sent."""
    check_transfer(pair, 4)


@pytest.mark.soak
def test_connection_survives_twenty_kills(pair: Pair) -> None:
    """The same with twenty."""
    check_transfer(pair, 20)


def check_transfer(pair: Pair, kills: int) -> None:
    """Send until enough forwarders were killed; what came must be what was sent."""
    there = pair.spaces["b"].socket(socket.AF_INET, socket.SOCK_STREAM)
    there.bind((f"{NODES['b'][1]}.0", 0))
    there.listen(1)
    here = pair.spaces["a"].socket(socket.AF_INET, socket.SOCK_STREAM)
    here.settimeout(START_S)
    is_over = threading.Event()
    sent, came = hashlib.sha256(), hashlib.sha256()
    amount = 0

    def send() -> None:
        block = os.urandom(1 << 20)
        while not is_over.is_set():
            here.sendall(block)
            sent.update(block)
        here.close()

    def receive() -> None:
        nonlocal amount
        accepted, _ = there.accept()
        accepted.settimeout(START_S)
        with accepted, there:
            while data := accepted.recv(1 << 20):
                came.update(data)
                amount += len(data)

    receiver = threading.Thread(target=receive)
    receiver.start()
    here.connect(there.getsockname())
    sender = threading.Thread(target=send)
    sender.start()
    try:
        for number in range(kills):
            kill_forwarder(pair.daemons["ab"[number % 2]])
            goal = amount + (1 << 20)
            wait_for(lambda goal=goal: amount >= goal, "the transfer to go on", START_S)  # type: ignore[misc]
    finally:
        is_over.set()
        sender.join(START_S)
        receiver.join(START_S)
    assert amount > 0
    assert came.hexdigest() == sent.hexdigest()


# --- one that hangs ---------------------------------------------------------------------------------


def test_case_127_stopped_forwarder_is_replaced(pair: Pair) -> None:
    """One that stands still with packets waiting is replaced in 1.5 s, and nothing comes late or twice."""
    daemon = pair.daemons["a"]
    before = wait_spare(daemon)
    with stream(pair) as flow:
        moment = now_ns()
        os.kill(before["pid"], signal.SIGSTOP)
        wait_for(lambda: daemon.status()["forwarder"]["pid"] == before["spare"], "the spare to go", START_S)
        took_s = (now_ns() - moment) / 1e9
        flow.flow_on()
        wait_for(lambda: is_gone(before["pid"]), "its end", START_S)
        assert "forwarder hangs" in daemon.log()
        assert wait_spare(daemon)["pid"] == before["spare"]
        flow.flow_on()
    print(f"replaced after {took_s:.2f} s, load {os.getloadavg()[0]:.1f}")
    assert took_s < 5.0  # 1.0 to 1.5 s where others leave us the processor
    # What waited longer than the queue lasts is gone, and nothing came twice or late.
    assert max(came - sent for _, sent, came in flow.came) / 1e9 < took_s + 1.0
    flow.gaps()
    daemon.settled()


def test_idle_forwarder_that_is_stopped_is_left_alone(pair: Pair) -> None:
    """Without packets there is nothing to be late with: nobody replaces it, and woken it carries the next."""
    daemon = pair.daemons["a"]
    before = wait_spare(daemon)
    daemon.wait_quiet()
    os.kill(before["pid"], signal.SIGSTOP)
    time_up = time.monotonic() + 2.5
    wait_for(lambda: time.monotonic() > time_up, "some looks at it")
    assert daemon.status()["forwarder"]["pid"] == before["pid"]
    os.kill(before["pid"], signal.SIGCONT)
    with stream(pair) as flow:
        pass
    assert flow.gaps() == []
    assert daemon.status()["forwarder"]["pid"] == before["pid"]


def test_hung_spare_is_not_waited_for(pair: Pair) -> None:
    """A spare that does not go when it is told to is ended, and another one started."""
    daemon = pair.daemons["a"]
    before = wait_spare(daemon)
    with stream(pair) as flow:
        os.kill(before["spare"], signal.SIGSTOP)
        os.kill(before["pid"], signal.SIGKILL)
        wait_for(lambda: is_replaced(daemon, before["pid"]), "another forwarder", START_S)
        flow.flow_on()
        assert daemon.status()["forwarder"]["pid"] != before["spare"]
        assert is_gone(before["spare"])
    flow.gaps()
    daemon.settled()


@pytest.mark.soak
def test_control_replaces_a_forwarder_that_hangs_when_it_starts(pair: Pair) -> None:
    """A control that finds one that does not answer ends it and starts over, and packets flow."""
    daemon = pair.daemons["a"]
    before = wait_spare(daemon)
    daemon.stop()
    forget_counters(daemon)
    os.kill(before["pid"], signal.SIGSTOP)
    daemon.start()
    assert is_gone(before["pid"])
    assert daemon.status()["forwarder"]["pid"] == before["spare"]
    with stream(pair) as flow:
        pass
    assert flow.gaps() == []


@pytest.fixture
def containers(pair: Pair) -> Iterator[dict[str, Container]]:
    """Yield control, forwarder and spare of `a`, each with PIDs of its own; then the usual daemon is back."""
    daemon = pair.daemons["a"]
    daemon.stop()
    subprocess.run(daemon.command("down"), cwd=ROOT, check=True, timeout=START_S)
    forget_counters(daemon)
    made = {"forwarder": start_forwarder(daemon)}
    try:
        wait_for(lambda: daemon.forwarder_pid() != 0, "the forwarder", START_S)
        made |= {"spare": start_forwarder(daemon), "control": start_control(daemon)}
        wait_for(lambda: is_ready(daemon), "control in a container", START_S)
        wait_for(lambda: daemon.status()["forwarder"]["spare"] is not None, "the spare", START_S)
        yield made
    finally:
        for container in made.values():
            container.kill()
        wait_for(lambda: daemon.forwarder_pid() == 0, "the forwarder's end")
        subprocess.run(daemon.command("down"), cwd=ROOT, check=True, timeout=START_S)
        restart(daemon)


def test_forwarder_that_cannot_be_killed_is_fenced_off(pair: Pair, containers: dict[str, Container]) -> None:
    """Hung in another PID namespace it is replaced and told of; woken it ends, and spoils no counter."""
    assert len(containers) == 3
    daemon = pair.daemons["a"]
    pid = daemon.forwarder_pid()
    assert daemon.status()["forwarder"]["pid"] is None  # control does not see it
    daemon._counters = daemon._open_counters()
    counters = os.fstat(daemon._counters[1]).st_ino
    with stream(pair) as flow:
        os.kill(pid, signal.SIGSTOP)
        wait_for(lambda: daemon.status()["forwarder"]["restarts"] == 1, "the spare to go", START_S)
        wait_for(lambda: is_ready(daemon) and daemon.forwarder_pid() not in (0, pid), "its names", START_S)
        forget_counters(daemon)  # the hung one keeps them
        daemon._counters = daemon._open_counters()
        assert os.fstat(daemon._counters[1]).st_ino != counters
        flow.flow_on()
        assert any("cannot be killed from here" in warning for warning in daemon.status()["warnings"])
        os.kill(pid, signal.SIGCONT)
        wait_for(lambda: is_gone(pid), "its end", START_S)
        flow.flow_on()
    assert not any("cannot be killed" in warning for warning in daemon.status()["warnings"])
    assert len({number for number, _, _ in flow.came}) == len(flow.came)
    daemon.settled(tx=1000)


# --- both processes ---------------------------------------------------------------------------------


@pytest.mark.soak
def test_all_are_killed(pair: Pair) -> None:
    """Without any of our processes device, addresses and routes stay, nothing leaks, and a start mends it."""
    daemon, space = pair.daemons["a"], pair.spaces["a"]
    before, hosts = wait_spare(daemon), host_of(space)
    with stream(pair) as flow:
        kill(daemon)
        for pid in (before["pid"], before["spare"]):
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: is_gone(before["pid"]) and is_gone(before["spare"]), "their end", START_S)
        links = json.loads(space.run("ip", "-j", "link", "show", "overlay0").stdout)
        assert "NO-CARRIER" in links[0]["flags"]
        moment = now_ns()
        restart(daemon)
        flow.flow_on()
    first_ns = min(came for _, sent, came in flow.came if sent > moment)
    print(f"carried again after {(first_ns - moment) / 1e9:.2f} s, load {os.getloadavg()[0]:.1f}")
    assert leaked(space) == 0
    now = host_of(space)
    assert [part[0]["ifindex"] for part in now[:2]] == [part[0]["ifindex"] for part in hosts[:2]]
    assert now[1][0]["addr_info"] == hosts[1][0]["addr_info"]
    assert now[2] == hosts[2]
    daemon.settled()


# --- the order to end -------------------------------------------------------------------------------


def test_case_128_end_in_a_flood(pair: Pair) -> None:
    """Told to end in a flood, a forwarder has ended within a second, and so has control; the device stays."""
    daemon = pair.daemons["a"]
    hosts, full = host_of(pair.spaces["a"]), full_queues(pair)
    with stream(pair) as flow:
        before = wait_spare(daemon)
        took_s = end_s(before["pid"])
        wait_for(lambda: daemon.status()["forwarder"]["pid"] == before["spare"], "the spare to go", START_S)
        flow.flow_on()
        assert daemon.process is not None
        begun_s = time.monotonic()
        daemon.stop()
        control_s = time.monotonic() - begun_s
        flow.flow_on()
        daemon.start()
    print(f"ended after {took_s:.3f} s, control after {control_s:.3f} s, load {os.getloadavg()[0]:.1f}")
    assert took_s < 1.0
    assert host_of(pair.spaces["a"]) == hosts
    assert sum(count for _, count in flow.gaps()) <= full_queues(pair) - full  # it ends between two batches
    assert daemon.settled().tx.drops == {}


def end_s(pid: int) -> float:
    """Tell a process to end; return how long it took."""
    begun_s = time.monotonic()
    os.kill(pid, signal.SIGTERM)
    wait_for(lambda: is_gone(pid), "its end", START_S)
    return time.monotonic() - begun_s
