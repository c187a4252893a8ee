# SPDX-License-Identifier: Apache-2.0
"""Longest-prefix match over sequences of insertions and removals, against a dict per length."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.oracle import SlowTable
from tests.probe import Lpm

# Few distinct bits, so that prefixes nest, touch and coincide all the time.
seeds = st.integers(0, 15) | st.integers(0, 2**128 - 1)


@st.composite
def prefixes(draw: st.DrawFn, bits: int) -> tuple[int, int]:
    """Draw (address, length) near an end of the address space or anywhere."""
    length = draw(st.integers(0, bits))
    address = draw(seeds)
    if draw(st.booleans()):
        address <<= bits - 4
    if draw(st.booleans()):
        address = ~address
    address &= (1 << bits) - 1
    return address >> (bits - length) << (bits - length), length


def check(slow: SlowTable, value_max: int) -> None:
    """Compare both tables at both ends of every prefix and right outside."""
    entries = [(number << (slow.bits - n), n, value) for (number, n), value in slow.prefixes.items()]
    lpm = Lpm(slow.bits, entries)
    addresses = [0, *slow.edges(), (1 << slow.bits) - 1]
    assert lpm.lookup(addresses) == [slow.lookup(address) for address in addresses]
    assert lpm.is_valid(value_max)


@given(st.lists(prefixes(32), max_size=24), st.data())
def test_ipv4_table_follows_insertions_and_removals(
    drawn: list[tuple[int, int]], data: st.DataObject
) -> None:
    """After any insertions, and again after any removals, each address has the answer of the oracle."""
    follow(SlowTable(32), drawn, data)


@given(st.lists(prefixes(128), max_size=24), st.data())
def test_ipv6_table_follows_insertions_and_removals(
    drawn: list[tuple[int, int]], data: st.DataObject
) -> None:
    """After any insertions, and again after any removals, each address has the answer of the oracle."""
    follow(SlowTable(128), drawn, data)


def follow(slow: SlowTable, drawn: list[tuple[int, int]], data: st.DataObject) -> None:
    """Insert everything, check, remove some of it, check again."""
    for value, (address, length) in enumerate(drawn, 1):
        slow.insert(address, length, value)
    check(slow, len(drawn))
    if slow.prefixes:
        for key in data.draw(st.lists(st.sampled_from(sorted(slow.prefixes)), unique=True)):
            slow.remove(key)
        check(slow, len(drawn))


@given(st.lists(prefixes(32), min_size=1, max_size=12), st.integers(1, 3))
def test_answers_that_coincide_are_still_right(drawn: list[tuple[int, int]], values: int) -> None:
    """Ranges with the same answer are merged, and nothing else is."""
    slow = SlowTable(32)
    for i, (address, length) in enumerate(drawn):
        slow.insert(address, length, 1 + i % values)
    check(slow, values)
