# SPDX-License-Identifier: Apache-2.0
"""What a row of the scorecard asks for, what its programs measured, and whether that is enough. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from bench.figures import p99

TAKES: Mapping[str, Callable[[Sequence[float]], float]] = {
    "median": statistics.median,
    "p99": p99,
    "max": max,
    "min": min,
    "sum": sum,
}


class Verdict(StrEnum):
    """What came of a row."""

    PASS = "pass"
    MISSED = "missed"  # a figure is beyond its mark
    FAILED = "failed"  # a program ended with another status than 0
    TIMED_OUT = "timed out"
    NO_FIGURE = "no figure"  # a figure that a mark is about was not told
    TOO_FEW = "too few samples"
    NOT_RUN = "not run"


@dataclass(frozen=True, slots=True)
class Figure:
    """All samples of one thing that programs measured; `of` is the system, where it is not overlayd."""

    name: str
    unit: str
    samples: tuple[float, ...]
    of: str = ""


@dataclass(frozen=True, slots=True)
class Mark:
    """What is made of a figure, and how much of it is right: at most `limit`, or at least."""

    figure: str
    take: str
    limit: float
    unit: str = ""
    least: int = 1  # samples that a whole run must have; a quick one may have fewer
    of: str = ""
    is_floor: bool = False
    is_quota: bool = False  # a floor of how much was tried: asked of a whole run only

    def holds(self, value: float) -> bool:
        """Tell whether a value is right."""
        return value >= self.limit if self.is_floor or self.is_quota else value <= self.limit


@dataclass(frozen=True, slots=True)
class Aspect:
    """What is to be shown of a figure; of others it is measured by the same row, for comparison."""

    figure: str
    take: str
    of: str = ""


@dataclass(frozen=True, slots=True)
class Run:
    """How one program of a row ended."""

    command: tuple[str, ...]
    seconds: float
    status: int | None  # None: it was ended after its time


@dataclass(frozen=True, slots=True)
class Judged:
    """A mark beside what was measured; no value if there was none."""

    mark: Mark
    value: float | None
    count: int

    @property
    def is_held(self) -> bool:
        """Whether the mark is met."""
        return self.value is not None and self.mark.holds(self.value)


def gather(lines: Iterable[Mapping[str, object]]) -> tuple[Figure, ...]:
    """Put together what was told of each figure, by one program or several."""
    units: dict[tuple[str, str], str] = {}
    samples: dict[tuple[str, str], list[float]] = {}
    for line in lines:
        key = str(line["name"]), str(line["of"])
        told = line["samples"]
        assert isinstance(told, Sequence)
        units[key] = str(line["unit"])
        samples.setdefault(key, []).extend(float(sample) for sample in told)
    return tuple(Figure(name, units[name, of], tuple(found), of) for (name, of), found in samples.items())


def find(figures: Iterable[Figure], name: str, of: str) -> Figure | None:
    """Return a figure that has samples; None if there is none."""
    return next((each for each in figures if (each.name, each.of) == (name, of) and each.samples), None)


def measure(mark: Mark, figures: Sequence[Figure]) -> Judged:
    """Hold a mark against what was measured."""
    found = find(figures, mark.figure, mark.of)
    if found is None:
        return Judged(mark, None, 0)
    return Judged(mark, float(TAKES[mark.take](found.samples)), len(found.samples))


def decide(runs: Sequence[Run], judged: Sequence[Judged], is_quick: bool) -> Verdict:
    """Return what came of a row: it passes if all programs ended well and all marks are met."""
    if not runs:
        return Verdict.NOT_RUN
    if any(each.value is not None and not each.is_held for each in judged):
        return Verdict.MISSED
    if any(run.status is None for run in runs):
        return Verdict.TIMED_OUT
    if any(run.status != 0 for run in runs):
        return Verdict.FAILED
    if not judged or any(each.value is None for each in judged):
        return Verdict.NO_FIGURE
    if not is_quick and any(each.count < each.mark.least for each in judged):
        return Verdict.TOO_FEW
    return Verdict.PASS
