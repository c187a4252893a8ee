# SPDX-License-Identifier: Apache-2.0
"""Counts the instructions of the hot C functions, and compares them with those of the last time.

python -m bench.callgrind [--update] [--json FILE]      or: make bench-callgrind

Times drift on a shared machine; instructions do not. bench/hot.c calls each function under valgrind, and the
code of csrc/ is what counts: libc has other code for each CPU. A count above its baseline by more than
TOLERANCE ends with status 1. --update makes the counts of now the baseline, bench/instructions.json. They
depend on the compiler and on the vectors of the CPU: where those differ from the baseline's, there is a
comparison, but no verdict.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from csrc.build_native import COMPILE_ARGS, CSRC, PROBE_UNITS

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "callgrind"
BASELINE = ROOT / "bench" / "instructions.json"

OUTBOX = ("outbox", "underlay")  # what the probe has no use for

ROUNDS = 20
TOLERANCE = 0.05
SLACK = 1.0  # one instruction more is none that matters, however short the function


@dataclass(frozen=True, slots=True)
class Counts:
    """Instructions for each packet, by case, and what they depend on."""

    gcc: str
    machine: str
    vectors: str
    instructions: Mapping[str, float]

    def differs_from(self, other: Counts) -> list[str]:
        """Say what makes two runs no fair comparison."""
        pairs = ((name, getattr(self, name), getattr(other, name)) for name in ("gcc", "machine", "vectors"))
        return [f"{name} {theirs} instead of {ours}" for name, ours, theirs in pairs if ours != theirs]


@dataclass(frozen=True, slots=True)
class Row:
    """One case then and now; None where it was not, or is not any more."""

    name: str
    before: float | None
    now: float | None

    @property
    def is_worse(self) -> bool:
        """Whether it takes more instructions than it may, or is not counted any more."""
        if self.before is None:
            return False
        return self.now is None or self.now > self.before + max(TOLERANCE * self.before, SLACK)

    def shown(self) -> str:
        """Return a line of the table."""
        before, now = ("-" if value is None else f"{value:.1f}" for value in (self.before, self.now))
        change = f"{self.now / self.before - 1:+.1%}" if self.now is not None and self.before else ""
        return f"{self.name:<16}{before:>12}{now:>12}{change:>10}{'  WORSE' if self.is_worse else ''}"


def compare(before: Counts, now: Counts) -> list[Row]:
    """Put two runs side by side: the cases of now in their order, then those that are gone."""
    names = dict.fromkeys([*now.instructions, *before.instructions])
    return [Row(name, before.instructions.get(name), now.instructions.get(name)) for name in names]


def count_engine(dump: str) -> int:
    """Add up the instructions of one dump of callgrind that are of csrc/, whoever called them."""
    files: dict[str, str] = {}
    is_engine = is_call = False
    total = 0
    for line in dump.splitlines():
        place = re.match(r"(fl|fi|fe|cfi|cfl)=\((\d+)\)(?: (.+))?$", line)
        if place:
            kind, number, name = place.groups()
            files.setdefault(number, name or "")
            if kind == "fl":  # of the function; what was inlined into it counts as it
                is_engine = Path(files[number]).parent == CSRC
        elif line.startswith("calls="):
            is_call = True  # the line behind it says what the function called took
        elif re.match(r"[+*\d-]\S* \d+$", line):
            if is_engine and not is_call:
                total += int(line.split()[1])
            is_call = False
    return total


def build() -> Path:
    """Compile the program as the module is compiled; return it."""
    BUILD.mkdir(parents=True, exist_ok=True)
    names = [unit for unit in PROBE_UNITS if not unit.startswith("probe")]
    units = [CSRC / f"{name}.c" for name in (*names, *OUTBOX)]
    flags = [*COMPILE_ARGS, "-g", "-fPIC", "-D_GNU_SOURCE", f"-I{CSRC}"]
    program = BUILD / "hot"
    subprocess.run(["gcc", *flags, "-o", program, ROOT / "bench" / "hot.c", *units], check=True)
    return program


def measure() -> Counts:
    """Count each case."""
    program = build()
    for old in BUILD.glob("dump*"):
        old.unlink()
    command = ["valgrind", "-q", "--tool=callgrind", f"--callgrind-out-file={BUILD / 'dump'}"]
    done = subprocess.run([*command, program, str(ROUNDS)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"bench.callgrind: {program.name} ended with {done.returncode}\n{done.stderr}")
    vectors, *lines = done.stdout.splitlines()
    packets = {name: int(number) for name, number in (line.split() for line in lines)}
    dumps = {}
    for path in BUILD.glob("dump.*"):
        text = path.read_text(encoding="utf-8")
        case = re.search(r"^desc: Trigger: Client Request: (\w+)$", text, flags=re.MULTILINE)
        if case:
            dumps[case[1]] = count_engine(text)
    gcc = subprocess.run(["gcc", "-dumpfullversion"], capture_output=True, text=True, check=True)
    instructions = {name: round(dumps[name] / number, 2) for name, number in packets.items()}
    return Counts(gcc.stdout.strip(), platform.machine(), vectors, instructions)


def read(path: Path) -> Counts:
    """Read counts from a file."""
    fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return Counts(**fields)


def write(counts: Counts, path: Path) -> None:
    """Write counts into a file."""
    path.write_text(json.dumps(asdict(counts), indent=1) + "\n", encoding="utf-8")


def report(before: Counts, now: Counts) -> int:
    """Print the comparison; return the exit status."""
    rows = compare(before, now)
    print(f"{'instructions':<16}{'baseline':>12}{'now':>12}{'change':>10}")
    for row in rows:
        print(row.shown())
    worse = [row.name for row in rows if row.is_worse]
    differences = before.differs_from(now)
    if differences:
        print(f"No verdict, for the baseline is of another compiler or CPU: {', '.join(differences)}.")
    elif worse:
        print(f"More than {TOLERANCE:.0%} above the baseline: {', '.join(worse)}. Is it worth it? --update")
        return 1
    else:
        print(f"None is more than {TOLERANCE:.0%} above the baseline.")
    return 0


def main(words: Sequence[str] | None = None) -> int:
    """Parse the command line, count, compare."""
    parser = argparse.ArgumentParser(
        prog="bench.callgrind", description="Count the instructions of hot functions."
    )
    parser.add_argument("--update", action="store_true", help="make the counts of now the baseline")
    parser.add_argument("--json", type=Path, help="write the counts of now there, too")
    parser.add_argument("--baseline", type=Path, default=BASELINE, help="default: bench/instructions.json")
    args = parser.parse_args(words)
    now = measure()
    if args.json:
        write(now, args.json)
    status = report(read(args.baseline) if args.baseline.is_file() else now, now)
    if args.update:
        write(now, args.baseline)
        print(f"Written: {args.baseline}")
        return 0
    return status


if __name__ == "__main__":
    sys.exit(main())
