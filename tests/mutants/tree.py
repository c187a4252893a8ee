# SPDX-License-Identifier: Apache-2.0
"""A copy of the source in which mutants live: the working tree is never touched."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cffi import FFI

from bench.lab import NETNS, remove_namespace
from csrc.build_native import COMPILE_ARGS, MACROS, NATIVE, list_sources, read_declarations
from tests.c.objects import Objects, digest_of

ROOT = Path(__file__).resolve().parents[2]
MODULES = (NATIVE, "tests._probe")
ENDING_S = 30.0  # for tests that were interrupted to clean up
FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+(?: [^-].*?)?)(?: - |$)", re.M)


def _write_glue(module: str, where: Path) -> tuple[Path, str]:
    """Write what cffi puts between C and Python, which is the same for all mutants; return it as a source."""
    path = where / f"{module}_glue.c"
    declarations, includes = read_declarations(module)
    ffi = FFI()
    ffi.cdef(declarations)
    ffi.set_source(module, includes)
    ffi.emit_c_code(str(path))
    return path, path.stem


@dataclass(frozen=True, slots=True)
class Ran:
    """What became of a pytest run."""

    failed: str | None  # the first test that failed, "" if that is not known
    seconds: float
    output: str

    @property
    def has_passed(self) -> bool:
        """Whether no test failed."""
        return self.failed is None


class BuildError(Exception):
    """What the compiler has to say against a mutant."""


class Tree:
    """One copy, with an engine of its own that is compiled unit by unit."""

    def __init__(self, where: Path) -> None:
        """Copy what git knows, or would add; build/ of the copy stays as it was."""
        self.where = where
        self._warm: subprocess.Popen[str] | None = None
        self._linked: dict[str, str] = {}  # from which objects a module was linked
        self._glues: dict[str, tuple[Path, str]] = {}
        listed = subprocess.run(
            ["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
        )
        names = {name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()}
        for path in list(where.rglob("*.py")) + list(where.rglob("*.[ch]")):
            known = path.relative_to(where)
            if known.parts[0] != "build" and str(known) not in names:
                path.unlink()
        for name in names:
            self.restore(name)
        interpreter = where / ".venv"
        if not interpreter.is_symlink():
            interpreter.symlink_to(ROOT / ".venv")

    def read(self, name: str) -> str:
        """Return a source file as it is in the working tree."""
        return (ROOT / name).read_text(encoding="utf-8")

    def write(self, name: str, text: str) -> None:
        """Have this in a source file; one that has it already keeps its time."""
        path = self.where / name
        if not path.is_file() or path.read_bytes() != text.encode():
            path.write_text(text, encoding="utf-8")
            self._forget(path)

    def restore(self, name: str) -> None:
        """Have a file as it is in the working tree."""
        source, target = ROOT / name, self.where / name
        if not target.is_file() or target.read_bytes() != source.read_bytes():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
            self._forget(target)

    def _forget(self, path: Path) -> None:
        """Drop what Python compiled: it looks at second and size, and two mutants may have both in common."""
        for compiled in path.parent.glob(f"__pycache__/{path.stem}.*.pyc"):
            compiled.unlink()

    # --- the engine -------------------------------------------------------------------------------------

    def build(self) -> None:
        """Compile what has changed and link both modules, or raise BuildError."""
        csrc, where = self.where / "csrc", self.where / "build" / "mutants"
        flags = [*COMPILE_ARGS, "-fPIC", f"-I{csrc}", f"-I{sysconfig.get_path('include')}"]
        flags += [f"-D{name}={value}" for name, value in MACROS]
        objects = Objects(where, ["gcc", *flags, "-DPy_LIMITED_API=0x030b0000"], sorted(csrc.glob("*.h")))
        where.mkdir(parents=True, exist_ok=True)
        try:
            for module in MODULES:
                units = [self.where / name for name in list_sources(module)]
                if module not in self._glues:
                    self._glues[module] = _write_glue(module, where)
                parts = objects.compile([*((unit, unit.stem) for unit in units), self._glues[module]])
                wanted = digest_of(parts)
                if self._linked.get(module) != wanted:
                    self._link(module, parts)
                    self._linked[module] = wanted
        except AssertionError as err:
            raise BuildError(str(err)) from None

    def _link(self, module: str, parts: Sequence[Path]) -> None:
        package, _, stem = module.rpartition(".")
        target = self.where / package / f"{stem}.abi3.so"
        draft = target.with_suffix(".new")
        done = subprocess.run(
            ["gcc", "-shared", "-pthread", "-o", draft, *parts], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        draft.replace(target)

    # --- tests ------------------------------------------------------------------------------------------

    def test(self, args: Sequence[str], limit_s: float) -> Ran:
        """Run pytest in the copy; one that does not end in time has failed."""
        begun_s = time.monotonic()
        out = self.where / "build" / "mutants" / "pytest.out"
        if self._warm is None:
            self._warm = self._start()
        assert self._warm.stdin is not None
        self._warm.stdin.write(json.dumps([list(args), str(out)]) + "\n")
        self._warm.stdin.flush()
        pid = int(self._answer(self._warm, None) or 0)
        status = self._answer(self._warm, limit_s)
        if status is None:
            self._end(self._warm, pid)
        output = out.read_text(encoding="utf-8", errors="replace")
        seconds = time.monotonic() - begun_s
        if status == 0:
            return Ran(None, seconds, output)
        found = FAILED.search(output)
        return Ran(found[1] if found else "", seconds, output)

    def _start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.mutants.warm"]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=self.where, stdin=pipe, stdout=pipe, text=True)

    def _answer(self, warm: subprocess.Popen[str], limit_s: float | None) -> int | None:
        """Return the number that comes next, None if it does not come in time."""
        assert warm.stdout is not None
        if not select.select([warm.stdout], [], [], limit_s)[0]:
            return None
        return int(warm.stdout.readline())

    def _end(self, warm: subprocess.Popen[str], pid: int) -> None:
        """End a pytest that hangs, with all it started and the namespaces it made."""
        os.killpg(pid, signal.SIGINT)
        if self._answer(warm, ENDING_S) is None:
            os.killpg(pid, signal.SIGKILL)
            self._answer(warm, None)
        for name in [path.name for path in NETNS.glob("*")] if NETNS.exists() else []:
            if str(pid % 100000) in re.findall(r"\d+", name):
                remove_namespace(name)

    def close(self) -> None:
        """End the process that runs tests; the copy stays, for the next time."""
        if self._warm is not None:
            assert self._warm.stdin is not None
            self._warm.stdin.close()
            self._warm.wait()
            self._warm = None
