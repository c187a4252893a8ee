# SPDX-License-Identifier: Apache-2.0
"""Which offloads of a Linux release are known to be broken."""

from __future__ import annotations

import re

from dataplane.model import Offload

Release = tuple[int, int, int]

# First and last release, what is off there, and why. Distributions may have mended it earlier.
KNOWN_BAD: tuple[tuple[Release, Release, Offload, str], ...] = (
    # Backport of e269d79c7d35, mended by 89add40066f9.
    ((6, 6, 44), (6, 6, 45), Offload.TUN_GRO, "refuses good super-packets on a TUN"),
    # b10b446ce7ad, mended by 78effd896eee and 5f17ae0f595a.
    ((7, 0, 0), (7, 1, 4), Offload.UDP_GSO, "damages runs of equal packets on some cards"),
)


def parse_release(text: str) -> Release | None:
    """Return the numbers that `uname -r` begins with; None if it begins with none."""
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
    return None if found is None else (int(found[1]), int(found[2]), int(found[3] or 0))


def known_bad(release: str) -> dict[Offload, str]:
    """Return which offloads are not to be used on a release (`uname -r`), and why."""
    numbers = parse_release(release)
    if numbers is None:
        return {}
    return {
        offload: f"Linux {'.'.join(map(str, numbers))} {why}"
        for first, last, offload, why in KNOWN_BAD
        if first <= numbers <= last
    }
