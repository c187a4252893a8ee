# SPDX-License-Identifier: Apache-2.0
"""`overlayd cni-conf --follow`: the file follows subnet.env until the program is told to end."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench.lab import wait_for
from dataplane import cli
from dataplane.store.watch import PathWatch

START_S = 20.0
ENV = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.{}.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"


def subnet_of(path: Path) -> str | None:
    """Return the subnet that a network config gives pods addresses of; None if there is none."""
    if not path.exists():
        return None
    ipam = json.loads(path.read_text(encoding="utf-8"))["plugins"][0]["ipam"]
    return str(ipam["ranges"][0][0]["subnet"])


def test_it_follows(tmp_path: Path) -> None:
    """It waits for subnet.env, writes what that says each time it changes, says so once, and ends with 0."""
    source, target, log = tmp_path / "subnet.env", tmp_path / "net.d" / "10.conflist", tmp_path / "log"
    paths = ("--subnet-file", str(source), "--output", str(target), "--data-dir", str(tmp_path / "data"))
    command = [sys.executable, "-m", "dataplane", "cni-conf", "--follow", *paths]
    with log.open("wb") as out, subprocess.Popen(command, stderr=out, stdout=out) as process:
        try:
            wait_for(lambda: "there is no subnet file" in log.read_text(), "it waits", START_S)
            assert not target.exists()
            for third in (1, 2):
                draft = tmp_path / "draft"
                draft.write_text(ENV.format(third), encoding="ascii")
                draft.replace(source)
                wait_for(lambda: subnet_of(target) == f"10.244.{third}.0/24", "the file follows", START_S)  # noqa: B023
            source.write_text("FLANNEL_MTU=1450\n", encoding="ascii")
            wait_for(lambda: "is no good" in log.read_text(), "it says what is wrong", START_S)
            assert subnet_of(target) == "10.244.2.0/24"
            process.send_signal(signal.SIGTERM)
            assert process.wait(START_S) == 0
        finally:
            process.kill()
    lines = log.read_text(encoding="utf-8").splitlines()
    assert [line.partition("10.conflist")[2] for line in lines if "wrote" in line] == [
        ": 10.244.1.0/24, MTU 1450",
        ": 10.244.2.0/24, MTU 1450",
    ]
    assert len(lines) == len(set(lines))


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        pytest.param("__init__", errno.EMFILE, "raise the sysctl fs.inotify.max_user_instances", id="open"),
        pytest.param("follow", errno.ENOSPC, "raise the sysctl fs.inotify.max_user_watches", id="follow"),
    ],
)
def test_cannot_watch(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    error: int,
    said: str,
) -> None:
    """Where nothing can be watched it ends with one line that says why, and what to do."""

    def fail(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(PathWatch, name, fail)
    path = tmp_path / "subnet.env"
    words = ["--subnet-file", str(path), "--output", str(tmp_path / "10.conflist")]
    assert cli.main(["cni-conf", "--follow", *words]) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"overlayd: cannot watch {path}: ")
    assert told.endswith(f"; {said}\n")
    assert told.count("\n") == 1


def test_nowhere_to_write(capsys: pytest.CaptureFixture[str]) -> None:
    """Standard output cannot follow anything: one line, and status 2."""
    assert cli.main(["cni-conf", "--follow", "--output", "-"]) == 2
    assert "give another --output" in capsys.readouterr().err
