# SPDX-License-Identifier: Apache-2.0
"""sockperf between two pods of the lab: half the round trip of 64-byte UDP packets."""

from __future__ import annotations

import re

from bench.iperf import wait_bound
from bench.lab import Node

PORT = 11111
SIZE = 64


def parse(said: str) -> dict[str, float]:
    """Return the percentiles that sockperf printed, in microseconds; 0 and 100 are least and most."""
    found = {
        f"{float(percentile):g}": float(time_us)
        for percentile, time_us in re.findall(r"percentile ([0-9.]+) =\s*([0-9.]+)", said)
    }
    for word, name in (("MIN", "0"), ("MAX", "100")):
        match = re.search(rf"<{word}> observation =\s*([0-9.]+)", said)
        if match:
            found[name] = float(match[1])
    if not {"50", "99"} <= set(found):
        raise AssertionError(f"sockperf said nothing useful: {said[-200:]!r}")
    return dict(sorted(found.items(), key=lambda item: float(item[0])))


def ping_pong(client: Node, server: Node, target: str, seconds: int) -> dict[str, float]:
    """Return the percentiles of half a round trip, in microseconds."""
    address = ("-i", target, "-p", str(PORT))
    listener = server.pod.spawn("sockperf", "server", *address)
    try:
        wait_bound(server, PORT, "-u")
        command = ("sockperf", "ping-pong", *address, "-m", str(SIZE), "-t", str(seconds))
        said = client.pod.run(*command, check=False, timeout_s=seconds + 20)
    finally:
        listener.terminate()
        listener.wait(10)
    return parse(said.stdout + said.stderr)
