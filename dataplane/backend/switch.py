# SPDX-License-Identifier: Apache-2.0
"""Hands everything to the backend that fits the type of the network, which may change in a live one."""

from __future__ import annotations

from collections.abc import Callable

from dataplane.backend import Backend, Place, Settings
from dataplane.backend.kernel import KernelBackend
from dataplane.backend.routes import RoutedUserspace, RoutesBackend
from dataplane.backend.sockets import close_all
from dataplane.errors import RuntimeFailure
from dataplane.figures import Dataplane
from dataplane.journal import Journal
from dataplane.model import BARE_ENCAPS, HostPlan, Peer, Table
from dataplane.netlink import Host

log = Journal("backend")


class Switch:
    """The backend of this node: what encapsulates, unless nothing is to be encapsulated."""

    def __init__(
        self,
        place: Place,
        host: Host,
        on_fatal: Callable[[RuntimeFailure], None],
        on_change: Callable[[], None],
    ) -> None:
        """Begin with the datapath that was told: no network is known yet."""
        self._place = place
        self._host = host
        self._on_fatal = on_fatal
        self._on_change = on_change
        self._backend: Backend = self._make_carrier()

    def _make_carrier(self) -> Backend:
        if self._place.config.datapath == "kernel":
            return KernelBackend(self._place, self._host, self._on_change)
        return RoutedUserspace(self._place, self._host, self._on_fatal, self._on_change)

    async def _fit(self, settings: Settings) -> Backend:
        """Return the backend for a network; the other one is left running until that carries."""
        is_bare = settings.encaps <= BARE_ENCAPS
        if is_bare != isinstance(self._backend, RoutesBackend):
            await self._backend.close()
            if is_bare:
                self._backend = RoutesBackend(self._place, self._host, self._on_change)
            else:
                self._backend = self._make_carrier()
        return self._backend

    async def adopt(self) -> tuple[Peer, ...]:
        """Take over what an earlier control left running, untouched; return the peers in its table."""
        try:
            return await self._backend.adopt()
        finally:
            close_all(self._place.kept)  # whoever holds a queue has to read it

    async def warm(self, settings: Settings, plan: HostPlan) -> None:
        """Do what can be done while somebody else still carries packets."""
        await (await self._fit(settings)).warm(settings, plan)

    async def prepare(self, settings: Settings) -> None:
        """Open what is needed and not there yet."""
        await (await self._fit(settings)).prepare(settings)

    async def set_up_host(self, plan: HostPlan) -> list[str]:
        """Make the host as planned; return what was changed."""
        return await self._backend.set_up_host(plan)

    async def carry(self, table: Table) -> None:
        """Put settings and table in force."""
        await self._backend.carry(table)

    @property
    def tier_wanted(self) -> int | None:
        """The rungs that were allowed when the TUN was opened."""
        return self._backend.tier_wanted

    @property
    def selftest(self) -> dict[str, object]:
        """What the self-test of offloads found."""
        return self._backend.selftest

    @property
    def offloads_off(self) -> dict[str, str]:
        """Which offloads are not used, and why."""
        return self._backend.offloads_off

    def describe(self) -> Dataplane:
        """Return what status shows of it."""
        return self._backend.describe()

    def warnings(self) -> tuple[str, ...]:
        """Return what the operator should know, a line each."""
        return self._backend.warnings()

    async def undo(self) -> bool:
        """Take back a start that failed."""
        return await self._backend.undo()

    async def close(self) -> None:
        """Let go of it and leave it running."""
        await self._backend.close()
