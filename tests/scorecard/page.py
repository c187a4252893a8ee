# SPDX-License-Identifier: Apache-2.0
"""The scorecard as a table, for a terminal and for Markdown. Pure: made of what the rows' files say."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence

from tests.scorecard.record import Record

BEGIN, END = "<!-- scorecard begins -->", "<!-- scorecard ends -->"
HEADS = ("#", "what", "ours", "anchor", "pass mark", "verdict")
WIDTHS = (2, 30, 34, 30, 34, 9)


def cells(record: Record) -> tuple[str, ...]:
    """Return the cells of a row."""
    ours, also, beside = (
        [str(each["found"]) for each in record[kind] if each["value"] is not None]
        for kind in ("marks", "also", "beside")
    )
    anchor = "; measured beside: ".join(filter(None, [record["anchor"], "; ".join(beside)]))
    marks = "; ".join(mark["wanted"] for mark in record["marks"])
    found = "; ".join(ours + also) or "-"
    return str(record["number"]), record["title"], found, anchor, marks, verdict_of(record)


def verdict_of(record: Record) -> str:
    """Return the verdict, and whether it is of a short run or of another one than this."""
    notes = [
        note for note, holds in (("quick", record["quick"]), ("earlier", record.get("kept", False))) if holds
    ]
    if record["verdict"] == "not run":
        notes = []
    return str(record["verdict"]) + (f" ({', '.join(notes)})" if notes else "")


def circumstances(records: Iterable[Record]) -> str:
    """Say on what machine, when, of which commit and beside what load the rows that ran did."""
    ran = [record for record in records if record["verdict"] != "not run"]
    if not ran:
        return "No row was run."
    machines = {"{cpus} CPUs ({model}), Linux {kernel}".format(**record["machine"]): None for record in ran}
    loads = [load for record in ran for load in (record["load_before"], record["load_after"])]
    times = sorted(record["at"] for record in ran)
    commits = {record["commit"]: None for record in ran}
    return (
        f"{times[0]} to {times[-1]}, {'; '.join(machines)}, "
        f"load average {min(loads):.1f} to {max(loads):.1f}, version {', '.join(commits)}."
    )


def markdown(records: Sequence[Record]) -> str:
    """Return the table in Markdown, with what it was measured on."""
    lines = [circumstances(records), "", _line(HEADS), _line("---" for _ in HEADS)]
    lines += [_line(cell.replace("|", "\\|") for cell in cells(record)) for record in records]
    return "\n".join(lines) + "\n"


def _line(texts: Iterable[str]) -> str:
    return f"| {' | '.join(texts)} |"


def terminal(records: Sequence[Record]) -> Iterator[str]:
    """Yield the lines of the table for a terminal."""
    yield from _wrapped(HEADS)
    for record in records:
        yield from _wrapped(cells(record))
    yield circumstances(records)


def _wrapped(texts: Sequence[str]) -> Iterator[str]:
    columns = [textwrap.wrap(text, width) or [""] for text, width in zip(texts, WIDTHS, strict=True)]
    for turn in range(max(map(len, columns))):
        parts = [column[turn] if turn < len(column) else "" for column in columns]
        yield "  ".join(f"{part:{width}}" for part, width in zip(parts, WIDTHS, strict=True)).rstrip()


def insert(document: str, table: str) -> str:
    """Return a document with the table between its marks, in place of the last one."""
    head, begin, rest = document.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"there is no place for the table: {BEGIN} and {END} are missing")
    return f"{head}{BEGIN}\n{table}{END}{tail}"
