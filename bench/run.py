# SPDX-License-Identifier: Apache-2.0
"""`overlayd bench` and `make bench`: runs a plan, and leaves a result file, a table and plots in a folder.

Systems take turns, one sample each (A B C A B C ...), so that what drifts on the machine drifts for all.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import plot, result, systems, table
from bench.lab import ROOT
from bench.loads import Loads, build_loadgen
from bench.matrix import FULL, LOADS, MORE_SYSTEMS, QUICK, SYSTEMS, Block, Plan, select
from bench.table import number
from dataplane.errors import ConfigError, OverlaydError, RuntimeFailure

RESULTS = ROOT / "bench-results"
FILE = "result.json"
EXIT_INTERRUPTED = 130
SYSTEM_PATH = ":/usr/sbin:/sbin"  # what a user's PATH may lack

# Commands, and the Debian packages that they come from.
TOOLS = {
    "ip": "iproute2",
    "bridge": "iproute2",
    "ss": "iproute2",
    "ping": "iputils-ping",
    "sysctl": "procps",
    "iperf3": "iperf3",
    "sockperf": "sockperf",
    "ethtool": "ethtool",
    "nft": "nftables",
    "gcc": "gcc",
}


def say(text: str = "") -> None:
    """Tell whoever waits."""
    print(text, flush=True)


def check_tools(who: str = "the bench", tools: Mapping[str, str] = TOOLS) -> None:
    """Refuse to begin without root or without a tool; `tools` are programs, and the packages they are in."""
    if os.geteuid() != 0:
        raise RuntimeFailure(f"{who} makes network namespaces: run it as root")
    path = os.environ.get("PATH", "") + SYSTEM_PATH
    packages = [package for tool, package in tools.items() if shutil.which(tool, path=path) is None]
    if packages:
        raise RuntimeFailure(f"tools are missing: apt-get install {' '.join(dict.fromkeys(packages))}")


def _first_line(*command: str) -> str:
    with suppress(OSError):
        found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        return next(iter((found.stdout + found.stderr).splitlines()), "").strip()
    return ""


def describe_machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    memory = Path("/proc/meminfo").read_text().split()[1]
    return {
        "cpu": cpu[0].partition(":")[2].strip() if cpu else platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_mib": int(memory) // 1024,
        "kernel": platform.release(),
        "load_before": os.getloadavg()[0],
        "commit": _first_line("git", "describe", "--always", "--dirty", "--abbrev=12") or "?",
        "tools": {
            "iperf3": _first_line("iperf3", "--version"),
            "sockperf": _first_line("sockperf", "--version"),
            "iproute2": _first_line("ip", "-V"),
            "python": platform.python_version(),
        },
    }


class Run:
    """One run of a plan."""

    def __init__(self, plan: Plan, against: dict[str, Path], folder: Path) -> None:
        """Make the folder; nothing is measured yet."""
        self.plan = plan
        self.against = against
        self.folder = folder
        self.started_s = time.monotonic()
        self.done = 0
        self.loads = Loads(plan)
        self.result = result.Result(describe_machine(), asdict(plan), _now())
        folder.mkdir(parents=True, exist_ok=True)

    def elapsed_s(self) -> float:
        """Return how long it has run."""
        return time.monotonic() - self.started_s

    def carry_out(self) -> None:
        """Run all blocks, and write what came of them even if that is not all."""
        say(f"bench: {self.plan.count_samples()} samples, about {self.plan.estimate_s() / 60:.0f} minutes")
        try:
            for block in self.plan.blocks:
                self._run_block(block)
            self.result.finished = _now()
        finally:
            with _Undisturbed():
                self._write()

    def _run_block(self, block: Block) -> None:
        condition = block.condition
        standing: list[systems.System] = []
        try:
            for index, name in enumerate(self.plan.systems):
                system = systems.make(name, f"{systems.run_prefix()}-{index}", condition, self.against)
                standing.append(system)
                say(f"{self._clock()} {condition.name}: {name} comes up")
                self._bring_up(system)
            self._run_rounds(block, standing)
            for system in standing:
                self.result.devices[f"{condition.name}/{system.name}"]["system_after"] = system.describe()
        finally:
            with _Undisturbed():
                for system in standing:
                    try:
                        system.down()
                    except OverlaydError as err:
                        say(f"bench: {err}")

    def _bring_up(self, system: systems.System) -> None:
        try:
            system.up()
            self.result.devices[f"{system.condition.name}/{system.name}"] = system.inspect()
        except (AssertionError, OSError, ValueError, subprocess.SubprocessError) as err:
            detail = str(getattr(err, "stderr", None) or "").strip()[-300:]
            raise RuntimeFailure(f"{system.name} does not come up: {err} {detail}") from None

    def _run_rounds(self, block: Block, standing: list[systems.System]) -> None:
        longest_s = 0.0
        for number_ in range(self.plan.repetitions):
            limit_s = self.plan.limit_s
            if limit_s is not None and number_ and self.elapsed_s() + longest_s > limit_s:
                say(f"{self._clock()} no time for another round; {number_} of {self.plan.repetitions} done")
                self.done += (self.plan.repetitions - number_) * len(block.loads) * len(standing)
                return
            began_s = self.elapsed_s()
            for load in block.loads:
                for system in standing:
                    self._take_sample(number_, load, system)
            longest_s = max(longest_s, self.elapsed_s() - began_s)
            result.write(self.result, self.folder / FILE)

    def _take_sample(self, number_: int, load: str, system: systems.System) -> None:
        began_s = self.elapsed_s()
        sample = {"round": number_, **self.loads.measure(load, system)}
        sample["at_s"] = round(began_s, 3)
        self.done += 1
        self.result.add(system.condition.name, load, system.name, sample)
        shown = sample.get("error") or ", ".join(
            f"{number(sample['figures'][figure.name])} {figure.unit}" for figure in LOADS[load].figures
        )
        where = f"{system.condition.name} {load}"
        say(f"{self._clock()} {where:<32} {system.name:<15} {number_ + 1}/{self.plan.repetitions}  {shown}")

    def _clock(self) -> str:
        minutes, seconds = divmod(int(self.elapsed_s()), 60)
        return f"[{100 * self.done // max(self.plan.count_samples(), 1):3d} % {minutes:3d}:{seconds:02d}]"

    def _write(self) -> None:
        self.result.machine["load_after"] = os.getloadavg()[0]
        result.write(self.result, self.folder / FILE)
        text = table.render(self.result)
        (self.folder / "table.txt").write_text(text, encoding="utf-8")
        for name, svg in plot.draw(self.result).items():
            (self.folder / name).write_text(svg, encoding="utf-8")
        say(f"\n{text}\nin {self.elapsed_s():.0f} s; results: {self.folder}")


class _Undisturbed:
    """Lets a clean-up end: a second Ctrl-C would leave namespaces behind."""

    def __enter__(self) -> None:
        self._before = signal.signal(signal.SIGINT, signal.SIG_IGN)

    def __exit__(self, *exc: object) -> None:
        signal.signal(signal.SIGINT, self._before)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def choose(args: argparse.Namespace) -> tuple[Plan, dict[str, Path]]:
    """Return the plan that the flags ask for, and the executables of other overlays by name."""
    against: dict[str, Path] = {}
    for word in args.against:
        path = Path(word).resolve()
        name = systems.against_name(path)
        if not os.access(path, os.X_OK) or not path.is_file():
            raise ConfigError(f'--against "{word}" is no executable file')
        if name in (*SYSTEMS, *MORE_SYSTEMS) or name in against:
            raise ConfigError(f'--against "{word}": there is a system {name} already; rename the file')
        against[name] = path
    plan = QUICK if args.quick else FULL
    plan = replace(plan, systems=(*plan.systems, *against))
    plan = select(plan, args.profile, args.system, args.load)
    if args.repetitions is not None:
        plan = replace(plan, repetitions=args.repetitions, limit_s=None)
    if args.seconds is not None:
        trial_s = plan.trial_s * args.seconds / plan.seconds
        plan = replace(plan, seconds=args.seconds, trial_s=trial_s, limit_s=None)
    return plan, against


def main(args: argparse.Namespace) -> int:
    """Run the bench, or compare two results; return the exit status."""
    if args.compare:
        before, after = (result.read(Path(word)) for word in args.compare)
        print(table.compare(before, after), end="")
        return 0
    plan, against = choose(args)
    check_tools()
    build_loadgen()
    systems.remove_leftovers()
    folder = Path(args.output) if args.output else RESULTS / datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    # Also where a shell that runs it in the background has switched SIGINT off.
    before_int = signal.signal(signal.SIGINT, signal.default_int_handler)
    before_term = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        Run(plan, against, folder).carry_out()
    except KeyboardInterrupt:
        print(f"\nbench: interrupted; what was measured is in {folder}", file=sys.stderr)
        return EXIT_INTERRUPTED
    finally:
        signal.signal(signal.SIGINT, before_int)
        signal.signal(signal.SIGTERM, before_term)
        with _Undisturbed():
            systems.remove_labs(systems.run_prefix())
    return 0
