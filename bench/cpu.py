# SPDX-License-Identifier: Apache-2.0
"""CPU time, of the machine and of processes, as /proc has it.

The kernel measures how long CPUs were idle and how long each process ran, but takes samples, 250 a second
here, to tell user from system from softirq; a load with a timer of its own easily hides from those. So how
much was used comes from what is measured, and only the split of it from the samples.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

KINDS = ("user", "system", "softirq")
_PF_KTHREAD = 0x00200000
_HERTZ = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Reading:
    """CPU seconds so far."""

    at_s: float
    idle: float
    steal: float
    samples: dict[str, float]  # by kind
    own: dict[int, float]  # of the lab's processes
    others: dict[int, float]  # of everybody else's; kernel threads are nobody's


@dataclass(frozen=True, slots=True)
class Use:
    """What was used between two readings, others not included."""

    seconds: float
    steal: float
    others: float
    by_kind: dict[str, float]


def _read_process(path: Path) -> tuple[int, float]:
    """Return flags and CPU seconds of a process."""
    fields = (path / "stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    return int(fields[6]), (int(fields[11]) + int(fields[12])) / _HERTZ


def read(namespaces: Collection[int]) -> Reading:
    """Read all clocks; a process is the lab's if its network namespace (an inode) is one of these."""
    own: dict[int, float] = {}
    others: dict[int, float] = {}
    for path in Path("/proc").iterdir():
        if not path.name.isdigit():
            continue
        try:
            flags, seconds = _read_process(path)
            if not flags & _PF_KTHREAD:
                is_own = (path / "ns" / "net").stat().st_ino in namespaces
                (own if is_own else others)[int(path.name)] = seconds
        except OSError:  # it has ended
            continue
    ticks = [int(word) for word in Path("/proc/stat").read_text(encoding="ascii").split("\n")[0].split()[1:9]]
    user, nice, system, idle, iowait, irq, softirq, steal = (count / _HERTZ for count in ticks)
    samples = {"user": user + nice, "system": system, "softirq": irq + softirq}
    return Reading(time.monotonic(), idle + iowait, steal, samples, own, others)


def _grown(before: dict[int, float], after: dict[int, float]) -> float:
    return sum(seconds - before.get(pid, 0.0) for pid, seconds in after.items())


def used(before: Reading, after: Reading) -> Use:
    """Return what the machine spent between two readings, without what others spent."""
    whole = (after.at_s - before.at_s) * (os.cpu_count() or 1)
    steal = after.steal - before.steal
    others = _grown(before.others, after.others)
    seconds = max(whole - (after.idle - before.idle) - steal - others, 0.0)
    grown = {kind: after.samples[kind] - before.samples[kind] for kind in KINDS}
    total = sum(grown.values())
    by_kind = {kind: seconds * grown[kind] / total if total else 0.0 for kind in KINDS}
    return Use(seconds, steal, others, by_kind)


def of_processes(before: Reading, after: Reading, pids: Collection[int]) -> float:
    """Return what some of the lab's processes used between two readings."""
    return sum(after.own[pid] - before.own.get(pid, 0.0) for pid in pids if pid in after.own)
