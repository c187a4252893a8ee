# SPDX-License-Identifier: Apache-2.0
"""The sqlite file behind the embedded store: keys with revisions, shared by the processes of one machine.

    config                      flannel's network config
    subnets/10.244.1.0-24       a lease, as flannel writes it

Theory of operation. Every write is one transaction that takes the next revision, changes `entry`, and appends
to `change`, from which watchers read on. Only the last KEPT changes are kept: who comes later must list anew.
After each commit the file is touched, which wakes the watchers (PathWatch); one that misses it, because the
writer died in between, looks every second anyway.

The clock of the store is the wall clock at the first use after boot, carried on by CLOCK_BOOTTIME: setting
the clock expires nothing, and it never runs back. An expired key is gone for every reader at once; who
notices first also writes that down as a change.

Every method is one transaction, blocks for at most BUSY_S, and raises StoreError in words for the operator.
"""

from __future__ import annotations

import errno
import fcntl
import math
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataplane import flannel
from dataplane.errors import StoreError
from dataplane.journal import Journal
from dataplane.store.keyvalue import Compacted, Conflict, Record, Snapshot

log = Journal("store")

APPLICATION_ID = 0x6F766C64  # "ovld" at byte 68 of the file, for file(1) and for us
FORMAT = 1
BUSY_S = 5.0
KEPT = 10_000  # changes
DAMAGED = "damaged; stop the daemons, move it away, and set the network again"
SUBNETS = "subnets/"

_SCHEMA = f"""
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {FORMAT};
CREATE TABLE state (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    identity TEXT NOT NULL,     -- another file in place of this one has another
    revision INTEGER NOT NULL,
    boot TEXT NOT NULL,         -- the boot in which `wall` was read at `uptime`
    wall REAL NOT NULL,
    uptime REAL NOT NULL,
    latest REAL NOT NULL        -- the store's clock at the last write
) STRICT;
CREATE TABLE entry (
    key TEXT PRIMARY KEY,
    value TEXT NOT NULL,
    created INTEGER NOT NULL,   -- revisions
    changed INTEGER NOT NULL,
    expires REAL                -- by the store's clock; NULL: never
) STRICT, WITHOUT ROWID;
CREATE INDEX entry_expires ON entry (expires) WHERE expires IS NOT NULL;
CREATE TABLE change (
    revision INTEGER PRIMARY KEY,
    key TEXT NOT NULL,
    value TEXT,                 -- NULL: deleted
    created INTEGER NOT NULL,
    expires REAL
) STRICT;
"""


@dataclass(frozen=True, slots=True)
class Clock:
    """The clocks of this machine."""

    wall: Callable[[], float] = time.time
    uptime: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME)
    boot: Callable[[], str] = lambda: Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()


def _explain(path: Path, err: sqlite3.Error) -> StoreError:
    """Say what is wrong with the file and what to do; sqlite's own words where nothing better is known."""
    name = getattr(err, "sqlite_errorname", "")
    for start, text in (
        ("SQLITE_BUSY", f"locked by another process for more than {BUSY_S:.0f} s"),
        ("SQLITE_READONLY", "read-only; overlayd must be able to write to it and to its directory"),
        ("SQLITE_FULL", "not written: the disk is full"),
        ("SQLITE_IOERR_SHMSIZE", "not opened: the disk is full"),
        ("SQLITE_CANTOPEN", "cannot be opened; it and its directory must exist, for overlayd to write to"),
        ("SQLITE_NOTADB", "no sqlite database"),
        ("SQLITE_CORRUPT", DAMAGED),
        ("SQLITE_ERROR", f"{DAMAGED} ({err})"),
    ):
        if name.startswith(start):
            return StoreError(f"store {path}: {text}")
    return StoreError(f"store {path}: {err}")


