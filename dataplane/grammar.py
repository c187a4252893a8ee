# SPDX-License-Identifier: Apache-2.0
"""A parser of command lines that says in one line what is allowed, and leaves it to others to leave."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from dataplane.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """Raises ConfigError that names what is allowed, instead of printing a usage and leaving."""

    def error(self, message: str) -> NoReturn:
        """Say in one line what is wrong."""
        raise ConfigError(f"{message}; see {self.prog} --help")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse like the original, but refuse here, where it is known what is allowed, what is not known."""
        found, unknown = super().parse_known_args(args, namespace)
        for word in unknown:
            if not word.startswith("-"):
                raise ConfigError(f'"{word}" is one word too many; see {self.prog} --help')
            name = word.partition("=")[0]
            flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
            raise ConfigError(f"flag {name} is unknown to {self.prog}; {list_allowed(name, flags)}")
        return found, unknown


def list_allowed(text: str, allowed: Sequence[str]) -> str:
    """Return what is allowed, and what `text` was perhaps meant to be."""
    from dataplane.flannel import suggest

    return f"allowed are {', '.join(allowed)}{suggest(text, allowed)}"


class Collect(argparse.Action):
    """Collects the texts of each flag by its name, in order."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option: str | None = None,
    ) -> None:
        namespace.given.setdefault(self.dest, []).append(values)
