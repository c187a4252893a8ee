# SPDX-License-Identifier: Apache-2.0
"""Disables one check of the source after the other: a test must fail each time.

python -m tests.mutants.run [--list] [--only PATTERN] [--minutes N] [--jobs N] [--until STAGE]

The test that killed a mutant last time (killers.json) is tried first, then those near it, then all. What was
found out is kept in build/mutants/results.json: a run that was ended goes on where it was, and a mutant is
tried again when its function has changed, or if it survived. Mutants that change nothing that could be seen
stand in equivalent.json, each with its reason. Ends with 1 if one survived, was not tried or did not compile.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Lock

from tests.c.objects import BROKEN
from tests.mutants import c_checks, python_checks
from tests.mutants.mutant import Mutant, Span, name_all
from tests.mutants.stages import BY_HAND, PLACES, Place, list_stages
from tests.mutants.tree import FAILED, ROOT, BuildError, Tree

HERE = Path(__file__).resolve().parent
BUILD = ROOT / "build" / "mutants"
KILLERS, EQUIVALENT, RESULTS = HERE / "killers.json", HERE / "equivalent.json", BUILD / "results.json"
STAGES = ("killer", "near", "c", "e2e", "quick", "all")


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a mutant."""

    state: str  # killed, survived, broken
    digest: str  # of the function, unmutated
    by: str = ""  # the test; for a broken one, what the compiler says
    stage: str = ""
    seconds: float = 0.0


def find_mutants() -> dict[str, tuple[Mutant, Place]]:
    """Return all mutants by name."""
    found: dict[str, tuple[Mutant, Place]] = {}
    for place in PLACES:
        text = (ROOT / place.file).read_text(encoding="utf-8")
        finder = c_checks if place.file.endswith(".c") else python_checks
        mutants = finder.find_checks(place.file, text, place.functions)
        by_hand = [
            Span(function, text, text.index(old), text.index(old) + len(old), new, new)
            for file, function, old, new in BY_HAND
            if file == place.file
        ]
        found |= {mutant.name: (mutant, place) for mutant in (*mutants, *name_all(place.file, text, by_hand))}
    return found


def _read(path: Path) -> dict[str, str]:
    loaded: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return loaded


