# SPDX-License-Identifier: Apache-2.0
"""A lower tier where forwarders end again and again: what else fails then keeps it from nothing."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from dataplane.backend import Place
from dataplane.backend.offloads import Offloads
from dataplane.backend.userspace import UserspaceBackend
from dataplane.config import RunConfig
from dataplane.netlink import Host
from dataplane.rundir import RunDir


class FakeHost:
    """A host of which nothing is asked."""

    port_holder = is_tun_held = None


def test_directory_that_cannot_be_written(
    where: RunDir, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The next control is not told of the lower tier then, but this node has it."""

    async def opened(*_: object) -> None:
        pass

    monkeypatch.setattr(Offloads, "lower", lambda _: True)
    monkeypatch.setattr(UserspaceBackend, "_open_when_let_go", opened)
    (where.path / ".run.json.new").mkdir()  # where the draft would be

    async def main() -> bool:
        place = Place(RunConfig(store="etcd", run_dir=where.path), where, 1)
        backend = UserspaceBackend(place, cast(Host, FakeHost()), lambda _: None)
        backend._settings = cast(Any, object())
        return await backend._lower()

    assert asyncio.run(main())
    assert [record.getMessage() for record in caplog.records] == [
        "the next control is not told of the lower tier"
    ]
