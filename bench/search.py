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

    @property
    def kpps(self) -> float:
        """Return the rate that was found."""
        return self.best.received_pps / 1e3 if self.best else 0.0

    @property
    def is_sender_limited(self) -> bool:
        """Return whether the sender could not send more than what was carried."""
        return self.best is not None and not self.best.is_full


def find_rate(send: Callable[[float], Trial], start_pps: float) -> Found:
    """Search from a first guess: by steps until one rate passes and one fails, then by halves.

    A rate that fails is tried once more: on a machine that others use too, a single loss may be theirs.
    """
    trials: list[Trial] = []
    best: Trial | None = None
    low = high = 0.0
    rate = max(start_pps, FLOOR_PPS)

    def is_carried() -> Trial | None:
        for _ in range(2):
            trials.append(send(rate))
            if trials[-1].is_good:
                return trials[-1]
        return None

    while len(trials) < TRIALS_MAX:
        carried = is_carried()
        if carried:
            low = rate
            if best is None or carried.received_pps > best.received_pps:
                best = carried
            if not carried.is_full:
                break  # there is no more to offer
        else:
            high = rate
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
    return Found(best, tuple(trials))
