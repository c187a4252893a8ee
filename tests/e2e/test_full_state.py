# SPDX-License-Identifier: Apache-2.0
"""A state directory without room: a tmpfs of 16 KiB of its own. Drawing in rig.py, the store in leased.py."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.lab import wait_for
from dataplane import laststate
from dataplane.laststate import Clocks
from tests.e2e.frames import US
from tests.e2e.leased import LEASES, LeasedDaemon, LeasedRig, value

NEW = "10.244.9.0/24"
NEW_POD, NEW_IP, NEW_MAC = "10.244.9.5", "198.18.0.9", "02:4f:00:00:04:09"
TOLD = "the last state is not written"
AGAIN_S = 10.0  # it is tried every 3 s


class TightDaemon(LeasedDaemon):
    """A daemon whose state directory has room for little more than what is in it."""

    @property
    def state_dir(self) -> Path:
        """The state directory."""
        return self.directory / "state"

    @property
    def state_path(self) -> Path:
        """The file in which the last state is."""
        return self.state_dir / laststate.NAME

    def write_peers(self, peers: dict[str, Any] | str) -> None:
        """Fill a new store, and put a small disk in place of the state directory."""
        super().write_peers(peers)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", str(self.state_dir)], check=True)
        (self.state_dir / "vtep-mac").write_text(f"{US.mac}\n", encoding="ascii")

    def close(self) -> None:
        """End everything, and take the disk away."""
        try:
            super().close()
        finally:
            subprocess.run(["umount", "-l", str(self.state_dir)], check=True)

    def fill(self) -> Path:
        """Leave no room on it; return the file that takes it all."""
        filler = self.state_dir / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(1 << 12))
        return filler

    def kept(self) -> frozenset[str]:
        """Return the leases of peers in the last state; it is a whole one."""
        state = laststate.load(self.state_path, Clocks(time.monotonic(), time.time()))
        return frozenset() if state is None else state.names()

    def complaints(self) -> list[str]:
        """Return what status says of it."""
        return [line for line in self.status()["warnings"] if TOLD in line]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[tuple[LeasedRig, TightDaemon]]:
    """Yield a rig whose state has been written, and its daemon."""
    with LeasedRig(tmp_path / "node", TightDaemon) as built:
        assert isinstance(built.daemon, TightDaemon)
        wait_for(built.daemon.state_path.exists, "the state is written")
        yield built, built.daemon


def test_case_131_no_room(node: tuple[LeasedRig, TightDaemon]) -> None:
    """Without room for state a node goes on, says so once, keeps the old one, and catches up by itself."""
    rig, daemon = node
    before, known = daemon.state_path.read_bytes(), daemon.kept()
    assert known == {subnet.replace("/", "-") for subnet in LEASES if subnet != US.subnet}
    filler = daemon.fill()
    daemon.put(NEW, value(NEW_IP, NEW_MAC))
    daemon.sync()
    assert rig.route_of(NEW_POD) == (NEW_IP, NEW_MAC)
    wait_for(daemon.complaints, "it is told")
    tried_ns = daemon.state_dir.stat().st_mtime_ns  # by the draft, which comes and goes
    wait_for(lambda: daemon.state_dir.stat().st_mtime_ns != tried_ns, "it is tried again", AGAIN_S)
    assert daemon.complaints() == [f"{TOLD}: cannot write {daemon.state_path}: No space left on device"]
    assert daemon.status()["ready"]
    assert daemon.log().count(TOLD) == 1
    assert daemon.state_path.read_bytes() == before
    filler.unlink()
    wait_for(lambda: daemon.kept() == known | {NEW.replace("/", "-")}, "it is written", AGAIN_S)
    wait_for(lambda: not daemon.status()["warnings"], "it is told no more")
    assert daemon.log().count(TOLD) == 2, "once that it began, once that it is over"
    assert {path.name for path in daemon.state_dir.iterdir()} == {"vtep-mac", laststate.NAME}


def test_a_start_without_room(node: tuple[LeasedRig, TightDaemon]) -> None:
    """A node ends and starts without room for state, and what was kept stays whole."""
    rig, daemon = node
    before = daemon.state_path.read_bytes()
    daemon.fill()
    daemon.put(NEW, value(NEW_IP, NEW_MAC))
    daemon.sync()
    daemon.stop()
    assert daemon.log().count(f"{TOLD} error=") == 1
    daemon.start()
    assert rig.route_of(NEW_POD) == (NEW_IP, NEW_MAC)
    assert daemon.state_path.read_bytes() == before
