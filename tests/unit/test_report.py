# SPDX-License-Identifier: Apache-2.0
"""Which part of a node is not ready, told apart from the reconciler's and the lease's reasons."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest

from dataplane.backend import Backend
from dataplane.errors import ControlError, KernelError, RuntimeFailure
from dataplane.figures import Dataplane
from dataplane.leasing import Leasing
from dataplane.model import HostFacts, Listed
from dataplane.netlink import Host
from dataplane.recall import Recall
from dataplane.reconcile import Reconciler
from dataplane.report import PARTS, Report
from dataplane.rundir import RunDir
from dataplane.traffic import Traffic
from tests.leases import CONFIG, FACTS, IP1, lease, listed

RUNNING = Dataplane(is_alive=True, state="running")
FINE = dict.fromkeys(PARTS)


@dataclass
class FakeBackend:
    """A backend that is as it is told."""

    dataplane: Dataplane = field(default_factory=lambda: RUNNING)

    def describe(self) -> Dataplane:
        """Return what it was told."""
        return self.dataplane

    def warnings(self) -> tuple[str, ...]:
        """Return none: so do host and traffic, for which it stands as well."""
        return ()


@dataclass
class FakeRecall:
    """What is said of the state that a node runs on: older each time."""

    age: int = 0

    def note(self) -> str:
        """Say how old it is."""
        self.age += 1
        return f"{self.age} s old"

    def warnings(self) -> tuple[str, ...]:
        """Return none."""
        return ()


@dataclass
class FakeLeasing:
    """A lease that is as it is told."""

    problem: str | None = None

    def reason(self) -> str | None:
        """Return what it was told."""
        return self.problem


def report(tmp_path: Path, event: Listed | None, facts: HostFacts = FACTS) -> Report:
    """Return the report of a node that has heard this of its store."""
    fake = FakeBackend()
    made = Report(CONFIG, RunDir(tmp_path), cast(Host, fake), cast(Backend, fake), cast(Traffic, fake))
    made.reconciler = Reconciler(CONFIG, facts)
    made.is_carrying = True
    if event is not None:
        made.reconciler.apply(event, 0.0)
    return made


def check(made: Report, **wrong: Any) -> None:
    """Check which parts are wrong and why, and that the node is ready only if none is."""
    assert made.parts() == {**FINE, **wrong}
    ready, reason = made.readiness()
    assert ready == (not wrong)
    assert reason == "ok" if ready else reason in wrong.values()


def test_nothing_is_wrong(tmp_path: Path) -> None:
    """A node that works has no part that does not, even if its store is lost now."""
    made = report(tmp_path, listed(lease(1), lease(2)))
    made.store_error = "down"
    check(made)


def test_starting(tmp_path: Path) -> None:
    """Before anything was looked at, no part is known to work."""
    made = report(tmp_path, None)
    made.reconciler = None
    assert made.parts() == dict.fromkeys(PARTS, "starting")
    assert made.readiness() == (False, "starting")


def test_store(tmp_path: Path) -> None:
    """Until the store has said what the network is, that is what is wrong."""
    check(report(tmp_path, None), store="waiting for the store")
    check(report(tmp_path, Listed(1, None, (), "no network")), store="no network")


def test_lease(tmp_path: Path) -> None:
    """A lease that is not there, or not sure, is the lease's trouble."""
    made = report(tmp_path, listed(lease(2)))
    (problem,) = [text for text in made.parts().values() if text]
    assert problem.startswith("no lease has a PublicIP of this host")
    check(made, lease=problem)
    made = report(tmp_path, listed(lease(1)))
    made.leasing = cast(Leasing, FakeLeasing("our subnet is taken"))
    check(made, lease="our subnet is taken")


def test_host(tmp_path: Path) -> None:
    """An address that this host does not have any more is the host's trouble, not the lease's."""
    made = report(tmp_path, None)
    made.reconciler = Reconciler(replace(CONFIG, public_ip=IP1), FACTS)
    made.reconciler.apply(listed(lease(1)), 0.0)
    check(made)
    made.reconciler.host_changed(HostFacts(), 1.0)
    check(made, host="no interface of this host has the address 192.0.2.1")


@pytest.mark.parametrize(
    ("err", "part"),
    [
        pytest.param(KernelError("netlink", 1), "host", id="kernel"),
        pytest.param(RuntimeFailure("port is held"), "host", id="port"),
        pytest.param(ControlError("forwarder refused GO"), "forwarder", id="forwarder"),
    ],
)
def test_failed_pass(tmp_path: Path, err: RuntimeFailure, part: str) -> None:
    """What a pass failed with belongs to the part that failed."""
    made = report(tmp_path, listed(lease(1)))
    made.fail(err)
    check(made, **{part: str(err)})
    made.trouble = None
    check(made)


def test_not_set_up(tmp_path: Path) -> None:
    """Until the first pass is through, the host is not as it must be, nor is the forwarder."""
    made = report(tmp_path, listed(lease(1)))
    made.is_carrying = False
    check(made, host="not set up yet", forwarder="starting, forwarder is running")


def test_forwarder(tmp_path: Path) -> None:
    """A forwarder that is not there, or does not run yet, is named as it is."""
    made = report(tmp_path, listed(lease(1)))
    backend = cast(FakeBackend, made._backend)
    backend.dataplane = Dataplane()
    check(made, forwarder="no forwarder")
    backend.dataplane = Dataplane(is_alive=True, state="empty")
    check(made, forwarder="starting, forwarder is empty")


def test_one_status_says_one_thing(tmp_path: Path) -> None:
    """How old the state is that a node runs on is said once: as reason, as warning and of the store."""
    made = report(tmp_path, listed(lease(1)))
    made.recall = cast(Recall, FakeRecall())
    status = cast(dict[str, Any], made.describe({}))
    assert status["reason"] == status["warnings"][0] == status["parts"]["store"] == "1 s old"
