# SPDX-License-Identifier: Apache-2.0
"""What withdrawal.py wants done: tells of peers that are held, and has the store listed a second time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable

from dataplane.config import RunConfig
from dataplane.errors import OverlaydError
from dataplane.journal import Journal
from dataplane.model import Event
from dataplane.withdrawal import Before, InForce, Limits, Withdrawal

AGAIN_S = 5.0  # until a list is asked for that did not come

log = Journal("holding")


class Holding:
    """The withdrawal of one daemon; report and worker ask it, `run` does what takes time."""

    def __init__(self, config: RunConfig) -> None:
        """Hold nothing."""
        self._limits = Limits(
            config.withdrawal_share / 100,
            config.withdrawal_count,
            config.withdrawal_window_s,
            config.withdrawal_hold_s,
        )
        self._withdrawal = Withdrawal(self._limits)
        self._has_some = asyncio.Event()

    def begin(self, before: Before | None) -> None:
        """Compare the first list with the peers of the last run."""
        self._withdrawal = Withdrawal(self._limits, before)

    def admit(self, events: Iterable[Event], peers: InForce) -> list[Event]:
        """Let events through, with what is held put back."""
        before = self._withdrawal.count()
        passed = self._withdrawal.admit(events, peers, time.monotonic())
        now = self._withdrawal.count()
        if now > before:
            log.warning("too many peers left the store at once: they are held", held=now)
        elif now < before:
            log.info("held peers are released", released=before - now, held=now)
        if now:
            self._has_some.set()
        else:
            self._has_some.clear()
        return passed

    async def run(self, list_anew: Callable[[], Awaitable[None]]) -> None:
        """Have the store listed whenever that may release something, for ever."""
        while True:
            await self._has_some.wait()
            wait_s = self._withdrawal.wait_s(time.monotonic())
            if wait_s is None or wait_s > 0:
                await asyncio.sleep(wait_s or 0)
                continue
            try:
                await list_anew()
            except OverlaydError as err:
                log.debug("the store is not listed", error=err)
            await asyncio.sleep(AGAIN_S)

    def drop(self) -> int:
        """Let all that is held go with the next events; return how many."""
        return self._withdrawal.drop()

    def held_for_s(self, name: str) -> float | None:
        """Return for how long a lease has been held; None if it is not."""
        held_s = self._withdrawal.held_for_s(name, time.monotonic())
        return None if held_s is None else round(held_s, 3)

    def warnings(self) -> list[str]:
        """Say that peers are held, and what to do."""
        count = self._withdrawal.count()
        if not count:
            return []
        return [
            f"{count} peers left the store at once and are held until it says so again; "
            "see overlayd peers, overlayd peers --drop-held"
        ]
