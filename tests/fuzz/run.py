# SPDX-License-Identifier: Apache-2.0
"""Runs the fuzzers, each for a bounded time, and says how far they got.

python -m tests.fuzz.run [--seconds N | --executions N] [--walls] [--blind] [--keep] [TARGET ...]

Each begins with what is kept with the source (corpus.py), what seeds.py makes, and what earlier runs found:
that is in build/fuzz/corpus. An input that crashes is kept in build/fuzz/crashes. Ends with 1 if one did, or
if a target accepted too few of its inputs, which then say little.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz import blind, build, corpus, seeds, texts

BUILD = build.BUILD
LENGTH_MAX = 1024
# Longer ones only take longer, or are needed: a whole table, or a request after the other.
LENGTHS = {"merge": 400, "lpm": 129, "fib": 120, "fib_open": 2304, "control": 128}
INPUT_TIMEOUT_S = 10
ACCEPTED_LEAST = 0.2
C_TARGETS = list(seeds.TARGETS)
TARGETS = [*C_TARGETS, *texts.TARGETS]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one fuzzer did."""

    target: str
    executions: int
    coverage: int  # edges of the code under test
    edges: int  # that there are in what is linked; 0: not known
    corpus: int  # inputs that each reach something of their own
    accepted: float  # share of the inputs that were not refused
    log: str
    is_crash: bool
    artifact: str = ""  # the input that crashed

    def faults(self) -> Iterator[str]:
        """Say what is wrong with it, a line each."""
        if self.is_crash and self.artifact:
            yield f"crashed. Again: {reproduce(self.target, self.artifact)}"
        elif self.is_crash:
            yield "ended with an error, see above"
        elif self.accepted < ACCEPTED_LEAST:
            yield f"accepted {self.accepted:.1%} of its inputs; at least {ACCEPTED_LEAST:.0%} are wanted"


def command_of(target: str, flavour: str = "address") -> list[str]:
    """Return how a fuzzer is called, without arguments."""
    if target in texts.TARGETS:
        return [sys.executable, "-m", f"tests.fuzz.{'blind' if flavour == 'blind' else 'guided'}", target]
    return [str(BUILD / flavour / target)]


def reproduce(target: str, artifact: str) -> str:
    """Return a command that runs one input."""
    command = command_of(target, "blind" if target in texts.TARGETS else "address")
    return " ".join([*command, artifact]).replace(f"{build.ROOT}/", "")


def call(target: str, *arguments: str | Path, flavour: str = "address") -> subprocess.CompletedProcess[str]:
    """Run a fuzzer with libFuzzer's arguments."""
    command = [*command_of(target, flavour), *map(str, arguments)]
    options = {"stdin": subprocess.DEVNULL, "cwd": build.ROOT, "errors": "replace"}
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload, no-any-return]


def seed(target: str, *, is_fresh: bool = False) -> list[Path]:
    """Write down what a target begins with; return the directories, the first for what it finds."""
    found, first = BUILD / ("fresh" if is_fresh else "corpus") / target, BUILD / "seeds" / target
    shutil.rmtree(first, ignore_errors=True)
    if is_fresh:
        shutil.rmtree(found, ignore_errors=True)
    found.mkdir(parents=True, exist_ok=True)
    corpus.unpack(target, first)
    (seeds if target in seeds.TARGETS else texts).write(target, first)
    return [found, first]


def fuzz(target: str, *limits: str, flavour: str = "address", is_fresh: bool = False) -> Outcome:
    """Run one fuzzer with libFuzzer's options for how long; a fresh one knows nothing of earlier runs."""
    crashes = BUILD / "crashes" / target
    crashes.mkdir(parents=True, exist_ok=True)
    options: list[str | Path] = [f"-artifact_prefix={crashes}/", *limits]
    if flavour != "blind":
        options += [f"-max_len={LENGTHS.get(target, LENGTH_MAX)}", f"-timeout={INPUT_TIMEOUT_S}"]
        options += ["-print_final_stats=1", *seed(target, is_fresh=is_fresh)]
    done = call(target, *options, flavour=flavour)
    return read_outcome(target, done.stderr, is_crash=done.returncode != 0)


def read_outcome(target: str, log: str, *, is_crash: bool) -> Outcome:
    """Read what libFuzzer printed."""
    progress = re.findall(r"cov: (\d+) ft: \d+ corp: (\d+)/", log)
    coverage, kept = map(int, progress[-1]) if progress else (0, 0)
    executions = re.search(r"stat::number_of_executed_units:\s*(\d+)", log)
    counted = re.findall(r"accepted: (\d+) of (\d+)", log)
    artifact = re.search(r"Test unit written to (\S+)", log)
    return Outcome(
        target=target,
        executions=int(executions[1]) if executions else 0,
        coverage=coverage,
        edges=sum(map(int, re.findall(r"\((\d+) inline 8-bit counters\)", log))),
        corpus=kept,
        accepted=int(counted[-1][0]) / max(int(counted[-1][1]), 1) if counted else 0.0,
        log=log,
        is_crash=is_crash,
        artifact=artifact[1] if artifact else "",
    )


