# SPDX-License-Identifier: Apache-2.0
"""What is done again and again is done at the same moments."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from dataplane import step


class Clock:
    """A loop of which only the time is asked for."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def time(self) -> float:
        """Return it."""
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Yield the time of the loop."""
    made = Clock()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: made)
    return made


@pytest.mark.parametrize("late_s", [0.0, 0.004, -0.004])
def test_wakes_fall_together(clock: Clock, late_s: float) -> None:
    """However they begin, and whether they are woken late or early, all are at the same moments."""
    for begun_s in (0.0, 100.26, 7.1, 3.999):
        for period_s in (0.5, 1.0):
            clock.now_s = begun_s
            moments = []
            for _ in range(20):
                clock.now_s += step.pause_s(period_s) + late_s
                moments.append(clock.now_s)
            assert all(abs((at + 0.25) % 0.5 - 0.25) <= 0.005 for at in moments)
            apart = [later - at for at, later in pairwise(moments)]
            assert all(abs(found - period_s) <= 0.01 for found in apart)


def test_never_close_together(clock: Clock) -> None:
    """A pause is half a period at least, and one and a half at most."""
    for thousandth in range(3000):
        clock.now_s = thousandth / 1000
        assert 0.25 <= step.pause_s(0.5) <= 0.75
