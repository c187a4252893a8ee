# SPDX-License-Identifier: Apache-2.0
"""Programs on a kernel that refuses one system call: as one that does not know it, or as a filter does."""

from __future__ import annotations

import errno
import platform
import sys

# By machine: asm/unistd.h.
SECCOMP = {"x86_64": 317, "aarch64": 277}[platform.machine()]
IO_URING_SETUP = 425

# Arguments: the call, the error, the program and its arguments.
LAUNCHER = """
import ctypes, os, struct, sys
number, error = map(int, sys.argv[1:3])
lines = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x00050000 | error), (0x06, 0, 0, 0x7FFF0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in lines))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(lines), ctypes.addressof(code)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program, 0, 0) == 0
os.execvp(sys.argv[3], sys.argv[3:])
"""


def refusing(number: int, error: int = errno.ENOSYS) -> list[str]:
    """Return what to put in front of a command line so that a system call always fails."""
    return [sys.executable, "-c", LAUNCHER, str(number), str(error)]
