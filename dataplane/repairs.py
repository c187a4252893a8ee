# SPDX-License-Identifier: Apache-2.0
"""Counts what had to be put right on the host, and says when somebody works against us. Pure.

Two daemons that each put right what the other did would keep a host busy for ever. So what is undone three
times in a minute is told, and put right only now and then, until it stays.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

REPAIRS_MAX = 3  # of one thing within WINDOW_S
WINDOW_S = 60.0
PAUSE_S = 5.0  # between repairs from then on


class Repairs:
    """What was put right lately. Times are CLOCK_MONOTONIC, in seconds."""

    def __init__(self) -> None:
        """Nothing was."""
        self._times: dict[str, deque[float]] = {}
        self._last_s = -PAUSE_S
        self.count = 0

    def note(self, changes: Iterable[str], now: float) -> list[str]:
        """Take what was put right now; return an alarm for each thing that is fought over from now on."""
        before = set(self._fought(now))
        for change in changes:
            self._times.setdefault(change, deque(maxlen=REPAIRS_MAX)).append(now)
            self._last_s = now
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

    def wait_s(self, now: float) -> float:
        """Return how long the next repair has to wait; 0 if nobody works against us."""
        return max(0.0, self._last_s + PAUSE_S - now) if self._fought(now) else 0.0

    def warnings(self, now: float) -> tuple[str, ...]:
        """Return what is fought over, a line each."""
        return tuple(
            f"something on this host undoes what we set up: {change}" for change in self._fought(now)
        )
