# SPDX-License-Identifier: Apache-2.0
"""What others break or change on a running node is put right without a restart; drawing in pair.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bench.lab import wait_for
from tests.e2e.pair import START_S, Load, Pair, is_ready, peers_file, replace_forwarder


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Yield the pair; at the end each side must have accounted for every packet."""
    with Pair(tmp_path_factory.mktemp("pair")) as built:
        yield built


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
        wait_for(lambda d=daemon: d.settled_status()[key] == value and is_ready(d), f"{key} {value}", START_S)  # type: ignore[misc]
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


def test_crash_loop_costs_offloads(pair: Pair) -> None:
    """Each three forwarders that end within 10 s are an alarm and cost a tier, until control is restarted."""
    daemon = pair.daemons["a"]
    found = []
    for _ in range(7):
        replace_forwarder(daemon)
        found.append(daemon.status()["tier"])
    single = "full but tun-tso, tun-uso, udp-gso, udp-gro, tun-gro, tun-ugro"
    assert found == ["full", "full", single, single, single, "plain", "plain"]
    status = daemon.status()
    assert status["offloads"]["tun-tso"] == "off: given up: forwarders ended again and again"
    for told in ("forwarder ended 3 times within 10 s", "forwarders ended again and again"):
        assert sum(told in warning for warning in status["warnings"]) == 1
    with Load(pair) as load:
        pass
    assert load.lost() == 0
    daemon.stop()
    daemon.start()
    assert daemon.status()["tier"] == "full"
    assert "again" not in str(daemon.status()["warnings"])
    with Load(pair) as load:
        pass
    assert load.lost() == 0
