# SPDX-License-Identifier: Apache-2.0
"""Which datapath is chosen, and when a node that fell back goes up again."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from dataplane.choose import RECHECK_S, STEADY, choose, wait_able
from tests.leases import CONFIG


@pytest.mark.parametrize(
    ("wanted", "obstacle", "datapath", "reason"),
    [
        pytest.param("userspace", None, "userspace", "--datapath", id="told userspace"),
        pytest.param("kernel", "it cannot", "kernel", "--datapath", id="told kernel"),
        pytest.param("auto", None, "kernel", "auto: the kernel has VXLAN devices", id="able"),
        pytest.param("auto", "it cannot", "userspace", "auto: it cannot", id="unable"),
    ],
)
def test_choice(wanted: str, obstacle: str | None, datapath: str, reason: str) -> None:
    """What is told is done; otherwise the kernel carries if it can, and the reason says so."""
    found = choose(replace(CONFIG, datapath=wanted), obstacle)
    assert (found.datapath, found.datapath_reason) == (datapath, reason)


def test_kernel_must_be_able_for_some_time() -> None:
    """One look that finds an obstacle begins the count of good ones anew."""
    looks = iter([None] * (STEADY - 1) + ["it cannot"] + [None] * STEADY + ["never asked"])
    paused: list[float] = []

    async def look() -> str | None:
        return next(looks)

    async def pause(seconds: float) -> None:
        paused.append(seconds)

    asyncio.run(wait_able(look, pause))
    assert paused == [RECHECK_S] * (2 * STEADY)
    assert list(looks) == ["never asked"]
