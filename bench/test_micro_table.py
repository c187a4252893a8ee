# SPDX-License-Identifier: Apache-2.0
"""What lookups and tables cost: make bench-micro ARGS='-k lookup'.

Times of lookups are for LOOKUPS addresses, one behind the other in memory, in one call from Python; the
column that matters is ns_per_lookup of `--benchmark-json`, printed with -s. `make test` does not collect this
file.
"""

from __future__ import annotations

import os
import random
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest

from dataplane import layout, native
from dataplane.config import RunConfig
from dataplane.model import (
    Encap,
    Entry,
    Event,
    HostFacts,
    Interface,
    Lease,
    LeaseDeleted,
    LeasePut,
    Listed,
    MacAddress,
    NetworkConfig,
    Peer,
    SubnetEntry,
    SubnetKey,
    Table,
)
from dataplane.reconcile import Reconciler
from tests import oracle
from tests.probe import Fib, Lpm, ffi, lib

LOOKUPS = 1_000_000
HOT = 64  # addresses that are looked up again and again
PEERS = 100_000

Benchmark = Any  # a fixture of pytest-benchmark
Prefixes = list[tuple[int, int]]


# --- lookups ----------------------------------------------------------------------------------------


def beside(bits: int, count: int, dice: random.Random) -> Prefixes:
    """Return subnets side by side, as one network is divided."""
    length, first = (24, 10 << 24) if bits == 32 else (64, 0xFD << 120)
    return [(first + (i << bits - length), length) for i in range(count)]


def strewn(bits: int, count: int, dice: random.Random) -> Prefixes:
    """Return subnets anywhere, far from each other."""
    length, spread, first = (24, 24, 0) if bits == 32 else (64, 32, 0x20010DB8 << 96)
    return [(first | i << bits - length, length) for i in dice.sample(range(1 << spread), count)]


def nested(bits: int, count: int, dice: random.Random) -> Prefixes:
    """Return prefixes of many lengths, some within others."""
    lengths = (12, 16, 20, 22, 24, 24, 24, 28, 32) if bits == 32 else (32, 40, 48, 48, 56, 64, 64, 64, 128)
    made: dict[tuple[int, int], None] = {}
    while len(made) < count:
        length = dice.choice(lengths)
        address = dice.getrandbits(bits) if bits == 32 else 1 << 125 | dice.getrandbits(125)
        made[address >> bits - length << bits - length, length] = None
    return list(made)


SHAPES = {"beside": beside, "strewn": strewn, "nested": nested}