def keep(target: str) -> int:
    """Keep with the source the fewest inputs that reach all that is reached; return the bytes they take."""
    if target in texts.TARGETS:  # atheris cannot merge; what it found is little
        return corpus.pack(target, (path.read_bytes() for path in seed(target)[0].iterdir()))
    fewest = BUILD / "fewest" / target
    shutil.rmtree(fewest, ignore_errors=True)
    fewest.mkdir(parents=True)
    found, first = seed(target)
    # Counters would keep an input for every number of times that an edge is passed.
    done = call(target, "-merge=1", "-use_counters=0", fewest, found, first)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return corpus.pack(target, (path.read_bytes() for path in fewest.iterdir()))


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Run the fuzzers for a bounded time.")
    parser.add_argument("--seconds", type=int, help="for each target (default: 10)")
    parser.add_argument("--executions", type=int, help="for each target, instead of a time")
    parser.add_argument("--walls", action="store_true", help="C: guard pages alone, no sanitizers: faster")
    parser.add_argument("--blind", action="store_true", help="Python: without coverage, many times as fast")
    parser.add_argument(
        "--first",
        type=int,
        metavar="BLOCK",
        help=f"of {blind.BLOCK} inputs: where --blind goes on (default: 0)",
    )
    parser.add_argument(
        "--keep", action="store_true", help="then keep the fewest inputs in tests/fuzz/corpus"
    )
    known = ", ".join(TARGETS)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"some of {known} (default: all)")
    args = parser.parse_args(arguments)
    unknown = sorted(set(args.targets) - set(TARGETS))
    if unknown:
        parser.error(f"no target {', '.join(unknown)}; there are {known}")
    if args.seconds is not None and args.executions is not None:
        parser.error("--seconds and --executions: one of them")
    for name, least in (("seconds", 1), ("executions", 1), ("first", 0)):
        if getattr(args, name) is not None and getattr(args, name) < least:
            parser.error(f"--{name}: at least {least}")
    if args.first is not None and not args.blind:
        parser.error("--first: only with --blind")
    return args


def find_targets(wanted: list[str], *, is_blind: bool) -> list[str]:
    """Return what can be run of what is wanted, or of all: those in Python need atheris, or go blind."""
    targets = wanted or TARGETS
    if is_blind or importlib.util.find_spec("atheris") is not None:
        return targets
    left_out = [target for target in targets if target in texts.TARGETS]
    if left_out:
        print(f"left out, since there is no atheris here: {', '.join(left_out)}", file=sys.stderr)
    return [target for target in targets if target not in left_out]


def show(found: Outcome) -> None:
    """Print the row of a target."""
    share = f"{found.coverage} ({found.coverage / found.edges:.0%})" if found.edges else f"{found.coverage}"
    row = f"{found.executions:>12}{found.accepted:>10.1%}{share:>13}{found.corpus:>8}"
    print(f"{found.target:18}{row}{'  CRASHED' if found.is_crash else ''}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for; return 1 if anything crashed or accepted too little."""
    args = parse_arguments(arguments)
    targets = find_targets(args.targets, is_blind=args.blind)
    flavours = dict.fromkeys(C_TARGETS, "walls" if args.walls else "address")
    flavours |= dict.fromkeys(texts.TARGETS, "blind" if args.blind else "address")
    if set(targets) & set(C_TARGETS):
        build.build(flavours[C_TARGETS[0]])
    limit = f"-runs={args.executions}" if args.executions else f"-max_total_time={args.seconds or 10}"
    limits = {"blind": (limit, f"-first={args.first or 0}")}
    print(f"{'target':18}{'executions':>12}{'accepted':>10}{'edges':>13}{'inputs':>8}", flush=True)
    outcomes = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for found in pool.map(
            lambda name: fuzz(name, *limits.get(flavours[name], (limit,)), flavour=flavours[name]), targets
        ):
            show(found)
            outcomes.append(found)
    for found in outcomes:
        if found.is_crash:
            print(f"\n--- {found.target}\n{found.log[-4000:]}", file=sys.stderr)
        for fault in found.faults():
            print(f"{found.target}: {fault}", file=sys.stderr)
    if args.keep:
        build.build()
        for target in targets:
            print(f"{target}: {keep(target)} bytes kept")
    return int(any(list(found.faults()) for found in outcomes))


if __name__ == "__main__":
    sys.exit(main())
