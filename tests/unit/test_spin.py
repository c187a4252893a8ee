# SPDX-License-Identifier: Apache-2.0
"""Looking again before sleeping: it must pay, and its price is bounded (a simulated worker and clock)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest

from tests.probe import ffi, lib

US = 1000
LIMIT = 50 * US
ROUND = 2 * US  # what one look takes
WAKE = 20 * US  # from a packet's arrival to a sleeper at work
SECOND = 1_000_000 * US


class Worker:
    """A worker that is given packets; adds up how long it looked, and counts how it met them."""

    def __init__(self, limit_ns: int = LIMIT) -> None:
        """Begin at a time that is not 0."""
        self.spin = ffi.gc(lib.probe_spin_new(limit_ns), lib.probe_spin_free)
        self.now = SECOND
        self.looked = 0
        self.looks = 0
        self.met = 0
        self.slept = 0

    def wait(self, gap: int) -> None:
        """Run dry now; the next packet arrives `gap` ns later."""
        arrives = self.now + gap
        is_looking = False
        while lib.probe_spin_again(self.spin, self.now):
            self.looks += not is_looking
            is_looking = True
            self.now += ROUND
            self.looked += ROUND
            if self.now >= arrives:
                self.met += 1
                lib.probe_spin_found(self.spin, self.now)
                return
        self.slept += 1
        self.now = max(self.now, arrives + WAKE)
        lib.probe_spin_found(self.spin, self.now)

    def run(self, gaps: Iterable[int]) -> Worker:
        """Wait for packets one after the other."""
        for gap in gaps:
            self.wait(gap)
        return self

    @property
    def price(self) -> float:
        """Share of all time that went into looking."""
        return self.looked / (self.now - SECOND)


def test_packets_that_answer_each_other_are_met() -> None:
    """A ping-pong whose gaps fit into a look is met by looking, but for the gaps that taught it."""
    worker = Worker().run(itertools.repeat(40 * US, 1000))
    assert worker.met >= 960


def test_limit_zero_never_looks() -> None:
    """--spin-us 0 sleeps whatever comes."""
    assert Worker(0).run(itertools.repeat(10 * US, 1000)).looks == 0


@pytest.mark.parametrize(
    ("gap_us", "most"), [(10_000, 0.0), (1000, 0.0), (250, 0.0), (150, 0.02), (60, 0.05)]
)
def test_gaps_that_no_look_outlasts_cost_next_to_nothing(gap_us: int, most: float) -> None:
    """Gaps longer than a look are slept through: none is looked at if they are long, one in many if short."""
    worker = Worker().run(itertools.repeat(gap_us * US, 3000))
    assert worker.price <= most
    assert worker.met == 0


@pytest.mark.parametrize(("per_s", "most"), [(100, 0.03), (1000, 0.3)])
@pytest.mark.parametrize("answer_us", [5, 30, 45, 60, 100])
def test_price_at_a_packet_rate_is_bounded(per_s: int, most: float, answer_us: int) -> None:
    """Requests that are answered soon cost at most 3 % at 100 a second and 30 % at 1000."""
    pause = SECOND // per_s - answer_us * US
    worker = Worker().run(itertools.islice(itertools.cycle((answer_us * US, pause)), 4000))
    assert worker.price <= most


def test_traffic_that_changes_is_learned_again() -> None:
    """After an hour of seldom packets a ping-pong is met, and after that seldom ones are slept through."""
    worker = Worker().run(itertools.repeat(SECOND, 3600))
    assert worker.looks == 0
    worker.run(itertools.repeat(40 * US, 1000))
    assert worker.met >= 960
    looks = worker.looks
    worker.run(itertools.repeat(10_000 * US, 1000))
    assert worker.looks - looks < 20


def steal(worker: Worker) -> None:
    """Take the processor away in the middle of a look."""
    assert lib.probe_spin_again(worker.spin, worker.now)
    worker.now += 5000 * US
    assert not lib.probe_spin_again(worker.spin, worker.now)
    lib.probe_spin_found(worker.spin, worker.now)


def rested(worker: Worker) -> int:
    """Run a ping-pong until it looks again; return how long that took, in ns."""
    began, looks = worker.now, worker.looks
    while worker.looks == looks:
        worker.wait(40 * US)
    return worker.now - began


def test_a_processor_taken_away_ends_looking_for_a_while() -> None:
    """A look that was interrupted is the last one for 0.1 s, for 0.2 s if that happens again, up to 10 s."""
    worker = Worker().run(itertools.repeat(40 * US, 100))
    for tenths in (1, 2, 4, 8, 16, 32, 64, 100, 100):
        steal(worker)
        assert rested(worker) == pytest.approx(tenths * SECOND / 10, rel=0.01)


def test_a_rest_long_ago_is_forgotten() -> None:
    """After a time that is long beside the last rest the next one is short again."""
    worker = Worker().run(itertools.repeat(40 * US, 100))
    steal(worker)
    rested(worker)
    steal(worker)
    assert rested(worker) > SECOND // 6
    worker.now += 100 * SECOND
    worker.run(itertools.repeat(40 * US, 100))
    steal(worker)
    assert rested(worker) < SECOND // 6


def test_a_wake_up_without_packets_is_no_reason_to_look() -> None:
    """Woken for nothing, as four times a second in an idle worker, it goes back to sleep at once."""
    worker = Worker().run(itertools.repeat(40 * US, 100))
    while lib.probe_spin_again(worker.spin, worker.now):
        worker.now += ROUND
    for _ in range(100):
        worker.now += SECOND // 4
        assert not lib.probe_spin_again(worker.spin, worker.now)
