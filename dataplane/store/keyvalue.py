# SPDX-License-Identifier: Apache-2.0
"""What overlayd needs of a key-value store: etcd's model, which the sqlite store follows.

Every change has a revision, the next number. A key knows the revision that created it and the one that
changed it last, and may expire, by the clock of the store. Who writes says what it expects to find, and
learns what is there instead if it was wrong. registry.py keeps flannel's keys in such a store.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from dataplane.errors import StoreError


@dataclass(frozen=True, slots=True)
class Record:
    """A key as it is at `changed`, or as it went away then."""

    key: str
    value: str | None  # None: deleted or expired
    created: int
    changed: int
    ttl_s: float | None = None  # what it had to live when it was read; None: it does not expire


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All keys at one revision."""

    revision: int
    records: tuple[Record, ...]
    identity: str = ""  # of the store: revisions of another one in its place mean nothing


class Conflict(StoreError):
    """What was expected is not what is there: nothing was written."""

    def __init__(self, key: str, found: tuple[Record, ...]) -> None:
        """Tell what stands in the way: the key itself, or those that it overlaps; none if the key is gone."""
        names = ", ".join(record.key for record in found)
        super().__init__(f"{key} was not written: {names or 'it'} has changed")
        self.found = found


class Compacted(StoreError):
    """The changes that were asked for are not kept any more: list anew."""


class KeyValue(Protocol):
    """A store of keys with revisions. Each call raises StoreError if the store cannot be used."""

    async def snapshot(self) -> Snapshot:
        """Return all keys there are."""
        ...

    async def revision(self) -> int:
        """Return the revision of the last change."""
        ...

    def watch(self, after: int) -> AsyncIterator[Record]:
        """Yield every change after a revision, in order, for ever; Compacted if that is not possible."""
        ...

    async def put(self, key: str, value: str, ttl_s: float | None, expected: int) -> Record:
        """Write a key that was changed last at revision `expected`; 0: that is not there.

        A new lease must not share a subnet with another. Conflict says what is there instead.
        """
        ...

    async def delete(self, key: str, expected: int) -> int:
        """Delete a key that was changed last at `expected`; return the revision. Conflict as put()."""
        ...

    async def reopen(self) -> None:
        """Read anew what was read once, such as TLS files; raises, with all as before, what is wrong."""
        ...

    async def close(self) -> None:
        """Let go of it."""
        ...
