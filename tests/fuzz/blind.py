# SPDX-License-Identifier: Apache-2.0
"""Runs a fuzz target in Python without coverage, many times as fast: mutations of good and of kept texts.

python -m tests.fuzz.blind TARGET [-runs=N | -max_total_time=S] [-first=BLOCK] [FILE ...]

Inputs come in blocks of BLOCK, each with dice of its own: block 7 is always the same, and a run that was
ended goes on with -first. With files, those are the inputs. Options and output are libFuzzer's.

Most of what a mutation leaves as it was has been read before. So what pure functions return is remembered:
each is called with everything that it was ever given, but not twice with the same.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

from dataplane import cni, flannel, known
from tests.fuzz import corpus, texts
from tests.fuzz.rewrite import pick

BLOCK = 1000
TOLD_EVERY_S = 10.0
REMEMBERED = 1 << 16  # results of a function
PURE = {
    flannel: (
        *("IPv4Address", "IPv6Address", "IPv4Network", "IPv6Network", "read_net4", "read_net6", "read_mac"),
        *(
            "parse_key",
            "format_key",
            "check_unicast",
            "read_encap",
            "suggest",
            "_check_ordinary",
            "_read_bound",
        ),
    ),
    cni: ("read_net4", "read_net6"),
    known: ("parse_key",),
}


def remember(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a pure function that is not called again with what it has returned, or refused, once."""

    @lru_cache(REMEMBERED, typed=True)
    def outcome(*args: object, **options: object) -> tuple[object, ValueError | None]:
        try:
            return function(*args, **options), None
        except ValueError as err:
            return None, err

    def call(*args: object, **options: object) -> object:
        try:
            value, err = outcome(*args, **options)
        except TypeError:  # for a list or an object
            return function(*args, **options)
        if err is not None:
            raise err.with_traceback(None)
        return value

    return call


@contextlib.contextmanager
def remembering() -> Iterator[None]:
    """Let what PURE functions return be remembered meanwhile."""
    before = [(module, name, getattr(module, name)) for module, names in PURE.items() for name in names]
    try:
        for module, name, function in before:
            setattr(module, name, remember(function))
        yield
    finally:
        for module, name, function in before:
            setattr(module, name, function)


@lru_cache
def kept(target: str) -> tuple[str, ...]:
    """Return what is kept of a target, and what good texts look like."""
    return (
        *(data.decode("utf-8", "replace") for data in corpus.read(target).values()),
        *texts.TARGETS[target].good,
    )


def inputs(target: str, block: int) -> Iterator[str]:
    """Yield the inputs of a block."""
    dice, some, rewriter = Random(f"{target} {block}"), kept(target), texts.TARGETS[target].rewriter
    for _ in range(BLOCK):
        yield rewriter.rewrite(pick(dice, some), dice)


class Run:
    """What one run did."""

    def __init__(self, target: str, prefix: str) -> None:
        """Begin with nothing counted."""
        self._target, self._prefix = target, prefix
        self.inputs = self.accepted = 0

    def check(self, some: Iterable[str]) -> bool:
        """Run inputs; False for one that crashed, which is written down."""
        check = texts.TARGETS[self._target].check
        for text in some:
            self.inputs += 1
            try:
                self.accepted += check(text)
            except Exception:
                traceback.print_exc()
                self._keep(text.encode("utf-8", "replace"))
                return False
        return True

    def _keep(self, data: bytes) -> None:
        path = Path(f"{self._prefix}crash-{hashlib.sha1(data, usedforsecurity=False).hexdigest()}")
        path.write_bytes(data)
        print(f"Test unit written to {path}", file=sys.stderr)

    def tell(self, block: int) -> None:
        """Say how far it is."""
        print(f"block {block} accepted: {self.accepted} of {self.inputs}", file=sys.stderr, flush=True)


def run_blocks(run: Run, target: str, first: int, runs: int | None, seconds: int | None) -> bool:
    """Run block after block until there were so many inputs, or so much time; False after a crash."""
    begun_s = told_s = time.monotonic()
    is_good = True
    for block in itertools.count(first):
        wanted = BLOCK if runs is None else min(BLOCK, runs - run.inputs)
        now_s = time.monotonic()
        if not is_good or not wanted or (seconds is not None and now_s - begun_s > seconds):
            run.tell(block - 1)
            break
        if now_s - told_s > TOLD_EVERY_S:
            run.tell(block - 1)
            told_s = now_s
        is_good = run.check(itertools.islice(inputs(target, block), wanted))
    return is_good


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Run a fuzz target in Python without coverage.")
    parser.add_argument("target", choices=texts.TARGETS)
    parser.add_argument("-runs", type=int)
    parser.add_argument("-max_total_time", type=int)
    parser.add_argument("-first", type=int, default=0)
    parser.add_argument("-artifact_prefix", default="")
    parser.add_argument("files", nargs="*", type=Path)
    return parser.parse_args()


def main() -> int:
    """Run; return 1 after a crash."""
    args = parse_arguments()
    run = Run(args.target, args.artifact_prefix)
    if args.files:
        return int(not run.check(path.read_bytes().decode("utf-8", "replace") for path in args.files))
    with remembering():
        is_good = run_blocks(run, args.target, args.first, args.runs, args.max_total_time)
    print(f"stat::number_of_executed_units: {run.inputs}", file=sys.stderr)
    return int(not is_good)


if __name__ == "__main__":
    sys.exit(main())
