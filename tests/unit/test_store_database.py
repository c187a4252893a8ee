# SPDX-License-Identifier: Apache-2.0
"""The file of the embedded store: revisions, conflicts, expiry, its clock, and what goes wrong with files."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from dataplane.errors import StoreError
from dataplane.store import database
from dataplane.store.database import Clock, Database
from dataplane.store.keyvalue import Compacted, Conflict, Record

NODE1, NODE2 = "subnets/10.1.1.0-24", "subnets/10.1.2.0-24"
DUAL1 = "subnets/10.1.1.0-24&fd00::-64"
ONLY6 = "subnets/fd00::-64"


class Hands:
    """The clocks of a machine, moved by hand."""

    def __init__(self) -> None:
        """Start somewhere; whole numbers, so that sums of them are exact."""
        self.wall, self.uptime, self.boot = 1_000_000.0, 500.0, "first boot"
        self.clock = Clock(lambda: self.wall, lambda: self.uptime, lambda: self.boot)

    def pass_s(self, seconds: float) -> None:
        """Let time go by."""
        self.wall += seconds
        self.uptime += seconds

    def reboot(self, wall: float) -> None:
        """Start again, with a wall clock that shows this."""
        self.wall, self.uptime, self.boot = wall, 5.0, f"{self.boot}, next"


@pytest.fixture
def hands() -> Hands:
    """Return clocks that stand still until they are moved."""
    return Hands()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where the store is to be."""
    return tmp_path / "store.db"


@pytest.fixture
def db(path: Path, hands: Hands) -> Iterator[Database]:
    """Return a new store."""
    with closing(Database(path, clock=hands.clock)) as db:
        yield db


@contextmanager
def refused(*words: str) -> Iterator[None]:
    """Expect one line that holds these words."""
    with pytest.raises(StoreError) as caught:
        yield
    text = str(caught.value)
    assert type(caught.value) is StoreError
    assert "\n" not in text
    assert [word for word in words if word not in text] == [], text


def all_of(db: Database) -> tuple[int, tuple[Record, ...]]:
    """Return the revision and all that is there."""
    found = db.snapshot()
    assert db.revision() == found.revision
    return found.revision, found.records


def names(db: Database) -> list[str]:
    """Return the keys that are there."""
    return [record.key for record in db.snapshot().records]


# --- revisions and conflicts ------------------------------------------------------------------------------


def test_revisions_grow_by_one(db: Database) -> None:
    """Every put and every delete takes the next revision; a list tells the last one."""
    assert all_of(db) == (0, ())
    first = db.put("config", "a", None, 0)
    assert first == Record("config", "a", 1, 1)
    second = db.put(NODE1, "b", None, 0)
    assert second == Record(NODE1, "b", 2, 2)
    assert all_of(db) == (2, (first, second))
    assert db.delete("config", 1) == 3
    assert all_of(db) == (3, (second,))


def test_renewal_keeps_created(db: Database, hands: Hands) -> None:
    """Renewing a key moves `changed` and its end, and leaves `created` as it was."""
    db.put(NODE1, "a", 60, 0)
    hands.pass_s(50)
    assert db.put(NODE1, "b", 60, 1) == Record(NODE1, "b", 1, 2, 60)
    hands.pass_s(50)
    assert all_of(db) == (2, (Record(NODE1, "b", 1, 2, 10),))
    assert db.put(NODE1, "c", None, 2) == Record(NODE1, "c", 1, 3)
    hands.pass_s(1e9)
    assert names(db) == [NODE1]


