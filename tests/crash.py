# SPDX-License-Identifier: Apache-2.0
"""Ends a process in the middle of a write, at any byte."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable

DIED = -signal.SIGXFSZ


def write_up_to(size: int, write: Callable[[], object]) -> int:
    """Let another process write, which dies when a file is to have more bytes; return how it ended."""
    pid = os.fork()
    if pid == 0:
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            write()
            os._exit(0)
        finally:
            os._exit(4)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
