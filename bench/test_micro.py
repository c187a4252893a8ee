# SPDX-License-Identifier: Apache-2.0
"""What one call of a pure C unit costs: make bench-micro. Tables: test_micro_table.py.

Every call crosses cffi, which adds about a tenth of a microsecond. That is most of what cheap units take: ask
`make bench-callgrind` about them. Where a call does many packets, `packets` in the extra info is how many.
`make test` does not collect this file.
"""

from __future__ import annotations

import random
import struct
from typing import Any

import pytest

from tests import inner, oracle, supers
from tests.probe import View, config, ffi, lib

Benchmark = Any  # a fixture of pytest-benchmark

SEGMENT = 1398  # payload of a TCP packet with timestamps at an MTU of 1450
FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["v4", "v6"])


def payload(length: int) -> bytes:
    """Return data like any other."""
    return random.Random(1).randbytes(length)


@pytest.mark.parametrize("length", [20, 40, 64, 256, 1460, 9000, 65000])
def test_csum(benchmark: Benchmark, length: int) -> None:
    """Sum bytes hot in cache: headers, packets, jumbo frames, super-packets."""
    # As behind headers: not where vectors would like it.
    data = ffi.new("uint8_t[]", payload(2 + length))
    assert benchmark(lib.csum_add, data + 2, length, 0)


@pytest.mark.parametrize("name", ["udp4", "tcp4", "udp6", "extensions6"])
def test_parse(benchmark: Benchmark, name: str) -> None:
    """Parse an inner packet, predicates and flow hash included."""
    view = View(inner.GOOD[name])
    out = ffi.new("struct probe_flow *")
    assert benchmark(lib.probe_parse_inner, view.pkt, out) == lib.DP_DROP_NONE


def test_vxlan_push(benchmark: Benchmark) -> None:
    """Put VXLAN headers in front of a packet."""
    view = View(inner.GOOD["tcp4"])
    off, length = view.pkt.off, view.pkt.len

    def push() -> bool:
        view.pkt.off, view.pkt.len = off, length
        return bool(lib.probe_encap_vxlan_push(view.pkt, 4, oracle.VNI, oracle.OUR_MAC4, oracle.PEER_MAC))

    assert benchmark(push)


def test_vxlan_pull(benchmark: Benchmark) -> None:
    """Check VXLAN headers and take them off."""
    view = View(oracle.vxlan(inner.GOOD["tcp4"]))
    ours, family = config(), ffi.new("uint8_t *")
    off, length = view.pkt.off, view.pkt.len

    def pull() -> int:
        view.pkt.off, view.pkt.len = off, length
        return int(lib.probe_encap_vxlan_pull(view.pkt, ours, family))

    assert benchmark(pull) == lib.DP_DROP_NONE


def test_ipip_pull(benchmark: Benchmark) -> None:
    """Check the outer header of IPIP and take it off; on tx the kernel writes it."""
    view = View(oracle.ipip(inner.GOOD["tcp4"]))
    outer = ffi.new("struct probe_outer *")
    off, length = view.pkt.off, view.pkt.len

    def pull() -> int:
        view.pkt.off, view.pkt.len = off, length
        return int(lib.probe_encap_ip4_pull(view.pkt, outer))

    assert benchmark(pull) == lib.DP_DROP_NONE


@FAMILIES
@pytest.mark.parametrize("proto", [oracle.PROTO_TCP, oracle.PROTO_UDP], ids=["tcp", "udp"])
def test_split(benchmark: Benchmark, family: int, proto: int) -> None:
    """Cut a super-packet of 64 KiB; what is counted also copies the segments' payload."""
    packet = supers.segment(payload(65000), family=family, proto=proto)
    view, vnet = View(supers.partial(packet)), struct.pack("=BBHHHHH", *supers.described(packet, SEGMENT))
    out, lens = ffi.new("uint8_t[]", 1 << 17), ffi.new("uint32_t[]", 64)
    count = benchmark(lib.probe_split, view.pkt, vnet, out, 1 << 17, lens, 64)
    assert count == -(-65000 // SEGMENT)
    benchmark.extra_info["packets"] = count


@FAMILIES
@pytest.mark.parametrize("proto", [oracle.PROTO_TCP, oracle.PROTO_UDP], ids=["tcp", "udp"])
def test_merge(benchmark: Benchmark, family: int, proto: int) -> None:
    """Join a burst of 40 packets; what is counted also parses them, and copies them once in and once out."""
    packets = supers.cut(supers.segment(payload(40 * SEGMENT), family=family, proto=proto), SEGMENT)
    assert len(packets) == 40
    as_came = b"".join(packets)
    data, out = ffi.new("uint8_t[]", as_came), ffi.new("uint8_t[]", 2 * len(as_came))
    lens, peers = ffi.new("uint32_t[]", [len(packet) for packet in packets]), ffi.new("uint32_t[]", [1] * 40)
    out_lens = ffi.new("uint32_t[]", 40)

    def join() -> int:
        ffi.memmove(data, as_came, len(as_came))  # the last round changed it
        return int(lib.probe_merge(data, lens, peers, 40, out, out_lens))

    assert benchmark(join) == 1
    benchmark.extra_info["packets"] = 40


@pytest.mark.parametrize("name", ["udp4", "udp6"])
def test_icmp(benchmark: Benchmark, name: str) -> None:
    """Write the error for a packet that nobody takes."""
    view = View(inner.GOOD[name])
    out = ffi.new("uint8_t[]", 1280)
    assert benchmark(lib.probe_icmp_no_route, out, view.pkt)
