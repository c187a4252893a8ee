# SPDX-License-Identifier: Apache-2.0
"""What one call of a pure C unit costs: make build && .venv/bin/python -m pytest bench/test_micro.py.

Every call crosses cffi, which adds about a tenth of a microsecond; cheap units are called in batches
where C has them. `make test` does not collect this file.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from ipaddress import IPv4Network, IPv6Network
from typing import Any

import pytest

from tests import inner, oracle
from tests.probe import Lpm, Spec, Subnet, View, ffi, fib_create, lib

ENTRIES = 10_000
LOOKUPS = 10_000

Benchmark = Callable[..., Any]


def test_csum_of_1500_bytes(benchmark: Benchmark) -> None:
    """Sum a packet of the usual size."""
    data = ffi.new("uint8_t[]", random.Random(1).randbytes(1500))
    assert benchmark(lib.csum_add, data, 1500, 0)


@pytest.mark.parametrize("name", ["udp4", "tcp4", "udp6", "extensions6"])
def test_parse(benchmark: Benchmark, name: str) -> None:
    """Parse an inner packet, predicates and flow hash included."""
    view = View(inner.GOOD[name])
    out = ffi.new("struct probe_flow *")
    assert benchmark(lib.probe_parse_inner, view.pkt, out) == lib.DP_DROP_NONE


@pytest.mark.parametrize("bits", [32, 128], ids=["v4", "v6"])
def test_lpm_lookup(benchmark: Benchmark, bits: int) -> None:
    """Look up LOOKUPS random addresses among ENTRIES subnets: divide the time by LOOKUPS."""
    dice = random.Random(2)
    length = 24 if bits == 32 else 64
    keys = dice.sample(range(1 << 16), ENTRIES)
    firsts = [(10 << 24 | key << 8) if bits == 32 else (0xFD << 120 | key << 64) for key in keys]
    table = Lpm(bits, [(first, length, value) for value, first in enumerate(firsts, 1)])
    wanted = [first | dice.getrandbits(bits - length) for first in dice.choices(firsts, k=LOOKUPS)]
    addresses = oracle.wire(wanted, bits)
    answers = ffi.new("uint32_t[]", LOOKUPS)
    assert all(table.lookup(wanted))
    benchmark(lib.probe_lpm_lookup, table._lpm, addresses, LOOKUPS, answers)


def test_fib_build(benchmark: Benchmark) -> None:
    """Build and seal a snapshot of ENTRIES subnets of as many peers; half of them are IPv6."""
    subnets: list[Subnet] = []
    peers: list[tuple[int, str | None, str | None]] = []
    for i in range(ENTRIES):
        if i % 2:
            peers.append((i, None, oracle.shown((0xFD << 120 | i).to_bytes(16, "big"))))
            subnets.append(Subnet(IPv6Network((0xFD << 120 | i << 64, 64)), i, vtep="fd00:192::2"))
        else:
            peers.append((i, oracle.shown((192 << 24 | i).to_bytes(4, "big")), None))
            subnets.append(Subnet(IPv4Network((10 << 24 | i << 8, 24)), i))
    spec = Spec(peers=peers, subnets=subnets)

    def build() -> None:
        fd = fib_create(spec)
        assert fd >= 0
        os.close(fd)

    benchmark(build)
