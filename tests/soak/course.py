# SPDX-License-Identifier: Apache-2.0
"""The course of a soak: what is done when, while traffic flows, and what is seen of it."""

from __future__ import annotations

import csv
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bench.lab import ROOT
from tests.soak import gauge
from tests.soak.field import OVERLAYD, Field
from tests.soak.flow import Flow
from tests.soak.verdict import Gap, Window

CHANGES_PER_S = 10
LOOK_S = 0.25  # whether all is well again
PATIENCE_S = 60.0  # with a busy machine, where a short run is too short
WARM_UP_S, WARM_UP_SHARE = 120.0, 0.25  # the lesser of both counts for nothing


@dataclass(frozen=True, slots=True)
class Plan:
    """What was asked for."""

    minutes: float = 5.0
    seed: int = 147
    pps: int = 4000
    every_s: float = 2.0
    pause_s: float = 8.0
    has_forwarder_kills: bool = False
    out: Path = ROOT / "build" / "soak"

    @property
    def warm_up_s(self) -> float:
        """For how long memory may grow."""
        return min(WARM_UP_S, WARM_UP_SHARE * 60 * self.minutes)


@dataclass(slots=True)
class Seen:
    """What the soak has seen."""

    rows: list[gauge.Row] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    ping_gaps: list[Gap] = field(default_factory=list)
    windows: list[Window] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    misled: dict[str, str] = field(default_factory=dict)
    events: Counter[str] = field(default_factory=Counter)
    figures: dict[str, int] = field(default_factory=dict)

    def points(self, node: str, column: str, since_s: float = 0.0) -> list[tuple[float, float]]:
        """Return a column of a node over time."""
        rows = [row for row in self.rows if row["node"] == node and column in row]
        return [(at, float(row[column])) for row in rows if (at := float(row["time_s"])) >= since_s]


@dataclass(slots=True)
class Clock:
    """Something that is done again and again; it may say itself when it is due next."""

    act: Callable[[], float | None]
    every_s: float
    due_s: float

    def tick(self, now_s: float) -> None:
        """Do it if it is due; what was missed is not made up for."""
        if now_s >= self.due_s:
            pause_s = self.act()
            self.due_s = max(self.due_s + self.every_s, now_s) if pause_s is None else now_s + pause_s


class Troubles:
    """What befalls the nodes: each kind once, in an order of its own, then all of them again."""

    def __init__(self, place: Field, plan: Plan, rng: random.Random, events: Counter[str]) -> None:
        """Nothing has happened yet."""
        self._field, self._plan, self._rng, self._events = place, plan, rng, events
        self._is_stopped = False
        self._ahead: list[str] = []
        self._kinds: dict[str, Callable[[], None]] = {
            "store restarts": self._stop_store,
            "compactions": place.compact,
            "control kills": place.kill_control,
        }
        if plan.has_forwarder_kills:
            self._kinds["forwarder kills"] = place.kill_forwarder

    def _stop_store(self) -> None:
        self._field.stop_store()
        self._is_stopped = True

    def next(self) -> float:
        """Let the next thing happen if all is well; return when to come again."""
        pause_s = self._rng.uniform(0.5, 1.0) * self._plan.pause_s
        if self._is_stopped:
            self.end()
            return pause_s
        if not self._field.is_well():
            return LOOK_S
        if not self._ahead:
            self._ahead = self._rng.sample(sorted(self._kinds), len(self._kinds))
        kind = self._ahead.pop()
        self._kinds[kind]()
        self._events[kind] += 1
        return pause_s

    def is_through(self) -> bool:
        """Tell whether everything has happened at least once."""
        return all(self._events[kind] for kind in self._kinds)

    def end(self) -> None:
        """Leave nothing stopped."""
        if self._is_stopped:
            self._field.start_store()
            self._is_stopped = False


class Soak:
    """What goes on while the traffic flows."""

    def __init__(self, plan: Plan, place: Field, flow: Flow, rng: random.Random) -> None:
        """Begin now; samples go to a file, too."""
        self.seen = Seen()
        self._plan, self._field, self._flow = plan, place, flow
        self._troubles = Troubles(place, plan, rng, self.seen.events)
        self.begun_s = time.monotonic()
        self._file = (plan.out / "samples.csv").open("w", encoding="utf-8", newline="")
        self._csv = csv.DictWriter(self._file, gauge.COLUMNS, restval="")
        self._csv.writeheader()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def run(self) -> None:
        """Go on for as long as was asked for, and until everything has happened; then let all be well."""
        clocks = [
            Clock(self._change, 1 / CHANGES_PER_S, self.begun_s),
            Clock(self.sample, self._plan.every_s, self.begun_s),
            Clock(self._troubles.next, self._plan.pause_s, self.begun_s + self._plan.pause_s / 2),
        ]
        end_s = self.begun_s + 60 * self._plan.minutes
        late_s = end_s + PATIENCE_S
        while (now_s := time.monotonic()) < end_s or (not self._troubles.is_through() and now_s < late_s):
            for clock in clocks:
                clock.tick(now_s)
            time.sleep(max(0.0, min(clock.due_s for clock in clocks) - time.monotonic()))
        self._troubles.end()
        self._field.settle()
        self.sample()

    def _change(self) -> None:
        self.seen.events["changes of peers"] += self._field.change()

    def sample(self) -> None:
        """Take what the traffic says, and a row of each node."""
        self._flow.look()
        self.note()

    def note(self) -> None:
        """Take a row of each node."""
        for name in OVERLAYD:
            row = gauge.sample(name, self._field.daemons[name])
            row["time_s"] = round(time.monotonic() - self.begun_s, 3)
            row["sent"], row["came"] = self._flow.sent, self._flow.came
            self._csv.writerow(row)
            self.seen.rows.append(row)
        self._file.flush()
