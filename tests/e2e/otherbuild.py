# SPDX-License-Identifier: Apache-2.0
"""Another build of overlayd beside this one: the same sources under another version, with other numbers.

It stands in build/other, and is made again when a source or a number changes. It is compiled with less
optimisation, which takes a third of the time.
"""

from __future__ import annotations

import fcntl
import hashlib
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.e2e.rig import ROOT

BUILD_S = 240.0
PARTS = ("dataplane", "csrc")
SCRIPT = "import csrc.build_native as b; b.COMPILE_ARGS.append('-O1'); b.build_in_place(b.NATIVE, [])"


def other_build(version: str, numbers: Mapping[str, int] | None = None) -> Path:
    """Return where a tree with this version and these numbers of dp.h is, built."""
    found = ROOT / "build" / "other" / f"{version}-{_fingerprint(version, numbers or {})}"
    found.parent.mkdir(parents=True, exist_ok=True)
    with found.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test processes may want it
        if not (found / "done").exists():
            shutil.rmtree(found, ignore_errors=True)
            _copy(found, version, numbers or {})
            subprocess.run(
                [sys.executable, "-c", SCRIPT], cwd=found, check=True, capture_output=True, timeout=BUILD_S
            )
            (found / "done").touch()
    return found


def _fingerprint(version: str, numbers: Mapping[str, int]) -> str:
    digest = hashlib.sha256(repr((version, sorted(numbers.items()), SCRIPT)).encode())
    for path in sorted(path for part in PARTS for path in (ROOT / part).rglob("*.[pch]*")):
        if path.suffix in (".py", ".c", ".h"):
            digest.update(str(path).encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _copy(where: Path, version: str, numbers: Mapping[str, int]) -> None:
    for part in PARTS:
        shutil.copytree(ROOT / part, where / part, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    package = where / "dataplane" / "__init__.py"
    text, count = re.subn(r'^VERSION = ".*"$', f'VERSION = "{version}"', package.read_text(), flags=re.M)
    assert count == 1
    package.write_text(text)
    header = where / "csrc" / "dp.h"
    text = f"/* of {version} */\n{header.read_text()}"  # so that its build is another one in any case
    for name, number in numbers.items():
        text, count = re.subn(rf"^#define {name} \d+", f"#define {name} {number}", text, flags=re.M)
        assert count == 1, name
    header.write_text(text)
