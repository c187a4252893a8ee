# SPDX-License-Identifier: Apache-2.0
"""Groups of the kernel's CPU controller, of either version: with a quota, or with what others leave."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

PERIOD_US = 100_000


def cpu_controller() -> Path | None:
    """Return our own group of the CPU controller; None if there is none to be had."""
    groups = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount, kind, options, *_ = line.split()
        for number, controllers, path in groups:
            own = Path(mount) / path.lstrip("/")
            if kind == "cgroup" and "cpu" in controllers.split(",") and "cpu" in options.split(","):
                return own
            subtree = own / "cgroup.subtree_control"
            if (
                kind == "cgroup2"
                and number == "0"
                and subtree.exists()
                and "cpu" in subtree.read_text().split()
            ):
                return own
    return None


@contextlib.contextmanager
def _group(parent: Path, pids: Sequence[int]) -> Iterator[Path]:
    """Make a group for the block; its processes go back to the parent at the end."""
    group = parent / f"overlayd-{os.getpid()}-{min(pids)}"
    group.mkdir()
    try:
        yield group
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                (parent / "cgroup.procs").write_text(str(pid))
        group.rmdir()


def _join(group: Path, pids: Sequence[int]) -> None:
    for pid in pids:
        (group / "cgroup.procs").write_text(str(pid))


@contextlib.contextmanager
def quota(parent: Path, pid: int, share: float) -> Iterator[None]:
    """Let a process have that share of one CPU while the block lasts."""
    with _group(parent, [pid]) as group:
        allowed_us = round(share * PERIOD_US)
        if (group / "cpu.max").exists():
            (group / "cpu.max").write_text(f"{allowed_us} {PERIOD_US}")
        else:
            (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
            (group / "cpu.cfs_quota_us").write_text(str(allowed_us))
        _join(group, [pid])
        yield


@contextlib.contextmanager
def leftovers(parent: Path, pids: Sequence[int]) -> Iterator[None]:
    """Let processes have only what no process of any other group wants, while the block lasts.

    SCHED_IDLE alone says so within one group or session (autogroup) only. cpu.idle: since Linux 5.15.
    """
    with _group(parent, pids) as group:
        (group / "cpu.idle").write_text("1")
        _join(group, pids)
        yield
