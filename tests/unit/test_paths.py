# SPDX-License-Identifier: Apache-2.0
"""What the kernel is asked about paths, when, and what becomes of its answers; the kernel is a dictionary."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address
from types import SimpleNamespace
from typing import Any

import pytest

from dataplane import entries, paths, routemtu
from dataplane.backend import Settings
from dataplane.entries import AF_INET, RTA_METRICS, RTAX_MTU, RTMSG
from dataplane.figures import Dataplane
from dataplane.icmp import IcmpError, Trouble
from dataplane.model import Address, Encap, Interface, Peer, SubnetEntry, Table
from dataplane.pathmtu import ICMP, PROBE, ROUTE, PathMtu
from dataplane.paths import PathWatch
from dataplane.probes import PathProbes
from dataplane.probing import Path
from tests.leases import IP1, IP2, NET, lease, mac

SETTINGS = Settings(
    NET, frozenset({Encap.VXLAN}), "overlay0", 1450, Interface("eth0", 2, 1500), IP1, None, mac(1), mac(1)
)
(SUBNET,) = lease(2).key.subnets()
TABLE = Table((Peer(1, (IP2,)),), (SubnetEntry(SUBNET, 1, Encap.VXLAN, IP2, mac(2)),))
STRANGER = IPv4Address("192.0.2.77")
LONG_S = 5.0


class Kernel:
    """Says what it was told to, and remembers what it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Know nothing."""
        self.known: dict[Address, PathMtu] = {}
        self.asked: list[Address] = []
        self.on_ask: Callable[[], None] = lambda: None
        monkeypatch.setattr(routemtu, "ask", self._ask)
        monkeypatch.setattr(routemtu, "list_learned", lambda: iter(list(self.known)))

    def _ask(self, node: Address, iface: int, now: float) -> PathMtu | None:
        assert iface == SETTINGS.underlay.index
        self.asked.append(node)
        found = self.known.get(node)
        self.on_ask()
        return None if found is None else replace(found, expires_s=now + 100.0)


class Silent:
    """A backend that counts nothing."""

    def describe(self) -> Dataplane:
        """Return that there is nothing."""
        return Dataplane()


class Counting(Silent):
    """A backend that counts packets to a pod that were too big."""

    def __init__(self) -> None:
        """Count none."""
        self.refused = 0

    def describe(self) -> Dataplane:
        """Return what was counted."""
        last = {paths.TOO_BIG: SimpleNamespace(address=SUBNET.network_address)}
        way = SimpleNamespace(drops={paths.TOO_BIG: self.refused}, last=last)
        counters = SimpleNamespace(totals=lambda: SimpleNamespace(tx=way))
        return Dataplane(counters=counters)  # type: ignore[arg-type]


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """Return a kernel to ask."""
    monkeypatch.setattr(paths, "PAUSE_S", 0.001)
    return Kernel(monkeypatch)


def watch(on_change: Callable[[], None] = lambda: None) -> PathWatch:
    """Return who follows paths."""
    return PathWatch(Silent(), on_change)  # type: ignore[arg-type]


def error(peer: Address, trouble: Trouble = Trouble.TOO_BIG, mtu: int = 1300) -> IcmpError:
    """Return an ICMP error about a packet to a peer."""
    return IcmpError(trouble, STRANGER, IP1, peer, 17, mtu=mtu)


def follow(work: Callable[[PathWatch, asyncio.Queue[None]], Any]) -> None:
    """Let somebody follow paths while `work`, which gets who does and a queue of changes, is done."""

    async def run() -> None:
        changes: asyncio.Queue[None] = asyncio.Queue()
        follower = watch(lambda: changes.put_nowait(None))
        await follower.fit(SETTINGS, TABLE)
        task = asyncio.create_task(follower.run())
        try:
            async with asyncio.timeout(LONG_S):
                await work(follower, changes)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())


def test_what_an_earlier_control_left(kernel: Kernel) -> None:
    """The first table has what the kernel learned before, of peers and of nobody else."""
    kernel.known = {IP2: PathMtu(1300, ICMP), STRANGER: PathMtu(1200, ICMP)}
    settings, table = asyncio.run(watch().fit(SETTINGS, TABLE))
    assert [entry.mtu for entry in table.subnets] == [1250]
    assert settings == SETTINGS
    assert kernel.asked == [IP2]


def test_hint(kernel: Kernel) -> None:
    """An ICMP error has the kernel asked, whose answer counts, not what the error says."""

    async def work(follower: PathWatch, changes: asyncio.Queue[None]) -> None:
        kernel.known[IP2] = PathMtu(1350, ICMP)
        follower.hear(1, error(IP2, mtu=68))
        await changes.get()
        _, table = await follower.fit(SETTINGS, TABLE)
        assert [entry.mtu for entry in table.subnets] == [1300]

    follow(work)


def test_hint_that_is_early(kernel: Kernel) -> None:
    """A hint that comes before the kernel has learned anything is looked after once more, and no oftener."""

    async def work(follower: PathWatch, changes: asyncio.Queue[None]) -> None:
        kernel.on_ask = lambda: kernel.known.update({IP2: PathMtu(1350, ICMP)})
        follower.hear(1, error(IP2))
        await changes.get()
        assert kernel.asked == [IP2, IP2]

    follow(work)


def test_refused_packets_are_a_hint(kernel: Kernel) -> None:
    """Whose packet was too big since the last look, once a second, is asked for; nobody else is."""
    backend = Counting()
    follower = PathWatch(backend, lambda: None)  # type: ignore[arg-type]
    backend.refused = 1
    follower._find_refused(10.0)  # before there is a table
    asyncio.run(follower.fit(SETTINGS, TABLE))

    def hinted(now: float) -> set[Address]:
        follower._find_refused(now)
        return follower._take_due()[0]

    assert hinted(20.0) == {IP2}
    assert hinted(30.0) == set()
    backend.refused = 2
    assert hinted(30.0 + paths.LOOK_S / 2) == set()
    assert hinted(30.0 + paths.LOOK_S) == {IP2}
    assert kernel.asked == []


def test_what_is_no_hint(kernel: Kernel) -> None:
    """Nobody asks because of other errors, or of strangers; the next good hint counts."""

    async def work(follower: PathWatch, changes: asyncio.Queue[None]) -> None:
        for trouble in Trouble:
            if trouble is not Trouble.TOO_BIG:
                follower.hear(1, error(IP2, trouble))
        follower.hear(1, error(STRANGER))
        kernel.known[IP2] = PathMtu(1350, ICMP)
        follower.hear(1, error(IP2))
        await changes.get()
        assert kernel.asked == [IP2]

    follow(work)


def test_forged_hints_change_nothing(kernel: Kernel) -> None:
    """A flood of hints that the kernel does not confirm costs a question now and then."""

    async def work(follower: PathWatch, changes: asyncio.Queue[None]) -> None:
        for _ in range(20):
            asked = len(kernel.asked)
            for _ in range(1000):
                follower.hear(1, error(IP2, mtu=68))
            while len(kernel.asked) == asked:
                await asyncio.to_thread(lambda: None)
        kernel.known[IP2] = PathMtu(1350, ICMP)
        follower.hear(1, error(IP2))
        await changes.get()
        assert len(kernel.asked) < 100
        assert changes.empty()

    follow(work)


def test_word_of_the_kernel_ends_a_trial(kernel: Kernel) -> None:
    """What is probed is what the kernel says of the path by now, also if nothing was sent there since."""

    async def work() -> None:
        follower = watch()
        node = PathProbes(Silent(), follower)  # type: ignore[arg-type]
        follower.on_word(IP2)  # before anything is known of this node
        settings, table = await follower.fit(SETTINGS, TABLE)
        node.follow(settings, table, ())
        path = Path(IP2, SUBNET.network_address, settings.mtu, overhead=50)
        node._prober.note_traffic(path, 0.0, is_silent=False)
        assert [probe.size for probe in node._prober.due(0.0)] == [1450]
        for now, said, size in ((1.0, PathMtu(1300, ICMP), 1250), (2.0, None, 1450)):
            kernel.known = {} if said is None else {IP2: said}
            await follower._look([IP2])
            assert [probe.size for probe in node._prober.due(now)] == [size]

    asyncio.run(work())


def test_what_the_kernel_forgets(kernel: Kernel) -> None:
    """When routes change, all that is known of the kernel is asked for again; probes' words stay."""

    async def work(follower: PathWatch, changes: asyncio.Queue[None]) -> None:
        kernel.known[IP2] = PathMtu(1300, ROUTE)
        follower.hint(IP2)
        await changes.get()
        follower.learn(IP2, PathMtu(1350, PROBE))
        await changes.get()
        assert follower.known.of(IP2) == PathMtu(1300, ROUTE, follower.known.of(IP2).expires_s)  # type: ignore[union-attr]
        kernel.known.clear()
        follower.doubt()
        await changes.get()
        assert follower.known.of(IP2) == PathMtu(1350, PROBE)
        follower.forget(IP2, PROBE)
        assert follower.known.of(IP2) is None

    follow(work)


