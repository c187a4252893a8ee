# SPDX-License-Identifier: Apache-2.0
"""What a test or a bench measured, for people and for the scorecard: one line each.

`figure()` prints the line. Where the scorecard runs the program, it also appends it as JSON, with every
sample, to the file that SCORECARD_FIGURES names.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Sequence
from pathlib import Path

VARIABLE = "SCORECARD_FIGURES"


def figure(name: str, samples: Sequence[float], unit: str, of: str = "") -> None:
    """Tell what was measured; `of` is the system, where that is not overlayd as it comes."""
    print(f"{name}{of and f' of {of}'}: {summary(samples)} {unit}")
    path = os.environ.get(VARIABLE)
    if path:
        line = json.dumps({"name": name, "of": of, "unit": unit, "samples": list(samples)})
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")


def p99(samples: Sequence[float]) -> float:
    """Return what 99 of 100 samples do not exceed; of fewer than 100, the largest."""
    return sorted(samples)[max(0, -(-99 * len(samples) // 100) - 1)]


def shown(value: float) -> str:
    """Return a number in four digits, without exponent where it is large."""
    return f"{value:.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def summary(samples: Sequence[float]) -> str:
    """Return one sample, or what many are like."""
    if len(samples) == 1:
        return shown(samples[0])
    if not samples:
        return "no samples,"
    taken = {"median": statistics.median(samples), "p99": p99(samples), "max": max(samples)}
    return ", ".join(f"{name} {shown(value)}" for name, value in taken.items()) + f" of {len(samples)}"
