# SPDX-License-Identifier: Apache-2.0
"""The embedded store is followed by what the kernel tells of its file, or not at all; what is odd in it."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from dataplane.errors import StoreError
from dataplane.store import sqlite
from dataplane.store.database import Database
from dataplane.store.keyvalue import Record
from dataplane.store.registry import read_entry
from dataplane.store.sqlite import SqliteKeyValue
from dataplane.store.watch import PathWatch


def test_watch_that_failed_is_no_watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If what happened to the file cannot be read, the store is not followed, and that is said."""
    monkeypatch.setattr(sqlite, "LOOK_S", 0.01)
    monkeypatch.setattr(PathWatch, "follow", lambda watch: setattr(watch, "has_failed", True))

    async def scenario() -> None:
        store = SqliteKeyValue(tmp_path / "store.db")
        try:
            found = await store.snapshot()
            with pytest.raises(StoreError, match=r"cannot watch .*: reading what happened failed"):
                async with asyncio.timeout(20):
                    await anext(store.watch(found.revision))
        finally:
            await store.close()

    asyncio.run(scenario())


def test_end_that_never_comes(tmp_path: Path) -> None:
    """A lease whose end somebody wrote as infinity is one without an end, and nothing is waited for."""
    path = tmp_path / "store.db"
    with closing(Database(path)) as db:
        db.put("subnets/10.1.1.0-24", "a", 60, 0)
        with closing(sqlite3.connect(path)) as other, other:
            other.execute("UPDATE entry SET expires = 9e999")
        assert db.next_expiry_s() is None
        assert [record.ttl_s for record in db.snapshot().records] == [None]


def test_another_store_under_the_same_name(tmp_path: Path) -> None:
    """What was listed is not written to once it is another store; after a new list it is."""
    path = tmp_path / "store.db"

    async def scenario() -> None:
        store = SqliteKeyValue(path)
        try:
            await store.snapshot()
            with closing(sqlite3.connect(path)) as other, other:  # an older copy was put into the file, say
                other.execute("UPDATE state SET identity = 'another'")
            with pytest.raises(StoreError, match="another one has taken its place"):
                await store.put("subnets/10.1.1.0-24", "a", None, 0)
            assert (await store.snapshot()).records == ()
            assert (await store.put("subnets/10.1.1.0-24", "a", None, 0)).value == "a"
        finally:
            await store.close()

    asyncio.run(scenario())


def test_key_in_other_words() -> None:
    """A key that nobody but us would read is refused: two keys of one subnet would be two owners."""
    found = read_entry(Record("subnets/10.244.1.0-024", '{"PublicIP": "192.0.2.1"}', 1, 1), 0.0)
    assert (found.lease, found.problem) == (None, '"10.244.1.0-024" is no key; flannel writes 10.244.1.0-24')
    assert read_entry(Record("subnets/10.244.1.0-24", '{"PublicIP": "192.0.2.1"}', 1, 1), 0.0).problem is None
