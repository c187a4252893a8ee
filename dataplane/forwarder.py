# SPDX-License-Identifier: Apache-2.0
"""`overlayd forwarder`: gives up every privilege, listens in the run directory, and becomes C."""

from __future__ import annotations

import socket
from pathlib import Path

from dataplane import native
from dataplane.rundir import RunDir, listen


def run(run_dir: Path) -> int:
    """Serve until told to stop; return the exit status."""
    native.drop_privileges()
    where = RunDir(run_dir)
    where.prepare()
    with (
        where.lock_forwarder(),
        listen(where.forwarder_socket, socket.SOCK_SEQPACKET) as listener,
    ):
        try:
            native.serve(listener.fileno())
        finally:
            where.forwarder_socket.unlink(missing_ok=True)
    return 0
