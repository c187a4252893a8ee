# SPDX-License-Identifier: Apache-2.0
"""Takes over from flannel, whose VXLAN devices still carry the packets: --takeover flannel.1.

Their MAC addresses become ours, so that our lease says what it said before and no peer notices. The devices
go when everything else is ready: only then is the UDP port free that both of us need. The same is done with
our own devices where the kernel datapath was before.
"""

from __future__ import annotations

from dataplane import handover, vtep
from dataplane.backend import Settings
from dataplane.config import RunConfig
from dataplane.errors import RuntimeFailure
from dataplane.handover import HandOver
from dataplane.journal import Journal
from dataplane.model import HostPlan, Table, VxlanDevice
from dataplane.netlink import Host

log = Journal("takeover")


class Takeover:
    """The devices that are taken over from, until they are gone."""

    def __init__(
        self, host: Host, devices: tuple[VxlanDevice, ...], own: tuple[VxlanDevice, ...] = ()
    ) -> None:
        """Take over from these; from our own whatever they carried."""
        self._host = host
        self._devices = devices
        self._own = own
        self._plans: list[HandOver] = []  # of those that are gone, to have them back

    def check(self, settings: Settings) -> None:
        """Raise if what the devices carry is not what we are about to."""
        for device in self._devices:
            for what, theirs, ours in (
                ("VNI", device.vni, settings.network.vni),
                ("port", device.port, settings.network.port),
            ):
                if theirs != ours:
                    raise RuntimeFailure(
                        f"cannot take over: {device.name} has {what} {theirs}, the network {ours}. "
                        "Give the store of the network that this device belongs to"
                    )
            if device.local is not None and device.local not in (settings.underlay4, settings.underlay6):
                raise RuntimeFailure(
                    f"cannot take over: {device.name} sends from {device.local}, we would from "
                    f"{settings.underlay4 or settings.underlay6}. Give --public-ip {device.local}"
                )

    async def finish(self, settings: Settings, plan: HostPlan, table: Table) -> None:
        """Remove the devices."""
        for device in (*self._devices, *self._own):
            version = version_of(device)
            address = next((ip for ip in plan.addresses if ip.version == version), None)
            if address is not None:
                peers = handover.find_peers(table.subnets, version)
                self._plans.append(HandOver(device, address, peers))
            await self._host.remove_vxlan(device.name)
            log.info("took over", device=device.name, mac=device.mac)

    async def undo(self) -> None:
        """Make the devices that we removed again: the start failed after all."""
        await handover.prepare(self._host, self._plans)
        await handover.finish(self._host, self._plans)
        for plan in self._plans:
            log.warning("gave back", device=plan.device.name)


def version_of(device: VxlanDevice) -> int:
    """Return the IP version of the pods that a device of flannel's carries: that of its node's address."""
    return 4 if device.local is None else device.local.version


async def begin(config: RunConfig, host: Host, former: str) -> Takeover | None:
    """Find the devices that --takeover names, and make their MAC addresses ours; None if none is there.

    `former` is the --tun-name of last time, which ours may be named after.
    """
    devices = []
    for name in config.takeover:
        device = await host.vxlan(name)
        if device is None:
            log.info("nothing to take over", device=name)
            continue
        vtep.keep(config.state_dir, version_of(device), device.mac)
        devices.append(device)
    # Ours are of another datapath, before this start; the kernel's own keeps them.
    named = {config.tun_name, former} if config.datapath == "userspace" else set()
    names = [name for tun_name in sorted(named) for name in await host.own_vxlan(tun_name)]
    found = [await host.vxlan(name) for name in names if name not in config.takeover]
    own = tuple(device for device in found if device is not None)
    return Takeover(host, tuple(devices), own) if devices or own else None
