# SPDX-License-Identifier: Apache-2.0
"""The search for a loss-free rate, on links that are simulated."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from bench.search import FLOOR_PPS, LOSS_MAX, RESOLUTION, Trial, find_rate

Link = Callable[[float], Trial]


def make_link(capacity_pps: float, sender_pps: float = 1e9, noise: float = 0.0) -> Link:
    """Return a link that drops what is above its capacity, and a trial now and then for no reason."""
    dice = random.Random(7)

    def send(rate_pps: float) -> Trial:
        sent = int(min(rate_pps, sender_pps))
        received = min(sent, int(capacity_pps))
        if dice.random() < noise:
            received = int(received * 0.98)
        return Trial(rate_pps, sent, received, 1.0)

    return send


@pytest.mark.parametrize("capacity_pps", [900, 12_345, 250_000, 4_000_000])
@pytest.mark.parametrize("start_pps", [FLOOR_PPS, 100_000, 3_000_000])
def test_search_converges_from_any_guess(capacity_pps: int, start_pps: float) -> None:
    """What is found is the capacity, less at most the resolution, and less than 0.1 % above it."""
    found = find_rate(make_link(capacity_pps), start_pps)
    assert found.best is not None
    assert capacity_pps / RESOLUTION / 1.001 <= found.kpps * 1e3 <= capacity_pps
    assert not found.is_sender_limited


@pytest.mark.parametrize("seed", range(20))
def test_reported_rate_never_has_loss(seed: int) -> None:
    """However a link behaves, the trial that is reported lost less than 0.1 %."""
    dice = random.Random(seed)

    def send(rate_pps: float) -> Trial:
        sent = int(rate_pps)
        lost = dice.choice([0, 0, sent // 2000, sent // 900, sent // 10])
        return Trial(rate_pps, sent, sent - lost, 1.0)

    found = find_rate(send, 100_000)
    if found.best is not None:
        assert found.best.loss < LOSS_MAX
        assert found.best in found.trials


def test_link_that_loses_everything_has_no_rate() -> None:
    """A link that carries nothing yields 0 and no best trial, in few trials."""
    found = find_rate(lambda rate: Trial(rate, int(rate), 0, 1.0), 100_000)
    assert found.best is None
    assert found.kpps == 0
    assert len(found.trials) < 30


def test_loss_of_exactly_a_thousandth_does_not_pass() -> None:
    """0.1 % is too much, a packet less is not."""
    assert not Trial(1000, 1000, 999, 1.0).is_good
    assert Trial(1000, 1001, 1000, 1.0).is_good


def test_sender_that_cannot_send_more_is_named() -> None:
    """Where the sender is the limit, the rate it managed is reported, and that it was the sender."""
    found = find_rate(make_link(1e9, sender_pps=200_000), 50_000)
    assert found.is_sender_limited
    assert 190_000 <= found.kpps * 1e3 <= 200_000


def test_single_bad_trial_does_not_end_the_search() -> None:
    """On a link where one trial in five loses packets for no reason, the capacity is found all the same."""
    found = find_rate(make_link(300_000, noise=0.2), 100_000)
    assert 250_000 <= found.kpps * 1e3 <= 300_000
