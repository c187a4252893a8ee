# SPDX-License-Identifier: Apache-2.0
"""`overlayd forwarder`: gives up every privilege, listens in the run directory, and becomes C.

If there is one already, it waits as a spare, ready but for what control gives it when the other one ends.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

from dataplane import VERSION, footing, native, privilege, seats
from dataplane.rundir import RunDir


def run(run_dir: Path) -> NoReturn:
    """Serve until told to stop, which ends the process; its socket stays, and nobody answers there."""
    footing.stand("overlayd forwarder")
    footing.favour()
    privilege.hide_memory()
    privilege.drop_all()
    where = RunDir(run_dir)
    where.prepare()
    lock, listener = seats.take(where)
    with lock, listener:
        result = native.serve(listener.fileno(), VERSION, is_confined=privilege.confine())
        if result != 0:
            os.write(2, f"overlayd: forwarder cannot serve any more: {os.strerror(-result)}\n".encode())
        # Nothing else of Python's end is allowed any more.
        os._exit(0 if result == 0 else 1)
