# SPDX-License-Identifier: Apache-2.0
"""Our devices, and what others do to them: deleted, they are made again; renamed, named back."""

from __future__ import annotations

from dataplane.backend.sockets import has_device, tun_name_of
from dataplane.errors import RuntimeFailure
from dataplane.model import VxlanDevice
from dataplane.netlink import Host
from dataplane.repairs import DEVICE
from dataplane.slots import Fd, Fds


def find_tun(fds: Fds) -> str | None:
    """Return the name of our TUN; None if it was deleted, or is in another namespace by now."""
    name = tun_name_of(fds[Fd.TUN]) if Fd.TUN in fds else None
    return name if name is not None and has_device(name) else None


class DeviceRepairs:
    """What was put right of the device itself, until that is told; who does it too often has to wait."""

    def __init__(self, host: Host) -> None:
        """Nothing was."""
        self._host = host
        self._made: list[str] = []

    def _note(self, change: str) -> None:
        if change in self._host.paused:
            raise RuntimeFailure(f"something on this host undoes again and again what we set up: {change}")
        self._made.append(change)

    def note_gone(self, fds: Fds, name: str) -> None:
        """Take that the TUN that we held is about to be made again, if we held one."""
        if Fd.TUN in fds:
            self.note_made(name)

    def note_made(self, name: str) -> None:
        """Take that a device is about to be made again; raises if that has to wait."""
        self._note(f"{DEVICE}{name}")

    async def set_mac(self, device: VxlanDevice) -> None:
        """Give a device its MAC address back; raises if that has to wait."""
        self._note(f"{device.name} mac {device.mac}")
        await self._host.set_mac(device)

    async def keep_name(self, fds: Fds, name: str) -> None:
        """Give the TUN that we hold its name back, if somebody calls it otherwise."""
        found = find_tun(fds)
        if found is not None and found != name:
            await self.rename(found, name)

    async def rename(self, old: str, name: str) -> None:
        """Give a device its name back, and all that hangs on it stays; raises if that has to wait."""
        self._note(f"{name}, which was {old}")
        await self._host.rename(old, name)

    def take(self) -> list[str]:
        """Return what was put right since the last call."""
        made, self._made = self._made, []
        return made
