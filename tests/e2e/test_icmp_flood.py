# SPDX-License-Identifier: Apache-2.0
"""Pods that flood what cannot be carried: ICMP errors stay in bounds, and other pods are still told.

wire, pod side ── dut: two threads ── underlay, a route of 1300 bytes to 192.0.2.2      (rig.py draws it)
flood  10.244.1.0    from a process of the host, as fast as it can, larger than the path takes
single 10.244.1.9    one such packet, while that goes on
"""

from __future__ import annotations

import errno
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from scapy.layers.inet import IP, UDP
from scapy.packet import Raw

from bench.figures import figure
from bench.lab import wait_for
from tests.e2e.frames import DUAL, US
from tests.e2e.rig import DEFAULT_FLAGS, Rig

IP_RECVERR, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE = 11, 10, 3
RATE, FLOOD_S = 400, 2
# DF whatever the kernel has learned; by several ports, so that all queues and both threads are busy.
FLOOD = """
import socket, sys, time
socks = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(16)]
for at, sock in enumerate(socks):
    sock.setsockopt(socket.IPPROTO_IP, 10, 3)
    sock.bind((sys.argv[1], 20000 + at))
    sock.connect((sys.argv[2], 5201))
data, sent, end = bytes(1400), 0, time.monotonic() + float(sys.argv[3])
while time.monotonic() < end:
    for sock in socks:
        for _ in range(8):
            try:
                sock.send(data)
                sent += 1
            except OSError:
                pass
print(sent)
"""


@pytest.fixture(scope="module")
def flooded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """Yield a rig with two threads and a rate of its own, which knows that the path to a peer is narrow."""
    flags = (*DEFAULT_FLAGS, "--icmp-rate", str(RATE), "--threads", "2")
    with Rig(tmp_path_factory.mktemp("flood") / "node", flags=flags, name="f") as rig:
        rig.dut.ip(f"addr add {US.pod(9)}/32 dev lo\nroute add {DUAL.ip}/32 dev under0 mtu 1300")
        wait_for(lambda: is_told(rig), "what the path takes is found out")
        yield rig


def is_told(rig: Rig) -> bool:
    """Send one packet that is too large from an address of its own, and return whether its sender is told."""
    with rig.dut.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE)
        sock.bind((US.pod(9), 0))
        sock.connect((DUAL.pod(), 9))
        sock.settimeout(0.3)
        sock.send(bytes(1400))
        try:
            sock.recv(1)
        except TimeoutError:
            return False
        except OSError as err:
            return err.errno == errno.EMSGSIZE
    return False


def tell(told: int, seconds: float, of: str) -> None:
    """Tell how many ICMP errors were sent a second, and as a share of the rate that is configured."""
    figure("ICMP errors", [told / seconds], "/s", of)
    figure("of the configured rate", [told / seconds / RATE], "", of)


def test_case_141_flood(flooded: Rig) -> None:
    """Of a flood a tenth of the rate is told, by both threads together; and another pod is told its own."""
    before, start = flooded.daemon.settled(), time.monotonic()
    args = (sys.executable, "-c", FLOOD, US.pod(0), DUAL.pod(), str(FLOOD_S))
    process = subprocess.Popen(flooded.dut.command(*args), stdout=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: flooded.daemon.counters.totals().icmp_limited > before.icmp_limited, "the flood")
        # The kernel may drop the packet where the TUN's queue is full, as it does of the flood.
        wait_for(lambda: is_told(flooded), "the other pod is told", FLOOD_S)
        assert process.poll() is None, "while the flood went on"
        sent = int(process.communicate(timeout=30)[0])
    finally:
        process.kill()
        process.wait()
    flooded.daemon.wait_quiet()
    after, seconds = flooded.daemon.settled(), time.monotonic() - start
    offered = after.tx.offered - before.tx.offered
    told, limited = after.icmp_sent - before.icmp_sent, after.icmp_limited - before.icmp_limited
    figure("flood sent", [sent / FLOOD_S], "packets/s")
    figure("flood offered", [offered / FLOOD_S], "packets/s")
    tell(told, seconds, "one sender")
    others = 20  # at most, of the other pod
    assert told <= RATE / 10 * seconds + RATE / 20 / 10 + others
    assert told >= RATE / 10 * FLOOD_S / 2, "but it is told"
    assert limited + told == offered == after.tx.drops["too_big"] - before.tx.drops.get("too_big", 0)
    assert offered > 10 * RATE
    shown = flooded.daemon.status()["icmp"]
    assert (shown["sent"], shown["limited"]) == (after.icmp_sent, after.icmp_limited)


def test_case_141_all_senders(flooded: Rig) -> None:
    """Many pods that flood many destinations are told no more than half of the rate, over all threads."""
    packets = [
        flooded.to_pod_side(
            IP(src=US.pod(20 + at), dst=f"10.244.{100 + at % 7}.5", flags="DF")
            / UDP(sport=at, dport=9)
            / Raw(bytes(600))
        )
        for at in range(100)
    ]
    before, start = flooded.daemon.settled(), time.monotonic()
    while time.monotonic() < start + 1.0:
        flooded.pod.send(*packets * 5)
    after, seconds = flooded.daemon.settled(), time.monotonic() - start
    told = after.icmp_sent - before.icmp_sent
    tell(told, seconds, "many senders")
    assert told <= (RATE * seconds + RATE / 20) / 2 + 1, "all of them are about no peer"
    assert told >= RATE / 10
