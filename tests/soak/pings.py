# SPDX-License-Identifier: Apache-2.0
"""Pings from one pod to another for as long as a soak lasts: which were answered?"""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

from bench.lab import Namespace
from tests.soak.verdict import Gap

EVERY_S = 0.2
NUMBERS = 1 << 16
PATIENCE_S = 10.0
ANSWER = re.compile(
    r"^\[(\d+\.\d+)\] .*icmp_seq=(\d+) .*time=", re.MULTILINE
)  # no error says how long it took


class Pings:
    """`ping` in a pod."""

    def __init__(self, name: str, pod: Namespace, address: str, log: Path) -> None:
        """Start it."""
        self.name = name
        self._log = log
        log.unlink(missing_ok=True)
        self._process = pod.spawn("ping", "-n", "-D", "-i", str(EVERY_S), address, log=log)

    def finish(self) -> tuple[int, list[Gap], list[str]]:
        """End it; return how many were answered, which were not, and what else is wrong."""
        self._process.send_signal(signal.SIGINT)
        self._process.wait(PATIENCE_S)
        ahead_s = time.time() - time.monotonic()
        return read_answers(self.name, self._log.read_text(encoding="utf-8", errors="replace"), ahead_s)

    def close(self) -> None:
        """End the process, if it has not ended."""
        self._process.kill()
        self._process.wait()


def read_answers(name: str, said: str, ahead_s: float) -> tuple[int, list[Gap], list[str]]:
    """Read what `ping -D` said; its clock is ahead of that of the gaps by so much."""
    gaps: list[Gap] = []
    wrong: list[str] = []
    count, last, last_s = 0, 0, None
    for stamp, number in ANSWER.findall(said):
        at_s, step = float(stamp) - ahead_s, (int(number) - last) % NUMBERS
        count += 1
        if last_s is not None and (step == 0 or step > NUMBERS // 2):
            wrong.append(f"{name}: answer {number} came late or twice, after {last}")
            continue
        if step > 1:
            gaps.append(Gap(name, step - 1, at_s - (step + 1) * EVERY_S if last_s is None else last_s, at_s))
        last, last_s = int(number), at_s
    return count, gaps, wrong
