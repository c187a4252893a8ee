# SPDX-License-Identifier: Apache-2.0
"""A store of keys in memory, which fails when it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from dataplane.errors import StoreError
from dataplane.store.keyvalue import Compacted, Conflict, Record, Snapshot


class Keys:
    """A store in memory, which fails and forgets as it is told."""

    def __init__(self) -> None:
        """Start with nothing."""
        self.last = 0  # revision
        self.kept_after = 0
        self.is_down = False
        self.lists = 0
        self.watches: list[int] = []
        self._records: dict[str, Record] = {}
        self._changes: list[Record] = []
        self._news = asyncio.Event()

    def write(self, key: str, value: str | None, ttl_s: float | None = None) -> Record:
        """Change a key, whatever stands there."""
        self.last += 1
        before = self._records.pop(key, None)
        created = self.last if before is None else before.created
        record = Record(key, value, created, self.last, ttl_s)
        if value is not None:
            self._records[key] = record
        self._changes.append(record)
        self._wake()
        return record

    def fail(self, *, is_down: bool) -> None:
        """Fail from now on, or not any more."""
        self.is_down = is_down
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    def _check(self) -> None:
        if self.is_down:
            raise StoreError("down")

    async def snapshot(self) -> Snapshot:
        """Return all keys."""
        self._check()
        self.lists += 1
        return Snapshot(self.last, tuple(self._records.values()))

    async def revision(self) -> int:
        """Return the revision of the last change."""
        self._check()
        return self.last

    async def watch(self, after: int) -> AsyncIterator[Record]:
        """Yield the changes."""
        self.watches.append(after)
        while True:
            self._check()
            if not self.kept_after <= after <= self.last:
                raise Compacted("not kept")
            news = self._news
            for record in [record for record in self._changes if record.changed > after]:
                yield record
                after = record.changed
            await news.wait()

    def _expect(self, key: str, expected: int) -> None:
        self._check()
        found = self._records.get(key)
        if (found.changed if found else 0) != expected:
            raise Conflict(key, (found,) if found else ())

    async def put(self, key: str, value: str, ttl_s: float | None, expected: int) -> Record:
        """Write a key."""
        self._expect(key, expected)
        return self.write(key, value, ttl_s)

    async def delete(self, key: str, expected: int) -> int:
        """Delete a key."""
        self._expect(key, expected)
        return self.write(key, None).changed

    async def reopen(self) -> None:
        """Fail if we are to."""
        self._check()

    async def close(self) -> None:
        """Fail from now on."""
        self.fail(is_down=True)
