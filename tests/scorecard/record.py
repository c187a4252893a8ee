# SPDX-License-Identifier: Apache-2.0
"""What the scorecard writes of a row: figures, marks, verdict and how to run it again. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from bench.figures import shown
from tests.scorecard.rows import PYTHON, Command, Row
from tests.scorecard.verdict import TAKES, Aspect, Figure, Judged, Mark, Run, decide, find, measure

Record = dict[str, Any]  # docs/reliability.md says what is in it


def describe(row: Row, runs: Sequence[Run], figures: Sequence[Figure], is_quick: bool) -> Record:
    """Return what is written of a row, but for time and place."""
    judged = [measure(mark, figures) for mark in row.marks if not (is_quick and mark.is_quota)]
    return {
        "number": row.number,
        "title": row.title,
        "anchor": row.anchor,
        "verdict": decide(runs, judged, is_quick),
        "quick": is_quick,
        "marks": [_mark(each) for each in judged],
        "also": [_aspect(each, figures) for each in row.also],
        "beside": [_aspect(each, figures) for each in row.beside],
        "commands": [{"raw": raw(run.command), "seconds": run.seconds, "status": run.status} for run in runs],
        "figures": [asdict(figure) for figure in figures],
    }


def raw(command: Command) -> str:
    """Return a command as one would type it."""
    words = (".venv/bin/python" if word == PYTHON else word for word in command)
    return " ".join(word if re.fullmatch(r"[\w./:=@-]+", word) else f"'{word}'" for word in words)


def _named(figure: str, of: str) -> str:
    return f"{figure} of {of}" if of else figure


def _with_unit(value: float, unit: str) -> str:
    return f"{shown(value)} {unit}".strip()


def _mark(judged: Judged) -> dict[str, Any]:
    mark = judged.mark
    found = "nothing" if judged.value is None else _with_unit(judged.value, mark.unit)
    sign = "≥" if mark.is_floor or mark.is_quota else "≤"
    return {
        **asdict(mark),
        "value": judged.value,
        "count": judged.count,
        "held": judged.is_held,
        "found": f"{_text(mark)} {found}",
        "wanted": f"{_text(mark)} {sign} {_with_unit(mark.limit, mark.unit)}",
    }


def _text(mark: Mark) -> str:
    return f"{_named(mark.figure, mark.of)}, {mark.take}"


def _aspect(asked: Aspect, figures: Sequence[Figure]) -> dict[str, Any]:
    """Return one thing that is shown; no value if it was not measured."""
    found = find(figures, asked.figure, asked.of)
    value = None if found is None else float(TAKES[asked.take](found.samples))
    shown_as = "nothing" if found is None or value is None else _with_unit(value, found.unit)
    text = f"{_named(asked.figure, asked.of)}, {asked.take} {shown_as}"
    return {**asdict(asked), "value": value, "found": text}
