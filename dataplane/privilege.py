# SPDX-License-Identifier: Apache-2.0
"""What a process of ours gives up, for good. It does so before it has threads: each thread has its own."""

from __future__ import annotations

import errno

from dataplane.native import check, lib


def hide_memory() -> None:
    """Let no other process of this user trace us or read our memory; dump no core."""
    check(lib.dp_hide_memory(), "hiding our memory")


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
