# SPDX-License-Identifier: Apache-2.0
"""Control's part of who has which seat (seats.py): a spare comes into use, one that hangs loses its names."""

from __future__ import annotations

from contextlib import suppress

from dataplane.control import ForwarderClient, inspect
from dataplane.errors import ControlError, NotRunning
from dataplane.native import State
from dataplane.rundir import RunDir, failure
from dataplane.seats import arranging, mend


def put_in_use(run_dir: RunDir, epoch: int) -> None:
    """Give the spare the names of the forwarder in use, which has ended. Blocks; may be done again.

    Somebody may have started another meanwhile, which was given nothing yet: it is told to end.
    """
    with arranging(run_dir):
        if run_dir.spare_socket.exists():
            _evict(run_dir, epoch)
        for old, new in (
            (run_dir.spare_socket, run_dir.forwarder_socket),
            (run_dir.spare_lock, run_dir.forwarder_lock),
        ):
            try:
                old.replace(new)
            except FileNotFoundError:
                pass
            except OSError as err:
                raise failure("rename", old, err) from None


def _evict(run_dir: RunDir, epoch: int) -> None:
    with suppress(NotRunning, ControlError), ForwarderClient(run_dir.forwarder_socket, epoch) as client:
        client.hello()
        client.stop()


def disown(run_dir: RunDir, *, is_spare: bool) -> None:
    """Take its names from a forwarder that hangs and cannot be ended, so that another one can have them."""
    names = (run_dir.forwarder_socket, run_dir.forwarder_lock)
    with arranging(run_dir):
        for path in (run_dir.spare_socket, run_dir.spare_lock) if is_spare else names:
            path.unlink(missing_ok=True)


def connect(run_dir: RunDir, epoch: int) -> ForwarderClient:
    """Connect a new control to the forwarder in use, which perhaps has the names of the spare yet."""
    with arranging(run_dir):
        mend(run_dir)
    with suppress(NotRunning, ControlError):
        reply = inspect(run_dir.spare_socket)
        if reply is not None and reply.state != State.EMPTY:
            put_in_use(run_dir, epoch)
    return ForwarderClient(run_dir.forwarder_socket, epoch)
