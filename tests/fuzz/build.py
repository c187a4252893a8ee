# SPDX-License-Identifier: Apache-2.0
"""Builds the fuzzers in C: every target with the engine, by clang, in one of several flavours."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.c.objects import Objects, digest_of

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
HERE = Path(__file__).resolve().parent
SHARED = ROOT / "tests" / "c"
BUILD = ROOT / "build" / "fuzz"

FLAGS = ["-std=gnu11", "-D_GNU_SOURCE", "-pthread", "-g", f"-I{CSRC}", f"-I{SHARED}", f"-I{HERE}"]
WARNINGS = ["-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Werror"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
FLAVOURS = {
    "address": ["-O1", *SANITIZERS],
    # The same for a few inputs: compiled in a third of the time.
    "quick": ["-O0", *SANITIZERS],
    # Only guard pages and what the targets check, and nothing noted of comparisons: several times as fast.
    "walls": ["-O2", "-fno-sanitize-coverage=trace-cmp"],
    "coverage": ["-O0", "-fprofile-instr-generate", "-fcoverage-mapping"],
}
TARGETS = sorted(path.stem for path in HERE.glob("*.c"))


def objects_of(flavour: str, where: Path, units: Iterable[Path] = ()) -> Objects:
    """Return what compiles for a flavour into a directory, and anew also if one of some units has changed."""
    headers = [path for directory in (CSRC, SHARED, HERE) for path in directory.glob("*.h")]
    command = ["clang-14", *FLAGS, *WARNINGS, "-fsanitize=fuzzer-no-link", *FLAVOURS[flavour]]
    return Objects(where, command, [*headers, *units])


def included_units() -> list[Path]:
    """Return the units that targets include, to reach into them."""
    sources = "".join(path.read_text(encoding="utf-8") for path in sorted(HERE.glob("*.[ch]")))
    return [CSRC / name for name in sorted(set(re.findall(r'#include "[./csr]*?(\w+\.c)"', sources)))]


def link(flavour: str, target: Path, engine: Sequence[Path] = ()) -> None:
    """Make a fuzzer of its object and those of the engine, unless it is one of just these."""
    program, library = target.with_suffix(""), target.with_name("libengine.a")
    command: list[str | Path] = ["clang-14", "-pthread", "-fsanitize=fuzzer", *FLAVOURS[flavour]]
    stamp = program.with_suffix(".linked")
    wanted = digest_of((path.with_suffix(".stamp") for path in (target, *engine)), command)
    if program.is_file() and stamp.is_file() and stamp.read_text(encoding="ascii") == wanted:
        return
    stamp.unlink(missing_ok=True)
    # The library comes last: a target that includes a unit, to reach into it, takes precedence.
    subprocess.run([*command, "-o", program, target, *([library] if engine else [])], check=True)
    stamp.write_text(wanted, encoding="ascii")


def build(flavour: str = "address") -> Path:
    """Build all fuzzers as far as they are not current; return where they are."""
    where = BUILD / flavour
    units = [path for path in sorted(CSRC.glob("*.c")) if not path.stem.startswith("probe")]
    engine = objects_of(flavour, where).compile((path, f"unit_{path.stem}") for path in units)
    sources = ((HERE / f"{name}.c", name) for name in TARGETS)
    targets = objects_of(flavour, where, included_units()).compile(sources)
    (where / "libengine.a").unlink(missing_ok=True)
    subprocess.run(["ar", "rcs", where / "libengine.a", *engine], check=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda target: link(flavour, target, engine), targets))
    return where
