# SPDX-License-Identifier: Apache-2.0
"""The self-test on the kernel of this machine: everything is proved, quickly, and nothing stays.

this process ── a thread in a namespace of its own: lo, scratch0 (TUN)

The drawing for `overlayd run` is in pair.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataplane import native
from dataplane.model import ALL_OFFLOADS
from tests.e2e.pair import START_S, Load, Pair, kill
from tests.e2e.rig import ROOT

LIMIT_S = 0.5
TESTED = "offloads tested"  # in the log of `overlayd run`

# For a user who may make two network namespaces; the kernel takes ended ones away some time later.
MANY_TIMES = """
import errno
from pathlib import Path
from bench.lab import wait_for
from dataplane import native
from dataplane.errors import KernelError
from dataplane.model import ALL_OFFLOADS

def is_proved():
    try:
        return native.selftest(int(ALL_OFFLOADS)) == {}
    except KernelError as err:
        assert err.errno == errno.ENOSPC
        return False

Path("/proc/sys/user/max_net_namespaces").write_text("2")
for time in range(6):
    wait_for(is_proved, f"self-test {time}", 5.0)
"""
# For one who may make none.
FORBIDDEN = """
from pathlib import Path
from dataplane import journal
from dataplane.backend.offloads import Offloads
from dataplane.model import ALL_OFFLOADS

Path("/proc/sys/user/max_net_namespaces").write_text("0")
journal.set_up("debug", "text")
offloads = Offloads((), "6.18.44")
offloads.prove()
assert offloads.of_tun | offloads.of_sockets() == ALL_OFFLOADS
"""


def run_as_user(script: str) -> str:
    """Run a script in a user namespace, whose limits are its own; return what it logged."""
    command = ["unshare", "--user", "--map-root-user", sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=START_S * 4, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


def look() -> tuple[int, set[str], str]:
    """Return what could be left behind: descriptors, namespaces of threads, devices."""
    namespaces = {str((task / "ns/net").readlink()) for task in Path("/proc/self/task").iterdir()}
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    return len(list(Path("/proc/self/fd").iterdir())), namespaces, links


@pytest.mark.alone
def test_this_kernel_is_proved_and_nothing_stays() -> None:
    """Every offload is proved here in well under half a second; no descriptor, thread or device is left."""
    before = look()
    started_s = time.monotonic()
    failed = native.selftest(int(ALL_OFFLOADS))
    took_s = time.monotonic() - started_s
    assert failed == {}
    assert took_s < LIMIT_S
    assert look() == before


def test_namespaces_end() -> None:
    """The namespaces of the self-test end with it: a user who may have two can make it again and again."""
    run_as_user(MANY_TIMES)


def test_a_host_that_forbids_namespaces() -> None:
    """Where none may be made, what the kernel claims is used, and one line for developers says so."""
    logged = run_as_user(FORBIDDEN)
    assert logged.count("\n") == 1
    assert "DEBUG offloads not tested" in logged
    assert "No space left on device" in logged


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    """Yield a pair that logs what only developers want to know."""
    with Pair(tmp_path, ("--log-level", "debug")) as built:
        yield built


def test_run_tests_at_start_and_takeovers_rely_on_it(pair: Pair) -> None:
    """A start tests once, a takeover does not, and goes by what was found; both say why an offload is off."""
    daemon = pair.daemons["a"]
    assert daemon.log().count(TESTED) == 1
    assert daemon.status()["tier"] == "full"
    kill(daemon)
    facts_path = daemon.run_dir / "run.json"
    facts = json.loads(facts_path.read_text(encoding="utf-8"))
    assert facts["selftest"] == {"tested": int(ALL_OFFLOADS), "failed": {}}
    facts["selftest"]["failed"] = {"udp-gso": "self-test: Input/output error"}
    facts_path.write_text(json.dumps(facts), encoding="utf-8")
    daemon.start()
    assert daemon.log().count(TESTED) == 1
    status = daemon.status()
    assert status["tier"] == "full but udp-gso"
    assert status["offloads"]["udp-gso"] == "off: self-test: Input/output error"
    with Load(pair) as load:
        pass
    assert load.lost() == 0