def _write(path: Path, data: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".new")
    draft.write_text(json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    draft.replace(path)


class Hunt:
    """A run over some mutants, in one or more copies of the source."""

    def __init__(self, mutants: dict[str, tuple[Mutant, Place]], until: str, end_s: float) -> None:
        """Know what earlier runs found."""
        self.mutants = mutants
        self.killers = _read(KILLERS)
        self._stages = STAGES[: STAGES.index(until) + 1]
        self._end_s = end_s
        self._lock = Lock()
        self._sound: dict[str, bool] = {}  # tests: do they pass where nothing is disabled?
        stored = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
        self.results = {name: Result(**fields) for name, fields in stored.items()}

    def is_due(self, name: str) -> bool:
        """Return whether a mutant must be tried: a kill stays one while its function is the same."""
        result = self.results.get(name)
        digest = self.mutants[name][0].digest
        return result is None or result.state != "killed" or result.digest != digest

    def run(self, trees: Sequence[Tree]) -> None:
        """Try all that are due, as long as there is time."""
        left: SimpleQueue[str] = SimpleQueue()
        due = [name for name in self.mutants if self.is_due(name)]
        for name in due:
            left.put(name)
        print(f"{len(self.mutants)} mutants, {len(due)} to be tried", flush=True)
        with ThreadPoolExecutor(len(trees)) as pool:
            for job in [pool.submit(self._work, tree, left) for tree in trees]:
                job.result()

    def _work(self, tree: Tree, left: SimpleQueue[str]) -> None:
        while not left.empty() and time.monotonic() < self._end_s:
            name = left.get()
            result = self.judge(tree, *self.mutants[name])
            with self._lock:
                self.results[name] = result
                if result.state == "killed" and result.by:
                    self.killers[name] = result.by
                    _write(KILLERS, self.killers)
                _write(RESULTS, {name: asdict(result) for name, result in self.results.items()})
            shown = f"{result.state:8} {result.stage:6} {result.seconds:5.1f} s"
            print(f"{shown}  {name}\n{'':25}{result.by}", flush=True)

    # --- one mutant -------------------------------------------------------------------------------------

    def judge(self, tree: Tree, mutant: Mutant, place: Place) -> Result:
        """Disable one check, and find a test that notices."""
        begun_s = time.monotonic()
        text = tree.read(mutant.file)
        tree.write(mutant.file, mutant.apply(text))
        try:
            stage, by = self._find_killer(tree, mutant, place)
        except BuildError as err:
            return Result("broken", mutant.digest, str(err))
        finally:
            tree.restore(mutant.file)
        state = "survived" if by is None else "killed"
        return Result(state, mutant.digest, by or "", stage, round(time.monotonic() - begun_s, 1))

    def _find_killer(self, tree: Tree, mutant: Mutant, place: Place) -> tuple[str, str | None]:
        known = self.killers.get(mutant.name)
        stages = [("killer", [[known]] if known else [], 120.0), *list_stages(place)]
        for stage, runs, limit_s in stages:
            for args in runs if stage in self._stages else []:
                if not args[0].startswith("tests/c/"):  # those compile what they need
                    tree.build()
                ran = tree.test(["-x", *args], limit_s)
                if BROKEN in ran.output:
                    raise BuildError(ran.output)
                if ran.has_passed:
                    continue
                killer = ran.failed or args[0]
                if stage == "killer" and not killer.startswith("tests/e2e"):  # it has proved itself
                    return stage, killer
                if self._confirm(tree, mutant, killer):
                    return stage, killer
        return self._stages[-1], None

    def _confirm(self, tree: Tree, mutant: Mutant, test: str) -> bool:
        """Tell whether it is the mutant that a test fails with: not all are steady on a busy machine."""
        if test not in self._sound:
            mutated = mutant.apply(tree.read(mutant.file))
            tree.restore(mutant.file)
            tree.build()
            self._sound[test] = tree.test([test], 200.0).has_passed
            tree.write(mutant.file, mutated)
            tree.build()
        if not self._sound[test]:
            print(f"unsteady, or fails anyway: {test}", flush=True)
            return False
        return not tree.test([test], 200.0).has_passed

    def check_killers(self, tree: Tree) -> list[str]:
        """Return the killers of these mutants that fail where nothing is disabled: they prove nothing."""
        tree.build()  # as the last mutant left it
        killers = sorted({result.by for name, result in self.results.items() if name in self.mutants})
        ran = tree.test([killer for killer in killers if "::" in killer], 3000.0)
        failed = {match[1] for match in FAILED.finditer(ran.output)} if not ran.has_passed else set()
        for name, result in list(self.results.items()):
            if result.by in failed:
                self.killers.pop(name, None)
                del self.results[name]
        _write(KILLERS, self.killers)
        _write(RESULTS, {name: asdict(result) for name, result in self.results.items()})
        return sorted(failed)


# --- the command ----------------------------------------------------------------------------------------


def report(mutants: Sequence[str], results: dict[str, Result]) -> int:
    """Say what became of the mutants; return the exit code."""
    done = {name: results[name] for name in mutants if name in results}
    stages = Counter(result.stage for result in done.values() if result.state == "killed")
    killed = ", ".join(f"{stages[stage]} by {stage}" for stage in STAGES if stages[stage])
    seconds = sum(result.seconds for result in done.values())
    print(f"{len(mutants)} mutants, {stages.total()} killed ({killed}), {seconds:.0f} s")
    untried = [name for name in mutants if name not in done]
    for title, names in (
        ("SURVIVED", [name for name in done if done[name].state == "survived"]),
        ("DOES NOT COMPILE", [name for name in done if done[name].state == "broken"]),
        ("NOT TRIED", untried),
    ):
        for name in names:
            print(f"{title}: {name}")
    return 0 if mutants and stages.total() == len(mutants) else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and hunt."""
    parser = argparse.ArgumentParser(prog="tests.mutants.run", description="Disable one check at a time.")
    parser.add_argument("--list", action="store_true", help="list the mutants, and try none")
    parser.add_argument("--only", default="", metavar="PATTERN", help="mutants whose name this is found in")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no mutant after that")
    parser.add_argument("--jobs", type=int, default=1, help="copies of the source, and mutants at a time")
    parser.add_argument("--until", choices=STAGES, default=STAGES[-1], help="the last stage to be tried")
    args = parser.parse_args(argv)
    equivalent = _read(EQUIVALENT)
    every = find_mutants()
    for name in [*equivalent.keys() - every.keys()]:
        parser.error(f"equivalent.json names a mutant that there is not: {name}")
    mutants = {
        name: found for name, found in every.items() if name not in equivalent and re.search(args.only, name)
    }
    if args.list:
        print(*mutants, sep="\n")
        return 0
    hunt = Hunt(mutants, args.until, time.monotonic() + 60 * args.minutes)
    trees = [Tree(BUILD / f"tree{number}") for number in range(args.jobs)]
    try:
        hunt.run(trees)
        for test in hunt.check_killers(trees[0]):
            print(f"FAILS ANYWAY: {test}")
    finally:
        for tree in trees:
            tree.close()
    return report(list(mutants), hunt.results)


if __name__ == "__main__":
    sys.exit(main())
