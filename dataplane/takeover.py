# SPDX-License-Identifier: Apache-2.0
"""Takes over from flannel, whose VXLAN devices still carry the packets: --takeover flannel.1.

Their MAC addresses become ours, so that our lease says what it said before and no peer notices. The devices
go when everything else is ready: only then is the UDP port free that both of us need.
"""

from __future__ import annotations

from dataplane import vtep
from dataplane.backend import Settings
from dataplane.config import RunConfig
from dataplane.errors import RuntimeFailure
from dataplane.journal import Journal
from dataplane.model import VxlanDevice
from dataplane.netlink import Host

log = Journal("takeover")


class Takeover:
    """The devices that are taken over from, until they are gone."""

    def __init__(self, host: Host, devices: tuple[VxlanDevice, ...]) -> None:
        """Take over from these."""
        self._host = host
        self._devices = devices

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

    async def finish(self) -> None:
        """Remove the devices."""
        for device in self._devices:
            await self._host.remove_vxlan(device.name)
            log.info("took over", device=device.name, mac=device.mac)


async def begin(config: RunConfig, host: Host) -> Takeover | None:
    """Find the devices that --takeover names, and make their MAC addresses ours; None if none is there."""
    devices = []
    for name in config.takeover:
        device = await host.vxlan(name)
        if device is None:
            log.info("nothing to take over", device=name)
            continue
        version = 4 if device.local is None else device.local.version
        vtep.keep(config.state_dir, version, device.mac)
        devices.append(device)
    return Takeover(host, tuple(devices)) if devices else None
