# SPDX-License-Identifier: Apache-2.0
"""A node becomes another version while its pods talk; drawing in pair.py, with daemons of upgraded.py."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.figures import figure
from bench.lab import wait_for
from dataplane import VERSION, native
from dataplane.errors import RuntimeFailure
from tests.e2e.numbered import Numbered
from tests.e2e.otherbuild import other_build
from tests.e2e.pair import NODES, START_S, Pair, forget_counters, peers_file
from tests.e2e.rig import ROOT
from tests.e2e.upgraded import Installed, Transfer

NEXT = "0.2.0"
NUMBERS = {"DP_ABI": native.ABI + 1}
LAYOUTS = {**NUMBERS, "DP_FIB_LAYOUT": 1006, "DP_COUNTERS_LAYOUT": 1006}
IP_A, IP_B = (f"{prefix}.0" for _, prefix in NODES.values())
UPGRADES, UPGRADES_SOAK = 4, 20


class InstalledPair(Pair):
    """The pair, with daemons of which other builds can be installed."""

    def make_daemon(self, name: str, directory: Path, flags: list[str]) -> Installed:
        """Return the daemon of a host, not started yet."""
        return Installed(self.spaces[name], directory, peers_file(), flags)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Yield the pair; at the end each side must have accounted for every packet."""
    other_build(NEXT, NUMBERS)
    with InstalledPair(tmp_path_factory.mktemp("pair")) as built:
        yield built


@pytest.fixture
def daemon(pair: Pair) -> Iterator[Installed]:
    """Yield the daemon of `a`, with this tree installed; it works and is this tree's afterwards, too."""
    found = pair.daemons["a"]
    assert isinstance(found, Installed)
    yield found
    found.install(ROOT)
    if found.process is None:
        found.start()
    if found.status()["control"]["version"] != VERSION or found.status()["forwarder"]["version"] != VERSION:
        found.upgrade()


def numbered(pair: Pair, rate_pps: int) -> Numbered:
    """Return a numbered stream both ways."""
    return Numbered((pair.spaces["a"], IP_A), (pair.spaces["b"], IP_B), rate_pps=rate_pps)


def upgrade_again_and_again(pair: Pair, daemon: Installed, times: int, other: Path, rate_pps: int) -> None:
    """Upgrade old -> new -> old under streams and a transfer; tell how long packets waited each time."""
    pauses = []
    a, b = pair.spaces["a"], pair.spaces["b"]
    control_pid = daemon.status()["control"]["pid"]
    with Transfer(b, a, (IP_B, IP_A), 9003) as transfer, numbered(pair, rate_pps) as load:
        for number in range(times):
            tree, version = (ROOT, VERSION) if number % 2 else (other, NEXT)
            before = daemon.status()["forwarder"]
            daemon.install(tree)
            found = daemon.upgrade()
            after = daemon.status()
            assert found["control"].endswith(f"-> {version}")
            assert found["forwarder"]["dropped"] == 0
            pauses.append(found["forwarder"]["paused_ms"])
            assert after["forwarder"]["pid"] not in (None, before["pid"])
            assert after["forwarder"]["version"] == after["control"]["version"] == version
            assert after["control"]["pid"] == control_pid  # as whoever supervises it wants it
            assert after["workers"]["queues"] == 4  # flows still have queues of their own
            load.flow_on(300)
    figure("paused", pauses, "ms")
    figure("sent", [load.sent], "packets")
    figure("lost", [load.sent - load.came], "packets")
    figure("TCP connections that broke", [len(transfer.errors)], "connections")
    assert load.wrong == []
    transfer.check()


@pytest.mark.alone
def test_case_129_case_130_upgrades_both_ways_lose_nothing(pair: Pair, daemon: Installed) -> None:
    """Old to new and new to old, one ABI apart, under load: no packet lost, no reset, books balance."""
    upgrade_again_and_again(pair, daemon, UPGRADES, other_build(NEXT, NUMBERS), 3000)
    totals = daemon.settled()
    assert [way.drops.get("restart", 0) for way in (totals.tx, totals.rx)] == [0, 0]


@pytest.mark.soak
@pytest.mark.alone
@pytest.mark.timeout(1200)
def test_case_129_case_130_many_upgrades(pair: Pair, daemon: Installed) -> None:
    """The same twenty times, at 10 000 packets a second each way."""
    upgrade_again_and_again(pair, daemon, UPGRADES_SOAK, other_build(NEXT, NUMBERS), 10_000)


@pytest.mark.soak
def test_other_layouts_lose_no_packet(pair: Pair, daemon: Installed) -> None:
    """A version that lays out table and counters otherwise takes over as well; the counters begin anew."""
    other = other_build(NEXT, LAYOUTS)
    with numbered(pair, 2000) as load:
        for tree, version in ((other, NEXT), (ROOT, VERSION)):
            daemon.install(tree)
            daemon.upgrade()
            assert daemon.status()["forwarder"]["version"] == version
            load.flow_on(300)
    assert load.wrong == []
    forget_counters(daemon)
    daemon._counters = daemon._open_counters()


