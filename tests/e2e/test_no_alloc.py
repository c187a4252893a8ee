# SPDX-License-Identifier: Apache-2.0
"""The forwarder's workers ask the kernel for no memory once they run, whatever comes by.

    wire0 (the test as peers) ── under0  overlayd (strace looks on)  pod0 ── podw0 (the test as pods)

Drawn in full at the head of rig.py. strace watches every thread of the forwarder; the thread that takes
control's messages maps each new table, which shows that strace sees such calls.
"""

from __future__ import annotations

import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from bench.lab import wait_for
from tests.e2e import frames
from tests.e2e.frames import DUAL, FOUR, IPIP, US, from_peer, inner4, inner6, ipip, vxlan, vxlan6
from tests.e2e.rig import Rig

MEMORY_CALLS = "brk,mmap,munmap,mremap,madvise"
LINE = re.compile(r"^(\d+) +(\w+)\(")
STEP = 100  # packets each way at a time
TABLES, PATIENCE_S = 3, 30.0


def packets(rig: Rig) -> tuple[list[bytes], list[bytes]]:
    """Return tunnel packets and pods' packets of many kinds, good and bad, each to be sent many times."""
    rx = [vxlan(from_peer(DUAL)), vxlan6(from_peer(DUAL, 6)), ipip(from_peer(IPIP)), vxlan(from_peer(FOUR))]
    rx += [vxlan(from_peer(DUAL), frames.STRANGER), vxlan(from_peer(DUAL, ttl=0)), frames.udp4(b"x")]
    tx = [inner4(US.pod(), DUAL.pod(), payload=bytes(1300)), inner6(US.pod6(), DUAL.pod6())]
    tx += [inner4(US.pod(), IPIP.pod()), inner4(US.pod(), "10.244.99.5"), inner4("203.0.113.1", DUAL.pod())]
    return [bytes(frame) for frame in rx], [rig.to_pod_side(packet) for packet in tx]


def run_traffic(rig: Rig, seconds: float) -> int:
    """Send packets both ways, and let the table change all the time; return how many tables came in force.

    That goes on for some seconds, and until there were TABLES of them.
    """
    rx, tx = packets(rig)
    small = frames.peers_file(frames.PEERS[:-1])
    first = rig.daemon.counters.header().generation
    begun = time.monotonic()
    turn = tables = 0
    while time.monotonic() < begun + (seconds if tables >= TABLES else PATIENCE_S):
        rig.wire.send(*rx * (STEP // len(rx)))
        rig.pod.send(*tx * (STEP // len(tx)))
        if turn % 20 == 0:
            rig.daemon.write_peers(frames.peers_file() if turn % 40 else small)
        turn += 1
        rig.overlay.take()
        rig.wire.take()
        rig.daemon.settled()
        tables = rig.daemon.counters.header().generation - first
    return tables


@pytest.mark.parametrize("seconds", [3.0, pytest.param(30.0, marks=pytest.mark.soak)])
def test_workers_ask_for_no_memory(rig: Rig, tmp_path: Path, seconds: float) -> None:
    """During traffic and publishes no worker thread calls brk, mmap or munmap; the control thread does."""
    pid = rig.daemon.forwarder_pid()
    threads = {int(path.name) for path in Path(f"/proc/{pid}/task").iterdir()}
    assert len(threads) > 1
    trace = tmp_path / "trace"
    command = ["strace", "-f", "-p", str(pid), "-e", f"trace={MEMORY_CALLS}", "-o", str(trace)]
    tracer = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: _traced(threads), "strace is attached to every thread")
        tables = run_traffic(rig, seconds)
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.wait(10)
    calls = [match for line in trace.read_text(encoding="utf-8").splitlines() if (match := LINE.match(line))]
    by_control = [call[2] for call in calls if int(call[1]) == pid]
    by_workers = [(call[1], call[2]) for call in calls if int(call[1]) != pid]
    assert tables >= TABLES
    assert by_control.count("mmap") >= tables
    assert by_workers == []


def _traced(threads: set[int]) -> bool:
    return all(
        "TracerPid:\t0\n" not in Path(f"/proc/{thread}/status").read_text(encoding="ascii")
        for thread in threads
    )
