# SPDX-License-Identifier: Apache-2.0
"""Results as SVG: bars with their spread, and the distribution of latency. Pure; no library.

Bars carry class="bar", spreads class="spread" and lines class="line", for whoever counts them.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from xml.sax.saxutils import escape

from bench.matrix import LOADS, Figure
from bench.result import Result, Row, summarise
from bench.table import number

COLOURS = ("#7f7f7f", "#1f77b4", "#2ca02c", "#ff7f0e", "#d62728", "#9467bd", "#8c564b", "#17becf")
WIDTH, LEFT, RIGHT, TOP, PLOT = 960, 60, 20, 60, 280
PERCENTILES = ("0", "25", "50", "75", "90", "99", "99.9", "99.99")
TITLES = {
    "throughput": "TCP throughput",
    "packets": "UDP packets with less than 0.1 % loss",
    "cpu": "CPU per gigabyte at 2 Gbit/s",
}


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: the median, and the spread drawn over it."""

    system: str
    value: float
    low: float
    high: float


def _text(x: float, y: float, said: str, anchor: str = "middle", size: int = 11) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{escape(said)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, look: str = 'stroke="#ddd"') -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" {look}/>'


def _document(parts: list[str], height: float) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}"'
        f' font-family="sans-serif"><rect width="100%" height="100%" fill="white"/>'
    )
    return "\n".join([head, *parts, "</svg>"]) + "\n"


def _legend(systems: list[str], y: float) -> list[str]:
    parts, x = [], float(LEFT)
    for index, system in enumerate(systems):
        colour = COLOURS[index % len(COLOURS)]
        parts.append(f'<rect x="{x:.1f}" y="{y - 9:.1f}" width="10" height="10" fill="{colour}"/>')
        parts.append(_text(x + 14, y, system, "start"))
        x += 34 + 7 * len(system)
    return parts


def _ceiling(value: float) -> float:
    """Return a round number from a value up."""
    if value <= 0:
        return 1.0
    step: float = 10.0 ** math.floor(math.log10(value))
    return next(step * factor for factor in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if step * factor >= value)


def bars(title: str, unit: str, groups: list[tuple[str, list[Bar]]], systems: list[str]) -> str:
    """Draw groups of bars, one colour a system."""
    top = _ceiling(max((bar.high for _, group in groups for bar in group), default=1.0))
    parts = [_text(LEFT, 22, f"{title} ({unit})", "start", 16), *_legend(systems, 44)]
    for quarter in range(5):
        y = TOP + PLOT * (1 - quarter / 4)
        parts += [
            _line(LEFT, y, WIDTH - RIGHT, y),
            _text(LEFT - 6, y + 4, f"{top * quarter / 4:g}", "end"),
        ]
    room = (WIDTH - LEFT - RIGHT) / max(len(groups), 1)
    for place, (label, group) in enumerate(groups):
        x0 = LEFT + room * (place + 0.08)
        step = min(room * 0.84 / max(len(systems), 1), 90.0)
        parts.append(_text(x0 + step * len(systems) / 2, TOP + PLOT + 18, label))
        for bar in group:
            index = systems.index(bar.system)
            x, height = x0 + step * index, PLOT * bar.value / top
            y = TOP + PLOT - height
            parts.append(
                f'<rect class="bar" x="{x:.1f}" y="{y:.1f}" width="{step * 0.86:.1f}" height="{height:.1f}"'
                f' fill="{COLOURS[index % len(COLOURS)]}"><title>{escape(bar.system)}</title></rect>'
            )
            middle = x + step * 0.43
            ends = [TOP + PLOT * (1 - value / top) for value in (bar.low, bar.high)]
            parts.append(_line(middle, ends[0], middle, ends[1], 'class="spread" stroke="#222"'))
            parts.append(_text(middle, min(y, ends[1]) - 4, number(bar.value), size=10))
    return _document(parts, TOP + PLOT + 36)


def _percentile_medians(row: Row) -> dict[str, float]:
    """Return the median over all rounds of each percentile that is drawn."""
    found = [s["detail"]["percentiles_us"] for s in row.samples if "figures" in s]
    drawn = [name for name in PERCENTILES if found and all(name in one for one in found)]
    return {name: statistics.median(one[name] for one in found) for name in drawn}


