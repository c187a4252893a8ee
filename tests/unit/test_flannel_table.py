# SPDX-License-Identifier: Apache-2.0
"""The table of flannel's tests names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAME = re.compile(r"`(tests/[a-z0-9_/]+\.py)?::(test_\w+)`")


def test_named_tests_exist() -> None:
    """Every row names at least one test, and each of them is a function of its file."""
    text = (ROOT / "docs" / "flannel-tests.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    missing = []
    for row in rows:
        path = ""
        found = NAME.findall(row)
        assert found, row
        for named, test in found:
            path = named or path
            if f"\ndef {test}(" not in (ROOT / path).read_text(encoding="utf-8"):
                missing.append(f"{path}::{test}")
    assert len(rows) > 15
    assert missing == []
