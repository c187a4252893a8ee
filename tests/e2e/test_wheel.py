# SPDX-License-Identifier: Apache-2.0
"""The wheel of `make wheel` on a node that has Python and nothing else: no compiler, no other program.

It fetches what overlayd depends on, as .ci/setup does.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.lab import Namespace
from dataplane import VERSION
from tests.e2e.pair import peers_file
from tests.e2e.rig import ROOT, Daemon

pytestmark = [pytest.mark.soak, pytest.mark.timeout(300)]

SOURCES = ("dataplane", "csrc", "pyproject.toml", "README.md", "LICENSE")
PIP = ("-m", "pip", "--quiet", "--disable-pip-version-check")


def run(*words: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, away from the checkout."""
    env = {**os.environ, **environ}
    return subprocess.run(
        list(map(str, words)), cwd="/", env=env, capture_output=True, text=True, timeout=240
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the wheel, built from a copy of the sources in which nothing was built before."""
    source, dist = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    flags = ("--no-deps", "--no-build-isolation", "--wheel-dir", dist)
    done = run(sys.executable, *PIP, "wheel", *flags, source)
    assert done.returncode == 0, done.stderr
    (found,) = dist.iterdir()
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the bin directory of a fresh environment that has the wheel, put there without any program."""
    empty, venv = tmp_path_factory.mktemp("empty"), tmp_path_factory.mktemp("venv")
    assert run(sys.executable, "-m", "venv", venv).returncode == 0
    install = ("install", "--only-binary", ":all:", wheel)
    done = run(venv / "bin" / "python", *PIP, *install, PATH=str(empty))
    assert done.returncode == 0, done.stderr
    return venv / "bin"


class InstalledDaemon(Daemon):
    """An `overlayd run` of an installed overlayd, with an empty PATH."""

    bin: Path

    def command(self, *args: str) -> list[str]:
        """Return an overlayd command line for this node."""
        command = ("env", "-C", "/", "PATH=/nonexistent", str(self.bin / "overlayd"), *args)
        return self.namespace.command(*command, "--run-dir", str(self.run_dir))


@pytest.fixture
def node(installed: Path, tmp_path: Path) -> Iterator[InstalledDaemon]:
    """Yield an overlayd on a host of its own, not started yet."""
    host = Namespace(f"whl{os.getpid() % 100000}")
    try:
        host.ip("link set lo up\nlink add under0 type veth peer name under1\nlink set under0 up\n")
        host.ip("link set under1 up\naddr add 192.0.2.1/24 dev under0\n")
        daemon = InstalledDaemon(host, tmp_path / "node", peers_file(), ("--public-ip", "192.0.2.1"))
        daemon.bin = installed
        yield daemon
        daemon.close()
    finally:
        host.close()


def test_one_wheel_for_all(wheel: Path) -> None:
    """It serves every Python from 3.11 on, holds the engine once, and nothing that only a checkout needs."""
    assert "-cp311-abi3-linux_" in wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    assert [name for name in names if name.endswith(".so")] == ["dataplane/_native.abi3.so"]
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"dataplane", "overlayd"}


def test_commands(installed: Path, tmp_path: Path) -> None:
    """Commands work without any program beside them; where nothing runs, `status` says so."""
    overlayd = installed / "overlayd"
    version = run(overlayd, "--version", PATH="/nonexistent")
    assert (version.returncode, version.stdout) == (0, f"overlayd {VERSION}\n")
    status = run(overlayd, "status", "--run-dir", tmp_path, PATH="/nonexistent")
    assert status.returncode == 3
    assert "not running" in status.stderr


def test_it_carries(node: InstalledDaemon) -> None:
    """It becomes ready, with a forwarder of the installed engine."""
    node.start()
    status = node.status()
    assert status["ready"]
    maps = Path(f"/proc/{status['forwarder']['pid']}/maps").read_text()
    assert str(node.bin.parent) in maps
    assert str(ROOT / "dataplane") not in maps
