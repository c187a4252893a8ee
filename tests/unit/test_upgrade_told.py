# SPDX-License-Identifier: Apache-2.0
"""What `overlayd upgrade` makes of what control says, and for how long it waits; a fake control answers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dataplane import upgrade
from dataplane.errors import ControlError, NotRunning, RuntimeFailure
from dataplane.rundir import Lock, RunDir

NOBODY = 1 << 22  # no process has this number: it is more than pid_max may be
WAITS_S = 0.3


class FakeControl:
    """Answers as it is told: the first status is that of before, the others that of after."""

    def __init__(self) -> None:
        self.before = status("1")
        self.after = status("2")
        self.told: dict[str, Any] | Exception = {"version": "2", "pid": NOBODY}
        self.is_there = True  # afterwards
        self.asked = 0
        self.lock: Lock | None = None  # of the run directory

    def ask(self, run_dir: Path, request: dict[str, object], timeout_s: float = 0) -> Any:
        """Be asked."""
        if request == {"cmd": "upgrade"}:
            if isinstance(self.told, Exception):
                raise self.told
            return self.told
        self.asked += 1
        if self.asked == 1:
            return self.before
        if not self.is_there:
            raise NotRunning("nobody")
        return self.after


def status(of: str, **forwarder: Any) -> dict[str, Any]:
    """Return what control says of itself and of a forwarder."""
    return {
        "ready": True,
        "reason": "it starts",
        "control": {"version": of, "build": of, "uptime_s": 1e6 if of == "1" else -1.0},
        "forwarder": {"pid": int(of), "version": of, "build": of, **forwarder},
        "kernel": {"tun_tx_dropped": 0, "rxq_overflow": {}},
        "tx": {"drops": {}},
        "rx": {"drops": {}},
    }


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeControl]:
    """Yield a control that is asked instead of a real one; who waits for it waits shortly."""
    made = FakeControl()
    monkeypatch.setattr(upgrade, "ask", made.ask)
    monkeypatch.setattr(upgrade, "READY_TIMEOUT_S", WAITS_S)
    monkeypatch.setattr(upgrade, "GONE_S", 0.0)
    monkeypatch.setattr(upgrade, "RETRY_S", 0.001)
    yield made
    if made.lock is not None:
        made.lock.close()


def failed(where: Path) -> str:
    """Return what it fails with."""
    with pytest.raises(RuntimeFailure) as caught:
        upgrade.upgrade(where, as_json=False)
    return str(caught.value)


def test_what_is_told(fake: FakeControl, tmp_path: Path) -> None:
    """A forwarder that was replaced is told of with what it cost; one that is the same, as being that."""
    fake.after = status("2", hand_over={"paused_ms": 1.5, "error": None})
    said = upgrade.upgrade(tmp_path, as_json=False)
    assert said.endswith("forwarder 1 build 1 -> 2 build 2, packets waited 1.5 ms, no packet lost")
    fake.asked, fake.after = 0, status("2", pid=1)
    assert upgrade.upgrade(tmp_path, as_json=False).endswith("; the forwarder is 2 build 2 already")


def test_forwarder_that_stays_is_a_failure(fake: FakeControl, tmp_path: Path) -> None:
    """Half an upgrade ends with status 1 and says what is still as it was, and why."""
    fake.after = status("2", version="1", build="1", hand_over={"error": "no successor"})
    assert failed(tmp_path).endswith("is still 1 build 1, and packets flow: no successor")


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ('"upgrade": allowed as "cmd" are status, peers', "the running overlayd cannot upgrade itself"),
        ("what is installed does not start: x", "nothing was changed: what is installed does not start: x"),
    ],
    ids=["older", "refused"],
)
def test_refusals(fake: FakeControl, tmp_path: Path, said: str, why: str) -> None:
    """A control that knows no upgrade is to be restarted; one that refuses says why."""
    fake.told = ControlError(said)
    assert failed(tmp_path).startswith(why)


def test_control_that_becomes_something_else(fake: FakeControl, tmp_path: Path) -> None:
    """A control that follows and is not what was installed is told at once."""
    fake.after = status("3")
    assert "could not become 2" in failed(tmp_path)
    assert fake.asked == 2


def test_control_that_is_not_ready(fake: FakeControl, tmp_path: Path) -> None:
    """A control that follows and does not get ready is waited for, and then told of with its reason."""
    fake.after["ready"] = False
    assert "not ready after 0 s, packets flow on without: it starts" in failed(tmp_path)
    assert fake.asked > 2


def _nothing(where: Path, fake: FakeControl) -> None:
    pass


def _process(where: Path, fake: FakeControl) -> None:
    assert isinstance(fake.told, dict)
    fake.told["pid"] = os.getpid()


def _held(where: Path, fake: FakeControl) -> None:
    run_dir = RunDir(where)
    run_dir.prepare()
    fake.lock = run_dir.lock()


@pytest.mark.parametrize(
    ("make", "is_waited_for"),
    [(_nothing, False), (_process, True), (_held, True)],
    ids=["gone", "lives", "held"],
)
def test_control_that_is_gone(
    fake: FakeControl, tmp_path: Path, make: Callable[[Path, FakeControl], None], is_waited_for: bool
) -> None:
    """No control, no process, and nobody's run directory: nobody comes any more. Otherwise somebody may."""
    make(tmp_path, fake)
    fake.is_there = False
    begun_s = time.monotonic()
    assert "no overlayd run answers" in failed(tmp_path)
    assert (time.monotonic() - begun_s >= WAITS_S) == is_waited_for
    assert (fake.asked == 2) != is_waited_for


def losing(tun: int = 0, udp4: int = 0, tx: int = 0, rx: int = 0) -> dict[str, Any]:
    """Return the status of a node that has lost so many packets in each place."""
    drops = {"tx": {"drops": {"restart": tx} if tx else {}}, "rx": {"drops": {"restart": rx} if rx else {}}}
    return {**status("1"), "kernel": {"tun_tx_dropped": tun, "rxq_overflow": {"udp4": udp4}}, **drops}


@pytest.mark.parametrize(
    ("before", "after", "lost"),
    [
        pytest.param(losing(1, 2, 3, 4), losing(1, 2, 3, 4), 0, id="none"),
        pytest.param(losing(1, 2, 3, 4), losing(2, 4, 6, 8), 10, id="some_everywhere"),
        pytest.param(losing(tun=1, tx=64), losing(tun=1), 0, id="counters_begun_anew"),
        pytest.param(losing(tun=1, tx=64, rx=9), losing(tun=3, rx=5), 7, id="and_some_since"),
    ],
)
def test_what_was_lost(before: dict[str, Any], after: dict[str, Any], lost: int) -> None:
    """What each place has lost more than before; all that it says where counting was begun anew."""
    assert upgrade._compare(before, after, 0.5)["forwarder"]["dropped"] == lost
