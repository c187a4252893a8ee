# SPDX-License-Identifier: Apache-2.0
"""What others break or change on a running node is put right without a restart; drawing in pair.py."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from bench.lab import wait_for
from dataplane.repairs import PAUSE_S, REPAIRS_MAX
from tests.e2e.pair import START_S, Load, Pair, is_ready, is_replaced, peers_file

REPAIR_S = 1.0


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Yield the pair; at the end each side must have accounted for every packet."""
    with Pair(tmp_path_factory.mktemp("pair")) as built:
        yield built


@pytest.fixture
def fresh(pair: Pair) -> None:
    """Let control begin anew, so that repairs of earlier tests are forgotten."""
    daemon = pair.daemons["a"]
    daemon.stop()
    daemon.start()


def show(pair: Pair, *args: str) -> list[dict[str, Any]]:
    """Return what `ip -j ARGS` says on host `a`."""
    shown: list[dict[str, Any]] = json.loads(pair.spaces["a"].run("ip", "-j", *args).stdout or "[]")
    return shown


def look(pair: Pair) -> object:
    """Return device, addresses and routes of ours on host `a`."""
    (link,) = show(pair, "addr", "show", "overlay0")
    addresses = sorted((info["local"], info["prefixlen"]) for info in link["addr_info"])
    return (
        link["mtu"],
        link["operstate"],
        link["txqlen"],
        link["qdisc"],
        addresses,
        show(pair, "route", "show", "proto", "111"),
    )


BREAKAGE = {
    "route": "route del 10.244.0.0/16 dev overlay0",
    "unreachable": "route del unreachable 10.244.0.0/16 metric 4278190080",
    "address": "addr del 10.244.1.0/32 dev overlay0",
    "other_address": "addr add 10.9.9.9/32 dev overlay0",
    "mtu": "link set overlay0 mtu 1280",
    "down": "link set overlay0 down",
    "foreign_gateway": "route replace 10.244.0.0/16 dev under0 proto 111",
}


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("command", BREAKAGE.values(), ids=BREAKAGE.keys())
def test_what_is_ours_is_put_right(pair: Pair, command: str) -> None:
    """Whatever is done to our device, addresses and routes is undone, and packets flow as before."""
    before = look(pair)
    pair.spaces["a"].ip(f"{command}\n")
    wait_for(lambda: look(pair) == before, f"repair after {command}", REPAIR_S)
    with Load(pair) as load:
        pass
    assert load.lost() == 0


@pytest.mark.usefixtures("fresh")
def test_fight_is_told_and_slowed_down(pair: Pair) -> None:
    """Who undoes the same thing again and again is named; it is put right only now and then from then on."""
    daemon, space = pair.daemons["a"], pair.spaces["a"]
    before, command = look(pair), BREAKAGE["route"] + "\n"
    for _ in range(REPAIRS_MAX):
        space.ip(command)
        wait_for(lambda: look(pair) == before, "repair", START_S)
    fought = "something on this host undoes what we set up: route 10.244.0.0/16 overlay0"
    wait_for(lambda: fought in daemon.status()["warnings"], "the warning", START_S)
    begun_s = time.monotonic()
    space.ip(command)
    wait_for(lambda: look(pair) == before, "the next repair", START_S)
    assert time.monotonic() - begun_s > PAUSE_S / 2
    assert daemon.log().count("route 10.244.0.0/16 overlay0): put right 3 times") == 1


@pytest.mark.usefixtures("fresh")
def test_deleted_device_comes_back(pair: Pair) -> None:
    """Somebody deletes the TUN: it is made again with address and routes, and the same forwarder goes on."""
    daemon = pair.daemons["a"]
    before, pid = look(pair), daemon.forwarder_pid()
    old = show(pair, "link", "show", "overlay0")[0]["ifindex"]
    pair.spaces["a"].ip("link del overlay0\n")

    def is_back() -> bool:
        return any(link["ifname"] == "overlay0" and link["ifindex"] != old for link in show(pair, "link"))

    wait_for(is_back, "the device", START_S)
    wait_for(lambda: look(pair) == before and is_ready(daemon), "address and routes", START_S)
    with Load(pair) as load:
        pass
    assert load.lost() == 0
    assert daemon.forwarder_pid() == pid


def test_lost_address_is_told_and_its_return_noticed(pair: Pair) -> None:
    """Without the public address the node says so; when it is back, packets flow again."""
    daemon, space = pair.daemons["a"], pair.spaces["a"]
    space.ip("addr del 192.0.2.1/24 dev under0\n")
    wait_for(lambda: not is_ready(daemon), "not ready", START_S)
    assert daemon.status()["reason"] == "no interface of this host has the address 192.0.2.1"
    space.ip("addr add 192.0.2.1/24 dev under0\n")
    wait_for(lambda: is_ready(daemon), "ready", START_S)
    with Load(pair) as load:
        pass
    assert load.lost() == 0


@pytest.mark.parametrize(
    ("backend", "key", "value"),
    [({"Port": 9472}, "port", 9472), ({"VNI": 77}, "vni", 77), ({}, "vni", 1)],
    ids=["port", "vni", "back"],
)
def test_network_changes_while_running(pair: Pair, backend: dict[str, int], key: str, value: int) -> None:
    """Another port or VNI in the peers file is put in force by the running forwarders."""
    pids = {name: daemon.forwarder_pid() for name, daemon in pair.daemons.items()}
    for daemon in pair.daemons.values():
        peers = peers_file()
        peers["network"]["Backend"] |= backend
        for lease in peers["leases"].values():
            lease["BackendData"]["VNI"] = peers["network"]["Backend"].get("VNI", 1)
        daemon.write_peers(peers)
    for daemon in pair.daemons.values():
        wait_for(lambda d=daemon: d.status()[key] == value and is_ready(d), f"{key} {value}", START_S)  # type: ignore[misc]
    with Load(pair) as load:
        pass
    assert load.lost() == 0
    assert {name: daemon.forwarder_pid() for name, daemon in pair.daemons.items()} == pids


def test_broken_edit_changes_nothing(pair: Pair) -> None:
    """A peers file that cannot be read is told with its line; what was in force stays until it is mended."""
    daemon = pair.daemons["a"]
    generation = daemon.counters.header().generation
    daemon.write_peers('{\n"network": oops}')
    wait_for(lambda: daemon.status()["store"]["error"], "the error", START_S)
    status = daemon.status()
    assert "peers.json line 2" in status["store"]["error"]
    assert any("peers.json line 2" in warning for warning in status["warnings"])
    assert status["ready"] is True
    daemon.write_peers(peers_file())
    wait_for(lambda: daemon.status()["store"]["error"] is None, "the mended file", START_S)
    assert daemon.counters.header().generation == generation


def test_crash_loop_is_told_and_slowed_down(pair: Pair) -> None:
    """A forwarder that ends again and again is an alarm; it is still started, and packets flow in the end."""
    daemon = pair.daemons["a"]
    for _ in range(3):
        pid = daemon.status()["forwarder"]["pid"]
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda dead=pid: is_replaced(daemon, dead), "another forwarder", START_S)  # type: ignore[misc]
    assert any("forwarder ended 3 times" in warning for warning in daemon.status()["warnings"])
    with Load(pair) as load:
        pass
    assert load.lost() == 0


def test_log_says_what_was_done(pair: Pair) -> None:
    """Repairs are in the log, one line each, and no line for a packet."""
    log = pair.daemons["a"].log()
    assert 'host changed change="route 10.244.0.0/16 overlay0"' in log
    assert len(log.splitlines()) < 500
