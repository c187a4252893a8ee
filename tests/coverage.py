# SPDX-License-Identifier: Apache-2.0
"""`make coverage`: which branches of the hot path the C tests and the kept inputs of the fuzzers take.

python -m tests.coverage [--missing] [FILE ...]

Builds the engine with clang's own coverage, runs the programs of tests/c and what tests/fuzz keeps, and ends
with 1 if a file of HOT has less than LEAST of its branches taken. Both ways of every condition count, also
within `a && b`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz import corpus, seeds

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
C_TESTS, FUZZ = ROOT / "tests" / "c", ROOT / "tests" / "fuzz"
BUILD = ROOT / "build" / "coverage"

# What every packet passes, and every answer. Not rate.c: of its few branches one is a lost race.
HOT = (
    *("pkt.h", "csum.c", "parse.c", "encap.c", "offload.c", "split.c", "merge.c", "icmp.c"),
    *("lpm.c", "lpm.h", "fib.c", "outbox.c", "underlay.c", "tun.c"),
    *("path.h", "tx.c", "answer.c", "rx.c", "deliver.c"),
)
LEAST = 0.95
FLAGS = ["-std=gnu11", "-D_GNU_SOURCE", "-pthread", "-g", "-O1", f"-I{CSRC}", f"-I{C_TESTS}", f"-I{FUZZ}"]
COVERAGE = ["-fprofile-instr-generate", "-fcoverage-mapping"]
DEADLINE_S = 300
Place = tuple[int, int]  # line and column
Ways = tuple[int, int]  # how often true, how often false
# The first two are about system calls of the process; gcc alone compiles the third.
LEFT_OUT = {"confine", "worker_calls", "fib_threads"}


@dataclass(frozen=True, slots=True)
class Share:
    """How many of the branches of a file are taken."""

    file: str
    taken: int
    branches: int

    @property
    def part(self) -> float:
        """Return the share."""
        return self.taken / self.branches if self.branches else 1.0


def run(*command: str | Path, profile: str = "") -> str:
    """Run a command to its end; return what it printed."""
    environment = {**os.environ, "LLVM_PROFILE_FILE": str(BUILD / "raw" / f"{profile}-%p.profraw")}
    done = subprocess.run(
        list(map(str, command)),
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=DEADLINE_S,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}\n{done.stdout}{done.stderr}"[-4000:])
    return done.stdout


def build(pool: ThreadPoolExecutor) -> dict[str, Path]:
    """Build the programs and the fuzzers; return them by name."""
    sources = [path for path in sorted(CSRC.glob("*.c")) if not path.stem.startswith("probe")]
    sources += [path for path in sorted(C_TESTS.glob("*.c")) if path.stem not in LEFT_OUT]
    sources += [FUZZ / f"{name}.c" for name in seeds.TARGETS]
    objects = {source: BUILD / f"{source.parent.name}_{source.stem}.o" for source in sources}
    list(pool.map(lambda s: run("clang-14", *FLAGS, *COVERAGE, "-c", "-o", objects[s], s), sources))
    library = BUILD / "libengine.a"
    library.unlink(missing_ok=True)
    run("ar", "rcs", library, *(objects[source] for source in sources if source.parent == CSRC))
    # The library comes last: a program that includes a unit, to reach into it, takes precedence.
    built = {}
    for source in sources:
        if source.parent == CSRC:
            continue
        is_fuzzer = source.parent == FUZZ
        program = BUILD / f"{source.parent.name}_{source.stem}"
        built[program.name] = program
        driver = ["-fsanitize=fuzzer"] if is_fuzzer else []
        run("clang-14", "-pthread", *COVERAGE, *driver, "-o", program, objects[source], library)
    return built


def measure(pool: ThreadPoolExecutor, built: dict[str, Path]) -> Path:
    """Run everything; return the merged profile."""

    def execute(name: str) -> None:
        where, _, target = name.partition("_")
        if where == "fuzz":
            directory = BUILD / "inputs" / target
            corpus.unpack(target, directory)
            seeds.write(target, directory)
            run(built[name], *sorted(directory.iterdir()), profile=name)
        else:
            run(built[name], profile=name)

    list(pool.map(execute, built))
    profile = BUILD / "all.profdata"
    run("llvm-profdata-14", "merge", "-sparse", "-o", profile, *sorted((BUILD / "raw").iterdir()))
    return profile


def read_branches(built: dict[str, Path], profile: Path) -> dict[str, dict[Place, Ways]]:
    """Return how often each condition of csrc/ was true and false, by file and place.

    A function that stands in a header, or in several programs, is one.
    """
    programs = list(built.values())
    objects = [part for program in programs[1:] for part in ("-object", program)]
    printed = run("llvm-cov-14", "export", f"-instr-profile={profile}", programs[0], *objects)
    found: dict[str, dict[Place, Ways]] = {}
    for function in json.loads(printed)["data"][0]["functions"]:
        for line, column, _, _, when_true, when_false, file, *_ in function.get("branches", ()):
            path = Path(function["filenames"][file])
            if path.parent == CSRC:
                places = found.setdefault(path.name, {})
                before = places.get((line, column), (0, 0))
                places[line, column] = (before[0] + when_true, before[1] + when_false)
    return found


def share_of(name: str, places: dict[Place, Ways]) -> Share:
    """Return how many ways of the conditions of a file were taken."""
    return Share(name, sum(bool(way) for ways in places.values() for way in ways), 2 * len(places))


def show_missing(name: str, places: dict[Place, Ways]) -> Iterator[str]:
    """Yield a line for each condition of a file that was never true, or never false."""
    lines = (CSRC / name).read_text(encoding="utf-8").splitlines()
    for (line, column), (when_true, when_false) in sorted(places.items()):
        if not when_true or not when_false:
            never = "reached" if when_true == when_false else "true" if when_false else "false"
            code = lines[line - 1].expandtabs(8).strip()
            yield f"{name}:{line}:{column}: never {never}: {code}"


def faults(shares: Mapping[str, Share], files: Sequence[str]) -> Iterator[str]:
    """Say which files have too few of their branches taken, a line each."""
    for name in files:
        share = shares.get(name)
        if share is None:
            yield f"{name}: nothing of it was measured"
        elif share.part < LEAST:
            yield f"{name}: {share.part:.1%} of the branches are taken; at least {LEAST:.0%} are wanted"


def main(arguments: list[str] | None = None) -> int:
    """Measure, print a row for each file, and return 1 if one has too few branches taken."""
    parser = argparse.ArgumentParser(description="Which branches of the hot path are tested.")
    parser.add_argument("--missing", action="store_true", help="show the branches that are not taken")
    parser.add_argument("files", nargs="*", metavar="FILE", help="some of csrc/ (default: the hot path)")
    args = parser.parse_args(arguments)
    files = args.files or HOT
    for directory in (BUILD / "raw", BUILD / "inputs"):
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        built = build(pool)
        profile = measure(pool, built)
    branches = read_branches(built, profile)
    shares = {name: share_of(name, branches[name]) for name in files if name in branches}
    print(f"{'file':14}{'branches':>10}{'taken':>8}{'share':>9}")
    for share in shares.values():
        print(f"{share.file:14}{share.branches:>10}{share.taken:>8}{share.part:>9.1%}")
    if args.missing:
        print(*(line for name in shares for line in show_missing(name, branches[name])), sep="\n")
    found = list(faults(shares, files))
    for fault in found:
        print(fault, file=sys.stderr)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
