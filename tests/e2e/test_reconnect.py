# SPDX-License-Identifier: Apache-2.0
"""How soon a node follows an etcd that is back after an outage: drawing in rig.py, etcd beside the node."""

from __future__ import annotations

import select
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from bench.figures import figure, p99
from tests.e2e import frames
from tests.e2e.frames import US
from tests.e2e.leased import LeasedRig, shared_rig, value
from tests.e2e.leased_etcd import EtcdLeasedDaemon

pytestmark = [pytest.mark.soak, pytest.mark.alone]

BACK_S = 2.0  # promised
ROOM = 5  # times as long on a machine that does something else; the scorecard holds it to the promise
LATE_S = 30.0
BETWEEN_S = 0.002  # of two packets
SUBNET, POD = "10.244.9.0/24", "10.244.9.5"
HUNG_S = (0.5, 1.0, 2.0, 3.0, 5.0, 12.0)  # the last one is noticed: the watch is given up and made anew
AWAY_S = (0.2, 0.5, 1.0, 2.0, 4.0)


rig = shared_rig(EtcdLeasedDaemon)


@dataclass(slots=True)
class Outages:
    """etcd goes and comes back; after how long a change is on the wire then."""

    rig: LeasedRig
    turn: int = 0

    @property
    def daemon(self) -> EtcdLeasedDaemon:
        """The node."""
        assert isinstance(self.rig.daemon, EtcdLeasedDaemon)
        return self.rig.daemon

    def hang(self, still_s: float) -> float:
        """Let etcd stand still; return when it went on."""
        (member,) = self.daemon.etcd.members
        member.signal(signal.SIGSTOP)
        try:
            select.select([], [], [], still_s)
        finally:
            member.signal(signal.SIGCONT)
        return time.monotonic()

    def kill(self, away_s: float) -> float:
        """Let etcd be away; return when it took connections again."""
        (member,) = self.daemon.etcd.members
        member.stop()
        select.select([], [], [], away_s)
        member.start()
        member.wait_listening()
        self.daemon.gateway.close()
        return time.monotonic()

    def time_change(self, outage: Callable[[float], float], lasts_s: float) -> float:
        """Return how long after an outage a change was on the wire that was written at its end."""
        self.turn += 1
        ip = f"198.18.1.{self.turn % 250 + 1}"
        packet = self.rig.to_pod_side(frames.inner4(US.pod(), POD))
        wanted = bytes(map(int, ip.split(".")))
        back_s = outage(lasts_s)
        self.daemon.put(SUBNET, value(ip, f"02:4f:00:00:05:{self.turn % 250:02x}"))
        while not any(frame[30:34] == wanted for frame in self.rig.wire.take()):
            assert time.monotonic() - back_s < LATE_S, f"never on the wire: {self.daemon.log()[-2000:]}"
            self.rig.pod.send(packet)
            select.select([], [], [], BETWEEN_S)
        return time.monotonic() - back_s


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("hung_s", "away_s"),
    [
        pytest.param(HUNG_S * 5, AWAY_S * 6, id="full"),
        pytest.param(HUNG_S[::-1][:2], AWAY_S[1:4], id="quick"),
    ],
)
def test_reconnect(rig: LeasedRig, hung_s: tuple[float, ...], away_s: tuple[float, ...]) -> None:
    """An etcd that is back is followed within two seconds, whether it hung or was killed."""
    outages = Outages(rig)
    hung = [outages.time_change(outages.hang, lasts_s) for lasts_s in hung_s]
    figure("from its return to the wire", hung, "s", "etcd that hung")
    away = [outages.time_change(outages.kill, lasts_s) for lasts_s in away_s]
    figure("from its return to the wire", away, "s", "etcd that was killed")
    rig.daemon.settled()
    assert p99([*hung, *away]) <= ROOM * BACK_S
