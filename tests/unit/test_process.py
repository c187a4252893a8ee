# SPDX-License-Identifier: Apache-2.0
"""Forwarders that control starts: what is told of one that ends at once, and where that is written down."""

from __future__ import annotations

import asyncio
import sys

import pytest

from dataplane.backend import process
from dataplane.errors import RuntimeFailure
from dataplane.rundir import RunDir


def fail(where: RunDir, monkeypatch: pytest.MonkeyPatch, words: str) -> str:
    """Start what ends at once after these words; return what is told of it."""
    monkeypatch.setattr(process, "_command", lambda _: [sys.executable, "-c", f"print({words!r}, end='')"])
    with pytest.raises(RuntimeFailure) as caught:
        asyncio.run(process.wait_listening(where, 1, process.spawn(where)))
    return str(caught.value)


def test_last_words_are_its_own(where: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a forwarder that ends without a word none is told that another one said before."""
    assert fail(where, monkeypatch, "no memory\n") == "forwarder ended at once: no memory"
    assert fail(where, monkeypatch, "") == "forwarder ended at once: it said nothing"
    assert "no memory" in where.forwarder_log.read_text()


def test_log_has_an_end(where: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often forwarders end, what they say does not fill the run directory."""
    where.forwarder_log.write_bytes(b"x" * process.LOG_MAX)
    fail(where, monkeypatch, "a little more\n")
    assert where.forwarder_log.stat().st_size > process.LOG_MAX
    fail(where, monkeypatch, "and more\n")
    assert where.forwarder_log.stat().st_size < 100


def test_full_disk(where: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing more can be written a forwarder is started nevertheless."""
    where.forwarder_log.symlink_to("/dev/full")
    monkeypatch.setattr(process, "_command", lambda _: ["true"])
    assert process.spawn(where).wait() == 0
