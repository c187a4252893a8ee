# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the packet tests: rigs, and conservation asserted after every single test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.register_assert_rewrite("tests.e2e.rig", "tests.e2e.tap")

from bench.figures import figure  # noqa: E402
from tests.e2e import rig as rigs  # noqa: E402
from tests.e2e.rig import Rig  # noqa: E402


@pytest.fixture(autouse=True)
def conservation() -> Iterator[None]:
    """Assert offered = forwarded + drops, both ways, for every daemon that outlives the test."""
    yield
    for rig in rigs.live:
        totals = rig.daemon.settled()
        for way in (totals.tx, totals.rx):
            unaccounted = way.offered - way.forwarded - sum(way.drops.values())
            figure("unaccounted", [unaccounted], "packets")


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """Yield the usual rig, shared by the tests of a module."""
    with Rig(tmp_path_factory.mktemp("rig") / "node") as built:
        yield built
