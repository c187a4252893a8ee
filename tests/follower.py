# SPDX-License-Identifier: Apache-2.0
"""A node that follows a store through trouble; what it is told is held against etcd's promises of a watch.

Ordered, Unique, Reliable: what follows revision N is of N+1, or another key of N. Atomic: of a transaction
all keys are told before the node rests. Resumable: who was cut off goes on where it was, without a list,
unless changes were forgotten meanwhile. Bookmarks: a list, and what is said of the store when a watch is
resumed, are never behind what was told, and the very next change follows a list.

In the stores of these tests every revision is a change of a lease, so a gap is a change that was lost.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from dataplane.errors import StoreError
from dataplane.flannel import lease_value
from dataplane.model import Event, Heard, LeaseDeleted, LeasePut, Listed
from dataplane.store.registry import Registry
from tests.leases import lease

KEYS = 40
LATE_S = 30.0
RETRY_S = 0.02


class World(Protocol):
    """Everybody else who uses the store: they write, and know what they wrote."""

    rng: random.Random
    at_once: int  # keys of a transaction at most
    found: dict[str, int]  # name of a lease -> its revision
    sizes: dict[int, int]  # revision -> how many keys it changed

    def revision(self) -> int:
        """Return the revision of the store."""
        ...

    def write(self, puts: Mapping[str, str], gone: list[str]) -> int:
        """Write and delete leases at once; return the revision."""
        ...


def change(world: World) -> None:
    """Write or delete the leases of some nodes in one transaction."""
    puts, gone = {}, []
    for n in world.rng.sample(range(KEYS), world.rng.randint(1, world.at_once)):
        name = f"10.244.{n}.0-24"
        if name in world.found and world.rng.random() < 0.4:
            gone.append(name)
        else:
            puts[name] = lease_value(lease(n))
    revision = world.write(puts, gone)
    world.sizes[revision] = len(puts) + len(gone)
    for name in gone:
        del world.found[name]
    world.found |= dict.fromkeys(puts, revision)


@dataclass
class Follower:
    """What a node makes of what it is told: a list replaces all, a change is the very next one."""

    found: dict[str, int] = field(default_factory=dict)  # name -> revision
    revision: int = 0
    told: set[str] = field(default_factory=set)  # the names that this revision changed
    changes: int = 0
    lists: int = 0
    covered: set[int] = field(default_factory=set)  # revisions that were not told: lists had them

    def apply(self, event: Event | Heard) -> None:
        """Take one event."""
        if isinstance(event, Listed):
            assert event.revision >= self.revision
            self.covered |= set(range(self.revision + 1, event.revision + 1))
            self.found = {entry.name: entry.changed for entry in event.entries}
            self.revision, self.told = event.revision, set()
            self.lists += 1
        elif isinstance(event, LeasePut):
            self._advance(event.revision, event.entry.name)
            self.found[event.entry.name] = event.entry.changed
        elif isinstance(event, LeaseDeleted):
            self._advance(event.revision, event.name)
            assert self.found.pop(event.name, None) is not None, f"{event.name} was gone already"
        elif isinstance(event, Heard):
            assert event.revision >= self.revision

    def _advance(self, revision: int, name: str) -> None:
        if revision == self.revision and self.told:
            assert name not in self.told, f"{name} is told twice of revision {revision}"
        else:
            assert revision == self.revision + 1, f"after revision {self.revision} came {revision}"
            self.told = set()
        self.revision = revision
        self.told.add(name)
        self.changes += 1


class Node:
    """A follower that asks again when it is cut off, and can be killed: another takes up its work."""

    def __init__(self, world: World, open_store: Callable[[], Registry]) -> None:
        """Follow nothing yet."""
        self.follower = Follower()
        self.failures = 0
        self._world = world
        self._open = open_store
        self._registry = open_store()
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
        self._check_whole()

    def _check_whole(self) -> None:
        """See that the node rests between two transactions, and not in one."""
        told, revision = self.follower.told, self.follower.revision
        assert not told or len(told) == self._world.sizes.get(revision, len(told)), f"a part of {revision}"

    async def _follow(self) -> None:
        while True:
            try:
                async for event in self._registry.events():
                    self.follower.apply(event)
                    self._news.set()
            except StoreError:
                self.failures += 1
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
        self._check_whole()

    async def renew(self) -> None:
        """Take another one in its place, which knows nothing but what the kernel was told: it lists."""
        await self._registry.close()
        self._registry = self._open()

    async def close(self) -> None:
        """Let go of the store."""
        if self._task is not None and not self._task.done():
            await self.kill()
        await self._registry.close()

    async def reach(self, revision: int) -> None:
        """Wait until it has heard of a revision."""
        assert self._task is not None
        async with asyncio.timeout(LATE_S):
            while self.follower.revision < revision:
                assert not self._task.done(), self._task.exception()
                await self.pause(RETRY_S)


Trouble = Callable[[Node, str], Awaitable[None]]


async def _disturb(world: World, node: Node, kind: str, kinds: Mapping[str, bool], do: Trouble) -> None:
    if kinds[kind]:  # it may come while the node is behind
        await do(node, kind)
        return
    await node.reach(world.revision())
    lists = node.follower.lists
    await do(node, kind)
    await node.reach(world.revision())
    assert node.follower.lists == lists, f"{kind}: it was listed anew"


def _check_all(world: World, follower: Follower) -> None:
    """See that all was told once, unless a list had it, and that it was not listed only once."""
    assert follower.found == world.found
    told = [size for revision, size in world.sizes.items() if revision not in follower.covered]
    assert follower.changes == sum(told)
    assert follower.lists > 1


async def follow(
    world: World, node: Node, plan: tuple[int, int], kinds: Mapping[str, bool], do: Trouble
) -> None:
    """Follow `plan[0]` transactions with some trouble after every `plan[1]`, each kind as often.

    `kinds` says of each whether it may cost a list; if not, the node must go on where it was.
    """
    left: list[str] = []
    node.start()
    try:
        for turn in range(1, plan[0] + 1):
            change(world)
            await node.pause(0)  # it hears some of this at once, and some later
            if turn % plan[1]:
                continue
            left = left or world.rng.sample(sorted(kinds), len(kinds))
            await _disturb(world, node, left.pop(), kinds, do)
            if world.rng.random() < 0.5:
                await node.reach(world.revision())
                assert node.follower.found == world.found
        await node.reach(world.revision())
        await node.kill()
        _check_all(world, node.follower)
    finally:
        await node.close()
