# SPDX-License-Identifier: Apache-2.0
"""The lab waits on conditions, and says what it waited for."""

from __future__ import annotations

import pytest

from bench.lab import wait_for


def test_wait_says_what_is_so_at_its_end() -> None:
    """A text that is a callable is asked once, after the deadline: it shows the last state, not the first."""
    log: list[str] = []

    def is_so() -> bool:
        log.append("looked")
        return False

    with pytest.raises(AssertionError, match=r"^not within 0.01 s: said (\d+)$") as found:
        wait_for(is_so, lambda: f"said {len(log)}", 0.01)
    assert int(str(found.value).split()[-1]) == len(log) > 1


def test_wait_that_ends_says_nothing() -> None:
    """A condition that holds is not told of: the text is never asked for."""
    wait_for(lambda: True, lambda: pytest.fail("asked for its text"))


def test_wait_takes_a_plain_text() -> None:
    """A text that does not change is given as it is."""
    with pytest.raises(AssertionError, match=r"^not within 0 s: the end$"):
        wait_for(lambda: False, "the end", 0.0)
