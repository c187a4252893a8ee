# SPDX-License-Identifier: Apache-2.0
"""The table against a plain reading of what went into it."""

from __future__ import annotations

import os
from ipaddress import IPv4Network, IPv6Network, ip_address

from hypothesis import given
from hypothesis import strategies as st

from tests.probe import Fib, Prefix, Spec, Subnet, fib_create

# Few distinct networks, so that lists overlap and subnets nest.
networks4 = st.builds(
    lambda seed, length: IPv4Network((0x0AF40000 + (seed << 6), length), strict=False),
    st.integers(0, 31),
    st.integers(0, 32),
)
networks6 = st.builds(
    lambda seed, length: IPv6Network((0xFD << 120 | seed << 62, length), strict=False),
    st.integers(0, 31),
    st.integers(0, 128),
)
networks: st.SearchStrategy[Prefix] = networks4 | networks6
lists = st.lists(networks, max_size=6, unique=True)
addresses4 = st.integers(1, 2**32 - 1).map(lambda number: str(ip_address(number)))
addresses6 = st.integers(2**32, 2**128 - 1).map(lambda number: str(ip_address(number)))
peers = st.lists(
    st.tuples(st.integers(0, 65535), st.none() | addresses4, st.none() | addresses6),
    max_size=8,
    unique_by=(lambda row: row[0], lambda row: row[1] or row[0], lambda row: row[2] or row[0]),
)


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    """Draw a table."""
    subnets = [Subnet(net, draw(st.integers(0, 65535)), mtu=i) for i, net in enumerate(draw(lists))]
    return Spec(draw(peers), subnets, draw(lists), draw(lists), draw(lists), draw(st.integers(0, 2**64 - 1)))


def longest(packed: bytes, subnets: list[Prefix]) -> int | None:
    """Return the index of the longest prefix that holds the address."""
    address = ip_address(packed)
    holding = [i for i, net in enumerate(subnets) if net.version == address.version and address in net]
    return max(holding, key=lambda i: subnets[i].prefixlen, default=None)


@given(specs())
def test_table_answers_as_its_lists_read(spec: Spec) -> None:
    """At both ends of every prefix and right outside, each table answers what its list says."""
    prefixes = [*(subnet.prefix for subnet in spec.subnets), *spec.own, *spec.sources, *spec.allowed]
    probes = {net[0].packed for net in prefixes} | {net[-1].packed for net in prefixes}
    for edge in list(probes):
        number, bits = int.from_bytes(edge, "big"), 8 * len(edge)
        probes |= {((number + step) % 2**bits).to_bytes(len(edge), "big") for step in (-1, 1)}
    fd = fib_create(spec)
    try:
        with Fib(fd) as fib:
            assert fib.generation == spec.generation
            for packed in probes:
                assert fib.subnet(packed) == longest(packed, [subnet.prefix for subnet in spec.subnets])
                expected = {
                    name for name in ("own", "allowed") if longest(packed, [*getattr(spec, name)]) is not None
                }
                if longest(packed, [*spec.sources, *spec.allowed]) is not None:
                    expected.add("sources")
                assert fib.lists(packed) == expected
            check_peers(fib, spec)
    finally:
        os.close(fd)


def check_peers(fib: Fib, spec: Spec) -> None:
    """Compare the addresses of all peers, and their neighbours, with the list."""
    owners = {ip_address(a): peer_id for peer_id, *both in spec.peers for a in both if a is not None}
    for address, peer_id in owners.items():
        assert fib.peer(address.packed) == peer_id
        for step in (-1, 1):
            packed = ((int(address) + step) % 2**address.max_prefixlen).to_bytes(len(address.packed), "big")
            assert fib.peer(packed) == owners.get(ip_address(packed))
