# SPDX-License-Identifier: Apache-2.0
"""Records of a table: whatever came before, they are what packing and sorting all values makes."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane import layout
from dataplane.layout import Records


@dataclass(frozen=True, slots=True)
class Value:
    """Something to pack."""

    number: int


class Packer:
    """Packs a Value to 2 bytes, and counts how often."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, value: Value) -> bytes:
        self.count += 1
        return struct.pack(">H", value.number)


def packed(values: tuple[Value, ...]) -> bytes:
    """Return the records the slow way."""
    return b"".join(sorted(struct.pack(">H", value.number) for value in values))


tables = st.lists(st.lists(st.integers(0, 50), max_size=30), max_size=6)


@pytest.mark.parametrize("most", [0, 3, 1000])
@pytest.mark.parametrize("block", [1, 4])
def test_records_follow_any_tables(most: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """After any tables, with repeated values or objects too, the records are those of the last one."""
    monkeypatch.setattr(layout, "PATCH_MAX", most)
    monkeypatch.setattr(layout, "BLOCK", block)
    shared = [Value(number) for number in range(51)]

    @given(tables, st.booleans())
    def check(numbers: list[list[int]], is_shared: bool) -> None:
        records = Records(Packer(), 2)
        for table in numbers:
            values = tuple(shared[number] if is_shared else Value(number) for number in table)
            assert records.update(values) == packed(values)

    check()


@pytest.mark.parametrize("at", [0, 1, 4999, 9998, 9999])
def test_one_that_changes_comes_or_goes_is_packed_alone(at: int) -> None:
    """With 10 000 values in place, one change packs one value or two, wherever it is."""
    packer = Packer()
    records = Records(packer, 2)
    values = tuple(Value(2 * number) for number in range(10_000))
    others = {
        "changed": (*values[:at], Value(7), *values[at + 1 :]),
        "gone": values[:at] + values[at + 1 :],
        "come": (*values[:at], Value(7), *values[at:]),
    }
    records.update(values)
    for what, other in others.items():
        packer.count = 0
        assert records.update(other) == packed(other), what
        assert 1 <= packer.count <= 2, what
        records.update(values)


def test_same_values_are_not_packed_again() -> None:
    """A table that equals the last one is not packed, whether its values are the same objects or not."""
    packer = Packer()
    records = Records(packer, 2)
    records.update(tuple(Value(number) for number in range(5000)))
    packer.count = 0
    for values in (tuple(Value(number) for number in range(5000)), tuple(map(Value, range(5000)))):
        assert records.update(values) == packed(values)
    assert packer.count == 0


def test_value_that_cannot_be_packed_changes_nothing() -> None:
    """When a value is refused, the records stay those of the last table, and the next one is right."""
    records = Records(Packer(), 2)
    first = tuple(map(Value, range(10)))
    records.update(first)
    with pytest.raises(struct.error):
        records.update((*first[:3], Value(-1), *first[4:]))
    assert records.update(first) == packed(first)
    assert records.update(first[1:]) == packed(first[1:])
