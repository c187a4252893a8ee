# SPDX-License-Identifier: Apache-2.0
"""A flood of strangers' packets: drawing in rig.py. bench/flood.py measures what it leaves to a peer."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.lab import wait_for
from dataplane.status import status_text
from tests.e2e import frames
from tests.e2e.frames import DUAL, STRANGER, from_peer, vxlan
from tests.e2e.rig import DEFAULT_FLAGS, ROOT, Rig

BURSTS, BURST = 40, 500
NOISE_KIB = 64  # pages that a process touches now and then


@pytest.fixture(params=["true", "false"], ids=["firewall", "forwarder"])
def flooded(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    """Yield a rig that refuses strangers by the firewall, or by the forwarder alone."""
    with Rig(tmp_path / "node", flags=(*DEFAULT_FLAGS, f"--guard={request.param}")) as built:
        yield built


def counted(rig: Rig) -> int:
    """Return how many strangers' packets were counted, wherever they ended."""
    status = rig.daemon.status()
    kernel = rig.daemon.settled().queue_drops
    return int(
        status["guard"].get("strangers", 0)
        + status["rx"]["drops"].get("unknown_vtep", 0)
        + sum(kernel.values())
    )


def flood(rig: Rig) -> int:
    """Send bursts of strangers' packets, and a peer's after each, which must arrive; return how many."""
    frame, (inner, good) = bytes(vxlan(from_peer(DUAL), STRANGER)), frames.good()
    for _ in range(BURSTS):
        rig.overlay.take()
        rig.wire.send(*[frame] * BURST, bytes(good))
        assert rig.overlay.wait(lambda got: got == bytes(inner), "the peer's packet") == [bytes(inner)]
    return BURSTS * BURST


def memory_kib(rig: Rig) -> int:
    """Return the resident memory of the forwarder."""
    lines = Path(f"/proc/{rig.daemon.forwarder_pid()}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def test_case_140_flood_of_strangers(flooded: Rig) -> None:
    """Each packet of a flood is counted once, a peer's pass between them, and the forwarder does not grow."""
    flood(flooded)  # what is touched for the first time is no growth
    before, before_kib = counted(flooded), memory_kib(flooded)
    sent = flood(flooded)
    wait_for(lambda: counted(flooded) - before == sent, f"{sent} strangers are counted", 5.0)
    assert memory_kib(flooded) - before_kib <= NOISE_KIB
    status = flooded.daemon.status()
    assert status["rx"]["last"]["unknown_vtep"]["address"] == STRANGER.ip
    strangers = status["guard"].get("strangers", 0)
    assert (strangers > sent) if status["guard"] else (strangers == 0)
    assert ("(strangers)" in status_text(status)) == bool(status["guard"])


@pytest.mark.soak
@pytest.mark.alone
def test_the_bench_of_it_runs() -> None:
    """The bench prints a row for each system, and takes its labs down."""
    command = [sys.executable, "-m", "bench.flood", "--rounds", "1", "--seconds", "1"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as bench:
        said, _ = bench.communicate(timeout=120)
    assert bench.returncode == 0
    for name in ("kernel-vxlan", "overlayd --guard=false", "overlayd  "):
        assert any(line.startswith(name) and "kpps" in line for line in said.splitlines())
    assert (
        f"ovl-bench{bench.pid}-" not in subprocess.run(["ip", "netns"], capture_output=True, text=True).stdout
    )
