# SPDX-License-Identifier: Apache-2.0
"""A host with many thousand routes: those of a big cluster, or of a routing daemon.

host namespace: under0 192.0.2.1 ─ veth ─ other   (nobody there), 10 000 routes to 192.0.2.9
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator

import pytest

from bench.lab import Namespace

ROUTES = 10_000
READ_S = 1.0  # of a processor
SCRIPT = """
import asyncio, json, time
from dataplane.netlink import Host

async def read():
    host = Host()
    begun_s = time.process_time()
    facts = await host.facts()
    took_s = time.process_time() - begun_s
    await host.close()
    ways = [(str(way.prefix), way.metric, way.iface, str(way.gateway)) for way in facts.ways]
    print(json.dumps({"ways": ways, "defaults": facts.default_ifaces, "took_s": took_s}))

asyncio.run(read())
"""


@pytest.fixture
def host() -> Iterator[Namespace]:
    """Yield a host that is joined to nobody."""
    namespace = Namespace(f"many{os.getpid() % 100000}")
    try:
        namespace.ip(
            "link set lo up\nlink add under0 type veth peer name other\nlink set under0 up\n"
            "link set other up\naddr add 192.0.2.1/24 dev under0\nroute add default via 192.0.2.254\n"
        )
        yield namespace
    finally:
        namespace.close()


@pytest.mark.parametrize(("protocol", "told"), [("112", 0), ("bird", ROUTES)], ids=["ours", "others"])
def test_facts_of_a_host_with_many_routes(host: Namespace, protocol: str, told: int) -> None:
    """Ten thousand routes are read whole, in a moment; those to our own peers are passed over."""
    prefixes = [f"10.{number // 250 + 1}.{number % 250}.0/24" for number in range(ROUTES)]
    host.ip("".join(f"route add {prefix} via 192.0.2.9 proto {protocol}\n" for prefix in prefixes))
    facts = json.loads(host.run(sys.executable, "-c", SCRIPT).stdout)
    assert facts["defaults"] == ["under0"]
    assert facts["took_s"] < READ_S
    ways = [tuple(way) for way in facts["ways"] if way[0].startswith("10.")]
    index = next(way[2] for way in facts["ways"] if way[0] == "0.0.0.0/0")
    assert sorted(ways) == sorted((prefix, 0, index, "192.0.2.9") for prefix in prefixes[:told])


def test_multipath_and_unreachable_defaults(host: Namespace) -> None:
    """The default route with the lowest metric counts, by its first hop; one that leads nowhere does not."""
    host.ip(
        "route del default\nroute add unreachable default metric 1\nroute add default metric 9 "
        "nexthop via 192.0.2.254 dev under0 nexthop via 192.0.2.253 dev under0\n"
    )
    facts = json.loads(host.run(sys.executable, "-c", SCRIPT).stdout)
    assert facts["defaults"] == ["under0"]
    assert ["0.0.0.0/0", 9, None, "None"] in facts["ways"]
