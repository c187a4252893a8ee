# SPDX-License-Identifier: Apache-2.0
"""What is logged, changed while we run: by command, by file, and not at all when what was said is wrong."""

from __future__ import annotations

import json
import logging
import re
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from dataplane import journal
from dataplane.config import RunConfig
from dataplane.errors import ConfigError, ControlError
from dataplane.logsetting import LogSetting
from dataplane.rundir import RunDir

CONFIG = RunConfig(store="etcd")
INFO, DEBUG = {"level": "info", "format": "text"}, {"level": "debug", "format": "text"}
log = journal.Journal("test")


@pytest.fixture
def setting(tmp_path: Path, logs: object) -> LogSetting:
    """Return what a daemon begins with."""
    return LogSetting(CONFIG, RunDir(tmp_path))


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return the lines that were logged."""
    return capsys.readouterr().err.splitlines()


def test_asked(setting: LogSetting, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a wish the answer is what is in force, and nothing changes."""
    assert setting.answer({"cmd": "log"}) == INFO
    log.debug("hidden")
    assert said(capsys) == []


def test_changed(setting: LogSetting, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A wish is in force with the next line, alone or together with the other, and lies in the file."""
    assert setting.answer({"cmd": "log", "level": "debug"}) == DEBUG
    log.debug("seen")
    assert said(capsys)[-1].endswith("DEBUG seen")
    assert setting.answer({"cmd": "log", "format": "json"}) == {"level": "debug", "format": "json"}
    log.debug("seen", n=1)
    assert json.loads(said(capsys)[-1])["n"] == 1
    assert json.loads((tmp_path / "log.json").read_text()) == {"level": "debug", "format": "json"}
    setting.answer({"cmd": "log", "level": "error", "format": "text"})
    log.warning("hidden")
    assert not [line for line in said(capsys) if "hidden" in line]


@pytest.mark.parametrize(
    ("wish", "reason"),
    [
        ({"level": "warn"}, 'log: level "warn": allowed are debug, info, warning, error (did you mean warn'),
        ({"level": ["debug"]}, "log: level \"['debug']\": allowed are debug, info"),
        ({"format": None}, 'log: format "None": allowed are text, json'),
        ({"lvel": "debug"}, 'log: "lvel" is unknown; allowed are level, format'),
        ({"level": "debug", "format": "xml"}, 'log: format "xml": allowed are text, json'),
    ],
)
def test_wrong_wish(
    setting: LogSetting, wish: dict[str, object], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wish that is wrong in any part changes nothing, and is told what is allowed."""
    with pytest.raises(ControlError, match=re.escape(reason)):
        setting.answer({"cmd": "log", **wish})
    assert setting.answer({"cmd": "log"}) == setting.read() == INFO
    assert said(capsys) == []


def test_file(setting: LogSetting, tmp_path: Path) -> None:
    """The file says what differs from the flags; without it the flags count again."""
    path = tmp_path / "log.json"
    path.write_text('{"level": "debug"}')
    assert setting.read() == DEBUG
    path.unlink()
    assert setting.read() == INFO
    assert LogSetting(replace(CONFIG, log_format="json"), RunDir(tmp_path)).read()["format"] == "json"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no valid JSON"),
        ("[]", 'expected {"level": …, "format": …}'),
        ("[" * 4000, "no valid JSON"),
        ('{"level": "loud"}', 'level "loud": allowed are debug, info, warning, error'),
    ],
)
def test_broken_file(setting: LogSetting, tmp_path: Path, text: str, reason: str) -> None:
    """A file that is no setting is named, with what is wrong."""
    (tmp_path / "log.json").write_text(text)
    with pytest.raises(ConfigError, match=f"^{re.escape(f'{tmp_path}/log.json: {reason}')}"):
        setting.read()


def test_another_process(setting: LogSetting, tmp_path: Path) -> None:
    """What was said to one process does not count for the next one; the file is for its owner."""
    setting.answer({"cmd": "log", "level": "debug"})
    assert stat.S_IMODE((tmp_path / "log.json").stat().st_mode) & 0o022 == 0
    following = LogSetting(CONFIG, RunDir(tmp_path))
    following.forget()
    assert following.read() == following.answer({"cmd": "log"}) == INFO


def test_libraries_do_not_chatter(setting: LogSetting, capsys: pytest.CaptureFixture[str]) -> None:
    """Of libraries warnings are shown, and what they say while debugging never is."""
    setting.answer({"cmd": "log", "level": "debug"})
    capsys.readouterr()
    logging.getLogger("pyroute2").debug("secret")
    logging.getLogger("asyncio").warning("slow")
    assert [line.partition(" ")[2] for line in said(capsys)] == ["WARNING slow"]
