# SPDX-License-Identifier: Apache-2.0
"""The kernel backend: VXLAN devices of the kernel carry the packets, and are told of every peer.

One device for IPv4 pods and one for IPv6 pods, as flannel has it: so their peers may be of flannel's, ours or
any other kind. What was told is remembered; a changed lease costs a few netlink messages. What somebody else
removes is heard of, and then all is read back and put right.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TypeVar

from dataplane import entries, netbatch, vxlan
from dataplane.backend import Settings
from dataplane.backend.userspace import Place
from dataplane.control import ForwarderClient
from dataplane.entries import Entries
from dataplane.errors import NotRunning, RuntimeFailure
from dataplane.figures import Dataplane
from dataplane.journal import Journal
from dataplane.model import Address, Encap, HostPlan, Peer, Table, VxlanDevice
from dataplane.netlink import Host

log = Journal("backend")

GROUPS = 0x4 | 0x40 | 0x400  # neighbours, IPv4 and IPv6 routes
RECEIVE_BYTES = 1 << 17

Result = TypeVar("Result")


@dataclass(slots=True)
class Side:
    """One device, and what the kernel knows of the peers behind it."""

    version: int  # of the pods
    device: VxlanDevice
    index: int = 0
    wanted: Entries = field(default_factory=Entries)
    told: Entries | None = field(default_factory=Entries)  # None: to be read back

    @property
    def family(self) -> int:
        """AF_INET or AF_INET6."""
        return socket.AF_INET if self.version == 4 else socket.AF_INET6


def plan_sides(settings: Settings) -> dict[int, Side]:
    """Return the devices that a network needs, by IP version of the pods."""
    sides: dict[int, Side] = {}
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
            name, mac, network.vni, network.port, local, settings.mtu, settings.underlay.index
        )
        sides[net.version] = Side(net.version, device)
    return sides


def split_reachable(found: Entries, local: Address | None) -> tuple[Entries, int]:
    """Return the entries of nodes that a device can send to, and how many others there are."""
    version = None if local is None else local.version
    strangers = {mac for mac, node in found.forwarding.items() if node.version != version}
    if not strangers:
        return found, 0
    neighbours = {ip: mac for ip, mac in found.neighbours.items() if mac not in strangers}
    forwarding = {mac: node for mac, node in found.forwarding.items() if mac not in strangers}
    routes = {net: ip for net, ip in found.routes.items() if ip in neighbours}
    return Entries(neighbours, forwarding, routes), len(strangers)


class KernelBackend:
    """Keeps VXLAN devices of the kernel as they must be."""

    def __init__(self, place: Place, host: Host, on_change: Callable[[], None]) -> None:
        """Work in `place`; `on_change` is called when somebody removed what we told the kernel."""
        self._place = place
        self._host = host
        self._on_change = on_change
        self._sides: dict[int, Side] = {}
        self._watch: socket.socket | None = None
        self._made: list[str] = []
        self._is_carrying = False
        self._unreachable = 0

    # --- what must be ---------------------------------------------------------------------------------

    async def adopt(self) -> tuple[Peer, ...]:
        """Take over what an earlier control left running: devices are found when they are wanted."""
        return ()

    async def warm(self, settings: Settings, plan: HostPlan) -> None:
        """Do nothing: no two devices can have one VNI and port."""

    async def prepare(self, settings: Settings) -> None:
        """Have the devices, down if they are new: a forwarder may still hold their port."""
        if settings.encaps != frozenset({Encap.VXLAN}):
            raise RuntimeFailure("the kernel datapath carries VXLAN alone; give --datapath userspace")
        wanted = plan_sides(settings)
        for version in self._sides.keys() - wanted.keys():
            await self._host.remove_vxlan(self._sides[version].device.name)
        for version, side in wanted.items():
            await self._have_device(side, self._sides.get(version))
        self._sides = wanted
        self._start_hearing()

    async def _have_device(self, side: Side, known: Side | None) -> None:
        found = await self._host.vxlan(side.device.name)
        if found is None or replace(found, mtu=side.device.mtu) != side.device:
            await self._host.remove_vxlan(side.device.name)
            await self._host.make_vxlan(side.device)
            found = await self._host.vxlan(side.device.name)
            self._made.append(side.device.name)
            log.info("device made", device=side.device.name, mac=side.device.mac)
        elif known is None or known.index != found.index:
            side.told = None
        else:
            side.told = known.told
        if found is None:
            raise RuntimeFailure(f"device {side.device.name} is gone")
        side.index = found.index
        side.wanted = Entries() if known is None else known.wanted

    async def set_up_host(self, plan: HostPlan) -> list[str]:
        """Give the devices addresses, set them up, and see what somebody removed; return what was changed."""
        await self._end_forwarder()
        changes = await self._host.remove_tun(plan)
        for side in self._sides.values():
            addresses = tuple(ip for ip in plan.addresses if ip.version == side.version)
            own = HostPlan(side.device.name, plan.mtu, addresses)
            changes += await self._host.set_up_vxlan(own)
            if side.told is None:
                side.told = await self._in_thread(netbatch.read, side.index, side.family)
                if self._is_carrying and side.told != side.wanted:
                    changes.append(f"entries of peers behind {side.device.name}")
        return changes

    async def carry(self, table: Table) -> None:
        """Tell the kernel of the peers in the table, as far as it was not told yet."""
        self._unreachable = 0
        for side in self._sides.values():
            found = entries.wanted(table.subnets, side.version)
            side.wanted, strangers = split_reachable(found, side.device.local)
            self._unreachable += strangers
            await self._tell(side)
        self._is_carrying = True

    async def _tell(self, side: Side) -> None:
        before, side.told = side.told or Entries(), None
        self._stop_hearing()
        try:
            messages = entries.difference(side.index, before, side.wanted)
            count = await self._in_thread(netbatch.send, messages)
            self._drain()  # what we have done ourselves is no news
            side.told = side.wanted
        finally:
            self._start_hearing()
        if count:
            peers = len(side.wanted.routes)
            log.info("told the kernel", device=side.device.name, peers=peers, messages=count)

    async def _in_thread(self, work: Callable[..., Result], *args: object) -> Result:
        return await asyncio.get_running_loop().run_in_executor(None, work, *args)

    async def _end_forwarder(self) -> None:
        """End the forwarder of a userspace datapath that was here before; its port is ours now."""
        try:
            client = ForwarderClient(self._place.run_dir.forwarder_socket, self._place.epoch)
        except NotRunning:
            return
        try:
            await self._in_thread(client.hello)
            await self._in_thread(client.stop)
            log.info("forwarder ended: the kernel carries the packets now")
        finally:
            client.close()

    # --- what somebody else does ----------------------------------------------------------------------

    def _start_hearing(self) -> None:
        if self._watch is None:
            self._watch = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
            self._watch.bind((0, GROUPS))
        asyncio.get_running_loop().add_reader(self._watch, self._hear)

    def _stop_hearing(self) -> None:
        if self._watch is not None:
            asyncio.get_running_loop().remove_reader(self._watch)

    def _hear(self) -> None:
        if self._drain():
            self._on_change()

    def _drain(self) -> bool:
        """Take what the kernel tells; return whether anything of ours may be different now."""
        has_changed = False
        while self._watch is not None:
            try:
                data = self._watch.recv(RECEIVE_BYTES)
            except BlockingIOError:
                break
            except OSError:  # ENOBUFS: some were lost, so look at everything
                has_changed = self._doubt(self._sides.values()) or has_changed
                continue
            for kind, body in entries.split(data):
                sides = [side for side in self._sides.values() if entries.undoes(side.index, kind, body)]
                has_changed = self._doubt(sides) or has_changed
        return has_changed

    def _doubt(self, sides: Iterable[Side]) -> bool:
        found = list(sides)
        for side in found:
            side.told = None
        return bool(found)

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
        if not self._unreachable:
            return ()
        return (
            f"{self._unreachable} peers have underlay addresses of another IP version than this node's "
            "device; the kernel cannot reach them, --datapath userspace can",
        )

    async def undo(self) -> bool:
        """Take back a start that failed."""
        for name in self._made:
            await self._host.remove_vxlan(name)
        await self.close()
        return False

    async def close(self) -> None:
        """Let go: the kernel carries on by itself."""
        self._stop_hearing()
        if self._watch is not None:
            self._watch.close()
            self._watch = None
