# SPDX-License-Identifier: Apache-2.0
"""What a node hears from a real etcd is all that happened, in order and once, whatever befalls the two.

tests/follower.py says which of etcd's guarantees are asserted, and how.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
from collections.abc import Iterator, Mapping
from contextlib import suppress
from math import ceil
from pathlib import Path

import pytest
import uvloop

from bench.figures import figure
from bench.lab import wait_for
from dataplane.config import EtcdConfig
from dataplane.store.etcd import EtcdKeyValue
from dataplane.store.registry import Registry
from tests.etcd import Etcd, Member
from tests.follower import LATE_S, Follower, Node, change, follow
from tests.gateway import Gateway

# May it cost a list?
KINDS = {
    "cut": False,
    "kill": False,
    "restart": False,
    "kill and restart": False,
    "new": True,
    "compact": True,
    "kill and compact": True,
    "cut and compact": True,
    "kill, restart and compact": True,
}
QUICKLY = ("--command-timeout=500ms", "--dial-timeout=500ms")  # of etcdctl, which waits 5 s for each server
FAULTS = (False, True)  # of leaders: is it frozen, or killed?


class World:
    """Everybody else: they write, and etcd restarts and forgets."""

    def __init__(self, etcd: Etcd, rng: random.Random) -> None:
        """Write nothing yet."""
        self.etcd = etcd
        self.gateway: Gateway = etcd.members[0].gateway()
        self.rng = rng
        self.at_once = 3
        self.found: dict[str, int] = {}
        self.sizes: dict[int, int] = {}

    def revision(self) -> int:
        """Return the revision of the store."""
        return self.gateway.revision()

    def write(self, puts: Mapping[str, str], gone: list[str]) -> int:
        """Write and delete leases at once; return the revision."""
        leases = {f"subnets/{name}": text for name, text in puts.items()}
        return self.gateway.write(leases, [f"subnets/{name}" for name in gone])

    def restart(self) -> None:
        """End etcd at once and start it again on its data."""
        self.etcd.members[0].stop()
        self.etcd.members[0].start()
        wait_for(lambda: self.etcd.run("endpoint", "health").returncode == 0, "etcd is back", LATE_S)

    def cut(self) -> None:
        """Cut all connections of this process to etcd, but that of the gateway."""
        ports = {int(url.rpartition(":")[2]) for url in self.etcd.urls}
        for path in Path("/proc/self/fd").iterdir():
            fd = int(path.name)
            if fd == self.gateway.fileno() or not path.is_socket():
                continue
            with suppress(OSError), socket.socket(fileno=os.dup(fd)) as sock:
                if sock.family in (socket.AF_INET, socket.AF_INET6) and sock.getpeername()[1] in ports:
                    sock.shutdown(socket.SHUT_RDWR)

    def open_store(self) -> Registry:
        """Return what a node follows."""
        return Registry(EtcdKeyValue(EtcdConfig(endpoints=self.etcd.urls)))

    async def disturb(self, node: Node, kind: str) -> None:
        """Let one thing go wrong, with changes in between."""
        is_away = "kill" in kind or kind == "new"
        if is_away:
            await node.kill()
        if kind == "new":
            await node.renew()
        if "cut" in kind:
            failures = node.failures
            self.cut()
            async with asyncio.timeout(LATE_S):
                while node.failures == failures:
                    await node.pause(0.001)
        if "restart" in kind:
            self.restart()
        for _ in range(self.rng.randrange(5)):
            change(self)
        if "compact" in kind:
            self.gateway.compact()
        if is_away:
            node.start()


async def follow_etcd(etcd: Etcd, plan: tuple[int, int]) -> Follower:
    """Follow transactions with some trouble in between; return what was made of them."""
    world = World(etcd, random.Random(plan[0]))
    try:
        node = Node(world, world.open_store)
        await follow(world, node, plan, KINDS, world.disturb)
        return node.follower
    finally:
        world.gateway.close()


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[Etcd]:
    """Yield a server of its own: each revision is a change of ours."""
    with Etcd(tmp_path / "etcd") as built:
        yield built


@pytest.mark.parametrize(
    "plan",
    [pytest.param((1500, 80), id="1500"), pytest.param((10_000, 100), id="10000", marks=pytest.mark.soak)],
)
def test_case_109_nothing_is_lost_or_told_twice(etcd: Etcd, plan: tuple[int, int]) -> None:
    """Through cuts, kills, restarts and compactions each change is told in turn, or is listed; all agree."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        follower = runner.run(follow_etcd(etcd, plan))
    figure("violations", [0], "changes")  # or follow() would have failed
    figure("transactions followed", [plan[0]], "transactions")
    figure("changes told", [follower.changes], "changes")
    figure("lists", [follower.lists], "lists")
    rounds = ceil(plan[0] / plan[1] / len(KINDS))
    assert follower.changes >= plan[0] // 2
    assert follower.lists <= 1 + rounds * sum(KINDS.values())


# --- another leader -----------------------------------------------------------------------------------------


def find_leader(etcd: Etcd) -> Member | None:
    """Return who leads; None while nobody does."""
    for member in etcd.members:
        with suppress(AssertionError):
            lines = etcd.run(*QUICKLY, "endpoint", "status", urls=[member.url]).stdout.splitlines()
            if any(line.split(", ")[4] == "true" for line in lines):
                return member
    return None


def wait_leader(etcd: Etcd, but: Member | None = None) -> Member:
    """Wait until somebody leads, and somebody else than `but`; return who."""
    found: list[Member] = []

    def is_led() -> bool:
        leader = find_leader(etcd)
        if leader is not None and leader is not but:
            found.append(leader)
        return bool(found)

    wait_for(is_led, "etcd has a leader", LATE_S)
    return found[0]


@pytest.mark.parametrize("place", ["leader", pytest.param("member", marks=pytest.mark.soak)])
def test_case_117_leader_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """While leaders of three members die and freeze, nothing is listed anew: one event for each real change.

    The node is at the leader, or at another member. A list, or a change that is told twice, would make a peer
    go and come.
    """
    for name in ("etcd_client.CALL_S", "etcd.CALL_S", "etcd.FIRST_S", "etcd.QUIET_S"):
        monkeypatch.setattr(f"dataplane.store.{name}", 0.5)
    with Etcd(tmp_path / "etcd", 3) as etcd, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        follower = runner.run(follow_leaders(etcd, place))
    assert follower.lists == 1
    assert follower.changes > 5 * len(FAULTS)


async def follow_leaders(etcd: Etcd, place: str) -> Follower:
    """Follow changes while one leader after the other fails; return what was made of them."""
    world = World(etcd, random.Random(117))
    leader = wait_leader(etcd)
    others = [member for member in etcd.members if member is not leader]
    first = [leader, *others] if place == "leader" else [*others, leader]
    config = EtcdConfig(endpoints=tuple(member.url for member in first))
    node = Node(world, lambda: Registry(EtcdKeyValue(config)))
    node.start()
    try:
        for is_frozen in FAULTS:
            change(world)
            await node.reach(world.revision())
            leader = wait_leader(etcd)
            leader.signal(signal.SIGSTOP) if is_frozen else leader.stop()
            world.gateway.close()
            world.gateway = wait_leader(etcd, but=leader).gateway()
            for _ in range(5):
                change(world)
            await node.reach(world.revision())
            assert node.follower.found == world.found
            leader.signal(signal.SIGCONT) if is_frozen else leader.start()
            etcd.wait_healthy()
        await node.kill()
        return node.follower
    finally:
        world.gateway.close()
        await node.close()
