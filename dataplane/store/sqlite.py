# SPDX-License-Identifier: Apache-2.0
"""The embedded store: a sqlite file that all overlayd processes of one machine share.

database.py does the work, in one thread of its own, so that a busy file never holds up the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from dataplane import step
from dataplane.errors import StoreError
from dataplane.store.database import Database
from dataplane.store.keyvalue import Compacted, Conflict, Record, Snapshot
from dataplane.store.watch import PathWatch, explain

LOOK_S = 1.0  # how late a change is seen at worst, when nobody was left to tell of it

Result = TypeVar("Result")


class SqliteKeyValue:
    """keyvalue.KeyValue on a file of this machine."""

    def __init__(self, path: Path, *, may_create: bool = True) -> None:
        """Name the file; it is opened by the first call, and only then made if it is missing."""
        self._path = path
        self._may_create = may_create
        self._thread = ThreadPoolExecutor(1, "sqlite")
        self._db: Database | None = None
        self._identity: str | None = None  # of the store that was listed last
        self._file: tuple[int, int] | None = None
        self._must_list = False

    def _open(self) -> Database:
        if self._db is None:
            self._db = Database(self._path, may_create=self._may_create)
            # Another file may be an older copy: nothing that was read before holds any more.
            self._must_list |= self._file is not None and self._db.file != self._file
            self._file = self._db.file
            # From now on a missing file is one that somebody took away, and no new one is made for it.
            self._may_create = False
        return self._db

    def _use(self, work: Callable[[Database], Result]) -> Result:
        try:
            return work(self._open())
        except (Compacted, Conflict):
            raise
        except StoreError:
            self._drop()
            raise

    def _drop(self) -> None:
        """Close the file: the next call finds what stands there then."""
        if self._db is not None:
            self._db.close()
            self._db = None

    async def _do(self, work: Callable[[Database], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._use, work)

    # --- keyvalue.KeyValue --------------------------------------------------------------------------

    async def snapshot(self) -> Snapshot:
        """Return all keys."""
        found = await self._do(Database.snapshot)
        self._identity, self._must_list = found.identity, False
        return found

    async def revision(self) -> int:
        """Return the revision of the last change, if the store can be followed."""
        with self._listening(asyncio.Event()) as follow:
            follow()
            return await self._do(self._look_once)

    def _look_once(self, db: Database) -> int:
        if db.next_expiry_s() == 0:
            db.expire()
        return db.revision()

    async def watch(self, after: int) -> AsyncIterator[Record]:
        """Yield every change after a revision."""
        touched = asyncio.Event()
        with self._listening(touched) as follow:
            while True:
                follow()
                records, expiry_s = await self._do(partial(self._look, after=after))
                for record in records:
                    yield record
                    after = record.changed
                try:
                    # Not wait_for(): that of Python 3.11 may swallow a cancellation.
                    pause_s = step.pause_s(LOOK_S)
                    async with asyncio.timeout(pause_s if expiry_s is None else min(pause_s, expiry_s)):
                        await touched.wait()
                except TimeoutError:
                    pass
                touched.clear()

    @contextmanager
    def _listening(self, touched: asyncio.Event) -> Iterator[Callable[[], None]]:
        """Set `touched` whenever somebody has written; yield what must be called before each look."""
        loop = asyncio.get_running_loop()

        def heard() -> None:
            if watch.drain():
                touched.set()

        def follow() -> None:
            if watch.has_failed:
                raise StoreError(f"cannot watch {self._path}: reading what happened failed")
            try:
                watch.follow()
            except OSError as err:
                raise StoreError(f"cannot watch {self._path}: {explain(err)}") from None

        try:
            watch = PathWatch(self._path)
        except OSError as err:
            raise StoreError(f"cannot watch {self._path}: {explain(err)}") from None
        loop.add_reader(watch.fileno(), heard)
        try:
            yield follow
        finally:
            loop.remove_reader(watch.fileno())
            watch.close()

    def _look(self, db: Database, *, after: int) -> tuple[list[Record], float | None]:
        if self._must_list or db.identity() != self._identity:
            raise Compacted(f"store {self._path}: another one has taken its place")
        expiry_s = db.next_expiry_s()
        if expiry_s == 0:
            db.expire()
            expiry_s = db.next_expiry_s()
        return db.changes(after), expiry_s

    async def put(self, key: str, value: str, ttl_s: float | None, expected: int) -> Record:
        """Write a key."""
        return await self._do(lambda db: self._check(db).put(key, value, ttl_s, expected))

    async def delete(self, key: str, expected: int) -> int:
        """Delete a key."""
        return await self._do(lambda db: self._check(db).delete(key, expected))

    def _check(self, db: Database) -> Database:
        """Refuse to write to a store that was not listed: its revisions may mean something else."""
        if self._must_list or (self._identity is not None and db.identity() != self._identity):
            raise StoreError(f"store {self._path}: it was away, or another one has taken its place")
        return db

    async def reopen(self) -> None:
        """Check that the file can be read; another one in its place is noticed without being asked."""
        await self._do(Database.revision)

    async def close(self) -> None:
        """Close the file."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._drop)
        self._thread.shutdown()
