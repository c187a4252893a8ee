# SPDX-License-Identifier: Apache-2.0
"""The scorecard of reliability: `make scorecard`, or `python -m tests.scorecard.run`.

Runs the rows of rows.py one after the other, each for a time at most, and says which meet their marks. What
is measured comes from the programs themselves (bench/figures.py). Ends with 1 if a row that was run is not
as it should be. docs/reliability.md says what the files in build/scorecard hold.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.figures import VARIABLE
from bench.lab import ROOT
from tests.scorecard import page
from tests.scorecard.record import Record, describe, raw
from tests.scorecard.rows import ROWS, Command, Row
from tests.scorecard.verdict import Run, gather

OUT = ROOT / "build" / "scorecard"
DOCUMENT = ROOT / "docs" / "reliability.md"
SCHEMA = 1
END_S = 45.0  # for a program to clean up after it was interrupted
LONG_S = 7200.0  # a row with --soak
NUMBERS = frozenset(row.number for row in ROWS)


# --- one row ----------------------------------------------------------------------------------------------


@contextmanager
def hearing_interrupts() -> Iterator[None]:
    """Let programs that are started in here hear SIGINT, also if a background shell switched it off."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def run_program(command: Command, log: Path, figures: Path, timeout_s: float) -> Run:
    """Run a program to its end, or interrupt it after a time and give it some more to clean up."""
    begun_s = time.monotonic()
    environment = {**os.environ, VARIABLE: str(figures), "PYTHONUNBUFFERED": "1"}
    with log.open("a", encoding="utf-8") as out:
        out.write(f"$ {raw(command)}\n")
        out.flush()
        with hearing_interrupts():
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=out, stderr=out, start_new_session=True
            )
        try:
            status: int | None = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            end(process)
    return Run(command, round(time.monotonic() - begun_s, 1), status)


def end(process: subprocess.Popen[bytes]) -> None:
    """Interrupt a program that still runs; kill it with all of its session if that is no use."""
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGINT)
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def choose(row: Row, is_quick: bool, is_long: bool) -> tuple[Command, ...]:
    """Return which programs to run of a row; none if there is nothing to read."""
    if is_long and row.long:
        return row.long
    if row.needs and not (ROOT / row.needs).exists():
        return ()
    return row.quick if is_quick else row.full


def run_row(row: Row, commands: Sequence[Command], limit_s: float, rows: Path, is_quick: bool) -> Record:
    """Run a row for so long at most and judge it; write what came of it, and return it."""
    log, told = rows / f"{row.number}.log", rows / f"{row.number}.figures"
    for path in (log, told):
        path.unlink(missing_ok=True)
    load_before, at = os.getloadavg()[0], datetime.now(UTC)
    end_s = time.monotonic() + limit_s
    runs: list[Run] = []
    for command in commands:
        runs.append(run_program(command, log, told, max(0.0, end_s - time.monotonic())))
        if runs[-1].status is None:
            break
    lines = told.read_text(encoding="utf-8").splitlines() if told.exists() else []
    figures = gather(json.loads(line) for line in lines)
    record = describe(row, runs, figures, is_quick) | {
        "at": at.strftime("%Y-%m-%d %H:%M:%SZ"),
        "commit": commit(),
        "machine": machine(),
        "load_before": round(load_before, 2),
        "load_after": round(os.getloadavg()[0], 2),
        "log": log.name,
    }
    (rows / f"{row.number}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return record


# --- where and when ---------------------------------------------------------------------------------------


def commit() -> str:
    """Return the commit of this tree, and whether files differ from it; nothing if there is no git."""
    command = ["git", "-c", f"safe.directory={ROOT}", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def machine() -> dict[str, Any]:
    """Return what this machine is."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {"cpus": os.cpu_count(), "model": model, "kernel": os.uname().release}


# --- all of it --------------------------------------------------------------------------------------------


def recall(row: Row, rows: Path, now: str) -> Record:
    """Return what came of a row when it was run last, if that was of this commit; else that it was not."""
    path = rows / f"{row.number}.json"
    if path.exists():
        kept: Record = json.loads(path.read_text(encoding="utf-8"))
        if now and kept["commit"] == now:
            return kept | {"kept": True}
    return describe(row, (), (), False)


def run(options: argparse.Namespace) -> list[Record]:
    """Run what is asked for, and return all rows."""
    out: Path = options.out / "quick" if options.quick else options.out
    rows = out / "rows"
    rows.mkdir(parents=True, exist_ok=True)
    now, records = commit(), []
    for row in ROWS:
        is_long = options.soak and bool(row.long)
        commands = choose(row, options.quick, is_long) if row.number in options.only else ()
        if not commands:
            records.append(recall(row, rows, now))
            continue
        print(f"{row.number} {row.title} …", flush=True)
        limit_s = LONG_S if is_long else row.timeout_s
        records.append(run_row(row, commands, limit_s, rows, options.quick))
        print(f"   {page.verdict_of(records[-1])}: {page.cells(records[-1])[2]}", flush=True)
    scorecard = {"schema": SCHEMA, "commit": now, "rows": records}
    (out / "scorecard.json").write_text(json.dumps(scorecard, indent=1) + "\n", encoding="utf-8")
    (out / "scorecard.md").write_text(page.markdown(records), encoding="utf-8")
    return records


def read_numbers(text: str) -> frozenset[int]:
    """Read the numbers of rows."""
    try:
        found = frozenset(int(word) for word in text.split(","))
    except ValueError:
        found = frozenset({0})
    if not found <= NUMBERS:
        known = ", ".join(map(str, sorted(NUMBERS)))
        raise argparse.ArgumentTypeError(f'"{text}" is no list of rows: there are {known}')
    return found


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="scorecard", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", type=read_numbers, default=NUMBERS, metavar="13,14", help="these rows")
    parser.add_argument("--quick", action="store_true", help="fewer samples, into build/scorecard/quick")
    parser.add_argument("--soak", action="store_true", help="rows 12 and 17 at full length: 30 min, an hour")
    parser.add_argument("--write-docs", action="store_true", help="the table into docs/reliability.md")
    parser.add_argument("--out", type=Path, default=OUT, help="default: build/scorecard")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run rows, print the table; return the exit status."""
    options = parse(argv)
    if os.geteuid() != 0:
        print("scorecard: its rows make network namespaces: run it as root", file=sys.stderr)
        return 1
    records = run(options)
    print("\n".join(page.terminal(records)))
    if options.write_docs:
        text = page.insert(DOCUMENT.read_text(encoding="utf-8"), page.markdown(records))
        DOCUMENT.write_text(text, encoding="utf-8")
    return 1 if any(record["verdict"] not in ("pass", "not run") for record in records) else 0


if __name__ == "__main__":
    sys.exit(main())
