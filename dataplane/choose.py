# SPDX-License-Identifier: Apache-2.0
"""Which datapath carries the packets where --datapath auto leaves it to us: the kernel's, if it can. Pure."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

from dataplane.config import RunConfig

RECHECK_S = 300.0
STEADY = 3  # looks in a row that must find the kernel able before a running node changes over


def choose(config: RunConfig, obstacle: str | None) -> RunConfig:
    """Return the configuration with a datapath; `obstacle` says why the kernel's cannot be had."""
    if config.datapath != "auto":
        return config
    if obstacle is None:
        return replace(config, datapath="kernel", datapath_reason="auto: the kernel has VXLAN devices")
    return replace(config, datapath="userspace", datapath_reason=f"auto: {obstacle}")


async def wait_able(
    look: Callable[[], Awaitable[str | None]], pause: Callable[[float], Awaitable[None]]
) -> None:
    """Return when the kernel has been able for some time; one that can now and then does not count.

    `look` says what is in the way, None for nothing; `pause` waits for some seconds.
    """
    able = 0
    while able < STEADY:
        await pause(RECHECK_S)
        able = able + 1 if await look() is None else 0
