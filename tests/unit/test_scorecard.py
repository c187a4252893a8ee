# SPDX-License-Identifier: Apache-2.0
"""The scorecard: only what ran to a good end, was measured and is right is said to pass."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.figures import VARIABLE, figure, p99
from bench.lab import ROOT
from tests.conftest import COLLECTED
from tests.scorecard import page, run
from tests.scorecard.record import Record, describe
from tests.scorecard.rows import ROWS, Command, Row
from tests.scorecard.verdict import TAKES, Aspect, Figure, Mark, Run, Verdict, gather

TOLD = Figure("stall", "ms", (10.0, 30.0, 20.0))
ENDED = Run(("program",), 1.0, 0)
ROW = Row(
    number=99,
    title="a | row",
    anchor="somebody: 7 ms",
    marks=(Mark("stall", "median", 20, "ms", least=3), Mark("stall", "max", 60, "ms")),
    full=(),
    quick=(),
    timeout_s=30.0,
    beside=(Aspect("stall", "max", "kernel"),),
)
FIGURE = "from bench.figures import figure; "


def verdict(*runs: Run, figures: tuple[Figure, ...] = (TOLD,), row: Row = ROW, is_quick: bool = False) -> str:
    """Return what is made of a row."""
    return str(describe(row, runs, figures, is_quick)["verdict"])


def program(text: str) -> Command:
    """Return what runs a few words of Python."""
    return (sys.executable, "-c", FIGURE + text)


def run_row(tmp_path: Path, *commands: Command, limit_s: float = 30.0, row: Row = ROW) -> Record:
    """Run a row of these programs."""
    return run.run_row(row, commands, limit_s, tmp_path, False)


# --- the verdict ------------------------------------------------------------------------------------------


def test_row_passes() -> None:
    """A row passes if all programs ended with 0 and all marks are met."""
    assert verdict(ENDED, ENDED) == "pass"


@pytest.mark.parametrize(
    ("runs", "figures", "expected"),
    [
        pytest.param((), (TOLD,), "not run", id="not run"),
        pytest.param((ENDED, replace(ENDED, status=1)), (TOLD,), "failed", id="failed"),
        pytest.param((replace(ENDED, status=None),), (TOLD,), "timed out", id="timed out"),
        pytest.param((ENDED,), (), "no figure", id="no figure"),
        pytest.param((ENDED,), (replace(TOLD, of="kernel"),), "no figure", id="figure of somebody else"),
        pytest.param((ENDED,), (replace(TOLD, samples=()),), "no figure", id="no samples"),
        pytest.param((ENDED,), (replace(TOLD, samples=(1.0, 2.0)),), "too few samples", id="too few"),
        pytest.param((ENDED,), (replace(TOLD, samples=(1.0, 2.0, 61.0)),), "missed", id="one of two marks"),
        pytest.param((replace(ENDED, status=1),), (replace(TOLD, samples=(70.0,)),), "missed", id="both"),
    ],
)
def test_row_does_not_pass(runs: tuple[Run, ...], figures: tuple[Figure, ...], expected: str) -> None:
    """Whatever is missing or wrong is told as what it is, and never as a pass."""
    assert verdict(*runs, figures=figures) == expected


def test_row_without_marks_does_not_pass() -> None:
    """Where nothing is asked for, nothing is met."""
    assert verdict(ENDED, row=replace(ROW, marks=())) == "no figure"


def test_floors_and_quotas() -> None:
    """A floor is met from below never; how much was to be tried is asked of whole runs only."""
    floor = replace(ROW, marks=(Mark("stall", "median", 20.5, "ms", is_floor=True),))
    quota = replace(ROW, marks=(*ROW.marks, Mark("stall", "sum", 100, "ms", is_quota=True)))
    assert verdict(ENDED, row=floor) == verdict(ENDED, row=quota) == "missed"
    assert verdict(ENDED, row=floor, is_quick=True) == "missed"
    assert verdict(ENDED, row=quota, is_quick=True) == "pass"


def test_few_samples_are_enough_for_a_quick_run() -> None:
    """A quick run may have fewer samples; the table says that it was one."""
    few = (replace(TOLD, samples=(1.0,)),)
    assert verdict(ENDED, figures=few, is_quick=True) == "pass"
    assert page.verdict_of(describe(ROW, (ENDED,), few, True)) == "pass (quick)"


def test_gather_puts_samples_together() -> None:
    """Samples of one figure add up over programs; those of two systems stay apart."""
    lines = [
        {"name": "lost", "of": of, "unit": "packets", "samples": samples}
        for of, samples in (("", [1]), ("kernel", [5]), ("", [2, 3]))
    ]
    assert gather(lines) == (
        Figure("lost", "packets", (1.0, 2.0, 3.0)),
        Figure("lost", "packets", (5.0,), "kernel"),
    )


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (50, 50), (99, 99), (100, 99), (200, 198)])
def test_p99(count: int, expected: int) -> None:
    """Of few samples the largest counts, of many the one that 99 of 100 do not exceed."""
    assert p99([float(n) for n in range(count, 0, -1)]) == expected


# --- programs ---------------------------------------------------------------------------------------------


def test_programs_tell_their_figures(tmp_path: Path) -> None:
    """What programs measure arrives with all samples, and how to run them again stands in the row's file."""
    found = run_row(
        tmp_path, program("figure('stall', [10, 30], 'ms')"), program("figure('stall', [5], 'ms')")
    )
    assert found["verdict"] == "pass"
    assert [each["samples"] for each in found["figures"]] == [(10.0, 30.0, 5.0)]
    assert [mark["value"] for mark in found["marks"]] == [10.0, 30.0]
    assert [each["status"] for each in found["commands"]] == [0, 0]
    assert found["commands"][0]["raw"].startswith(".venv/bin/python -c ")
    written = json.loads((tmp_path / "99.json").read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(found))
    assert {"at", "commit", "machine", "load_before", "load_after", "log"} <= written.keys()
    assert "stall: median 20, p99 30, max 30 of 2 ms" in (tmp_path / "99.log").read_text(encoding="utf-8")


