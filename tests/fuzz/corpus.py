# SPDX-License-Identifier: Apache-2.0
"""The inputs that are kept with the source: what each fuzzer begins with, and what once crashed one.

corpus/TARGET.zip holds inputs that each reach something of their own, and crashes/TARGET/ those that crashed:
they are few, and each has a name that says what was wrong.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).resolve().parent
CORPUS = HERE / "corpus"
CRASHES = HERE / "crashes"
NO_TIME = (1980, 1, 1, 0, 0, 0)  # so that the same inputs make the same file


def read(target: str) -> dict[str, bytes]:
    """Return the kept inputs of a target by name."""
    inputs: dict[str, bytes] = {}
    pack = CORPUS / f"{target}.zip"
    if pack.is_file():
        with zipfile.ZipFile(pack) as file:
            inputs = {name: file.read(name) for name in file.namelist()}
    for path in sorted((CRASHES / target).glob("*")):
        inputs[f"crash-{path.name}"] = path.read_bytes()
    return inputs


def unpack(target: str, directory: Path) -> int:
    """Write the kept inputs of a target into a directory; return how many there are."""
    directory.mkdir(parents=True, exist_ok=True)
    inputs = read(target)
    for name, data in inputs.items():
        (directory / name).write_bytes(data)
    return len(inputs)


def pack(target: str, inputs: Iterable[bytes]) -> int:
    """Keep these inputs of a target, in place of those before; return the bytes they take."""
    CORPUS.mkdir(exist_ok=True)
    path = CORPUS / f"{target}.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as file:
        for data in sorted(set(inputs), key=lambda data: (len(data), data)):
            name = zipfile.ZipInfo(hashlib.sha256(data).hexdigest()[:8], NO_TIME)
            file.writestr(name, data, zipfile.ZIP_DEFLATED)
    return path.stat().st_size
