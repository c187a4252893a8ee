# SPDX-License-Identifier: Apache-2.0
"""Runs a fuzz target in Python, guided by coverage.

python -m tests.fuzz.guided TARGET [libFuzzer's arguments]
"""

from __future__ import annotations

import sys
from random import Random

import atheris

with atheris.instrument_imports(include=["dataplane"]):
    from tests.fuzz import texts


def main() -> None:
    """Fuzz one target; does not return."""
    target = texts.TARGETS[sys.argv[1]]

    def mutate(data: bytes, room: int, seed: int) -> bytes:
        dice = Random(seed)
        if dice.random() < 0.05:
            return bytes(atheris.Mutate(data, room))
        text = texts.mutate(target, data.decode("utf-8", "replace"), dice)
        return text.encode("utf-8", "replace")[:room]

    atheris.Setup([sys.argv[0], *sys.argv[2:]], texts.Counted(target), custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
