# SPDX-License-Identifier: Apache-2.0
"""What is logged, and how, as it can be changed while we run: `overlayd log`, or log.json and SIGHUP.

The flags count until somebody says otherwise; that lies in log.json of the run directory until we end, where
it can be looked at, edited and taken back.
"""

from __future__ import annotations

import json

from dataplane.config import RunConfig
from dataplane.control import Reply, Request
from dataplane.errors import ConfigError, ControlError
from dataplane.flannel import suggest
from dataplane.journal import LEVELS, STYLES, Journal, set_up
from dataplane.rundir import RunDir, failure, write_atomically

ALLOWED = {"level": LEVELS, "format": STYLES}
FILE_MAX = 4096  # bytes

log = Journal("log")


def _check(said: object, where: str) -> dict[str, str]:
    """Return a setting, or a part of one, or raise ConfigError with what is allowed."""
    if not isinstance(said, dict):
        raise ConfigError(f'{where}: expected {{"level": …, "format": …}}')
    for name, value in said.items():
        if name not in ALLOWED:
            raise ConfigError(f'{where}: "{name}" is unknown; allowed are {", ".join(ALLOWED)}')
        if value not in ALLOWED[name]:
            raise ConfigError(
                f'{where}: {name} "{value}": allowed are {", ".join(ALLOWED[name])}'
                f"{suggest(str(value), ALLOWED[name])}"
            )
    return said


class LogSetting:
    """The setting in force."""

    def __init__(self, config: RunConfig, run_dir: RunDir) -> None:
        """Begin with what the flags say."""
        self._flags = {"level": config.log_level, "format": config.log_format}
        self._now = dict(self._flags)
        self._path = run_dir.path / "log.json"

    def forget(self) -> None:
        """Remove what was said to an earlier process."""
        self._path.unlink(missing_ok=True)

    def read(self) -> dict[str, str]:
        """Read what the file says, over the flags; ConfigError if that is no setting."""
        try:
            with self._path.open("rb") as file:
                text = file.read(FILE_MAX)
        except FileNotFoundError:
            return dict(self._flags)
        except OSError as err:
            raise failure("read", self._path, err) from None
        try:
            return self._flags | _check(json.loads(text), str(self._path))
        except (ValueError, RecursionError):
            raise ConfigError(f"{self._path}: no valid JSON") from None

    def apply(self, setting: dict[str, str]) -> None:
        """Put a setting in force; what is logged of that is logged by the old one or the new one."""
        if setting == self._now:
            return
        log.info("logging changes", **setting)
        self._now = setting
        set_up(setting["level"], setting["format"])
        log.info("logging changed", **setting)

    def answer(self, request: Request) -> Reply:
        """Do what `overlayd log` asks for, and say what is in force then."""
        try:
            said = _check({name: value for name, value in request.items() if name != "cmd"}, "log")
        except ConfigError as err:
            raise ControlError(str(err)) from None
        if said:
            setting = self._now | said
            write_atomically(self._path, json.dumps(setting) + "\n")
            self.apply(setting)
        return dict(self._now)
