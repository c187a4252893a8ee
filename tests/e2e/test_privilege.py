# SPDX-License-Identifier: Apache-2.0
"""What the two processes may still do once they work; drawing in pair.py."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.figures import figure
from bench.lab import wait_for
from dataplane import footing
from tests.e2e.pair import (
    EXTRA,
    START_S,
    Load,
    Pair,
    forget_counters,
    is_ready,
    kill,
    peers_file,
    replace_forwarder,
    restart,
)
from tests.e2e.refusing import SECCOMP, refusing
from tests.e2e.rig import OVERLAYD, ROOT, Daemon

CAPABILITY_SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
NET_BIND_SERVICE, NET_ADMIN, NET_RAW = 1 << 10, 1 << 12, 1 << 13
# Nobody may trace who has more than he has: so the one who tries has what control has.
FEW_CAPABILITIES = (
    *("--inh-caps=-all", "--ambient-caps=-all"),
    "--bounding-set=-all,+net_bind_service,+net_admin,+net_raw",
)
NO_CAPABILITIES = ("--inh-caps=-all", "--ambient-caps=-all", "--bounding-set=-all")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Yield the pair; at the end each side must have accounted for every packet."""
    with Pair(tmp_path_factory.mktemp("privilege"), ("--threads", "2")) as built:
        yield built


def read_status(path: Path) -> dict[str, str]:
    """Return the lines of a file /proc/…/status by their names."""
    lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    return {name: text.strip() for name, _, text in (line.partition(":") for line in lines)}


def threads_of(pid: int) -> list[dict[str, str]]:
    """Return what the kernel says of each thread of a process."""
    return [read_status(path / "status") for path in Path(f"/proc/{pid}/task").iterdir()]


def list_writable(pid: int) -> set[str]:
    """Return what a process has open for writing: a path, or the kind of what has none."""
    found = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        info = read_status(Path(f"/proc/{pid}/fdinfo/{link.name}"))
        if int(info["flags"], 8) & os.O_ACCMODE != os.O_RDONLY:
            found.add(str(link.readlink()).partition(":[")[0])
    return found


def can_read_memory(pid: int) -> bool:
    """Tell whether a process of the same user, with few capabilities, may trace a process."""
    command = ["setpriv", *FEW_CAPABILITIES, "head", "-c", "0", f"/proc/{pid}/mem"]
    return subprocess.run(command, capture_output=True, timeout=START_S).returncode == 0


def check_forwarder(pid: int) -> None:
    """Assert that a forwarder has given up everything, in each of its threads."""
    threads = threads_of(pid)
    held = [sum(int(thread[name], 16).bit_count() for name in CAPABILITY_SETS) for thread in threads]
    figure("capabilities of a thread of the forwarder", held, "in all sets")
    assert set(held) == {0}
    for thread in threads:
        assert (thread["NoNewPrivs"], thread["Seccomp"]) == ("1", "2")
    assert not can_read_memory(pid)
    limits = Path(f"/proc/{pid}/limits").read_text(encoding="ascii")
    assert "Max core file size 0 0" in " ".join(limits.split())


def test_case_145_forwarder_has_nothing_left(pair: Pair) -> None:
    """No thread has a capability or a system call too many; memory is closed, and no file can be written."""
    daemon = pair.daemons["a"]
    pid = daemon.status()["forwarder"]["pid"]
    assert len(threads_of(pid)) == 3
    check_forwarder(pid)
    assert list_writable(pid) <= {
        *("/dev/null", "/dev/net/tun", "socket", "anon_inode"),
        *("/memfd:overlayd-counters (deleted)", "/memfd:overlayd-fib (deleted)"),  # the second is sealed
        *("anon_inode:[eventpoll]", "anon_inode:[eventfd]", "anon_inode:[signalfd]"),
        str(daemon.run_dir / "forwarder.log"),
    }
    with subprocess.Popen(["setpriv", *NO_CAPABILITIES, "sleep", "60"]) as other:  # not so anybody else's
        try:
            wait_for(lambda: can_read_memory(other.pid), "memory of another process")
        finally:
            other.kill()


def test_forwarder_is_served_first(tmp_path: Path) -> None:
    """One that may has more weight than others, still so when it has given up everything."""
    command = [*OVERLAYD, "forwarder", "--run-dir", str(tmp_path)]
    wanted = min(footing.NICE, os.getpriority(os.PRIO_PROCESS, 0))  # who has more already keeps it
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True) as process:
        try:
            wait_for((tmp_path / "forwarder.sock").exists, "it serves", START_S)
            assert os.getpriority(os.PRIO_PROCESS, process.pid) == wanted
        finally:
            process.kill()


