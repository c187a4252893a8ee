# SPDX-License-Identifier: Apache-2.0
"""How long it takes from hearing of a change in the store until it is in force: a histogram. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field

from dataplane.model import Event, LeaseDeleted, LeasePut, Listed, NetworkPut

BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
CHANGES: dict[type, str] = {
    Listed: "list",
    NetworkPut: "network",
    LeasePut: "lease",
    LeaseDeleted: "lease_gone",
}


@dataclass(slots=True)
class _Kind:
    """The histogram of one kind of change; the last bucket has no bound."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))
    sum_s: float = 0.0


class Convergence:
    """Is told when changes are heard of, taken and in force. Changes come and go in order."""

    def __init__(self) -> None:
        """Know of nothing."""
        self._heard: deque[tuple[str | None, float]] = deque()
        self._taken: list[tuple[str, float]] = []
        self._kinds = {name: _Kind() for name in CHANGES.values()}

    def hear(self, event: Event, now: float) -> None:
        """Take that a change was heard of; one that was rejected changes nothing."""
        self._heard.append((CHANGES.get(type(event)), now))

    def take(self, count: int) -> None:
        """Take that the first changes heard of are being put in force."""
        for _ in range(count):
            name, heard_s = self._heard.popleft()
            if name is not None:
                self._taken.append((name, heard_s))

    def settle(self, now: float) -> None:
        """Take that all that was taken is in force."""
        for name, heard_s in self._taken:
            kind = self._kinds[name]
            kind.counts[bisect_left(BOUNDS_S, now - heard_s)] += 1
            kind.sum_s += now - heard_s
        self._taken.clear()

    def describe(self) -> dict[str, object]:
        """Return what status shows: of each kind of change how many took how long."""
        return {name: _describe(kind) for name, kind in self._kinds.items()}


def _describe(kind: _Kind) -> dict[str, object]:
    within, count = {}, 0
    for bound_s, here in zip(BOUNDS_S, kind.counts, strict=False):
        count += here
        within[f"{bound_s:g}"] = count
    return {"count": sum(kind.counts), "sum_s": round(kind.sum_s, 6), "within_s": within}
