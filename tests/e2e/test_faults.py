# SPDX-License-Identifier: Apache-2.0
"""Whatever fails in the running processes or around them: they go on, it is told, and it is over soon.

    wire0 (the test as a peer) ── under0  overlayd ⟵ strace  pod0 ── podw0 (the test as a pod)

Drawn in full at the head of rig.py. `python -m tests.faults` tries every system call with every errno; here
is a slice of that, and what fails by itself: links, disks, queues of the kernel, signals.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.lab import Namespace, stopped, wait_for
from dataplane.errors import RuntimeFailure
from dataplane.footing import STRAYS
from tests.e2e.faulted import ERRNOS, SLACK_S, FaultedRig, share_of
from tests.e2e.leased import value
from tests.e2e.rig import NEIGHBOURS, ROOT, START_S, Daemon
from tests.e2e.test_watched import lone_host
from tests.faults import Matrix, run

IDLE_SHARE = 0.05
LOST = "changes of this host were lost"


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultedRig]:
    """Yield a node for all tests of this file."""
    with FaultedRig(tmp_path_factory.mktemp("faulted") / "node", name="f") as built:
        yield built


@pytest.fixture(scope="module")
def matrix(rig: FaultedRig, tmp_path_factory: pytest.TempPathFactory) -> Matrix:
    """Yield what tries cells."""
    return Matrix(rig, tmp_path_factory.mktemp("strace"))


# --- netlink ----------------------------------------------------------------------------------------


def routes(rig: FaultedRig) -> list[str]:
    """Return our routes, as `ip` shows them."""
    return sorted(rig.dut.run("ip", "route", "show", "proto", "111").stdout.splitlines())


def test_lost_netlink_messages(rig: FaultedRig) -> None:
    """When the kernel lost changes of the host, all is looked at: a route that went meanwhile comes back.

    Those that were not lost are about another table, and would be no reason to look.
    """
    before, told = routes(rig), rig.daemon.log().count(LOST)
    assert rig.daemon.process is not None
    with stopped(rig.daemon.process.pid):
        flood = "".join(
            f"route add 203.0.{i // 256}.{i % 256}/32 dev under0 table 100\n" for i in range(3000)
        )
        rig.dut.ip(flood)
        rig.dut.ip("route del 10.244.0.0/16 dev overlay0\n")
        rig.dut.ip("route flush table 100\n")
    woken_s = time.monotonic()
    wait_for(lambda: routes(rig) == before, "our routes are back", SLACK_S)
    print(f"routes back {time.monotonic() - woken_s:.3f} s after control could read again")
    assert rig.daemon.log().count(LOST) == told + 1
    rig.passes()


# --- system calls ----------------------------------------------------------------------------------


CELLS = (
    ("forwarder", "epoll_wait", "EBADFD", "faults"),
    ("forwarder", "poll", "ENOMEM", "faults"),
    ("forwarder", "accept4", "EMFILE", "faults"),
    ("forwarder", "recvmsg", "EIO", "log"),
    ("forwarder", "sendmsg", "ENOBUFS", "log"),
    ("control", "sendto", "ENOBUFS", "log"),
    ("control", "recvfrom", "ENOBUFS", "log"),
    ("control", "recvmsg", "ENOMEM", "log"),
)
# Of the packet path tests/c/worker_faults.c tries each.
MORE = (
    ("forwarder", "read", "EIO", "faults"),
    ("forwarder", "recvmmsg", "ENOMEM", "faults"),
    ("forwarder", "sendmmsg", "ENOBUFS", "send_full"),
    ("forwarder", "writev", "EIO", "tun_down"),
    ("control", "epoll_wait", "EINTR", ""),
)


@pytest.mark.parametrize(
    ("process", "call", "err", "told"),
    [*CELLS, *(pytest.param(*cell, marks=pytest.mark.soak) for cell in MORE)],
)
def test_case_132_calls_fail(
    rig: FaultedRig, matrix: Matrix, process: str, call: str, err: str, told: str
) -> None:
    """While a call fails no processor time is wasted; one counter or the log tells; then all is as it was."""
    cell = matrix.cell(process, call, err)
    print(f"{process} {call} {err}: {cell}")
    assert cell.injected > 0
    assert list(cell.problems(f"{process} {call} {err}")) == []
    assert cell.told == told
    assert "crashes again and again" not in rig.daemon.log()  # it lived all the time


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_case_132_all_calls(rig: FaultedRig, matrix: Matrix) -> None:
    """The same holds of every system call that the processes make, with every errno."""
    rows = [(process, call) for process, found in matrix.calls().items() for call in found]
    assert len(rows) > 40
    assert run(matrix, rows, ERRNOS) == []


# --- links ------------------------------------------------------------------------------------------


def test_case_135_flapping_link(rig: FaultedRig) -> None:
    """After an underlay that went down and up 20 times packets pass, and nobody has ended."""
    pids = rig.daemon.pids()
    with rig.dut.inside():
        for _ in range(20):
            rig.dut.ip("link set under0 down\n")
            rig.dut.ip("link set under0 up\n")
    rig.dut.ip(NEIGHBOURS.replace("neigh add", "neigh replace"))
    rig.dut.ip("route replace 198.18.0.0/15 via 192.0.2.254 dev under0\n")
    print(
        f"packets pass {rig.passes():.3f} s after the last time, in order {rig.wait_in_order():.3f} s later"
    )
    assert rig.daemon.pids() == pids


# --- signals ----------------------------------------------------------------------------------------


def test_stray_signals(rig: FaultedRig) -> None:
    """Signals that somebody sends by mistake, hundreds of them, end neither process and lose no packet."""
    pids = rig.daemon.pids()
    for number in (*STRAYS, signal.SIGWINCH, signal.SIGCONT, signal.SIGURG, signal.SIGCHLD):
        for _ in range(100):
            for pid in pids.values():
                os.kill(pid, number)
        rig.passes()
    rig.wait_in_order()
    assert rig.daemon.pids() == pids
    wait_for(lambda: share_of(pids["control"], 0.2) < IDLE_SHARE, "control is idle again", SLACK_S)


# --- disks ------------------------------------------------------------------------------------------


def test_full_run_directory(rig: FaultedRig) -> None:
    """While the run directory has no room, changes are taken up all the same, and a warning tells."""
    daemon, mtu = rig.daemon, 1380
    with daemon.full("volatile"):
        rig.dut.ip(f"link set under0 mtu {mtu}\n")
        wait_for(lambda: daemon.settled_status()["mtu"] == mtu - 50, "the MTU in force", START_S)
        status = daemon.status()
        assert status["ready"]
        assert [line for line in status["warnings"] if "run.json" in line] == status["warnings"][:1]
        daemon.put("10.244.9.0/24", value("192.0.2.90", "02:00:00:00:09:09"))
        rig.wait_in_order()
        rig.passes()
    freed_s = time.monotonic()
    wait_for(lambda: not daemon.status()["warnings"], "no warning", START_S)
    print(f"written {time.monotonic() - freed_s:.3f} s after that")
    assert f'"mtu": {mtu}' in (daemon.run_dir / "run.json").read_text(encoding="utf-8")
    rig.dut.ip("link set under0 mtu 1500\n")
    wait_for(lambda: daemon.settled_status()["mtu"] == 1450, "the old MTU", START_S)


@pytest.mark.parametrize("state", ["full", "read_only"])
def test_disk_of_the_subnet_file(rig: FaultedRig, state: str) -> None:
    """While subnet.env cannot be written the node is not ready and says why, and packets flow on."""
    daemon = rig.daemon
    with getattr(daemon, state)("lasting"):
        rig.dut.ip("link set under0 mtu 1400\n")
        daemon.wait_ready(f"cannot write {daemon.subnet_file}")
        assert daemon.status()["control"]["pass_s"] is not None  # what failed is not over
        rig.passes()
    freed_s = time.monotonic()
    daemon.wait_ready()
    print(f"ready {time.monotonic() - freed_s:.3f} s after that")
    assert "FLANNEL_MTU=1350\n" in daemon.subnet_file.read_text(encoding="ascii")
    rig.dut.ip("link set under0 mtu 1500\n")
    wait_for(lambda: daemon.settled_status()["mtu"] == 1450, "the old MTU", START_S)


# --- limits -----------------------------------------------------------------------------------------


@pytest.mark.soak
def test_control_without_memory(rig: FaultedRig) -> None:
    """Control that gets no more memory may end, and packets pass; the next one finds all as it must be."""
    assert rig.daemon.process is not None
    pid, forwarder = rig.daemon.process.pid, rig.daemon.pids()["forwarder"]
    limit = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[0]
    size = int(limit) * resource.getpagesize()
    resource.prlimit(pid, resource.RLIMIT_AS, (size, size))
    for number in range(3):
        with contextlib.suppress(RuntimeFailure):
            rig.stir(number)
        rig.passes()
    ended = rig.daemon.process.poll()
    print("control lives" if ended is None else f"control ended with {ended}: {rig.daemon.log()[-1000:]}")
    rig.daemon.process.kill()
    rig.daemon.process.wait()
    rig.daemon.process = None
    rig.daemon.start()
    rig.wait_in_order()
    rig.passes()
    assert rig.daemon.pids()["forwarder"] == forwarder


@pytest.fixture
def host() -> Iterator[Namespace]:
    """Yield a lone host."""
    with lone_host("faults") as space:
        yield space


@pytest.mark.parametrize("limit", [16, pytest.param(511, marks=pytest.mark.soak)])
def test_case_137_few_files(host: Namespace, tmp_path: Path, limit: int) -> None:
    """With too few files either process says in one line how many it needs, and leaves nothing behind."""
    daemon = Daemon(host, tmp_path / "node", {}, ())
    before = host.run("ip", "-o", "link").stdout
    limited = ["prlimit", f"--nofile={limit}:{limit}"]
    for command, who in ((daemon.run_command(), "run"), (daemon.command("forwarder"), "forwarder")):
        done = subprocess.run([*limited, *command], cwd=ROOT, capture_output=True, text=True, timeout=START_S)
        assert done.returncode == 1
        assert done.stderr == (
            f"overlayd: overlayd {who} may open {limit} files, and needs 512. "
            "Fix: ulimit -n 1024, or LimitNOFILE=1024\n"
        )
    assert not daemon.run_dir.exists()
    assert host.run("ip", "-o", "link").stdout == before
