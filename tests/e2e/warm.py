# SPDX-License-Identifier: Apache-2.0
"""Starts many `overlayd` quickly: one process that has imported everything forks for each.

What runs in a child is the command itself, in its namespace, with its own log. Only the interpreter's start
and the imports, 0.3 s of processor time each, are shared.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.e2e.rig import ROOT

_SERVER = """
import ctypes, json, os, signal, sys
import dataplane.cli, dataplane.daemon
from dataplane.cli import main

libc = ctypes.CDLL(None, use_errno=True)
signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def become(order):
    with open(f"/run/netns/{order['namespace']}", "rb") as space:
        if libc.setns(space.fileno(), 0x40000000):
            raise OSError(ctypes.get_errno(), "setns")
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    return main(order["words"])


for line in sys.stdin:
    order = json.loads(line)
    if "reap" in order:
        pid, status = os.waitpid(order["reap"], order["flags"])
        print(json.dumps([pid, status]), flush=True)
        continue
    pid = os.fork()
    if not pid:
        code = 70
        try:
            code = become(order)
        finally:
            sys.stderr.flush()
            os._exit(code)
    print(json.dumps(pid), flush=True)
"""


class Warm:
    """The process that forks; close() ends it, after its children."""

    def __init__(self) -> None:
        """Start it."""
        command = [sys.executable, "-c", _SERVER]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )

    def _ask(self, order: dict[str, object]) -> object:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(order), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def start(self, namespace: str, words: list[str], log: Path) -> int:
        """Run an `overlayd` command in a namespace; return its process ID."""
        pid = self._ask({"namespace": namespace, "words": words, "log": str(log)})
        assert isinstance(pid, int)
        return pid

    def poll(self, pid: int) -> int | None:
        """Return the wait status of a child that has ended; it is gone then."""
        found = self._ask({"reap": pid, "flags": os.WNOHANG})
        assert isinstance(found, list)
        return int(found[1]) if found[0] else None

    def kill(self, pid: int) -> None:
        """End a child that has not ended, at once."""
        os.kill(pid, signal.SIGKILL)
        self._ask({"reap": pid, "flags": 0})

    def close(self) -> None:
        """End the process; it has no children any more."""
        self._process.communicate()
