# SPDX-License-Identifier: Apache-2.0
"""Rows of WireGuard's netns.sh, with overlayd in the place of its interfaces (pair.py).

    a  overlay1 10.245.1.0   through   overlay0 10.244.1.0   through   under0 192.0.2.1, 192.0.2.101
    b  overlay1 10.245.2.0   through   overlay0 10.244.2.0   through   under0 192.0.2.2

The loop, and unreachable peers, are in test_unreachable.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from bench.lab import wait_for
from tests.e2e import frames
from tests.e2e.pair import NODES, Pair
from tests.e2e.rig import Daemon, risen
from tests.e2e.tap import Tap

FAR = f"{NODES['b'][1]}.0"
COUNT = 10
BYTES = 1372  # of a packet: as there, no round number
BACK_S = 15.0


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Yield two hosts; one has another address that the kernel could send from."""
    with Pair(tmp_path_factory.mktemp("pair")) as built:
        built.spaces["a"].ip("addr add 192.0.2.101/24 dev under0\n")
        yield built


def ping(pair: Pair, target: str, *more: str) -> bool:
    """Let a ping b; tell whether all was answered."""
    command = ("ping", "-n", "-q", "-i", "0.01", "-s", str(BYTES - 28), *more, target)
    return " 0% packet loss" in pair.spaces["a"].run(*command, check=False).stdout


def carried(pair: Pair) -> int:
    """Return how many bytes a has sent by the underlay."""
    (link,) = json.loads(pair.spaces["a"].run("ip", "-j", "-s", "link", "show", "under0").stdout)
    return int(link["stats64"]["tx"]["bytes"])


def test_byte_counters_are_exact(pair: Pair) -> None:
    """Of ten pings both nodes count ten packets and their bytes each way, not one more."""

    def counted() -> list[int]:
        rows = (row for daemon in pair.daemons.values() for row in daemon.status()["peers"])
        fields = ("tx_packets", "tx_bytes", "rx_packets", "rx_bytes")
        return [row[field] for row in rows for field in fields]

    before = counted()
    assert ping(pair, FAR, "-c", str(COUNT), "-W", "5")
    for daemon in pair.daemons.values():
        daemon.settled()
    rise = [after - was for was, after in zip(before, counted(), strict=True)]
    assert rise == 4 * [COUNT, COUNT * BYTES]


def test_address_is_removed(pair: Pair) -> None:
    """Without its address a node sends nothing, and never from another one; with it back, it goes on."""
    near, daemon = pair.spaces["a"], pair.daemons["a"]
    with closing(Tap(pair.spaces["b"], "under0")) as tap:
        before = daemon.settled()
        near.ip("addr del 192.0.2.1/24 dev under0\n")
        try:
            assert not ping(pair, FAR, "-c", "3", "-W", "0.2")
            after = daemon.settled(tx=before.tx.offered + 3)
            assert risen(before, after) == {"unreachable": after.tx.offered - before.tx.offered}
            assert not any(map(frames.is_tunnel, tap.take()))
        finally:
            near.ip("addr add 192.0.2.1/24 dev under0\n")
        wait_for(lambda: ping(pair, FAR, "-c", "1", "-W", "1"), "packets flow again", BACK_S)
        tunnel = [frame for frame in tap.take() if frames.is_tunnel(frame)]
        assert tunnel
        assert {frame[26:30] for frame in tunnel} == {bytes((192, 0, 2, 1))}


# --- a tunnel in a tunnel ---------------------------------------------------------------------------


def inner_peers() -> dict[str, Any]:
    """Return a network whose nodes are at addresses of the overlay of the other."""
    leases = {
        f"10.245.{number}.0/24": {
            "PublicIP": f"10.244.{number}.0",
            "BackendType": "vxlan",
            "BackendData": {"VNI": 2, "VtepMAC": f"02:4f:00:01:00:0{number}"},
        }
        for number in (1, 2)
    }
    backend = {"Type": "vxlan", "VNI": 2, "Port": 8473}
    return {"network": {"Network": "10.245.0.0/16", "Backend": backend}, "leases": leases}


@pytest.fixture
def nested(pair: Pair, tmp_path: Path) -> Iterator[dict[str, Daemon]]:
    """Yield a second daemon on each host, whose underlay is the overlay of the first."""
    daemons = {}
    try:
        for name, space in pair.spaces.items():
            flags = ("--public-ip", f"{NODES[name][1]}.0", "--iface", "overlay0", "--tun-name", "overlay1")
            daemons[name] = Daemon(space, tmp_path / name, inner_peers(), flags)
            daemons[name].launch()
        for daemon in daemons.values():
            wait_for(daemon._is_ready, daemon.log, 60.0)
        yield daemons
    finally:
        for daemon in daemons.values():
            daemon.close()


def test_tunnel_in_tunnel(pair: Pair, nested: dict[str, Daemon]) -> None:
    """An overlay is carried by another, in packets of what that leaves; a way round in circles ends."""
    assert "mtu 1400" in pair.spaces["a"].run("ip", "link", "show", "overlay1").stdout
    before = pair.daemons["a"].settled()
    assert ping(pair, "10.245.2.0", "-c", str(COUNT), "-W", "5", "-M", "do")
    after = pair.daemons["a"].settled(rx=before.rx.offered + COUNT)
    assert risen(before, after) == {}
    assert after.tx.bytes - before.tx.bytes == COUNT * (BYTES + 50)
    assert after.rx.bytes - before.rx.bytes == COUNT * (BYTES + 50)
    pair.spaces["a"].ip("route add 192.0.2.2/32 dev overlay1\n")
    try:
        sent = carried(pair)
        ping(pair, "10.245.2.0", "-c", str(COUNT), "-W", "0.2")
        pair.daemons["a"].settled()
        assert carried(pair) - sent < 70_000
    finally:
        pair.spaces["a"].ip("route del 192.0.2.2/32 dev overlay1\n")
    assert ping(pair, "10.245.2.0", "-c", "1", "-W", "5")
