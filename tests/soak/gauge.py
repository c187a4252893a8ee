# SPDX-License-Identifier: Apache-2.0
"""What a soak samples: memory, descriptors, threads and CPU of the processes of a node, and its counters."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from bench.lab import wait_for
from dataplane.native import DROP_NAMES, Totals
from tests.e2e.rig import Daemon, conserves

PROCESS = ("pid", "rss_kib", "pss_kib", "fds", "threads", "cpu_s")
BOOKS = ("offered", "forwarded", "unaccounted")
COLUMNS = (
    *("time_s", "node", "sent", "came"),
    *(f"{process}_{figure}" for process in ("control", "forwarder") for figure in PROCESS),
    *(f"{way}_{figure}" for way in ("tx", "rx") for figure in BOOKS),
    *("tun_full", "socket_full"),
    *(f"{way}_{reason}" for way in ("tx", "rx") for reason in DROP_NAMES[1:]),
)
TICKS = os.sysconf("SC_CLK_TCK")
EVEN_S = 1.0  # for counters: a worker may be kept from its processor in the middle of a batch

Row = dict[str, float | str]  # by column; what could not be read is left out


def read_process(pid: int) -> dict[str, float]:
    """Return the figures of a process; none if it has ended."""
    proc = Path(f"/proc/{pid}")
    try:
        lines = (proc / "smaps_rollup").read_text(encoding="ascii").splitlines()
        sizes = {line.split()[0]: int(line.split()[1]) for line in lines[1:]}
        stat = (proc / "stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return {
            "pid": pid,
            "rss_kib": sizes["Rss:"],
            "pss_kib": sizes["Pss:"],
            "fds": len(list((proc / "fd").iterdir())),
            "threads": int(stat[17]),
            "cpu_s": (int(stat[11]) + int(stat[12])) / TICKS,
        }
    except (FileNotFoundError, ProcessLookupError, KeyError):
        return {}


def read_totals(daemon: Daemon) -> Totals:
    """Return the counters at a moment at which they are even, if there is one soon."""
    looks: list[Totals] = []

    def are_even() -> bool:
        looks[:] = [daemon.counters.totals()]
        return conserves(looks[0])

    with suppress(AssertionError):
        wait_for(are_even, "even counters", EVEN_S)
    return looks[0]


def sample(name: str, daemon: Daemon) -> Row:
    """Return one row: of a node, now."""
    row: Row = {"node": name}
    pids = {
        "control": 0 if daemon.process is None else daemon.process.pid,
        "forwarder": daemon.forwarder_pid(),
    }
    for process, pid in pids.items():
        row |= {f"{process}_{figure}": value for figure, value in read_process(pid).items()}
    totals = read_totals(daemon)
    for way, found in (("tx", totals.tx), ("rx", totals.rx)):
        row[f"{way}_offered"], row[f"{way}_forwarded"] = found.offered, found.forwarded
        row[f"{way}_unaccounted"] = found.offered - found.forwarded - sum(found.drops.values())
        row |= {f"{way}_{reason}": count for reason, count in found.drops.items()}
    row["tun_full"] = daemon.tun_dropped()
    row["socket_full"] = sum(totals.queue_drops.values())
    return row


def drops_of(row: Row) -> str:
    """Return where packets were dropped, for people."""
    names = COLUMNS[COLUMNS.index("tun_full") :]
    return " ".join(f"{name}={row[name]}" for name in names if row.get(name))
