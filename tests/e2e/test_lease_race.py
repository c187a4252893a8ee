# SPDX-License-Identifier: Apache-2.0
"""Fifty nodes race for fifty subnets: 50 real `overlayd run`, each in a namespace of its own, on one store.

namespace 1: under0 198.18.0.1   overlayd run ─┐
namespace 2: under0 198.18.0.2   overlayd run ─┼─ store.db
…                                              │
namespace 50: under0 198.18.0.50 overlayd run ─┘      (joined to nothing)
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, closing
from ipaddress import IPv4Network
from itertools import combinations
from pathlib import Path

import pytest

from bench.lab import Namespace, wait_for
from dataplane import flannel
from dataplane.store.database import Database
from tests.e2e.warm import Warm, order

NODES = 50
ROUNDS = 20
SHORT = 1  # in every run of the suite; the others are soak
ROUND_S = 120.0  # at most; about 10 s is usual
NETWORK = (
    '{"Network":"10.244.0.0/16","SubnetMin":"10.244.1.0","SubnetMax":"10.244.50.0",'
    '"Backend":{"Type":"vxlan"}}'
)
FLAGS = ("--forwarder", "wait")  # fifty more processes add nothing to this race


@pytest.fixture(scope="module")
def hosts() -> Iterator[list[Namespace]]:
    """Yield a namespace for each node, with its address and no way out."""
    with ExitStack() as stack:
        found = []
        for number in range(1, NODES + 1):
            host = Namespace(f"race{os.getpid() % 100000}-{number}")
            stack.callback(host.close)
            found.append(host)
            host.ip(
                "link set lo up\nlink add under0 type veth peer name other\nlink set under0 up\n"
                f"addr add 198.18.0.{number}/24 dev under0\n"
            )
        yield found


@pytest.fixture(scope="module")
def warm() -> Iterator[Warm]:
    """Yield what starts the nodes."""
    with closing(Warm()) as found:
        yield found


class Node:
    """One `overlayd run` of the race."""

    def __init__(self, warm: Warm, host: Namespace, directory: Path, number: int) -> None:
        """Start it."""
        self.directory = directory / f"node{number}"
        self.directory.mkdir()
        paths = [f"--{name}-dir={self.directory / name}" for name in ("run", "state")]
        words = [
            *("run", "--store", f"sqlite://{directory / 'store.db'}", *paths),
            *("--subnet-file", str(self.directory / "subnet.env"), "--public-ip", f"198.18.0.{number}"),
            *FLAGS,
        ]
        log = self.directory / "log"
        self._process = warm.start(host.name, order(words, log, log))

    def log(self) -> str:
        """Return what it wrote."""
        return (self.directory / "log").read_text(encoding="utf-8")

    def has_leased(self) -> bool:
        """Tell whether it has a lease; it must not have ended."""
        assert not self.has_ended(), self.log()
        return " leased " in self.log()

    def has_ended(self) -> bool:
        """Tell whether the process is gone."""
        return self._process.poll() is not None

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()


def read_leases(database: Database) -> dict[str, IPv4Network]:
    """Return the subnet of each public address, as the store has it."""
    leases = {}
    for record in database.snapshot().records:
        found = re.search(r'"PublicIP":"([0-9.]+)"', record.value or "")
        if record.key != "config" and found:
            subnet = flannel.parse_key(record.key.removeprefix("subnets/")).subnet
            assert subnet is not None
            leases[found[1]] = subnet
    return leases


@pytest.mark.slow
@pytest.mark.timeout(ROUND_S + 30)
@pytest.mark.parametrize(
    "turn", [pytest.param(turn, marks=[pytest.mark.soak] if turn >= SHORT else []) for turn in range(ROUNDS)]
)
def test_case_121_fifty_nodes_race(warm: Warm, hosts: list[Namespace], tmp_path: Path, turn: int) -> None:
    """Each of 50 nodes that start at once gets one of exactly 50 subnets: none twice, none fails."""
    database = Database(tmp_path / "store.db")
    database.put("config", NETWORK, None, 0)
    nodes = []
    try:
        nodes = [Node(warm, host, tmp_path, number) for number, host in enumerate(hosts, 1)]
        wait_for(lambda: all(node.has_leased() for node in nodes), "all have leased", ROUND_S)
        leases = read_leases(database)
        assert not any(node.has_ended() for node in nodes)
    finally:
        for node in nodes:
            node.kill()
        database.close()
    assert len(leases) == NODES
    assert {int(subnet.network_address) >> 8 & 0xFF for subnet in leases.values()} == set(range(1, NODES + 1))
    assert not [pair for pair in combinations(leases.values(), 2) if pair[0].overlaps(pair[1])]
    for number, node in enumerate(nodes, 1):
        told = re.findall(r" leased lease=(\S+)", node.log())
        assert told == [str(leases[f"198.18.0.{number}"]).replace("/", "-")], f"turn {turn}: {node.log()}"
