# SPDX-License-Identifier: Apache-2.0
"""Starting a forwarder process and waiting until it listens."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import dataplane
from dataplane.control import ForwarderClient, stop_forwarders
from dataplane.errors import NotRunning, RuntimeFailure
from dataplane.journal import Journal
from dataplane.rundir import RunDir, failure

log = Journal("backend")

START_TIMEOUT_S = 10.0
RETRY_S = 0.01
RETRY_MAX_S = 0.5
REAP_S = 1.0
SPARE_RETRY_MAX_S = 2.0  # nobody waits for it
LOG_MAX = 1 << 20  # bytes of what forwarders said, before it is begun anew
BEGIN = "-- another forwarder --"  # above what that says


def _command(run_dir: Path) -> list[str]:
    command = [sys.executable, "-P", "-m", "dataplane", "forwarder", "--run-dir", os.fspath(run_dir)]
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        return command
    # The forwarder drops everything as its first act; this way not even its interpreter has it.
    return [setpriv, "--no-new-privs", "--inh-caps=-all", "--ambient-caps=-all", *command]


def _environment() -> dict[str, str]:
    # Nothing of ours: secrets of control are none of the forwarder's business.
    package_parent = Path(dataplane.__file__).resolve().parent.parent
    return {"PATH": os.environ.get("PATH", os.defpath), "PYTHONPATH": os.fspath(package_parent)}


def spawn(run_dir: RunDir) -> subprocess.Popen[bytes]:
    """Start a forwarder that outlives us: its own session, no privileges, its output in a file."""
    try:
        # Several may write there: one that is in use, and one that waits.
        with run_dir.forwarder_log.open("ab") as log:
            with suppress(OSError):  # a full disk keeps no forwarder from starting
                if log.tell() > LOG_MAX:
                    log.truncate(0)
                os.write(log.fileno(), f"{BEGIN}\n".encode())
            return subprocess.Popen(
                _command(run_dir.path),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=_environment(),
                start_new_session=True,
            )
    except OSError as err:
        raise failure("start a forwarder with", Path(sys.executable), err) from None


class Children:
    """The forwarders that we started; which one is in use, and which one waits, is none of their business."""

    def __init__(self) -> None:
        """There is none yet."""
        self._processes: list[subprocess.Popen[bytes]] = []

    def spawn(self, run_dir: RunDir) -> subprocess.Popen[bytes]:
        """Start another one."""
        self.reap()
        process = spawn(run_dir)
        self._processes.append(process)
        return process

    def reap(self) -> None:
        """Take note of those that have ended."""
        for process in self._processes:
            if process.poll() == -signal.SIGSYS:
                log.error("forwarder was killed for a system call that it may not make", pid=process.pid)
        self._processes = [process for process in self._processes if process.returncode is None]

    def wait(self, pid: int) -> None:
        """Wait for the end of one that has hung up, if it is ours."""
        for process in self._processes:
            if process.pid == pid:
                process.wait()
        self.reap()

    def kill_one(self, pid: int) -> None:
        """End the one with this pid, if it is ours."""
        for process in self._processes:
            if process.pid == pid:
                process.kill()
        self.wait(pid)

    def kill(self) -> None:
        """End them all."""
        for process in self._processes:
            if process.poll() is None:
                process.kill()
                process.wait()
        self._processes.clear()

    def has(self, pid: int) -> bool:
        """Tell whether one of them has this pid."""
        return any(process.pid == pid for process in self._processes)


def reap(pid: int) -> None:
    """Take note of the end of a forwarder that what this process was before has started, if it did."""
    deadline_s = time.monotonic() + REAP_S
    try:
        while pid > 0 and not os.waitpid(pid, os.WNOHANG)[0] and time.monotonic() < deadline_s:
            time.sleep(RETRY_S)
    except ChildProcessError:
        pass  # somebody else's


def confinement_warnings(client: ForwarderClient | None) -> list[str]:
    """Say that a forwarder could make any system call, if so."""
    if client is None or client.is_confined:
        return []
    return [
        "the forwarder is not confined to its own system calls: it is of an older version (restart it), or "
        "this kernel has no filters (CONFIG_SECCOMP_FILTER)"
    ]


def _last_words(run_dir: RunDir) -> str:
    try:
        lines = run_dir.forwarder_log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    return lines[-1] if lines and lines[-1] != BEGIN else "it said nothing"


async def wait_listening(
    run_dir: RunDir, epoch: int, process: subprocess.Popen[bytes] | None, *, is_spare: bool = False
) -> ForwarderClient:
    """Connect to the forwarder, or to the spare, as soon as it listens.

    With a process that we started: raises when it ends, or takes too long. Without: waits for somebody
    else's for as long as it takes.
    """
    path = run_dir.spare_socket if is_spare else run_dir.forwarder_socket
    retry_max_s = SPARE_RETRY_MAX_S if is_spare else RETRY_MAX_S
    deadline_s = time.monotonic() + START_TIMEOUT_S
    retry_s = RETRY_S
    while True:
        try:
            return ForwarderClient(path, epoch)
        except NotRunning:
            pass
        if process is not None and process.poll() is not None:
            raise RuntimeFailure(f"forwarder ended at once: {_last_words(run_dir)}")
        if process is not None and time.monotonic() > deadline_s:
            process.kill()
            process.wait()
            raise RuntimeFailure(f"forwarder did not listen within {START_TIMEOUT_S:g} s")
        await asyncio.sleep(retry_s)
        if process is None:
            retry_s = min(2 * retry_s, retry_max_s)


async def end_forwarders(run_dir: RunDir, epoch: int) -> bool:
    """End those that an earlier datapath left here, if it did: the kernel carries the packets now."""
    has_ended = await asyncio.to_thread(stop_forwarders, run_dir, epoch)
    if has_ended:
        log.info("forwarder ended: the kernel carries the packets now")
    return has_ended
