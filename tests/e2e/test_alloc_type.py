# SPDX-License-Identifier: Apache-2.0
"""Backend type alloc: drawn at linked.py."""

from __future__ import annotations

import json
from pathlib import Path

from bench.lab import wait_for
from tests.e2e.cluster import NETWORK
from tests.e2e.linked import Linked

MTU = 1500


def test_alloc(tmp_path: Path) -> None:
    """A node of alloc has a lease and subnet.env with the underlay's MTU, no more, and refuses nobody."""
    network = {**NETWORK, "Backend": {"Type": "alloc"}}
    built = Linked(tmp_path, network, {"a": (), "e": ()})
    try:
        node = built.daemons["a"]
        with node.database() as database:
            values = [json.loads(str(r.value)) for r in database.snapshot().records if "subnets/" in r.key]
        assert sorted(values, key=lambda value: str(value["PublicIP"])) == [
            {"PublicIP": built.hosts[name].ip, "PublicIPv6": built.hosts[name].ip6} for name in ("a", "e")
        ]
        assert node.env()["FLANNEL_MTU"] == str(MTU)
        assert built.routes("a", "show", "proto", "112") == built.routes("a", "show", "proto", "111") == []
        assert "overlay0" not in built.hosts["a"].host.run("ip", "-br", "link").stdout
        wait_for(lambda: len(node.status()["peers"]) == 1, "the other lease is known")
        status = node.status()
        assert (status["ready"], status["warnings"]) == (True, [])
        assert status["peers"][0]["refused"] is None
        assert "refused" not in node.log()
        node.restart()
        with node.database() as database:
            records = [r for r in database.snapshot().records if "subnets/" in r.key]
        assert [json.loads(str(r.value)) for r in records] == values
        # Renewed by the start, and not again and again.
        assert max(r.changed for r in records) == max(r.created for r in records) + 1
    finally:
        built.close()
