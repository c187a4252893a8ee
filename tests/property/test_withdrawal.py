# SPDX-License-Identifier: Apache-2.0
"""The hold of mass withdrawals, whatever happens, beside a node without it and a slow oracle."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.model import Event, LeaseDeleted, LeasePut, Listed, Publish, SubnetEntry, Table
from dataplane.reconcile import Reconciler
from dataplane.withdrawal import Limits, Withdrawal
from tests.leases import CONFIG, FACTS, NET, entry, lease, put

LIMITS = Limits(share=0.3, count=3, window_s=10.0, hold_s=30.0)
NODES = range(2, 14)
OWN = entry(lease(1))
NAMES = {number: entry(lease(number)).name for number in NODES}

STEPS = st.one_of(
    st.tuples(st.just("delete"), st.sets(st.sampled_from(NODES), min_size=1, max_size=6)),
    st.tuples(st.just("delete"), st.sets(st.sampled_from(NODES), min_size=1, max_size=2)),
    st.tuples(st.just("put"), st.sets(st.sampled_from(NODES), min_size=1, max_size=6)),
    st.tuples(st.just("list"), st.none()),  # of what the store has
    st.tuples(st.just("list"), st.sets(st.sampled_from(NODES))),  # changes happened before it
    st.tuples(st.just("drop"), st.none()),
)
WAITS = st.sampled_from((0.0, 1.0, 4.0, 9.0, 11.0, 29.0, 31.0))


class Node:
    """A reconciler and its last table."""

    def __init__(self) -> None:
        self.reconciler = Reconciler(CONFIG, FACTS)
        self.table = Table()

    def take(self, events: list[Event], now: float) -> None:
        """Take events."""
        for action in self.reconciler.apply_all(events, now):
            if isinstance(action, Publish):
                self.table = action.table

    def ways(self) -> set[tuple[object, ...]]:
        """Return what the table says, without ids."""
        return {_way(found) for found in self.table.subnets}


def _way(found: SubnetEntry) -> tuple[object, ...]:
    return found.prefix, found.vtep, found.vtep_mac


@dataclass
class Oracle:
    """The rules, read from a whole history at each step."""

    store: set[int] = field(default_factory=set)
    left_s: dict[int, float] = field(default_factory=dict)  # when a peer left the store, if it is not back
    held_s: dict[int, float] = field(default_factory=dict)

    def step(self, what: str, after: set[int], now: float) -> None:
        """Take what the store has after a step."""
        if what == "drop":
            self.left_s = {n: at for n, at in self.left_s.items() if n not in self.held_s}
            self.held_s = {}
            return
        for number in after:
            self.left_s.pop(number, None)
            self.held_s.pop(number, None)
        if what == "list":
            for number in [n for n, at in self.held_s.items() if now - at >= LIMITS.hold_s]:
                del self.held_s[number], self.left_s[number]
        for number in self.store - after:
            self.left_s[number] = now
        lately = {n for n, at in self.left_s.items() if now - at < LIMITS.window_s}
        there = len(self.store | lately)  # in the beginning, without those that were held before
        is_mass = len(lately) >= LIMITS.count and len(lately) > LIMITS.share * there
        if is_mass and lately - self.held_s.keys():
            self.held_s |= dict.fromkeys(lately - self.held_s.keys(), now)
        self.store = set(after)


def make_events(what: str, value: Any, store: set[int], revision: int) -> tuple[list[Event], set[int]]:
    """Return what the store says of a step, and what it has then."""
    if what == "delete":
        return [LeaseDeleted(revision, NAMES[number]) for number in sorted(value)], store - value
    if what == "put":
        return [put(revision, lease(number)) for number in sorted(value)], store | value
    if what == "list":
        after = store if value is None else value
        entries = (OWN, *(entry(lease(number)) for number in sorted(after)))
        return [Listed(revision, NET, entries)], set(after)
    return [], store


@settings(max_examples=150, deadline=None)
@given(st.sets(st.sampled_from(NODES)), st.lists(st.tuples(STEPS, WAITS), max_size=20))
def test_any_history(first: set[int], steps: list[tuple[tuple[str, Any], float]]) -> None:
    """In force is what the store has, and what is held: what the rules say, and no step longer."""
    plain, node, oracle, withdrawal = Node(), Node(), Oracle(), Withdrawal(LIMITS)
    now, store = 0.0, set[int]()
    for revision, ((what, value), wait_s) in enumerate([(("list", first), 0.0), *steps], 1):
        now += wait_s
        events, store = make_events(what, value, store, revision)
        if what == "drop":
            assert withdrawal.drop() == len(oracle.held_s)
        was_held = withdrawal.count()
        passed = withdrawal.admit(events, node.reconciler, now)
        if not was_held and not withdrawal.count():
            assert passed == events
        plain.take(events, now)
        node.take(passed, now)
        oracle.step(what, store, now)
        assert plain.ways() <= node.ways()
        held = {number for number in NODES if withdrawal.held_for_s(NAMES[number], now) is not None}
        assert held == set(oracle.held_s)
        assert not held & store
        assert node.ways() - plain.ways() == {
            (lease(number).key.subnet, lease(number).public_ip, lease(number).vtep_mac) for number in held
        }
        due = [at + LIMITS.hold_s - now for at in oracle.held_s.values()]
        assert withdrawal.wait_s(now) == (max(0.0, *due) if due else None)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(STEPS, WAITS), max_size=20))
def test_below_the_limits_it_is_not_there(steps: list[tuple[tuple[str, Any], float]]) -> None:
    """What is no mass withdrawal comes through as it is, event by event."""
    withdrawal, node, store = Withdrawal(Limits(share=1.0, count=3)), Node(), set[int]()
    now = 0.0
    for revision, ((what, value), wait_s) in enumerate([(("list", set(NODES)), 0.0), *steps], 1):
        now += wait_s
        events, store = make_events(what, value, store, revision)
        passed = withdrawal.admit(events, node.reconciler, now)
        assert passed == events
        node.take(passed, now)


@given(st.lists(st.sets(st.sampled_from(NODES), max_size=4), min_size=1, max_size=6))
def test_together_or_one_by_one(batches: list[set[int]]) -> None:
    """Deletes that arrive together are held as those that arrive one after the other at the same time."""
    whole, single = (Withdrawal(LIMITS), Node()), (Withdrawal(LIMITS), Node())
    for withdrawal, node in (whole, single):
        node.take(withdrawal.admit(make_events("list", set(NODES), set(), 1)[0], node.reconciler, 0.0), 0.0)
    for revision, batch in enumerate(batches, 2):
        events, _ = make_events("delete", batch, set(), revision)
        for withdrawal, node, parts in (*((*whole, [events]),), (*single, [[event] for event in events])):
            for part in parts:
                node.take(withdrawal.admit(part, node.reconciler, 1.0), 1.0)
    assert whole[1].ways() == single[1].ways()
    assert whole[0].count() == single[0].count()


def test_entries_are_marked() -> None:
    """What is put back says that it is held, and what the store has does not."""
    withdrawal, node = Withdrawal(LIMITS), Node()
    node.take(withdrawal.admit(make_events("list", set(NODES), set(), 1)[0], node.reconciler, 0.0), 0.0)
    passed = withdrawal.admit(make_events("delete", set(NODES), set(), 2)[0], node.reconciler, 1.0)
    again = [event.entry for event in passed if isinstance(event, LeasePut)]
    assert sorted(found.name for found in again) == sorted(NAMES.values())
    assert all(found.is_held for found in again)
