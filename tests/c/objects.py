# SPDX-License-Identifier: Apache-2.0
"""Object files that are compiled again only when their source, a header or a flag has changed."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

BROKEN = "does not compile"


def digest_of(paths: Iterable[Path], *more: object) -> str:
    """Return a digest of files and of whatever else goes into a build."""
    digest = hashlib.sha256(repr(more).encode())
    for path in sorted(paths):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Objects:
    """A directory of object files, all compiled by one command line."""

    where: Path
    command: Sequence[str]  # without -c, -o and the source
    headers: Sequence[Path]

    def compile(self, sources: Iterable[tuple[Path, str]]) -> list[Path]:
        """Compile what has changed of (source, name of its object), and return the objects."""
        common = digest_of(self.headers, list(self.command))
        self.where.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            jobs = [pool.submit(self._compile_one, source, name, common) for source, name in sources]
            return [job.result() for job in jobs]

    def _compile_one(self, source: Path, name: str, common: str) -> Path:
        target, stamp = self.where / f"{name}.o", self.where / f"{name}.stamp"
        wanted = digest_of([source], common)
        if target.is_file() and stamp.is_file() and stamp.read_text(encoding="ascii") == wanted:
            return target
        stamp.unlink(missing_ok=True)
        command = [*self.command, "-c", "-o", str(target), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{BROKEN}: {done.stderr}"
        stamp.write_text(wanted, encoding="ascii")
        return target
