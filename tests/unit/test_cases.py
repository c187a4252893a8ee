# SPDX-License-Identifier: Apache-2.0
"""Numbered cases: docs/standards.md says what each one shows and where, and there it is shown.

A test that shows case N has case_NNN in its id.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import COLLECTED

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "standards.md").read_text(encoding="utf-8")
# Of a tunnel endpoint, of tables and leases, of store and processes that fail, of faults, of load.
WANTED = {*range(1, 148), *range(149, 151)}
ROWS = re.findall(r"^\| (\d+)(?: to (\d+))? \| [^|]+ \| ([^|]+) \|$", TEXT, re.MULTILINE)


def cases(first: str, last: str) -> set[int]:
    """Return the numbers of a row."""
    return set(range(int(first), int(last or first) + 1))


@pytest.fixture(scope="module")
def shown(request: pytest.FixtureRequest) -> dict[str, set[int]]:
    """Return the cases that each file shows, whichever tests are run now."""
    ids = request.config.stash[COLLECTED]
    if not {ROOT / nodeid.partition("::")[0] for nodeid in ids} >= set((ROOT / "tests").rglob("test_*.py")):
        command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "tests"]
        ids = subprocess.run(
            command, cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout.splitlines()
    found: dict[str, set[int]] = {}
    for nodeid in ids:
        name, _, rest = nodeid.removeprefix("tests/").partition("::")
        found.setdefault(name, set()).update(int(number) for number in re.findall(r"case_(\d{3})", rest))
    return found


def test_every_case_has_a_row() -> None:
    """Each case stands in one row, and nothing else does."""
    numbers = [number for first, last, _ in ROWS for number in cases(first, last)]
    assert sorted(numbers) == sorted(WANTED)


@pytest.mark.parametrize(("first", "last", "files"), ROWS)
def test_every_case_has_a_test(shown: dict[str, set[int]], first: str, last: str, files: str) -> None:
    """Each file of a row has tests whose ids name all its cases."""
    for name in files.split(", "):
        assert cases(first, last) <= shown[name], name


def test_rules_name_what_is_shown(shown: dict[str, set[int]]) -> None:
    """Every file that the page names has tests, and every case that a rule of an RFC names has a row."""
    done = {number for first, last, _ in ROWS for number in cases(first, last)}
    rules = TEXT.partition("\n## Cases")[0]
    files = set(re.findall(r"\b(?:unit|e2e|c|property|fuzz)/test_\w+\.py", TEXT))
    assert files <= set(shown)
    named: set[int] = set()
    for cell in re.findall(r"\| ([^|]+) \|$", rules, re.MULTILINE):
        for part in cell.split(", "):
            if found := re.fullmatch(r"(\d+)(?: to (\d+))?", part):
                named |= cases(found[1], found[2] or "")
    assert named <= done
    assert len(named) > 80
