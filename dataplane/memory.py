# SPDX-License-Identifier: Apache-2.0
"""How control, which runs for months, does not grow: one heap, and garbage is looked for when it should be.

grpc ends all of its threads with its last connection, and starts others with the next. glibc gives threads
heaps of their own, and each a store of small pieces besides; what one of them has left over is of no use to
the others, and these stores fill up for hours. A process can be told to do without, by its environment, when
it begins.

Garbage are objects that hold each other and that nobody else has; all others end with their last user. Some
libraries leave such rings with everything they are asked, pyroute2 some hundred objects with each look at the
host, and rings may hold memory that Python does not count. So somebody has to look, and not only after many
megabytes.
"""

from __future__ import annotations

import gc
import os

from dataplane import anew

STARTING = 100_000  # objects made and not freed before rings among them are looked for
WORKING = gc.get_threshold()  # as Python has it
TUNABLES = "GLIBC_TUNABLES"  # which others ignore
BEGUN = "BEGUN_OF_OVERLAYD_PID"  # which process has begun anew already
# "Memory Allocation Tunables" in the manual of glibc.
ONE_HEAP = "glibc.malloc.arena_max=1:glibc.malloc.tcache_count=0"


def share_heap() -> None:
    """Let all threads take from one heap, without stores of their own, unless glibc was told otherwise.

    The process begins anew for that, once, so this is to be called before it has done anything. Where that
    cannot be, it goes on, and control grows by some megabytes.
    """
    told, pid = os.environ.get(TUNABLES, ""), str(os.getpid())
    # One with capabilities of its file is not told the tunables, however often it begins.
    if os.environ.pop(BEGUN, "") == pid or "glibc.malloc." in told:
        return
    tunables = ":".join(filter(None, (told, ONE_HEAP)))
    anew.begin({**os.environ, TUNABLES: tunables, BEGUN: pid})


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
