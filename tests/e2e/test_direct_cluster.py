# SPDX-License-Identifier: Apache-2.0
"""Nodes of all kinds, flannel's among them, in a network with DirectRouting: drawn at cluster.py."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations

import pytest

from tests.e2e.cluster import NETWORK, SEATS, START_S, Cluster, settled
from tests.e2e.linked import Wire
from tests.e2e.rig import risen
from tests.e2e.stream import Stream

FAMILIES = (4, 6)
OURS: dict[str, tuple[str, ...]] = {
    "a": (),
    "b": ("--encapsulate", "always"),  # one that takes no part
    "c": ("--datapath", "kernel"),
}
PAIRS = list(permutations(SEATS, 2))

pytestmark = pytest.mark.soak


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Yield the cluster, in which everybody reaches everybody."""
    network = {**NETWORK, "Backend": {"Type": "vxlan", "DirectRouting": True}}
    with settled(tmp_path_factory.mktemp("direct"), network, OURS) as built:
        yield built


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("sender", "receiver"), PAIRS, ids=lambda name: name)
def test_matrix(cluster: Cluster, sender: str, receiver: str, family: int) -> None:
    """Whoever sends plainly to a peer on his link does, all others encapsulate; everybody takes both."""
    near, far = cluster.hosts[sender], cluster.hosts[receiver]
    is_plain = near.link == far.link and sender != "b"
    before = cluster.totals()
    wire = Wire(near, far)
    try:
        assert cluster.can_ping(near, far, family, 1372)
        with Stream(near.pod, far.pod, far.pod_of(family)) as stream:
            assert stream.longest_s() < START_S
        counts = wire.take()
    finally:
        wire.close()
    kind, other = ("plain", "vxlan") if is_plain else ("vxlan", "plain")
    assert counts[kind] > 10
    assert counts[other] == 0
    after = cluster.totals()
    assert {name: risen(was, after[name]) for name, was in before.items()} == {name: {} for name in before}
