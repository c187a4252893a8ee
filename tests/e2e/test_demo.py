# SPDX-License-Identifier: Apache-2.0
"""The demo, which is what a newcomer sees first: bench/demo.py draws its lab."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.alone
def test_demo_checks_all_that_it_shows() -> None:
    """Every act of the demo holds on the tree as it is."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.demo"], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert done.stdout.rstrip().endswith("demo: ok")
