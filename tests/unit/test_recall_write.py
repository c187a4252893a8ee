# SPDX-License-Identifier: Apache-2.0
"""The state of this run: what is worth a write, what is none yet, and what is written again."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dataplane import laststate, recall
from dataplane.config import RunConfig
from dataplane.errors import StoreError
from dataplane.model import Entry, Listed, Table
from dataplane.recall import Recall, _InForce
from tests.leases import NET, entry, lease

OWN = entry(replace(lease(1), vni=1), created=1, changed=5, expires_s=math.inf)
LIST = Listed(7, NET, (OWN,), identity="c1")
TABLE = Table((), ())


def in_force(**changes: Any) -> Any:
    """Return what a reconciler has, changed."""
    found = {"network": NET, "own": OWN.lease, "in_force": dict}
    return SimpleNamespace(**{**found, **changes})


def leasing(own: Entry | None) -> Any:
    """Return who keeps this lease."""
    return SimpleNamespace(entry=lambda: own)


@pytest.fixture
def kept(tmp_path: Path) -> Recall:
    """Return the recall of a daemon that has heard of its store."""
    made = Recall(RunConfig(store="etcd", state_dir=tmp_path), lambda: None)
    made.hear([LIST])
    return made


def is_written(tmp_path: Path) -> bool:
    """Return whether there is a file."""
    return (tmp_path / laststate.NAME).exists()


def test_parts_that_changed() -> None:
    """Each part that is another one is news: network, lease, peers and subnets; and the first is, too."""
    # Tuples that are equal and not the same: what was not built anew is the same object.
    one, two = tuple(iter((1, 2))), tuple(iter((1, 2)))
    assert one is not two
    now = _InForce(NET, OWN, cast(Any, SimpleNamespace(peers=one, subnets=one)))
    assert now.is_same(replace(now, table=cast(Any, SimpleNamespace(peers=one, subnets=one))))
    others = (
        replace(now, network=replace(NET, vni=9)),
        replace(now, own=replace(OWN, changed=6)),
        replace(now, table=cast(Any, SimpleNamespace(peers=two, subnets=one))),
        replace(now, table=cast(Any, SimpleNamespace(peers=one, subnets=two))),
    )
    assert [now.is_same(other) for other in (None, *others)] == [False] * 5


@pytest.mark.parametrize(
    ("reconciler", "own", "table"),
    [
        pytest.param({"network": None}, OWN, TABLE, id="network"),
        pytest.param({"own": None}, OWN, TABLE, id="own"),
        pytest.param({}, OWN, None, id="table"),
        pytest.param({}, None, TABLE, id="no_entry"),
        pytest.param({}, Entry("x", None, "unreadable"), TABLE, id="unreadable"),
    ],
)
def test_a_part_is_missing(
    kept: Recall, tmp_path: Path, reconciler: dict[str, Any], own: Entry | None, table: Table | None
) -> None:
    """As long as one part is not known nothing is written, and then it is."""
    kept.keep(in_force(**reconciler), leasing(own), table)
    kept.finish()
    assert not is_written(tmp_path)
    kept.keep(in_force(), leasing(OWN), TABLE)
    kept.finish()
    assert is_written(tmp_path)


def test_an_end_without_a_beginning(kept: Recall, tmp_path: Path) -> None:
    """Who ends before anything was in force writes nothing; who wrote all already, nothing more."""
    kept.finish()
    assert not is_written(tmp_path)
    kept.keep(in_force(), leasing(OWN), TABLE)
    kept.finish()
    inode = (tmp_path / laststate.NAME).stat().st_ino
    kept.finish()
    assert (tmp_path / laststate.NAME).stat().st_ino == inode


async def _written(path: Path, is_there: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not is_there():
            await asyncio.to_thread(lambda: None)


def test_written_again_while_it_is_still_so(
    kept: Recall, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What did not change is written once in a while, but only as long as the store is followed."""
    monkeypatch.setattr(recall, "WRITE_S", 0.0)
    monkeypatch.setattr(recall, "REST", 0)
    monkeypatch.setattr(recall, "AGAIN_S", 0.001)
    path = tmp_path / laststate.NAME
    asked = 0
    is_followed = False

    def ask() -> bool:
        nonlocal asked
        asked += 1
        return is_followed

    async def scenario() -> None:
        nonlocal is_followed
        is_followed = True
        writer = asyncio.create_task(kept.run(ask))
        await _written(path, lambda: asked > 2)  # nothing is in force: nothing to write, and no end of it
        assert not path.exists()
        kept.keep(in_force(), leasing(OWN), TABLE)
        await _written(path, path.exists)
        first = path.stat().st_ino, path.stat().st_mtime_ns
        await _written(path, lambda: (path.stat().st_ino, path.stat().st_mtime_ns) != first)
        is_followed = False
        seen = asked
        await _written(path, lambda: asked > seen + 2)  # one that was on its way is there
        last = path.stat().st_ino, path.stat().st_mtime_ns
        await _written(path, lambda: asked > seen + 9)
        assert (path.stat().st_ino, path.stat().st_mtime_ns) == last
        assert not writer.done()
        writer.cancel()

    asyncio.run(scenario())


class Counting:
    """A lease that counts how often it is recalled, beside what has our address."""

    def __init__(self) -> None:
        self.recalled = 0
        self.network = NET

    def recall(self, _: Entry) -> None:
        """Take what was."""
        self.recalled += 1

    def own(self) -> Any:
        """Return it."""
        return OWN.lease

    def reason(self) -> None:
        """Nothing is wrong with it."""

    def has_address(self, _: object) -> bool:
        """Have any."""
        return True

    def apply(self, *_: object) -> list[Any]:
        """Do nothing."""
        return []

    own_changed = apply


def test_recalled_once(kept: Recall, tmp_path: Path) -> None:
    """What stands in for the store is put in force once, however often that is asked."""
    kept.keep(in_force(), leasing(OWN), TABLE)
    kept.finish()
    again = Recall(RunConfig(store="etcd", state_dir=tmp_path), lambda: None)
    fake: Any = Counting()

    async def begin() -> None:
        again.begin(is_cold=True)

    asyncio.run(begin())
    assert again.stands_in(StoreError("etcd is out of reach"))
    for _ in range(3):
        assert again.stand_in(fake, fake) == []
    assert fake.recalled == 1
