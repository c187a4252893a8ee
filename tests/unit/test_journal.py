# SPDX-License-Identifier: Apache-2.0
"""Logs: one line per event, in two styles."""

from __future__ import annotations

import json
import logging
import sys

import pytest

from dataplane import journal


def record(fields: dict[str, object], failed: bool = False) -> logging.LogRecord:
    """Return what `Journal.info("published", **fields)` hands to a formatter."""
    made = logging.LogRecord("overlayd.test", logging.INFO, __file__, 1, "published", (), None)
    made.fields = fields
    if failed:
        try:
            raise KeyError("bug")
        except KeyError:
            made.exc_info = sys.exc_info()
    return made


@pytest.mark.parametrize(
    ("fields", "tail"),
    [
        ({}, "INFO published"),
        ({"subnets": 3, "tier": "full but mmsg"}, 'INFO published subnets=3 tier="full but mmsg"'),
        ({"error": 'no "x" here', "empty": ""}, 'INFO published error="no \\"x\\" here" empty=""'),
        ({"lines": "a\nb"}, 'INFO published lines="a\\nb"'),
    ],
)
def test_text_is_one_line(fields: dict[str, object], tail: str) -> None:
    """Values with spaces, quotes or line ends are quoted, so that a line is a record."""
    line = journal.TextFormatter().format(record(fields))
    assert line.partition(" ")[2] == tail


def test_json_is_one_object() -> None:
    """Every line parses, whatever the values are."""
    line = journal.JsonFormatter().format(record({"error": ValueError("a\nb"), "subnets": 3}))
    assert "\n" not in line
    parsed = json.loads(line)
    assert (parsed["event"], parsed["level"], parsed["error"], parsed["subnets"]) == (
        "published",
        "INFO",
        "a\nb",
        3,
    )
    assert parsed["time"].endswith("+00:00")


def test_bug_keeps_its_traceback() -> None:
    """An exception that was not meant is shown whole in both styles."""
    assert "KeyError: 'bug'" in journal.TextFormatter().format(record({}, failed=True))
    assert (
        "KeyError: 'bug'" in json.loads(journal.JsonFormatter().format(record({}, failed=True)))["traceback"]
    )


def test_trouble_that_lasts(caplog: pytest.LogCaptureFixture) -> None:
    """A day of trouble, with a new reason every 5 s, is under 100 lines; its end is one line."""
    now = 0.0
    trouble = journal.Trouble(journal.Journal("test"), "store lost", lambda: now)
    with caplog.at_level(logging.INFO):
        trouble.over()
        assert not caplog.messages
        for turn in range(24 * 720):
            now = 5.0 * turn
            trouble.failed(f"reason {turn}")
        assert 10 < len(caplog.messages) < 100
        caplog.clear()
        trouble.over()
        trouble.over()
        assert caplog.messages == ["store lost: over"]
        trouble.failed("again")
        trouble.failed("again")
        assert caplog.messages == ["store lost: over", "store lost"]
