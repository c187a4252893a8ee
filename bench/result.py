# SPDX-License-Identifier: Apache-2.0
"""The result of a bench as one JSON file: every raw sample, and what it was measured on.

docs/bench.md documents the schema. What is read is checked first: a file that was cut off or edited by hand
is refused with the place that is wrong.
"""

from __future__ import annotations

import json
import math
import os
import statistics
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.matrix import BASELINE, LOADS
from dataplane.errors import ConfigError

SCHEMA = "overlayd-bench/1"


@dataclass(slots=True)
class Row:
    """One load on one system in one condition."""

    condition: str
    load: str
    system: str
    devices: str  # key of Result.devices
    samples: list[dict[str, Any]] = field(default_factory=list)

    def values(self, figure: str) -> dict[int, float]:
        """Return a figure by round, of the samples that did not fail."""
        return {s["round"]: s["figures"][figure] for s in self.samples if "figures" in s}

    @property
    def failures(self) -> list[str]:
        """Return why samples failed."""
        return [s["error"] for s in self.samples if "error" in s]

    @property
    def notes(self) -> Counter[str]:
        """Return what samples have against themselves, and how many do."""
        return Counter(note for sample in self.samples for note in sample.get("notes", ()))


@dataclass(slots=True)
class Result:
    """All of one run."""

    machine: dict[str, Any]
    plan: dict[str, Any]
    started: str
    finished: str | None = None  # None: it was interrupted
    devices: dict[str, dict[str, Any]] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    def row(self, condition: str, load: str, system: str) -> Row | None:
        """Return one row, if there is one."""
        return next(
            (r for r in self.rows if (r.condition, r.load, r.system) == (condition, load, system)), None
        )

    def add(self, condition: str, load: str, system: str, sample: dict[str, Any]) -> None:
        """Add a sample to its row."""
        row = self.row(condition, load, system)
        if row is None:
            row = Row(condition, load, system, f"{condition}/{system}")
            self.rows.append(row)
        row.samples.append(sample)

    def conditions(self) -> list[str]:
        """Return the conditions in the order in which they were run."""
        return list(dict.fromkeys(row.condition for row in self.rows))

    def systems(self) -> list[str]:
        """Return the systems in the order of their first row."""
        return list(dict.fromkeys(row.system for row in self.rows))


@dataclass(frozen=True, slots=True)
class Summary:
    """One figure of one row."""

    median: float
    low: float
    high: float
    count: int
    ratio: float | None  # median of the ratios to the baseline, round by round


def summarise(result: Result, row: Row, figure: str) -> Summary | None:
    """Return median, spread and ratio of a figure; None without a sample."""
    values = row.values(figure)
    if not values:
        return None
    base = result.row(row.condition, row.load, BASELINE)
    bases = base.values(figure) if base else {}
    ratios = [value / bases[number] for number, value in values.items() if bases.get(number)]
    found = list(values.values())
    return Summary(
        statistics.median(found),
        min(found),
        max(found),
        len(found),
        statistics.median(ratios) if ratios else None,
    )


# --- the file ---------------------------------------------------------------------------------------------


def encode(result: Result) -> dict[str, Any]:
    """Return a result as JSON has it."""
    return {
        "schema": SCHEMA,
        "started": result.started,
        "finished": result.finished,
        "machine": result.machine,
        "plan": result.plan,
        "devices": result.devices,
        "rows": [
            {
                "condition": r.condition,
                "profile": r.condition.partition("+")[0],
                "load": r.load,
                "system": r.system,
                "devices": r.devices,
                "units": {f.name: f.unit for f in LOADS[r.load].figures},
                "samples": r.samples,
            }
            for r in result.rows
        ],
    }


def write(result: Result, path: Path) -> None:
    """Write a result in one go: whoever reads the file sees a whole one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(encode(result), indent=1) + "\n", encoding="utf-8")
    beside.replace(path)


class _Place:
    """A value of the file that is read, and where it stands there."""

    def __init__(self, value: Any, where: str) -> None:
        self.value = value
        self.where = where

    def bad(self, what: str) -> ConfigError:
        return ConfigError(f"{self.where} {what}")

    def get(self, name: str, kind: type | tuple[type, ...], what: str) -> Any:
        """Return a field that must be there."""
        if not isinstance(self.value, dict):
            raise self.bad("is no object")
        if name not in self.value:
            raise self.bad(f'lacks "{name}"')
        if not isinstance(self.value[name], kind):
            raise self.bad(f'has a "{name}" that is no {what}')
        return self.value[name]

    def text(self, name: str) -> str:
        return str(self.get(name, str, "text"))

    def table(self, name: str) -> dict[str, Any]:
        return dict(self.get(name, dict, "object"))

    def items(self, name: str) -> list[_Place]:
        values = self.get(name, list, "list")
        return [_Place(value, f"{self.where}, {name}[{i}]") for i, value in enumerate(values)]


def _decode_sample(place: _Place, load: str) -> dict[str, Any]:
    number = place.get("round", int, "number")
    if isinstance(number, bool) or number < 0:
        raise place.bad('has a "round" that is no number from 0')
    if "error" in place.value:
        place.text("error")
        return dict(place.value)
    figures = place.table("figures")
    wanted = {figure.name for figure in LOADS[load].figures}
    if set(figures) != wanted:
        raise place.bad(f"has the figures {sorted(figures)}; those of {load} are {sorted(wanted)}")
    for name, value in figures.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or value < 0:
            raise place.bad(f"has a {name} of {value!r}, which is no measured number")
    return dict(place.value)


def _decode_row(place: _Place, devices: dict[str, Any]) -> Row:
    load = place.text("load")
    if load not in LOADS:
        raise place.bad(f'has the unknown load "{load}"')
    row = Row(place.text("condition"), load, place.text("system"), place.text("devices"))
    if row.devices not in devices:
        raise place.bad(f'refers to the devices "{row.devices}", which are not in the file')
    row.samples = [_decode_sample(sample, load) for sample in place.items("samples")]
    rounds = [sample["round"] for sample in row.samples]
    if len(set(rounds)) != len(rounds):
        raise place.bad("has a round twice")
    return row


def decode(value: Any, where: str) -> Result:
    """Return the result that JSON holds; ConfigError says what is wrong with it."""
    place = _Place(value, where)
    schema = place.text("schema")
    if schema != SCHEMA:
        raise place.bad(f'has the schema "{schema}"; this program reads {SCHEMA}')
    result = Result(place.table("machine"), place.table("plan"), place.text("started"))
    result.finished = place.get("finished", (str, type(None)), "text")
    result.devices = place.table("devices")
    for key, entry in result.devices.items():
        _Place(entry, f"{where}, devices {key}").table("namespaces")
    result.rows = [_decode_row(row, result.devices) for row in place.items("rows")]
    keys = [(row.condition, row.load, row.system) for row in result.rows]
    if len(set(keys)) != len(keys):
        raise place.bad("has a row twice")
    return result


def read(path: Path) -> Result:
    """Read and check a result file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as err:
        raise ConfigError(f"{path}: {err.strerror}") from None
    except ValueError as err:
        raise ConfigError(f"{path} is no JSON: {err}") from None
    return decode(value, str(path))
