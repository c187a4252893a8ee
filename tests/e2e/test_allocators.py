# SPDX-License-Identifier: Apache-2.0
"""Fifty processes race for fifty subnets of one store, again and again: allocators.py has the racers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.figures import figure
from tests.e2e.allocators import RACERS
from tests.e2e.rig import ROOT

RACE_S = 60


@pytest.mark.parametrize(
    "races",
    [
        pytest.param(2, id="quick"),
        pytest.param(100, id="full", marks=[pytest.mark.soak, pytest.mark.timeout(900)]),
    ],
)
def test_case_121_race(tmp_path: Path, races: int) -> None:
    """Each of fifty racers gets a subnet that no other has, although some stand still in the middle."""
    command = [sys.executable, "-m", "tests.e2e.allocators", str(tmp_path), str(races)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=RACE_S * races)
    assert done.returncode == 0, done.stderr[-2000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    told = [race["told"] for race in found]
    figure("races", [len(found)], "races")
    figure("stood still", [race["stopped"] for race in found], "nodes a race")
    figure("leased twice", [len(race) - len(set(race.values())) for race in told], "subnets")
    figure("nodes without a lease", [RACERS - len(race) for race in told], "nodes")
    assert len(found) == races
    for race in found:
        assert len(set(race["told"].values())) == RACERS
        assert race["told"] == race["kept"]
