# SPDX-License-Identifier: Apache-2.0
"""A start that fails leaves the store as it was, whoever's lease it had found there."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from pathlib import Path

from dataplane.lease import TTL_S
from dataplane.model import LeasePut
from tests.unit.test_lease import holding
from tests.unit.test_leasing import NETWORK, in_file, node

IP = "192.0.2.1"


def test_found_lease_is_given_back(tmp_path: Path) -> None:
    """The lease of who has our address says again what it said, MAC and all, and still runs out one day."""

    async def scenario() -> None:
        place = in_file(tmp_path)
        store = place.open()
        await store.put_config(NETWORK, 0)
        async with node(place, IP) as first:
            before = first.leasing.own()
        (tmp_path / IP / "vtep-mac").unlink()
        async with node(place, IP) as second:
            found = second.leasing.own()
            assert found is not None
            assert before is not None
            assert found.key == before.key
            assert found.vtep_mac != before.vtep_mac
            await second.leasing.undo()
        (entry,) = (await store.read()).entries
        assert entry.lease == before
        assert entry.expires_s is not None
        await store.close()

    asyncio.run(scenario())


def test_end_that_nobody_tells() -> None:
    """Our lease, written by somebody else and so of unknown end, is renewed as if it were written now."""
    lessee = holding()
    own = lessee.own
    assert own is not None
    lessee.apply(LeasePut(own.changed + 5, replace(own, changed=own.changed + 5, expires_s=math.inf)))
    assert lessee.next_operation(100.0) is None
    renews_s = lessee.renews_s()
    assert renews_s is not None
    assert 100.0 < renews_s < 100.0 + TTL_S
    assert lessee.next_operation(renews_s + 1) is not None
