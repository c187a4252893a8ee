# SPDX-License-Identifier: Apache-2.0
"""Over how many threads, queues and source ports the flows of a node are spread."""

from __future__ import annotations

import os
from dataclasses import dataclass

from dataplane import native
from dataplane.backend.offloads import Offloads
from dataplane.config import RunConfig
from dataplane.errors import KernelError
from dataplane.journal import Journal
from dataplane.slots import Fd, Fds, slot_of

log = Journal("backend")

FEW_CPUS = 2  # on so few, pods need what a second thread would take
SOURCES_FEW, SOURCES_MANY = 4, 16
QUEUES = 4  # at least: a flow with few packets shares one with a bulk flow in one case of four
THREADS_MAX = 8


@dataclass(frozen=True, slots=True)
class Spread:
    """How many there are of each; every queue is one thread's."""

    threads: int
    queues: int
    sources: int


def choose_spread(config: RunConfig, cpus: int) -> Spread:
    """Return what was told, and for the rest what fits a number of processors."""
    threads = config.threads or (1 if cpus <= FEW_CPUS else min(cpus // 2, THREADS_MAX))
    sources = config.source_ports or (SOURCES_FEW if cpus <= FEW_CPUS else SOURCES_MANY)
    return Spread(threads, max(config.queues or QUEUES, threads), sources)


def find_spread(config: RunConfig) -> Spread:
    """Return what is told, or fits this machine."""
    return choose_spread(config, os.cpu_count() or 1)


def queue_warnings(config: RunConfig, queues: int) -> list[str]:
    """Say that flows share a queue because we may not keep each to its own, if so."""
    wanted = find_spread(config).queues
    if queues >= wanted:
        return []
    return [
        f"one queue instead of {wanted}: packets wait behind bulk transfers. "
        "Fix: start with CAP_BPF, or ask for no more: --queues 1"
    ]


def open_queues(name: str, wanted: int, offloads: Offloads, held: Fds, opened: Fds) -> int:
    """Open the queues of the TUN that are missing behind the first one; return how many there are now.

    Where the kernel does not let us keep flows to their queues, one queue is all there is.
    """
    first = opened.get(Fd.TUN, held.get(Fd.TUN, -1))
    if wanted > 1:
        try:
            native.tun_steer(first)
        except KernelError as err:
            log.warning("one queue only", error=err)
            return 1
    for index in range(1, wanted):
        slot = slot_of(Fd.TUN, index)
        if Fd.TUN in opened or slot not in held:
            opened[slot] = offloads.open_tun(name).fd
    return wanted
