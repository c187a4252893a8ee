# SPDX-License-Identifier: Apache-2.0
"""The systemd units are sound, tight, and leave both processes what they need; hosts as in pair.py.

There is no systemd to run them under. So both processes run with the capabilities of their units, and strace
says what they did: each system call, socket, mapping and file opened for writing must be one that is allowed.
"""

from __future__ import annotations

import errno
import functools
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.figures import figure
from bench.lab import wait_for
from dataplane import control, memory
from dataplane.errors import ConfigError
from dataplane.slots import SLOTS
from tests.e2e.pair import START_S, Pair, forget_counters, restart
from tests.e2e.refusing import IO_URING_SETUP, refusing
from tests.e2e.rig import OVERLAYD, ROOT, Daemon

UNITS = ROOT / "packaging" / "systemd"
NAMES = ("overlayd", "overlayd-forwarder@")
INSTALLED = "/opt/overlayd/bin/overlayd"
EXPOSURE_MAX = 30  # tenths
# What systemd allows always, systemd.exec(5), and what the kernel calls for a process that was stopped.
ALWAYS = {"execve", "exit", "exit_group", "getrlimit", "rt_sigreturn", "sigreturn", "restart_syscall"}
STRACE = ("strace", "-f", "-qq", "-s", "256", "-e", "signal=none", "-o")


# --- the units ------------------------------------------------------------------------------------------


def read_unit(name: str) -> list[tuple[str, str]]:
    """Return the settings of a unit, in order."""
    lines = (UNITS / f"{name}.service").read_text(encoding="utf-8").splitlines()
    pairs = [line.partition("=") for line in lines if re.match(r"\w+=", line)]
    return [(key, value) for key, _, value in pairs]


def setting(name: str, wanted: str) -> list[str]:
    """Return all words of a setting."""
    return [word for key, value in read_unit(name) if key == wanted for word in value.split()]


@functools.cache
def call_sets() -> dict[str, list[str]]:
    """Return what each set of system calls holds."""
    done = subprocess.run(["systemd-analyze", "syscall-filter"], capture_output=True, text=True, check=True)
    sets: dict[str, list[str]] = {}
    name = ""
    for line in done.stdout.splitlines():
        word = line.partition("#")[0]
        if word.startswith("@"):
            name = word.strip()
            sets[name] = []
        elif word.strip():
            sets[name].append(word.strip())
    return sets


def expand(word: str) -> set[str]:
    """Return the system calls of a word of SystemCallFilter."""
    if not word.startswith("@"):
        return {word}
    return set().union(*(expand(part) for part in call_sets()[word]))


def allowed_calls(name: str) -> set[str]:
    """Return the system calls that a unit allows."""
    allowed = set(ALWAYS)
    for key, value in read_unit(name):
        if key == "SystemCallFilter":
            words = set().union(*(expand(word) for word in value.removeprefix("~").split()))
            allowed = allowed - words if value.startswith("~") else allowed | words
    return allowed | expand("@default")


@pytest.fixture
def installed(tmp_path: Path) -> list[str]:
    """Return the paths of the units as if overlayd were installed where they look for it."""
    program = tmp_path / "overlayd"
    program.write_text("#!/bin/sh\n", encoding="utf-8")
    program.chmod(0o755)
    paths = []
    for name in NAMES:
        text = (UNITS / f"{name}.service").read_text(encoding="utf-8")
        assert INSTALLED in text
        (tmp_path / f"{name}.service").write_text(text.replace(INSTALLED, str(program)), encoding="utf-8")
        paths.append(str(tmp_path / f"{name}.service"))
    return paths


def test_units_are_sound(installed: list[str]) -> None:
    """systemd finds nothing wrong in the units: every setting is known and has a value that is allowed."""
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *installed], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("index", range(len(NAMES)), ids=NAMES)
def test_units_are_tight(installed: list[str], index: int) -> None:
    """systemd's own measure of what a service could do is 3 of 10 at most."""
    options = ["--offline=true", "--no-pager", f"--threshold={EXPOSURE_MAX}"]
    command = ["systemd-analyze", "security", *options, installed[index]]
    done = subprocess.run(command, capture_output=True, text=True)
    found = re.search(r"exposure level for \S+: ([\d.]+)", done.stdout)
    assert found is not None, done.stdout
    figure("exposure", [float(found[1])], "of 10", NAMES[index])
    assert done.returncode == 0, done.stdout