def test_case_145_forwarder_works_with_what_is_left(pair: Pair) -> None:
    """Under its filter it is stopped and woken, told tables, taken over and given other settings."""
    daemon = pair.daemons["a"]
    pid = daemon.status()["forwarder"]["pid"]
    generation = daemon.counters.header().generation
    usual = list(daemon.flags)
    with Load(pair) as load:
        os.kill(pid, signal.SIGSTOP)
        os.kill(pid, signal.SIGCONT)
        load.flow_on(1000)
        daemon.write_peers(peers_file(EXTRA))
        wait_for(lambda: daemon.counters.header().generation > generation, "another table")
        load.flow_on(1000)
    assert load.lost() == 0
    kill(daemon)
    daemon.flags = [*usual, "--disable", "udp-gso"]  # without another TUN: GO to the same process
    daemon.start()
    with Load(pair) as load:
        pass
    assert load.lost() == 0
    assert daemon.status()["forwarder"]["pid"] == pid
    assert not any("confined" in warning for warning in daemon.status()["warnings"])
    check_forwarder(pid)
    daemon.flags = usual
    daemon.write_peers(peers_file())
    kill(daemon)
    daemon.start()


def capabilities(pid: int) -> dict[str, int]:
    """Return the capability sets of a process, which must be the same in all of its threads."""
    found = {tuple(int(thread[name], 16) for name in CAPABILITY_SETS) for thread in threads_of(pid)}
    assert len(found) == 1
    return dict(zip(CAPABILITY_SETS, found.pop(), strict=True))


def test_case_145_control_keeps_what_it_needs(pair: Pair) -> None:
    """Control has three capabilities, hands two to its children, can get no other, and closes its memory."""
    daemon = pair.daemons["a"]
    assert daemon.process is not None
    pid = daemon.process.pid
    assert capabilities(pid) == {
        "CapPrm": NET_ADMIN | NET_RAW | NET_BIND_SERVICE,
        "CapEff": NET_ADMIN | NET_RAW | NET_BIND_SERVICE,
        "CapInh": NET_ADMIN | NET_RAW,
        "CapAmb": NET_ADMIN | NET_RAW,
        "CapBnd": 0,
    }
    assert {thread["NoNewPrivs"] for thread in threads_of(pid)} == {"1"}
    assert not can_read_memory(pid)


def test_case_145_children_of_control(pair: Pair) -> None:
    """What control starts has no more than two capabilities, and of its environment nothing but a path."""
    daemon, space = pair.daemons["b"], pair.spaces["b"]
    spy = daemon.directory / "spy"
    spy.mkdir()
    program = spy / "nft"
    program.write_text(f'#!/bin/sh\n(env; cat /proc/self/status) >> {spy}/seen\nexec /usr/sbin/nft "$@"\n')
    program.chmod(0o755)
    daemon.stop()
    secret = {"PATH": f"{spy}:{os.environ['PATH']}", "OVERLAYD_ETCD_PASSWORD": "s3cret"}
    with daemon.log_path.open("ab") as log:
        daemon.process = subprocess.Popen(
            daemon.run_command(), stdout=log, stderr=log, cwd=ROOT, env={**os.environ, **secret}
        )
    wait_for(lambda: is_ready(daemon), "ready", START_S)
    seen = (spy / "seen").read_text(encoding="utf-8")
    assert "s3cret" not in seen
    assert "PATH=" in seen
    status = read_status(spy / "seen")
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == NET_ADMIN | NET_RAW
    assert int(status["CapBnd"], 16) == 0
    assert "overlayd-overlay0" in space.run("nft", "list", "tables").stdout


@pytest.fixture
def unconfined(pair: Pair) -> Iterator[Daemon]:
    """Yield node `a` with a forwarder whose kernel seems to know no filters."""
    daemon = pair.daemons["a"]
    daemon.stop()
    subprocess.run(daemon.command("down"), cwd=ROOT, check=True, timeout=START_S)
    forget_counters(daemon)
    words = [*OVERLAYD, "forwarder", "--run-dir", str(daemon.run_dir)]
    forwarder = subprocess.Popen([*refusing(SECCOMP), *words], cwd=ROOT)
    daemon.flags.append("--forwarder=wait")
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.flags.remove("--forwarder=wait")
        daemon.stop()
        subprocess.run(daemon.command("down"), cwd=ROOT, check=True, timeout=START_S)
        forwarder.kill()
        forwarder.wait()
        restart(daemon)


def test_case_145_without_seccomp_is_told(pair: Pair, unconfined: Daemon) -> None:
    """Where the kernel has no filters the forwarder works nevertheless, and `status` says what is missing."""
    with Load(pair) as load:
        pass
    assert load.lost() == 0
    told = [warning for warning in unconfined.status()["warnings"] if "confined" in warning]
    assert len(told) == 1
    assert "CONFIG_SECCOMP_FILTER" in told[0]


def parent_of(pid: int) -> int:
    """Return who started a process."""
    return int(read_status(Path(f"/proc/{pid}/status"))["PPid"])


def test_case_145_killed_by_the_filter_is_told(pair: Pair) -> None:
    """A forwarder killed for a system call is replaced, and the log says what it was killed for."""
    daemon = pair.daemons["b"]
    assert daemon.process is not None
    while parent_of(daemon.status()["forwarder"]["pid"]) != daemon.process.pid:  # an earlier control's
        wait_for(lambda: daemon.status()["forwarder"]["spare"], "a spare", START_S)
        replace_forwarder(daemon, signal.SIGKILL)
    pid = replace_forwarder(daemon, signal.SIGSYS)
    wait_for(lambda: f"killed for a system call that it may not make pid={pid}" in daemon.log(), "a word")
    with Load(pair) as load:
        pass
    assert load.lost() == 0
