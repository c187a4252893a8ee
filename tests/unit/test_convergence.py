# SPDX-License-Identifier: Apache-2.0
"""How long changes take, from being heard of to being in force."""

from __future__ import annotations

from typing import Any

from dataplane.convergence import BOUNDS_S, CHANGES, Convergence
from dataplane.model import Entry, Event, LeaseDeleted, LeasePut, Listed, NetworkPut, Rejected

PUT = LeasePut(2, Entry("10.244.2.0-24", None))
GONE = LeaseDeleted(3, "10.244.2.0-24")
LIST = Listed(1, None, ())
NETWORK = NetworkPut(4, None)


def told(convergence: Convergence) -> dict[str, Any]:
    """Return of each kind of change how many took how long altogether."""
    found: Any = convergence.describe()
    return {name: (kind["count"], kind["sum_s"]) for name, kind in found.items() if kind["count"]}


def test_time_from_heard_to_in_force() -> None:
    """A change counts once, with the time until it is in force, under its kind; not before."""
    convergence = Convergence()
    for event, at in ((LIST, 10.0), (PUT, 10.5), (GONE, 11.0), (NETWORK, 11.5)):
        convergence.hear(event, at)
    assert told(convergence) == {}
    convergence.take(2)
    assert told(convergence) == {}
    convergence.settle(12.0)
    assert told(convergence) == {"list": (1, 2.0), "lease": (1, 1.5)}
    convergence.settle(20.0)
    convergence.take(2)
    convergence.settle(13.0)
    assert told(convergence) == {
        "list": (1, 2.0),
        "lease": (1, 1.5),
        "lease_gone": (1, 2.0),
        "network": (1, 1.5),
    }


def test_taken_again_after_a_failure() -> None:
    """What was taken and did not come into force counts with the pass that succeeds."""
    convergence = Convergence()
    convergence.hear(PUT, 1.0)
    convergence.take(1)
    convergence.hear(PUT, 5.0)
    convergence.take(1)
    convergence.settle(6.0)
    assert told(convergence) == {"lease": (2, 6.0)}


def test_rejected_is_no_change() -> None:
    """What was rejected takes its place in the order and is not counted."""
    convergence = Convergence()
    events: list[Event] = [Rejected(1, "no"), PUT]
    for event in events:
        convergence.hear(event, 1.0)
    convergence.take(1)
    convergence.settle(2.0)
    assert told(convergence) == {}
    convergence.take(1)
    convergence.settle(2.0)
    assert told(convergence) == {"lease": (1, 1.0)}


def test_buckets() -> None:
    """A bucket counts what took up to its bound, the bound included, and all below."""
    convergence = Convergence()
    for took_s in (0.001, 0.0011, 0.3, 100.0):
        convergence.hear(PUT, 1.0)
        convergence.take(1)
        convergence.settle(1.0 + took_s)
    found: Any = convergence.describe()
    within = found["lease"]["within_s"]
    assert list(within) == [f"{bound:g}" for bound in BOUNDS_S]
    assert [within[at] for at in ("0.001", "0.0025", "0.25", "0.5", "10")] == [1, 2, 2, 3, 3]
    assert found["lease"]["count"] == 4
    assert set(found) == set(CHANGES.values())
