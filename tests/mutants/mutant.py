# SPDX-License-Identifier: Apache-2.0
"""A mutant: one check of the source that is disabled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a source file that is one check."""

    function: str
    context: str  # the text of the function
    start: int
    end: int
    how: str  # "never", "always", "obeyed by nobody" ...: what is made of it
    new: str  # the text in its place


@dataclass(frozen=True, slots=True)
class Mutant:
    """One check, how it is disabled, and a name that stays when lines move."""

    name: str
    file: str
    digest: str  # of its function: as long as that is the same, it is the same mutant
    start: int
    end: int
    new: str

    def apply(self, text: str) -> str:
        """Return the file's text with the check disabled."""
        return text[: self.start] + self.new + text[self.end :]


def name_all(file: str, text: str, spans: Iterable[Span]) -> list[Mutant]:
    """Name the checks of a file by function and text; of equal ones in a function the later have a number."""
    seen: Counter[str] = Counter()
    mutants = []
    for span in sorted(spans, key=lambda span: (span.start, span.end, span.how)):
        shown = " ".join(text[span.start : span.end].split())
        name = f"{file} {span.function}: {shown} -> {span.how}"
        seen[name] += 1
        if seen[name] > 1:
            name += f" #{seen[name]}"
        digest = sha256(span.context.encode()).hexdigest()[:16]
        mutants.append(Mutant(name, file, digest, span.start, span.end, span.new))
    return mutants
