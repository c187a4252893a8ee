# SPDX-License-Identifier: Apache-2.0
"""The two seats for forwarders in a run directory: one carries packets, the other waits to take its place.

    forwarder.lock, forwarder.sock    of the one in use
    spare.lock, spare.sock            of the one that waits: it listens, and was given nothing

An flock belongs to a file, whatever that is called, and so does a socket that listens. So control puts the
spare in use by renaming both, socket first, and the spare itself, which could not, has nothing to do.

Whoever takes a seat or renames holds an flock on the directory meanwhile. A control that is killed leaves one
of these, and the next forwarder or control puts it right (control's part is in succession.py):

    before the first rename     the one in spare.* has been given something: put_in_use() goes on from here
    between the two             forwarder.sock answers, but its lock is still called spare.lock: mend()
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dataplane.errors import ControlError, RuntimeFailure
from dataplane.rundir import Lock, LockHeld, RunDir, failure, listen

ARRANGE_TIMEOUT_S = 5.0
RETRY_S = 0.005


@contextmanager
def arranging(run_dir: RunDir) -> Iterator[None]:
    """Be the only one who changes who has which seat."""
    deadline_s = time.monotonic() + ARRANGE_TIMEOUT_S
    try:
        directory = os.open(run_dir.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as err:
        raise failure("open", run_dir.path, err) from None
    try:
        while True:
            try:
                fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline_s:
                    raise RuntimeFailure(f"somebody has held {run_dir.path} for too long") from None
            time.sleep(RETRY_S)
        yield
    finally:
        os.close(directory)


def is_free(lock: Path) -> bool:
    """Tell whether nobody holds a lock. Who takes a seat meanwhile finds it held, and takes the other one."""
    try:
        fd = os.open(lock, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def mend(run_dir: RunDir) -> None:
    """Finish what a control began that was killed between two renames."""
    if run_dir.spare_socket.exists() or not is_free(run_dir.forwarder_lock):
        return
    from dataplane.control import inspect  # a forwarder hardly ever needs it, and would have to carry it

    with suppress(ControlError, FileNotFoundError):
        if inspect(run_dir.forwarder_socket) is not None:
            run_dir.spare_lock.replace(run_dir.forwarder_lock)


def take(run_dir: RunDir) -> tuple[Lock, socket.socket]:
    """Become the forwarder of this directory, or else its spare; return the lock, and where to listen."""
    with arranging(run_dir):
        mend(run_dir)
        try:
            lock, path = Lock(run_dir.forwarder_lock, "overlayd forwarder"), run_dir.forwarder_socket
        except LockHeld as first:
            try:
                lock, path = Lock(run_dir.spare_lock, "overlayd forwarder"), run_dir.spare_socket
            except LockHeld as second:
                raise RuntimeFailure(f"{first}, and one (pid {second.pid}) waits already") from None
        return lock, listen(path, socket.SOCK_SEQPACKET)
