# SPDX-License-Identifier: Apache-2.0
"""What is said of our lease before we have it, while we do, and when it was given back."""

from __future__ import annotations

import asyncio
from pathlib import Path

from dataplane.lease import WAITING, Lessee
from dataplane.leasing import Leasing
from dataplane.model import HostFacts, Listed
from dataplane.store.registry import Registry
from tests.keys import Keys
from tests.leases import CONFIG, NET
from tests.unit.test_leasing import NETWORK, in_file, node

IP = "192.0.2.1"


def test_host_that_nobody_looked_at_is_no_trouble() -> None:
    """Until the facts of the host have come, nobody says that it lacks an interface."""
    leasing = Leasing(CONFIG, Registry(Keys()), Lessee(lambda n: 0), lambda: None)
    leasing.apply_all([Listed(1, NET, ())])
    assert (leasing.reason(), leasing.describe()) == (WAITING, None)
    leasing.host_changed(HostFacts())
    assert leasing.reason() == WAITING


def test_lease_that_was_given_back_is_not_undone(tmp_path: Path) -> None:
    """What stands in the status ends with the lease, and then there is nothing to take back, nor to find."""

    async def scenario() -> None:
        place = in_file(tmp_path)
        store = place.open()
        await store.put_config(NETWORK, 0)
        async with node(place, IP) as one:
            held = one.leasing.describe()
            assert held is not None
            assert str(held["key"]).startswith("10.3.")
            assert not one.leasing.is_released
            one.leasing.release()
            await one.until(lambda: one.leasing.is_released, "the lease is given back")
            assert one.leasing.describe() is None
            await one.leasing.undo()
        assert (await store.read()).entries == ()
        await store.close()

    asyncio.run(scenario())
