# SPDX-License-Identifier: Apache-2.0
"""The VTEP MAC addresses of this node: one, chosen once, kept in the state directory.

It is random and not derived from a machine id, which clones of an image share. A node that took over from
flannel has those of flannel's devices, of which IPv6 pods have another.
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
    known = find(state_dir, 4)
    if known is None:
        known = choose(os.urandom(6))
        keep(state_dir, 4, known)
    return known


def load6(state_dir: Path) -> MacAddress:
    """Return the address that IPv6 pods are reached by: the same, unless another one is kept."""
    return find(state_dir, 6) or load(state_dir)


def keep(state_dir: Path, version: int, mac: MacAddress) -> None:
    """Have this address from now on, for pods of one IP version."""
    try:
        state_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as err:
        raise failure("make state directory", state_dir, err) from None
    write_atomically(_path(state_dir, version), f"{mac}\n")


def _path(state_dir: Path, version: int) -> Path:
    return state_dir / ("vtep-mac" if version == 4 else "vtep-mac6")


def find(state_dir: Path, version: int) -> MacAddress | None:
    """Return the address kept for pods of an IP version; None if there is none yet."""
    path = _path(state_dir, version)
    try:
        text = path.read_text(encoding="ascii", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as err:
        raise failure("read", path, err) from None
    known = parse(text)
    if known is None:
        raise RuntimeFailure(f"{path} holds no unicast MAC address. Fix: remove it to get a new one")
    return known
