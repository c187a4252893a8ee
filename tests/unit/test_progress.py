# SPDX-License-Identifier: Apache-2.0
"""Whether work gets on."""

from __future__ import annotations

from dataplane.progress import HUNG_S, Progress


def test_hung() -> None:
    """A pass that takes longer than it may hangs until it ends; one that ends in time, or none, does not."""
    progress = Progress()
    assert progress.hung_s(1e9) is None
    assert progress.taken_s(1e9) is None
    progress.begin(100.0)
    assert progress.taken_s(100.5) == 0.5
    assert progress.hung_s(100.0 + HUNG_S) is None
    assert progress.hung_s(101.0 + HUNG_S) == HUNG_S + 1
    assert progress.hung_s(103.0, limit_s=2.0) == 3.0
    progress.begin(200.0)
    assert progress.hung_s(201.0) is None
    progress.end()
    assert progress.hung_s(1e9) is None
