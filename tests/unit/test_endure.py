# SPDX-License-Identifier: Apache-2.0
"""Parts of the daemon: what the world does to them is told, and they begin again."""

from __future__ import annotations

import asyncio
import errno
import logging

import pytest

from dataplane import endure


class Part:
    """A part that fails so often, and then ends."""

    def __init__(self, failures: int) -> None:
        """Have begun never."""
        self.begun = 0
        self._failures = failures

    async def run(self) -> None:
        """Fail, or end."""
        self.begun += 1
        if self.begun <= self._failures:
            raise OSError(errno.ENOBUFS, "No buffer space available")


def test_part_begins_again(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A part that fails begins again until it does not, and that is told once."""
    monkeypatch.setattr(endure, "RETRY_S", 0.001)
    part = Part(3)
    with caplog.at_level(logging.INFO, logger="overlayd"):
        asyncio.run(endure.endure(part.run, lambda: True))
    assert part.begun == 4
    assert [record.getMessage() for record in caplog.records] == [
        "a part of the work failed and begins again"
    ]


def test_start_that_fails() -> None:
    """Before packets are carried the first failure is the end."""
    part = Part(1)
    with pytest.raises(OSError, match="No buffer space"):
        asyncio.run(endure.endure(part.run, lambda: False))
    assert part.begun == 1


def test_bugs_are_not_endured() -> None:
    """What is no fault of the world ends the daemon."""

    async def fail() -> None:
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        asyncio.run(endure.endure(fail, lambda: True))
