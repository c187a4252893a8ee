# SPDX-License-Identifier: Apache-2.0
"""The search for the highest packet rate that is carried with next to no loss, after RFC 2544. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

LOSS_MAX = 0.001
RESOLUTION = 1.04  # the search ends when the least rate that failed is this close to the highest that passed
STEP = 1.5  # while only one end is known
FLOOR_PPS = 500.0
TRIALS_MAX = 30


@dataclass(frozen=True, slots=True)
class Trial:
    """What became of the packets of one trial; received counts each number once."""

    asked_pps: float
    sent: int
    received: int
    seconds: float

    @property
    def loss(self) -> float:
        """Return the lost share; a trial without packets has lost all."""
        return 1 - self.received / self.sent if self.sent else 1.0

    @property
    def received_pps(self) -> float:
        """Return the rate that came out of the far end."""
        return self.received / self.seconds if self.seconds else 0.0

    @property
    def is_good(self) -> bool:
        """Return whether so little was lost that its rate counts."""
        return self.loss < LOSS_MAX

    @property
    def is_full(self) -> bool:
        """Return whether the sender managed the rate that it was asked for."""
        return self.sent >= 0.97 * self.asked_pps * self.seconds


@dataclass(frozen=True, slots=True)
class Found:
    """The best trial, none if every rate lost packets, and all trials in order."""

    best: Trial | None
    trials: tuple[Trial, ...]
    is_sender_limited: bool  # more was not carried because it could not be sent, not because it was lost

    @property
    def kpps(self) -> float:
        """Return the rate that was found."""
        return self.best.received_pps / 1e3 if self.best else 0.0


def find_rate(send: Callable[[float], Trial], start_pps: float) -> Found:
    """Search from a first guess: by steps until one rate passes and one fails, then by halves.

    A rate passes if it was sent in full and next to nothing of it was lost. One that fails is tried once
    more: on a machine that others use too, a single loss may be theirs.
    """
    trials: list[Trial] = []
    low = high = 0.0
    is_sender_limited = False
    rate = max(start_pps, FLOOR_PPS)
    while len(trials) < TRIALS_MAX:
        tries: list[Trial] = []
        while len(tries) < 2 and not any(trial.is_good and trial.is_full for trial in tries):
            tries.append(send(rate))
        trials += tries
        if tries[-1].is_good and tries[-1].is_full:
            low = rate
        else:
            high = rate
            is_sender_limited = any(trial.is_good for trial in tries)
        if not low:
            if rate <= FLOOR_PPS:
                break
            rate = max(high / STEP / STEP, FLOOR_PPS)
        elif not high:
            rate = low * STEP
        elif high / low <= RESOLUTION:
            break
        else:
            rate = math.sqrt(low * high)
    good = [trial for trial in trials if trial.is_good]
    best = max(good, key=lambda trial: trial.received_pps, default=None)
    return Found(best, tuple(trials), is_sender_limited)