@pytest.mark.parametrize("expected", [pytest.param(n, id=f"expected {n}") for n in (0, 1, 3, 99)])
@pytest.mark.parametrize("kind", ["put", "delete"])
def test_wrong_expectation(db: Database, kind: str, expected: int) -> None:
    """Who expects another revision learns what is there, writes nothing, and can write after that."""
    db.put(NODE1, "a", None, 0)
    record = db.put(NODE1, "b", None, 1)
    with pytest.raises(Conflict) as caught:
        db.delete(NODE1, expected) if kind == "delete" else db.put(NODE1, "c", None, expected)
    assert caught.value.found == (record,)
    assert NODE1 in str(caught.value)
    assert all_of(db) == (2, (record,))
    assert [change.changed for change in db.changes(0)] == [1, 2]
    assert db.put(NODE1, "c", None, caught.value.found[0].changed).changed == 3


def test_expected_but_gone(db: Database) -> None:
    """Who renews or deletes what is not there learns that nothing is there."""
    db.put(NODE1, "a", None, 0)
    db.delete(NODE1, 1)
    with pytest.raises(Conflict) as caught:
        db.put(NODE1, "a", None, 1)
    assert caught.value.found == ()
    with pytest.raises(Conflict) as caught:
        db.delete(NODE1, 1)
    assert caught.value.found == ()
    assert all_of(db) == (2, ())
    assert db.put(NODE1, "a", None, 0) == Record(NODE1, "a", 3, 3)


@pytest.mark.parametrize(
    ("there", "new", "is_free"),
    [
        pytest.param([NODE1], DUAL1, False, id="dual takes the IPv4 subnet"),
        pytest.param([DUAL1], NODE1, False, id="IPv4 takes one of dual"),
        pytest.param([DUAL1], ONLY6, False, id="IPv6 takes one of dual"),
        pytest.param([NODE1, ONLY6], DUAL1, False, id="dual takes two"),
        pytest.param([NODE1], NODE2, True, id="neighbours"),
        pytest.param([NODE1], ONLY6, True, id="other family"),
        pytest.param([NODE1], "config", True, id="no subnet"),
        pytest.param(["config", "subnetsx", "subnets", f"{NODE1}&FD00::-64"], NODE1, True, id="rubbish"),
    ],
)
def test_shared_subnet(db: Database, there: list[str], new: str, is_free: bool) -> None:
    """A new lease that shares a subnet with others is refused, and told which; any other one is made."""
    records = tuple(db.put(key, "a", None, 0) for key in there)
    if is_free:
        assert db.put(new, "b", None, 0).changed == len(there) + 1
        return
    with pytest.raises(Conflict) as caught:
        db.put(new, "b", None, 0)
    assert sorted(caught.value.found, key=lambda record: record.changed) == list(records)
    assert db.snapshot().revision == len(there)
    for record in records:
        db.delete(record.key, record.changed)
    assert db.put(new, "b", None, 0).created == 2 * len(there) + 1


# --- expiry -----------------------------------------------------------------------------------------------


def test_expiry(db: Database, hands: Hands) -> None:
    """At its end a key is gone for every reader at once, and expire() makes that a change."""
    db.put(NODE1, "a", 60, 0)
    db.put(NODE2, "b", 90, 0)
    hands.pass_s(59)
    assert db.next_expiry_s() == 1
    assert names(db) == [NODE1, NODE2]
    hands.pass_s(1)
    assert db.next_expiry_s() == 0
    assert all_of(db) == (2, (Record(NODE2, "b", 2, 2, 30),))
    assert len(db.changes(0)) == 2
    db.expire()
    assert db.changes(2) == [Record(NODE1, None, 1, 3)]
    assert db.next_expiry_s() == 30
    hands.pass_s(30)
    db.expire()
    db.expire()
    assert db.changes(3) == [Record(NODE2, None, 2, 4)]
    assert db.next_expiry_s() is None


@pytest.mark.parametrize("new", [pytest.param(NODE1, id="same key"), pytest.param(DUAL1, id="same subnet")])
def test_put_over_expired(db: Database, hands: Hands, new: str) -> None:
    """What has expired is in nobody's way: its end is one change, and the new key is another."""
    db.put(NODE1, "a", 60, 0)
    hands.pass_s(60)
    with pytest.raises(Conflict) as caught:
        db.put(NODE1, "b", 60, 1)
    assert caught.value.found == ()
    assert db.put(new, "b", 60, 0) == Record(new, "b", 3, 3, 60)
    assert db.changes(1) == [Record(NODE1, None, 1, 2), Record(new, "b", 3, 3, 60)]


