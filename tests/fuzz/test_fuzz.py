# SPDX-License-Identifier: Apache-2.0
"""The fuzzers build, get past the front door, and find nothing in a short run. `make fuzz` runs longer."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz import run, seeds

HERE = Path(__file__).resolve().parent
EXECUTIONS = 20_000
SECONDS = 6
# Edges that the seeds alone reach, less some room; far fewer would mean that inputs are refused at the door.
EDGES = {
    "decap_vxlan": 170,
    "decap_ipip": 140,
    "decap_bare": 130,
    "parse": 130,
    "offload_complete": 75,
    "fib_open": 80,
    "lpm": 85,
    "control": 230,
}
# Least share of inputs that get all the way. Hardly any mutation of a whole table is one itself.
ACCEPTED = dict.fromkeys(EDGES, 0.01) | {"fib_open": 0.002}


@pytest.fixture(scope="module", autouse=True)
def _fuzzers() -> None:
    run.build()


def test_every_target_is_run() -> None:
    """No target of this directory is forgotten, and each one states its invariant first."""
    assert {path.stem for path in HERE.glob("*.c")} == set(seeds.TARGETS) == set(EDGES)
    for path in HERE.glob("*.c"):
        lines = path.read_text(encoding="utf-8").splitlines()
        assert lines[1] == "/*"
        assert lines[2].startswith(" * Whatever ")


@pytest.mark.parametrize("target", seeds.TARGETS, ids="case_144-{}".format)
def test_target_finds_nothing(target: str) -> None:
    """Seeds and what mutation makes of them in a few seconds hold the invariant, and reach deep."""
    found = run.fuzz(target, f"-runs={EXECUTIONS}", f"-max_total_time={SECONDS}", "-seed=1")
    assert not found.is_crash, found.log[-4000:]
    assert found.executions > 500
    assert found.coverage >= EDGES[target]
    assert found.accepted > ACCEPTED[target]
