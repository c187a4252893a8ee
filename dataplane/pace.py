# SPDX-License-Identifier: Apache-2.0
"""How often a node takes changes up: of one lease, and of all. Pure.

Whoever can write to the store could keep every node busy with one lease that changes all the time, or with
many. So changes of one lease are taken at once as long as they are few, and then so many a second; of those
in between the latest counts, and none is lost for good. The same of passes, in which all that has arrived is
put in force.
"""

from __future__ import annotations

from collections.abc import Iterable

from dataplane.model import Event, LeaseDeleted, LeasePut, Listed, Rejected

BURST, PER_S = 100, 10.0  # changes of one lease
PASSES, PASSES_PER_S = 1000, 50.0
SWEEP_MIN = 1024  # leases of which a time is known, before those that are quiet are forgotten
TELL_S = 60.0  # it is told once in so long, and shown for so long

Change = LeasePut | LeaseDeleted


class Bucket:
    """Lets a burst through, and then so many a second; of anything that has a name."""

    def __init__(self, burst: int, per_s: float) -> None:
        """Be full, for every name."""
        self._step_s = 1 / per_s
        self._slack_s = (burst - 1) / per_s
        self._full_s: dict[str, float] = {}  # when it is full again; a name that is not here is full
        self._sweep_at = SWEEP_MIN

    def wait_s(self, name: str, now: float) -> float:
        """Return how long to wait until one more is let through; 0: none."""
        return max(0.0, self._full_s.get(name, now) - self._slack_s - now)

    def take(self, name: str, now: float) -> bool:
        """Let one through if it is its time."""
        if self.wait_s(name, now) > 0:
            return False
        self._full_s[name] = max(self._full_s.get(name, now), now) + self._step_s
        if len(self._full_s) > self._sweep_at:
            self._full_s = {name: full_s for name, full_s in self._full_s.items() if full_s > now}
            self._sweep_at = max(SWEEP_MIN, 2 * len(self._full_s))
        return True


class Pace:
    """Holds changes back that come too often, until it is their time."""

    def __init__(self) -> None:
        """Hold nothing."""
        self._changes = Bucket(BURST, PER_S)
        self._passes = Bucket(PASSES, PASSES_PER_S)
        self._held: dict[str, Change] = {}  # the latest of each lease
        self._first: dict[str, int] = {}  # the revision of the first of them
        self._seen: int | None = None  # the latest revision
        self._last: tuple[str, float] | None = None  # who was last held back, and when
        self._told_s: float | None = None

    def pass_wait_s(self, now: float) -> float:
        """Return how long to wait before the next pass."""
        return self._passes.wait_s("", now)

    def admit(self, events: Iterable[Event], now: float) -> list[Event]:
        """Take what arrived for a pass; return what is to be taken up, with what was held and is due."""
        self._passes.take("", now)
        due = [name for name in self._held if self._changes.take(name, now)]
        passed: list[Event] = [self._release(name) for name in due]
        for event in events:
            if not isinstance(event, Rejected):
                self._seen = event.revision
            if isinstance(event, Listed):  # says all that was held
                self._held.clear()
                self._first.clear()
            if not isinstance(event, Change):
                passed.append(event)
                continue
            name = event.entry.name if isinstance(event, LeasePut) else event.name
            if name not in self._held and self._changes.take(name, now):
                passed.append(event)
                continue
            self._held[name], self._last = event, (name, now)
            self._first.setdefault(name, event.revision)
        return passed

    def _release(self, name: str) -> Change:
        del self._first[name]
        return self._held.pop(name)

    def wait_s(self, now: float) -> float | None:
        """Return how long until something that is held is due; None: nothing is held."""
        return min((self._changes.wait_s(name, now) for name in self._held), default=None)

    def in_force(self) -> int | None:
        """Return the revision of the store up to which everything was let through."""
        return min(self._first.values()) - 1 if self._first else self._seen

    # --- what is told -----------------------------------------------------------------------------------

    def warnings(self, now: float) -> list[str]:
        """Say which lease changes too often, as long as that is not long ago."""
        if self._last is None or now - self._last[1] > TELL_S:
            return []
        return [f"lease {self._last[0]} changes so often that only {PER_S:g} times a second are taken up"]

    def news(self, now: float) -> list[str]:
        """Say the same for the log, where once a minute is enough."""
        found = self.warnings(now)
        if not found or (self._told_s is not None and now - self._told_s < TELL_S):
            return []
        self._told_s = now
        return found
