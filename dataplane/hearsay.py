# SPDX-License-Identifier: Apache-2.0
"""Keeps what the underlay says of peers, and lets the table say so: the senders of their packets are told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from dataplane.backend import Backend
from dataplane.icmp import IcmpError
from dataplane.model import Table
from dataplane.softstate import SoftState

LOOK_S = 1.0  # a table is published for this no more often


class Hearsay:
    """What is said of the peers of one node."""

    def __init__(self, backend: Backend, on_change: Callable[[], None]) -> None:
        """Know nothing yet; `on_change` is called when a table would be marked in another way."""
        self._backend = backend
        self._on_change = on_change
        self.state = SoftState()
        self._has_news = asyncio.Event()

    def hear(self, peer_id: int, error: IcmpError) -> None:
        """Take an ICMP error about a packet of ours."""
        self.state.hear(peer_id, error, self._received, time.monotonic())
        if not self.state.is_idle:
            self._has_news.set()

    def mark(self, table: Table) -> Table:
        """Return a table with what is believed of its peers."""
        return self.state.mark(table)

    def _received(self, peer_id: int) -> int:
        counters = self._backend.describe().counters
        return 0 if counters is None else counters.peer(peer_id).rx_packets

    async def run(self) -> None:
        """Look at what was said, once a second as long as there is anything; until cancelled."""
        while True:
            await self._has_news.wait()
            await asyncio.sleep(LOOK_S)
            if self.state.look(self._received, time.monotonic()):
                self._on_change()
            if self.state.is_idle:
                self._has_news.clear()
