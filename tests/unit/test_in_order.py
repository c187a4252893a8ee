# SPDX-License-Identifier: Apache-2.0
"""The values of the table in order, whether few or many of them change at once."""

from __future__ import annotations

import pytest

from dataplane.peers import PATCH_MAX, InOrder

FEW_AND_MANY = [3, PATCH_MAX, PATCH_MAX + 1]


@pytest.mark.parametrize("count", FEW_AND_MANY)
def test_values_come_and_go(count: int) -> None:
    """What was put is there in order of the keys, what was dropped is not, and the rest stays."""
    values: InOrder[str] = InOrder()
    values.put(-1, "first")
    for key in reversed(range(count)):
        values.put(key, str(key))
    assert values.values() == ("first", *map(str, range(count)))
    for key in range(1, count + 1):
        values.put(key, f"new {key}")
    assert values.values() == ("first", "0", *(f"new {key}" for key in range(1, count + 1)))
    for key in range(count + 3):
        values.drop(key)
    assert values.values() == ("first",)


@pytest.mark.parametrize("count", FEW_AND_MANY)
def test_what_did_not_change_stays_the_same_object(count: int) -> None:
    """A value that is put again, though from elsewhere, leaves the object that is there."""
    values: InOrder[list[int]] = InOrder()
    for key in range(count):
        values.put(key, [key])
    before = values.values()
    for key in range(count):
        values.put(key, [key])
    assert [id(value) for value in values.values()] == [id(value) for value in before]


def test_nothing_changed_is_the_same_tuple() -> None:
    """Where only the same was put, and only what is not there was dropped, the same tuple is shown."""
    values: InOrder[int] = InOrder()
    values.put(1, 10)
    shown = values.values()
    values.put(1, 10)
    values.drop(0)
    values.drop(2)
    assert values.values() is shown
