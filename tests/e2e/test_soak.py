# SPDX-License-Identifier: Apache-2.0
"""A short soak, and one of five minutes: the nodes are drawn in tests/soak/field.py."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.soak import run
from tests.soak.course import Plan

UNSAID = ("memory", "fds", "threads")  # seconds say nothing of these


def check(plan: Plan, ignored: tuple[str, ...] = ()) -> None:
    """Run it; all must be as it should be, each kind of trouble must have happened, and be written down."""
    seen = run.soak(plan)
    is_passed = run.report(plan, seen)
    verdict = json.loads((plan.out / "verdict.json").read_text(encoding="utf-8"))
    bad = [found for found in verdict["findings"] if not found["good"]]
    assert [found for found in bad if not found["name"].startswith(ignored)] == []
    assert is_passed is verdict["passed"] is not bool(bad)
    kinds = ("store restarts", "compactions", "control kills", "forwarder kills", "changes of peers")
    assert [kind for kind in kinds if not seen.events[kind]] == []
    assert len(seen.windows) == seen.events["forwarder kills"]
    assert seen.figures["came"] > 0
    assert seen.figures["pings"] > 0
    rows = list(csv.DictReader((plan.out / "samples.csv").read_text(encoding="utf-8").splitlines()))
    assert {row["node"] for row in rows} == {"a", "b"}
    assert all(int(row["rx_offered"]) >= 0 for row in rows)
    assert len({row["control_pid"] for row in rows if row["node"] == "a"}) == 1
    assert len({row["forwarder_pid"] for row in rows if row["node"] == "b"}) > 1
    assert (plan.out / "memory.svg").read_text().count('class="line"') == 4


def test_case_147_seconds(tmp_path: Path) -> None:
    """In some seconds of kills and restarts nothing is lost outside of windows, and the books are even."""
    plan = Plan(0.12, pps=1000, every_s=0.25, pause_s=1.0, has_forwarder_kills=True, out=tmp_path)
    check(plan, UNSAID)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_case_147_five_minutes(tmp_path: Path) -> None:
    """In five minutes neither memory nor descriptors grow, and nothing is lost outside of the windows."""
    check(Plan(minutes=5.0, has_forwarder_kills=True, out=tmp_path))
