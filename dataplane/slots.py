# SPDX-License-Identifier: Apache-2.0
"""The descriptors that a forwarder works with: what each is for, and how several of a kind are told apart."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from functools import cache


class Fd(IntEnum):
    """What a descriptor is for: `enum dp_fd`."""

    TUN = 0
    COUNTERS = 1
    FIB = 2
    UDP4 = 3
    UDP4_TX = 4
    UDP6 = 5
    UDP6_TX = 6
    RAW4 = 7
    RAW4_TX = 8
    BARE4 = 9


# Descriptors by slot: a role where there is one of it, slot_of() where there are several.
Fds = dict[int, int]
EACH = 16  # of a role, at most
BARE_MAX = 15  # of those that receive bare packets: `DP_MAX_BARE`
SLOTS = range(EACH * len(Fd))


def slot_of(role: Fd, index: int) -> int:
    """Return the slot of one of several descriptors."""
    return role + index * len(Fd)


@cache
def role_of(slot: int) -> Fd:
    """Return what the descriptor in a slot is for."""
    return Fd(slot % len(Fd))


def sum_by_role(words: Sequence[int]) -> dict[Fd, int]:
    """Add up what is told by slot, for each role."""
    sums = dict.fromkeys(Fd, 0)
    for slot in SLOTS:
        sums[role_of(slot)] += words[slot]
    return sums
