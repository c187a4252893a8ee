# SPDX-License-Identifier: Apache-2.0
"""Structured logs: an event and its fields, as text or JSON, one line each. Nothing is logged per packet."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime

from dataplane.errors import one_line

ROOT = "overlayd"
LEVELS = ("debug", "info", "warning", "error")
STYLES = ("text", "json")
AGAIN_MIN_S, AGAIN_MAX_S = 60.0, 3600.0  # between lines about one trouble, which grow rarer


class Journal:
    """Writes events of one part of the program: `journal.info("published", subnets=3)`."""

    def __init__(self, part: str) -> None:
        """Name the part."""
        self._log = logging.getLogger(f"{ROOT}.{part}")

    def debug(self, event: str, **fields: object) -> None:
        """Tell what only a developer wants to know."""
        self._log.debug(event, extra={"fields": fields})

    def info(self, event: str, **fields: object) -> None:
        """Tell what happened."""
        self._log.info(event, extra={"fields": fields})

    def warning(self, event: str, **fields: object) -> None:
        """Tell what went wrong and is being dealt with."""
        self._log.warning(event, extra={"fields": fields})

    def error(self, event: str, **fields: object) -> None:
        """Tell what needs an operator."""
        self._log.error(event, extra={"fields": fields})


class Trouble:
    """Tells of what fails again and again in few lines: that it began, what is new of it, that it is over."""

    def __init__(self, log: Journal, event: str, clock: Callable[[], float] = time.monotonic) -> None:
        """Tell of nothing yet."""
        self._log = log
        self._event = event
        self._clock = clock
        self._began_s: float | None = None
        self._told: str | None = None
        self._next_s = 0.0
        self._pause_s = AGAIN_MIN_S

    def failed(self, why: str, **fields: object) -> None:
        """Take that it failed."""
        now = self._clock()
        if self._began_s is None:
            self._began_s, self._pause_s, self._next_s = now, AGAIN_MIN_S, now
        if why == self._told or now < self._next_s:
            return
        self._log.error(self._event, **fields, error=why)
        self._told, self._next_s = why, now + self._pause_s
        self._pause_s = min(2 * self._pause_s, AGAIN_MAX_S)

    def over(self) -> None:
        """Take that it works."""
        if self._began_s is not None:
            lasted_s = round(self._clock() - self._began_s, 1)
            self._log.info(f"{self._event}: over", lasted_s=lasted_s)
        self._began_s = self._told = None


def _stamp(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def _fields(record: logging.LogRecord) -> dict[str, object]:
    fields = getattr(record, "fields", None)
    return fields if isinstance(fields, dict) else {}


class TextFormatter(logging.Formatter):
    """`2026-11-23T04:05:06.789+00:00 INFO published subnets=3`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line, and the traceback of a bug below it."""
        parts = [_stamp(record), record.levelname, record.getMessage()]
        for name, value in _fields(record).items():
            text = str(value)
            plain = text and not any(char.isspace() or char in '="' for char in text)
            parts.append(f"{name}={text if plain else json.dumps(text, ensure_ascii=False)}")
        line = one_line(" ".join(parts))
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """`{"time": …, "level": "INFO", "event": "published", "subnets": 3}`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        line: dict[str, object] = {
            "time": _stamp(record),
            "level": record.levelname,
            "event": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


def set_up(level: str, style: str) -> None:
    """Send everything to standard error: `style` is text or json. May be called again.

    `level` is of what we say. Libraries are heard from warnings on: what they say while debugging is about
    themselves, megabytes of it, and nobody knows which secrets are among that.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    wanted = logging.getLevelNamesMapping()[level.upper()]
    logging.basicConfig(level=max(wanted, logging.WARNING), handlers=[handler], force=True)
    logging.getLogger(ROOT).setLevel(wanted)
