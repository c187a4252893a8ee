# SPDX-License-Identifier: Apache-2.0
"""What somebody removes while we look, or set up devices, is seen by the next pass."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import cast

import pytest

from dataplane import netbatch
from dataplane.backend import Place, telling
from dataplane.backend.kernel import KernelBackend
from dataplane.config import RunConfig
from dataplane.entries import Entries, Hop, Links
from dataplane.model import VxlanDevice
from dataplane.netlink import Host
from dataplane.rundir import RunDir
from tests.leases import DUAL, IP1_6, IP2, lease
from tests.unit.test_paths import SETTINGS

(SUBNET,) = lease(2).key.subnets()
BOTH = replace(SETTINGS, network=DUAL, underlay6=IP1_6)
THERE, GONE = Entries(routes={SUBNET: Hop(IP2, 2)}), Entries()
LOST = b""  # what the kernel has told, and nobody read: everything may be different


class Kernel:
    """Has entries, which are read back, and written; something may happen after a read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Have what there is to be."""
        self.has = THERE
        self.after_read: Callable[[], None] = lambda: None
        monkeypatch.setattr(netbatch, "read", self._read)
        monkeypatch.setattr(netbatch, "send", self._send)

    def _read(self, *_: object) -> Entries:
        found = self.has
        self.after_read()
        return found

    def _send(self, messages: Iterable[bytes]) -> int:
        self.has = THERE
        return sum(1 for _ in messages)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """Return what is told."""
    return Kernel(monkeypatch)


class Meddled:
    """A teller whose entries somebody removes."""

    def __init__(self, kernel: Kernel, teller: telling.Teller) -> None:
        """Remove nothing yet."""
        self._kernel = kernel
        self._teller = teller

    def remove(self) -> None:
        """Remove them, once, of which is heard."""
        self._kernel.after_read = lambda: None
        self._kernel.has = GONE
        self._teller._hear(LOST)


def test_removed_while_it_is_read(kernel: Kernel) -> None:
    """What was read before somebody removed it is not believed: it is read again, and told again."""

    async def work() -> None:
        passes: list[None] = []
        teller = telling.Teller(lambda: passes.append(None))
        side = telling.Side(4, Links(1, 2, 1500), wanted=THERE)
        teller.have({4: side})
        try:
            kernel.after_read = Meddled(kernel, teller).remove
            assert not await teller.look(side)  # it was there
            assert passes == [None]
            assert await teller.look(side)
            assert await teller.tell(side, THERE)
            assert (kernel.has, passes) == (THERE, [None])
            assert not await teller.look(side)
        finally:
            teller.close()

    asyncio.run(work())


class Devices:
    """A host whose devices are as they are to be; something may happen while they are looked at."""

    def __init__(self) -> None:
        """Have none yet."""
        self.made: dict[str, VxlanDevice] = {}
        self.after_looks: dict[int, Callable[[], None]] = {}  # by how many more

    async def own_vxlan(self, _: str) -> list[str]:
        """Return which there are."""
        return list(self.made)

    async def vxlan(self, name: str) -> VxlanDevice | None:
        """Return one."""
        self.after_looks = {looks - 1: what for looks, what in self.after_looks.items()}
        self.after_looks.get(0, lambda: None)()
        return self.made.get(name)

    async def find_twin(self, _: VxlanDevice) -> None:
        """Find none."""

    async def remove_vxlan(self, _: str) -> None:
        """Do nothing: there is none."""

    async def make_vxlan(self, device: VxlanDevice) -> None:
        """Make one."""
        self.made[device.name] = replace(device, index=len(self.made) + 1)


@pytest.fixture
def devices() -> Devices:
    """Return a host."""
    return Devices()


@pytest.fixture
def backend(where: RunDir, devices: Devices) -> KernelBackend:
    """Return a backend."""
    place = Place(RunConfig(store="file:///x"), where, 1)
    return KernelBackend(place, cast("Host", devices), lambda: None)


def test_removed_while_devices_are_looked_at(
    kernel: Kernel, devices: Devices, backend: KernelBackend
) -> None:
    """What somebody removes behind one device while the other is looked at is told again in the next pass."""

    async def work() -> None:
        teller = backend._teller
        await backend.prepare(BOTH)
        first = backend._sides[4]
        await teller.tell(first, THERE)
        assert first.told == THERE
        devices.after_looks = {2: Meddled(kernel, teller).remove}
        await backend.prepare(BOTH)
        assert await teller.look(backend._sides[4])
        await backend.close()

    asyncio.run(work())
