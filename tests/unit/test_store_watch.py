# SPDX-License-Identifier: Apache-2.0
"""The way to a peers file: directories and links on it are replaced, and what is there then is read."""

from __future__ import annotations

import asyncio
import errno
import select
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from dataplane.errors import StoreError
from dataplane.model import Event, Listed, Rejected
from dataplane.store.file import FileStore, parse_peers
from dataplane.store.watch import PathWatch, explain


def content(vni: int) -> str:
    """Return a peers file that is told from others by its VNI."""
    return f'{{"network": {{"Network": "10.244.0.0/16", "Backend": {{"Type": "vxlan", "VNI": {vni}}}}}}}'


def listed(revision: int, vni: int) -> Listed:
    """Return what such a file says."""
    network, _ = parse_peers(content(vni))
    return Listed(revision, network, ())


GOOD, OTHER = content(1), content(2)


async def soon(events: AsyncIterator[Event]) -> Event:
    """Return the next event, which must come."""
    return await asyncio.wait_for(anext(events), 10)


def write(path: Path, text: str) -> None:
    """Write a file in place."""
    path.write_text(text)


def make_new_directory(path: Path) -> None:
    """Remove the directory and make it again with another file in it."""
    shutil.rmtree(path.parent)
    path.parent.mkdir()
    write(path, OTHER)


def swap_directory(path: Path) -> None:
    """Put another directory in the place of the file's."""
    new = path.parent.with_name("new")
    new.mkdir()
    write(new / path.name, OTHER)
    path.parent.rename(path.parent.with_name("old"))
    new.rename(path.parent)


def turn_link(path: Path) -> None:
    """Turn the link in the middle of the way, as Kubernetes does with a ConfigMap."""
    where = path.parent
    (where / "..2").mkdir()
    write(where / "..2" / path.name, OTHER)
    (where / "..tmp").symlink_to("..2")
    (where / "..tmp").rename(where / "..data")


def write_target(path: Path) -> None:
    """Write the file that the links lead to."""
    write(path.resolve(), OTHER)


def replace_by_link(path: Path) -> None:
    """Make a symbolic link where the file was."""
    write(path.with_name("other"), OTHER)
    path.unlink()
    path.symlink_to("other")


def replace_by_hard_link(path: Path) -> None:
    """Give another file the name of the file."""
    write(path.with_name("other"), OTHER)
    path.unlink()
    path.hardlink_to(path.with_name("other"))


def allow_again(path: Path) -> None:
    """Change what the file says through another name of it, and then touch its mode."""
    other = path.parent.with_name("elsewhere")
    other.hardlink_to(path.resolve())
    write(other, OTHER)
    path.chmod(0o600)


CHANGES = (
    *(make_new_directory, swap_directory, write_target),
    *(replace_by_link, replace_by_hard_link, allow_again),
)


@pytest.mark.parametrize(
    ("change", "is_linked"),
    [
        *(pytest.param(change, False, id=change.__name__) for change in CHANGES),
        *(pytest.param(change, True, id=f"{change.__name__}, linked") for change in (*CHANGES, turn_link)),
    ],
)
def test_way_changes(tmp_path: Path, change: Callable[[Path], None], is_linked: bool) -> None:
    """Whatever on the way to the file is replaced, what is there then is read, and watched from then on."""
    path = tmp_path / "etc" / "peers.json"
    path.parent.mkdir()
    if is_linked:
        (path.parent / "..1").mkdir()
        write(path.parent / "..1" / path.name, GOOD)
        (path.parent / "..data").symlink_to("..1")
        path.symlink_to(f"..data/{path.name}")
    else:
        write(path, GOOD)

    async def scenario() -> None:
        store = FileStore(path)
        events = store.events()
        assert await soon(events) == listed(1, 1)
        change(path)
        assert await soon(events) == listed(2, 2)
        write(path, GOOD)
        assert await soon(events) == listed(3, 1)
        await store.close()

    asyncio.run(scenario())


