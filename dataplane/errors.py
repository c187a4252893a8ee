# SPDX-License-Identifier: Apache-2.0
"""The exception tree.

OverlaydError                 every error overlayd raises on purpose; str() is one line for people
├── ConfigError               the user's input is wrong; says what is allowed        exit 2
└── RuntimeFailure            the input is fine, the world is not; says what to do   exit 1
    ├── StoreError            the lease store cannot be read or says nonsense
    ├── KernelError           a system call failed; has .errno
    ├── ControlError          the other process refused, or does not answer
    └── NotRunning            nothing to talk to                                     exit 3
"""

from __future__ import annotations

import os


def one_line(text: str) -> str:
    """Return a text that anybody may have written as one printable line: safe for a log and a terminal."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


class OverlaydError(Exception):
    """Base of all deliberate errors; its text is one line that says what to do."""

    exit_code = 1


class ConfigError(OverlaydError):
    """A flag, variable, file or field the user wrote is wrong."""

    exit_code = 2


class RuntimeFailure(OverlaydError):
    """Correct input that could not be carried out."""


class StoreError(RuntimeFailure):
    """The lease store cannot be used, or refuses what it holds."""


class KernelError(RuntimeFailure):
    """A system call failed."""

    def __init__(self, what: str, errno: int) -> None:
        """Tell `what` was tried and why the kernel refused (`errno`, positive)."""
        super().__init__(f"{what}: {os.strerror(errno)}")
        self.errno = errno


class ControlError(RuntimeFailure):
    """The other process of the pair refused a request or broke the protocol."""


class NotRunning(RuntimeFailure):
    """No overlayd answers in this run directory."""

    exit_code = 3
