# SPDX-License-Identifier: Apache-2.0
"""Structured logs: an event and its fields, as text or JSON, one line each. Nothing is logged per packet."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

from dataplane.errors import one_line

ROOT = "overlayd"
LEVELS = ("debug", "info", "warning", "error")
STYLES = ("text", "json")


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
