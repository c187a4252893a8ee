# SPDX-License-Identifier: Apache-2.0
"""Our lease in a real sqlite store and a real etcd: flannel's own subnet manager tests, and some more."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from random import Random
from typing import Any

import pytest

from dataplane.config import EtcdConfig
from dataplane.lease import Lessee
from dataplane.leasing import Leasing
from dataplane.model import Event, Heard, HostFacts, Interface, LeaseDeleted, LeasePut, Listed, SubnetKey
from dataplane.store.etcd import EtcdKeyValue
from dataplane.store.keyvalue import KeyValue
from dataplane.store.registry import Registry
from dataplane.store.sqlite import SqliteKeyValue
from tests.etcd import Etcd
from tests.leases import CONFIG, lease

NETWORK = '{"Network":"10.3.0.0/16","SubnetMax":"10.3.25.0","Backend":{"Type":"vxlan"}}'
SOON_S, LOOK_S = 10.0, 0.05


@dataclass(frozen=True, slots=True)
class Place:
    """Where the nodes of a test keep what they know, and how each opens the store."""

    directory: Path
    keys: Callable[[], KeyValue]
    etcd: Etcd | None = None

    def open(self) -> Registry:
        """Return the store, as one more process would have it."""
        return Registry(self.keys())


def in_file(directory: Path) -> Place:
    """Return a place with a sqlite store."""
    return Place(directory, lambda: SqliteKeyValue(directory / "store.db"))


@dataclass
class Node:
    """A daemon as far as its lease goes, and all it has heard."""

    leasing: Leasing
    heard: list[Event]
    changed: asyncio.Event

    def subnet(self) -> str | None:
        """Return our subnet."""
        own = self.leasing.own()
        return None if own is None else str(own.key)

    async def until(self, is_so: Callable[[], object], what: str) -> None:
        """Wait for something that the store and the node will do."""
        end_s = asyncio.get_running_loop().time() + SOON_S
        while not is_so():
            assert asyncio.get_running_loop().time() < end_s, what
            self.changed.clear()
            try:
                async with asyncio.timeout(LOOK_S):
                    await self.changed.wait()
            except TimeoutError:
                pass


def key(subnet: str) -> SubnetKey:
    """Return a key of one subnet."""
    return SubnetKey(IPv4Network(subnet))


@asynccontextmanager
async def node(
    place: Place, ip: str, previous: str | None = None, ttl_s: float = 86400.0, is_new: bool = True
) -> AsyncIterator[Node]:
    """Run a node until the block ends; with `is_new`, wait until it has its lease."""
    store = place.open()
    config = replace(CONFIG, state_dir=place.directory / ip)
    facts = HostFacts((Interface("eth0", 2, 1500, (IPv4Address(ip),)),), ("eth0",))
    changed = asyncio.Event()
    found = Node(Leasing(config, store, _lessee(previous, ttl_s), changed.set), [], changed)

    async def follow() -> None:
        async for event in store.events():
            assert not isinstance(event, Heard)
            found.heard.append(event)
            found.leasing.apply_all([event])
            changed.set()

    found.leasing.host_changed(facts)
    tasks = [asyncio.create_task(part) for part in (follow(), found.leasing.run())]
    try:
        if is_new:
            await found.until(lambda: found.leasing.reason() is None, "it has a lease")
        yield found
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        await store.close()
        for result in results:
            assert isinstance(result, asyncio.CancelledError), result


def _lessee(previous: str | None, ttl_s: float) -> Lessee:
    return Lessee(Random(3).randrange, None if previous is None else key(previous), ttl_s, 3600.0)


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    """Yield a server, shared by the tests of this file."""
    with Etcd(tmp_path_factory.mktemp("etcd")) as built:
        yield built


@pytest.fixture(params=["sqlite", "etcd"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Return one with an empty store."""
    if request.param == "sqlite":
        return in_file(tmp_path)
    etcd: Etcd = request.getfixturevalue("etcd")
    etcd.clear()
    return Place(tmp_path, lambda: EtcdKeyValue(EtcdConfig(endpoints=etcd.urls)), etcd)


@pytest.fixture
def store(place: Place) -> Registry:
    """Return a store with a network, as the operator uses it."""

    async def begin() -> None:
        registry = place.open()
        await registry.put_config(NETWORK, 0)
        await registry.close()

    asyncio.run(begin())
    return place.open()


def run(scenario: Coroutine[Any, Any, None], store: Registry) -> None:
    """Run a scenario, and let go of the store."""

    async def whole() -> None:
        try:
            await scenario
        finally:
            await store.close()

    asyncio.run(whole())


def test_flannel_acquire_lease(store: Registry, place: Place) -> None:
    """AcquireLease: a subnet in the range; the same for the same address; the previous one if it is valid."""

    async def scenario() -> None:
        async with node(place, "1.2.3.4") as first:
            subnet = first.subnet()
            assert IPv4Address("10.3.1.0") <= IPv4Network(str(subnet))[0] <= IPv4Address("10.3.25.0")
        async with node(place, "1.2.3.4", previous="10.3.6.0/24") as again:
            assert again.subnet() == subnet
        async with node(place, "1.2.3.5", previous="10.3.6.0/24") as other:
            assert other.subnet() == "10.3.6.0/24"
        async with node(place, "1.2.3.6", previous="10.4.1.0/24") as third:
            assert third.subnet() not in (None, "10.4.1.0/24", "10.3.6.0/24", subnet)

    run(scenario(), store)


