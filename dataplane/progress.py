# SPDX-License-Identifier: Apache-2.0
"""Whether the work of control gets on: a pass over what has arrived that does not end hangs. Pure.

The event loop turns all the same then, since a pass waits for threads and processes. So that it turns is not
enough to say that all is well. Times are CLOCK_MONOTONIC, in seconds.
"""

from __future__ import annotations

HUNG_S = 60.0  # a pass over 100 000 leases takes a quarter of it


class Progress:
    """Of one control."""

    def __init__(self) -> None:
        """Nothing is being done."""
        self._since: float | None = None

    def begin(self, now: float) -> None:
        """Note that a pass begins, perhaps anew after one that failed."""
        self._since = now

    def end(self) -> None:
        """Note that all there was to do is done."""
        self._since = None

    def taken_s(self, now: float) -> float | None:
        """Return how long ago the last pass began, unless it has done all there was to do."""
        return None if self._since is None else now - self._since

    def hung_s(self, now: float, limit_s: float = HUNG_S) -> float | None:
        """Return for how long a pass has not ended that should have by now; None if none is like that."""
        taken_s = self.taken_s(now)
        return None if taken_s is None or taken_s <= limit_s else taken_s
