# SPDX-License-Identifier: Apache-2.0
"""The matrix of system calls and errnos: `python -m tests.faults`, as root.

    python -m tests.faults                           all, a few minutes
    python -m tests.faults --process control sendto  one process, some calls

strace counts which system calls the two processes make in a run that does everything. Then each of them fails
with each errno, for a moment, in the running process, while packets, leases and addresses of the host come
and go. A cell says what told of it. It ends with 1 if a process came to its end, carried no packet or was not
in order within a second or a few, or used more of a processor than it may.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.figures import figure
from tests.e2e.faulted import CPU_SHARE, ERRNOS, FaultedRig, Strace, lasting_share_of

PROCESSES = ("forwarder", "control")
# What the kernel does in place of the call: a filter of system calls knows none that strace would make up.
INSTEAD = "syscall=getpid"

# Which calls cannot fail with which errnos, or are not to be tried; and why.
ALL = frozenset(ERRNOS)
ARGUMENTS = "fails only for wrong arguments"
NEVER = "cannot fail"
LIBRARY = (
    "the kernel gives EAGAIN, EINTR and ETIMEDOUT to who waits; at others the C library ends the process"
)
CLOSE = "fails on file systems of a network alone; libraries end the process"
# Of control, these are tried on files alone: libuv ends a process at once whose eventfds and pipes fail in
# another way than EAGAIN and EINTR, and the kernel knows no other.
ON_FILES = frozenset({"read", "write"})
NOT_TRIED: tuple[tuple[frozenset[str], frozenset[str], str], ...] = (
    (
        frozenset({"getpid", "gettid", "getuid", "geteuid", "getgid", "getegid", "sched_yield", "umask"}),
        ALL,
        NEVER,
    ),
    (frozenset({"exit", "exit_group", "rt_sigreturn", "restart_syscall"}), ALL, NEVER),
    (
        frozenset(
            {
                *(
                    "rt_sigaction",
                    "rt_sigprocmask",
                    "sigaltstack",
                    "set_robust_list",
                    "rseq",
                    "clock_gettime",
                ),
                *("set_tid_address", "sched_getaffinity", "lseek", "dup", "dup2", "pipe2", "getsockname"),
            }
        ),
        ALL,
        ARGUMENTS,
    ),
    (frozenset({"futex"}), ALL, LIBRARY),
    (frozenset({"close"}), ALL, CLOSE),
    (
        frozenset({"io_uring_enter"}),
        ALL,
        "libuv ends the process, and a supervisor starts it again; the kernel refuses if there is no memory",
    ),
    (ON_FILES, frozenset({"EAGAIN"}), "a file never has nothing yet, and Python knows no such answer"),
    (frozenset({"epoll_wait", "epoll_pwait"}), ALL - {"EINTR"}, ARGUMENTS + "; libuv ends the process"),
    (
        frozenset({"mmap", "munmap", "mprotect", "brk", "madvise", "mremap"}),
        ALL - {"ENOMEM"},
        "memory fails with ENOMEM alone",
    ),
    (frozenset({"execve", "vfork", "clone", "clone3", "fork"}), ALL - {"EAGAIN", "ENOMEM"}, ARGUMENTS),
)
BUSY = ("EAGAIN", "EINTR")
REPEATED = ("control accept4", "control epoll_ctl")
# Where control's libraries are the reason, and the forwarder has none.
OF_LIBRARIES = frozenset({"epoll_wait", *ON_FILES})
FILE = re.compile(r"^(?:\d+ +)?(\w+)\(\d+<(/[^>]+)>")


def is_judged_by_cpu(name: str) -> bool:
    """Tell whether a cell may use little of a processor only.

    Who is told to try again does, and so does libuv at some calls: a kernel does not say so for long.
    """
    return not name.endswith(BUSY) and not name.startswith(REPEATED)


@dataclass(frozen=True, slots=True)
class Cell:
    """What came of one call that failed with one errno."""

    injected: int
    told: str
    share: float  # of a core, for as long as the call fails
    passed_s: float  # until numbered packets had passed each way
    in_order_s: float
    has_ended: bool

    def text(self) -> str:
        """Return what stands in the matrix."""
        if not self.injected:
            return "-"
        return (self.told or "ok") + (" ENDED" if self.has_ended else "")

    def problems(self, name: str) -> Iterator[str]:
        """Yield what is not as it must be of a cell."""
        if self.has_ended:
            yield "the process ended"
        if self.share > CPU_SHARE and is_judged_by_cpu(name):
            yield f"{100 * self.share:.0f} % of a core"


def why_not(process: str, call: str, err: str) -> str | None:
    """Return why a cell is not tried; None if it is."""
    for calls, errnos, why in NOT_TRIED:
        if call in calls and err in errnos and not (process == "forwarder" and call in OF_LIBRARIES):
            return why
    return None


class Matrix:
    """The cells, on one rig."""

    def __init__(self, rig: FaultedRig, directory: Path) -> None:
        """Try them in a rig."""
        self._rig = rig
        self._log = directory / "strace"
        self._number = 0
        self._files: dict[str, set[str]] = {}  # that control reads and writes, by call

    def calls(self) -> dict[str, list[str]]:
        """Return which calls each process makes in a run that does everything, the most frequent first."""
        found = {}
        for process in PROCESSES:
            with Strace(self._rig.daemon.pids()[process], "-y", log=self._log) as strace:
                for _ in range(3):
                    self._stir()
                self._rig.passes()
                self._rig.wait_in_order()
            found[process] = [call for call, _ in strace.calls().most_common()]
            for line in strace.lines():
                if process == "control" and (file := FILE.match(line)) and file[1] in ON_FILES:
                    self._files.setdefault(file[1], set()).add(file[2])
        return found

    def _stir(self) -> None:
        self._number += 1
        self._rig.stir(self._number)

    def _evidence(self) -> dict[str, int]:
        """Return the counters that may tell, and how many lines of the log say something that went wrong."""
        daemon = self._rig.daemon
        totals = daemon.counters.totals()
        found = {name: count for way in (totals.tx, totals.rx) for name, count in way.drops.items()}
        found["faults"] = totals.faults
        lines = daemon.log().splitlines()
        found["log"] = sum(" WARNING " in line or " ERROR " in line or "Error" in line for line in lines)
        return found

    def mend(self) -> None:
        """Have a control again that has done all there was to do, whatever it takes."""
        if self._rig.daemon.process is None or self._rig.daemon.process.poll() is not None:
            self._rig.daemon.process = None
            self._rig.daemon.start()
        self._rig.daemon.wait_ready()
        self._rig.wait_in_order(30.0)

    def cell(self, process: str, call: str, err: str) -> Cell:
        """Let a call fail, while everything happens, and look what comes of it."""
        when = "1..1000" if err == "EINTR" else "1+"  # signals come one by one
        # brk() has no errno: it says where the heap ends, and the C library sees that it did not move.
        outcome = "retval=0" if call == "brk" else f"error={err}"
        daemon = self._rig.daemon
        before, pids = self._evidence(), daemon.pids()
        inject: tuple[str, ...] = (
            "-e",
            f"trace={call}",
            "-e",
            f"inject={call}:{outcome}:when={when}:{INSTEAD}",
        )
        if process == "control":
            inject += tuple(word for path in self._files.get(call, ()) for word in ("-P", path))
        with Strace(pids[process], *inject, log=self._log) as strace:
            self._stir()
            share = lasting_share_of(pids[process])
        has_ended = daemon.pids()[process] != pids[process]
        if has_ended:
            print(daemon.log()[-1500:])
            self.mend()
        passed_s = self._rig.passes()
        in_order_s = self._rig.wait_in_order()
        after = self._evidence()
        told = [name for name, count in after.items() if count != before.get(name, 0)]
        return Cell(strace.injected(), ",".join(told), share, passed_s, in_order_s, has_ended)


def show(table: dict[str, dict[str, str]], errnos: Iterable[str]) -> None:
    """Print the matrix: rows are calls, columns errnos."""
    widths = {err: max(len(err), *(len(row.get(err, "")) for row in table.values())) for err in errnos}
    head = max(map(len, table))
    print(" " * head, *(f"{err:{width}}" for err, width in widths.items()))
    for name, row in table.items():
        print(f"{name:{head}}", *(f"{row.get(err, ''):{width}}" for err, width in widths.items()))


def tell(cells: dict[str, Cell]) -> None:
    """Tell what all cells were like; who is told to try again, and does, may use a processor meanwhile."""
    figure("calls that failed", [cell.injected for cell in cells.values()], "a cell")
    figure("processes that ended", [sum(cell.has_ended for cell in cells.values())], "processes")
    shares = [cell.share for name, cell in cells.items() if is_judged_by_cpu(name)]
    figure("processor", [100 * share for share in shares], "% of a core")
    figure("until packets passed", [cell.passed_s for cell in cells.values()], "s")
    figure("until in order", [cell.in_order_s for cell in cells.values()], "s")


def run(matrix: Matrix, rows: Iterable[tuple[str, str]], errnos: Iterable[str]) -> list[str]:
    """Try all cells of some rows, print them, and return what is not as it must be."""
    problems = []
    reasons: dict[str, set[str]] = {}
    table: dict[str, dict[str, str]] = {}
    cells: dict[str, Cell] = {}
    for process, call in rows:
        row = table[f"{process} {call}"] = {}
        for err in errnos:
            name = f"{process} {call} {err}"
            why = why_not(process, call, err)
            if why is not None:
                row[err] = "."
                reasons.setdefault(why, set()).add(f"{call} {err}")
                continue
            try:
                cell = cells[name] = matrix.cell(process, call, err)
            except AssertionError as failure:
                problems.append(f"{name}: {failure}")
                row[err] = "FAILED"
                matrix.mend()
                continue
            row[err] = cell.text()
            problems += [f"{name}: {problem}" for problem in cell.problems(name)]
            print(f"{name}: {cell}", flush=True)
    show(table, errnos)
    for what in ("share", "passed_s", "in_order_s"):
        worst = max(cells, key=lambda name: float(getattr(cells[name], what)))
        print(f"most {what}: {getattr(cells[worst], what):.3f}, {worst}")
    tell(cells)
    for why, names in reasons.items():
        print(f"not tried (.), {why}: {', '.join(sorted(names))}")
    return problems


def main() -> int:
    """Print the matrix; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--process", choices=PROCESSES, help="only this one")
    parser.add_argument("--errno", choices=ERRNOS, action="append", help="only this one; repeatable")
    parser.add_argument("calls", nargs="*", metavar="CALL", help="only these")
    args = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="overlayd-faults-") as directory,
        FaultedRig(Path(directory) / "node", name="m") as rig,
    ):
        matrix = Matrix(rig, Path(directory))
        found = matrix.calls()
        rows = [
            (process, call)
            for process in PROCESSES
            if args.process in (None, process)
            for call in found[process]
            if not args.calls or call in args.calls
        ]
        problems = run(matrix, rows, args.errno or ERRNOS)
    for problem in problems:
        print(f"NOT AS IT MUST BE: {problem}")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
