# SPDX-License-Identifier: Apache-2.0
"""Which datapath carries the packets where --datapath auto leaves it to us: the kernel's, if it can."""

from __future__ import annotations

from dataclasses import dataclass

RECHECK_S = 300.0
STEADY = 3  # looks in a row that must find the kernel able before a running node changes over


@dataclass(frozen=True, slots=True)
class Choice:
    """A datapath, and why it is that one."""

    datapath: str
    reason: str


def choose(wanted: str, obstacle: str | None) -> Choice:
    """Choose a datapath; `obstacle` says why the kernel's cannot be had, None if it can."""
    if wanted != "auto":
        return Choice(wanted, "--datapath")
    if obstacle is None:
        return Choice("kernel", "auto: the kernel has VXLAN devices")
    return Choice("userspace", f"auto: {obstacle}")


class Recheck:
    """Says when a node that fell back may go up again. A kernel that can now and then does not count."""

    def __init__(self, now: float) -> None:
        """Begin at a time (CLOCK_MONOTONIC, seconds)."""
        self._due_s = now + RECHECK_S
        self._able = 0

    def wait_s(self, now: float) -> float:
        """Return how long it is to the next look."""
        return max(0.0, self._due_s - now)

    def note(self, obstacle: str | None, now: float) -> bool:
        """Take what a look found; return whether it is time to change over."""
        self._due_s = now + RECHECK_S
        self._able = self._able + 1 if obstacle is None else 0
        return self._able >= STEADY
