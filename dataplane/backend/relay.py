# SPDX-License-Identifier: Apache-2.0
"""The planned hand-over: another forwarder carries in place of one that works, and no packet is lost.

The old one parks its workers, so none is in flight; what arrives waits in the queues, which both share. The
successor goes, with the same descriptors. If it does not, the old one resumes. Whatever happens to whom in
between, one of the two carries: the one whose turn it is (csrc/dp.h).

The steps between parking and the first round are in one thread, which they block: packets wait for them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from dataplane.backend.kit import Kit
from dataplane.backend.reserve import Reserve
from dataplane.control import ForwarderClient, StaleEpoch
from dataplane.errors import ControlError, RuntimeFailure
from dataplane.journal import Journal
from dataplane.native import Counters, ForwarderConfig, State
from dataplane.slots import Fd

log = Journal("backend")

HEIR_MIN_S, HEIR_MAX_S = 1.0, 30.0  # between looks for a successor
FAILED_S = 60.0  # after one that failed
RETIRE_S = 5.0  # of the one before; the rest is done behind our backs
RUN_S = 1.0  # from GO to the first round of a worker: milliseconds, unless something is wrong
LOOK_S = 0.0005
TAKE_BACK_TRIES = 3


def name(client: ForwarderClient) -> str:
    """Return what people should read of the forwarder's version and build."""
    said = client.said
    return f"{said.version or 'unknown'} build {f'{said.build:016x}' if said.build else 'unknown'}"


def hand_over(
    old: ForwarderClient, successor: ForwarderClient, config: ForwarderConfig, fds: Mapping[int, int]
) -> float:
    """Let the successor carry; return for how long packets waited, in seconds.

    ControlError if it does not: then the old one carries on, or is lost, too, and its connection closed.
    """
    with Counters(fds[Fd.COUNTERS]) as counters:
        successor.hello()  # one that hangs is found out while packets flow
        begun_s = time.monotonic()
        old.quiesce()
        try:
            successor.sock.settimeout(RUN_S)
            rounds = counters.totals().heartbeat
            successor.go(config, fds, counters.header().turn)
            _wait_for_round(successor, counters, rounds)
        except ControlError as err:
            try:
                _take_back(old, counters, err)
            finally:
                successor.close()  # afterwards: if it went, it ends now that its turn is over
            raise
        paused_s = time.monotonic() - begun_s
        with suppress(ControlError):
            old.stop()  # while parked: one with other counters than these does not see whose turn it is
        successor.sock.settimeout(old.timeout_s)
    return paused_s


def _wait_for_round(successor: ForwarderClient, counters: Counters, rounds: int) -> None:
    """Return when a worker has looked for packets; they do so at once."""
    deadline_s = time.monotonic() + RUN_S
    while counters.totals().heartbeat == rounds:
        if time.monotonic() > deadline_s:
            raise ControlError(f"forwarder (pid {successor.pid}) goes, but its workers do not")
        time.sleep(LOOK_S)
    if (state := successor.hello().state) != State.RUNNING:
        raise ControlError(f"forwarder (pid {successor.pid}) is {state.name.lower()} after GO")


def _take_back(old: ForwarderClient, counters: Counters, why: ControlError) -> None:
    """Let the old one carry again; the successor may be about to take the turn yet, but only once."""
    for _ in range(TAKE_BACK_TRIES):
        try:
            old.resume(counters.header().turn)
        except StaleEpoch:
            raise
        except ControlError as err:
            if not old.is_open:
                raise ControlError(f"{why}; and then: {err}") from None
        else:
            return
    old.close()
    raise ControlError(f"{why}; and the one before does not resume")


@dataclass(frozen=True, slots=True)
class Levers:
    """What the keeper of the forwarder in use lets be done to it."""

    request: Callable[[Callable[[ForwarderClient], None]], Awaitable[None]]  # with the lock held, as all
    change_to: Callable[[ForwarderClient, ForwarderConfig], None]
    settle: Callable[[], Awaitable[None]]  # the names in the run directory
    lose: Callable[[], None]
    on_fatal: Callable[[RuntimeFailure], None]


class Relay:
    """Sees to it that a forwarder of another build hands over to one of ours, sooner or later."""

    def __init__(self, kit: Kit, reserve: Reserve, lock: asyncio.Lock, levers: Levers) -> None:
        """Do nothing before run()."""
        self._kit = kit
        self._reserve = reserve
        self._lock = lock
        self._levers = levers
        self._retry: asyncio.Task[None] | None = None
        self._retiring: asyncio.Task[None] | None = None
        self.told: dict[str, object] | None = None  # how the last hand-over went

    def warnings(self, client: ForwarderClient | None) -> list[str]:
        """Say that the forwarder in use is of another build, and why it still is."""
        if client is None or client.is_of_our_build or self.told is None:
            return []
        return [f"the forwarder is of another build, {name(client)}: {self.told['error']}"]

    async def run(self, client: ForwarderClient) -> None:
        """Have this forwarder replaced, if it is to be; now, or as soon as that can be. Holding the lock."""
        if client.is_of_our_build or (self._retry is not None and not self._retry.done()):
            return
        if pause_s := await self._try(client):
            self._retry = asyncio.create_task(self._try_again(client, pause_s))

    def close(self) -> None:
        """Try no more."""
        for task in (self._retry, self._retiring):
            if task is not None:
                task.cancel()

    async def _try_again(self, client: ForwarderClient, pause_s: float) -> None:
        while pause_s:
            await asyncio.sleep(pause_s)
            try:
                async with self._lock:
                    again_s = await self._try(client) if client.is_open else 0.0
            except StaleEpoch as err:
                self._levers.on_fatal(err)
                return
            pause_s = max(again_s, min(2 * pause_s, HEIR_MAX_S)) if again_s else 0.0

    async def _try(self, old: ForwarderClient) -> float:
        """Let a forwarder of our build carry instead; return in how many seconds to try again, 0: never."""
        config = self._kit.config
        if config is None or not self._kit.is_whole:
            return 0.0
        told: dict[str, object] = {"from": name(old), "to": None, "paused_ms": None, "error": None}
        former, self.told = (self.told or {}).get("error"), told
        spare, pause_s = None, HEIR_MIN_S
        try:
            spare = await self._reserve.take_ours()
            told["to"], pause_s = name(spare.client), FAILED_S
            told["paused_ms"] = await self._hand_over(spare.client, config)
        except StaleEpoch:
            raise
        except RuntimeFailure as err:
            told["error"] = str(err)
            if told["error"] != former:
                log.error("forwarder of another build stays", error=err, retry_in_s=pause_s)
            if spare is not None:
                await asyncio.to_thread(spare.grip.end)
                spare.close()
            if not old.is_open:
                self._levers.lose()
            return pause_s
        spare.grip.close()
        log.info("forwarder handed over", **told)
        self._retiring = asyncio.create_task(self._retire(old.pid))
        await asyncio.wait({self._retiring}, timeout=RETIRE_S)
        return 0.0

    async def _hand_over(self, successor: ForwarderClient, config: ForwarderConfig) -> float:
        """Do it; return for how long packets waited, in ms."""
        fds, paused_s = self._kit.fds, 0.0

        def begin(old: ForwarderClient) -> None:
            nonlocal paused_s
            paused_s = hand_over(old, successor, config, fds)

        await self._levers.request(begin)
        self._levers.change_to(successor, config)
        return round(paused_s * 1000, 1)

    async def _retire(self, pid: int) -> None:
        """See that the one before ends, and the one in use has its name."""
        await self._levers.settle()
        await self._reserve.bury(pid)
