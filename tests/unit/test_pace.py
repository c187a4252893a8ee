# SPDX-License-Identifier: Apache-2.0
"""The pace of changes: few pass at once, of many the latest of each lease, and none is lost for good."""

from __future__ import annotations

import random

import pytest

from dataplane.model import Event, LeaseDeleted, LeasePut, Listed, NetworkPut
from dataplane.pace import BURST, PASSES, PASSES_PER_S, PER_S, SWEEP_MIN, TELL_S, Bucket, Pace
from tests.leases import NET, entry, lease


def change(revision: int, node: int = 2) -> LeasePut:
    """Return a change of the lease of a node."""
    return LeasePut(revision, entry(lease(node), created=revision))


def gone(revision: int, node: int = 2) -> LeaseDeleted:
    """Return the end of the lease of a node."""
    return LeaseDeleted(revision, change(1, node).entry.name)


def flapping(until: int = BURST) -> Pace:
    """Return a pace that has let through as many changes of one lease as it does at once."""
    pace = Pace()
    for revision in range(1, until + 1):
        assert pace.admit([change(revision)], 0.0) == [change(revision)]
    return pace


def test_few_changes_pass() -> None:
    """Honest changes pass at once: a hundred of one lease, and any number of others."""
    pace = flapping()
    others = [change(1000 + node, node) for node in range(3, 200)]
    assert pace.admit(others, 0.0) == others
    assert (pace.wait_s(0.0), pace.in_force(), pace.warnings(0.0)) == (None, 1199, [])


def test_the_latest_of_many_counts() -> None:
    """Of changes that come too often the latest is taken up, as soon as it may; others do not wait for it."""
    pace = flapping()
    assert pace.admit([change(101), change(102, 3), change(103)], 0.0) == [change(102, 3)]
    assert pace.in_force() == 100
    wait_s = pace.wait_s(0.0)
    assert wait_s is not None
    assert wait_s == pytest.approx(1 / PER_S)
    assert pace.admit([gone(104)], wait_s / 2) == []
    assert pace.admit([change(105, 3)], wait_s) == [gone(104), change(105, 3)]
    assert (pace.wait_s(wait_s), pace.in_force()) == (None, 105)


def test_a_list_says_it_all() -> None:
    """A whole list takes the place of what was held; what is no lease is never held."""
    pace = flapping()
    assert pace.in_force() == BURST
    whole, network = Listed(20, NET, ()), NetworkPut(21, NET)  # of a store that began anew
    assert pace.admit([change(101)], 0.0) == []
    assert pace.admit([whole, network], 0.0) == [whole, network]
    assert (pace.wait_s(0.0), pace.in_force()) == (None, 21)
    assert pace.admit([], 10.0) == []


def test_thousand_changes_a_second() -> None:
    """A lease that changes 1000 times a second is taken up as often as it may, and ends as it is."""
    pace, taken, chance, last = Pace(), list[Event](), random.Random(1), change(1)
    for step in range(10_000):
        last = change(step + 1)
        taken += pace.admit([last, change(step + 1, chance.randrange(3, 250))], step / 1000)
    flaps = [event for event in taken if isinstance(event, LeasePut) and event.entry.lease == lease(2)]
    assert len(flaps) <= BURST + 10 * PER_S
    assert len(flaps) >= BURST + 9.9 * PER_S
    assert len(taken) - len(flaps) == 10_000  # nobody else was held
    wait_s = pace.wait_s(10.0)
    assert wait_s is not None
    assert pace.admit([], 10.0 + wait_s) == [last]


def test_it_is_told() -> None:
    """Which lease it is stands in a warning for a minute, and in the log once a minute."""
    pace = flapping()
    pace.admit([change(101)], 0.0)
    text = "lease 10.244.2.0-24 changes so often that only 10 times a second are taken up"
    assert pace.news(0.0) == pace.warnings(0.0) == [text]
    assert pace.news(1.0) == []
    pace.admit([change(102 + number) for number in range(2 * BURST)], TELL_S)
    assert pace.news(TELL_S) == [text]
    assert pace.warnings(1.0 + 2 * TELL_S) == []


def test_passes() -> None:
    """A thousand passes come as they come, then so many a second."""
    pace = Pace()
    for _ in range(PASSES):
        assert pace.pass_wait_s(0.0) == 0
        pace.admit([], 0.0)
    assert pace.pass_wait_s(0.0) == pytest.approx(1 / PASSES_PER_S)
    assert pace.pass_wait_s(1 / PASSES_PER_S) == 0


def test_names_are_forgotten() -> None:
    """Leases that are quiet take no memory."""
    bucket = Bucket(2, 1.0)
    for number in range(100 * SWEEP_MIN):
        assert bucket.take(str(number), number / 100)
    assert len(bucket._full_s) <= 2 * SWEEP_MIN
    assert not all(bucket.take("x", 5000.0) for _ in range(3))


def test_a_sweep_forgets_nobody_who_waits() -> None:
    """However many names there are, who has used up the burst waits as before."""
    bucket = Bucket(1, 1.0)
    assert bucket.take("busy", 0.0)
    assert all(bucket.take(str(number), 0.0) for number in range(SWEEP_MIN + 1))
    assert not bucket.take("busy", 0.5)


def test_silence_is_not_told() -> None:
    """To have asked in vain does not keep the next lease that changes too often from being told."""
    pace = flapping()
    assert pace.news(0.0) == []
    pace.admit([change(101)], 0.0)
    assert pace.news(0.0) == pace.warnings(0.0) != []
