# SPDX-License-Identifier: Apache-2.0
"""Carries out the loads of matrix.py between two pods, and returns samples."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench import cgroup, cpu, iperf, sockperf
from bench.lab import NETNS, ROOT, Node, wait_for
from bench.matrix import Plan
from bench.search import Found, Trial, find_rate
from bench.systems import System
from dataplane.errors import RuntimeFailure

LOADGEN = ROOT / "build" / "loadgen"
SOURCES = tuple(ROOT / "bench" / name for name in ("loadgen.c", "receiver.c", "loadgen.h"))
FLAGS = ("-std=gnu11", "-D_GNU_SOURCE", "-O2")
PORT = 9000
START_PPS = 100_000.0
AGAIN = 0.9  # of the rate that was found last time, a search begins
SPARE = 1.5  # times the reported rate: what the generator alone must manage
ALONE_S = 0.5
RUN_PACKETS = 32  # of the sender that uses UDP_SEGMENT
FIXED_GBIT_S = 2.0

QUIET_CPUS = 0.15  # of CPUs busy with something else: a sample that saw more says so

Sample = dict[str, Any]


def build_loadgen() -> None:
    """Compile the packet generator if its source has changed."""
    if LOADGEN.exists() and LOADGEN.stat().st_mtime >= max(path.stat().st_mtime for path in SOURCES):
        return
    LOADGEN.parent.mkdir(exist_ok=True)
    beside = LOADGEN.with_suffix(f".{os.getpid()}")
    units = [path for path in SOURCES if path.suffix == ".c"]
    found = subprocess.run(["gcc", *FLAGS, "-o", beside, *units], capture_output=True, text=True)
    if found.returncode != 0:
        raise RuntimeFailure(f"gcc cannot compile {LOADGEN.name}: {found.stderr[-300:]}")
    beside.replace(LOADGEN)


def _note_if(notes: list[str], holds: bool, text: str) -> None:
    if holds:
        notes.append(text)


@contextmanager
def _last_of_all(pid: int) -> Iterator[None]:
    """See that the burners of a process take nothing from anybody, of whatever session."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    wait_for(lambda: len(children.read_text().split()) == len(os.sched_getaffinity(0)), "the burners")
    parent = cgroup.cpu_controller()
    if parent is None:
        yield
        return
    with cgroup.leftovers(parent, [int(child) for child in children.read_text().split()]):
        yield


def inodes(system: System) -> set[int]:
    """Return the inodes of a lab's namespaces."""
    return {(NETNS / space.name).stat().st_ino for space in system.spaces()}


def run_loadgen(node: Node, *words: str) -> dict[str, Any]:
    """Run the generator in a pod; return what it says."""
    found = node.pod.run(str(LOADGEN), *words, check=False, timeout_s=60)
    if found.returncode != 0:
        raise AssertionError(found.stderr.strip())
    said: dict[str, Any] = json.loads(found.stdout)
    return said


Send = Callable[[float], Trial]


@contextmanager
def sending(
    system: System, size: int, trial_s: float, segments: int = 0
) -> Iterator[tuple[Send, dict[str, int]]]:
    """Yield what sends numbered packets at a rate from pod to pod, and counts of what came otherwise."""
    a, b = system.hosts
    wrong = {"doubled": 0, "reordered": 0, "changed": 0}

    def send(rate_pps: float) -> Trial:
        words = [str(size), f"{rate_pps:.0f}", str(trial_s), *([str(segments)] * bool(segments))]
        said = run_loadgen(a, "send", system.target, str(PORT), *words)
        for name in wrong:
            wrong[name] += said[name]
        return Trial(rate_pps, said["sent"], said["received"], said["seconds"])

    listener = b.pod.spawn(str(LOADGEN), "receive", str(PORT))
    try:
        iperf.wait_bound(b, PORT, "-u")
        yield send, wrong
    finally:
        listener.kill()
        listener.wait()


