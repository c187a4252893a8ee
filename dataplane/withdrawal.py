# SPDX-License-Identifier: Apache-2.0
"""Holds a mass withdrawal: peers that leave the store with many others stay in force for a while. Sans-IO.

Many leases that vanish together are more often an accident (a store that was emptied or restored from an old
copy, a script, nodes that could not renew) than meant. So when more than `share` of the peers, and at least
`count`, left within `window_s`, all of them come back, marked as held. They go when

    a whole list that the store gave `hold_s` later, or after that, lacks them, too; we ask for it
    the operator says so
    the network is another one, to which they do not belong

and one that is put again is simply not held any more. What is only held has the weakest claim: any other
lease takes its subnet, address or place (gate.py, peers.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol

from dataplane.alloc import overlap
from dataplane.model import (
    Entry,
    Event,
    LeaseDeleted,
    LeasePut,
    Listed,
    NetworkConfig,
    NetworkPut,
    Rejected,
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What is a mass withdrawal, and for how long it is held."""

    share: float = 0.2  # more than this part of the peers
    count: int = 5  # and at least so many
    window_s: float = 10.0
    hold_s: float = 30.0  # 0: nothing is held


class InForce(Protocol):
    """The peers in force, before what is admitted now: peers.Peers."""

    def find(self, name: str) -> Entry | None:
        """Return a lease if it is that of a peer."""
        ...

    def in_force(self) -> dict[str, Entry]:
        """Return the leases that are those of peers, by name."""
        ...


class Before(Protocol):
    """The peers of the last run, which are read only if the store has lost some."""

    def names(self) -> frozenset[str]:
        """Return what their leases are called."""
        ...

    def read(self, names: set[str]) -> dict[str, Entry]:
        """Return some of the leases, by name."""
        ...


@dataclass(frozen=True, slots=True)
class _Gone:
    """A lease that the store has no more, and since when."""

    entry: Entry
    since_s: float


class Withdrawal:
    """Stands between the store's events and the peers: lets them through, and puts back what is held."""

    def __init__(self, limits: Limits, before: Before | None = None) -> None:
        """Hold nothing. The first list is compared with what was `before`."""
        self._limits = limits
        self._before = before
        self._first: frozenset[str] = frozenset()  # what there was before, until it is known what is in force
        self._left: dict[str, _Gone] = {}  # within the window, whether they are held or not
        self._held: dict[str, _Gone] = {}
        self._network: NetworkConfig | None = None
        self._list: Listed | None = None  # the last one, which may be taken more than once
        self._list_s = 0.0
        self._revision = 0
        self._is_dropping = False

    # --- what is told -----------------------------------------------------------------------------------

    def count(self) -> int:
        """Return how many leases are held."""
        return len(self._held)

    def held_for_s(self, name: str, now: float) -> float | None:
        """Return for how long a lease has been held; None if it is not."""
        gone = self._held.get(name)
        return None if gone is None else now - gone.since_s

    def wait_s(self, now: float) -> float | None:
        """Return how long until a whole list could release all that is held; None: nothing is."""
        due_s = max((gone.since_s for gone in self._held.values()), default=None)
        return None if due_s is None else max(0.0, due_s + self._limits.hold_s - now)

    # --- what arrives -----------------------------------------------------------------------------------

    def drop(self) -> int:
        """Let all that is held go with the next events, as the operator wants; return how many."""
        self._is_dropping = True
        return len(self._held)

    def admit(self, events: Iterable[Event], peers: InForce, now: float) -> list[Event]:
        """Take what arrived; return it with what is held put back, and what is dropped taken away."""
        if self._limits.hold_s == 0:
            return list(events)
        passed: list[Event] = self._drop_all()
        gone: dict[str, Entry] = {}  # by these events
        has_list = False
        for event in events:
            if isinstance(event, Listed):
                has_list = True
                known = peers.in_force()
                if self._before is not None:
                    self._first = self._before.names()
                    known |= self._before.read({*self._first}.difference(known, _names(event)))
                    self._before = None
                gone = self._take_list(event, known, now)
            elif isinstance(event, LeasePut):
                self._come_back(event.entry.name)
                gone.pop(event.entry.name, None)
            elif isinstance(event, LeaseDeleted):
                if event.name in self._held:
                    continue
                if (entry := peers.find(event.name)) is not None:
                    gone[event.name] = entry
            if isinstance(event, Listed | NetworkPut) and event.network is not None:
                self._network = event.network
            if not isinstance(event, Rejected):
                self._revision = event.revision
            passed.append(event)
        self._note(gone, now)
        new = self._hold(peers, now) if gone else []
        again = list(self._held) if has_list else new
        return [*passed, *(LeasePut(self._revision, self._held[name].entry) for name in again)]

    def _drop_all(self) -> list[Event]:
        if not self._is_dropping:
            return []
        self._is_dropping = False
        names = list(self._held)
        for name in names:
            self._come_back(name)
        return [LeaseDeleted(self._revision, name) for name in names]

    def _come_back(self, name: str) -> None:
        """Take that a lease is not gone, or is to be forgotten."""
        self._held.pop(name, None)
        self._left.pop(name, None)

    def _take_list(self, event: Listed, known: dict[str, Entry], now: float) -> dict[str, Entry]:
        """Release what is in a list, or was held long enough; return who is gone by it."""
        if event is not self._list:
            self._list, self._list_s = event, now if event.read_s is None else event.read_s
        names = _names(event)
        for name in {*self._held, *self._left}:
            held = self._held.get(name)
            is_over = held is not None and self._list_s >= held.since_s + self._limits.hold_s
            if name in names or is_over:
                self._come_back(name)
        network = event.network or self._network
        for name in [name for name, held in self._held.items() if not _is_within(held.entry, network)]:
            self._come_back(name)
        return {name: entry for name, entry in known.items() if name not in names and not entry.is_held}

    def _note(self, gone: dict[str, Entry], now: float) -> None:
        """Remember who left lately; who is of another network by now was meant to."""
        begin_s = now - self._limits.window_s
        self._left = {name: left for name, left in self._left.items() if left.since_s > begin_s}
        for name, entry in gone.items():
            if _is_within(entry, self._network):
                self._left.setdefault(name, _Gone(entry, now))

    def _hold(self, peers: InForce, now: float) -> list[str]:
        """Hold all who left lately if they are too many; return who was not held until now."""
        if len(self._left) < self._limits.count:
            return []
        there = {name for name, entry in peers.in_force().items() if not entry.is_held} or self._first
        if len(self._left) <= self._limits.share * len(there | self._left.keys()):
            return []
        new = [name for name in self._left if name not in self._held]
        for name in new:
            self._held[name] = _Gone(replace(self._left[name].entry, is_held=True), now)
        return new


def _names(event: Listed) -> set[str]:
    return {entry.name for entry in event.entries}


def _is_within(entry: Entry, network: NetworkConfig | None) -> bool:
    """Return whether a lease lies in the network at all; nobody knows better before there is one."""
    if network is None or entry.lease is None:
        return True
    return all(
        any(overlap(subnet, net) for net in network.networks()) for subnet in entry.lease.key.subnets()
    )
