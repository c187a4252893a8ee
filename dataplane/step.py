# SPDX-License-Identifier: Apache-2.0
"""Keeps in step what is done again and again: a process that sleeps is woken once for all of it."""

from __future__ import annotations

import asyncio


def pause_s(period_s: float) -> float:
    """Return how long to pause until a moment at which whoever has this period is woken, or a part of it.

    Once in step that is the period. Before, and when woken too early or too late, it is between half as much
    and half as much again: two looks in a row are never close together.
    """
    left_s = period_s - asyncio.get_running_loop().time() % period_s
    return left_s if left_s >= period_s / 2 else left_s + period_s
