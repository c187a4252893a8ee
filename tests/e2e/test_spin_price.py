# SPDX-License-Identifier: Apache-2.0
"""What looking for packets before sleeping (`--spin-us`) costs, and that a quota does not make it hurt.

Two labs stand side by side, one as it comes and one with `--spin-us 0`; drawn at the head of priced.py. Each
figure is what the first costs more than the second, in short runs that alternate, and the median of those;
one that is beyond its bound is taken again, since others use this machine too.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

import pytest

from bench import cgroup
from tests.e2e import priced
from tests.e2e.priced import Priced

pytestmark = pytest.mark.alone

SERIES = 3  # that a figure may take to come within its bound
RUNS, RUN_S = 3, 0.4
IDLE_S, IDLE_BOUND = 0.6, 0.001
QUOTA = 0.2
EXCHANGES_PER_S = 500
SLICES, SLICE_S = 12, 0.1  # so short that what others do to the machine hits both alike
P99_FACTOR = 2.0

Pair = tuple[Priced, Priced]
Shares = list[float]  # of host a and b
LOADS = {"even": priced.even, "groups": priced.groups, "requests": priced.requests, "volleys": priced.volleys}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Yield one lab that looks before it sleeps, and one that does not."""
    with ExitStack() as stack:
        built: list[Priced] = []
        directory = tmp_path_factory.mktemp("priced")
        for name, flags in (("sp", ()), ("st", ("--spin-us", "0"))):
            built.append(Priced(name, directory, flags))
            stack.callback(built[-1].close)
        assert [system.spin_us() for system in built] == [[50, 50], [0, 0]]
        yield built[0], built[1]


def within(bound: float, take: Callable[[], float]) -> list[float]:
    """Return the figures of as many series as it took until one was within a bound, or of all."""
    figures: list[float] = []
    while len(figures) < SERIES:
        figures.append(take())
        if figures[-1] <= bound:
            break
    return figures


def shares(before: Shares, after: Shares, took_s: float) -> Shares:
    """Return the share of a CPU that each forwarder used, from seconds spent."""
    return [(now - was) / took_s for was, now in zip(before, after, strict=True)]


def median_of_dearest(spins: Sequence[Shares], sleeps: Sequence[Shares]) -> float:
    """Return the median of what looking cost more in several runs, at the host where that is highest."""
    more = [[one - other for one, other in zip(*run, strict=True)] for run in zip(spins, sleeps, strict=True)]
    return max(float(statistics.median(host)) for host in zip(*more, strict=True))


def price(pair: Pair, load: str, rate_pps: float, runs: int, run_s: float) -> float:
    """Return how much more of a CPU looking costs at a rate."""
    found: tuple[list[Shares], list[Shares]] = ([], [])
    for _ in range(runs):
        for system, taken in zip(pair, found, strict=True):
            before, start_s = system.spent_s(), time.monotonic()
            LOADS[load](system, rate_pps, run_s)
            taken.append(shares(before, system.spent_s(), time.monotonic() - start_s))
    return median_of_dearest(*found)


def idle_price(pair: Pair) -> float:
    """Return how much more of a CPU looking costs without any packet, just after there were some."""
    found: tuple[list[Shares], list[Shares]] = ([], [])
    for _ in range(RUNS):
        for system in pair:
            priced.volleys(system, 2000, 0.1)
        before, start_s = [system.spent_s() for system in pair], time.monotonic()
        priced.pass_time(start_s + IDLE_S)
        took_s = time.monotonic() - start_s
        for system, was, taken in zip(pair, before, found, strict=True):
            taken.append(shares(was, system.spent_s(), took_s))
    return median_of_dearest(*found)


# --- tests ------------------------------------------------------------------------------------------


def test_idle_price(pair: Pair) -> None:
    """Without packets looking costs at most 0.1 % of a core."""
    figures = within(IDLE_BOUND, lambda: idle_price(pair))
    assert figures[-1] <= IDLE_BOUND, figures


@pytest.mark.parametrize(
    ("load", "rate_pps", "bound"),
    # At even distances of 1 ms, looking after each packet would cost 5 %.
    [("even", 100, 0.03), ("even", 1000, 0.02), ("volleys", 100, 0.03), ("volleys", 1000, 0.30)],
)
def test_price(pair: Pair, load: str, rate_pps: int, bound: float) -> None:
    """Looking costs at most 3 % of a core at 100 packets/s, 30 % at 1 000, and much less if it is vain."""
    figures = within(bound, lambda: price(pair, load, rate_pps, RUNS, RUN_S))
    assert figures[-1] <= bound, figures


@pytest.mark.soak
@pytest.mark.parametrize(("rate_pps", "bound"), [(100, 0.03), (300, 0.09), (1000, 0.30)])
@pytest.mark.parametrize("load", list(LOADS))
def test_price_over_longer(pair: Pair, load: str, rate_pps: int, bound: float) -> None:
    """Nor does it cost more when a load lasts."""
    figures = within(bound, lambda: price(pair, load, rate_pps, 5, 2.0))
    assert figures[-1] <= bound, figures


@pytest.mark.parametrize("load", ["requests", "volleys"])
def test_quota_does_not_hurt(pair: Pair, load: str) -> None:
    """Within a quota of 20 % of a CPU, p99 of 500 requests/s is at most twice that of `--spin-us 0`."""
    parent = cgroup.cpu_controller()
    if parent is None:
        pytest.skip("there is no CPU controller for control groups here")

    def ratio() -> float:
        took_s: list[list[float]] = [[], []]
        for _ in range(SLICES):
            for system, found in zip(pair, took_s, strict=True):
                found += LOADS[load](system, 2 * EXCHANGES_PER_S, SLICE_S)
        spins, sleeps = (float(statistics.quantiles(found, n=100)[98]) for found in took_s)
        return spins / sleeps

    with ExitStack() as stack:
        for pid in (pid for system in pair for pid in system.forwarders):
            try:
                stack.enter_context(cgroup.quota(parent, pid, QUOTA))
            except OSError as err:
                pytest.skip(f"cannot make a control group with a quota: {err}")
        figures = within(P99_FACTOR, ratio)
    assert figures[-1] <= P99_FACTOR, figures
