# SPDX-License-Identifier: Apache-2.0
"""Counts what had to be put right on the host, and says when somebody works against us. Pure.

Two daemons that each put right what the other did would keep a host busy for ever. So what is undone three
times in a minute is told, and put right only now and then, until it stays. All else is put right at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

REPAIRS_MAX = 3  # of one thing within WINDOW_S
WINDOW_S = 60.0
PAUSE_S = 5.0  # between repairs of it from then on
DEVICE = "device "  # begins the change that says that one had to be made again


class Changes:
    """What is put right in one pass, and what has to wait."""

    def __init__(self, paused: frozenset[str] = frozenset()) -> None:
        """Let all be put right but what is paused."""
        self._paused = paused
        self.made: list[str] = []
        self.waiting: list[str] = []

    def may(self, change: str) -> bool:
        """Return whether this may be put right, and take it that it will be."""
        may = change not in self._paused
        (self.made if may else self.waiting).append(change)
        return may


class Repairs:
    """What was put right lately. Times are CLOCK_MONOTONIC, in seconds."""

    def __init__(self) -> None:
        """Nothing was."""
        self._times: dict[str, deque[float]] = {}
        self.count = 0

    def note(self, changes: Iterable[str], now: float) -> list[str]:
        """Take what was put right now; return an alarm for each thing that is fought over from now on."""
        before = set(self._fought(now))
        found = list(changes)
        # A device that was made again was given all it needs: that is one repair, not ten.
        for change in [change for change in found if change.startswith(DEVICE)] or found:
            self._times.setdefault(change, deque(maxlen=REPAIRS_MAX)).append(now)
            self.count += 1
        return [
            f"something on this host undoes what overlayd sets up ({change}): put right {REPAIRS_MAX} times "
            f"within {WINDOW_S:g} s, from now on every {PAUSE_S:g} s. Find out who does it: ip monitor all"
            for change in self._fought(now)
            if change not in before
        ]

    def _fought(self, now: float) -> list[str]:
        for change in [change for change, times in self._times.items() if times[-1] <= now - WINDOW_S]:
            del self._times[change]
        return [
            change
            for change, times in self._times.items()
            if len(times) == REPAIRS_MAX and times[0] > now - WINDOW_S
        ]

    def paused(self, now: float) -> frozenset[str]:
        """Return what is fought over, and was put right too lately to be again."""
        return frozenset(self._pauses(now))

    def wait_s(self, now: float) -> float:
        """Return how long until something that is paused may be put right; 0 if nothing is."""
        return min(self._pauses(now).values(), default=0.0)

    def _pauses(self, now: float) -> dict[str, float]:
        ends = {change: self._times[change][-1] + PAUSE_S - now for change in self._fought(now)}
        return {change: left_s for change, left_s in ends.items() if left_s > 0}

    def warnings(self, now: float) -> tuple[str, ...]:
        """Return what is fought over, a line each."""
        return tuple(
            f"something on this host undoes what we set up: {change}" for change in self._fought(now)
        )
