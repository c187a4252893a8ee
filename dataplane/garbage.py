# SPDX-License-Identifier: Apache-2.0
"""When control looks for garbage: for objects that hold each other and that nobody else has.

All others end with their last user. Some libraries leave such rings with everything they are asked, pyroute2
some hundred objects with each look at the host, and rings may hold memory that Python does not count. So
somebody has to look, and not only after many megabytes.
"""

from __future__ import annotations

import gc

STARTING = 100_000  # objects made and not freed before rings among them are looked for
WORKING = gc.get_threshold()  # as Python has it


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
