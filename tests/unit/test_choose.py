# SPDX-License-Identifier: Apache-2.0
"""Which datapath is chosen, and when a node that fell back goes up again."""

from __future__ import annotations

import pytest

from dataplane.choose import RECHECK_S, STEADY, Choice, Recheck, choose


@pytest.mark.parametrize(
    ("wanted", "obstacle", "choice"),
    [
        pytest.param("userspace", None, Choice("userspace", "--datapath"), id="told userspace"),
        pytest.param("kernel", "it cannot", Choice("kernel", "--datapath"), id="told kernel"),
        pytest.param("auto", None, Choice("kernel", "auto: the kernel has VXLAN devices"), id="able"),
        pytest.param("auto", "it cannot", Choice("userspace", "auto: it cannot"), id="unable"),
    ],
)
def test_choice(wanted: str, obstacle: str | None, choice: Choice) -> None:
    """What is told is done; otherwise the kernel carries if it can, and the reason says so."""
    assert choose(wanted, obstacle) == choice


def test_recheck_wants_a_steady_kernel() -> None:
    """One look in three that finds no device begins the count anew."""
    recheck, now = Recheck(0.0), 0.0
    assert recheck.wait_s(0.0) == RECHECK_S
    for _ in range(STEADY - 1):
        now += RECHECK_S
        assert not recheck.note(None, now)
    assert not recheck.note("it cannot", now)
    for _ in range(STEADY - 1):
        assert not recheck.note(None, now)
    assert recheck.note(None, now)
    assert recheck.wait_s(now + 1) == RECHECK_S - 1
    assert recheck.wait_s(now + 2 * RECHECK_S) == 0
