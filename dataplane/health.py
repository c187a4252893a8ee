# SPDX-License-Identifier: Apache-2.0
"""Tells others how this node is: probes by HTTP, collectors of metrics, and the service manager.

/healthz    200 as long as we live and get on, else 503: flannel's
/readyz     200, or 503 that says which part is not ready and why: flannel's, with more to say
/metrics    only at the metrics address, which is not that of the probes unless somebody says so
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from http import HTTPStatus

from dataplane import step
from dataplane.config import RunConfig
from dataplane.model import Address
from dataplane.notify import Notifier
from dataplane.progress import HUNG_S
from dataplane.report import Report
from dataplane.web import JSON, Page, Server

FRESH_S = 1.0  # how old a page of metrics may be: so many scrapes cost no more than one a second
LOOK_S = 1.0  # how late the service manager hears of what nobody tells us
HEALTHY = Page(b"overlayd is running\n")


def _write_page(status: dict[str, object]) -> Page:
    from dataplane import metrics

    return Page(metrics.render(status), metrics.KIND)


def places(config: RunConfig) -> dict[tuple[Address, int], tuple[str, ...]]:
    """Return what is served where."""
    found: dict[tuple[Address, int], tuple[str, ...]] = {}
    if config.healthz_port:
        found[config.healthz_ip, config.healthz_port] = ("/healthz", "/readyz")
    if config.metrics_port:
        where = config.metrics_ip, config.metrics_port
        found[where] = (*found.get(where, ()), "/metrics")
    return found


class Health:
    """Serves the pages and speaks to the service manager, for one daemon."""

    def __init__(self, config: RunConfig, report: Report) -> None:
        """Tell nobody anything yet."""
        self._config = config
        self._report = report
        self._notifier = Notifier(os.environ)
        self._servers: list[Server] = []
        self._rendering: asyncio.Task[Page] | None = None
        self._rendered_s = 0.0
        self._was_ready = False

    async def open(self) -> None:
        """Listen where we were told to; RuntimeFailure if that cannot be."""
        pages = {"/healthz": self._healthz, "/readyz": self._readyz, "/metrics": self._metrics}
        for (address, port), paths in places(self._config).items():
            server = Server(address, port, {path: pages[path] for path in paths})
            await server.open()
            self._servers.append(server)

    async def close(self) -> None:
        """Serve no more."""
        for server in self._servers:
            await server.close()
        if self._rendering is not None:
            self._rendering.cancel()

    # --- pages ------------------------------------------------------------------------------------

    def _hung_s(self) -> float | None:
        """Return for how long our work hangs. A start may wait for whatever it needs."""
        limit_s = self._notifier.watchdog_s or HUNG_S
        return self._report.progress.hung_s(time.monotonic(), limit_s) if self._report.is_carrying else None

    async def _healthz(self) -> Page:
        if (hung_s := self._hung_s()) is None:
            return HEALTHY
        text = f"overlayd hangs: a pass has not ended for {hung_s:.0f} s\n"
        return Page(text.encode(), status=HTTPStatus.SERVICE_UNAVAILABLE)

    async def _readyz(self) -> Page:
        ready, reason = self._report.readiness()
        parts = {name: problem or "ok" for name, problem in self._report.parts().items()}
        body = json.dumps({"ready": ready, "reason": reason, "parts": parts}, indent=2) + "\n"
        return Page(body.encode(), JSON, HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE)

    async def _metrics(self) -> Page:
        """Return a page that is made now, or was for somebody else a moment ago."""
        now = time.monotonic()
        if self._rendering is None or (self._rendering.done() and now - self._rendered_s >= FRESH_S):
            self._rendered_s = now
            self._rendering = asyncio.create_task(self._render())
        # Whoever hangs up must not take the page from the others.
        return await asyncio.shield(self._rendering)

    async def _render(self) -> Page:
        status = await self._report.measure()
        # The text takes longer than the figures, and needs nothing that changes meanwhile.
        return await asyncio.to_thread(_write_page, status)

    # --- the service manager ----------------------------------------------------------------------

    def look(self) -> None:
        """Tell the service manager what is different now."""
        if not self._notifier.is_heard:
            return
        ready, reason = self._report.readiness()
        self._notifier.status("ready" if ready else f"not ready: {reason}")
        if ready and not self._was_ready:
            self._was_ready = True
            self._notifier.ready()

    async def run(self) -> None:
        """Keep the service manager informed, for ever: that we get on, too."""
        watchdog_s = self._notifier.watchdog_s
        if not self._notifier.is_heard:
            await asyncio.Future()
        while True:
            if watchdog_s is not None and self._hung_s() is None:
                self._notifier.alive()
            self.look()
            await asyncio.sleep(step.pause_s(LOOK_S if watchdog_s is None else min(LOOK_S, watchdog_s / 2)))

    def reloading(self) -> None:
        """Say that a reload begins."""
        if self._was_ready:
            self._notifier.reloading()

    def reloaded(self) -> None:
        """Say that it is over, well or not."""
        if self._was_ready:
            self._notifier.ready()

    def stopping(self, *, is_coming_back: bool = False) -> None:
        """Say that we end, or that this process will be there again in a moment."""
        if is_coming_back:
            self.reloading()
        else:
            self._notifier.stopping()