class Loads:
    """All loads, with what is remembered from one sample to the next."""

    def __init__(self, plan: Plan) -> None:
        """Take lengths from a plan."""
        self._plan = plan
        self._last_pps: dict[tuple[str, str, str], float] = {}
        self._alone_kpps: dict[tuple[int, int], float] = {}
        self._table: dict[str, Callable[[System], Sample]] = {
            "tcp-1": lambda s: self._tcp(s),
            "tcp-1-back": lambda s: self._tcp(s, "-R"),
            "tcp-4": lambda s: self._tcp(s, "-P", "4"),
            "tcp-4-back": lambda s: self._tcp(s, "-P", "4", "-R"),
            "udp-64": lambda s: self._udp(s, "udp-64", 64),
            "udp-512": lambda s: self._udp(s, "udp-512", 512),
            "udp-1400": lambda s: self._udp(s, "udp-1400", 1400),
            "udp-64-runs": lambda s: self._udp(s, "udp-64-runs", 64, RUN_PACKETS),
            "latency-idle": self._latency_idle,
            "latency-awake": self._latency_awake,
            "latency-loaded": self._latency_loaded,
            "cpu": self._cpu,
        }

    def measure(self, load: str, system: System) -> Sample:
        """Return one sample: its figures, details and notes; or why there is none."""
        spaces = inodes(system)
        before = cpu.read(spaces)
        try:
            sample = self._table[load](system)
        except (AssertionError, ValueError, KeyError, OSError, subprocess.SubprocessError) as err:
            detail = str(getattr(err, "stderr", None) or "").strip()[-200:]
            return {"error": f"{err} {detail}".strip()}
        after = cpu.read(spaces)
        others = cpu.used(before, after).others / (after.at_s - before.at_s)
        sample["others_cpus"] = round(others, 3)
        if others > QUIET_CPUS:
            sample.setdefault("notes", []).append("others used the machine too")
        return sample

    # --- TCP ---

    def _tcp(self, system: System, *flags: str) -> Sample:
        a, b = system.hosts
        report = iperf.run_iperf(a, b, system.target, self._plan.seconds, *flags)
        end = report["end"]
        detail = {
            "retransmits": end["sum_sent"].get("retransmits"),
            "streams_gbit_s": [stream["receiver"]["bits_per_second"] / 1e9 for stream in end["streams"]],
            "intervals_gbit_s": [part["sum"]["bits_per_second"] / 1e9 for part in report["intervals"]],
        }
        return {"figures": {"gbit_s": iperf.tcp_gbit_s(report)}, "detail": detail}

    # --- UDP ---

    def _udp(self, system: System, load: str, size: int, segments: int = 0) -> Sample:
        key = (system.condition.name, load, system.name)
        start_pps = self._last_pps.get(key, START_PPS)
        with sending(system, size, self._plan.trial_s, segments) as (send, wrong):
            found = find_rate(send, start_pps)
        if found.best:
            self._last_pps[key] = AGAIN * found.best.asked_pps
        return self._udp_sample(found, wrong, self._alone(system.hosts[0], size, segments))

    @staticmethod
    def _udp_sample(found: Found, wrong: dict[str, int], alone_kpps: float) -> Sample:
        notes: list[str] = []
        short = alone_kpps < SPARE * found.kpps
        _note_if(notes, short, f"generator alone manages less than {SPARE:g} times this")
        _note_if(notes, found.is_sender_limited, "sender cannot send more on this path")
        _note_if(notes, wrong["doubled"] + wrong["changed"] > 0, "packets came doubled or changed")
        trials = [
            {"asked_pps": t.asked_pps, "sent": t.sent, "received": t.received, "seconds": t.seconds}
            for t in found.trials
        ]
        detail = {"trials": trials, "alone_kpps": alone_kpps, **wrong}
        return {"figures": {"kpps": found.kpps}, "detail": detail, "notes": notes}

    def _alone(self, node: Node, size: int, segments: int) -> float:
        """Return what the generator manages without anything behind it, in thousands of packets a second."""
        key = (size, segments)
        if key not in self._alone_kpps:
            words = [str(size), "0", str(ALONE_S), *([str(segments)] * bool(segments))]
            tries = [run_loadgen(node, "alone", *words) for _ in range(3)]
            self._alone_kpps[key] = max(said["sent"] / said["seconds"] for said in tries) / 1e3
        return self._alone_kpps[key]

    # --- latency ---

    def _latency_idle(self, system: System) -> Sample:
        a, b = system.hosts
        found = sockperf.ping_pong(a, b, system.target, self._plan.seconds)
        figures = {"p50_us": found["50"], "p99_us": found["99"]}
        return {"figures": figures, "detail": {"percentiles_us": found}}

    def _latency_awake(self, system: System) -> Sample:
        """Measure beside idle-priority loops: no CPU halts, so no system gains by not halting."""
        assert system.lab is not None
        burners = system.lab.router.spawn(str(LOADGEN), "awake", str(self._plan.seconds + 30))
        try:
            with _last_of_all(burners.pid):
                return self._latency_idle(system)
        finally:
            burners.kill()
            burners.wait()

    def _latency_loaded(self, system: System) -> Sample:
        a, b = system.hosts
        with iperf.flowing(a, b, system.target, self._plan.seconds + 10):
            before = (time.monotonic(), iperf.received_bytes(b))
            sample = self._latency_idle(system)
            after = (time.monotonic(), iperf.received_bytes(b))
        sample["detail"]["bulk_gbit_s"] = (after[1] - before[1]) * 8 / 1e9 / (after[0] - before[0])
        return sample

    # --- CPU ---

    def _cpu(self, system: System) -> Sample:
        a, b = system.hosts
        forwarders = system.own_pids()
        spaces = inodes(system)
        with iperf.flowing(a, b, system.target, self._plan.seconds + 10, "-b", f"{FIXED_GBIT_S:g}G"):
            bytes_before, before = iperf.received_bytes(b), cpu.read(spaces)
            time.sleep(self._plan.seconds)
            bytes_after, after = iperf.received_bytes(b), cpu.read(spaces)
        gigabytes = (bytes_after - bytes_before) / 1e9
        if gigabytes <= 0:
            raise AssertionError("no data was carried")
        use = cpu.used(before, after)
        detail: Sample = {f"{kind}_s_per_gb": use.by_kind[kind] / gigabytes for kind in cpu.KINDS}
        detail["forwarder_s_per_gb"] = cpu.of_processes(before, after, forwarders) / gigabytes
        detail["steal_s"] = use.steal
        detail["gbit_s"] = gigabytes * 8 / (after.at_s - before.at_s)
        notes: list[str] = []
        _note_if(notes, detail["gbit_s"] < 0.95 * FIXED_GBIT_S, f"carried less than {FIXED_GBIT_S:g} Gbit/s")
        return {"figures": {"s_per_gb": use.seconds / gigabytes}, "detail": detail, "notes": notes}
