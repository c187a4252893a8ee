# SPDX-License-Identifier: Apache-2.0
"""The figures of the last soak: `python -m tests.scorecard.soaked [DIR]` reads what it left."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.figures import figure
from bench.lab import ROOT
from tests.soak.course import Plan, Seen
from tests.soak.run import PROCESSES
from tests.soak.verdict import fit

USUAL = ROOT / "build" / "soak"


def tell(verdict: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Tell how memory grew on the node that is left alone, and what else the verdict says."""
    plan = Plan(minutes=verdict["minutes"])
    seen = Seen(rows=[{name: text for name, text in row.items() if text} for row in rows])
    figure("minutes", [verdict["minutes"]], "min")
    for process in PROCESSES:
        points = seen.points("a", f"{process}_rss_kib", plan.warm_up_s)
        slope = fit([(at_s, kib / 1024) for at_s, kib in points])
        figure("RSS slope", [slope.per_hour], "MiB/h", process)
        figure("± of it, 95 %", [slope.error], "MiB/h", process)
        figure("RSS", [kib / 1024 for _, kib in points], "MiB", process)
        fds = [number for _, number in seen.points("a", f"{process}_fds", plan.warm_up_s)]
        figure("descriptors", fds, "descriptors", process)
    uneven = [int(row[f"{way}_unaccounted"]) for row in rows for way in ("tx", "rx")]
    figure("unaccounted", uneven, "packets")
    wrong = [found for found in verdict["findings"] if not found["good"]]
    figure("findings that are not good", [len(wrong)], "of the verdict")
    for found in wrong:
        print(f"{found['name']}: {found['text']}")


def main(argv: Sequence[str]) -> int:
    """Tell them; return the exit status."""
    directory = Path(argv[0]) if argv else USUAL
    try:
        verdict = json.loads((directory / "verdict.json").read_text(encoding="utf-8"))
        with (directory / "samples.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError as err:
        print(f"soaked: {err.filename} is not there: make soak MINUTES=30 writes it", file=sys.stderr)
        return 1
    tell(verdict, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
