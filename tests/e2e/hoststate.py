# SPDX-License-Identifier: Apache-2.0
"""All of a host that overlayd could change, as one text to compare."""

from __future__ import annotations

from bench.lab import Namespace

SHOWN = (
    ("ip", "-d", "link"),
    ("ip", "addr"),
    ("ip", "route", "show", "table", "all"),
    ("ip", "-6", "route", "show", "table", "all"),
    ("ip", "rule"),
    ("nft", "list", "ruleset"),
    ("sysctl", "-a", "-r", "^net"),
)


def look(host: Namespace) -> str:
    """Return links, addresses, routes, rules, firewall and settings of a host."""
    return "".join(host.run(*command).stdout for command in SHOWN)