def test_program_that_fails(tmp_path: Path) -> None:
    """One that ends with another status than 0 fails the row, although its figures are good."""
    found = run_row(tmp_path, program("figure('stall', [1, 2, 3], 'ms'); raise SystemExit(3)"))
    assert (found["verdict"], found["commands"][0]["status"]) == ("failed", 3)


def test_program_that_tells_nothing(tmp_path: Path) -> None:
    """One that ends well and measures nothing is no pass, and nothing is left of an earlier run."""
    (tmp_path / "99.figures").write_text("no JSON\n", encoding="utf-8")
    found = run_row(tmp_path, program("pass"))
    assert (found["verdict"], found["figures"]) == ("no figure", [])


@pytest.mark.parametrize("heard", [signal.default_int_handler, signal.SIG_IGN], ids=["front", "background"])
def test_program_that_takes_too_long(tmp_path: Path, heard: Any) -> None:
    """One that does not end is interrupted, so that it can clean up, and the next one is not begun."""
    waiting = program(
        "import signal, pathlib; figure('stall', [1, 2, 3], 'ms')\n"
        "try: signal.pause()\n"
        f"except KeyboardInterrupt: pathlib.Path({str(tmp_path / 'cleaned')!r}).touch()"
    )
    before = signal.signal(signal.SIGINT, heard)
    try:
        found = run_row(tmp_path, waiting, program("figure('stall', [1], 'ms')"), limit_s=1.5)
    finally:
        assert signal.signal(signal.SIGINT, before) == heard
    assert (found["verdict"], len(found["commands"])) == ("timed out", 1)
    assert (tmp_path / "cleaned").exists()


