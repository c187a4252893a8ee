# SPDX-License-Identifier: Apache-2.0
"""Runs pytest in children of a process that has already imported what takes long and is never mutated.

Each line that comes in is JSON: the arguments of pytest, and the file its output goes to. What goes out is a
line with the child's pid, which is also its process group, and one with its exit status.
"""

from __future__ import annotations

import json
import os
import sys

import hypothesis  # noqa: F401
import pyroute2  # noqa: F401
import pytest
import scapy.layers.inet
import scapy.layers.inet6
import scapy.layers.vxlan  # noqa: F401

# pytest would have liked to see hypothesis first.
ALWAYS = ["-q", "--no-header", "--tb=line", "-p", "no:cacheprovider", "-p", "no:benchmark"]
ALWAYS += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]


def run_child(args: list[str], out: str) -> int:
    """Be the child: run pytest, and return its exit status."""
    os.setsid()
    fd = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    status = int(pytest.main([*ALWAYS, *args]))
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def main() -> None:
    """Serve until nobody asks any more."""
    for line in sys.stdin:
        args, out = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os._exit(run_child(args, out))
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
