# SPDX-License-Identifier: Apache-2.0
"""What is lost at half of the highest rate: `python -m bench.steady`.

    pod a ─ host a ─ router ─ host b ─ pod b: knows each number that it has seen

Kernel VXLAN, then overlayd, each at half of its own highest rate (search.py). Nothing leaves the namespaces
of the lab.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack

from bench.figures import figure
from bench.loads import START_PPS, build_loadgen, sending
from bench.matrix import FULL, Condition
from bench.run import check_tools, say
from bench.search import Trial, find_rate
from bench.systems import KernelVxlan, Overlayd, System, own_labs
from dataplane.errors import OverlaydError, RuntimeFailure

SIZE = 512
TRIAL_S = 6  # of one count; queues hold less
SYSTEMS: tuple[type[System], ...] = (KernelVxlan, Overlayd)


def find_half(system: System) -> float:
    """Return half of the highest rate at which next to nothing is lost."""
    with sending(system, SIZE, FULL.trial_s) as (send, _):
        best = find_rate(send, START_PPS).best
    if best is None:
        raise RuntimeFailure(f"{system.name} loses packets at every rate")
    return best.received_pps / 2


def measure(system: System, seconds: int) -> None:
    """Send at half of the highest rate; tell what was lost, in each trial and in all."""
    half_pps = find_half(system)
    with sending(system, SIZE, TRIAL_S) as (send, wrong):
        trials = [send(half_pps) for _ in range(max(1, seconds // TRIAL_S))]
    tell(system.name, half_pps, trials, wrong)


def tell(name: str, half_pps: float, trials: Sequence[Trial], wrong: dict[str, int]) -> None:
    """Tell the figures of one system."""
    sent = sum(trial.sent for trial in trials)
    lost = [trial.sent - trial.received for trial in trials]
    figure("half of the highest rate", [half_pps], "packets/s", name)
    figure("rate sent", [trial.sent / trial.seconds for trial in trials], "packets/s", name)
    figure("sent", [trial.sent for trial in trials], "packets", name)
    figure("lost", lost, "packets", name)
    figure("lost share", [sum(lost) / sent if sent else 1.0], "", name)
    figure("doubled or changed", [wrong["doubled"] + wrong["changed"]], "packets", name)


def main(argv: list[str] | None = None) -> int:
    """Measure, print, take the labs down; return the exit status."""
    parser = argparse.ArgumentParser(prog="bench.steady", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=int, default=60, choices=range(1, 3601), metavar="1..3600")
    told = parser.parse_args(argv)
    try:
        check_tools()
        build_loadgen()
        with own_labs() as prefix, ExitStack() as stack:
            for index, kind in enumerate(SYSTEMS):
                system = kind(f"{prefix}-{index}", Condition("veth"))
                stack.callback(system.down)
                system.up()
                say(f"{system.name}: {told.seconds} s at half of its highest rate")
                measure(system, told.seconds)
    except OverlaydError as err:
        print(f"bench.steady: {err}", file=sys.stderr)
        return err.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
