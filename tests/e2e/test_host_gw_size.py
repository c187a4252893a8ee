# SPDX-License-Identifier: Apache-2.0
"""Ten thousand peers of host-gw.

a: overlayd, under0 198.18.0.1/15 ─ veth (nobody answers)
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.lab import Namespace, skip_dad, wait_for
from tests.e2e.rig import Daemon

PEERS = 10_000
READY_S = 5.0
CHANGE_S = 2.0
OWN = {"PublicIP": "198.18.0.1", "BackendType": "host-gw"}


class BareDaemon(Daemon):
    """An overlayd without a forwarder."""

    def _open_counters(self) -> Any:
        return None


def subnet(number: int) -> str:
    """Return the subnet of a node."""
    return f"10.{1 + number // 250}.{number % 250}.0/24"


def lease(number: int) -> dict[str, str]:
    """Return the lease of a node."""
    return {"PublicIP": f"198.19.{number // 250}.{1 + number % 250}", "BackendType": "host-gw"}


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[BareDaemon]:
    """Yield a node that is not started yet."""
    namespace = Namespace(f"size{os.getpid() % 100000}")
    try:
        skip_dad(namespace)
        namespace.ip("link set lo up\nlink add under0 type veth peer name far0\nlink set far0 up\n")
        namespace.ip("link set under0 up\naddr add 198.18.0.1/15 dev under0\n")
        namespace.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        leases = {subnet(PEERS): OWN, **{subnet(number): lease(number) for number in range(PEERS)}}
        network = {"Network": "10.0.0.0/8", "Backend": {"Type": "host-gw"}}
        built = BareDaemon(namespace, tmp_path / "node", {"network": network, "leases": leases}, [])
        try:
            yield built
        finally:
            built.close()
    finally:
        namespace.close()


def count_routes(daemon: Daemon) -> int:
    """Return how many plain routes there are."""
    return daemon.namespace.run("ip", "route", "show", "proto", "112").stdout.count("\n")


@pytest.mark.soak
def test_ten_thousand_peers(daemon: BareDaemon) -> None:
    """Within 5 s of exec there is a route to each of 10 000 peers; one that changes costs a message."""
    started_s = time.monotonic()
    daemon.start()
    took_s = time.monotonic() - started_s
    assert count_routes(daemon) == PEERS
    assert took_s <= READY_S
    text = daemon.peers_path.read_text(encoding="utf-8")
    began_s = time.monotonic()
    daemon.write_peers(text.replace('"198.19.4.5"', '"198.19.200.200"'))
    wait_for(lambda: "messages=1\n" in daemon.log(), lambda: daemon.log()[-1000:], 5 * CHANGE_S)
    assert time.monotonic() - began_s <= CHANGE_S
    shown = daemon.namespace.run("ip", "route", "show", subnet(4 * 250 + 4)).stdout
    assert shown == f"{subnet(1004)} via 198.19.200.200 dev under0 proto 112 \n"
    daemon.stop()
    began_s = time.monotonic()
    daemon.start()
    assert time.monotonic() - began_s <= READY_S
    assert daemon.log().count("routes to peers") == 2
    print(f"ready after {took_s:.2f} s, again after {time.monotonic() - began_s:.2f} s")
