# SPDX-License-Identifier: Apache-2.0
"""What one call of a pure C unit costs: make bench-micro. Tables: test_micro_table.py.

Every call crosses cffi, which adds about a tenth of a microsecond; cheap units are called in batches
where C has them. `make test` does not collect this file.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from tests import inner
from tests.probe import View, ffi, lib

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
