# SPDX-License-Identifier: Apache-2.0
"""The documents say what the program does: every flag, default and field, and links that lead somewhere."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataplane import cli, config, flannel, options
from dataplane.flags import Flag

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
ALWAYS = {"--help", "--version"}
FLAG = re.compile(r"--[a-z][a-z0-9_-]*")


def section(title: str) -> str:
    """Return the text below a heading of docs/configuration.md, up to the next one."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", CONFIGURATION, re.DOTALL | re.MULTILINE)
    assert found is not None, title
    return found[1]


def flags_of(parser: argparse.ArgumentParser) -> set[str]:
    """Return the long flags that a command shows in its help."""
    return {flag for flag in parser._option_string_actions if flag.startswith("--")} - ALWAYS


def walk(parser: argparse.ArgumentParser, name: str) -> Iterator[tuple[str, set[str]]]:
    """Yield every command below a parser with its flags."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        yield name, flags_of(parser)
    for group in groups:
        for word, child in group.choices.items():
            yield from walk(child, f"{name} {word}")


def commands() -> dict[str, set[str]]:
    """Return all commands with their flags."""
    parser, _ = cli._build_parser(["run", "network", "lease", "cni-conf"])
    return dict(walk(parser, "overlayd"))


def documented(command: str) -> str:
    """Return what docs/configuration.md says of a command's flags."""
    if command == "overlayd run":
        return section("`overlayd run`")
    rows = section("Other commands").splitlines()
    (row,) = (line for line in rows if line.startswith(f"| `{command}` |"))
    return row


@pytest.mark.parametrize("command", sorted(commands()))
def test_every_flag_is_documented(command: str) -> None:
    """What the help of a command shows is in docs/configuration.md, and nothing else is."""
    named = set(FLAG.findall(documented(command)))
    assert named - ALWAYS == commands()[command]


def test_every_command_is_documented() -> None:
    """The table of commands lists each, and no other; README names them too."""
    rows = re.findall(r"^\| `(overlayd [a-z -]+)` \|", section("Other commands"), re.MULTILINE)
    assert {*rows, "overlayd run"} == set(commands())
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"`overlayd {command.split()[1]}" in readme for command in commands())


DEFAULTS = dict(
    re.findall(r"^\| `--([a-z0-9-]+) [^`]*` \| (.*?) \|", section("`overlayd run`"), re.MULTILINE)
)


@pytest.mark.parametrize("flag", [flag for flag in options.FLAGS if flag.field], ids=lambda flag: flag.name)
def test_defaults_are_those_of_the_program(flag: Flag) -> None:
    """A default that a table shows is the one in force."""
    shown = DEFAULTS[flag.name]
    default = "auto" if flag.name == "store" else getattr(config.RunConfig(store=""), flag.field)
    if default in (None, (), ""):
        assert shown in ("see below", "none", "the network's")
    elif isinstance(default, tuple):
        assert shown == f"`{','.join(default)}`"
    else:
        assert shown == (f"`{default}`" if not isinstance(default, bool) else f"`{str(default).lower()}`")


@pytest.mark.parametrize(
    ("title", "fields"),
    [
        pytest.param("Network config", {*flannel._NETWORK_FIELDS, *flannel._BACKEND_FIELDS}, id="network"),
        pytest.param("Leases", {*flannel._LEASE_FIELDS, *flannel._DATA_FIELDS}, id="lease"),
    ],
)
def test_every_field_is_documented(title: str, fields: set[str]) -> None:
    """The tables name every field that is read, and none that is not."""
    cells = re.findall(r"^\| ((?:`[A-Za-z0-9]+`(?:, )?)+) \|", section(title), re.MULTILINE)
    assert {name for cell in cells for name in re.findall(r"`(\w+)`", cell)} == fields


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_variables_exist(path: Path) -> None:
    """A variable that a document names is one that `overlayd run` reads."""
    named = set(re.findall(r"OVERLAYD_[A-Z0-9_]+", path.read_text(encoding="utf-8")))
    assert named <= {flag.variable for flag in options.FLAGS}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    """Every relative link leads to a file that is there."""
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    broken = [target for target in targets if "://" not in target and not (path.parent / target).exists()]
    assert broken == []
