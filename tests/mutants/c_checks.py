# SPDX-License-Identifier: Apache-2.0
"""Finds the checks of a C unit of ours: it reads kernel style, not any C.

if (A || B) return DP_DROP_X;           A -> never; B -> never
return C ? DP_DROP_X : DP_DROP_NONE;    C -> never
return C ? DP_DROP_NONE : DP_DROP_X;    C -> always
return DP_DROP_X;                       -> DP_DROP_NONE, where no `if` stands before it
drop = check(...);                      -> called, but not obeyed
return A && B;                          A -> always; B -> always: of functions that return bool
return A || B;                          A -> never; B -> never
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.mutants.mutant import Mutant, Span, name_all

FUNCTION = re.compile(r"^(?P<type>\w[\w \t*]*?)\b(?P<name>\w+)\([^;{}]*\)\n\{\n(?P<body>.*?)^\}", re.M | re.S)
IF = re.compile(r"\bif (?=\()")
# What ends a packet's way or refuses a request. To return DP_DROP_NONE or 0 is neither.
REFUSES = re.compile(r"\breturn\b(?! (?:DP_DROP_NONE|0);)|\bgoto\b")
# Conditions that are checks whatever they lead to.
WORDS = re.compile(r"spoof|mtu|\becn\b|ECN_|TOO_BIG|EMSGSIZE|epoch", re.I)
# No checks of what came from outside: memory, descriptors and mappings that the kernel may refuse us.
RESOURCES = re.compile(
    r"!(?:fib|counters|engine|engine->workers)|.*MAP_FAILED|(?:fstat|ftruncate|pwrite|fcntl|poll|pthread_\w+)\(.*"
    r"|(?:\w+(?:->|\.))?\w*fd < 0|engine->fds\[i\] < 0",
    re.S,
)
RETURN = re.compile(r"\breturn (?P<value>[^;]+);")
ASSIGNED = re.compile(r"\b(?:drop|err) = (?P<value>\w+\([^;?]*\));")
REFUSAL = re.compile(r"^(?:DP_DROP_(?!NONE\b)\w+|-E\w+)$")


def blank(text: str) -> str:
    """Return the text with comments and literals as blanks: all else stays where it is."""

    def spaces(match: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", match[0])

    return re.sub(r"/\*.*?\*/|//[^\n]*|\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*'", spaces, text, flags=re.S)


def closing(text: str, at: int) -> int:
    """Return where the bracket at `at` is closed."""
    depth = 0
    for i in range(at, len(text)):
        depth += (text[i] in "([{") - (text[i] in ")]}")
        if depth == 0:
            return i
    raise ValueError("a bracket is never closed")


def split(text: str, start: int, end: int, mark: str) -> list[tuple[int, int]]:
    """Return the parts of text[start:end] between the marks that are in no bracket, without blanks around."""
    depth, begin, parts, i = 0, start, [], start
    while i < end:
        depth += (text[i] in "([{") - (text[i] in ")]}")
        if depth == 0 and text.startswith(mark, i):
            parts.append((begin, i))
            begin = i = i + len(mark)
        else:
            i += 1
    parts.append((begin, end))
    return [(a + len(text[a:b]) - len(text[a:b].lstrip()), a + len(text[a:b].rstrip())) for a, b in parts]


class Function:
    """One function of a unit, and the checks in it."""

    def __init__(self, text: str, clean: str, match: re.Match[str]) -> None:
        """Take what FUNCTION found in the text without comments."""
        self.text = text
        self.clean = clean
        self.name = match["name"]
        self.is_bool = match["type"].split()[-1] == "bool"
        self.start, self.end = match.span("body")

    def span(self, part: tuple[int, int], how: str) -> Span:
        """Return the check of an operand that is taken for true or false, and still evaluated by gcc."""
        start, end = part
        old = self.text[start:end]
        new = {"never": f"(0 && ({old}))", "always": f"(1 || ({old}))", "not obeyed": f"((void){old}, 0)"}
        return Span(self.name, self.text[self.start : self.end], start, end, how, new.get(how, how))

    def operands(self, start: int, end: int, how: str) -> Iterator[Span]:
        """Yield the operands that are checks of their own: of || if never, of && if always."""
        mark, other = ("||", "&&") if how == "never" else ("&&", "||")
        parts = split(self.clean, start, end, mark)
        for part in parts:
            yield self.span(part, how)
            for a, b in split(self.clean, *part, other):  # A && (B || C): B and C are checks, too
                if self.clean[a] == "(" and closing(self.clean, a) == b - 1:
                    inner = split(self.clean, a + 1, b - 1, mark)
                    yield from (self.span(each, how) for each in inner if len(inner) > 1)

    def checks(self) -> Iterator[Span]:
        """Yield all."""
        return (span for span in self._found() if not RESOURCES.fullmatch(self.text[span.start : span.end]))

    def _found(self) -> Iterator[Span]:
        guarded = []
        for match in IF.finditer(self.clean, self.start, self.end):
            start, end = match.end() + 1, closing(self.clean, match.end())
            body = self._body(end + 1)
            guarded.append(body[0])
            if REFUSES.search(self.clean, *body) or WORDS.search(self.clean[start:end]):
                yield from self.operands(start, end, "never")
        for match in RETURN.finditer(self.clean, self.start, self.end):
            yield from self._returned(match, match.start() in guarded)
        for match in ASSIGNED.finditer(self.clean, self.start, self.end):
            yield self.span(match.span("value"), "not obeyed")

    def _body(self, at: int) -> tuple[int, int]:
        """Return where the statement or block after a condition is."""
        at += len(self.clean[at:]) - len(self.clean[at:].lstrip())
        if self.clean[at] == "{":
            return at, closing(self.clean, at)
        return at, self.clean.index(";", at) + 1

    def _returned(self, match: re.Match[str], is_guarded: bool) -> Iterator[Span]:
        start, end = match.span("value")
        chosen = split(self.clean, start, end, "?")
        if len(chosen) == 2:
            yes, no = (self.clean[a:b] for a, b in split(self.clean, chosen[1][0], end, ":"))
            if REFUSAL.match(yes) or no == "DP_DROP_NONE":
                yield from self.operands(*chosen[0], "never")
            elif REFUSAL.match(no) or yes == "DP_DROP_NONE":
                yield from self.operands(*chosen[0], "always")
        elif REFUSAL.match(match["value"]) and not is_guarded:
            yield self.span((start, end), "DP_DROP_NONE" if match["value"].startswith("DP") else "0")
        elif self.is_bool and match["value"] not in ("true", "false"):
            has_or = len(split(self.clean, start, end, "||")) > 1
            has_and = len(split(self.clean, start, end, "&&")) > 1
            if not has_and:
                yield from self.operands(start, end, "never")
            if not has_or:
                yield from self.operands(start, end, "always")


def find_checks(file: str, text: str, functions: str = "") -> list[Mutant]:
    """Return the checks of a C unit, in functions whose name matches."""
    clean = blank(text)
    found = [Function(text, clean, match) for match in FUNCTION.finditer(clean)]
    spans = [span for each in found if re.search(functions, each.name) for span in each.checks()]
    return name_all(file, text, spans)
