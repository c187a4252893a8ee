# SPDX-License-Identifier: Apache-2.0
"""Routes to single peers. Plain ones to those on our link are all there is in a network of host-gw, and
beside the forwarder where peers are reached directly; others lead to the forwarder's device and say how much
the path to a peer takes. A network of alloc has not even routes.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from dataplane import entries
from dataplane.backend import Place, Settings
from dataplane.backend.process import end_forwarders
from dataplane.backend.telling import Side, Teller, Unreached
from dataplane.backend.userspace import UserspaceBackend
from dataplane.entries import Links
from dataplane.errors import RuntimeFailure
from dataplane.figures import Dataplane
from dataplane.journal import Journal
from dataplane.model import Encap, HostPlan, Peer, Table
from dataplane.netlink import Host
from dataplane.rundir import RunDir

log = Journal("backend")


class PeerRoutes:
    """The routes of this node to single peers, in both families."""

    def __init__(self, run_dir: RunDir, on_change: Callable[[], None]) -> None:
        """`on_change` is called when somebody removed one; the run directory tells what the last run had."""
        self._former = run_dir.read_networks()
        self._teller = Teller(on_change)
        self._sides: dict[int, Side] = {}
        self._is_carrying = False
        self._unreached = Unreached()
        self.warnings = self._unreached.warnings

    def prepare(self, settings: Settings) -> None:
        """Take where routes lead, and how much goes there."""
        links = Links(0, settings.underlay.index, settings.direct_mtu)
        for version in (4, 6):
            side = self._sides.setdefault(version, Side(version, links, networks=self._former))
            side.links = links._replace(tun=side.links.tun)
            side.belong_to(settings.network.networks())
        self._teller.have(self._sides)

    def lead_by(self, tun_name: str) -> None:
        """Take the forwarder's device: by it go those that take less than it does."""
        try:
            index = socket.if_nametoindex(tun_name)
        except OSError:
            index = 0  # it is gone again: the next pass makes it anew
        for side in self._sides.values():
            side.links = side.links._replace(tun=index)

    async def look(self, paused: frozenset[str]) -> list[str]:
        """See what somebody removed; return what is to be put right, but for what has to wait."""
        changes = []
        for side in self._sides.values():
            change = f"IPv{side.version} routes to peers"
            side.is_paused = change in paused
            if await self._teller.look(side) and self._is_carrying:
                changes.append(change)
        return changes

    async def carry(self, table: Table) -> None:
        """Have the routes that the table wants, and of ours no others."""
        for side in self._sides.values():
            wanted = entries.wanted(table.subnets, side.version, side.links)
            count = await self._teller.tell(side, wanted)
            if count:
                routes = len(wanted.routes)
                log.info("routes to peers", family=side.version, routes=routes, messages=count)
        self._unreached.take(table.subnets)
        self._is_carrying = True

    async def undo(self) -> None:
        """Have the routes again that were there at first: the start failed after all."""
        for side in self._sides.values():
            if side.found is not None:
                await self._teller.tell(side, side.found)

    def close(self) -> None:
        """Let go: the routes stay."""
        self._teller.close()


class RoutedUserspace(UserspaceBackend):
    """The forwarder, and plain routes past it to peers on our link.

    The forwarder knows those peers as well: it takes what they encapsulate, and whatever comes its way while
    a route is not there yet, or not any more.
    """

    def __init__(
        self,
        place: Place,
        host: Host,
        on_fatal: Callable[[RuntimeFailure], None],
        on_change: Callable[[], None],
    ) -> None:
        """Work in `place`; see UserspaceBackend and PeerRoutes."""
        super().__init__(place, host, on_fatal)
        self._routes = PeerRoutes(place.run_dir, on_change)

    async def prepare(self, settings: Settings) -> None:
        """Open what is missing."""
        await super().prepare(settings)
        self._routes.prepare(settings)

    async def set_up_host(self, plan: HostPlan) -> list[str]:
        """Give the TUN its addresses and routes, and see which plain routes are missing."""
        changes = await super().set_up_host(plan)
        self._routes.lead_by(plan.tun_name)
        return changes + await self._routes.look(self._host.paused)

    async def carry(self, table: Table) -> None:
        """Put the table in force, first where it always leads somewhere."""
        await super().carry(table)
        await self._routes.carry(table)

    def warnings(self) -> tuple[str, ...]:
        """Return what the operator should know."""
        return super().warnings() + self._routes.warnings()

    async def undo(self) -> bool:
        """Take back a start that failed."""
        await self._routes.undo()
        return await super().undo()

    async def close(self) -> None:
        """Let go of everything and leave it running."""
        self._routes.close()
        await super().close()


class RoutesBackend:
    """Nothing but routes: peers of host-gw are on our link, and of alloc somebody else takes care."""

    tier_wanted: int | None = None  # there are no offloads of ours
    selftest: dict[str, object] = {}  # noqa: RUF012
    offloads_off: dict[str, str] = {}  # noqa: RUF012

    def __init__(self, place: Place, host: Host, on_change: Callable[[], None]) -> None:
        """Work in `place`; `on_change` is called when somebody removed a route."""
        self._place = place
        self._host = host
        self._routes = PeerRoutes(place.run_dir, on_change)
        self._plan: HostPlan | None = None
        self._kind = "kernel"
        self._is_carrying = False

    async def adopt(self) -> tuple[Peer, ...]:
        """Take over what an earlier control left running: routes are found when they are wanted."""
        return ()

    async def warm(self, settings: Settings, plan: HostPlan) -> None:
        """Do nothing: routes take no time."""

    async def prepare(self, settings: Settings) -> None:
        """Take where routes lead."""
        self._kind = "none" if settings.network.encap is Encap.NONE else "kernel"
        self._routes.prepare(settings)

    async def set_up_host(self, plan: HostPlan) -> list[str]:
        """Keep what has no route from leaking, and see what somebody removed; return what was changed."""
        self._plan = plan
        changes = await self._host.remove_tun(plan) if self._is_carrying else []
        return changes + await self._routes.look(self._host.paused)

    async def carry(self, table: Table) -> None:
        """Have the routes; then let go of what carried packets before."""
        await self._routes.carry(table)
        if not self._is_carrying and self._plan is not None:
            await end_forwarders(self._place.run_dir, self._place.epoch)
            for change in await self._host.remove_tun(self._plan):
                log.info("host changed", change=change)
            for name in await self._host.own_vxlan(self._plan.tun_name):
                await self._host.remove_vxlan(name)
                log.info("device removed", device=name)
        self._is_carrying = True

    def describe(self) -> Dataplane:
        """Return what status shows of it."""
        state = "running" if self._is_carrying else "empty"
        return Dataplane(is_alive=self._is_carrying, state=state, kind=self._kind)

    def warnings(self) -> tuple[str, ...]:
        """Return what the operator should know."""
        return self._routes.warnings()

    async def undo(self) -> bool:
        """Take back a start that failed."""
        await self._routes.undo()
        await self.close()
        return False

    async def close(self) -> None:
        """Let go: the kernel carries on by itself."""
        self._routes.close()
