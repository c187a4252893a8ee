# SPDX-License-Identifier: Apache-2.0
"""Large tables: how long it takes to put them in force while packets flow, and the memory they take.

The drawing is in pair.py. In `a` a program of its own (publisher.py) takes the place of `overlayd run`, so
that times are those of a process that does nothing else. Bounds are wide, for machines that are busy; the
figures are printed.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.pair import NODES, Load, Pair, kill
from tests.e2e.rig import ROOT

PUBLISH_S = 60.0
WHOLE_MS, CHANGED_MS = 1000, 150  # the targets are 150 and 15 on an idle machine
MEMORY_KIB = 48 << 10


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Yield the pair; at the end each side must have accounted for every packet."""
    with Pair(tmp_path_factory.mktemp("size")) as built:
        yield built


class Publisher:
    """publisher.py at work on host `a`, in the place of its `overlayd run`, which is back afterwards."""

    def __init__(self, pair: Pair, peers: int, times: int) -> None:
        """Prepare to publish tables of that many peers."""
        self._daemon = pair.daemons["a"]
        self._command = [sys.executable, "-m", "tests.e2e.publisher", str(self._daemon.run_dir)]
        self._command += [str(peers), str(times)]

    def __enter__(self) -> Publisher:
        """End control, and wait until the tables to publish are there."""
        kill(self._daemon)
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(self._command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)
        (address, prefix), (far_address, far_prefix) = NODES["a"], NODES["b"]
        far = (f"{far_prefix}.0/24", far_address, "02:4f:00:00:00:02")
        known = {"own": f"{prefix}.0/24", "source": f"{address}/32", "peers": [far]}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{json.dumps(known)}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._daemon.start()

    def publish(self) -> dict[str, Any]:
        """Publish the tables; return the milliseconds it took."""
        said, _ = self._process.communicate("\n", timeout=PUBLISH_S)
        assert self._process.returncode == 0
        return dict(json.loads(said))

    def memory_kib(self) -> dict[str, int]:
        """Return what smaps_rollup says of the forwarder."""
        text = Path(f"/proc/{self._daemon.forwarder_pid()}/smaps_rollup").read_text(encoding="ascii")
        rows = (line.split() for line in text.splitlines()[1:])
        return {name.rstrip(":"): int(size) for name, size, _ in rows}


def test_100000_peers_are_published_under_load(pair: Pair) -> None:
    """Under 10 kpps, 100 000 peers, then one changed after the other: no packet lost, little time taken."""
    with Publisher(pair, 100_000, 20) as publisher, Load(pair) as load:
        took = publisher.publish()
        load.flow_on(1000)
    changed_ms = statistics.median(took["changed"])
    print(f"whole {took['whole']:.0f} ms, one changed {changed_ms:.1f} ms (median of {len(took['changed'])})")
    assert load.lost() == 0
    assert took["whole"] < WHOLE_MS
    assert changed_ms < CHANGED_MS


def test_forwarder_with_10000_peers_is_small(pair: Pair) -> None:
    """A forwarder with 10 000 peers in its table takes at most 48 MiB of memory."""
    with Publisher(pair, 10_000, 2) as publisher:
        publisher.publish()
        with Load(pair) as load:
            load.flow_on()
        memory = publisher.memory_kib()
    print(f"resident {memory['Rss']} KiB, proportional {memory['Pss']} KiB")
    assert load.lost() == 0
    assert memory["Rss"] < MEMORY_KIB
