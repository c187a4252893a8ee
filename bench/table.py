# SPDX-License-Identifier: Apache-2.0
"""Results as text: one table of a result, one of two results side by side. Pure."""

from __future__ import annotations

from bench.matrix import BASELINE, LOADS, Figure
from bench.result import Result, Row, summarise

HEAD = f"{'':<16}{'median':>10} {'least':>10} {'most':>10} {'n':>3}  {'to ' + BASELINE:>15}"


def number(value: float) -> str:
    """Return a figure with as many digits as it deserves."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 20 else f"{value:.2f}"


def _rows(result: Result, condition: str, load: str) -> list[Row]:
    return [row for row in result.rows if (row.condition, row.load) == (condition, load)]


def _block(result: Result, rows: list[Row], figure: Figure) -> list[str]:
    sense = "more is better" if figure.is_more_better else "less is better"
    lines = [f"  {figure.title} ({figure.unit}, {sense})"]
    for row in rows:
        found = summarise(result, row, figure.name)
        if found is None:
            lines.append(f"    {row.system:<16}{'failed':>8}  {row.failures[0] if row.failures else ''}")
            continue
        ratio = "-" if found.ratio is None else f"{found.ratio:.2f}"
        failed = f"  {len(row.failures)} failed" if row.failures else ""
        lines.append(
            f"    {row.system:<16}{number(found.median):>8} {number(found.low):>10} {number(found.high):>10}"
            f" {found.count:>3}  {ratio:>15}{failed}{_marks(row)}"
        )
    return lines


def _marks(row: Row) -> str:
    return "".join(
        f"  [{note}]" if count == len(row.samples) else f"  [{note}: {count} of {len(row.samples)}]"
        for note, count in row.notes.items()
    )


def render(result: Result) -> str:
    """Return all figures of a result: median, spread, ratio to the baseline."""
    machine = result.machine
    lines = [
        f"{machine.get('cpu', '?')}, {machine.get('cpus', '?')} CPUs, Linux {machine.get('kernel', '?')},"
        f" commit {machine.get('commit', '?')}",
        f"plan {result.plan.get('name', '?')}, {result.started}"
        + ("" if result.finished else ", INTERRUPTED: not all samples are there"),
        "A ratio is the median of the ratios round by round. Quote ratios; the figures are this machine's.",
    ]
    for condition in result.conditions():
        lines += ["", f"{condition}", f"  {HEAD}"]
        for load in LOADS.values():
            rows = _rows(result, condition, load.name)
            for figure in load.figures if rows else ():
                lines += _block(result, rows, figure)
    return "\n".join(lines) + "\n"


def compare(before: Result, after: Result) -> str:
    """Return the figures that two results have in common, and how they changed."""
    lines = []
    for name in ("cpu", "cpus", "kernel"):
        if before.machine.get(name) != after.machine.get(name):
            lines.append(
                f"not the same {name}: {before.machine.get(name)} and {after.machine.get(name)};"
                " compare the ratios only"
            )
    lines += [
        f"A {before.started} commit {before.machine.get('commit', '?')}",
        f"B {after.started} commit {after.machine.get('commit', '?')}",
        f"{'':<36}{'A':>10} {'B':>10} {'change':>8}   {'ratio A':>8} {'ratio B':>8}",
    ]
    count = 0
    for row in before.rows:
        other = after.row(row.condition, row.load, row.system)
        for figure in LOADS[row.load].figures if other else ():
            assert other is not None
            a, b = summarise(before, row, figure.name), summarise(after, other, figure.name)
            if a is None or b is None:
                continue
            count += 1
            change = f"{100 * (b.median / a.median - 1):+.0f} %" if a.median else "-"
            ratios = [f"{s.ratio:.2f}" if s.ratio is not None else "-" for s in (a, b)]
            lines += [
                f"{row.condition}: {figure.title}, {row.system} ({figure.unit})",
                f"{'':<36}{number(a.median):>10} {number(b.median):>10} {change:>8}"
                f"   {ratios[0]:>8} {ratios[1]:>8}",
            ]
    if not count:
        lines.append("the two have no figure in common")
    return "\n".join(lines) + "\n"
