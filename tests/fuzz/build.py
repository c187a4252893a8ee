# SPDX-License-Identifier: Apache-2.0
"""Builds the fuzzers in C: every target with the engine, by clang, in one of several flavours."""

from __future__ import annotations

import hashlib
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
HERE = Path(__file__).resolve().parent
SHARED = ROOT / "tests" / "c"
BUILD = ROOT / "build" / "fuzz"

FLAGS = ["-std=gnu11", "-D_GNU_SOURCE", "-pthread", "-g", f"-I{CSRC}", f"-I{SHARED}", f"-I{HERE}"]
WARNINGS = ["-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Werror"]
FLAVOURS = {
    "address": ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    # Only guard pages and what the targets check, and nothing noted of comparisons: several times as fast.
    "walls": ["-O2", "-fno-sanitize-coverage=trace-cmp"],
    "coverage": ["-O0", "-fprofile-instr-generate", "-fcoverage-mapping"],
}
TARGETS = sorted(path.stem for path in HERE.glob("*.c"))


def compile_one(flavour: str, source: Path, target: Path) -> None:
    """Compile one C file."""
    command = ["clang-14", *FLAGS, *WARNINGS, "-fsanitize=fuzzer-no-link", *FLAVOURS[flavour]]
    done = subprocess.run(
        [*command, "-c", "-o", str(target), str(source)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr)


def fingerprint(flavour: str) -> str:
    """Return a digest of everything that goes into the fuzzers."""
    digest = hashlib.sha256(repr((FLAGS, WARNINGS, FLAVOURS[flavour], TARGETS)).encode())
    for path in sorted(p for d in (CSRC, SHARED, HERE) for p in d.glob("*.[ch]")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def link(flavour: str, program: Path, *objects: Path) -> None:
    """Make a fuzzer of its objects."""
    command: list[str | Path] = ["clang-14", "-pthread", "-fsanitize=fuzzer", *FLAVOURS[flavour]]
    subprocess.run([*command, "-o", program, *objects], check=True)


def build(flavour: str = "address") -> Path:
    """Build all fuzzers, unless they are current; return where they are."""
    where = BUILD / flavour
    stamp = where / "stamp"
    wanted = fingerprint(flavour)
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return where
    where.mkdir(parents=True, exist_ok=True)
    units = [path for path in sorted(CSRC.glob("*.c")) if not path.stem.startswith("probe")]
    jobs = {path: where / f"unit_{path.stem}.o" for path in units}
    jobs |= {HERE / f"{name}.c": where / f"{name}.o" for name in TARGETS}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda job: compile_one(flavour, *job), jobs.items()))
        library = where / "libengine.a"
        library.unlink(missing_ok=True)
        subprocess.run(["ar", "rcs", library, *(where / f"unit_{path.stem}.o" for path in units)], check=True)
        # The library comes last: a target that includes a unit, to reach into it, takes precedence.
        list(pool.map(lambda name: link(flavour, where / name, where / f"{name}.o", library), TARGETS))
    stamp.write_text(wanted, encoding="utf-8")
    return where
