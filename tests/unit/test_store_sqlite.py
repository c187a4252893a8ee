# SPDX-License-Identifier: Apache-2.0
"""The embedded store as processes share it: files that come and go, and what a watcher is told, and when."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import uvloop

from dataplane.errors import StoreError
from dataplane.store import database, sqlite
from dataplane.store.database import Database
from dataplane.store.keyvalue import Compacted, Conflict, Record
from dataplane.store.sqlite import SqliteKeyValue

ROOT = Path(__file__).parents[2]
HEAD = """
import os, sys, time
from pathlib import Path
from dataplane.store.database import Database
path = Path(sys.argv[1])
"""
NODE1 = "subnets/10.1.1.0-24"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where the store is to be."""
    return tmp_path / "store.db"


@contextmanager
def refused(*words: str) -> Iterator[None]:
    """Expect one line that holds these words."""
    with pytest.raises(StoreError) as caught:
        yield
    text = str(caught.value)
    assert type(caught.value) is StoreError
    assert "\n" not in text
    assert [word for word in words if word not in text] == [], text


def run_python(program: str, path: Path) -> str:
    """Run a program that may use a store in a process of its own; return what it prints."""
    command = [sys.executable, "-c", HEAD + program, str(path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (run.returncode, run.stderr) in ((0, ""), (-signal.SIGKILL, ""))
    return run.stdout


class Writer:
    """Another process that has the store open and writes the config whenever it is told to."""

    PROGRAM = """
db = Database(path)
for n, line in enumerate(sys.stdin):
    db.put("config", line.strip(), None, n)
    print(time.monotonic(), flush=True)
"""

    def __init__(self, path: Path, before: str = "") -> None:
        """Start it; `before` is what it does first."""
        command = [sys.executable, "-c", HEAD + before + self.PROGRAM, str(path)]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def tell(self, value: str) -> None:
        """Tell it to write a value."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{value}\n")
        self._process.stdin.flush()

    def committed(self) -> float:
        """Return when it had written that, by CLOCK_MONOTONIC."""
        assert self._process.stdout is not None
        return float(self._process.stdout.readline())

    def close(self) -> None:
        """End it."""
        self._process.communicate(timeout=10)
        assert self._process.returncode == 0


def on_store(path: Path, scenario: Callable[[SqliteKeyValue], Awaitable[None]], loop: object = None) -> None:
    """Run a scenario on a store, and close that."""

    async def main() -> None:
        keys = SqliteKeyValue(path)
        try:
            await scenario(keys)
        finally:
            await keys.close()

    factory = uvloop.new_event_loop if loop is uvloop else None
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())


async def soon(records: AsyncIterator[Record]) -> Record:
    """Return the next change, which must come."""
    return await asyncio.wait_for(anext(records), 3)


def count_open(name: str) -> int:
    """Return how many descriptors of ours lead to files of this name."""
    return sum(name in str(link.readlink()) for link in list_descriptors())


def list_descriptors() -> list[Path]:
    """Return the descriptors of this process that are still open when they are looked at."""
    return [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]


# --- watching ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", [pytest.param(asyncio, id="asyncio"), pytest.param(uvloop, id="uvloop")])
def test_other_processes_are_heard_at_once(path: Path, monkeypatch: pytest.MonkeyPatch, loop: object) -> None:
    """What another process writes is told within 0.1 s, and not because one looks now and then."""
    monkeypatch.setattr(sqlite, "LOOK_S", 100)

    async def scenario(keys: SqliteKeyValue) -> None:
        records = keys.watch((await keys.snapshot()).revision)
        with closing(Writer(path)) as writer:
            delays = []
            for n in range(20):
                writer.tell(str(n))
                record = await soon(records)
                heard = time.monotonic()
                assert (record.value, record.changed) == (str(n), n + 1)
                delays.append(heard - writer.committed())
        assert statistics.median(delays) <= 0.1
        assert max(delays) <= 0.5

    on_store(path, scenario, loop)


def test_writer_dies_before_it_tells(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written is also told when the writer wakes nobody."""
    monkeypatch.setattr(sqlite, "LOOK_S", 0.2)

    async def scenario(keys: SqliteKeyValue) -> None:
        records = keys.watch((await keys.snapshot()).revision)
        with closing(Writer(path, "os.utime = lambda path: None\n")) as writer:
            writer.tell("a")
            assert await soon(records) == Record("config", "a", 1, 1)
            assert time.monotonic() - writer.committed() <= 0.2 + 0.5

    on_store(path, scenario)


def test_expiry_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a key is told when it comes, although nobody writes, and to every watcher once."""
    monkeypatch.setattr(sqlite, "LOOK_S", 100)

    async def scenario(keys: SqliteKeyValue) -> None:
        other = SqliteKeyValue(path)
        start = time.monotonic()
        put = await keys.put(NODE1, "a", 0.2, 0)
        await other.snapshot()
        await keys.snapshot()
        watches = [keys.watch(put.changed), other.watch(put.changed)]
        found = await asyncio.gather(*map(soon, watches))
        assert found == [Record(NODE1, None, 1, 2)] * 2
        assert 0.2 <= time.monotonic() - start < sqlite.LOOK_S
        await other.put("config", "a", None, 0)
        assert [record.changed for record in await asyncio.gather(*map(soon, watches))] == [3, 3]
        await other.close()

    on_store(path, scenario)


def test_resumed_watch(path: Path) -> None:
    """A watch that goes on after any revision misses nothing and repeats nothing."""

    async def scenario(keys: SqliteKeyValue) -> None:
        everything = [await keys.put("config", str(n), None, n) for n in range(10)]
        await keys.snapshot()
        told: list[Record] = []
        for count in (1, 3, 6):
            records = keys.watch(told[-1].changed if told else 0)
            told += [await soon(records) for _ in range(count)]
            if count == 6:
                everything.append(await keys.put("config", "last", None, 10))
                told.append(await soon(records))
        assert told == everything

    on_store(path, scenario)


def test_cancelled_watch(path: Path) -> None:
    """A watch gives its descriptor back when it is cancelled, when it is closed, and when the store fails."""

    async def scenario(keys: SqliteKeyValue) -> None:
        await keys.put("config", "a", None, 0)
        await keys.snapshot()

        async def follow(records: AsyncIterator[Record]) -> None:
            async for _ in records:
                is_followed.set()

        is_followed = asyncio.Event()
        task = asyncio.create_task(follow(keys.watch(0)))
        await asyncio.wait_for(is_followed.wait(), 10)
        assert count_open("inotify") == before + 1
        task.cancel()
        await asyncio.wait({task})
        assert count_open("inotify") == before

        async with asyncio.timeout(10):
            records = keys.watch(0)
            await anext(records)
            assert count_open("inotify") == before + 1
            await records.aclose()  # type: ignore[attr-defined]  # a generator, in fact
            assert count_open("inotify") == before

        path.unlink()
        with refused("No such file"):
            await soon(keys.watch(1))
        assert count_open("inotify") == before

    before = count_open("inotify")
    on_store(path, scenario)


def test_cancelled_when_something_comes(path: Path) -> None:
    """A watch ends when it is cancelled, also when at that very moment it hears of a change."""

    async def scenario(keys: SqliteKeyValue) -> None:
        await keys.snapshot()
        with closing(Database(path)) as db:
            for n in range(40):
                records = keys.watch(n)
                task = asyncio.ensure_future(anext(records))
                await asyncio.wait({task}, timeout=0.005)
                db.put("config", "a", None, n)
                for _ in range(n % 4):
                    await asyncio.wait({task}, timeout=0)
                is_running = task.cancel()
                await asyncio.wait({task}, timeout=3)
                assert task.cancelled() == is_running
                assert is_running or task.result().changed == n + 1

    on_store(path, scenario)


def test_idle_watch_costs_nothing(path: Path) -> None:
    """A watch to which nothing happens takes less than a hundredth of a core."""

    async def scenario(keys: SqliteKeyValue) -> None:
        await keys.put("config", "a", None, 0)
        await keys.put(NODE1, "a", 3600, 0)
        await keys.snapshot()
        records = keys.watch(0)
        assert [(await soon(records)).changed for _ in range(2)] == [1, 2]
        await keys.put("config", "b", None, 1)
        assert (await soon(records)).changed == 3
        start = time.process_time()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(records), 2)
        assert time.process_time() - start < 0.02

    on_store(path, scenario)


def test_nothing_to_watch_with(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A watch that inotify has no room for is refused with the name of the limit to raise."""

    def fail(path: Path) -> None:
        raise OSError(24, "Too many open files")

    async def scenario(keys: SqliteKeyValue) -> None:
        await keys.snapshot()
        with refused(str(path), "fs.inotify.max_user_instances"):
            await soon(keys.watch(0))

    monkeypatch.setattr(sqlite, "PathWatch", fail)
    on_store(path, scenario)


# --- one connection, one thread ---------------------------------------------------------------------------


def test_opened_late_and_closed(path: Path) -> None:
    """The file is made by the first call and not before, and nothing of it stays open in the end."""

    async def scenario(keys: SqliteKeyValue) -> None:
        assert not path.exists()
        assert (await keys.snapshot()).records == ()
        assert count_open(str(path)) > 0

    threads = threading.active_count()
    on_store(path, scenario)
    assert count_open(str(path)) == 0
    assert threading.active_count() == threads


def test_locked_file_holds_nobody_up(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one waits for a lock the event loop goes on, and the store is of use again after that."""
    monkeypatch.setattr(database, "BUSY_S", 0.3)

    async def scenario(keys: SqliteKeyValue) -> None:
        await keys.snapshot()
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            task = asyncio.create_task(keys.put("config", "a", None, 0))
            gaps, last = [], time.monotonic()
            while not task.done():
                await asyncio.wait({task}, timeout=0.01)
                gaps.append(time.monotonic() - last)
                last = time.monotonic()
            with refused("locked by another process"):
                await task
        assert max(gaps) < 0.15
        assert len(gaps) >= 5
        assert await keys.put("config", "a", None, 0) == Record("config", "a", 1, 1)
        with pytest.raises(Conflict):
            await keys.delete("config", 9)
        assert await keys.delete("config", 1) == await keys.revision() == 2

    on_store(path, scenario)


def test_file_goes_and_comes_back(path: Path, tmp_path: Path) -> None:
    """A file that is taken away is not made anew; when it is back, one goes on from where one was."""

    async def scenario(keys: SqliteKeyValue) -> None:
        await keys.put("config", "a", None, 0)
        await keys.snapshot()
        records = keys.watch(1)
        (tmp_path / "away").mkdir()
        for name in [found.name for found in tmp_path.iterdir() if found.is_file()]:
            (tmp_path / name).rename(tmp_path / "away" / name)
        with refused(str(path), "No such file"):
            await soon(records)
        with refused(str(path), "must exist"):
            await keys.put("config", "b", None, 1)
        assert not path.exists()
        with closing(Database(tmp_path / "away" / path.name)) as away:
            away.put("config", "c", None, 1)
        (tmp_path / "away" / path.name).rename(path)
        assert await soon(keys.watch(1)) == Record("config", "c", 1, 2)

    on_store(path, scenario)


def test_other_file_in_its_place(path: Path, tmp_path: Path) -> None:
    """Who follows a file and finds another there must list anew, though its revisions would do."""

    async def scenario(keys: SqliteKeyValue) -> None:
        await keys.put("config", "a", None, 0)
        await keys.snapshot()
        records = keys.watch(1)
        with closing(Database(tmp_path / "new.db")) as new:
            for n in range(3):
                new.put("config", f"new {n}", None, n)
        for rest in path.parent.glob(f"{path.name}-*"):
            rest.unlink()  # sqlite would play the log of the old one into the new one
        (tmp_path / "new.db").rename(path)
        with refused("another file has taken its place"):
            await soon(records)
        for _ in range(2):
            with pytest.raises(Compacted):
                await soon(keys.watch(1))
        assert (await keys.snapshot()).revision == 3
        assert (await soon(keys.watch(2))).value == "new 2"

    on_store(path, scenario)


def test_copy_in_its_place(path: Path, tmp_path: Path) -> None:
    """A copy says it is the same store, and may be older: nothing is written before it is listed."""

    async def scenario(keys: SqliteKeyValue) -> None:
        await keys.put("config", "a", None, 0)
        await keys.snapshot()
        with closing(sqlite3.connect(path)) as db, closing(sqlite3.connect(tmp_path / "copy.db")) as copy:
            db.backup(copy)
        for rest in path.parent.glob(f"{path.name}-*"):
            rest.unlink()
        (tmp_path / "copy.db").rename(path)
        with refused("another file has taken its place"):
            await keys.put("config", "b", None, 1)
        with refused("it was away"):
            await keys.put("config", "b", None, 1)
        with pytest.raises(Compacted):
            await soon(keys.watch(1))
        assert (await keys.snapshot()).revision == 1
        assert (await keys.put("config", "b", None, 1)).changed == 2
        assert (await soon(keys.watch(1))).value == "b"

    on_store(path, scenario)


def test_nothing_is_followed_before_it_is_listed(path: Path) -> None:
    """A revision that this store never told of may be another one's."""

    async def scenario(keys: SqliteKeyValue) -> None:
        await keys.put("config", "a", None, 0)
        with pytest.raises(Compacted):
            await soon(keys.watch(0))
        await keys.snapshot()
        assert (await soon(keys.watch(0))).value == "a"

    on_store(path, scenario)


# --- files that come and go -------------------------------------------------------------------------------


@pytest.mark.parametrize("act", ["put", "delete", "expire", "snapshot", "changes"])
@pytest.mark.parametrize("kind", ["deleted", "replaced"])
def test_no_ghosts(path: Path, tmp_path: Path, kind: str, act: str) -> None:
    """Who has a file open that is gone, or is another one by now, learns that and writes to neither."""
    Database(tmp_path / "new.db").close()
    with closing(Database(path)) as db:
        db.put("config", "a", None, 0)
        if kind == "deleted":
            path.unlink()
        else:
            (tmp_path / "new.db").rename(path)
        acts: dict[str, Callable[[], object]] = {
            "put": lambda: db.put("config", "b", None, 1),
            "delete": lambda: db.delete("config", 1),
            "expire": db.expire,
            "snapshot": db.snapshot,
            "changes": lambda: db.changes(0),
        }
        with refused(str(path), "No such file" if kind == "deleted" else "another file has taken its place"):
            acts[act]()
    assert path.exists() == (kind == "replaced")


@pytest.mark.parametrize("is_killed", [False, True], ids=["still open", "killed"])
def test_new_file_for_an_old_one(path: Path, tmp_path: Path, *, is_killed: bool) -> None:
    """A store that is made where another one was moved away is new: nothing of the old one is in it."""
    program = "db = Database(path); print(db.put('config', 'a', None, 0), db.identity())"
    if is_killed:
        before = run_python(f"{program}; sys.stdout.flush(); os.kill(os.getpid(), 9)", path)
        path.rename(tmp_path / "away")
        with closing(Database(path)) as new:
            assert new.identity() not in before
            assert (new.revision(), new.snapshot().records) == (0, ())
        return
    with closing(Database(path)) as old:
        old.put("config", "a", None, 0)
        path.rename(tmp_path / "away")
        with closing(Database(path)) as new:
            assert new.identity() != old.identity()
            assert (new.revision(), new.snapshot().records) == (0, ())


def test_all_make_it_at_once(path: Path) -> None:
    """Of many that find no file and make one, all get the same, and no draft is left."""
    program = """
wait, go = os.pipe()
for n in range(20):
    if os.fork() == 0:
        os.close(go)
        os.read(wait, 1)
        db = Database(path)
        os.write(1, db.identity().encode() + b" ")
        db.put(f"subnets/10.1.{n}.0-24", "a", None, 0)
        db.close()
        os._exit(0)
os.close(go)
sys.exit(any([os.wait()[1] for n in range(20)]))
"""
    identities = run_python(program, path).split()
    assert len(identities) == 20
    assert len(set(identities)) == 1
    with closing(Database(path, may_create=False)) as db:
        assert db.identity() == identities[0]
        assert db.snapshot().revision == len(db.snapshot().records) == 20
    assert list(path.parent.iterdir()) == [path]
