# SPDX-License-Identifier: Apache-2.0
"""Pairwise covering arrays: few settings of many switches, in which each pair of values occurs."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Hashable, Mapping, Sequence

Row = dict[str, Hashable]
Pair = frozenset[tuple[str, Hashable]]
TRIES = 40  # candidates for each row; more make hardly fewer rows


def pairs_of(row: Row) -> set[Pair]:
    """Return all pairs of values that stand in a row."""
    return {frozenset(pair) for pair in itertools.combinations(row.items(), 2)}


def cover(
    factors: Mapping[str, Sequence[Hashable]], settle: Callable[[Row], Row], first: Sequence[Row] = ()
) -> list[Row]:
    """Return rows in which each pair of values occurs that can occur, beginning with `first`.

    `settle` says what a row really comes to, where one value rules out another. The first value of each
    factor must be one that rules out none, so that a pair can occur if it survives among those.
    """
    usual: Row = {name: values[0] for name, values in factors.items()}
    wanted: dict[Pair, None] = {}  # a set that keeps its order: the same rows on each run
    for one, other in itertools.combinations(factors, 2):
        for values in itertools.product(factors[one], factors[other]):
            forced: Row = {one: values[0], other: values[1]}
            if settle(usual | forced).items() >= forced.items():
                wanted[frozenset(forced.items())] = None
    draw = random.Random(0)
    rows = [settle(row) for row in first]
    while missing := {pair: None for pair in wanted if not any(row.items() >= pair for row in rows)}:
        forced = dict(next(iter(missing)))
        best = settle(usual | forced)
        for _ in range(TRIES):
            chance: Row = {name: draw.choice(values) for name, values in factors.items()}
            row = settle(chance | forced)
            if row.items() >= forced.items():
                best = max(best, row, key=lambda row: sum(row.items() >= pair for pair in missing))
        rows.append(best)
    return rows
