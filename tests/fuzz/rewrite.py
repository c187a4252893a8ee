# SPDX-License-Identifier: Apache-2.0
"""Mutations of texts: words of the format in place of others; hardly any change of a letter is accepted.

What a text is made of is found once and kept, so that a mutation takes microseconds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from random import Random
from typing import NamedTuple, TypeVar

KEPT = 8192  # texts whose parts are known
WORDS = re.compile(r'"(?:[^"\\]|\\.)*"|[\w.:/&-]+|\s+|.', re.DOTALL)
PARTS = re.compile(r"\d+|[A-Za-z_]+|.", re.DOTALL)
TOKENS = re.compile(r'(?P<name>"(?:[^"\\]|\\.)*"(?=\s*:))|"(?:[^"\\]|\\.)*"|[{}\[\]]|[^\s{}\[\],:"]+')
DIGITS = re.compile(r"\d+")
VALUES = ["0", "1", "-1", "24", "28", "32", "64", "128", "4096", "65535", "4294967296", "1e9", "null", "true"]
VALUES += ["false", "[]", "{}", '""', '"\\ud800"', '"10.244.8.0"', '"0.0.0.0"', '"255.255.255.255"']
VALUES += ['"::ffff:1.2.3.4"', '"ff:ff:ff:ff:ff:ff"']
COMMON = [*VALUES, "\0", "\n", "ä", "192.0.2.8", "fd00:244:0:8::/64"]

T = TypeVar("T")
Span = tuple[int, int]


def pick(dice: Random, some: Sequence[T]) -> T:
    """Return one of some; Random.choice() takes five times as long."""
    return some[int(dice.random() * len(some))]


def nearby(dice: Random) -> int:
    """Return a number, mostly one that an address may hold."""
    most = pick(dice, (10, 256, 0))
    return int(dice.random() * most) if most else pick(dice, (24, 32, 64, 1450, 1 << 17))


# --- what there is in a text ----------------------------------------------------------------------------


class Place(NamedTuple):
    """Where a value stands in a JSON text: in an object or an array."""

    value: Span
    whole: Span  # with its name and a comma: what goes when it is left out
    name: Span | None


class _Open:
    """An object or array whose end is not reached."""

    def __init__(self, start: int, name: Span | None) -> None:
        self.start, self.name = start, name  # name: its own
        self.items: list[tuple[Span, Span | None]] = []

    def close(self) -> list[Place]:
        """Return where each item stands."""
        ends = [((name or value)[0], value[1]) for value, name in self.items]
        wholes = [(ends[at - 1][1], end[1]) for at, end in enumerate(ends)]
        if ends:  # before the first one there is no comma
            wholes[0] = (ends[0][0], ends[1][0] if len(ends) > 1 else ends[0][1])
        return [Place(value, whole, name) for (value, name), whole in zip(self.items, wholes, strict=True)]


@lru_cache(KEPT)
def places(text: str) -> tuple[Place, ...]:
    """Return where every value of a JSON text stands; nowhere if it is none."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return ()
    found: list[Place] = []
    outer = [_Open(0, None)]
    name: Span | None = None
    for token in TOKENS.finditer(text):
        if token["name"]:
            name = token.span()
            continue
        if token[0] in "{[":
            outer.append(_Open(token.start(), name))
        elif token[0] in "}]":
            done = outer.pop()
            found += done.close()
            outer[-1].items.append(((done.start, token.end()), done.name))
        else:
            outer[-1].items.append((token.span(), name))
        name = None
    return tuple(found)


@lru_cache(KEPT)
def words_of(text: str, *, is_json: bool) -> tuple[str, ...]:
    """Cut a text where the format does; without JSON there is more than one word in an address."""
    return tuple((WORDS if is_json else PARTS).findall(text))


@lru_cache(KEPT)
def numbers_of(text: str) -> tuple[Span, ...]:
    """Return where there are digits."""
    return tuple(found.span() for found in DIGITS.finditer(text))


def vary(value: str, dice: Random) -> str:
    """Return another value of the same type, close to it where there are numbers."""
    if value in ("true", "false"):
        return "false" if value == "true" else "true"
    if value[0] in "{[":
        return value
    numbers = numbers_of(value)
    if not numbers:
        return value
    start, end = pick(dice, numbers)
    return f"{value[:start]}{nearby(dice)}{value[end:]}"


# --- rewriting -----------------------------------------------------------------------------------------


class Rewriter:
    """Rewrites texts of one format, by what good ones look like and by words besides those in them."""

    def __init__(self, good: Sequence[str], words: Sequence[str], *, is_json: bool) -> None:
        """Find out what there is to put in places of others."""
        self._is_json = is_json
        self._good = [text for one in good for text in ((one, *_respelt(one)) if is_json else (one,))]
        self._spare = [*COMMON, *words, *(word for text in good for word in words_of(text, is_json=is_json))]
        self._values = VALUES + [text[slice(*place.value)] for text in good for place in places(text)]
        self._names = [f"{word[:-1]}{end}" for word in words for end in ('"', '"', 'x"')] if is_json else []

    def rewrite(self, text: str, dice: Random) -> str:
        """Change a text, or a good one in its place: most that is kept was refused."""
        if dice.random() < 0.85:
            text = pick(dice, self._good)
        if self._is_json and dice.random() < 0.9:
            return self._rewrite_values(text, dice)
        return self._rewrite_words(text, dice)

    def _rewrite_values(self, text: str, dice: Random) -> str:
        """Vary values, put others in their place, and leave some out; it stays JSON."""
        found = places(text)
        if not found:
            text = pick(dice, self._good)
            found = places(text)
        changes = [self._change(text, pick(dice, found), dice) for _ in range(pick(dice, (0, 1, 1, 1, 1, 2)))]
        untouched = len(text)
        for (start, end), new in sorted(changes, reverse=True):
            if end <= untouched:  # or it holds what was changed
                text = f"{text[:start]}{new}{text[end:]}"
                untouched = start
        return text

    def _change(self, text: str, place: Place, dice: Random) -> tuple[Span, str]:
        """Return what to put where: in place of a value, of a name, or of both."""
        if place.name is not None and dice.random() < 0.2:
            if dice.random() < 0.3:
                return place.name, pick(dice, self._names)
            return place.whole, ""
        if dice.random() < 0.8:
            return place.value, vary(text[slice(*place.value)], dice)
        return place.value, pick(dice, self._values)

    def _rewrite_words(self, text: str, dice: Random) -> str:
        """Put words of the format in place of others, or numbers in place of numbers."""
        words = list(words_of(text, is_json=self._is_json))
        for _ in range(pick(dice, (1, 1, 1, 2, 4))):
            numbers = [at for at, word in enumerate(words) if word.isdecimal()]
            if numbers and dice.random() < 0.8:
                words[pick(dice, numbers)] = str(nearby(dice))
                continue
            at = int(dice.random() * (len(words) + 1))
            words[at : at + pick(dice, (0, 1, 1, 1, 2))] = (
                [pick(dice, self._spare)] if dice.random() < 0.8 else []
            )
        return "".join(words)


def _respelt(text: str) -> tuple[str, ...]:
    """Return the same JSON as others write it."""
    document = json.loads(text)
    return json.dumps(document, indent=1), json.dumps(document, separators=(",", ":"))
