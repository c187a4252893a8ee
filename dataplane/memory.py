# SPDX-License-Identifier: Apache-2.0
"""How control, which runs for months, does not grow: one heap, and garbage is looked for when it should be.

grpc ends all of its threads with its last connection, and starts others with the next. glibc gives threads
heaps of their own, and what one of them has left over is of no use to the others.

Garbage are objects that hold each other and that nobody else has; all others end with their last user. Some
libraries leave such rings with everything they are asked, pyroute2 some hundred objects with each look at the
host, and rings may hold memory that Python does not count. So somebody has to look, and not only after many
megabytes.
"""

from __future__ import annotations

import ctypes
import gc

STARTING = 100_000  # objects made and not freed before rings among them are looked for
WORKING = gc.get_threshold()  # as Python has it
M_ARENA_MAX = -8  # of glibc's malloc.h


def share_heap() -> None:
    """Let all threads that come take from one heap; before there are any. Only glibc has to be told."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 1)


def start() -> None:
    """Look seldom: leases are values without rings, and ten thousand of them are many objects."""
    gc.set_threshold(STARTING)


def settle() -> None:
    """Look often from now on, but never again at what there is: it stays, and looks would take long."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*WORKING)


def end() -> None:
    """Let go of what had to stay."""
    gc.unfreeze()
