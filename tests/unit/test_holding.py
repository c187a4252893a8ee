# SPDX-License-Identifier: Apache-2.0
"""When the store is listed again for the sake of peers that are held, and what is told of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from dataplane.config import RunConfig
from dataplane.errors import StoreError
from dataplane.holding import Holding
from dataplane.model import Entry, LeaseDeleted, LeasePut
from dataplane.withdrawal import Limits, Withdrawal
from tests.leases import entry, lease

ListAnew = Callable[[], Awaitable[None]]
PEERS = {found.name: found for found in (entry(lease(number)) for number in range(2, 9))}


class InForce:
    """Peers that are in force whatever happens."""

    def find(self, name: str) -> Entry | None:
        """Return one of them."""
        return PEERS.get(name)

    def in_force(self) -> dict[str, Entry]:
        """Return all of them."""
        return dict(PEERS)


def holding(hold_s: float) -> Holding:
    """Return what holds them so long; nobody has gone yet."""
    made = Holding(RunConfig(store="file:///x"))
    made._withdrawal = Withdrawal(Limits(hold_s=hold_s))
    return made


def withdraw(held: Holding) -> None:
    """Let them all go at once."""
    held.admit([LeaseDeleted(2, name) for name in PEERS], InForce())


def play(scenario: Callable[[asyncio.Event, ListAnew], Coroutine[Any, Any, None]]) -> None:
    """Run a scenario that may have the store listed; it is told when it is, and the first time fails."""

    async def main() -> None:
        listed = asyncio.Event()

        async def list_anew() -> None:
            listed.set()
            raise StoreError("etcd is out of reach")

        async with asyncio.timeout(20):
            await scenario(listed, list_anew)

    asyncio.run(main())


def test_listed_when_it_may_release() -> None:
    """The store is listed once the hold is over, and not before; that it fails ends nothing."""

    async def scenario(listed: asyncio.Event, list_anew: ListAnew) -> None:
        held = holding(0.05)
        task = asyncio.create_task(held.run(list_anew))
        await asyncio.to_thread(int)
        begun_s = asyncio.get_running_loop().time()
        withdraw(held)
        await listed.wait()
        assert asyncio.get_running_loop().time() - begun_s >= 0.05
        assert not task.done()
        task.cancel()

    play(scenario)


def test_released_before_it_was_seen() -> None:
    """Peers that come back at once neither have the store listed nor end anything; the next ones are seen."""

    async def scenario(listed: asyncio.Event, list_anew: ListAnew) -> None:
        held = holding(0.001)
        task = asyncio.create_task(held.run(list_anew))
        await asyncio.to_thread(int)  # it waits
        withdraw(held)
        held.admit([LeasePut(3, found) for found in PEERS.values()], InForce())
        await asyncio.to_thread(int)
        assert (task.done(), listed.is_set()) == (False, False)
        withdraw(held)
        await listed.wait()
        task.cancel()

    play(scenario)


def test_warned_of_while_they_are_held() -> None:
    """There is a warning with their number while some are held, and none before and after."""

    async def scenario(listed: asyncio.Event, list_anew: ListAnew) -> None:
        held = holding(30.0)
        assert held.warnings() == []
        withdraw(held)
        assert [warning[:7] for warning in held.warnings()] == ["7 peers"]
        held.admit([LeasePut(3, found) for found in PEERS.values()], InForce())
        assert held.warnings() == []

    play(scenario)
