# SPDX-License-Identifier: Apache-2.0
"""The cases of flannel's own tests of its registry, each named after its original, on a real etcd."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import cast

import pytest
import uvloop

from dataplane.config import EtcdConfig
from dataplane.errors import StoreError
from dataplane.flannel import format_key, lease_value
from dataplane.model import Event, Heard, LeaseDeleted, LeasePut, Listed
from dataplane.store.etcd import EtcdKeyValue
from dataplane.store.registry import NO_NETWORK, Registry
from tests.etcd import Etcd
from tests.gateway import Gateway
from tests.leases import NET, lease

CONFIG = '{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}'
VALUE = (
    '{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan",'
    '"BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}}'
)
NOTICE_S, CANCEL_S, BACK_S = 10.0, 3.0, 20.0
Told = AsyncGenerator[Event | Heard, None]


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[Etcd]:
    """Yield a server of its own: it is to forget, and to go."""
    with Etcd(tmp_path / "etcd") as built:
        yield built


def run(etcd: Etcd, scenario: Callable[[Registry, Gateway], Awaitable[None]]) -> None:
    """Run a scenario with the store as a node has it, and with somebody else who writes."""

    async def main() -> None:
        registry = Registry(EtcdKeyValue(EtcdConfig(endpoints=etcd.urls)))
        gateway = etcd.members[0].gateway()
        try:
            await scenario(registry, gateway)
        finally:
            gateway.close()
            await registry.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def name(n: int) -> str:
    """Return the name of the lease of node n."""
    return format_key(lease(n).key)


def write(gateway: Gateway, n: int, at: int | None = None) -> None:
    """Write the lease of node n, or another's at its key."""
    gateway.put(f"subnets/{name(n)}", lease_value(lease(n if at is None else at)))


def follow(registry: Registry) -> Told:
    """Return what is told; whoever asked closes it."""
    return cast(Told, registry.events())


async def hear(events: Told) -> Event | Heard:
    """Return what is told next."""
    async with asyncio.timeout(NOTICE_S):
        return await anext(events)


async def begin(registry: Registry, gateway: Gateway, n: int) -> Told:
    """Return what follows the first list and the first change, which is node n's lease."""
    gateway.put("config", CONFIG)
    events = follow(registry)
    assert isinstance(await hear(events), Listed)
    await told_next(gateway, events, n)
    return events


def test_etcd_registry(etcd: Etcd) -> None:
    """EtcdRegistry: no config is said to be none; the very bytes of a lease; list, watch, delete."""

    async def scenario(registry: Registry, gateway: Gateway) -> None:
        events = follow(registry)
        listed = await hear(events)
        assert isinstance(listed, Listed)
        assert (listed.network, listed.entries, listed.problem) == (None, (), NO_NETWORK)
        await registry.put_config(CONFIG, 0)
        await hear(events)
        made = await registry.put(lease(1), 86400, 0)
        assert etcd.get(f"/coreos.com/network/subnets/{name(1)}") == VALUE
        told = await hear(events)
        assert isinstance(told, LeasePut)
        assert (told.entry.name, told.entry.lease, told.revision) == (name(1), made.lease, made.changed)
        listed = await registry.read()
        assert (listed.network, [entry.name for entry in listed.entries]) == (NET, [name(1)])
        gone = await registry.delete(name(1), made.changed)
        assert await hear(events) == LeaseDeleted(gone, name(1))
        assert (await registry.read()).entries == ()

    run(etcd, scenario)


async def begin_again(registry: Registry) -> tuple[Told, dict[str, str]]:
    """Go on after changes that are forgotten; return the events, and the addresses listed."""
    events = follow(registry)
    assert isinstance(await hear(events), Heard)
    listed = await hear(events)
    assert isinstance(listed, Listed)
    assert listed.network == NET
    return events, {entry.name: str(entry.lease and entry.lease.public_ip) for entry in listed.entries}


async def told_next(gateway: Gateway, events: Told, n: int) -> None:
    """See that the next change is told, and nothing before it."""
    write(gateway, n)
    told = await hear(events)
    assert isinstance(told, LeasePut)
    assert told.entry.name == name(n)
    assert told.revision == gateway.revision()


def test_watch_subnets_recovers_from_compaction(etcd: Etcd) -> None:
    """WatchSubnetsRecoversFromCompaction: one list that has what was missed, then each change again."""

    async def scenario(registry: Registry, gateway: Gateway) -> None:
        async with aclosing(await begin(registry, gateway, 1)):
            pass
        write(gateway, 1, 7)  # WatchSubnetRecoversFromCompaction: another value of the one that is watched
        write(gateway, 2)
        gateway.compact()
        events, found = await begin_again(registry)
        async with aclosing(events):
            assert found == {name(1): "192.0.2.7", name(2): "192.0.2.2"}
            await told_next(gateway, events, 3)

    run(etcd, scenario)


def test_reports_removal_after_compaction(etcd: Etcd) -> None:
    """ReportsRemovalAfterCompaction: a lease whose end is forgotten is not listed any more."""

    async def scenario(registry: Registry, gateway: Gateway) -> None:
        async with aclosing(await begin(registry, gateway, 1)) as events:
            await told_next(gateway, events, 2)
        gateway.delete(f"subnets/{name(1)}")
        gateway.compact()
        events, found = await begin_again(registry)
        async with aclosing(events):
            assert found == {name(2): "192.0.2.2"}
            await told_next(gateway, events, 3)

    run(etcd, scenario)


def test_resync_watch_cancel_with_blocked_receiver(etcd: Etcd) -> None:
    """ResyncWatchCancelWithBlockedReceiver: who reads nothing while much is told can still be stopped."""

    async def scenario(registry: Registry, gateway: Gateway) -> None:
        async with aclosing(await begin(registry, gateway, 1)):
            pass
        write(gateway, 2)
        gateway.compact()
        events, _ = await begin_again(registry)
        await told_next(gateway, events, 3)
        for n in range(4, 104):
            write(gateway, n)
        async with asyncio.timeout(CANCEL_S):
            await events.aclose()
        events = follow(registry)
        assert isinstance(await hear(events), Heard)
        waiting = asyncio.ensure_future(drain(events))
        done, _ = await asyncio.wait({waiting}, timeout=0.2)
        assert not done
        waiting.cancel()
        async with asyncio.timeout(CANCEL_S):
            await asyncio.wait({waiting})
        assert waiting.cancelled()

    run(etcd, scenario)


async def drain(events: Told) -> None:
    """Read for ever."""
    async with aclosing(events):
        async for _ in events:
            pass


def test_survives_compaction_after_reconnect(etcd: Etcd) -> None:
    """SurvivesCompactionAfterReconnect: a server restarts and forgets; nothing is lost."""

    async def scenario(registry: Registry, gateway: Gateway) -> None:
        async with aclosing(await begin(registry, gateway, 1)) as events:
            etcd.members[0].stop()
            with pytest.raises(StoreError, match="etcd http"):
                await hear(events)
        etcd.members[0].start()
        etcd.wait_healthy()
        write(gateway, 2)
        gateway.delete(f"subnets/{name(1)}")
        gateway.compact()
        events, found = await begin_again(registry)
        async with aclosing(events):
            assert found == {name(2): "192.0.2.2"}
            await told_next(gateway, events, 1)

    run(etcd, scenario)
