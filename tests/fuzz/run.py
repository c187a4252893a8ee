# SPDX-License-Identifier: Apache-2.0
"""Runs the fuzzers, each for a bounded time, and says how far they got.

python -m tests.fuzz.run [--seconds N] [TARGET ...]

Inputs that reach new code are kept in build/fuzz/corpus and are where the next run begins. An input that
crashes is kept in build/fuzz/crashes; `build/fuzz/bin/TARGET FILE` shows it again.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz import seeds

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
HERE = Path(__file__).resolve().parent
SHARED = ROOT / "tests" / "c"
BUILD = ROOT / "build" / "fuzz"

FLAGS = ["-std=gnu11", "-D_GNU_SOURCE", "-pthread", "-g", "-O1", f"-I{CSRC}", f"-I{SHARED}", f"-I{HERE}"]
WARNINGS = ["-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Werror"]
SANITIZERS = "address,undefined"
LENGTH_MAX = 2048
INPUT_TIMEOUT_S = 10


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one fuzzer did."""

    target: str
    executions: int
    coverage: int  # edges of the code under test
    features: int
    corpus: int  # inputs that each reach something of their own
    accepted: float  # share of the inputs that were not refused
    log: str
    is_crash: bool


def compile_one(source: Path, target: Path) -> None:
    """Compile one C file."""
    instrumented = f"-fsanitize=fuzzer-no-link,{SANITIZERS}"
    command = ["clang-14", *FLAGS, *WARNINGS, instrumented, "-fno-sanitize-recover=all"]
    done = subprocess.run(
        [*command, "-c", "-o", str(target), str(source)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr)


def fingerprint() -> str:
    """Return a digest of everything that goes into the fuzzers."""
    digest = hashlib.sha256(repr((FLAGS, WARNINGS, SANITIZERS, sorted(seeds.TARGETS))).encode())
    for path in sorted(p for d in (CSRC, SHARED, HERE) for p in d.glob("*.[ch]")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def build() -> None:
    """Build all fuzzers, unless they are current."""
    stamp = BUILD / "stamp"
    wanted = fingerprint()
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return
    (BUILD / "bin").mkdir(parents=True, exist_ok=True)
    units = [path for path in sorted(CSRC.glob("*.c")) if path.stem != "probe"]
    jobs = {path: BUILD / f"unit_{path.stem}.o" for path in units}
    jobs |= {HERE / f"{name}.c": BUILD / f"{name}.o" for name in seeds.TARGETS}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, jobs.keys(), jobs.values()))
    library = BUILD / "libengine.a"
    library.unlink(missing_ok=True)
    subprocess.run(["ar", "rcs", library, *(BUILD / f"unit_{path.stem}.o" for path in units)], check=True)
    for name in seeds.TARGETS:
        # The library comes last: a target that includes a unit, to reach into it, takes precedence.
        parts: list[str | Path] = ["-o", BUILD / "bin" / name, BUILD / f"{name}.o", library]
        subprocess.run(["clang-14", "-pthread", f"-fsanitize=fuzzer,{SANITIZERS}", *parts], check=True)
    stamp.write_text(wanted, encoding="utf-8")


def fuzz(target: str, *limits: str) -> Outcome:
    """Run one fuzzer with libFuzzer's options for how long."""
    first, corpus, crashes = (BUILD / kind / target for kind in ("seeds", "corpus", "crashes"))
    for directory in (corpus, crashes):
        directory.mkdir(parents=True, exist_ok=True)
    seeds.write(target, first)
    options = [f"-max_len={LENGTH_MAX}", f"-timeout={INPUT_TIMEOUT_S}", "-print_final_stats=1"]
    where: list[str | Path] = [f"-artifact_prefix={crashes}/", *limits, corpus, first]
    command = [BUILD / "bin" / target, *options, *where]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    return read_outcome(target, done.stderr, is_crash=done.returncode != 0)


def read_outcome(target: str, log: str, *, is_crash: bool) -> Outcome:
    """Read what libFuzzer printed."""
    progress = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)/", log)
    coverage, features, corpus = map(int, progress[-1]) if progress else (0, 0, 0)
    executions = re.search(r"stat::number_of_executed_units:\s*(\d+)", log)
    counted = re.search(r"accepted: (\d+) of (\d+)", log)
    return Outcome(
        target=target,
        executions=int(executions[1]) if executions else 0,
        coverage=coverage,
        features=features,
        corpus=corpus,
        accepted=int(counted[1]) / int(counted[2]) if counted else 0.0,
        log=log,
        is_crash=is_crash,
    )


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Run the fuzzers for a bounded time.")
    parser.add_argument("--seconds", type=int, default=10, help="for each target (default: %(default)s)")
    known = ", ".join(seeds.TARGETS)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"some of {known} (default: all)")
    args = parser.parse_args()
    unknown = sorted(set(args.targets) - set(seeds.TARGETS))
    if unknown:
        parser.error(f"no target {', '.join(unknown)}; there are {known}")
    if args.seconds < 1:
        parser.error("--seconds: at least 1")
    return args


def main() -> int:
    """Run what the command line asks for; return 1 if anything crashed."""
    args = parse_arguments()
    build()
    heads = f"{'executions':>12}{'accepted':>10}{'edges':>8}{'features':>10}{'inputs':>8}"
    print(f"{'target':18}{heads}", flush=True)
    outcomes = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [
            pool.submit(fuzz, target, f"-max_total_time={args.seconds}")
            for target in args.targets or seeds.TARGETS
        ]
        for job in jobs:
            found = job.result()
            outcomes.append(found)
            row = f"{found.executions:>12}{found.accepted:>10.1%}{found.coverage:>8}"
            row += f"{found.features:>10}{found.corpus:>8}"
            print(f"{found.target:18}{row}{'  CRASHED' if found.is_crash else ''}", flush=True)
    for crashed in (found for found in outcomes if found.is_crash):
        print(f"\n--- {crashed.target}\n{crashed.log[-4000:]}", file=sys.stderr)
    return any(found.is_crash for found in outcomes)


if __name__ == "__main__":
    sys.exit(main())