def test_many_paths_end_at_once(kernel: Kernel) -> None:
    """Where all paths are small, what expires is asked for in turns; what is said again holds on."""
    nodes = [IPv4Address(0xC6120000 + n) for n in range(5 * paths.TURN)]
    table = Table(tuple(Peer(n, (node,)) for n, node in enumerate(nodes)), ())

    async def work(follower: PathWatch, changes: asyncio.Queue[None]) -> None:
        await follower.fit(SETTINGS, table)
        for number, node in enumerate(nodes):
            follower.known.learn(node, PathMtu(1300, (ICMP, PROBE)[number % 2], 0.0))
        kernel.known = {nodes[0]: PathMtu(1300, ICMP)}
        follower.doubt()
        while list(follower.known) != [(nodes[0], follower.known.of(nodes[0]))]:
            await changes.get()
        assert len(kernel.asked) == len(nodes)

    follow(work)


def test_what_takes_as_much_as_the_interface(kernel: Kernel) -> None:
    """A route that says what the interface says anyway is nothing to know."""
    kernel.known = {IP2: PathMtu(1500, ROUTE)}
    _, table = asyncio.run(watch().fit(SETTINGS, TABLE))
    assert table is TABLE


def test_forged_tiny(kernel: Kernel) -> None:
    """While the kernel believes that a path takes less than pods must get, our sockets do not heed it."""
    kernel.known = {IP2: PathMtu(552, ICMP)}
    settings, table = asyncio.run(watch().fit(SETTINGS, TABLE))
    assert (settings.trusts_paths, table.subnets[0].mtu) == (False, 576)


