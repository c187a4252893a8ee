# SPDX-License-Identifier: Apache-2.0
"""Who is served first by the processors: forwarders, as far as somebody privileged lets them."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from dataplane import footing

SYS_NICE, SYS_RESOURCE = 23, 24
ROOT = Path(__file__).resolve().parents[2]
SHARE = Path("/proc/self/autogroup")
HERE = os.getpriority(os.PRIO_PROCESS, 0)  # the whole suite may have been given more weight, or less
LIMIT = resource.getrlimit(resource.RLIMIT_NICE)[0]
# What a process is after it has done something: its nice value, that of its session, and what it may ask for.
CODE = """
import os, resource, sys
from pathlib import Path
from dataplane import footing
for name in sys.argv[1:]:
    getattr(footing, name)()
print(os.getpriority(os.PRIO_PROCESS, 0), resource.getrlimit(resource.RLIMIT_NICE)[0])
share = Path("/proc/self/autogroup")
print(share.read_text() if share.exists() else "")
"""


def read_share(text: str) -> str:
    """Return the nice value of a session; `-` where there is none, as for what the kernel started itself."""
    return text.split()[-1] if text.strip() else "-"


def may(capability: int) -> bool:
    """Tell whether we have a capability."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return bool(
        int(next(line for line in lines if line.startswith("CapEff")).split()[1], 16) >> capability & 1
    )


def become(*names: str, before: tuple[str, ...] = (), is_leader: bool = True) -> tuple[int, int, str]:
    """Return what a process in a session of its own is after it has called functions of footing.py."""
    command = [*before, sys.executable, "-c", CODE, *names]
    numbers, _, share = subprocess.run(
        command, cwd=ROOT, start_new_session=is_leader, capture_output=True, text=True, check=True
    ).stdout.partition("\n")
    nice, limit = map(int, numbers.split())
    return nice, limit, read_share(share)


NEEDS_NICE = pytest.mark.skipif(not may(SYS_NICE), reason="takes CAP_SYS_NICE")


@NEEDS_NICE
def test_a_forwarder_favours_itself_and_its_session() -> None:
    """One that may has more weight, and so has its session; that of somebody else it leaves alone."""
    nice, _, share = become("favour")
    assert nice == min(footing.NICE, HERE)
    assert share in (str(footing.NICE), "-")
    nice, _, share = become("favour", is_leader=False)
    assert nice == min(footing.NICE, HERE)
    assert share == read_share(SHARE.read_text(encoding="ascii") if SHARE.exists() else "")


@NEEDS_NICE
def test_more_weight_is_not_taken_away() -> None:
    """Somebody who gave a forwarder still more weight is not contradicted."""
    assert become("favour", before=("nice", "-n", str(-10 - HERE)))[0] == -10


@pytest.mark.skipif(os.geteuid() != 0 or LIMIT != 0, reason="takes root, who may no more than usual")
def test_without_any_privilege() -> None:
    """One that may not is served as all are, and says nothing of it."""
    nobody = ("setpriv", "--inh-caps=-all", "--ambient-caps=-all", "--bounding-set=-all")
    nice, limit, share = become("let_forwarders_first", "favour", before=nobody)
    assert (nice, limit) == (HERE, 0)
    assert share in ("0", "-")


def test_forwarders_may_without_privilege() -> None:
    """A forwarder of a control that could raise the limit may, whatever it has given up by then."""
    _, limit, _ = become("let_forwarders_first")
    assert limit == (20 - footing.NICE if may(SYS_RESOURCE) else LIMIT)


SLICE_CODE = """
import ctypes, platform, struct, sys, threading
from dataplane import footing
libc = ctypes.CDLL(None, use_errno=True)
get = {"x86_64": 315, "aarch64": 275}[platform.machine()]
def slices():
    attr = ctypes.create_string_buffer(56)
    assert libc.syscall(get, 0, attr, 56, 0) == 0
    print(struct.unpack_from("=IIQiIQ", attr)[5])
if sys.argv[1:]:
    footing.favour()
slices()
thread = threading.Thread(target=slices)
thread.start()
thread.join()
"""


def slices(*words: str, before: tuple[str, ...] = ()) -> list[int]:
    """Return the slices, in ns, of a process (favoured, if there are words) and of its thread."""
    command = [*before, sys.executable, "-c", SLICE_CODE, *words]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [int(word) for word in said.split()]


@pytest.mark.skipif(slices()[0] == 0, reason="the kernel has no slices of one's own: before Linux 6.12")
def test_a_forwarder_runs_for_less_time_at_once() -> None:
    """Its slice is short, that of the threads that it starts afterwards, too; that of others stays."""
    usual = slices()
    assert usual[0] > footing.SLICE_NS
    assert slices("favour") == [footing.SLICE_NS] * 2
    assert slices() == usual


def test_another_policy_is_left_alone() -> None:
    """Who made a forwarder a process of real time, or the last of all, is not contradicted."""
    assert slices("favour", before=("chrt", "--idle", "0")) == slices(before=("chrt", "--idle", "0"))
