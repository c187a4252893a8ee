# SPDX-License-Identifier: Apache-2.0
"""A soak: traffic, ten changes a second, restarts and kills; at last a verdict on memory, losses, books.

python -m tests.soak.run [--minutes M] [--seed N] [--pps N] [--pause S] [--kill-forwarders] [--out DIR]

field.py draws the nodes. Samples go to samples.csv, the verdict to verdict.json, memory to memory.svg.
Ends with 1 if something is not as it should be.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.plot import curves
from bench.run import check_tools
from dataplane.errors import OverlaydError
from tests.soak import gauge
from tests.soak.course import Plan, Seen, Soak
from tests.soak.field import OVERLAYD, Field
from tests.soak.flow import Flow
from tests.soak.pings import Pings
from tests.soak.verdict import Finding, Gap, Window, is_passed, judge_flat, judge_gaps, judge_memory

PROCESSES = ("control", "forwarder")
PAIRS = ("a-b", "a-c")
PINGED = ("b", "c")  # from one to the other
TOOLS = {"ip": "iproute2", "ping": "iputils-ping", "etcd": "etcd-server", "etcdctl": "etcd-client"}


# --- what is made of it -----------------------------------------------------------------------------------


def judge(plan: Plan, seen: Seen) -> Iterator[Finding]:
    """Yield the lines of the verdict. `a` is never killed: memory and descriptors are judged there."""
    for process in PROCESSES:
        points = seen.points("a", f"{process}_rss_kib", plan.warm_up_s)
        yield judge_memory(f"of {process}", [(at, kib / 1024) for at, kib in points])
    for process in PROCESSES:
        for figure in ("fds", "threads"):
            yield judge_flat(
                f"{figure} of {process}", seen.points("a", f"{process}_{figure}", plan.warm_up_s)
            )
    last = {str(row["node"]): row for row in seen.rows}
    causes = "; ".join(f"{node}: {gauge.drops_of(row)}" for node, row in last.items())
    yield judge_gaps("numbered datagrams", seen.gaps, seen.windows, causes)
    yield judge_gaps("pings", seen.ping_gaps, seen.windows, causes)
    yield Finding("order and content", not seen.wrong, "; ".join(seen.wrong[:5]) or "as sent")
    sent, came = (seen.figures.get(f"tcp_{way}", 0) for way in ("sent", "came"))
    yield Finding("TCP connection", sent == came > 0, f"{sent} bytes sent, {came} came")
    uneven = [row for row in seen.rows if row["tx_unaccounted"] or row["rx_unaccounted"]]
    text = f"offered = forwarded + drops in {len(seen.rows) - len(uneven)} of {len(seen.rows)} samples"
    yield Finding("conservation", bool(seen.rows) and not uneven, text)
    text = "; ".join(f"{node}: {differing}" for node, differing in seen.misled.items())
    yield Finding("peers at last", not seen.misled, text or "as in the store")


def usage(seen: Seen) -> Iterator[str]:
    """Yield how much CPU each process of `a` took, and its memory at last."""
    for process in PROCESSES:
        cpu, pss = (seen.points("a", f"{process}_{figure}") for figure in ("cpu_s", "pss_kib"))
        if len(cpu) > 1 and pss:
            share = (cpu[-1][1] - cpu[0][1]) / (cpu[-1][0] - cpu[0][0])
            yield f"{process} of a: {share:.1%} of a core, PSS {pss[-1][1] / 1024:.1f} MiB"


def shift(seen: Seen, begun_s: float) -> None:
    """Let all times count from the begin."""

    def gap(found: Gap) -> Gap:
        return replace(found, from_s=found.from_s - begun_s, to_s=found.to_s - begun_s)

    seen.gaps, seen.ping_gaps = ([gap(found) for found in gaps] for gaps in (seen.gaps, seen.ping_gaps))
    seen.windows = [Window(each.cause, each.from_s - begun_s, each.to_s - begun_s) for each in seen.windows]


def report(plan: Plan, seen: Seen) -> bool:
    """Print the verdict, write the files; tell whether all is as it should be."""
    findings = list(judge(plan, seen))
    events = ", ".join(f"{count} {name}" for name, count in seen.events.items())
    figures = seen.figures
    print(f"{plan.minutes:g} min, seed {plan.seed}: {events}")
    print(f"{figures['sent']} datagrams sent, {figures['came']} came; {figures['pings']} pings answered")
    for text in usage(seen):
        print(text)
    for found in findings:
        print(f"{'ok  ' if found.is_good else 'FAIL'}  {found.name}: {found.text}")
    verdict: dict[str, Any] = {
        "minutes": plan.minutes,
        "seed": plan.seed,
        "passed": is_passed(findings),
        "events": dict(seen.events),
        "figures": figures,
        "load": os.getloadavg(),
        "findings": [{"name": each.name, "good": each.is_good, "text": each.text} for each in findings],
        "windows": [[each.cause, each.from_s, each.to_s] for each in seen.windows],
        "gaps": [[each.flow, each.count, each.from_s, each.to_s] for each in seen.gaps + seen.ping_gaps],
    }
    (plan.out / "verdict.json").write_text(json.dumps(verdict, indent=1) + "\n", encoding="utf-8")
    lines = [
        (f"{process} of {node}", [(at / 60, kib / 1024) for at, kib in points])
        for node in OVERLAYD
        for process in PROCESSES
        if (points := seen.points(node, f"{process}_rss_kib"))
    ]
    (plan.out / "memory.svg").write_text(curves("RSS over minutes", "MiB", lines), encoding="utf-8")
    print(f"{'passed' if is_passed(findings) else 'FAILED'}: samples, verdict and memory are in {plan.out}")
    return is_passed(findings)


# --- the run ----------------------------------------------------------------------------------------------


def soak(plan: Plan) -> Seen:
    """Do all of it; return what was seen."""
    rng = random.Random(plan.seed)
    plan.out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        place = stack.enter_context(Field(f"soak{os.getpid() % 100000}", rng))
        ends = {name: (node.pod, node.pod_ip()) for name, node in place.nodes.items()}
        pairs = {pair: (ends[pair[0]], ends[pair[2]]) for pair in PAIRS}
        flow = Flow(pairs, (ends["a"], ends["b"]), plan.pps)
        stack.callback(flow.close)
        pings = Pings("ping b to c", ends["b"][0], ends["c"][1], plan.out / "ping.log")
        stack.callback(pings.close)
        course = Soak(plan, place, flow, rng)
        stack.callback(course.close)
        course.run()
        seen = course.seen
        seen.misled = place.misled()
        seen.figures["pings"], seen.ping_gaps, wrong = pings.finish()
        flow.finish()
        seen.gaps, seen.wrong, seen.windows = flow.gaps, flow.wrong + wrong, place.windows
        seen.figures |= {"sent": flow.sent, "came": flow.came}
        seen.figures |= {"tcp_sent": flow.tcp_sent, "tcp_came": flow.tcp_came}
        course.note()  # at rest, the books are even whenever one looks
        shift(seen, course.begun_s)
        return seen


def parse(argv: Sequence[str] | None) -> Plan:
    """Read the command line."""

    def number(low: float, high: float) -> Any:
        def read(text: str) -> float:
            value = float(text)
            if not low <= value <= high:
                raise ValueError
            return value

        read.__name__ = f"{low:g}..{high:g}"
        return read

    usual = Plan()
    parser = argparse.ArgumentParser(prog="soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=number(0.1, 100_000), default=usual.minutes)
    parser.add_argument("--seed", type=int, default=usual.seed)
    parser.add_argument(
        "--pps", type=number(100, 100_000), default=usual.pps, help="datagrams a second in all"
    )
    parser.add_argument(
        "--every", type=number(0.1, 3600), default=usual.every_s, help="seconds between samples"
    )
    parser.add_argument(
        "--pause", type=number(1, 3600), default=usual.pause_s, help="seconds between troubles"
    )
    parser.add_argument(
        "--kill-forwarders", action="store_true", help="those of one node; costs some packets"
    )
    parser.add_argument("--out", type=Path, default=usual.out)
    told = parser.parse_args(argv)
    return Plan(
        told.minutes,
        told.seed,
        int(told.pps),
        told.every,
        told.pause,
        told.kill_forwarders,
        told.out.resolve(),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; return the exit status."""
    plan = parse(argv)
    try:
        check_tools("the soak", TOOLS)
        return 0 if report(plan, soak(plan)) else 1
    except OverlaydError as err:
        print(f"soak: {err}", file=sys.stderr)
        return err.exit_code
    except AssertionError as err:  # of wait_for(): something did not come about
        print(f"soak: {err}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