def seconds(text: str) -> float:
    """Read a time as systemd does, as far as the units have any."""
    return float(text.removesuffix("ms")) / 1000 if text.endswith("ms") else float(text)


def test_units_come_back() -> None:
    """Both are restarted whenever they end, and for ever; not where the command line is wrong, of control."""
    for name in NAMES:
        assert setting(name, "Restart") == ["always"]
        assert setting(name, "StartLimitIntervalSec") == ["0"]
        assert int(setting(name, "OOMScoreAdjust")[0]) <= -900
    (soon,), (later,) = (setting(name, "RestartSec") for name in reversed(NAMES))
    assert seconds(soon) <= 0.1 <= seconds(later)
    assert setting("overlayd", "RestartPreventExitStatus") == [str(ConfigError.exit_code)]
    assert setting("overlayd", "Type") == ["notify"]
    assert 0 < seconds(setting("overlayd", "WatchdogSec")[0]) <= 60
    assert setting("overlayd", "TimeoutStartSec") == ["infinity"]  # the store may be away
    assert int(setting("overlayd", "FileDescriptorStoreMax")[0]) >= len(SLOTS)


def test_units_in_order() -> None:
    """Control wants two forwarders and no order among them; both share a run directory that stays."""
    assert setting("overlayd", "Wants") == [
        "network-online.target",
        *(f"overlayd-forwarder@{turn}.service" for turn in (1, 2)),
    ]
    assert setting("overlayd", "After") == ["network-online.target"]
    assert [setting("overlayd", key) for key in ("Requires", "BindsTo", "Before")] == [[], [], []]
    for name in NAMES:
        assert setting(name, "RuntimeDirectory") == ["overlayd"]
        assert setting(name, "RuntimeDirectoryPreserve") == ["yes"]


# --- what the processes do ------------------------------------------------------------------------------


class UnitDaemon(Daemon):
    """An `overlayd run` as its unit would run it, as far as that goes without systemd."""

    @property
    def trace(self) -> Path:
        """What it did."""
        return self.directory / "trace"

    def run_command(self) -> list[str]:
        """Return the command line of `overlayd run`, with the unit's capabilities and under strace."""
        command = super().run_command()
        inside = len(self.namespace.command())
        names = [word.removeprefix("CAP_").lower() for word in setting("overlayd", "CapabilityBoundingSet")]
        bounds = ",".join(("-all", *(f"+{name}" for name in names)))
        limits = ["setpriv", "--no-new-privs", "--inh-caps=-all", f"--bounding-set={bounds}"]
        ring = refusing(IO_URING_SETUP, errno.EPERM)  # libuv tries that, and must do without
        watched = [*STRACE, str(self.trace), *limits, *ring, *command[inside:], "--forwarder", "wait"]
        return [*command[:inside], *watched]

    def stop(self) -> None:
        """End it from inside: strace would not hand on a signal."""
        if self.process is not None:
            control.ask(self.run_dir, {"cmd": "stop"})
            assert self.process.wait(START_S) == 0, self.log()
            self.process = None


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    """Yield two hosts, of which `a` is run as by its units."""
    with Pair(tmp_path) as built:
        usual = built.daemons["a"]
        usual.stop()
        subprocess.run(usual.command("down"), cwd=ROOT, check=True, timeout=START_S)
        forget_counters(usual)
        flags = (*usual.flags, "--path-probes", "true")
        daemon = UnitDaemon(usual.namespace, tmp_path / "unit", {}, flags)
        daemon.write_peers(usual.peers_path.read_text(encoding="utf-8"))
        forwarders = [start_forwarder(daemon, turn) for turn in (1, 2)]
        built.daemons["a"] = daemon
        try:
            daemon.start()
            yield built
        finally:
            daemon.close()
            for forwarder in forwarders:
                forwarder.wait(START_S)
            built.daemons["a"] = usual
            restart(usual)


