# SPDX-License-Identifier: Apache-2.0
"""The line of a field in JSON text: found where it is written, whatever else the text holds."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from dataplane.store.file import find_line, list_fields


def test_find_line() -> None:
    """A field is found where it is written as a name and not as a value, in its object and no other."""
    text = '{"b": "a",\n\n "a" : 1,\n"c": {"x": [{"a": 1}, {"a": 2}],\n"a": "}{:\\"",\n"É.": 2}}'
    assert find_line(text, ("a",)) == 3
    assert find_line(text, ("c", "a")) == 5
    assert find_line(text, ("c",), "c.A: is wrong; allowed are é.") == 5
    assert find_line(text, ("c",), 'c: unknown field "é."') == 6
    assert find_line(text, ("c",), "c: it names no field") == 4
    assert find_line(text, ("d",)) is None


TREES = st.recursive(
    st.none() | st.text('"\\\n:{}[], ax1é') | st.integers(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text('"\\:{[, ab', max_size=4), inner, max_size=3)
    ),
    max_leaves=12,
)


def walk(value: object, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return all fields below a value in order; of those in arrays only their own names."""
    if isinstance(value, list):
        return [("[]", *below) for item in value for below in walk(item)]
    if not isinstance(value, dict):
        return []
    return [found for name, item in value.items() for found in ((*path, name), *walk(item, (*path, name)))]


@given(st.dictionaries(st.text('"\\:{[, ab', max_size=4), TREES, max_size=3))
def test_list_fields(tree: dict[str, object]) -> None:
    """Every field of any JSON is listed once, in order, on the line where json writes its name."""
    text = json.dumps(tree, indent=1)
    fields = list(list_fields(text))
    assert [path[-1] for path, _ in fields] == [path[-1] for path in walk(tree)]
    assert len({path for path, _ in fields}) == len(fields)
    lines = text.split("\n")
    for path, line in fields:
        assert lines[line - 1].strip().startswith(json.dumps(path[-1]) + ":")
    assert [line for _, line in fields] == sorted({line for _, line in fields})
    plain = [path for path, _ in fields if not any(name.startswith("#") for name in path)]
    assert plain == [path for path in walk(tree) if "[]" not in path]