def test_link_that_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link on the way that cannot be read is an error, and not taken for a file; the next look finds it."""
    path = tmp_path / "peers.json"
    write(tmp_path / "there", GOOD)
    path.symlink_to("there")

    def fail(self: Path) -> Path:
        raise OSError(errno.EIO, "Input/output error")

    async def scenario() -> None:
        store = FileStore(path)
        with monkeypatch.context() as patch:
            patch.setattr(Path, "readlink", fail)
            with pytest.raises(StoreError, match=r"cannot watch .*peers\.json: Input/output error$"):
                await soon(store.events())
        assert await soon(store.events()) == listed(1, 1)
        await store.close()

    asyncio.run(scenario())


def test_same_complaint_is_told_once(tmp_path: Path) -> None:
    """An edit that leaves the file broken in the same way is no event, but its mending is."""
    path = tmp_path / "peers.json"
    write(path, GOOD)

    async def scenario() -> None:
        store = FileStore(path)
        events = store.events()
        assert await soon(events) == listed(1, 1)
        write(path, content(-1))
        assert isinstance(await soon(events), Rejected)
        write(path, content(-1) + "\n")
        path.chmod(0o600)
        write(path, GOOD)
        assert await soon(events) == listed(1, 1)
        await store.close()

    asyncio.run(scenario())


# --- PathWatch ------------------------------------------------------------------------------------------


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[PathWatch]:
    """Return a watch on a file of which nothing but the first directory exists."""
    watch = PathWatch(tmp_path / "a" / "b" / "peers.json")
    watch.follow()
    yield watch
    watch.close()


def test_way_comes_piece_by_piece(watch: PathWatch, tmp_path: Path) -> None:
    """Each directory that comes is noticed and gone into; the file counts when it is closed, not before."""
    assert not watch.drain()
    for directory in (tmp_path / "a", tmp_path / "a" / "b"):
        directory.mkdir()
        assert watch.drain()
        watch.follow()
    with (tmp_path / "a" / "b" / "peers.json").open("w") as file:
        file.write("half")
        file.flush()
        assert not watch.drain()
    assert watch.drain()


def test_way_goes_and_comes(watch: PathWatch, tmp_path: Path) -> None:
    """What is left of a way is watched: for its end, and for its coming back."""
    path = tmp_path / "a" / "b" / "peers.json"
    path.parent.mkdir(parents=True)
    watch.follow()
    watch.drain()
    shutil.rmtree(tmp_path / "a")
    assert watch.drain()
    watch.follow()
    watch.drain()
    path.parent.mkdir(parents=True)
    assert watch.drain()
    watch.follow()
    write(path, "x")
    assert watch.drain()


def test_neighbours_wake_nobody(watch: PathWatch, tmp_path: Path) -> None:
    """What happens beside a step of the way is not even told, though it was while that step was missing."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    watch.follow()
    watch.drain()
    (tmp_path / "other").mkdir()
    (tmp_path / "a" / "other").touch()
    assert select.select([watch], [], [], 0)[0] == []
    (tmp_path / "a" / "b" / "peers.json").touch()
    assert select.select([watch], [], [], 0)[0] == [watch]


def test_other_names_are_nothing(watch: PathWatch, tmp_path: Path) -> None:
    """What happens beside the way is no news, and neither is a directory that is not on it any more."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    watch.follow()
    watch.drain()
    write(tmp_path / "other", "x")
    write(tmp_path / "a" / "peers.json", "x")
    (tmp_path / "a" / "b" / "dir").mkdir()
    assert not watch.drain()
    (tmp_path / "a").rename(tmp_path / "old")
    assert watch.drain()
    watch.follow()
    write(tmp_path / "old" / "b" / "peers.json", "x")
    assert not watch.drain()


def test_odd_ways(tmp_path: Path) -> None:
    """A circle of links, `..` behind a link and a file instead of a directory are gone as the kernel goes."""
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real" / "deep")
    write(tmp_path / "file", "x")
    for name in ("circle", "circle/peers.json", "file/peers.json", "link/../peers.json"):
        watch = PathWatch(tmp_path / name)
        watch.follow()
        assert not watch.drain()
        if ".." in name:
            write(tmp_path / "peers.json", "x")
            assert not watch.drain()
            write(tmp_path / "real" / "peers.json", "x")
            assert watch.drain()
        watch.close()


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        pytest.param(errno.ENOSPC, "max_user_watches", id="watches"),
        pytest.param(errno.EMFILE, "max_user_instances", id="instances"),
    ],
)
def test_limits_of_inotify(number: int, hint: str) -> None:
    """The two errors that mean inotify's own limits name the sysctl to raise."""
    assert explain(OSError(number, "x")) == f"x; raise the sysctl fs.inotify.{hint}"
    assert explain(OSError(errno.EACCES, "x")) == "x"