def start_forwarder(daemon: Daemon, turn: int) -> subprocess.Popen[bytes]:
    """Start one of two forwarders as its unit would: no capability, no network, root only among its own."""
    bounds = ["setpriv", "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"]
    assert setting("overlayd-forwarder@", "CapabilityBoundingSet") == []
    assert setting("overlayd-forwarder@", "PrivateNetwork") == ["yes"]
    assert setting("overlayd-forwarder@", "PrivateUsers") == ["yes"]
    command = ["unshare", "-rn", *bounds, *OVERLAYD, "forwarder", "--run-dir", str(daemon.run_dir)]
    return subprocess.Popen([*STRACE, str(daemon.directory / f"forwarder{turn}.trace"), *command], cwd=ROOT)


def check_trace(path: Path, name: str, writable: list[str]) -> None:
    """Assert that a unit allows what a process did."""
    text = path.read_text(encoding="utf-8", errors="replace")
    text = text[text.index(f'execve("{sys.executable}", ["{sys.executable}", "-m"') :]
    calls = set(re.findall(r"^\d+ +(?:<\.\.\. )?(\w+)(?:\(| resumed)", text, flags=re.MULTILINE))
    assert {"openat", "recvmsg", "sendmsg"} <= calls  # it is a trace
    assert calls - allowed_calls(name) <= {"io_uring_setup"}
    families = set(re.findall(r"\bsocket\((AF_\w+)", text))
    assert families <= set(setting(name, "RestrictAddressFamilies"))
    assert re.findall(r"\bmmap\([^)]*PROT_WRITE\|PROT_EXEC.*|\bmprotect\([^)]*PROT_EXEC.*", text) == []
    opened = re.findall(
        r'\bopenat\(AT_FDCWD, "([^"]+)", [A-Z_|]*O_(?:WRONLY|RDWR|CREAT).* = \d+$', text, re.M
    )
    assert opened
    assert [file for file in opened if not file.startswith(tuple(writable))] == []


def test_units_leave_what_is_needed(pair: Pair) -> None:
    """With what the units allow packets flow, by the spare too; nothing that they forbid was tried."""
    daemon = pair.daemons["a"]
    assert isinstance(daemon, UnitDaemon)
    pair.spaces["a"].run("ping", "-c", "3", "-i", "0.01", "-W", "5", "10.244.2.0")
    daemon.settled()
    told = Path("/proc", str(daemon.status()["control"]["pid"]), "environ").read_text(encoding="utf-8")
    assert f"{memory.TUNABLES}={memory.ONE_HEAP}" in told.replace("\0", ":")  # as glibc leaves it there
    for trouble in ("one queue only", "firewall rules are not in force", "socket buffer", "confined"):
        assert trouble not in daemon.log() + "".join(daemon.status()["warnings"])
    wait_for(lambda: daemon.status()["forwarder"]["spare"], "the spare", START_S)
    spare = daemon.status()["forwarder"]["spare"]
    os.kill(daemon.forwarder_pid(), signal.SIGKILL)
    wait_for(lambda: daemon.forwarder_pid() == spare, "the spare takes its place", START_S)
    pair.spaces["a"].run("ping", "-c", "3", "-i", "0.01", "-W", "5", "10.244.2.0")
    daemon.stop()
    subprocess.run(daemon.command("down"), cwd=ROOT, check=True, timeout=START_S)
    wait_for(lambda: daemon.forwarder_pid() == 0, "the forwarder's end", START_S)
    here = [str(daemon.run_dir), "/dev/null"]
    there = [str(daemon.directory), "/dev/net/tun", "/proc/sys/net/", "/tmp/"]
    for turn in (1, 2):
        check_trace(daemon.directory / f"forwarder{turn}.trace", "overlayd-forwarder@", here)
    check_trace(daemon.trace, "overlayd", [*here, *there])