def latency(title: str, lines: list[tuple[str, dict[str, float]]]) -> str:
    """Draw half a round trip over the percentiles, both axes logarithmic; one line a system."""
    values = [value for _, line in lines for value in line.values() if value > 0] or [1.0, 10.0]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    high = max(high, low + 1)
    parts = [
        _text(LEFT, 22, f"{title} (us, half the round trip)", "start", 16),
        *_legend([system for system, _ in lines], 44),
    ]
    for power in range(low, high + 1):
        y = TOP + PLOT * (1 - (power - low) / (high - low))
        parts += [
            _line(LEFT, y, WIDTH - RIGHT, y),
            _text(LEFT - 6, y + 4, f"{10.0**power:g}", "end"),
        ]
    step = (WIDTH - LEFT - RIGHT) / (len(PERCENTILES) - 1 + 0.5)
    at = {name: LEFT + step * (place + 0.25) for place, name in enumerate(PERCENTILES)}
    for name, x in at.items():
        parts.append(_text(x, TOP + PLOT + 18, "least" if name == "0" else f"p{name}"))
    for index, (system, line) in enumerate(lines):
        points = " ".join(
            f"{at[name]:.1f},{TOP + PLOT * (1 - (math.log10(value) - low) / (high - low)):.1f}"
            for name, value in line.items()
            if value > 0
        )
        parts.append(
            f'<polyline class="line" points="{points}" fill="none" stroke-width="2"'
            f' stroke="{COLOURS[index % len(COLOURS)]}"><title>{escape(system)}</title></polyline>'
        )
    return _document(parts, TOP + PLOT + 36)


def curves(title: str, unit: str, lines: list[tuple[str, list[tuple[float, float]]]]) -> str:
    """Draw figures over time, both axes from 0; one line each."""
    points = [point for _, line in lines for point in line]
    right, top = (_ceiling(max((point[axis] for point in points), default=1.0)) for axis in (0, 1))
    across = WIDTH - LEFT - RIGHT
    parts = [_text(LEFT, 22, f"{title} ({unit})", "start", 16), *_legend([name for name, _ in lines], 44)]
    for quarter in range(5):
        x, y = LEFT + across * quarter / 4, TOP + PLOT * (1 - quarter / 4)
        parts += [
            _line(LEFT, y, WIDTH - RIGHT, y),
            _text(LEFT - 6, y + 4, f"{top * quarter / 4:g}", "end"),
            _text(x, TOP + PLOT + 18, f"{right * quarter / 4:g}"),
        ]
    for index, (name, line) in enumerate(lines):
        shown = " ".join(f"{LEFT + across * x / right:.1f},{TOP + PLOT * (1 - y / top):.1f}" for x, y in line)
        parts.append(
            f'<polyline class="line" points="{shown}" fill="none" stroke-width="2"'
            f' stroke="{COLOURS[index % len(COLOURS)]}"><title>{escape(name)}</title></polyline>'
        )
    return _document(parts, TOP + PLOT + 36)


def _bars_of(result: Result, condition: str, load: str, figure: Figure) -> list[Bar]:
    found = []
    for row in result.rows:
        if (row.condition, row.load) == (condition, load):
            summary = summarise(result, row, figure.name)
            if summary:
                found.append(Bar(row.system, summary.median, summary.low, summary.high))
    return found


def draw(result: Result) -> dict[str, str]:
    """Return all plots of a result: file name -> SVG."""
    plots: dict[str, str] = {}
    systems = result.systems()
    for condition in result.conditions():
        for group, title in TITLES.items():
            groups = [
                (figure.title, _bars_of(result, condition, load.name, figure))
                for load in LOADS.values()
                if load.group == group
                for figure in load.figures
            ]
            groups = [(label, found) for label, found in groups if found]
            if groups:
                unit = next(load.figures[0].unit for load in LOADS.values() if load.group == group)
                plots[f"{group}-{condition}.svg"] = bars(f"{title}, {condition}", unit, groups, systems)
        for load in (load for load in LOADS.values() if load.group == "latency"):
            rows = [row for row in result.rows if (row.condition, row.load) == (condition, load.name)]
            lines = [(row.system, _percentile_medians(row)) for row in rows]
            if any(line for _, line in lines):
                title = f"Latency {load.name.removeprefix('latency-')}, {condition}"
                plots[f"{load.name}-{condition}.svg"] = latency(title, lines)
    return plots
