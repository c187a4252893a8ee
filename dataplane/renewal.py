# SPDX-License-Identifier: Apache-2.0
"""How one control follows another on a run directory, while packets flow.

In its place      `overlayd upgrade`: a control that finds that what is installed by now starts at all lets
                  go of everything and becomes it, by exec. It stays the same process, so whoever supervises
                  it sees no end. What it has beyond an exec: its own command line, its environment, the
                  capabilities that its children have, and the program that steers flows to queues.
From elsewhere    `overlayd run --replace`: the other control is asked to let go, and ends; or stands by, if
                  it was started with that flag, too. Whoever stands by takes over when nobody else is
                  control any more. So two that are restarted by supervisors do not throw each other out
                  again and again.

Forwarder, TUN, addresses and routes stay where they are in any case.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from pathlib import Path
from types import FrameType

from dataplane import VERSION, anew
from dataplane.config import RunConfig
from dataplane.control import Reply, Request, ask
from dataplane.errors import ControlError, NotRunning, RuntimeFailure
from dataplane.journal import Journal
from dataplane.native import lib
from dataplane.rundir import Lock, RunDir

log = Journal("renewal")

REQUESTS = ("replace", "upgrade")
CHECK_TIMEOUT_S = 20.0
LEAVE_TIMEOUT_S = 10.0
RETRY_S = 0.01
ASK_AGAIN_S = 0.5  # one that is just starting answers nobody yet
STAND_BY_S = 2.0  # before the first look: who asked us to let go is to come first
LOOK_S = 0.5
PRIVILEGED_PORTS = 1024
STEERING = "STEERING_OF_OVERLAYD_FD"  # from one image of a process to the next, never told by anybody else


class Leave(Enum):
    """Why a control ends."""

    END = "it was told to end"
    STAND_BY = "another one takes over"
    BECOME = "it becomes what is installed"


class Renewal:
    """What a running control does when another one is to follow it."""

    def __init__(self, config: RunConfig, stop: Callable[[], None]) -> None:
        """`stop` ends the control; `leave` says why."""
        self._config = config
        self._stop = stop
        self.leave = Leave.END

    async def answer(self, request: Request) -> Reply:
        """Let go as one of REQUESTS asks for, or raise RuntimeFailure that says why not."""
        found: Reply = {}
        if request == {"cmd": "upgrade"}:
            found = {"version": await check_installed(self._config)}
            self.leave = Leave.BECOME
        elif request == {"cmd": "replace"}:
            self.leave = Leave.STAND_BY if self._config.replace else Leave.END
        else:
            return {"error": f'nothing else may stand beside "cmd": {" or ".join(REQUESTS)}'}
        log.info("letting go", because=self.leave.value, **found)
        self._stop()
        return {"pid": os.getpid(), **found}


# --- in its place -----------------------------------------------------------------------------------------


async def check_installed(config: RunConfig) -> str:
    """Return the version of what is installed, or raise RuntimeFailure if it would not start as we did."""
    for flag, port in (("--healthz-port", config.healthz_port), ("--metrics-port", config.metrics_port)):
        if 0 < port < PRIVILEGED_PORTS:
            raise RuntimeFailure(
                f"{flag} {port} needs a capability that exec does not keep: restart it instead"
            )
    try:
        process = await asyncio.create_subprocess_exec(
            *anew.own_command(),
            "--version",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
    except OSError as err:
        raise RuntimeFailure(f"what is installed does not start: {err.strerror}") from None
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            _, said = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise RuntimeFailure(f"what is installed does not start within {CHECK_TIMEOUT_S:g} s") from None
    lines = said.decode(errors="replace").strip().splitlines()
    last = lines[-1] if lines else "it said nothing"
    found = re.fullmatch(r"overlayd (\S+)", last)
    if process.returncode or found is None:
        raise RuntimeFailure(f"what is installed does not start: {last.removeprefix('overlayd: ')}")
    return found[1]


def become_installed() -> None:
    """Become what is installed; returns if that cannot be."""
    environ, steering = dict(os.environ), int(lib.dp_tun_steering())
    if steering >= 0:
        os.set_inheritable(steering, True)
        environ[STEERING] = str(steering)
    err = anew.begin(environ)
    log.error("cannot become what is installed", command=anew.own_command()[0], error=err.strerror)
    if steering >= 0:
        os.set_inheritable(steering, False)


def take_steering() -> None:
    """Take over the program that steers flows from what this process was before, if it left one."""
    text = os.environ.pop(STEERING, "")
    if text.isascii() and text.isdigit():
        with suppress(OSError):
            if "bpf-prog" in os.fspath(Path(f"/proc/self/fd/{text}").readlink()):
                os.set_inheritable(int(text), False)
                lib.dp_tun_adopt_steering(int(text))


# --- from elsewhere ---------------------------------------------------------------------------------------


def _ask_to_leave(run_dir: Path, request: str) -> bool:
    """Tell whether a control was there, and said that it lets go."""
    try:
        # Asked and not killed: its pid means nothing here if it lives in another container.
        ask(run_dir, {"cmd": request})
    except NotRunning:
        return False
    except ControlError as err:
        if request != "stop" and 'allowed as "cmd"' in str(err):  # of an older version
            return _ask_to_leave(run_dir, "stop")
        raise RuntimeFailure(f"{err}. Kill it, then try again") from None
    return True


def follow(run_dir: RunDir, request: str = "replace") -> Lock:
    """Have the control of a run directory let go, if there is one, and become its owner instead."""
    deadline_s, ask_s = time.monotonic() + LEAVE_TIMEOUT_S, 0.0
    while True:
        now = time.monotonic()
        if now >= ask_s and _ask_to_leave(run_dir.path, request):
            ask_s = deadline_s  # once is enough
        elif now >= ask_s:
            ask_s = now + ASK_AGAIN_S
        try:
            return run_dir.lock()
        except RuntimeFailure:
            if now > deadline_s:
                raise
        time.sleep(RETRY_S)


def _end_quietly(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)


def stand_by(run_dir: RunDir) -> Lock | None:
    """Wait until nobody is control any more and become it; None if `overlayd down` took everything away."""
    log.info("standing by: another overlayd run has taken over", version=VERSION)
    former = signal.signal(signal.SIGTERM, _end_quietly)
    time.sleep(STAND_BY_S)
    while (run_dir.path / "lock").exists():
        try:
            lock = run_dir.lock()
        except RuntimeFailure:
            time.sleep(LOOK_S)
            continue
        signal.signal(signal.SIGTERM, former)
        log.info("taking over again")
        return lock
    return None
