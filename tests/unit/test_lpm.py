# SPDX-License-Identifier: Apache-2.0
"""Longest-prefix match: named cases, and a million lookups in a table that keeps changing."""

from __future__ import annotations

import random
from ipaddress import ip_address, ip_network

import pytest

from tests import oracle
from tests.probe import Lpm

MAX = {32: 2**32 - 1, 128: 2**128 - 1}
BITS = pytest.mark.parametrize("bits", [32, 128], ids=["v4", "v6"])


def table(*prefixes: str) -> Lpm:
    """Build a table whose values count from 1 in the order given."""
    networks = [ip_network(prefix) for prefix in prefixes]
    return Lpm(
        networks[0].max_prefixlen,
        [(int(net.network_address), net.prefixlen, value) for value, net in enumerate(networks, 1)],
    )


def answers(lpm: Lpm, *addresses: str) -> list[int]:
    """Look up addresses written out."""
    return lpm.lookup([int(ip_address(address)) for address in addresses])


@BITS
def test_empty_table_answers_nothing(bits: int) -> None:
    """Without prefixes no address has an answer."""
    assert Lpm(bits, []).lookup([0, 1, MAX[bits] // 2, MAX[bits]]) == [0, 0, 0, 0]


@BITS
def test_default_route_answers_everything(bits: int) -> None:
    """A prefix of length 0 holds every address."""
    assert Lpm(bits, [(0, 0, 9)]).lookup([0, 1, MAX[bits] // 2, MAX[bits]]) == [9, 9, 9, 9]


@BITS
def test_host_prefixes_at_both_ends(bits: int) -> None:
    """The first and the last address can each be a prefix of their own."""
    lpm = Lpm(bits, [(0, bits, 1), (MAX[bits], bits, 2)])
    assert lpm.lookup([0, 1, MAX[bits] - 1, MAX[bits]]) == [1, 0, 0, 2]


@BITS
def test_nesting_of_every_length(bits: int) -> None:
    """One prefix of each length around one address: each neighbour gets the longest that holds it."""
    address = MAX[bits] // 3
    nested = [(address >> (bits - n) << (bits - n), n, n + 1) for n in range(bits + 1)]
    lpm = Lpm(bits, nested)
    assert lpm.lookup([address]) == [bits + 1]
    for n in range(bits):  # differs from address first in bit n, so shares n bits with it
        assert lpm.lookup([address ^ 1 << (bits - 1 - n)]) == [n + 1]


@BITS
def test_nesting_that_ends_together(bits: int) -> None:
    """Nested prefixes that all end with the address space itself, or all begin with it."""
    upper = [(MAX[bits] >> (bits - n) << (bits - n), n, n + 1) for n in range(bits + 1)]
    lower = [(0, n, n + 1) for n in range(bits + 1)]
    assert Lpm(bits, upper).lookup([MAX[bits], 0, MAX[bits] - 1]) == [bits + 1, 1, bits]
    assert Lpm(bits, lower).lookup([0, 1, MAX[bits]]) == [bits + 1, bits, 1]


def test_inner_prefix_then_outer_again() -> None:
    """Behind a nested prefix the one around it goes on."""
    lpm = table("10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24")
    addresses = (
        "9.255.255.255",
        "10.0.0.0",
        "10.0.255.255",
        "10.1.0.0",
        "10.1.1.255",
        "10.1.2.0",
        "10.1.2.255",
    )
    assert answers(lpm, *addresses) == [0, 1, 1, 2, 2, 3, 3]
    assert answers(lpm, "10.1.3.0", "10.1.255.255", "10.2.0.0", "10.255.255.255", "11.0.0.0") == [
        2,
        2,
        1,
        1,
        0,
    ]


def test_neighbours_do_not_merge() -> None:
    """Adjacent prefixes with different answers keep them, with the same answer they are one range."""
    lpm = table("10.0.0.0/24", "10.0.1.0/24")
    assert answers(lpm, "10.0.0.255", "10.0.1.0", "10.0.2.0") == [1, 2, 0]
    same = Lpm(32, [(0x0A000000, 24, 5), (0x0A000100, 24, 5)])
    assert same.lookup([0x09FFFFFF, 0x0A000000, 0x0A0000FF, 0x0A000100, 0x0A0001FF, 0x0A000200]) == [
        0,
        5,
        5,
        5,
        5,
        0,
    ]


def test_inner_prefix_at_either_end_of_the_outer() -> None:
    """Nothing is lost where two ranges begin or end at the same address."""
    lpm = table("10.0.0.0/16", "10.0.0.0/24", "10.0.255.0/24")
    assert answers(
        lpm, "10.0.0.0", "10.0.0.255", "10.0.1.0", "10.0.254.255", "10.0.255.0", "10.0.255.255"
    ) == [*(2, 2, 1, 1, 3, 3)]
    assert answers(lpm, "9.255.255.255", "10.1.0.0") == [0, 0]


def test_ipv6_answers_need_all_128_bits() -> None:
    """Prefixes that differ in the last bits only are told apart."""
    lpm = table(
        "fd00::/64", "fd00::ffff:ffff:ffff:fffe/127", "fd00::ffff:ffff:ffff:ffff/128", "fd00:0:0:1::/64"
    )
    addresses = (
        "fd00::1",
        "fd00::ffff:ffff:ffff:fffe",
        "fd00::ffff:ffff:ffff:ffff",
        "fd00:0:0:1::",
        "fd00:0:0:2::",
    )
    assert answers(lpm, *addresses) == [1, 2, 3, 4, 0]


def test_order_of_insertion_does_not_matter() -> None:
    """The same prefixes in any order make the same table."""
    prefixes = [(0x0A000000, 8, 1), (0x0A010000, 16, 2), (0x0A010200, 24, 3), (0, 0, 4), (0x0A010203, 32, 5)]
    addresses = [0, 0x0A000000, 0x0A010000, 0x0A010200, 0x0A010203, 0x0A010204, 0xFFFFFFFF]
    expected = Lpm(32, prefixes).lookup(addresses)
    for seed in range(20):
        shuffled = random.Random(seed).sample(prefixes, len(prefixes))
        assert Lpm(32, shuffled).lookup(addresses) == expected


@BITS
def test_every_built_table_is_valid(bits: int) -> None:
    """A built table passes the check that a forwarder makes, with no larger answer than the largest."""
    lpm = Lpm(bits, [(MAX[bits], bits, 3), (0, 1, 7), (0, 0, 5)])
    assert [lpm.is_valid(most) for most in (2**32 - 1, 7, 6, 0)] == [True, True, False, False]
    assert Lpm(bits, []).is_valid(0)


# --- against the oracle -------------------------------------------------------------------------------

ROUNDS = 10
LOOKUPS = {32: 1_000_000, 128: 200_000}  # the oracle asks for each length there is


def random_prefix(rng: random.Random, bits: int, hubs: list[int]) -> tuple[int, int]:
    """Draw a prefix; most share their first bits with others, so that they nest."""
    length = rng.choice([0, bits, rng.randint(1, bits), rng.randint(bits // 4, bits * 3 // 4)])
    address = rng.choice(hubs) ^ rng.getrandbits(bits) >> rng.randint(0, bits - 1)
    return address >> (bits - length) << (bits - length), length


@BITS
def test_case_104_random_table_with_removals(bits: int) -> None:
    """A million lookups over ten tables agree, each made from the last by removals and additions."""
    rng = random.Random(104 + bits)
    hubs = [rng.getrandbits(bits) for _ in range(8)]
    slow = oracle.SlowTable(bits)
    for value in range(1, ROUNDS + 1):
        for key in rng.sample(sorted(slow.prefixes), len(slow.prefixes) // 2):
            slow.remove(key)
        for i in range(300):
            slow.insert(*random_prefix(rng, bits, hubs), 1000 * value + i)
        lpm = Lpm(bits, [(number << (bits - n), n, v) for (number, n), v in slow.prefixes.items()])
        addresses = slow.edges()
        addresses += [rng.choice(addresses) ^ rng.getrandbits(8) for _ in range(LOOKUPS[bits] // ROUNDS // 2)]
        addresses += [rng.getrandbits(bits) for _ in range(LOOKUPS[bits] // ROUNDS - len(addresses))]
        assert lpm.is_valid(2**32 - 1)
        assert lpm.lookup(addresses) == [slow.lookup(address) for address in addresses]
