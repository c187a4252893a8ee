# SPDX-License-Identifier: Apache-2.0
"""Control is killed, or hangs, or its store does, while a thousand leases are written: rewritten.py draws it.

Lost is what the receivers miss by the numbers of what was sent, 10 000 a second each way.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from itertools import pairwise

import pytest

from bench.figures import figure
from bench.lab import stopped, wait_for
from tests.e2e.frames import US
from tests.e2e.numbered import RATE_PPS, Numbered
from tests.e2e.pair import Monitor, is_ready, kill
from tests.e2e.rewritten import Rewritten, counted

READY_S = 30.0
OUTAGE_S = int(os.environ.get("OUTAGE_S", "60"))  # of the long one


@pytest.fixture(scope="module", params=["userspace", pytest.param("kernel", marks=pytest.mark.soak)])
def rewritten(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Rewritten]:
    """Yield the nodes; at the end each side must have accounted for every packet."""
    flags = ("--datapath", request.param)
    with Rewritten(tmp_path_factory.mktemp("rewritten"), flags) as built:
        yield built


def kill_in_a_rewrite(rewritten: Rewritten) -> None:
    """Write all leases; kill control in the middle, and start another that is to be killed in its turn."""
    daemon, rng = rewritten.daemon, rewritten.rng
    order = rewritten.order()
    at = rng.randrange(1, len(order))
    if rng.random() < 0.5:  # or else it is killed while it starts, or soon after
        wait_for(lambda: is_ready(daemon), lambda: f"ready: {daemon.log()[-500:]}", READY_S)
    for some in order[:at]:
        rewritten.write(some)
    kill(daemon)
    for some in order[at:]:
        rewritten.write(some)
    daemon.launch()


def datapath(rewritten: Rewritten) -> str:
    """Return what a figure is of: ours, or the kernel's datapath under our control."""
    return "kernel VXLAN" if rewritten.daemon.is_kernel else ""


def tell(rewritten: Rewritten, stream: Numbered) -> None:
    """Tell what was lost of a stream."""
    figure("sent", [stream.sent], "packets", datapath(rewritten))
    figure("lost", [stream.sent - stream.came], "packets", datapath(rewritten))


@pytest.mark.parametrize(
    "kills",
    [
        pytest.param(8, id="8"),
        pytest.param(100, id="100", marks=[pytest.mark.soak, pytest.mark.timeout(900)]),
    ],
)
def test_case_125_killed_in_a_rewrite(rewritten: Rewritten, kills: int) -> None:
    """Control killed at random moments: nothing lost, only what changed touched, and at last as the store."""
    first, marks = rewritten.told(), [counted(rewritten)]
    with Monitor(rewritten.space, "neigh") as monitor, rewritten.stream() as stream:
        for _ in range(kills):
            kill_in_a_rewrite(rewritten)
            rewritten.check_told(first)
            marks.append(counted(rewritten))
        wait_for(lambda: is_ready(rewritten.daemon), "ready", READY_S)
        rewritten.settle()
        stream.flow_on()
    tell(rewritten, stream)
    figure("kills", [kills], "processes", datapath(rewritten))
    assert stream.wrong == [], rewritten.dropped()
    assert stream.came == stream.sent
    rewritten.check_told(first)
    assert rewritten.strange(monitor.said) == []
    for one, other in pairwise(marks):
        assert all(was <= now for was, now in zip(one, other, strict=True)), (one, other)


@pytest.mark.parametrize(
    "still_s", [pytest.param(1, id="1s"), pytest.param(5, id="5s", marks=pytest.mark.soak)]
)
def test_hung_control(rewritten: Rewritten, still_s: int) -> None:
    """Control stands still while all leases are written: nothing is lost; awake again, it is as the store."""
    daemon, first = rewritten.daemon, rewritten.told()
    assert daemon.process is not None
    with Monitor(rewritten.space, "neigh") as monitor, rewritten.stream() as stream:
        with stopped(daemon.process.pid):
            for some in rewritten.order():
                rewritten.write(some)
            stream.flow_on(still_s * RATE_PPS)
            assert rewritten.told() == first
        rewritten.settle()
        stream.flow_on()
    assert stream.wrong == [], rewritten.dropped()
    rewritten.check_told(first)
    assert rewritten.strange(monitor.said) == []
    assert daemon.status()["ready"]


@pytest.mark.parametrize(
    "still_s",
    [
        pytest.param(3, id="3s"),
        pytest.param(OUTAGE_S, id="long", marks=[pytest.mark.soak, pytest.mark.timeout(180 + 2 * OUTAGE_S)]),
    ],
)
def test_case_115_hung_store(rewritten: Rewritten, still_s: int) -> None:
    """etcd stands still: nothing is lost and nothing touched; awake again, it is followed from there."""
    daemon, first = rewritten.daemon, rewritten.told()
    (member,) = daemon.etcd.members
    with rewritten.stream() as stream:
        with Monitor(rewritten.space, "neigh") as monitor:
            member.signal(signal.SIGSTOP)
            try:
                stream.flow_on(still_s * RATE_PPS)
                assert rewritten.told() == first
                assert daemon.status()["subnet"] == US.subnet
            finally:
                member.signal(signal.SIGCONT)
        rewritten.write(rewritten.moving)
        rewritten.settle()
        stream.flow_on()
    tell(rewritten, stream)
    figure("outage", [still_s], "s", datapath(rewritten))
    assert stream.wrong == [], rewritten.dropped()
    assert rewritten.strange(monitor.said) == []
    rewritten.check_told(first)
