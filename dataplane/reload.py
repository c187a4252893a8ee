# SPDX-License-Identifier: Apache-2.0
"""What SIGHUP does: everything that is read from outside is read again, and nothing is lost meanwhile.

    the store       its TLS files or the peers file; then its leases, from a whole list
    the host        interfaces, addresses, routes, and with them which interface faces the other nodes
    log.json        what is logged

Flags and variables cannot change while we run. All is looked at before any of it counts: if something is
wrong, the log says what, and everything stays as it was.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from dataplane.errors import OverlaydError
from dataplane.health import Health
from dataplane.journal import Journal
from dataplane.logsetting import LogSetting
from dataplane.store import Store

LIST_S = 30.0  # for the store to be listed anew

log = Journal("reload")


class Reload:
    """Waits for being asked to reload, and does it; several askings at once count as one."""

    def __init__(self, store: Store, setting: LogSetting, health: Health) -> None:
        """Wait for nothing yet."""
        self._store = store
        self._setting = setting
        self._health = health
        self._asked = asyncio.Event()
        self._again = asyncio.Event()
        self._in_force = asyncio.Event()

    def ask(self) -> None:
        """Reload, as soon as the last one is over."""
        self._asked.set()

    def note_list(self) -> None:
        """Take that a whole list of the store is in force."""
        self._in_force.set()

    async def run(self, look_at_host: Callable[[], None]) -> None:
        """Reload whenever asked, for ever."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            self._health.reloading()
            try:
                setting = self._setting.read()
                await self._store.reopen()
            except OverlaydError as err:
                log.error("not reloaded: everything stays as it was", error=err)
            else:
                self._setting.apply(setting)
                self._in_force.clear()
                self._again.set()
                look_at_host()
                await self._wait_listed()
            self._health.reloaded()

    async def list_anew(self) -> None:
        """Have the store listed once more; raises, with all as before, if it cannot be had."""
        await self._store.reopen()
        self._again.set()

    async def _wait_listed(self) -> None:
        try:
            async with asyncio.timeout(LIST_S):
                await self._in_force.wait()
            log.info("reloaded")
        except TimeoutError:
            log.error("reloaded, but the store is not listed yet", after_s=LIST_S)

    async def follow(self, follow: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do `follow`, and do it from its beginning after each reload."""
        while True:
            self._again.clear()
            tasks = [asyncio.create_task(follow()), asyncio.create_task(self._wait_again())]
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            for task in done:
                task.result()

    async def _wait_again(self) -> None:
        await self._again.wait()
