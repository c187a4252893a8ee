# SPDX-License-Identifier: Apache-2.0
"""`make coverage`: what counts as taken, what fails, and that every file of the hot path is looked at."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import coverage
from tests.coverage import CSRC, HOT, Share, faults, share_of, show_missing

LINE = next(
    number
    for number, line in enumerate((CSRC / "pkt.h").read_text(encoding="utf-8").splitlines(), 1)
    if line.startswith("\tif (len > pkt->off)")
)


def test_both_ways_count() -> None:
    """A condition is two branches, each taken if it ever went that way."""
    places = {(1, 1): (5, 7), (2, 1): (0, 3), (3, 1): (0, 0), (4, 1): (1, 0)}
    assert share_of("pkt.h", places) == Share("pkt.h", 4, 8)
    assert Share("pkt.h", 4, 8).part == 0.5
    assert Share("wire.h", 0, 0).part == 1.0


def test_missing_is_named() -> None:
    """A way that was never taken is named with its line; a condition that went both ways is not."""
    shown = [*show_missing("pkt.h", {(LINE, 6): (0, 3)}), *show_missing("pkt.h", {(LINE, 6): (3, 0)})]
    shown += [*show_missing("pkt.h", {(LINE, 6): (0, 0)}), *show_missing("pkt.h", {(LINE, 6): (1, 1)})]
    code = f"pkt.h:{LINE}:6: never {{}}: if (len > pkt->off)"
    assert shown == [code.format("true"), code.format("false"), code.format("reached")]


def test_less_fails() -> None:
    """A file with too few branches taken fails, as does one of which nothing was measured."""
    shares = {"tx.c": Share("tx.c", 95, 100), "rx.c": Share("rx.c", 94, 100)}
    assert list(faults(shares, ["tx.c", "rx.c", "csum.c"])) == [
        "rx.c: 94.0% of the branches are taken; at least 95% are wanted",
        "csum.c: nothing of it was measured",
    ]


def test_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It ends with 1 if one file fails, and with 0 if none does."""
    monkeypatch.setattr(coverage, "BUILD", tmp_path)
    monkeypatch.setattr(coverage, "build", lambda pool: {})
    monkeypatch.setattr(coverage, "measure", lambda pool, built: CSRC)
    monkeypatch.setattr(coverage, "read_branches", lambda built, profile: {"tx.c": {(1, 1): (1, 1)}})
    assert coverage.main(["tx.c"]) == 0
    assert "tx.c" in capsys.readouterr().out
    assert coverage.main(["tx.c", "rx.c"]) == 1
    assert capsys.readouterr().err == "rx.c: nothing of it was measured\n"


def test_hot_path_is_there() -> None:
    """Every file of the hot path exists, and those that a packet meets by the map are all in it."""
    assert all((CSRC / name).is_file() for name in HOT)
    assert {"parse.c", "encap.c", "offload.c", "split.c", "merge.c", "tx.c", "rx.c"} <= set(HOT)
