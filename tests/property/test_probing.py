# SPDX-License-Identifier: Apache-2.0
"""Whatever a path does, the prober ends its searches, keeps its bounds, and does no lasting harm."""

from __future__ import annotations

import random
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.probing import BASE, Pace
from tests.paths import MOST, World

PACE = Pace()
MTUS = st.integers(1000, MOST)
SPELLS = st.lists(st.tuples(MTUS, st.sampled_from([0.0, 0.1, 0.5, 0.9]), st.floats(1, 120)), max_size=6)


@settings(max_examples=40)
@given(SPELLS, MTUS, st.integers(0, 1 << 32))
def test_settles(spells: list[tuple[int, float, float]], last: int, seed: int) -> None:
    """Ten minutes after any changes and losses, what the path takes is in force; never less than BASE."""
    world, chance = World(), random.Random(seed)
    for mtu, loss, seconds in spells:
        world.mtu = mtu
        world.is_lost = lambda probe, loss=loss: chance.random() < loss  # type: ignore[misc]
        world.run(seconds)
        assert BASE[4] <= world.in_force <= MOST
    world.mtu, world.is_lost = last, lambda probe: False
    world.run(PACE.silent_s + PACE.raise_s + 60)
    assert world.in_force == (last if last >= BASE[4] else world.in_force)
    assert all(BASE[4] <= probe.size <= MOST for _, probe in world.sent)
    count = len(world.sent)
    world.run(60)
    assert len(world.sent) - count <= 60 / PACE.confirm_s * 2  # no search goes on


@settings(max_examples=40)
@given(st.floats(0.0, 0.95), st.integers(0, 1 << 32), st.sampled_from([1300, MOST, 8950]))
def test_loss_never_lowers_a_healthy_path_for_good(loss: float, seed: int, most: int) -> None:
    """Answers that are lost at random lower a path for ten minutes at most once they come again."""
    world, chance = World(), random.Random(seed)
    world.path, world.mtu, world.in_force = replace(world.path, most=most), most, most
    world.is_lost = lambda probe: chance.random() < loss
    world.run(900)
    world.is_lost = lambda probe: False
    world.run(PACE.silent_s + PACE.raise_s + 5)
    assert world.in_force == most


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(0, 1 << 32))
def test_rate_is_kept(busy: list[bool], seed: int) -> None:
    """However traffic comes and goes, no second has more than a trial's requests, and no wait is for ever."""
    world, chance = World(replace(PACE, per_s=4.0, burst=4.0)), random.Random(seed)
    world.is_lost = lambda probe: chance.random() < 0.5
    for is_busy in busy:
        world.is_busy = is_busy
        world.run(2)
    times = [at_s for at_s, _ in world.sent]
    assert all(later - early >= 1.0 for early, later in zip(times, times[9:], strict=False))