def test_figure_is_printed_alone_without_scorecard(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who runs a test by hand sees the same line."""
    monkeypatch.delenv(VARIABLE, raising=False)
    figure("rate", [28360.2], "packets/s", "kernel")
    assert capsys.readouterr().out == "rate of kernel: 28360 packets/s\n"


# --- all rows ---------------------------------------------------------------------------------------------


def test_earlier_results_are_kept(tmp_path: Path) -> None:
    """A row that is not run again keeps what it was at the same commit, said to be earlier; of no other."""
    found = run_row(tmp_path, program("figure('stall', [1, 2, 3], 'ms')"))
    found |= {"commit": "abc"}
    (tmp_path / "99.json").write_text(json.dumps(found), encoding="utf-8")
    kept = run.recall(ROW, tmp_path, "abc")
    assert page.verdict_of(kept) == "pass (earlier)"
    assert kept["at"] == found["at"]
    for other in ("abd", ""):
        assert page.verdict_of(run.recall(ROW, tmp_path, other)) == "not run"


@pytest.mark.parametrize(
    ("text", "status"), [("figure('stall', [1, 2, 3], 'ms')", 0), ("figure('stall', [90, 90, 90], 'ms')", 1)]
)
def test_status_is_that_of_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, status: int
) -> None:
    """It ends with 1 if a row misses its mark, and all files are written."""
    rows = (replace(ROW, full=(program(text),)), replace(ROW, number=98, full=(program("pass"),)))
    monkeypatch.setattr(run, "ROWS", rows)
    monkeypatch.setattr(run, "NUMBERS", frozenset({98, 99}))
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert run.main(["--out", str(tmp_path), "--only", "99"]) == status
    written = json.loads((tmp_path / "scorecard.json").read_text(encoding="utf-8"))
    assert [row["verdict"] for row in written["rows"]] == ["missed" if status else "pass", "not run"]
    assert "a \\| row" in (tmp_path / "scorecard.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("text", ["", "13;14", "9", "13,,14", "x"])
def test_wrong_rows_are_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong list is refused in a line that says which rows there are."""
    with pytest.raises(SystemExit) as ended:
        run.parse(["--only", text])
    assert ended.value.code == 2
    assert f'"{text}" is no list of rows: there are 10, 11, ' in capsys.readouterr().err


def test_soak_is_read_only_if_it_is_there() -> None:
    """A row that reads what another program left is not run without that."""
    row = replace(ROW, needs="build/no/such/file", full=(program("pass"),), long=(program("1"), program("2")))
    assert run.choose(row, False, False) == ()
    assert run.choose(row, False, True) == row.long


def test_table_takes_the_place_of_the_last_one() -> None:
    """The table goes between its marks; the rest of the document stays as it is."""
    document = f"head\n{page.BEGIN}\nold\n{page.END}\ntail\n"
    assert page.insert(document, "new\n") == f"head\n{page.BEGIN}\nnew\n{page.END}\ntail\n"
    with pytest.raises(ValueError, match="no place for the table"):
        page.insert("head\n", "new\n")


def collect(files: set[str]) -> list[str]:
    """Return the tests of some files."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "", *sorted(files)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.splitlines()


def test_rows_name_tests_that_exist(request: pytest.FixtureRequest) -> None:
    """Each test that a row names is one that pytest knows by that name."""
    ways = [way for row in ROWS for way in (row.full, row.quick, row.long)]
    words = {word for way in ways for command in way for word in command if word.startswith("tests/")}
    files = {word.partition("::")[0] for word in words}
    known = request.config.stash[COLLECTED]  # of a whole run all are known already
    if not files <= {nodeid.partition("::")[0] for nodeid in known}:
        known = collect(files)
    names = {*known, *(nodeid.partition("[")[0] for nodeid in known), *files}
    assert words - names == set()


def test_rows_are_sound() -> None:
    """Each row has a number of its own, marks, and programs for both ways."""
    assert [row.number for row in ROWS] == [*range(10, 31)]
    for row in ROWS:
        assert row.marks
        assert {each.take for each in row.marks} <= TAKES.keys()
        assert {each.take for each in (*row.also, *row.beside)} <= TAKES.keys()
        assert row.full
        assert row.quick


def test_every_row_is_explained() -> None:
    """The document has a line of each row, and a place for the table."""
    text = run.DOCUMENT.read_text(encoding="utf-8")
    assert [int(number) for number in re.findall(r"^\| (\d+) \| `", text, re.MULTILINE)] == [
        row.number for row in ROWS
    ]
    assert page.insert(text, page.markdown([describe(row, (), (), False) for row in ROWS]))
    assert set(Verdict) <= set(re.findall(r"`([a-z ]+)`", text))
