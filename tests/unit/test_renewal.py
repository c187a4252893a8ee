# SPDX-License-Identifier: Apache-2.0
"""One control follows another: what is installed is tried first, and who is in the way is asked to leave."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dataplane import anew, renewal
from dataplane.config import RunConfig
from dataplane.errors import ControlError, NotRunning, RuntimeFailure
from dataplane.renewal import Leave, Renewal
from dataplane.rundir import RunDir

UNKNOWN = 'allowed as "cmd" are status, stop'


def check(monkeypatch: pytest.MonkeyPatch, code: str, **config: Any) -> str:
    """Return which version is found if this is what is installed."""
    monkeypatch.setattr(anew, "own_command", lambda: [sys.executable, "-c", code])
    return asyncio.run(renewal.check_installed(RunConfig(store="file:///x", **config)))


def test_version_of_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What says its version and ends well is what control becomes."""
    assert check(monkeypatch, "import sys; sys.stderr.write('overlayd 9.8.7\\n')") == "9.8.7"


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import sys; sys.stderr.write('overlayd 9.8.7\\n'); sys.exit(1)", "does not start: overlayd 9.8.7"),
        ("import sys; sys.stderr.write('overlayd: no disk\\n')", "does not start: no disk"),
        ("", "does not start: it said nothing"),
    ],
    ids=["fails", "no_version", "silent"],
)
def test_what_does_not_start(monkeypatch: pytest.MonkeyPatch, code: str, why: str) -> None:
    """What fails, or says no version, is not what control becomes."""
    with pytest.raises(RuntimeFailure, match=why):
        check(monkeypatch, code)


@pytest.mark.parametrize("port", [1, 1023])
@pytest.mark.parametrize("name", ["healthz", "metrics"])
def test_ports_that_need_a_capability(monkeypatch: pytest.MonkeyPatch, name: str, port: int) -> None:
    """A port that could not be had again is told beforehand; others are none of that."""
    version = "import sys; sys.stderr.write('overlayd 9.8.7\\n')"
    with pytest.raises(RuntimeFailure, match=f"--{name}-port {port} needs a capability"):
        check(monkeypatch, version, **{f"{name}_port": port})
    for other in (0, 1024):
        assert check(monkeypatch, version, **{f"{name}_port": other}) == "9.8.7"


def answering(answers: dict[str, Exception | None], asked: list[object]) -> Callable[..., object]:
    """Return a control that answers each request so."""

    def ask(run_dir: Path, request: dict[str, object]) -> object:
        asked.append(request["cmd"])
        if (answer := answers[str(request["cmd"])]) is not None:
            raise answer
        return {"pid": 1}

    return ask


@pytest.mark.parametrize(
    ("answers", "is_there", "asked"),
    [
        ({"replace": None}, True, ["replace"]),
        ({"replace": NotRunning("nobody")}, False, ["replace"]),
        ({"replace": ControlError(UNKNOWN), "stop": None}, True, ["replace", "stop"]),
        ({"replace": ControlError(UNKNOWN), "stop": NotRunning("nobody")}, False, ["replace", "stop"]),
    ],
    ids=["lets_go", "nobody", "older", "older_and_gone"],
)
def test_who_is_asked_to_leave(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    answers: dict[str, Exception | None],
    is_there: bool,
    asked: list[str],
) -> None:
    """A control lets go, an older one that knows no such word is told to stop, and nobody is nobody."""
    said: list[object] = []
    monkeypatch.setattr(renewal, "ask", answering(answers, said))
    assert renewal._ask_to_leave(tmp_path, "replace") == is_there
    assert said == asked


@pytest.mark.parametrize("request_", ["replace", "stop"])
def test_who_does_not_leave(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request_: str) -> None:
    """A control that refuses even to stop is to be killed by whoever wants it gone."""
    refuses: dict[str, Exception | None] = {"replace": ControlError(UNKNOWN), "stop": ControlError(UNKNOWN)}
    monkeypatch.setattr(renewal, "ask", answering(refuses, []))
    with pytest.raises(RuntimeFailure, match="Kill it, then try again"):
        renewal._ask_to_leave(tmp_path, request_)


@pytest.mark.timeout(20)
def test_directory_that_is_not_let_go_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Who says that it leaves and stays is waited for, but not for ever; then the next one is owner."""
    monkeypatch.setattr(renewal, "ask", answering({"replace": None}, []))
    monkeypatch.setattr(renewal, "LEAVE_TIMEOUT_S", 0.05)
    run_dir = RunDir(tmp_path / "run")
    run_dir.prepare()
    lock = run_dir.lock()
    with pytest.raises(RuntimeFailure, match="owns"):
        renewal.follow(run_dir)
    lock.close()
    renewal.follow(run_dir).close()


def test_interpreter_that_is_gone_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is installed any more that could start, control goes on, and says why."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    stopped: list[bool] = []
    ours = Renewal(RunConfig(store="etcd"), lambda: stopped.append(True))
    with pytest.raises(RuntimeFailure, match="does not start: No such file or directory"):
        asyncio.run(ours.answer({"cmd": "upgrade"}))
    assert (ours.leave, stopped) == (Leave.END, [])
