# SPDX-License-Identifier: Apache-2.0
"""What a soak has shown: the slope of memory, what was lost and when, the books. Pure.

A slope is fitted by least squares through the least figure of each of BLOCKS equal spans, so that what a
process takes and gives back counts for nothing; its error is half of the 95 % confidence interval. Memory
fails if it grew for sure by more than GROWTH_MIB a day, or in the whole run if that is shorter.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

BLOCKS = 10
STUDENT_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306}  # 95 %
GROWTH_MIB = 1.0
DAY_S, HOUR_S = 86400.0, 3600.0
BATCH_MAX = 64  # packets that a forwarder has in hand at a time, each way
BEFORE_S, AFTER_S = 0.1, 0.5  # what belongs to a window: what was on its way, what still waited

Points = Sequence[tuple[float, float]]  # seconds, figure


@dataclass(frozen=True, slots=True)
class Slope:
    """How a figure grows, per hour, and how sure that is."""

    per_hour: float
    error: float  # infinite if there are too few points to say
    span_s: float

    @property
    def surely(self) -> float:
        """What it grows by at least."""
        return self.per_hour - self.error


@dataclass(frozen=True, slots=True)
class Gap:
    """Packets of one flow that did not come, and between which times those around them were sent."""

    flow: str
    count: int
    from_s: float
    to_s: float


@dataclass(frozen=True, slots=True)
class Window:
    """When something was announced that costs packets: from its begin until another forwarder carries."""

    cause: str
    from_s: float
    to_s: float

    def holds(self, gap: Gap) -> bool:
        """Tell whether a gap may be of this."""
        return gap.from_s <= self.to_s + AFTER_S and gap.to_s >= self.from_s - BEFORE_S


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the verdict."""

    name: str
    is_good: bool
    text: str


def blocks_of(points: Points) -> list[tuple[float, float]]:
    """Return the least figure of each span, at the middle of it."""
    if len(points) < 2:
        return list(points)
    start, end = points[0][0], points[-1][0]
    width = (end - start) / BLOCKS or 1.0
    spans: list[list[float]] = [[] for _ in range(BLOCKS)]
    for at, figure in points:
        spans[min(int((at - start) / width), BLOCKS - 1)].append(figure)
    return [(start + (turn + 0.5) * width, min(found)) for turn, found in enumerate(spans) if found]


def fit(points: Points) -> Slope:
    """Return the slope of a figure over time."""
    span_s = points[-1][0] - points[0][0] if points else 0.0
    found = blocks_of(points)
    if len(found) < 3:
        return Slope(0.0, math.inf, span_s)
    times = [at / HOUR_S for at, _ in found]
    figures = [figure for _, figure in found]
    line = statistics.linear_regression(times, figures)
    middle = statistics.fmean(times)
    left = sum((y - line.intercept - line.slope * x) ** 2 for x, y in zip(times, figures, strict=True))
    spread = sum((x - middle) ** 2 for x in times)
    free = len(found) - 2
    return Slope(line.slope, STUDENT_T[free] * math.sqrt(left / free / spread), span_s)


def judge_memory(name: str, mib: Points) -> Finding:
    """Judge the memory of a process that lived all along; `mib` without what it took to warm up."""
    slope = fit(mib)
    if not math.isfinite(slope.error):
        return Finding(f"memory {name}", False, "too few samples to tell")
    allowed = GROWTH_MIB * HOUR_S / min(slope.span_s, DAY_S)
    text = (
        f"{slope.per_hour:+.2f} ± {slope.error:.2f} MiB/h over {slope.span_s:.0f} s from {mib[0][1]:.1f} MiB "
        f"({slope.per_hour * slope.span_s / HOUR_S:+.2f} MiB in all; {allowed:.2f} MiB/h allowed)"
    )
    return Finding(f"memory {name}", slope.surely <= allowed, text)


def judge_flat(name: str, points: Points) -> Finding:
    """Judge a number of things that a process holds: the least at last is no more than the most at first."""
    figures = [figure for _, figure in points]
    third = len(figures) // 3
    if not third:
        return Finding(name, False, "too few samples to tell")
    most, least = max(figures[:third]), min(figures[-third:])
    return Finding(name, least <= most, f"at most {most:g} at first, at least {least:g} at last")


def sort_gaps(gaps: Iterable[Gap], windows: Sequence[Window]) -> tuple[list[Gap], dict[Window, list[Gap]]]:
    """Return the gaps that nothing announced, and those of each window."""
    free: list[Gap] = []
    held: dict[Window, list[Gap]] = {}
    for gap in gaps:
        window = next((window for window in windows if window.holds(gap)), None)
        if window is None:
            free.append(gap)
        else:
            held.setdefault(window, []).append(gap)
    return free, held


def judge_gaps(name: str, gaps: Iterable[Gap], windows: Sequence[Window], causes: str) -> Finding:
    """Judge what was lost: nothing outside of the windows, a batch each way inside of one."""
    free, held = sort_gaps(gaps, windows)
    inside = sum(gap.count for found in held.values() for gap in found)
    large = [
        gap
        for found in held.values()
        for gap in found
        if sum(other.count for other in found if other.flow == gap.flow) > BATCH_MAX
    ]
    text = f"{sum(gap.count for gap in free)} lost outside of the {len(windows)} windows, {inside} inside"
    for gap in [*free, *large][:5]:
        text += f"; {gap.flow}: {gap.count} from {gap.from_s:.2f} s to {gap.to_s:.2f} s"
    if free or large:
        text += f"; where packets were dropped: {causes or 'nowhere that is counted'}"
    return Finding(name, not free and not large, text)


def is_passed(findings: Iterable[Finding]) -> bool:
    """Tell whether all is as it should be."""
    return all(finding.is_good for finding in findings)