# --- the clock --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step_s", [pytest.param(1e9, id="forward"), pytest.param(-1e6, id="back")])
def test_case_124_wall_clock_steps(db: Database, path: Path, hands: Hands, step_s: float) -> None:
    """Setting the wall clock expires nothing and prolongs nothing, for those who open the file later too."""
    db.put(NODE1, "a", 60, 0)
    hands.wall += step_s
    hands.pass_s(20)
    with closing(Database(path, clock=hands.clock)) as later:
        for reader in (db, later):
            assert reader.snapshot().records == (Record(NODE1, "a", 1, 1, 40),)
    hands.pass_s(40)
    assert db.snapshot().records == ()


@pytest.mark.parametrize(
    ("off_s", "left_s"),
    [
        pytest.param(0, 60, id="at once"),
        pytest.param(30, 30, id="half"),
        pytest.param(60, None, id="to the second"),
        pytest.param(9999, None, id="long"),
    ],
)
def test_reboot(db: Database, path: Path, hands: Hands, off_s: float, left_s: float | None) -> None:
    """Over a reboot leases go on to expire by the wall clock."""
    db.put(NODE1, "a", 60, 0)
    db.close()
    hands.reboot(hands.wall + off_s)
    with closing(Database(path, clock=hands.clock)) as later:
        (*found,) = later.snapshot().records
        assert [record.ttl_s for record in found] == ([] if left_s is None else [left_s])


def test_reboot_without_a_clock(db: Database, path: Path, hands: Hands) -> None:
    """A machine that comes up in 1970 goes on from the last write, however often it boots."""
    db.put(NODE1, "a", 60, 0)
    hands.pass_s(20)
    db.put(NODE2, "b", None, 0)
    db.close()
    for left_s in (40, 30, 20):
        hands.reboot(0)
        with closing(Database(path, clock=hands.clock)) as later:
            assert later.snapshot().records[0].ttl_s == left_s
            hands.pass_s(10)
            later.expire()
    hands.pass_s(10)
    with closing(Database(path, clock=hands.clock)) as later:
        assert names(later) == [NODE2]


def test_first_after_boot_sets_the_clock(db: Database, path: Path, hands: Hands) -> None:
    """The wall clock counts as the first one to come after boot reads it; those after it go on from that."""
    db.put(NODE1, "a", 60, 0)
    db.close()
    hands.reboot(hands.wall + 10)
    with closing(Database(path, clock=hands.clock)) as first:
        hands.wall += 1e9  # now NTP sets it
        hands.pass_s(5)
        with closing(Database(path, clock=hands.clock)) as second:
            assert second.snapshot() == first.snapshot()
            assert second.snapshot().records[0].ttl_s == 45


def test_first_of_two_after_boot(db: Database, path: Path, hands: Hands) -> None:
    """Of two that find the machine rebooted, the one that is late goes by the other's wall clock."""
    db.put(NODE1, "a", 60, 0)
    db.close()
    hands.reboot(hands.wall + 10)

    def overtaken() -> float:
        with closing(Database(path, clock=hands.clock)):
            pass
        return hands.wall + 20

    with closing(Database(path, clock=Clock(overtaken, hands.clock.uptime, hands.clock.boot))) as late:
        assert late.snapshot().records[0].ttl_s == 50


# --- changes ----------------------------------------------------------------------------------------------


def test_changes_are_complete(db: Database, path: Path, hands: Hands) -> None:
    """From any revision on, all changes come in order, those of other connections and expiry among them."""
    with closing(Database(path, clock=hands.clock)) as other:
        everything = [db.put(NODE1, "a", 60, 0), other.put(NODE2, "b", None, 0), db.put(NODE2, "c", None, 2)]
        everything.append(Record(NODE2, None, 2, other.delete(NODE2, 3)))
        for after in range(5):
            assert db.changes(after) == other.changes(after) == everything[after:]
        hands.pass_s(60)
        other.expire()
        assert db.changes(3) == [Record(NODE2, None, 2, 4), Record(NODE1, None, 1, 5)]


