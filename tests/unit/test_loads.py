# SPDX-License-Identifier: Apache-2.0
"""Which peers are probed, and by what address."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from ipaddress import ip_address, ip_network
from itertools import accumulate
from typing import cast

import pytest

from dataplane import native, probes
from dataplane.backend import Backend
from dataplane.figures import Dataplane
from dataplane.model import Encap, SubnetEntry, Table
from dataplane.native import Counters
from dataplane.paths import PathWatch
from dataplane.probes import PathProbes
from dataplane.probing import BASE, Loads, Path, list_paths
from tests.unit.test_report import FakeBackend
from tests.unit.test_traffic import SETTINGS

NODE, NODE6, OTHER = map(ip_address, ("192.0.2.2", "2001:db8::2", "192.0.2.3"))
NET, NET6, FAR = map(ip_network, ("10.244.2.0/24", "fd00:244:0:2::/64", "10.244.3.0/24"))
OWN, OWN6 = ip_address("10.244.2.0"), ip_address("fd00:244:0:2::")
MUCH, LARGE = 2175.0, 1450
VXLAN = SubnetEntry(NET, 0, Encap.VXLAN, NODE, None)
ALL = frozenset(Encap)


def looks(*sent: int, own: int = 0, came: int = 0) -> list[list[tuple[int, bool]]]:
    """Return what each look finds of one peer that was sent so many bytes before it."""
    loads = Loads(MUCH)
    loads.note([0], [0], {})
    totals = enumerate(accumulate(sent), 1)
    return [loads.note([total], [came * number], {0: own}) for number, total in totals]


def test_much() -> None:
    """A peer is sent much if more than one and a half large packets went there lately, ours not counted."""
    assert looks(3 * LARGE) == [[(0, True)]]
    assert looks(3 * LARGE, came=1) == [[(0, False)]]
    assert looks(LARGE, LARGE - 100) == [[], []]
    assert looks(LARGE, LARGE + 1) == [[], [(0, True)]]
    assert looks(3 * LARGE, own=2 * LARGE) == [[]]
    assert looks(LARGE, 0, LARGE, own=3 * LARGE)[-1] == []  # more than that is no debt


def test_answers_to_a_peer_are_not_much() -> None:
    """Two nodes that only answer each other's probes, a large one every few seconds, let each other rest."""
    loads = Loads(MUCH)
    loads.note([0], [0], {})
    for number in range(1, 100):
        assert loads.note([number * LARGE], [number * LARGE], {}) == []
        loads.rest()
    assert loads.note([102 * LARGE], [102 * LARGE], {}) == [(0, False)]


def test_peers_come_and_go() -> None:
    """Of a new peer nothing is known yet; ids that are gone, or counters that begin anew, do no harm."""
    loads = Loads(MUCH)
    loads.note([0], [0], {})
    assert loads.note([10_000, 50_000], [0, 0], {}) == [(0, True)]
    assert loads.note([20_000, 60_000], [0, 0], {}) == [(0, True), (1, True)]
    assert loads.note([30_000], [0], {}) == [(0, True)]
    assert loads.note([100, 70_000], [0, 0], {}) == []
    assert loads.note([10_000, 80_000], [0, 9], {}) == [(0, True), (1, False)]


@pytest.mark.parametrize(
    ("entries", "paths"),
    [
        pytest.param([VXLAN], [Path(NODE, OWN, 1450, BASE[4], 50)], id="vxlan"),
        pytest.param(
            [VXLAN, replace(VXLAN, prefix=NET6, vtep=NODE6)],
            [Path(NODE, OWN, 1450, BASE[4], 50), Path(NODE6, OWN6, 1450, BASE[6], 70)],
            id="a path for each node address",
        ),
        pytest.param(
            [VXLAN, replace(VXLAN, prefix=NET6)],
            [Path(NODE, OWN, 1450, BASE[6], 50)],
            id="IPv6 pods need more, whatever is asked",
        ),
        pytest.param(
            [replace(VXLAN, encap=Encap.IPIP), replace(VXLAN, encap=Encap.IPIP, prefix=NET6)],
            [Path(NODE, OWN, 1450, BASE[4], 20)],
            id="IPIP has no IPv6",
        ),
        pytest.param(
            [replace(VXLAN, encap=Encap.FLANNEL_UDP)], [Path(NODE, OWN, 1450, BASE[4], 28)], id="udp"
        ),
        pytest.param([replace(VXLAN, is_direct=True)], [], id="a plain route"),
        pytest.param([replace(VXLAN, encap=Encap.NONE)], [], id="carried by somebody else"),
    ],
)
def test_paths(entries: list[SubnetEntry], paths: list[Path]) -> None:
    """A node is asked at its overlay address, by each way on which something is encapsulated."""
    found = list_paths(Table(subnets=tuple(entries)), ALL, 1450)
    assert found.get(0, []) == paths


def test_only_what_is_carried() -> None:
    """Peers of an encapsulation that is not taken here are not asked."""
    other = replace(VXLAN, prefix=FAR, peer_id=4, vtep=OTHER)
    table = Table(subnets=(replace(VXLAN, encap=Encap.IPIP), other))
    assert list(list_paths(table, {Encap.VXLAN}, 1450)) == [4]


def test_bytes_by_peer() -> None:
    """The counters tell of all peers at once; of ids for which there is no room they tell nothing."""
    fd = native.counters_create(threads=2, max_peers=4)
    try:
        with Counters(fd) as counters:
            assert counters.peer_bytes(0) == ([], [])
            assert counters.peer_bytes(6) == ([0] * 6, [0] * 6)
    finally:
        os.close(fd)


def test_device_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be sent has no answer, and the device is opened anew for the next one."""
    tries: list[str] = []

    def refuse(device: str, sources: object) -> None:
        tries.append(device)
        raise OSError(19, "No such device")

    monkeypatch.setattr(probes, "Echo", refuse)

    async def work() -> None:
        backend = cast("Backend", FakeBackend(Dataplane()))
        node = PathProbes(backend, PathWatch(backend, lambda: None))
        node.follow(SETTINGS, Table(), (OWN,))
        node._prober.note_traffic(Path(NODE, OWN, 1450), 0.0, is_silent=False)
        for now in (0.0, 1.0):
            for probe in node._prober.due(now):
                node._send(probe)
        assert node.answers([NODE], 1.0) == (None, None)

    asyncio.run(work())
    assert tries == ["overlay0"] * 6  # twice for each request
