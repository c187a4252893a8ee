# SPDX-License-Identifier: Apache-2.0
"""Tells when a path may lead to another file, or to the same one with other content. By inotify, no asyncio.

A file changes in more ways than by being written. Editors rename a new one over it, deployments replace its
directory, and Kubernetes turns a link in the middle of the way when a ConfigMap changes (peers.json ->
..data/peers.json, ..data -> ..2026_11_23). So every step of the way is watched, and the way is gone again
after every change. A step that is a directory tells when it is itself moved or removed; a link, the file, or
what is missing is a name in the directory before it. What happens beside the way, as in /tmp, wakes nobody.
"""

from __future__ import annotations

import errno
from pathlib import Path

from inotify_simple import Event, INotify, flags

CHANGED = flags.CLOSE_WRITE | flags.CREATE | flags.MOVED_TO | flags.MOVED_FROM | flags.DELETE | flags.ATTRIB
MOVED = flags.MOVE_SELF | flags.DELETE_SELF | flags.ATTRIB
LOST = flags.Q_OVERFLOW | flags.UNMOUNT  # events there may have been are not told
ITSELF = ""  # the name in an event about the directory that is watched
LINKS_MAX = 40  # on one way, as the kernel has it


def explain(err: OSError) -> str:
    """Say why a path cannot be watched; two of inotify's errors mean its own limits."""
    limits = {errno.EMFILE: "max_user_instances", errno.ENOSPC: "max_user_watches"}
    hint = f"; raise the sysctl fs.inotify.{limits[err.errno]}" if err.errno in limits else ""
    return f"{err.strerror}{hint}"


class PathWatch:
    """Watches the way to one file. For one thread; fileno() becomes readable when something happened."""

    def __init__(self, path: Path) -> None:
        """Watch nothing yet; `path` is absolute."""
        self._path = path
        self._places: dict[int, tuple[Path, set[str]]] = {}  # watch -> directory, names looked up in it
        self._inotify = INotify(nonblocking=True)
        self.has_failed = False  # what happened cannot be read: whoever watches must begin anew

    def fileno(self) -> int:
        """Return the descriptor to wait on, borrowed."""
        return int(self._inotify.fileno())

    def follow(self) -> None:
        """Go the way, and watch it as it is now; to be called before the file is read.

        A step is watched before what lies behind it is looked up: a change in between is an event. Where the
        way ends because something is missing, its coming is an event.
        """
        before, self._places = self._places, {}
        rest, here, links = list(reversed(self._path.parts[1:])), Path("/"), 0
        while rest and links <= LINKS_MAX:
            name = rest.pop()
            if name == "..":
                here = here.parent  # no link leads to `here`: links are followed below
                continue
            if rest and self._add_step(here / name):
                here /= name
                continue
            if not self._add(here, name, is_last=not rest):
                break
            target = _read_link(here / name)
            if target is None:
                here /= name
                continue
            links += 1
            rest += reversed(target.parts[1:] if target.is_absolute() else target.parts)
            here = Path("/") if target.is_absolute() else here
        for watch in before.keys() - self._places.keys():
            try:
                self._inotify.rm_watch(watch)
            except OSError:
                pass  # the directory is gone, and the watch with it

    def _add_step(self, directory: Path) -> bool:
        """Watch a directory on the way for its own end; return whether it is one that can be watched."""
        try:
            self._watch(directory, ITSELF, MOVED | flags.DONT_FOLLOW)
        except OSError as err:
            if err.errno in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):
                return False
            raise
        return True

    def _add(self, directory: Path, name: str, *, is_last: bool) -> bool:
        """Watch for a name; return whether the way goes on from there."""
        try:
            self._watch(directory, name, CHANGED)
        except OSError as err:
            if err.errno in (errno.ENOENT, errno.ENOTDIR):
                return False
            if err.errno == errno.EACCES and not is_last:
                return True  # may be searched but not read: a change of it is not seen
            raise
        return True

    def _watch(self, directory: Path, name: str, mask: int) -> None:
        # What an earlier way wanted of it is forgotten, what this one wants already is kept.
        is_known = any(known == directory for known, _ in self._places.values())
        mask |= flags.ONLYDIR | (flags.MASK_ADD if is_known else 0)
        watch = self._inotify.add_watch(directory, mask)
        self._places.setdefault(watch, (directory, set()))[1].add(name)

    def drain(self) -> bool:
        """Take all that happened; return whether any of it concerns the file, or `has_failed` by now."""
        try:
            return any(self._concerns(event) for event in self._inotify.read(timeout=0))
        except OSError:
            self.has_failed = True
            return True

    def _concerns(self, event: Event) -> bool:
        if event.mask & LOST:
            return True
        directory, names = self._places.get(event.wd, (Path("/"), set()))
        if event.name not in names:
            return False
        is_new_file = event.mask & flags.CREATE and not event.mask & flags.ISDIR
        return not is_new_file or _is_whole(directory / event.name)

    def close(self) -> None:
        """Give the descriptor back."""
        self._inotify.close()


def _read_link(path: Path) -> Path | None:
    try:
        return path.readlink()
    except OSError as err:
        if err.errno in (errno.EINVAL, errno.ENOENT, errno.ENOTDIR, errno.EACCES):
            return None  # no link, nothing at all, or nothing that we could follow
        raise


def _is_whole(path: Path) -> bool:
    """Return whether a new name is a link: a new file is still to be written, and is told of when closed."""
    try:
        return path.is_symlink() or path.lstat().st_nlink > 1
    except OSError:
        return True  # gone already