def test_only_the_last_changes_are_kept(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who comes for changes that are gone, or that there never were, must list anew."""
    monkeypatch.setattr(database, "KEPT", 3)
    assert db.changes(0) == []
    for n in range(5):
        db.put("config", str(n), None, n)
    assert [change.value for change in db.changes(2)] == ["2", "3", "4"]
    assert db.changes(5) == []
    for after in (0, 1, 6, 1000):
        with pytest.raises(Compacted, match=f"after revision {after} "):
            db.changes(after)


def test_identity(db: Database, path: Path, tmp_path: Path) -> None:
    """Two files differ in their identity, two connections to one do not."""
    with closing(Database(path)) as same, closing(Database(tmp_path / "other.db")) as other:
        assert same.identity() == db.identity() == db.snapshot().identity != other.identity()


# --- what goes wrong with files ---------------------------------------------------------------------------


def fill_up(path: Path) -> None:
    """Write a file until the disk is full."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Return a small disk of its own."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    where = tmp_path / "disk"
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "test", where], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", "--lazy", where], check=True)


def make_store(path: Path, leases: int = 50) -> list[Record]:
    """Make a store of several pages and close it; return what is in it."""
    with closing(Database(path)) as db:
        return [db.put(f"subnets/10.1.{n}.0-24", "x" * 500, None, 0) for n in range(leases)]


def edit(path: Path, statement: str) -> None:
    """Change a database, or make one, without regard to what it is."""
    with closing(sqlite3.connect(path)) as db:
        db.execute(statement)
        db.commit()


def altered(statement: str) -> Callable[[Path], None]:
    """Return what makes a store and changes it behind its back."""

    def make(path: Path) -> None:
        make_store(path)
        edit(path, statement)

    return make


def cut(path: Path) -> None:
    """Make a store and lose the end of it."""
    make_store(path)
    os.truncate(path, 3 * 4096)


def overwrite(path: Path) -> None:
    """Make a store and write something else over its pages."""
    make_store(path)
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (path.stat().st_size - 4096))


FAULTS = [
    pytest.param(lambda path: path.mkdir(), "overlayd to write to", id="directory"),
    pytest.param(lambda path: path.symlink_to("nowhere"), "must exist", id="dangling link"),
    pytest.param(lambda path: path.write_text("{}\n" * 1000), "no sqlite database", id="text"),
    pytest.param(lambda path: path.write_text(""), "no overlayd store", id="empty"),
    pytest.param(
        lambda path: edit(path, "CREATE TABLE entry (key)"),
        "a database, but no overlayd store",
        id="other database",
    ),
    pytest.param(altered("PRAGMA user_version = 2"), "of format 2; this overlayd knows 1", id="newer"),
    pytest.param(cut, "damaged; stop the daemons, move it away", id="cut"),
    pytest.param(overwrite, "damaged; stop the daemons, move it away", id="overwritten"),
    pytest.param(altered("DELETE FROM state"), "damaged; stop the daemons, move it away", id="empty state"),
]


@pytest.mark.parametrize(("make", "words"), FAULTS)
def test_no_store(path: Path, make: Callable[[Path], None], words: str) -> None:
    """What is no store of ours is refused with one line that says why, and is left as it is."""
    make(path)
    before = None if path.is_dir() or not path.exists() else path.read_bytes()
    with refused(str(path), words), closing(Database(path)) as db:
        db.snapshot()
    assert before is None or path.read_bytes() == before


