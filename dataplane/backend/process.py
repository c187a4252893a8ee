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
from pathlib import Path

import dataplane
from dataplane.control import ForwarderClient
from dataplane.errors import NotRunning, RuntimeFailure
from dataplane.journal import Journal
from dataplane.rundir import RunDir, failure

log = Journal("backend")

START_TIMEOUT_S = 10.0
RETRY_S = 0.01
RETRY_MAX_S = 0.5


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
        with run_dir.forwarder_log.open("wb") as log:
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


def reap(process: subprocess.Popen[bytes] | None) -> None:
    """Take note of the end of a forwarder that we started, if it has ended."""
    if process is not None and process.poll() == -signal.SIGSYS:
        log.error("forwarder was killed for a system call that it may not make", pid=process.pid)


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
    return lines[-1] if lines else "it said nothing"


async def wait_listening(
    run_dir: RunDir, epoch: int, process: subprocess.Popen[bytes] | None
) -> ForwarderClient:
    """Connect to the forwarder as soon as it listens.

    With a process that we started: raises when it ends, or takes too long. Without: waits for somebody
    else's for as long as it takes.
    """
    deadline_s = time.monotonic() + START_TIMEOUT_S
    retry_s = RETRY_S
    while True:
        try:
            return ForwarderClient(run_dir.forwarder_socket, epoch)
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
            retry_s = min(2 * retry_s, RETRY_MAX_S)


async def end_forwarder(run_dir: RunDir, epoch: int) -> bool:
    """End the forwarder that an earlier datapath left here, if it did: the kernel carries the packets now."""
    try:
        client = ForwarderClient(run_dir.forwarder_socket, epoch)
    except NotRunning:
        return False
    loop = asyncio.get_running_loop()
    try:
        await loop.run_in_executor(None, client.hello)
        await loop.run_in_executor(None, client.stop)
        log.info("forwarder ended: the kernel carries the packets now")
    finally:
        client.close()
    return True
