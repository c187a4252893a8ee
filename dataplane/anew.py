# SPDX-License-Identifier: Apache-2.0
"""A process that begins anew, as what is installed by now: same command line, same pid, same descriptors."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping


def own_command() -> list[str]:
    """Return the command line by which this process was started."""
    return [sys.executable, *sys.orig_argv[1:]]


def begin(environ: Mapping[str, str]) -> OSError:
    """Begin anew with an environment; returns only if that cannot be, why."""
    command = own_command()
    try:
        os.execve(command[0], command, environ)
    except OSError as err:
        return err