@pytest.mark.parametrize("name", [pytest.param("store.db", id="file"), pytest.param("a/store.db", id="way")])
def test_missing(tmp_path: Path, name: str) -> None:
    """A missing file is made, with its directory and for its owner alone, unless it must be there already."""
    path = tmp_path / name
    with refused(str(path), "must exist"):
        Database(path, may_create=False)
    assert list(tmp_path.iterdir()) == []
    make_store(path, 1)
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("name", ["file/store.db", "file/deeper/store.db"])
@pytest.mark.parametrize("may_create", [True, False], ids=["make", "use"])
def test_way_is_a_file(tmp_path: Path, name: str, *, may_create: bool) -> None:
    """A file where a directory should be is named as what stands in the way."""
    (tmp_path / "file").write_text("x")
    with refused(str(tmp_path / name), "irectory"):
        Database(tmp_path / name, may_create=may_create)


@pytest.mark.parametrize("name", ["a b", "a%41", "a?mode=ro", "a#b", "a&b", "\u00e9", "\udcff", "'", "//a"])
def test_odd_names(tmp_path: Path, name: str) -> None:
    """A file may have any name there can be."""
    path = Path(f"/{tmp_path}/a") if name == "//a" else tmp_path / name
    assert len(make_store(path, 1)) == 1
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


def test_locked(db: Database, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who holds the lock for long makes writing fail, but not reading; when it lets go, all is well again."""
    monkeypatch.setattr(database, "BUSY_S", 0.1)
    with closing(Database(path)) as writer, closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("UPDATE state SET revision = 99")
        for _ in range(2):
            with refused(str(path), "locked by another process"):
                writer.put("config", "a", None, 0)
        assert all_of(writer) == (0, ())
        with closing(Database(path)) as reader:
            assert reader.changes(0) == []
        other.execute("ROLLBACK")
        assert writer.put("config", "a", None, 0) == db.snapshot().records[0] == Record("config", "a", 1, 1)


@pytest.mark.parametrize("size", [20_000, 8_000_000], ids=["at the end", "in the middle"])
def test_full_disk(disk: Path, size: int) -> None:
    """On a full disk nothing is written, but all can be read; when there is room, all is well again."""
    path = disk / "store.db"
    with closing(Database(path)) as db:
        before = db.put("config", "a", None, 0)
        fill_up(disk / "other")
        for _ in range(2):
            with refused(str(path), "the disk is full"):
                db.put("config", "b" * size, None, 1)
        assert all_of(db) == (1, (before,))
        assert db.changes(0) == [before]
        (disk / "other").unlink()
        assert db.put("config", "b" * 20_000, None, 1).changed == 2


@pytest.mark.parametrize("pages", [0, 5, 10])
def test_made_on_a_full_disk(disk: Path, pages: int) -> None:
    """A store that has no room says so, however little it lacks, and is made as soon as there is room."""
    path = disk / "store.db"
    fill_up(disk / "other")
    os.truncate(disk / "other", (disk / "other").stat().st_size - 4096 * pages)
    with refused(str(path), "the disk is full"):
        Database(path)
    assert list(disk.glob(".*")) == []
    (disk / "other").unlink()
    make_store(path, 1)


@pytest.mark.parametrize("is_in_use", [False, True], ids=["closed", "left open"])
def test_read_only_mount(disk: Path, tmp_path: Path, *, is_in_use: bool) -> None:
    """On a disk that is mounted read-only, nothing is written or made, and the text says so."""
    path = disk / "store.db"
    make_store(path, 1)
    if is_in_use:
        with closing(Database(path)) as db:
            db.put("config", "a", None, 0)
            shutil.copytree(disk, tmp_path / "copy")
        shutil.copytree(tmp_path / "copy", disk, dirs_exist_ok=True)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    with refused(str(path), "overlayd", "to write to"), closing(Database(path)) as db:
        db.put(NODE2, "a", None, 0)
    with refused("cannot make", "Read-only"):
        Database(disk / "new.db")
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    with closing(Database(path)) as db:
        assert db.put(NODE2, "a", None, 0).changed == 2 + is_in_use
