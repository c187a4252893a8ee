# SPDX-License-Identifier: Apache-2.0
"""`overlayd forwarder`: gives up every privilege, listens in the run directory, and becomes C."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import NoReturn

from dataplane import footing, native, privilege
from dataplane.rundir import RunDir, listen


def run(run_dir: Path) -> NoReturn:
    """Serve until told to stop, which ends the process; its socket stays, and nobody answers there."""
    footing.stand("overlayd forwarder")
    privilege.hide_memory()
    privilege.drop_all()
    where = RunDir(run_dir)
    where.prepare()
    with (
        where.lock_forwarder(),
        listen(where.forwarder_socket, socket.SOCK_SEQPACKET) as listener,
    ):
        result = native.serve(listener.fileno(), is_confined=privilege.confine())
        if result != 0:
            os.write(2, f"overlayd: forwarder cannot serve any more: {os.strerror(-result)}\n".encode())
        # Nothing else of Python's end is allowed any more.
        os._exit(0 if result == 0 else 1)
