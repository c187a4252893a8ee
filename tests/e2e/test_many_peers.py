# SPDX-License-Identifier: Apache-2.0
"""A node that starts with a thousand peers in etcd, or ten: how long, and in what memory; rig.py draws it.

The daemons are executed, not forked from a process that has all of it in memory already.
"""

from __future__ import annotations

import json
import os
import select
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.figures import figure
from bench.lab import wait_for
from dataplane import laststate
from dataplane.control import ForwarderClient
from tests.e2e import frames
from tests.e2e.frames import US
from tests.e2e.leased import LEASES, LeasedRig, shared_rig
from tests.e2e.pair import forget_counters
from tests.e2e.test_etcd_scale import AnyDaemon, numbered

pytestmark = [pytest.mark.soak, pytest.mark.alone]

NETWORK = {"Network": "10.0.0.0/8", "Backend": {"Type": "vxlan"}}
STARTS = {1000: 5, 10_000: 3}
BETWEEN_S = 0.002  # of two packets
LATE_S = 60.0
MANY = 10_000


class ExecutedDaemon(AnyDaemon):
    """A daemon that starts as on any node."""

    def environment(self) -> dict[str, str]:
        """Return ours; a process that is given one is not forked from another."""
        return dict(os.environ)


rig = shared_rig(ExecutedDaemon)


@pytest.fixture
def daemon(rig: LeasedRig) -> Iterator[ExecutedDaemon]:
    """Yield its daemon, which does not run; leave it as it was found."""
    found = rig.daemon
    assert isinstance(found, ExecutedDaemon)
    usual = list(found.flags)
    take_down(found)
    yield found
    if found.process is not None:
        take_down(found)
    found.flags = usual
    fill(found, 0)
    found.start()
    rig.watch_overlay()


def take_down(daemon: ExecutedDaemon) -> None:
    """End both processes and take down what they made, and what they would remember."""
    daemon.stop()
    (daemon.directory / "state" / laststate.NAME).unlink(missing_ok=True)
    assert daemon.say("down") == ""
    forget_counters(daemon)


def fill(daemon: ExecutedDaemon, count: int) -> None:
    """Have that many leases of others in etcd, and ours."""
    daemon.gateway.clear()
    daemon.put_config(NETWORK)
    daemon.put(US.subnet, LEASES[US.subnet])
    daemon.gateway.put_all({key: json.dumps(lease) for key, lease in map(numbered, range(count))})


def time_start(rig: LeasedRig, daemon: ExecutedDaemon, last: int) -> float:
    """Start it; return after how long a packet of our pod went to the last peer."""
    key, lease = numbered(last)
    packet = rig.to_pod_side(frames.inner4(US.pod(), key.removeprefix("subnets/").replace(".0-24", ".5")))
    wanted = bytes(map(int, str(lease["PublicIP"]).split(".")))
    rig.wire.take()
    begun_s = time.monotonic()
    daemon.launch()
    while not any(frame[30:34] == wanted for frame in rig.wire.take()):
        assert time.monotonic() - begun_s < LATE_S, f"nothing went to peer {last}: {daemon.log()[-2000:]}"
        rig.pod.send(packet)
        select.select([], [], [], BETWEEN_S)
    took_s = time.monotonic() - begun_s
    wait_for(daemon.subnet_file.exists, "its start is over", LATE_S)
    return took_s


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("count", "datapath"),
    [
        pytest.param(1000, "userspace", id="1000-userspace"),
        pytest.param(MANY, "userspace", id="10000-userspace"),
        pytest.param(1000, "kernel", id="1000-kernel"),
    ],
)
def test_cold(rig: LeasedRig, daemon: ExecutedDaemon, count: int, datapath: str) -> None:
    """From exec on nothing but a full store until a packet goes to the last peer: each is soon reached."""
    daemon.flags += ["--datapath", datapath]
    fill(daemon, count)
    took_s = []
    for _ in range(STARTS[count]):
        took_s.append(time_start(rig, daemon, count - 1))
        take_down(daemon)
    of = f"{count} peers" + (", kernel VXLAN" if datapath == "kernel" else "")
    figure("from exec to the last peer", took_s, "s", of)
    assert max(took_s) < LATE_S


def memory_mib(pid: int) -> dict[str, float]:
    """Return what smaps_rollup says of a process, by name."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    rows = (line.split() for line in text.splitlines()[1:])
    return {name.rstrip(":"): int(kib) / 1024 for name, kib, *_ in rows}


def test_memory(rig: LeasedRig, daemon: ExecutedDaemon) -> None:
    """With 10 000 peers control and forwarder are small, and the spare has little of its own."""
    daemon.flags += ["--spare", "true"]
    fill(daemon, MANY)
    time_start(rig, daemon, MANY - 1)
    assert daemon.process is not None
    pids = {"control": daemon.process.pid, "forwarder": daemon.forwarder_pid()}
    wait_for(lambda: (daemon.run_dir / "spare.sock").exists(), "a spare", LATE_S)
    with ForwarderClient(daemon.run_dir / "spare.sock") as client:
        pids["spare"] = client.pid
    found = {name: memory_mib(pid) for name, pid in pids.items()}
    for name, memory in found.items():
        figure("RSS", [memory["Rss"]], "MiB", name)
        figure("PSS", [memory["Pss"]], "MiB", name)
    for kind in ("Rss", "Pss"):
        figure(f"{kind.upper()} of both", [found["control"][kind] + found["forwarder"][kind]], "MiB")
    assert found["spare"]["Pss"] < found["forwarder"]["Rss"]