@pytest.mark.parametrize("which", ["hot", "random"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [10, 1000, 100_000, 1_000_000])
@pytest.mark.parametrize("bits", [32, 128], ids=["v4", "v6"])
def test_lookup(benchmark: Benchmark, bits: int, count: int, shape: str, which: str) -> None:
    """Look up addresses that prefixes hold: a few again and again, or ever others."""
    dice = random.Random(count)
    prefixes = SHAPES[shape](bits, count, dice)
    table = Lpm(bits, [(first, n, value) for value, (first, n) in enumerate(prefixes, 1)])
    chosen = dice.choices(prefixes, k=HOT if which == "hot" else LOOKUPS // 4)
    held = [first | dice.getrandbits(bits - n) if n < bits else first for first, n in chosen]
    addresses = oracle.wire(held * (LOOKUPS // len(held)), bits)
    answers, looked_up = ffi.new("uint32_t[]", LOOKUPS), len(addresses) * 8 // bits
    benchmark.pedantic(
        lib.probe_lpm_lookup, (table._lpm, addresses, looked_up, answers), rounds=5, warmup_rounds=1
    )
    assert all(answers[i] for i in range(0, looked_up, 997))
    ns = benchmark.stats.stats.min / looked_up * 1e9
    benchmark.extra_info["ns_per_lookup"] = round(ns, 2)
    print(f"\n{'v4' if bits == 32 else 'v6'} {count:>7} {shape} {which:>6}: {ns:5.1f} ns")


# --- tables -----------------------------------------------------------------------------------------


def make_table(count: int) -> Table:
    """Return a table of as many peers with a subnet each."""
    mac = MacAddress(bytes.fromhex("02aabbccddee"))
    peers, subnets = [], []
    for i in range(count):
        vtep = IPv4Address(0xC6120000 + i)
        peers.append(Peer(i, (vtep,)))
        subnets.append(SubnetEntry(IPv4Network((0x0B000000 + (i << 8), 24)), i, Encap.VXLAN, vtep, mac))
    return Table(tuple(peers), tuple(subnets))


def build_and_open(table: Table) -> None:
    """Do what a publish takes: pack, build, seal, map, check."""
    fd = native.fib_create(table, 1)
    with Fib(fd):
        os.close(fd)


def test_publish_from_values(benchmark: Benchmark) -> None:
    """Build a table of PEERS peers of which nothing is known yet, and open it."""
    table = make_table(PEERS)

    def forget() -> None:
        os.close(native.fib_create(Table(), 1))

    benchmark.pedantic(build_and_open, (table,), setup=forget, rounds=7)


def test_publish_one_changed(benchmark: Benchmark) -> None:
    """Build a table in which one of PEERS peers has moved, and open it."""
    table = make_table(PEERS)
    dice = random.Random(1)
    build_and_open(table)

    def change() -> tuple[tuple[Table], dict[str, Any]]:
        at, address = dice.randrange(PEERS), IPv4Address(dice.getrandbits(32))
        peers, subnets = list(table.peers), list(table.subnets)
        peers[at] = Peer(at, (address,))
        old = subnets[at]
        subnets[at] = SubnetEntry(old.prefix, at, old.encap, address, old.vtep_mac)
        return (Table(tuple(peers), tuple(subnets)),), {}

    benchmark.pedantic(build_and_open, setup=change, rounds=20)


# --- the reconciler ---------------------------------------------------------------------------------

OWN = Lease(SubnetKey(IPv4Network("11.255.0.0/24")), IPv4Address("192.0.2.1"), None, Encap.VXLAN)
CLUSTER = NetworkConfig(IPv4Network("10.0.0.0/7"), None, Encap.VXLAN)
HOST = HostFacts((Interface("eth0", 2, 1500, (IPv4Address("192.0.2.1"),)),))


def make_entry(number: int, mac: int) -> Entry:
    """Return the lease of node `number`."""
    subnet = IPv4Network(((10 << 24) + (number << 8), 24))
    vtep_mac = MacAddress((2 << 40 | mac).to_bytes(6, "big"))
    ip = IPv4Address(0xC6120000 + number)
    return Entry(str(number), Lease(SubnetKey(subnet), ip, None, Encap.VXLAN, vtep_mac))


def make_list() -> Listed:
    """Return PEERS leases, and ours."""
    return Listed(1, CLUSTER, (Entry("own", OWN), *(make_entry(n, 1) for n in range(PEERS))))


def test_first_list(benchmark: Benchmark) -> None:
    """Make a table of a list of PEERS leases of which nothing is known yet."""
    event = make_list()

    def start() -> tuple[tuple[Reconciler], dict[str, Any]]:
        return (Reconciler(RunConfig(store="file:///x"), HOST),), {}

    benchmark.pedantic(lambda reconciler: reconciler.apply(event, 0.0), setup=start, rounds=5)


@pytest.mark.parametrize("what", ["changed", "deleted", "renewed"])
def test_one_event(benchmark: Benchmark, what: str) -> None:
    """Make a table after one of PEERS leases changed, or ended, or was merely renewed."""
    reconciler, numbers = Reconciler(RunConfig(store="file:///x"), HOST), iter(range(7, PEERS, 997))
    reconciler.apply(make_list(), 0.0)

    def event() -> tuple[tuple[Event, float], dict[str, Any]]:
        number = next(numbers)
        if what == "deleted":
            return (LeaseDeleted(2, str(number)), 1.0), {}
        entry = make_entry(number, 2 if what == "changed" else 1)
        return (LeasePut(2, replace(entry, changed=2)), 1.0), {}

    benchmark.pedantic(reconciler.apply, setup=event, rounds=50)


def test_open(benchmark: Benchmark) -> None:
    """Map and check a table of PEERS peers, as a forwarder does."""
    fd = native.fib_create(make_table(PEERS), 1)

    def open_and_close() -> None:
        Fib(fd).__exit__()

    benchmark(open_and_close)
    os.close(fd)


def test_pack(benchmark: Benchmark) -> None:
    """Pack PEERS peers and as many subnets."""
    table = make_table(PEERS)

    def pack() -> int:
        records = [*map(layout.pack_peer, table.peers), *map(layout.pack_subnet, table.subnets)]
        return len(records)

    assert benchmark(pack) == 2 * PEERS