def test_what_does_not_start_is_not_put_in_force(pair: Pair, daemon: Installed, tmp_path: Path) -> None:
    """An installed version that cannot be loaded is refused in a line; nothing ends or is changed."""
    before = daemon.status()
    broken = tmp_path / "broken"
    (broken / "dataplane").mkdir(parents=True)
    (broken / "dataplane" / "__init__.py").write_text("")
    (broken / "dataplane" / "__main__.py").write_text("raise SystemExit('overlayd: no such thing')\n")
    good = daemon.command("upgrade")
    daemon.install(broken)
    done = subprocess.run(good, cwd=ROOT, capture_output=True, text=True, timeout=START_S)
    assert done.returncode == 1
    assert done.stderr == "overlayd: nothing was changed: what is installed does not start: no such thing\n"
    after = daemon.status()
    assert [after[part]["pid"] for part in ("control", "forwarder")] == [
        before[part]["pid"] for part in ("control", "forwarder")
    ]
    assert after["control"]["uptime_s"] > before["control"]["uptime_s"]
    assert after["ready"]


def test_restart_of_control_hands_over(pair: Pair, daemon: Installed) -> None:
    """A control of another build that is just started replaces the forwarder, too; what is left is reaped."""
    before = daemon.status()["forwarder"]
    with numbered(pair, 1000) as load:
        daemon.stop()
        daemon.install(other_build(NEXT, NUMBERS))
        daemon.start()
        load.flow_on(300)
    assert load.wrong == []
    after = daemon.status()["forwarder"]
    assert (after["version"], after["hand_over"]["error"]) == (NEXT, None)
    assert before["pid"] != after["pid"]
    wait_for(lambda: not Path(f"/proc/{before['pid']}").exists(), "the old forwarder is gone")


# --- as two pods of a DaemonSet, of which one follows the other ----------------------------------------


class Pods:
    """Control and forwarder of two builds that share a run directory, as pods with a surge do."""

    def __init__(self, daemon: Installed) -> None:
        """Start nothing yet."""
        self._daemon = daemon
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, tree: Path, *command: str) -> None:
        """Start one container of one build."""
        self._daemon.install(tree)
        words = self._daemon.run_command() if command[0] == "run" else self._daemon.command(*command)
        extra = ("--forwarder", "wait", "--replace", *command[1:]) if command[0] == "run" else ()
        self.processes[name] = self._daemon.begin([*words, *extra])

    def close(self) -> None:
        """End them all."""
        for process in self.processes.values():
            process.kill()
            process.wait()


@pytest.fixture
def pods(daemon: Installed) -> Iterator[Pods]:
    """Yield a node whose daemon was taken down; afterwards it is back."""
    daemon.stop()
    assert daemon.say("down").returncode == 0
    forget_counters(daemon)
    built = Pods(daemon)
    try:
        yield built
    finally:
        built.close()
        daemon.install(ROOT)
        subprocess.run(daemon.command("down"), cwd=ROOT, check=True, timeout=START_S)
        daemon.start()


def is_served_by(daemon: Installed, control: str, forwarder: str) -> bool:
    """Tell whether the node is ready, with control and forwarder of these versions."""
    try:
        status = daemon.status()
    except RuntimeFailure:  # one lets go, and the other is not there yet
        return False
    versions = (status["control"]["version"], status["forwarder"]["version"])
    return (status["ready"], *versions) == (True, control, forwarder)


def test_case_130_pod_follows_pod(pair: Pair, daemon: Installed, pods: Pods) -> None:
    """A pod of another build takes over from one that runs; the old one stands by, and comes back."""
    pods.start("old forwarder", other_build(NEXT, NUMBERS), "forwarder")
    pods.start("old control", other_build(NEXT, NUMBERS), "run", "--healthz-port", "18080")
    wait_for(lambda: is_served_by(daemon, NEXT, NEXT), "the old pod", START_S)
    with numbered(pair, 1000) as load:
        pods.start("new forwarder", ROOT, "forwarder")
        wait_for((daemon.run_dir / "spare.sock").exists, "the new forwarder waits", START_S)
        pods.start("new control", ROOT, "run", "--healthz-port", "18080")
        wait_for(lambda: is_served_by(daemon, VERSION, VERSION), "the new pod", START_S)
        assert pods.processes["old forwarder"].wait(START_S) == 0
        assert pods.processes["old control"].poll() is None
        load.flow_on(300)
        pods.processes["new control"].kill()
        pods.processes["new control"].wait()
        wait_for(lambda: is_served_by(daemon, NEXT, VERSION), "the old control takes over again", START_S)
        load.flow_on(300)
    assert load.wrong == []
    pods.start("new control", ROOT, "run", "--healthz-port", "18080")
    wait_for(lambda: is_served_by(daemon, VERSION, VERSION), "the new pod again", START_S)
    pods.processes["old control"].terminate()
    assert pods.processes["old control"].wait(START_S) == 0
    assert is_served_by(daemon, VERSION, VERSION)
