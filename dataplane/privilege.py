# SPDX-License-Identifier: Apache-2.0
"""What a process of ours gives up, for good. It does so before it has threads: each thread has its own."""

from __future__ import annotations

import errno
from enum import IntEnum
from pathlib import Path

from dataplane.native import check, lib


class Capability(IntEnum):
    """Those that we know by name: linux/capability.h."""

    NET_BIND_SERVICE = 10
    NET_ADMIN = 12
    NET_RAW = 13


def has(capability: Capability) -> bool:
    """Return whether this process may use a capability."""
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> capability & 1)
    return False


def hide_memory() -> None:
    """Let no other process of this user trace us or read our memory; dump no core."""
    check(lib.dp_hide_memory(), "hiding our memory")


def keep(kept: frozenset[Capability], children: frozenset[Capability]) -> None:
    """Give up every capability but a few, of which programs that we start have some."""
    check(lib.dp_keep_capabilities(_mask(kept), _mask(children)), "giving up capabilities")


def _mask(capabilities: frozenset[Capability]) -> int:
    return sum(1 << capability for capability in capabilities)


def drop_all() -> None:
    """Give up every capability."""
    check(lib.dp_drop_privileges(), "dropping privileges")


def confine() -> bool:
    """Make no system calls but a forwarder's from now on; False if the kernel cannot see to it.

    Little of Python works after that: os._exit(), and what needs no system call.
    """
    result = lib.dp_confine()
    if result in (-errno.ENOSYS, -errno.EINVAL):
        return False
    check(result, "confining the forwarder")
    return True
