# SPDX-License-Identifier: Apache-2.0
"""How often forwarders end, and what that means for the next one. Pure: times are arguments, in seconds."""

from __future__ import annotations

from collections import deque

CRASHES_MAX = 3  # within CRASH_WINDOW_S: another tier, and then slowly, with an alarm
CRASH_WINDOW_S = 10.0
PAUSE_MIN_S, PAUSE_MAX_S = 1.0, 30.0


class Crashes:
    """The last ends of forwarders."""

    def __init__(self) -> None:
        """There was none yet."""
        self._times: deque[float] = deque(maxlen=CRASHES_MAX)
        self._pause_s = 0.0
        self._told_s: float | None = None  # when there were too many, lately

    def note(self, now: float) -> None:
        """Take that a forwarder ended, or did not come to work."""
        self._times.append(now)
        if self.is_looping:
            self._told_s = now

    @property
    def is_looping(self) -> bool:
        """Whether they end again and again."""
        return len(self._times) == CRASHES_MAX and self._times[-1] - self._times[0] < CRASH_WINDOW_S

    def begin_anew(self) -> None:
        """Give the next ones their chance: they are to work in another way."""
        self._times.clear()

    def next_pause_s(self) -> float:
        """Return how long to wait before the next try: ever longer."""
        self._pause_s = min(max(2 * self._pause_s, PAUSE_MIN_S), PAUSE_MAX_S)
        return self._pause_s

    def work_again(self) -> None:
        """Take that a forwarder works."""
        if not self.is_looping:
            self._pause_s = 0.0

    def is_alarm(self, now: float) -> bool:
        """Tell whether that is still to be told."""
        return self._told_s is not None and now - self._told_s < PAUSE_MAX_S
