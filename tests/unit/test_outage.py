# SPDX-License-Identifier: Apache-2.0
"""A store that is away for an hour, by a clock that runs ahead: how often it is tried, and what is heard."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dataplane import daemon
from dataplane.convergence import Convergence
from dataplane.errors import StoreError
from dataplane.flannel import lease_value
from dataplane.model import LeasePut, Listed
from dataplane.store.file import FileStore
from dataplane.store.registry import Registry
from tests.keys import Keys
from tests.leases import lease

HOUR_S, BACK_S = 3600.0, 5.0
NETWORK = '{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}'


def test_case_116_away_for_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing reaches the table in an outage, it costs a few tries a minute, and ends soon.

    Within half of the time that it lasted, and five seconds at most.
    """
    keys = Keys()
    keys.write("config", NETWORK)
    inputs: asyncio.Queue[Any] = asyncio.Queue()
    report = SimpleNamespace(store_heard_s=None, store_error=None, convergence=Convergence())
    recall = SimpleNamespace(stands_in=lambda err: False)
    node: Any = SimpleNamespace(_inputs=inputs, report=report, _recall=recall)
    tries: list[float] = []
    clock, breath = 0.0, asyncio.sleep

    async def sleep(pause_s: float) -> None:
        nonlocal clock
        tries.append(clock)
        clock += pause_s
        if clock >= HOUR_S and keys.is_down:
            assert inputs.empty()
            keys.write("subnets/10.244.2.0-24", lease_value(lease(2)))
            keys.fail(is_down=False)
        await breath(0)

    async def scenario() -> None:
        monkeypatch.setattr(asyncio, "sleep", sleep)
        following = asyncio.create_task(daemon.Daemon._follow_store(node, Registry(keys, is_remote=True)))
        assert isinstance(await inputs.get(), Listed)
        keys.fail(is_down=True)
        assert isinstance(await inputs.get(), LeasePut)
        assert report.store_error is None
        following.cancel()

    asyncio.run(scenario())
    pauses = [after - before for before, after in itertools.pairwise(tries)]
    assert max(pauses) <= BACK_S + 1e-6
    assert all(pause_s <= at_s / 2 + 0.125 for at_s, pause_s in zip(tries, pauses, strict=False))
    assert clock - HOUR_S <= BACK_S
    assert len(tries) < HOUR_S / 3
    assert keys.lists == 1  # it was followed from where it was left


@pytest.mark.parametrize("has_state", [False, True], ids=["", "with a last state"])
def test_a_local_store_must_be_there_at_start(tmp_path: Path, *, has_state: bool) -> None:
    """A file that cannot be read ends a start, unless the state of the last run stands in for it."""
    recall = SimpleNamespace(stands_in=lambda err: has_state and isinstance(err, StoreError))
    report = SimpleNamespace(store_heard_s=None, store_error=None, convergence=Convergence())
    node: Any = SimpleNamespace(_inputs=asyncio.Queue(), report=report, _recall=recall)

    async def main() -> None:
        store = FileStore(tmp_path / "peers.json")
        try:
            async with asyncio.timeout(0.5):
                await daemon.Daemon._follow_store(node, store)
        finally:
            await store.close()

    with pytest.raises(TimeoutError if has_state else StoreError):
        asyncio.run(main())
    assert (report.store_error is not None) == has_state
