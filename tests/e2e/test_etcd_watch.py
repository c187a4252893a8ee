# SPDX-License-Identifier: Apache-2.0
"""What a node hears from a real etcd is all that happened, in order and once, whatever befalls the two."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import uvloop

from bench.lab import wait_for
from dataplane.config import EtcdConfig
from dataplane.errors import StoreError
from dataplane.flannel import lease_value
from dataplane.model import Event, Heard, LeaseDeleted, LeasePut, Listed
from dataplane.store.etcd import EtcdKeyValue
from dataplane.store.registry import Registry
from tests.etcd import Etcd
from tests.gateway import Gateway
from tests.leases import lease

KEYS = 40
LATE_S = 30.0
RETRY_S = 0.02
TROUBLE = ("kill", "new", "restart", "compact", "kill and compact", "kill, restart and compact")


@dataclass
class Follower:
    """What a node makes of what it is told: a list replaces all, a change is the very next one."""

    found: dict[str, int] = field(default_factory=dict)  # name -> revision
    revision: int = 0
    changes: int = 0
    lists: int = 0

    def apply(self, event: Event | Heard) -> None:
        """Take one event."""
        if isinstance(event, Listed):
            assert event.revision >= self.revision
            self.found = {entry.name: entry.changed for entry in event.entries}
            self.revision = event.revision
            self.lists += 1
        elif isinstance(event, LeasePut):
            self._advance(event.revision)
            self.found[event.entry.name] = event.entry.changed
        elif isinstance(event, LeaseDeleted):
            self._advance(event.revision)
            assert self.found.pop(event.name, None) is not None, f"{event.name} was gone already"

    def _advance(self, revision: int) -> None:
        assert revision == self.revision + 1, f"after revision {self.revision} came {revision}"
        self.revision = revision
        self.changes += 1


class Node:
    """A follower that asks again when it is cut off, and can be killed: another takes up its work."""

    def __init__(self, etcd: Etcd) -> None:
        """Follow nothing yet."""
        self.follower = Follower()
        self.registry = Registry(EtcdKeyValue(EtcdConfig(endpoints=etcd.urls)))
        self._task: asyncio.Task[None] | None = None
        self._news = asyncio.Event()

    async def pause(self, timeout_s: float) -> None:
        """Wait until it is told something, but not for long."""
        self._news.clear()
        try:
            async with asyncio.timeout(timeout_s):
                await self._news.wait()
        except TimeoutError:
            pass

    async def _follow(self) -> None:
        while True:
            try:
                async for event in self.registry.events():
                    self.follower.apply(event)
                    self._news.set()
            except StoreError:
                await self.pause(RETRY_S)

    def start(self) -> None:
        """Follow."""
        self._task = asyncio.create_task(self._follow())

    async def kill(self) -> None:
        """End it wherever it is; what it knows stays, as that of a node whose connection is lost."""
        assert self._task is not None
        self._task.cancel()
        (result,) = await asyncio.gather(self._task, return_exceptions=True)
        assert isinstance(result, asyncio.CancelledError), result

    async def renew(self, etcd: Etcd) -> None:
        """Take another one in its place, which knows nothing but what the kernel was told: it lists."""
        await self.registry.close()
        self.registry = Registry(EtcdKeyValue(EtcdConfig(endpoints=etcd.urls)))

    async def reach(self, revision: int) -> None:
        """Wait until it has heard of a revision."""
        assert self._task is not None
        async with asyncio.timeout(LATE_S):
            while self.follower.revision < revision:
                assert not self._task.done(), self._task.exception()
                await self.pause(RETRY_S)


class World:
    """Everybody else: they write, and etcd restarts and forgets."""

    def __init__(self, etcd: Etcd, rng: random.Random) -> None:
        """Write nothing yet."""
        self.etcd = etcd
        self.gateway: Gateway = etcd.members[0].gateway()
        self.rng = rng
        self.found: dict[str, int] = {}

    def change(self) -> None:
        """Write or delete the lease of some node."""
        n = self.rng.randrange(KEYS)
        name = f"10.244.{n}.0-24"
        if name in self.found and self.rng.random() < 0.4:
            self.gateway.delete(f"subnets/{name}")
            del self.found[name]
        else:
            self.found[name] = self.gateway.put(f"subnets/{name}", lease_value(lease(n)))

    def restart(self) -> None:
        """End etcd at once and start it again on its data."""
        self.etcd.members[0].stop()
        self.etcd.members[0].start()
        wait_for(lambda: self.etcd.run("endpoint", "health").returncode == 0, "etcd is back", LATE_S)


async def trouble(world: World, node: Node, kind: str) -> None:
    """Let one thing go wrong, with changes in between."""
    if kind != "compact":  # which may come while it is behind
        await node.reach(world.gateway.revision())
    is_away = "kill" in kind or kind == "new"
    if is_away:
        await node.kill()
    if kind == "new":
        await node.renew(world.etcd)
    if "restart" in kind:
        world.restart()
    for _ in range(world.rng.randrange(5)):
        world.change()
    if "compact" in kind:
        world.gateway.compact()
    if is_away:
        node.start()


async def follow(etcd: Etcd, changes: int, between: int) -> Follower:
    """Follow changes with some trouble after every `between`; return what was made of them."""
    world = World(etcd, random.Random(changes))
    node = Node(etcd)
    kinds: list[str] = []
    node.start()
    try:
        for turn in range(changes):
            world.change()
            await node.pause(0)  # it hears some of this at once, and some later
            if turn % between == between - 1:
                kinds = kinds or world.rng.sample(TROUBLE, len(TROUBLE))
                await trouble(world, node, kinds.pop())
                if world.rng.random() < 0.5:
                    await node.reach(world.gateway.revision())
                    assert node.follower.found == world.found
        await node.reach(world.gateway.revision())
        await node.kill()
        assert node.follower.found == world.found
        return node.follower
    finally:
        world.gateway.close()
        await node.registry.close()


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[Etcd]:
    """Yield a server of its own: each revision is a change of ours."""
    with Etcd(tmp_path / "etcd") as built:
        yield built


@pytest.mark.parametrize(
    ("changes", "between"),
    [pytest.param(200, 20, id="200"), pytest.param(10_000, 100, id="10000", marks=pytest.mark.soak)],
)
def test_nothing_is_lost_or_told_twice(etcd: Etcd, changes: int, between: int) -> None:
    """Through kills, restarts and compactions each change is told in turn, or is listed; all agree."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        follower = runner.run(follow(etcd, changes, between))
    print(f"{follower.changes} changes and {follower.lists} lists")
    assert follower.changes >= changes // 2
    assert follower.lists > 1
