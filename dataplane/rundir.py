# SPDX-License-Identifier: Apache-2.0
"""The run directory: who owns it, which epoch it is, and what lies where in it.

    lock            flock, held by the one `overlayd run` of this directory for as long as it lives
    epoch           grows with every `overlayd run`: a forwarder obeys none older than the newest it met
    run.json        what `status` and `down` must know when nobody answers
    log.json        what is logged, where `overlayd log` said so
    control.sock    JSON status, served by `overlayd run`
    forwarder.lock, forwarder.sock, forwarder.log
                    the same of the forwarder
    spare.lock, spare.sock
                    of the one that waits to take its place (seats.py)

Locks are flocks and not pids: two containers that share the directory do not see each other's pids.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import stat
from contextlib import suppress
from ipaddress import ip_network
from pathlib import Path

from dataplane.errors import ConfigError, RuntimeFailure
from dataplane.model import Network

SOCKET_PATH_MAX = 107  # bytes of sun_path without its final NUL
FILES = (
    "epoch",
    "run.json",
    "log.json",
    "control.sock",
    "forwarder.sock",
    "forwarder.lock",
    "forwarder.log",
    "spare.sock",
    "spare.lock",
    "lock",
)


def failure(what: str, path: Path, err: OSError) -> RuntimeFailure:
    """Turn an OSError about a file into one line."""
    return RuntimeFailure(f"cannot {what} {path}: {os.strerror(err.errno or 0)}")


def write_atomically(path: Path, text: str, mode: int | None = None) -> None:
    """Replace a file so that a crash at any moment leaves either the old text or the new one.

    `mode` holds whatever the umask is; without, the umask decides.
    """
    draft = path.with_name(f".{path.name}.new")
    try:
        with draft.open("w", encoding="utf-8") as file:
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as err:
        with suppress(OSError):
            draft.unlink()  # a full disk has no room for half a file
        raise failure("write", path, err) from None


def listen(path: Path, kind: socket.SocketKind) -> socket.socket:
    """Listen on a socket in the run directory, in place of what an earlier owner left there."""
    draft = path.with_name(f".{path.name}.new")
    listener = socket.socket(socket.AF_UNIX, kind)
    try:
        draft.unlink(missing_ok=True)
        listener.bind(os.fspath(draft))
        draft.chmod(0o600)
        listener.listen(16)
        # Renamed when it is ready: whoever finds the socket is answered.
        draft.replace(path)
    except OSError as err:
        listener.close()
        raise failure("listen on", path, err) from None
    return listener


class LockHeld(RuntimeFailure):
    """Another process has the lock."""

    def __init__(self, owner: str, pid: str, what: str) -> None:
        """Say which `owner` it is, its pid as it sees itself, and `what` it does."""
        super().__init__(f"another {owner} (pid {pid}) {what}")
        self.pid = pid


class Lock:
    """An flock on a file, released by close() or by the death of the process."""

    def __init__(self, path: Path, owner: str, what: str = "") -> None:
        """Take the lock, or raise LockHeld that says which `owner` has it, and does `what`."""
        while True:
            try:
                # To read: a forwarder keeps no file open that it could write to.
                self._fd = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            except OSError as err:
                raise failure("open", path, err) from None
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pid = os.pread(self._fd, 32, 0).decode(errors="replace").strip() or "unknown"
                self.close()
                raise LockHeld(owner, pid, what or f"owns {path.parent}") from None
            # `overlayd down` may have removed the file between open and flock: then this is nobody's lock.
            if path.exists() and os.path.samestat(os.fstat(self._fd), path.stat()):
                break
            self.close()
        # Only for people: on a full disk the lock is as good without.
        with suppress(OSError):
            path.write_text(f"{os.getpid()}\n", encoding="ascii")

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock. May be called again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class RunDir:
    """Paths of one run directory, and the few files in it that are read and written whole."""

    def __init__(self, path: Path) -> None:
        """Name the directory; nothing is touched yet."""
        self.path = path.absolute()
        self.control_socket = self.path / "control.sock"
        self.forwarder_socket = self.path / "forwarder.sock"
        self.forwarder_lock = self.path / "forwarder.lock"
        self.forwarder_log = self.path / "forwarder.log"
        self.spare_socket = self.path / "spare.sock"
        self.spare_lock = self.path / "spare.lock"
        limit = SOCKET_PATH_MAX - len("/.forwarder.sock.new")
        if len(os.fsencode(self.path)) > limit:
            raise ConfigError(
                f"run directory {path}: allowed are at most {limit} bytes (a socket lies in it)"
            )

    def prepare(self) -> None:
        """Make the directory if it is not there; refuse one that others could have used."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self._is_unused():
                self.path.chmod(0o700)
        except OSError as err:
            raise failure("make run directory", self.path, err) from None
        self._check_mode()

    def _is_unused(self) -> bool:
        """Tell whether it is ours, and others could look into it, but not write: and there is nothing yet.

        A kubelet makes such a directory. Whoever finds something in it finds it closed, or it is refused.
        """
        is_empty = not any(self.path.iterdir())
        status = self.path.stat()
        return is_empty and status.st_uid == os.geteuid() and not status.st_mode & 0o022

    def _check_mode(self) -> None:
        status = self.path.stat()
        if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
            raise RuntimeFailure(
                f"run directory {self.path} is open to others. Fix: chown {os.geteuid()} {self.path}; "
                f"chmod 700 {self.path}"
            )

    def check(self) -> None:
        """Raise what prepare() and lock() would; nothing is made."""
        try:
            if self.path.exists() and not self._is_unused():
                self._check_mode()
        except OSError as err:
            raise failure("make run directory", self.path, err) from None
        if (self.path / "lock").exists():
            self.lock().close()

    def lock(self, owner: str = "overlayd run") -> Lock:
        """Become the one control of this directory."""
        return Lock(self.path / "lock", owner)

    def next_epoch(self, newest: int = 0) -> int:
        """Count up the epoch, durably, past `newest`, and return it. Only the holder of the lock may."""
        path = self.path / "epoch"
        try:
            epoch = int(path.read_text(encoding="ascii"))
        except FileNotFoundError:
            epoch = 0
        except (OSError, ValueError):
            raise RuntimeFailure(f"cannot read {path}. Fix: overlayd down, which removes it") from None
        epoch = max(epoch, newest) + 1
        write_atomically(path, f"{epoch}\n")
        return epoch

    def write_facts(self, facts: dict[str, object]) -> None:
        """Leave behind what `status` and `down` must know when nobody answers."""
        write_atomically(self.path / "run.json", json.dumps(facts) + "\n")

    def read_facts(self) -> dict[str, object]:
        """Return what the last `overlayd run` left behind, empty if there is nothing usable."""
        try:
            facts = json.loads((self.path / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return facts if isinstance(facts, dict) else {}

    def read_networks(self) -> tuple[Network, ...]:
        """Return the networks of the last `overlayd run`, as far as it left word of them."""
        found = self.read_facts().get("networks")
        try:
            return tuple(ip_network(text) for text in found) if isinstance(found, list) else ()
        except ValueError:
            return ()

    def remove(self) -> None:
        """Remove our files, and the directory if nothing else is in it."""
        for name in FILES:
            (self.path / name).unlink(missing_ok=True)
            (self.path / f".{name}.new").unlink(missing_ok=True)
        try:
            self.path.rmdir()
        except OSError:
            pass  # not ours alone, a mount point, or not there
