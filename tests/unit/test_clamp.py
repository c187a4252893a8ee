# SPDX-License-Identifier: Apache-2.0
"""The rules that fit the MSS of connections: on which devices there are any, and where they stand."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv6Network

import pytest

from dataplane import clamp, ruleset, traffic
from dataplane.model import Encap
from dataplane.ruleset import Ruleset
from tests.unit.test_traffic import CONFIG, KEY, NETWORK, SETTINGS

ON = replace(CONFIG, mss_clamp=True)
BOTH = replace(SETTINGS, network=replace(NETWORK, network6=IPv6Network("fd00:244::/48")))
BARE = replace(SETTINGS, encaps=frozenset({Encap.DIRECT}))


def test_by_choice() -> None:
    """The overlay device of the datapath is clamped if somebody wants that, and nothing without one."""
    assert traffic.plan(CONFIG, BOTH, KEY).clamped == ()
    assert traffic.plan(ON, BOTH, KEY).clamped == ("overlay0",)
    assert traffic.plan(ON, BARE, KEY).clamped == ()
    kernel = replace(ON, datapath="kernel")
    assert traffic.plan(kernel, SETTINGS, KEY).clamped == ("overlay0.7",)
    assert traffic.plan(kernel, BOTH, KEY).clamped == ("overlay0.7", "overlay0-v6.7")


@pytest.mark.parametrize("devices", [(), ("overlay0",), ("overlay0.1", "overlay0-v6.1")])
def test_rules(devices: tuple[str, ...]) -> None:
    """Each device has a rule each way, in a chain that is there only with them."""
    wanted = Ruleset("t", None, None, (), devices)
    assert (wanted.has_table, wanted.is_empty) == (bool(devices), not devices)
    commands = [command["add"] for command in ruleset.build(wanted) if "add" in command]
    chains = [command["chain"] for command in commands if "chain" in command]
    rules = [command["rule"] for command in commands if "rule" in command]
    assert [(chain["name"], chain["hook"]) for chain in chains] == [("mss", "forward")] * bool(devices)
    assert {rule["chain"] for rule in rules} <= {"mss"}
    places = [tuple(rule["expr"][0]["match"][side] for side in ("left", "right")) for rule in rules]
    assert places == [({"meta": {"key": way}}, name) for name in devices for way in ("oifname", "iifname")]
    assert all(rule["expr"][1:] == [clamp.OPENS, clamp.FIT] for rule in rules)
