# SPDX-License-Identifier: Apache-2.0
"""Counting instructions: what a dump says, what is a regression, and that it finds one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench import callgrind
from bench.callgrind import Counts, Row, compare, count_engine, read, report, write
from csrc.build_native import CSRC

BEFORE = Counts("12.2.0", "x86_64", "avx2", {"parse": 100.0, "push": 10.0, "gone": 7.0})

# 1 calls 2, which calls libc's 3; 4 is inlined into 2. Only 2 is the engine's.
DUMP = f"""\
positions: line
events: Ir
summary: 1234

fl=(1) /elsewhere/bench/hot.c
fn=(1) case
12 500
cfi=(2) {CSRC}/csum.c
cfn=(2) csum_add
calls=20 30
+1 700
fl=(2)
fn=(2)
30 40
fi=(4) {CSRC}/pkt.h
+3 5
fe=(2)
* 6
cob=(3) /lib/libc.so.6
cfi=(3) ???
cfn=(3) memcpy
calls=20 0
-2 300
-1 1
ob=(3)
fl=(3)
fn=(3)
0 280

totals: 1234
"""


def test_only_the_engine_counts() -> None:
    """A dump's sum has what csrc/ executed, inlined code included, and nothing of callers and libraries."""
    assert count_engine(DUMP) == 40 + 5 + 6 + 1


@pytest.mark.parametrize(
    ("before", "now", "is_worse"),
    [
        (100.0, 105.0, False),
        (100.0, 105.1, True),
        (100.0, 50.0, False),
        (10.0, 11.0, False),
        (10.0, 11.1, True),
        (None, 1e6, False),
        (10.0, None, True),
    ],
)
def test_tolerance(before: float | None, now: float | None, is_worse: bool) -> None:
    """A case is worse above 5 % and one instruction, or when it is not counted any more; a new one never."""
    assert Row("case", before, now).is_worse is is_worse


def test_cases_are_put_side_by_side() -> None:
    """Every case of either run is a row: those of now first, in their order, then those that are gone."""
    now = replace(BEFORE, instructions={"new": 1.0, "push": 9.0, "parse": 100.0})
    assert compare(BEFORE, now) == [
        Row("new", None, 1.0),
        Row("push", 10.0, 9.0),
        Row("parse", 100.0, 100.0),
        Row("gone", 7.0, None),
    ]


def test_regression_ends_with_1_and_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    """One case above the tolerance is marked, named below the table, and makes the status 1."""
    now = replace(BEFORE, instructions={**BEFORE.instructions, "parse": 120.0})
    assert report(BEFORE, now) == 1
    *table, verdict = capsys.readouterr().out.splitlines()
    assert [line.split() for line in table if "WORSE" in line] == [
        ["parse", "100.0", "120.0", "+20.0%", "WORSE"]
    ]
    assert "parse" in verdict
    assert "push" not in verdict
    assert report(BEFORE, BEFORE) == 0


@pytest.mark.parametrize("field", ["gcc", "machine", "vectors"])
def test_other_compiler_or_cpu_gets_no_verdict(field: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Counts of another compiler, machine or set of vectors are shown and named, but never fail."""
    others = {"gcc": replace(BEFORE, gcc="other"), "machine": replace(BEFORE, machine="other")}
    others["vectors"] = replace(BEFORE, vectors="other")
    now = replace(BEFORE, instructions={**BEFORE.instructions, "parse": 120.0})
    assert report(others[field], now) == 0
    printed = capsys.readouterr().out
    assert "120.0" in printed
    assert f"{field} {getattr(now, field)} instead of other" in printed


def test_baseline_in_the_repository_is_readable() -> None:
    """The baseline names its compiler and has a count for each case."""
    baseline = read(callgrind.BASELINE)
    assert baseline.gcc
    assert {"csum_packet", "parse_tcp4", "vxlan_push", "split_super", "merge_burst"} <= set(
        baseline.instructions
    )
    assert min(baseline.instructions.values()) > 0


def test_counting_for_real(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two counts of the same code are equal; where the baseline is lower for one case, that one fails."""
    baseline, second = tmp_path / "baseline.json", tmp_path / "second.json"
    assert callgrind.main(["--update", "--baseline", str(baseline)]) == 0
    counts = read(baseline)
    assert set(counts.instructions) == set(read(callgrind.BASELINE).instructions)
    lower = {**counts.instructions, "parse_tcp4": counts.instructions["parse_tcp4"] / 2}
    write(replace(counts, instructions=lower), baseline)
    assert callgrind.main(["--baseline", str(baseline), "--json", str(second)]) == 1
    assert read(second) == counts
    worse = [line for line in capsys.readouterr().out.splitlines() if line.endswith("WORSE")]
    assert [line.split()[0] for line in worse] == ["parse_tcp4"]