class Database:
    """One connection to the file; for one thread at a time."""

    def __init__(self, path: Path, *, may_create: bool = True, clock: Clock | None = None) -> None:
        """Open the file, and make it first if it is not there and may be made."""
        self.path = path
        self._clock = clock or Clock()
        if may_create:
            self._create()
        with self._errors():
            self._db = sqlite3.connect(
                f"file://{_quote(path)}?mode=rw",
                uri=True,
                timeout=BUSY_S,
                isolation_level=None,
                check_same_thread=False,
            )
        try:
            self._db.text_factory = lambda octets: octets.decode("utf-8", "replace")
            with self._errors():
                self._check()
            self.file = self._find()
            self._now()
        except BaseException:
            self._db.close()
            raise

    def _create(self) -> None:
        """Make the file, if it is not there: complete under another name, then linked here in one step."""
        draft = self.path.with_name(f".{self.path.name}.{os.urandom(8).hex()}.new")
        try:
            if self.path.exists():
                return
            self._make_directory()
            os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except OSError as err:
            raise StoreError(f"cannot make the store {self.path}: {err.strerror}") from None
        try:
            with self._errors():
                db = sqlite3.connect(draft, isolation_level=None)
                try:
                    db.executescript(_SCHEMA)
                    wall = self._clock.wall()
                    row = (os.urandom(16).hex(), self._clock.boot(), wall, self._clock.uptime(), wall)
                    db.execute("INSERT INTO state VALUES (1, ?, 0, ?, ?, ?, ?)", row)
                    db.execute("PRAGMA journal_mode = WAL")
                finally:
                    db.close()
            self._put_in_place(draft)
        except FileExistsError:
            pass  # another process was quicker, with the same
        except OSError as err:
            raise StoreError(f"cannot make the store {self.path}: {err.strerror}") from None
        finally:
            draft.unlink(missing_ok=True)

    def _make_directory(self) -> None:
        try:
            self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        except FileExistsError:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None

    def _put_in_place(self, draft: Path) -> None:
        """Link the new file, without the log of one that was taken away: sqlite would play it into this."""
        directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)  # nobody else links, and then opens, in between
            if self.path.exists():
                return
            for suffix in ("-wal", "-shm", "-journal"):
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
            os.link(draft, self.path)
        finally:
            os.close(directory)

    def _check(self) -> None:
        """Refuse a file that is not ours, or not ours yet."""
        (application,) = self._db.execute("PRAGMA application_id").fetchone()
        (found,) = self._db.execute("PRAGMA user_version").fetchone()
        if application != APPLICATION_ID:
            raise StoreError(f"store {self.path}: a database, but no overlayd store")
        if found != FORMAT:
            raise StoreError(f"store {self.path}: of format {found}; this overlayd knows {FORMAT}")
        # A lost last commit after a power cut is a lease to take again; not worth a disk flush each.
        self._db.execute("PRAGMA synchronous = NORMAL")

    def close(self) -> None:
        """Close the connection. May be called again."""
        self._db.close()

    def _find(self) -> tuple[int, int]:
        """Return which file the path leads to."""
        try:
            found = self.path.stat()
            return found.st_dev, found.st_ino
        except OSError as err:
            raise StoreError(f"store {self.path}: {err.strerror}") from None

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as err:
            raise _explain(self.path, err) from None
        except OSError as err:  # of the files that the clock is read from
            raise StoreError(f"store {self.path}: {err.strerror}") from None

    @contextmanager
    def _transaction(self, kind: str) -> Iterator[sqlite3.Connection]:
        if self._find() != self.file:
            raise StoreError(f"store {self.path}: another file has taken its place")
        with self._errors():
            self._db.execute(f"BEGIN {kind}")
            try:
                yield self._db
            except BaseException:
                if self._db.in_transaction:  # a full disk has ended it already
                    self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    @contextmanager
    def _write(self) -> Iterator[float]:
        """Hold the write lock and yield the store's time; wake the watchers when it is done."""
        with self._transaction("IMMEDIATE"):
            now = self._now()
            self._drop_expired(now)
            yield now
            self._db.execute("UPDATE state SET latest = max(latest, ?)", (now,))
            self._db.execute("DELETE FROM change WHERE revision <= ?", (self._revision() - KEPT,))
        try:
            os.utime(self.path)
        except OSError as err:  # who watches looks by itself before long
            log.warning("cannot tell others of a change of the store", path=self.path, error=err.strerror)

    # --- the clock --------------------------------------------------------------------------------

    def _now(self) -> float:
        """Return the time of the store, in seconds; anchors it when the machine has booted."""
        query = "SELECT boot, wall, uptime, latest FROM state"
        with self._errors():
            boot = self._clock.boot()
            known, wall, uptime, latest = self._row(query)
            if known != boot:
                wall, uptime = max(self._clock.wall(), latest), self._clock.uptime()
                # Of several that come here at once, the first one's anchor stays.
                self._db.execute(
                    "UPDATE state SET boot = ?, wall = ?, uptime = ? WHERE boot = ?",
                    (boot, wall, uptime, known),
                )
                _, wall, uptime, _ = self._row(query)
        return float(wall) + self._clock.uptime() - float(uptime)

    def _row(self, query: str) -> tuple[Any, ...]:
        """Return the one row of `state`, which somebody may have deleted."""
        row: tuple[Any, ...] | None = self._db.execute(query).fetchone()
        if row is None:
            raise StoreError(f"store {self.path}: {DAMAGED}")
        return row

    def _drop_expired(self, now: float) -> None:
        query = "SELECT key, created FROM entry WHERE expires <= ? ORDER BY expires, key"
        for key, created in self._db.execute(query, (now,)).fetchall():
            self._remove(key, created)
        # A key that is no UTF-8 is not found by what it was read as.
        self._db.execute("DELETE FROM entry WHERE expires <= ?", (now,))

    def _next_revision(self) -> int:
        self._db.execute("UPDATE state SET revision = revision + 1")
        return self._revision()

    def _revision(self) -> int:
        (revision,) = self._row("SELECT revision FROM state")
        return int(revision)

    def _remove(self, key: str, created: int) -> int:
        revision = self._next_revision()
        self._db.execute("DELETE FROM entry WHERE key = ?", (key,))
        self._db.execute("INSERT INTO change VALUES (?, ?, NULL, ?, NULL)", (revision, key, created))
        return revision

    # --- reading ------------------------------------------------------------------------------------

    def identity(self) -> str:
        """Return what tells this store from another one in its place."""
        with self._errors():
            (identity,) = self._row("SELECT identity FROM state")
        return str(identity)

    def revision(self) -> int:
        """Return the revision of the last change."""
        with self._transaction("DEFERRED"):
            return self._revision()

    def snapshot(self) -> Snapshot:
        """Return all keys that have not expired."""
        with self._transaction("DEFERRED") as db:
            now, revision = self._now(), self._revision()
            rows = db.execute(
                "SELECT key, value, created, changed, expires FROM entry ORDER BY key"
            ).fetchall()
        records = (_record(row, now) for row in rows)
        live = tuple(record for record in records if not _is_over(record))
        return Snapshot(revision, live, self.identity())

    def changes(self, after: int) -> list[Record]:
        """Return the changes after a revision, in order; Compacted if they are not all there any more."""
        with self._transaction("DEFERRED") as db:
            now, revision = self._now(), self._revision()
            (kept,) = db.execute("SELECT coalesce(min(revision), ?) FROM change", (revision + 1,)).fetchone()
            if after < kept - 1 or after > revision:
                raise Compacted(f"store {self.path}: changes after revision {after} are not kept any more")
            rows = db.execute(
                "SELECT key, value, created, revision, expires FROM change"
                " WHERE revision > ? ORDER BY revision",
                (after,),
            ).fetchall()
        return [_record(row, now) for row in rows]

    def next_expiry_s(self) -> float | None:
        """Return in how many seconds the next key expires, 0 if one has; None if none will."""
        with self._errors():
            (expires,) = self._db.execute("SELECT min(expires) FROM entry").fetchone()
            if expires is None or math.isinf(expires):
                return None
            return max(0.0, float(expires) - self._now())

    # --- writing ------------------------------------------------------------------------------------

    def expire(self) -> None:
        """Write down as a change what has expired."""
        with self._write():
            pass

    def put(self, key: str, value: str, ttl_s: float | None, expected: int) -> Record:
        """Write a key (keyvalue.KeyValue.put)."""
        with self._write() as now:
            created = self._check_expected(key, expected, now)
            if expected == 0:
                self._check_free(key, now)
            revision = self._next_revision()
            created = created or revision
            expires = None if ttl_s is None else now + ttl_s
            row = (key, value, created, revision, expires)
            self._db.execute("INSERT OR REPLACE INTO entry VALUES (?, ?, ?, ?, ?)", row)
            self._db.execute(
                "INSERT INTO change VALUES (?, ?, ?, ?, ?)", (revision, key, value, created, expires)
            )
        return Record(key, value, created, revision, ttl_s)

    def delete(self, key: str, expected: int) -> int:
        """Delete a key (keyvalue.KeyValue.delete)."""
        with self._write() as now:
            return self._remove(key, self._check_expected(key, expected, now))

    def _check_expected(self, key: str, expected: int, now: float) -> int:
        """Return the revision that created a key, 0 if it is not there; Conflict if not as expected."""
        query = "SELECT key, value, created, changed, expires FROM entry WHERE key = ?"
        row = self._db.execute(query, (key,)).fetchone()
        found = () if row is None else (_record(row, now),)
        if (found[0].changed if found else 0) != expected:
            raise Conflict(key, found)
        return found[0].created if found else 0

    def _check_free(self, key: str, now: float) -> None:
        """Refuse a new lease that shares a subnet with another: keys of two families are joined by &."""
        subnets = set(key.removeprefix(SUBNETS).split("&")) if key.startswith(SUBNETS) else set()
        query = "SELECT key, value, created, changed, expires FROM entry WHERE key >= ? AND key < ?"
        rows = self._db.execute(query, (SUBNETS, SUBNETS[:-1] + chr(ord("/") + 1))).fetchall()
        names = ((row[0].removeprefix(SUBNETS), row) for row in rows)
        # Rubbish that only looks like a lease blocks nobody.
        found = [row for name, row in names if not subnets.isdisjoint(name.split("&")) and _is_key(name)]
        if found:
            raise Conflict(key, tuple(_record(row, now) for row in found))


def _is_key(name: str) -> bool:
    try:
        return flannel.format_key(flannel.parse_key(name)) == name
    except ValueError:
        return False


def _quote(path: Path) -> str:
    """Return a path as sqlite's file: URIs want it."""
    return "".join(f"%{ord(char):02x}" if char in "%?#" else char for char in os.fspath(path))


def _record(row: tuple[str, str | None, int, int, float | None], now: float) -> Record:
    key, value, created, changed, expires = row
    ttl_s = None if expires is None or math.isinf(expires) else expires - now
    return Record(key, value, created, changed, ttl_s)


def _is_over(record: Record) -> bool:
    return record.ttl_s is not None and record.ttl_s <= 0
