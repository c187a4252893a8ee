# SPDX-License-Identifier: Apache-2.0
"""What a node hears from the sqlite store, held against the guarantees of tests/follower.py."""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import pytest
import uvloop

from dataplane.store import database
from dataplane.store.database import Database
from dataplane.store.registry import Registry
from dataplane.store.sqlite import SqliteKeyValue
from tests.follower import Follower, Node, change, follow

KEPT = 30
# May it cost a list?
KINDS = {"kill": False, "kill for long": False, "new": True, "forgotten": True, "new and forgotten": True}


class World:
    """Everybody else on this machine."""

    def __init__(self, path: Path, rng: random.Random) -> None:
        """Write nothing yet."""
        self.path = path
        self.database = Database(path)
        self.rng = rng
        self.at_once = 1  # as the store has it
        self.found: dict[str, int] = {}
        self.sizes: dict[int, int] = {}

    def revision(self) -> int:
        """Return the revision of the store."""
        return self.database.revision()

    def write(self, puts: Mapping[str, str], gone: list[str]) -> int:
        """Write or delete a lease; return the revision."""
        for name in gone:
            return self.database.delete(f"subnets/{name}", self.found[name])
        ((name, text),) = puts.items()
        return self.database.put(f"subnets/{name}", text, None, self.found.get(name, 0)).changed

    async def disturb(self, node: Node, kind: str) -> None:
        """Let one thing go wrong, with changes in between."""
        await node.kill()
        if "new" in kind:
            await node.renew()
        count = {"kill": 1, "kill for long": KEPT - 1, "new": 3}.get(kind, 2 * KEPT)
        for _ in range(count):
            change(self)
        node.start()


async def follow_sqlite(path: Path, plan: tuple[int, int]) -> Follower:
    """Follow changes with some trouble in between; return what was made of them."""
    world = World(path, random.Random(plan[0]))
    node = Node(world, lambda: Registry(SqliteKeyValue(path)))
    try:
        await follow(world, node, plan, KINDS, world.disturb)
        return node.follower
    finally:
        world.database.close()


@pytest.mark.parametrize(
    "plan",
    [pytest.param((500, 25), id="500"), pytest.param((10_000, 50), id="10000", marks=pytest.mark.soak)],
)
def test_case_109_nothing_is_lost_or_told_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: tuple[int, int]
) -> None:
    """Through kills, and where changes are forgotten, each is told in turn, or is listed; all agree."""
    monkeypatch.setattr(database, "KEPT", KEPT)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        follower = runner.run(follow_sqlite(tmp_path / "store.db", plan))
    print(f"{follower.changes} changes and {follower.lists} lists")
    assert follower.changes >= plan[0] // 2


def test_writer_that_cannot_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A writer that may not touch the file has written all the same, and logs what it could not do."""

    def refuse(_: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    with closing(Database(tmp_path / "store.db")) as store:
        with monkeypatch.context() as patch:
            patch.setattr("dataplane.store.database.os.utime", refuse)
            assert store.put("config", "a", None, 0).changed == 1
        assert store.put("config", "b", None, 1).changed == 2
    (record,) = caplog.records
    assert record.getMessage() == "cannot tell others of a change of the store"
    assert vars(record)["fields"] == {"path": tmp_path / "store.db", "error": "Operation not permitted"}
