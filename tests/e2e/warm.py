# SPDX-License-Identifier: Apache-2.0
"""Starts `overlayd` quickly: one process that has imported everything forks for each, in its namespace.

What runs in a child is the command itself, as `ip netns exec` would have started it. Only the start of the
interpreter and the imports, half a second of processor time each, are shared.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from bench.lab import NETNS, OVERLAYD, ROOT, Namespace
from dataplane import memory

CLONE_NEWNS, CLONE_NEWNET = 0x00020000, 0x40000000
MS_REC, MS_SLAVE, MNT_DETACH = 0x4000, 0x80000, 2
APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND

Order = dict[str, Any]  # words, code or None, environment, out, err


# --- the process that forks -------------------------------------------------------------------------


def _succeed(result: int, what: str) -> None:
    if result:
        raise OSError(ctypes.get_errno(), what)


def _enter(namespace: str) -> None:
    """Be in a network namespace, with a /sys that shows its devices."""
    libc = ctypes.CDLL(None, use_errno=True)
    with (NETNS / namespace).open("rb") as space:
        _succeed(libc.setns(space.fileno(), CLONE_NEWNET), "setns")
    _succeed(libc.unshare(CLONE_NEWNS), "unshare")
    _succeed(libc.mount(b"", b"/", b"none", ctypes.c_ulong(MS_SLAVE | MS_REC), None), "mount /")
    libc.umount2(b"/sys", MNT_DETACH)
    _succeed(libc.mount(namespace.encode(), b"/sys", b"sysfs", ctypes.c_ulong(0), None), "mount /sys")


def _execute(code: str, arguments: Sequence[str]) -> int:
    sys.argv = ["-c", *arguments]
    warnings.simplefilter("error")
    exec(code, {"__name__": "__main__"})  # as `python -W error -c` does
    gc.collect()  # what was not closed is told
    return 0


def _become(order: dict[str, Any]) -> int:
    from dataplane.cli import main

    for descriptor, name in ((1, order["out"]), (2, order["err"])):
        opened = os.open(name, APPEND, 0o644)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(order["environment"])
    _enter(order["namespace"])
    try:
        return main(order["words"]) if order["code"] is None else _execute(order["code"], order["words"])
    except SystemExit as done:
        return int(done.code or 0)


def _fork(order: dict[str, Any]) -> int:
    if pid := os.fork():
        return pid
    code = 70
    try:
        code = _become(order)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def serve() -> None:
    """Fork and reap as the lines on standard input say, until they end."""
    import dataplane.cli
    import dataplane.daemon
    import dataplane.store.etcd  # noqa: F401

    gc.freeze()
    for line in sys.stdin:
        order = json.loads(line)
        answer = _fork(order) if "words" in order else os.waitpid(order["reap"], os.WNOHANG)
        print(json.dumps(answer), flush=True)


# --- who asks it ------------------------------------------------------------------------------------


class Forked:
    """A command that runs; to be used like a subprocess.Popen."""

    def __init__(self, warm: Warm, pid: int) -> None:
        """Belong to the process that forked it."""
        self._warm = warm
        self._descriptor: int | None = os.pidfd_open(pid)
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit status, a negative signal, or None while it runs."""
        if self._descriptor is not None and select.select([self._descriptor], [], [], 0)[0]:
            self.returncode = self._warm.reap(self.pid)
            os.close(self._descriptor)
            self._descriptor = None
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status once it has ended."""
        if self._descriptor is not None:
            select.select([self._descriptor], [], [], timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(f"overlayd, pid {self.pid}", timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)


class Warm:
    """The process that forks; close() ends it."""

    def __init__(self) -> None:
        """Start it."""
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.warm"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, memory.TUNABLES: memory.ONE_HEAP},  # as `overlayd run` gives itself
        )

    def _ask(self, **order: object) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            print(json.dumps(order), file=self._process.stdin, flush=True)
            return json.loads(self._process.stdout.readline())

    def start(self, namespace: str, order: Order) -> Forked:
        """Run an `overlayd` command, or code, in a namespace; what it says is appended to the files."""
        return Forked(self, self._ask(namespace=namespace, **order))

    def reap(self, pid: int) -> int:
        """Return how a child that has ended did so; it is gone then."""
        _, status = self._ask(reap=pid)
        return os.waitstatus_to_exitcode(status)

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def order(words: Sequence[str], out: Path, err: Path) -> Order:
    """Return what to do: these words of overlayd, and where what it says goes."""
    files = {"out": os.fspath(out), "err": os.fspath(err)}
    return {"words": list(words), "code": None, "environment": {}, **files}


@cache
def shared() -> Warm:
    """Return the one of this test process."""
    warm = Warm()
    atexit.register(warm.close)
    return warm


def is_overlayd(namespace: Namespace, command: Sequence[str]) -> bool:
    """Tell whether a command line is overlayd's in a namespace, with nothing around it."""
    if type(namespace) is not Namespace:  # one of another kind, entered in another way
        return False
    start = namespace.command(*OVERLAYD)
    return list(command[: len(start)]) == start


def words_of(namespace: Namespace, command: Sequence[str]) -> list[str]:
    """Return what follows `overlayd` in a command line that is its."""
    return list(command[len(namespace.command(*OVERLAYD)) :])


def start(
    namespace: Namespace, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> Forked | subprocess.Popen[bytes]:
    """Run a command line, forked if it is overlayd's in our environment; the log gets what it says."""
    if environment is None and is_overlayd(namespace, command):
        log.touch()  # whoever reads it at once finds nothing, as of any other process
        return shared().start(namespace.name, order(words_of(namespace, command), log, log))
    with log.open("ab") as out:
        return subprocess.Popen(command, stdout=out, stderr=out, cwd=ROOT, env=environment)


def run(
    namespace: Namespace,
    command: Sequence[str],
    timeout_s: float,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command line to its end, forked if it is overlayd's; return what it said."""
    if is_overlayd(namespace, command):
        more = {"environment": dict(environment or {})}
        return _finish(namespace, words_of(namespace, command), timeout_s, more)
    env = {**os.environ, **(environment or {})}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout_s)


def python(namespace: Namespace, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `python -W error -c CODE` to its end, forked; return what it said."""
    return _finish(namespace, arguments, 30.0, {"code": code})


def _finish(
    namespace: Namespace, words: Sequence[str], timeout_s: float, more: Order
) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory() as directory:
        out, err = Path(directory, "out"), Path(directory, "err")
        process = shared().start(namespace.name, {**order(words, out, err), **more})
        try:
            process.wait(timeout_s)
        finally:
            process.kill()
        said = [path.read_text(encoding="utf-8") for path in (out, err)]
        return subprocess.CompletedProcess(list(words), process.wait(), *said)


if __name__ == "__main__":
    serve()
