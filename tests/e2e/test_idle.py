# SPDX-License-Identifier: Apache-2.0
"""What control costs while nothing happens, with everything on that could wake it up.

far0 ─── veth ─── under0 192.0.2.1  host namespace: overlayd run, a service manager, a scrape now and then
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.lab import Namespace
from tests.e2e.frames import US
from tests.e2e.leased import LEASES, NETWORK
from tests.e2e.test_watched import METRICS, PROBES, Manager, Page, WatchedDaemon, lone_host

LOOK_S = 20.0
SWITCHES_PER_S = 20.0
SHARE = 0.005  # of a core
TICKS = os.sysconf("SC_CLK_TCK")


@pytest.fixture
def host() -> Iterator[Namespace]:
    """Yield a lone host."""
    with lone_host("idle") as space:
        yield space


def switches(pid: int) -> int:
    """Return how often the threads of a process have gone to sleep by themselves."""
    found = 0
    for path in Path(f"/proc/{pid}/task").glob("*/status"):
        lines = path.read_text(encoding="ascii", errors="replace").splitlines()
        found += sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))
    return found


def cpu_s(pid: int) -> float:
    """Return the processor time of a process, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


@pytest.mark.soak
def test_idle(host: Namespace, tmp_path: Path) -> None:
    """At most 0.5 % of a core and 20 voluntary context switches a second, scraped every 10 s."""
    pages = ("--healthz-port", str(PROBES), "--metrics-port", str(METRICS))
    flags = (*pages, "--public-ip", str(US.ip), "--path-probes", "true")
    daemon = WatchedDaemon(host, tmp_path / "node", {"network": NETWORK, "leases": LEASES}, flags)
    daemon.manager = Manager(host)
    try:
        daemon.start()
        assert Page(host, METRICS).metric("ready") == 1  # all is imported
        assert daemon.process is not None
        pid, begun = daemon.process.pid, time.monotonic()
        before, spent_s = switches(pid), cpu_s(pid)
        for _ in range(2):
            select.select([], [], [], LOOK_S / 2)
            assert Page(host, METRICS).get("/metrics")[0] == 200
            assert Page(host, PROBES).get("/readyz")[0] == 200
        took_s = time.monotonic() - begun
        rate, share = (switches(pid) - before) / took_s, (cpu_s(pid) - spent_s) / took_s
    finally:
        daemon.close()
        daemon.manager.close()
    print(f"{rate:.1f} voluntary context switches a second, {100 * share:.2f} % of a core")
    assert rate < SWITCHES_PER_S
    assert share <= SHARE