def test_flannel_config_changed(store: Registry, place: Place) -> None:
    """ConfigChanged: after a change of the network a node takes a subnet of it, at its next start."""

    async def scenario() -> None:
        async with node(place, "1.2.3.4") as first:
            before = first.subnet()
            await store.put_config(NETWORK.replace("10.3.", "10.4."), (await store.read_config())[1])
            await first.until(lambda: "does not fit" in str(first.leasing.reason()), "it says so")
            assert first.subnet() == before
        async with node(place, "1.2.3.4") as again:
            assert str(again.subnet()).startswith("10.4.")
        assert [entry.name for entry in (await store.read()).entries] == [
            str(again.subnet()).replace("/", "-")
        ]

    run(scenario(), store)


def test_flannel_watch_lease_added(store: Registry, place: Place) -> None:
    """WatchLeaseAdded: a list, then the lease that another node takes."""

    async def scenario() -> None:
        async with node(place, "1.2.3.4") as follower:
            assert isinstance(follower.heard[0], Listed)
            await store.put(replace(lease(2), key=key("10.3.30.0/24")), None, 0)
            await follower.until(lambda: _puts(follower, "10.3.30.0-24"), "it is told")

    run(scenario(), store)


def test_flannel_watch_lease_removed(store: Registry, place: Place) -> None:
    """WatchLeaseRemoved: a lease of a short life is told when it comes, and when it is over."""

    async def scenario() -> None:
        async with node(place, "1.2.3.4") as follower:
            await store.put(replace(lease(2), key=key("10.3.30.0/24")), 0.3, 0)
            await follower.until(lambda: _puts(follower, "10.3.30.0-24"), "it came")
            await follower.until(lambda: _deletions(follower, "10.3.30.0-24"), "it went")

    run(scenario(), store)


def test_flannel_complete_lease(store: Registry, place: Place) -> None:
    """CompleteLease: taken, renewed, deleted; each is told, and a deleted one is taken again."""

    async def scenario() -> None:
        async with node(place, "1.2.3.4", ttl_s=2.0) as owner:
            name = str(owner.subnet()).replace("/", "-")
            await owner.until(lambda: len(_puts(owner, name)) >= 3, "it is renewed twice")
            assert not _deletions(owner, name)
            (entry,) = (await store.read()).entries
            await store.delete(name, entry.changed)
            await owner.until(lambda: _deletions(owner, name), "it is told")
            puts = len(_puts(owner, name))
            await owner.until(lambda: len(_puts(owner, name)) > puts, "it is taken back")
            await owner.until(lambda: owner.leasing.reason() is None, "it is sure again")
            assert [entry.name for entry in (await store.read()).entries] == [name]

    run(scenario(), store)


def test_flannel_renew_lease(store: Registry, place: Place) -> None:
    """RenewLease: a day from now, with the value unchanged."""

    async def scenario() -> None:
        async with node(place, "1.2.3.4", ttl_s=100.0) as first:
            (before,) = (await store.read()).entries
            assert first.subnet() is not None
        async with node(place, "1.2.3.4") as again:
            (after,) = (await store.read()).entries
            description = again.leasing.describe()
        assert (after.name, after.lease, after.created) == (before.name, before.lease, before.created)
        assert description is not None
        assert 86390 < float(str(description["expires_in_s"])) <= 86400

    run(scenario(), store)


def _puts(follower: Node, name: str) -> list[LeasePut]:
    return [event for event in follower.heard if isinstance(event, LeasePut) and event.entry.name == name]


def _deletions(follower: Node, name: str) -> list[LeaseDeleted]:
    return [event for event in follower.heard if isinstance(event, LeaseDeleted) and event.name == name]


# --- what flannel never tried -------------------------------------------------------------------------------


def test_rubbish_in_place_of_our_lease(store: Registry, place: Place) -> None:
    """What stands at our key and is no lease is nobody's: it is replaced by ours."""

    async def scenario() -> None:
        async with node(place, "1.2.3.4") as owner:
            name = str(owner.subnet()).replace("/", "-")
            (entry,) = (await store.read()).entries
            await store._keys.put(f"subnets/{name}", "{}", None, entry.changed)
            await owner.until(lambda: len(_puts(owner, name)) >= 3, "it is written again")
            await owner.until(lambda: owner.leasing.reason() is None, "it is sure again")
            assert [found.problem for found in (await store.read()).entries] == [None]

    run(scenario(), store)


