# SPDX-License-Identifier: Apache-2.0
"""CPU time, of the machine and of processes, as /proc has it."""

from __future__ import annotations

import os
from pathlib import Path


def machine_seconds() -> dict[str, float]:
    """Return the CPU seconds of the whole machine so far, by kind."""
    first = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:]
    user, nice, system, idle, iowait, irq, softirq, steal = (int(word) for word in first[:8])
    hertz = os.sysconf("SC_CLK_TCK")
    kinds = {
        "user": user + nice,
        "system": system,
        "softirq": irq + softirq,
        "steal": steal,
        "idle": idle + iowait,
    }
    return {kind: ticks / hertz for kind, ticks in kinds.items()}


def process_seconds(pids: list[int]) -> float:
    """Return the CPU seconds that processes have used so far; one that is gone has used none."""
    total = 0
    for pid in pids:
        try:
            fields = (
                Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2]
            )
        except OSError:
            continue
        total += sum(int(word) for word in fields.split()[11:13])
    return total / os.sysconf("SC_CLK_TCK")
