# SPDX-License-Identifier: Apache-2.0
"""The VTEP MAC address of this node: chosen once, kept in the state directory.

It is random and not derived from a machine id, which clones of an image share.
"""

from __future__ import annotations

import os
from pathlib import Path

from dataplane.errors import RuntimeFailure
from dataplane.model import MacAddress
from dataplane.rundir import failure, write_atomically

LOCAL = 0x02  # locally administered
GROUP = 0x01  # multicast


def parse(text: str) -> MacAddress | None:
    """Read six hexadecimal octets separated by colons that can be a VTEP's; None for anything else."""
    parts = text.strip().split(":")
    try:
        octets = bytes(int(part, 16) for part in parts if len(part) == 2)
    except ValueError:
        return None
    is_usable = len(parts) == len(octets) == 6 and any(octets) and not octets[0] & GROUP
    return MacAddress(octets) if is_usable else None


def choose(randomness: bytes) -> MacAddress:
    """Make a locally administered unicast address of six random octets."""
    return MacAddress(bytes([randomness[0] & ~GROUP & 0xFF | LOCAL]) + randomness[1:6])


def load(state_dir: Path) -> MacAddress:
    """Return the address kept in the state directory, chosen now if there is none yet."""
    path = state_dir / "vtep-mac"
    try:
        text = path.read_text(encoding="ascii", errors="replace")
    except FileNotFoundError:
        mac = choose(os.urandom(6))
    except OSError as err:
        raise failure("read", path, err) from None
    else:
        known = parse(text)
        if known is None:
            raise RuntimeFailure(f"{path} holds no unicast MAC address. Fix: remove it to get a new one")
        return known
    try:
        state_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as err:
        raise failure("make state directory", state_dir, err) from None
    write_atomically(path, f"{mac}\n")
    return mac