def route(mtu: int | None, ticks: int | None) -> bytes:
    """Return a route of the kernel's, as it answers."""
    body = RTMSG.pack(AF_INET, 32, 0, 0, 254, 0, 0, 1, routemtu.RTM_F_CLONED)
    if mtu is not None:
        inner = entries.attribute(RTAX_MTU, mtu.to_bytes(4, "little"))
        body += entries.attribute(RTA_METRICS, inner)
    if ticks is not None:
        info = routemtu.CACHEINFO.pack(0, 0, ticks) + bytes(20)
        body += entries.attribute(routemtu.RTA_CACHEINFO, info)
    return body


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(route(1300, 59900), PathMtu(1300, ICMP, 604.0), id="learned"),
        pytest.param(route(1300, 0), PathMtu(1300, ROUTE), id="set up"),
        pytest.param(route(1300, None), PathMtu(1300, ROUTE), id="set up, and no more is said"),
        pytest.param(route(None, 0), None, id="nothing"),
        pytest.param(route(0, 0), None, id="none"),
        pytest.param(route(1300, 1)[:-30], PathMtu(1300, ROUTE), id="cut short"),
    ],
)
def test_read(body: bytes, expected: PathMtu | None) -> None:
    """What expires was learned, what does not was set up."""
    assert routemtu.read(body, 5.0) == expected
