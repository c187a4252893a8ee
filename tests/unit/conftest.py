# SPDX-License-Identifier: Apache-2.0
"""Fixtures of several unit tests."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataplane import journal
from dataplane.rundir import RunDir


@pytest.fixture
def where(tmp_path: Path) -> RunDir:
    """Return a prepared run directory."""
    run_dir = RunDir(tmp_path / "run")
    run_dir.prepare()
    return run_dir


@pytest.fixture
def logs(capsys: pytest.CaptureFixture[str]) -> Iterator[pytest.CaptureFixture[str]]:
    """Log as a daemon does, yield what captures it, and leave logging as it was."""
    root, ours = logging.getLogger(), logging.getLogger(journal.ROOT)
    before = root.level, ours.level
    journal.set_up("info", "text")
    yield capsys
    for handler in root.handlers[:]:
        if type(handler) is logging.StreamHandler:  # pytest looks after its own
            root.removeHandler(handler)
    root.setLevel(before[0])
    ours.setLevel(before[1])
