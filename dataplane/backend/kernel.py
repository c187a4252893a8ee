# SPDX-License-Identifier: Apache-2.0
"""The kernel backend: VXLAN devices of the kernel carry the packets, and are told of every peer.

One device for IPv4 pods and one for IPv6 pods, as flannel has it: so their peers may be of flannel's, ours or
any other kind. Peers that are reached directly have their route to the underlay instead, and otherwise the
same: a route that moves from one to the other is replaced in one step.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from dataplane import entries, vxlan
from dataplane.backend import Place, Settings
from dataplane.backend.device import DeviceRepairs
from dataplane.backend.process import end_forwarders
from dataplane.backend.sockets import port_taken
from dataplane.backend.telling import Side, Teller, Unreached
from dataplane.config import RunConfig
from dataplane.entries import Entries, Links
from dataplane.errors import KernelError, RuntimeFailure
from dataplane.figures import Dataplane
from dataplane.journal import Journal
from dataplane.model import OUTER_TTL, Address, Encap, HostPlan, MacAddress, Peer, Table, VxlanDevice
from dataplane.netlink import Host

log = Journal("backend")

Result = TypeVar("Result")


@dataclass(slots=True, kw_only=True)
class DeviceSide(Side):
    """One device, and what the kernel knows of the peers behind it."""

    device: VxlanDevice

    @property
    def change(self) -> str:
        """What is said where somebody has changed those entries."""
        return f"entries of peers behind {self.device.name}"


def plan_sides(settings: Settings, run: RunConfig) -> dict[int, DeviceSide]:
    """Return the devices that a network needs, by IP version of the pods."""
    sides: dict[int, DeviceSide] = {}
    network = settings.network
    locals4 = settings.underlay4 or settings.underlay6
    locals6 = settings.underlay6 or settings.underlay4  # flannel's peers have IPv6 pods behind IPv6 nodes
    for net, local, mac in (
        (network.network, locals4, settings.vtep_mac4),
        (network.network6, locals6, settings.vtep_mac6),
    ):
        if net is None or mac is None:
            continue
        name = vxlan.device_name(settings.tun_name, network.vni, net.version)
        device = VxlanDevice(
            *(name, mac, network.vni, network.port, local, settings.mtu, settings.underlay.index),
            ttl=0 if run.outer_ttl == OUTER_TTL else run.outer_ttl,  # as flannel's devices, which we may find
            has_inner_dscp=run.dscp == "inherit",
        )
        links = Links(0, settings.underlay.index, settings.direct_mtu)
        sides[net.version] = DeviceSide(net.version, links, device=device)
    return sides


def check_sides(sides: dict[int, DeviceSide]) -> None:
    """Refuse devices that the kernel would not make: of a VNI and a port it has one over each IP version."""
    over = {side.device.local.version for side in sides.values() if side.device.local is not None}
    if len(over) == 1 and len(sides) > 1:
        (version,) = over
        missing = "ipv6" if version == 4 else "ip"
        raise RuntimeFailure(
            f"the kernel datapath cannot carry pods of both IP versions over IPv{version} alone: give this "
            f"node an IPv{10 - version} address too (--public-{missing}), or --datapath userspace"
        )


def split_reachable(found: Entries, local: Address | None) -> tuple[Entries, int]:
    """Return the entries of nodes that a device can send to, and how many others there are."""
    version = None if local is None else local.version
    strangers = {mac for mac, node in found.forwarding.items() if node.version != version}
    if not strangers:
        return found, 0
    neighbours = {ip: mac for ip, mac in found.neighbours.items() if mac not in strangers}
    forwarding = {mac: node for mac, node in found.forwarding.items() if mac not in strangers}
    routes = {net: hop for net, hop in found.routes.items() if not hop.is_onlink or hop.gateway in neighbours}
    return Entries(neighbours, forwarding, routes), len(strangers)


def tell_shared(shared: dict[MacAddress, set[Address]]) -> list[str]:
    """Return a warning for each VTEP MAC that several nodes have."""
    return [
        f"nodes {', '.join(sorted(map(str, nodes)))} have one VTEP MAC, {mac}: the kernel reaches one of "
        "them. Remove the lease of the one that is gone: overlayd lease rm"
        for mac, nodes in shared.items()
    ]


class KernelBackend:
    """Keeps VXLAN devices of the kernel as they must be."""

    def __init__(self, place: Place, host: Host, on_change: Callable[[], None]) -> None:
        """Work in `place`; `on_change` is called when somebody removed what we told the kernel."""
        self._place = place
        self._host = host
        self._teller = Teller(on_change)
        self._sides: dict[int, DeviceSide] = {}
        self._former = place.run_dir.read_networks()
        self._made: list[str] = []
        self._has_routed = False  # where nobody of ours was before
        self._device = DeviceRepairs(host)
        self._is_carrying = False
        self._unreachable = 0
        self._shared: dict[MacAddress, set[Address]] = {}
        self._unreached = Unreached()

    # --- what must be ---------------------------------------------------------------------------------

    async def adopt(self) -> tuple[Peer, ...]:
        """Take over what an earlier control left running: devices are found when they are wanted."""
        return ()

    async def warm(self, settings: Settings, plan: HostPlan) -> None:
        """Do nothing: no two devices can have one VNI and port."""

    async def prepare(self, settings: Settings) -> None:
        """Have the devices, down if they are new: a forwarder may still hold their port."""
        if settings.encaps - {Encap.DIRECT} != {Encap.VXLAN}:
            raise RuntimeFailure("the kernel datapath carries VXLAN alone; give --datapath userspace")
        wanted = plan_sides(settings, self._place.config)
        check_sides(wanted)
        await self._remove_others(settings.tun_name, {side.device.name for side in wanted.values()})
        for version, side in wanted.items():
            await self._have_device(side, self._sides.get(version))
        for version, side in wanted.items():  # at once: what is heard meanwhile is said of the old ones
            self._take_over(side, self._sides.get(version))
            side.belong_to(settings.network.networks())
        self._sides = wanted
        self._teller.have(wanted)

    async def _remove_others(self, tun_name: str, names: set[str]) -> None:
        """Remove devices of ours that are wanted no more: those of another VNI, or of a family."""
        if names == {side.device.name for side in self._sides.values()}:
            return
        for name in await self._host.own_vxlan(tun_name):
            if name not in names:
                await self._host.remove_vxlan(name)
                log.info("device removed", device=name)

    async def _have_device(self, side: DeviceSide, known: DeviceSide | None) -> None:
        found = await self._find_device(side.device)
        if found is None:
            if known is not None and replace(known.device, mtu=side.device.mtu) == side.device:
                self._device.note_made(side.device.name)
            await self._host.remove_vxlan(side.device.name)
            await self._free_port(side.device.port, self._host.make_vxlan(side.device))
            found = await self._host.vxlan(side.device.name)
            self._made.append(side.device.name)
            log.info("device made", device=side.device.name, mac=side.device.mac)
        if found is None:
            raise RuntimeFailure(f"device {side.device.name} is gone")
        side.links = side.links._replace(overlay=found.index)

    def _take_over(self, side: DeviceSide, known: DeviceSide | None) -> None:
        """Let a side go on with what is known of the peers behind its device."""
        if known is None:
            side.networks = self._former
            return
        if known.links.overlay == side.links.overlay:
            side.told, side.known = known.told, known.known
        side.wanted, side.networks = known.wanted, known.networks

    async def _find_device(self, device: VxlanDevice) -> VxlanDevice | None:
        """Find a device as it must be, and give it back its name and MAC address if it has others."""
        found = await self._host.vxlan(device.name)
        if found is None and (found := await self._host.find_twin(device)) is not None:
            await self._device.rename(found.name, device.name)
            found = replace(found, name=device.name)
        if found is None or replace(found, mac=device.mac, mtu=device.mtu) != device:
            return None
        if found.mac != device.mac:
            await self._device.set_mac(device)
        return found

    async def set_up_host(self, plan: HostPlan) -> list[str]:
        """Give the devices addresses, set them up, and see what somebody removed; return what was changed."""
        has_ended = await end_forwarders(self._place.run_dir, self._place.epoch)
        changes = [*self._device.take(), *await self._host.remove_tun(plan)]
        self._has_routed |= not has_ended
        for side in self._sides.values():
            addresses = tuple(ip for ip in plan.addresses if ip.version == side.version)
            own = HostPlan(side.device.name, plan.mtu, addresses)
            changes += await self._free_port(side.device.port, self._host.set_up_vxlan(own))
            side.is_paused = side.change in self._host.paused
            if await self._teller.look(side) and self._is_carrying:
                changes.append(side.change)
        return changes

    async def _free_port(self, port: int, work: Awaitable[Result]) -> Result:
        """Do what needs a port that another device or a socket may have; then the error says which."""
        try:
            return await work
        except KernelError as err:
            if err.errno not in (errno.EADDRINUSE, errno.EEXIST):
                raise
            raise port_taken(port, await asyncio.to_thread(self._host.port_holder, port)) from None

    async def carry(self, table: Table) -> None:
        """Tell the kernel of the peers in the table, as far as it was not told yet."""
        self._unreachable = 0
        self._shared = entries.find_shared(table.subnets)
        for side in self._sides.values():
            found = entries.wanted(table.subnets, side.version, side.links)
            wanted, strangers = split_reachable(found, side.device.local)
            self._unreachable += strangers
            count = await self._teller.tell(side, wanted)
            if count:
                peers = len(wanted.routes)
                log.info("told the kernel", device=side.device.name, peers=peers, messages=count)
        self._unreached.take(table.subnets)
        self._is_carrying = True

    # --- for the daemon -------------------------------------------------------------------------------

    @property
    def tier_wanted(self) -> int | None:
        """Nothing: there is no ladder of offloads here."""
        return None

    @property
    def selftest(self) -> dict[str, object]:
        """Nothing: the kernel is not put to the test."""
        return {}

    @property
    def offloads_off(self) -> dict[str, str]:
        """Nothing."""
        return {}

    def describe(self) -> Dataplane:
        """Return what status shows of it."""
        state = "running" if self._is_carrying else "empty"
        return Dataplane(is_alive=self._is_carrying, state=state, kind="kernel")

    def warnings(self) -> tuple[str, ...]:
        """Return what the operator should know."""
        found = (*self._unreached.warnings(), *tell_shared(self._shared))
        if not self._unreachable:
            return found
        return (
            *found,
            f"{self._unreachable} peers have underlay addresses of another IP version than this node's "
            "device; the kernel cannot reach them, --datapath userspace can",
        )

    async def undo(self) -> bool:
        """Take back a start that failed."""
        for name in self._made:
            await self._host.remove_vxlan(name)
        await self.close()
        return self._has_routed and bool(self._made)

    async def close(self) -> None:
        """Let go: the kernel carries on by itself."""
        self._teller.close()
