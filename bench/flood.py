# SPDX-License-Identifier: Apache-2.0
"""What a flood of strangers' packets leaves of a peer's TCP: `python -m bench.flood`, or `make bench-flood`.

    pod a ─ host a ────┐
                       router ─ host b ─ pod b: receives TCP from pod a, and the flood
    host c: a stranger ┘

On the last CPU a loop burns, or a stranger sends 64 bytes to the tunnel's port as fast as one CPU can. What
remains of the goodput beside the loop is the figure: the flood's sender takes that CPU as well. In turns:
kernel VXLAN, overlayd without and with its firewall. Nothing leaves the namespaces of the lab.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import iperf
from bench.figures import figure
from bench.lab import ROOT, Node
from bench.loads import LOADGEN, build_loadgen
from bench.matrix import Condition
from bench.run import check_tools, say
from bench.systems import KernelVxlan, Overlayd, System, own_labs
from bench.table import number
from dataplane import control
from dataplane.errors import OverlaydError

PORT, SIZE = 8472, 64
LAST_CPU = max(os.sched_getaffinity(0))
LATE_S = 1  # the disturbance begins before the stream and ends after it
HOG = "while True: pass"


class Open(Overlayd):
    """overlayd whose forwarder refuses strangers alone."""

    name = "overlayd --guard=false"
    flags = ("--guard=false",)


class Guarded(Overlayd):
    """overlayd as it comes."""

    name = "overlayd"


SYSTEMS: tuple[type[System], ...] = (KernelVxlan, Open, Guarded)


@dataclass(slots=True)
class Outcome:
    """What was seen of one system."""

    system: System
    stranger: Node
    quiet: list[float] = field(default_factory=list)  # Gbit/s
    beside_hog: list[float] = field(default_factory=list)
    beside_flood: list[float] = field(default_factory=list)
    kpps: list[float] = field(default_factory=list)
    memory_kib: list[int] = field(default_factory=list)  # of the forwarder, after each flood

    def shares(self) -> list[float]:
        """Return what each round left."""
        pairs = zip(self.beside_flood, self.beside_hog, strict=True)
        return [flood / hog for flood, hog in pairs]


def build(kind: type[System], prefix: str, stack: ExitStack, index: int) -> Outcome:
    """Build a lab, and a stranger in it."""
    system = kind(f"{prefix}-{index}", Condition("veth"))
    stack.callback(system.down)
    system.up()
    assert system.lab is not None
    stranger = Node("c", 3, system.lab.prefix, system.lab.directory)
    stranger.join_router(system.lab.router)
    return Outcome(system, stranger)


def forwarder_kib(node: Node) -> int:
    """Return the resident memory of a node's forwarder; 0 if it has none."""
    with suppress(OverlaydError), control.ForwarderClient(node.run_dir / "forwarder.sock") as client:
        lines = Path(f"/proc/{client.pid}/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
    return 0


@contextmanager
def running(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program on the last CPU for as long as needed."""
    pinned = ["taskset", "-c", str(LAST_CPU), *command]
    process = subprocess.Popen(pinned, stdout=subprocess.PIPE, cwd=ROOT)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def measure(outcome: Outcome, seconds: int) -> None:
    """Take one sample with nothing beside it, one beside the loop, and one beside the flood."""
    a, b = outcome.system.hosts
    target = outcome.system.target
    outcome.quiet.append(iperf.tcp_gbit_s(iperf.run_iperf(a, b, target, seconds)))
    with running([sys.executable, "-S", "-c", HOG]):
        outcome.beside_hog.append(iperf.tcp_gbit_s(iperf.run_iperf(a, b, target, seconds)))
    words = [b.address, str(PORT), str(SIZE), "0", str(seconds + 2 * LATE_S)]
    with running(outcome.stranger.host.command(str(LOADGEN), "flood", *words)) as sender:
        outcome.beside_flood.append(iperf.tcp_gbit_s(iperf.run_iperf(a, b, target, seconds)))
        said: dict[str, Any] = json.loads(sender.communicate(timeout=seconds + 30)[0])
        outcome.kpps.append(said["sent"] / said["seconds"] / 1e3)
    outcome.memory_kib.append(forwarder_kib(b))


def refused(outcome: Outcome) -> str:
    """Say who refused the strangers' packets."""
    _, b = outcome.system.hosts
    if not isinstance(outcome.system, Overlayd):
        return "-"
    status: dict[str, Any] = control.ask(b.run_dir, {"cmd": "status"})
    strangers = status["guard"].get("strangers", 0)
    unknown = status["rx"]["drops"].get("unknown_vtep", 0)
    lost = sum(status["kernel"]["rxq_overflow"].values())
    return f"firewall {strangers}, forwarder {unknown}, queue full {lost}"


def rows(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Yield the lines of the table."""
    yield (
        f"{'':<24}{'quiet':>7} {'beside a loop':>14} {'a flood':>9} {'left':>6} {'least':>6} {'flood':>10} "
        f"{'grown':>9}"
    )
    for found in outcomes:
        goodputs = (found.quiet, found.beside_hog, found.beside_flood)
        quiet, hog, flood = (number(statistics.median(values)) for values in goodputs)
        shares, kpps = found.shares(), statistics.median(found.kpps)
        left, grown_kib = statistics.median(shares), found.memory_kib[-1] - found.memory_kib[0]
        yield (
            f"{found.system.name:<24}{quiet:>7} {hog:>7} Gbit/s {flood:>9} {left:>6.2f} "
            f"{min(shares):>6.2f} {kpps:>5.0f} kpps {grown_kib:>5} KiB"
        )
    for found in outcomes:
        yield f"{found.system.name:<24}{refused(found)}"


def tell(outcome: Outcome) -> None:
    """Tell all samples of one system."""
    name = outcome.system.name
    figure("quiet goodput", outcome.quiet, "Gbit/s", name)
    figure("goodput beside a loop", outcome.beside_hog, "Gbit/s", name)
    figure("goodput beside the flood", outcome.beside_flood, "Gbit/s", name)
    of_quiet = zip(outcome.beside_flood, outcome.quiet, strict=True)
    figure("left of quiet goodput", [flood / quiet for flood, quiet in of_quiet], "", name)
    figure("left of goodput beside a loop", outcome.shares(), "", name)
    figure("flood", outcome.kpps, "kpps", name)
    if outcome.memory_kib[0]:
        grown = [kib - outcome.memory_kib[0] for kib in outcome.memory_kib[1:]]
        figure("grown", grown or [0], "KiB", name)


def main(argv: list[str] | None = None) -> int:
    """Measure, print, take the labs down; return the exit status."""
    parser = argparse.ArgumentParser(prog="bench.flood", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, choices=range(1, 51), metavar="1..50")
    parser.add_argument("--seconds", type=int, default=4, choices=range(1, 61), metavar="1..60")
    told = parser.parse_args(argv)
    try:
        check_tools()
        build_loadgen()
        with own_labs() as prefix, ExitStack() as stack:
            outcomes = [build(kind, prefix, stack, index) for index, kind in enumerate(SYSTEMS)]
            for turn in range(told.rounds):
                say(f"round {turn + 1} of {told.rounds}")
                for outcome in outcomes:
                    measure(outcome, told.seconds)
            say("\n".join(rows(outcomes)))
            for outcome in outcomes:
                tell(outcome)
    except OverlaydError as err:
        print(f"bench.flood: {err}", file=sys.stderr)
        return err.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
