# SPDX-License-Identifier: Apache-2.0
"""Paths of make-believe for the prober of dataplane/probing.py, where time passes as fast as it is told."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from heapq import heappop, heappush
from ipaddress import ip_address

from dataplane.probing import Pace, Path, Probe, Prober

PEER, TARGET = ip_address("192.0.2.2"), ip_address("10.244.2.0")
MOST = 1450
RTT_S = 0.01


class World:
    """A prober, and peers that answer what their path takes."""

    def __init__(self, pace: Pace | None = None) -> None:
        """Begin with a path that takes all and a peer that answers, at 1000 s."""
        numbers = itertools.count(1)
        self.now = 1000.0
        self.prober = Prober(lambda below: next(numbers) % below, pace)
        self.path = Path(PEER, TARGET, MOST)
        self.mtu = MOST  # what it takes
        self.is_answering = True
        self.is_lost: Callable[[Probe], bool] = lambda probe: False
        self.is_busy = True  # pods send
        self.is_silent = False  # and get nothing back
        self.in_force: int = MOST
        self.sent: list[tuple[float, Probe]] = []
        self.news: list[tuple[float, int | None]] = []
        self._answers: list[tuple[float, int, int]] = []

    def run(self, seconds: float) -> None:
        """Let time pass: once a second it is looked who is sent much."""
        end, look_s = self.now + seconds, self.now
        while self.now < end:
            if self.now >= look_s:
                look_s += 1.0
                if self.is_busy:
                    self.prober.note_traffic(self.path, self.now, is_silent=self.is_silent)
            while self._answers and self._answers[0][0] <= self.now:
                _, token, size = heappop(self._answers)
                self.prober.answered(token, size, self.now)
            self._send(self.prober.due(self.now))
            for finding in self.prober.take_found():
                self.in_force = finding.mtu or self.path.most
                self.news.append((self.now, finding.mtu))
            answer_s = self._answers[0][0] if self._answers else end
            self.now = min(end, look_s, answer_s, max(self.now + 1e-6, self.prober.wake_s(self.now)))

    def _send(self, probes: list[Probe]) -> None:
        for probe in probes:
            self.sent.append((self.now, probe))
            if self.is_answering and probe.size <= self.mtu and not self.is_lost(probe):
                heappush(self._answers, (self.now + RTT_S, probe.token, probe.size))