def test_reservation_outside_the_range(store: Registry, place: Place) -> None:
    """A reservation that is ours stays one, and ours, although SubnetMin and SubnetMax leave it out."""

    async def scenario() -> None:
        reserved = replace(lease(2), key=key("10.3.200.0/24"), public_ip=IPv4Address("1.2.3.4"))
        await store.put(reserved, None, 0)
        async with node(place, "1.2.3.4") as owner:
            assert owner.subnet() == "10.3.200.0/24"
            (entry,) = (await store.read()).entries
            assert entry.expires_s is None

    run(scenario(), store)


def test_nobody_moves_for_a_new_address(store: Registry, place: Place) -> None:
    """An address or a default route that comes is no reason to be known by another."""

    async def scenario() -> None:
        async with node(place, "192.0.2.1") as owner:
            eth0 = Interface("eth0", 2, 1500, (IPv4Address("192.0.2.99"), IPv4Address("192.0.2.1")))
            wg0 = Interface("wg0", 3, 1420, (IPv4Address("198.51.100.7"),))
            owner.leasing.host_changed(HostFacts((eth0, wg0), ("wg0",)))
            (before,) = (await store.read()).entries
            await store.put(lease(2), None, 0)
            await owner.until(lambda: _puts(owner, "10.244.2.0-24"), "a later change is told")
            after = {entry.name: entry.changed for entry in (await store.read()).entries}
            assert after[before.name] == before.changed
            moved = replace(eth0, addresses=(IPv4Address("192.0.2.99"),))
            owner.leasing.host_changed(HostFacts((moved, wg0), ("eth0",)))
            await owner.until(lambda: "192.0.2.99" in str(owner.leasing.own()), "it is known by what it has")

    run(scenario(), store)


def test_life_alone_in_a_strange_network(store: Registry, place: Place) -> None:
    """In a network that our subnet is no part of, our lease is renewed as it was, for the old one's peers."""

    async def scenario() -> None:
        async with node(place, "1.2.3.4", ttl_s=0.6) as owner:
            (before,) = (await store.read()).entries
            other = json.loads(NETWORK.replace("10.3.", "10.4."))
            other["Backend"]["VNI"] = 7
            await store.put_config(json.dumps(other), (await store.read_config())[1])
            await owner.until(lambda: len(_puts(owner, before.name)) >= 4, "it lives on")
            (after,) = (await store.read()).entries
            assert after.lease == before.lease

    run(scenario(), store)


def test_full_network(store: Registry, place: Place) -> None:
    """Who finds no free subnet says so, and takes the first that is given back."""

    async def scenario() -> None:
        for n in range(1, 26):
            await store.put(replace(lease(n), key=key(f"10.3.{n}.0/24")), None, 0)
        async with node(place, "1.2.3.4", is_new=False) as late:
            await late.until(lambda: "no subnet of 10.3.0.0/16 is free" in str(late.leasing.reason()), "full")
            listed = await store.read()
            (entry,) = (entry for entry in listed.entries if entry.name == "10.3.7.0-24")
            await store.delete(entry.name, entry.changed)
            await late.until(lambda: late.subnet() == "10.3.7.0/24", "it takes what became free")

    run(scenario(), store)


def test_lost_races(store: Registry, place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """Ten nodes that want the same subnets in the same order get one each; who loses tries the next."""
    caplog.set_level(logging.DEBUG)
    count = 10

    async def scenario() -> None:
        text = NETWORK.replace("10.3.25.0", f"10.3.{count}.0")
        await store.put_config(text, (await store.read_config())[1])
        async with AsyncExitStack() as stack:
            nodes = [
                await stack.enter_async_context(node(place, f"1.2.3.{n}", is_new=False))
                for n in range(1, count + 1)
            ]
            for one in nodes:
                await one.until(lambda one=one: one.leasing.reason() is None, "it has a lease")  # type: ignore[misc]
            subnets = {str(one.subnet()).replace("/", "-") for one in nodes}
            listed = await store.read()
        assert subnets == {f"10.3.{n}.0-24" for n in range(1, count + 1)}
        assert sorted(entry.name for entry in listed.entries) == sorted(subnets)
        assert {entry.created for entry in listed.entries} == {entry.changed for entry in listed.entries}

    run(scenario(), store)
    assert sum("another was quicker" in record.getMessage() for record in caplog.records) >= count // 2
    if place.etcd is not None:
        assert len(place.etcd.leases()) == count, "each loser revoked what it had granted"


def test_release_is_told_once(store: Registry, place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """That the lease was given back is said once, however often something happens afterwards."""

    async def scenario() -> None:
        async with node(place, "1.2.3.4") as leaving:
            told: list[str | None] = []

            def take() -> None:  # as the daemon does, which takes whatever there is then
                told.append(leaving.leasing.reason())
                leaving.leasing.apply_all([])

            leaving.leasing._on_change = take
            leaving.leasing.release()
            await leaving.until(lambda: leaving.leasing.is_released and told, "it is given back")
            await store.put(lease(9), None, 0)
            await leaving.until(lambda: isinstance(leaving.heard[-1], LeasePut), "something happens")
            assert told == ["the lease was given back"]
        assert [record.message for record in caplog.records].count("no sure lease") == 1

    run(scenario(), store)
