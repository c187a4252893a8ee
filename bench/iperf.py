# SPDX-License-Identifier: Apache-2.0
"""iperf3 and sockperf between two pods of the lab."""

from __future__ import annotations

import json
import re
from typing import Any

from bench.lab import Node, wait_for

PORT = 5201
PING_PONG_PORT = 11111


def _wait_bound(node: Node, port: int, kind: str) -> None:
    wait_for(lambda: f":{port} " in node.pod.run("ss", "-ln", kind).stdout, f"port {port} is bound")


def run_iperf(client: Node, server: Node, target: str, seconds: int, *flags: str) -> dict[str, Any]:
    """Return iperf3's report of a run from the client's pod to an address of the server's pod."""
    listener = server.pod.spawn("iperf3", "-s", "-1")
    _wait_bound(server, PORT, "-t")
    command = ("iperf3", "-c", target, "-t", str(seconds), "-J", *flags)
    found = client.pod.run(*command, check=False, timeout_s=seconds + 20)
    listener.wait(10)
    report: dict[str, Any] = json.loads(found.stdout)
    if "error" in report:
        raise AssertionError(f"iperf3: {report['error']}")
    return report


def tcp_gbit_s(report: dict[str, Any]) -> float:
    """Return the throughput that the receiver of a TCP run saw."""
    return float(report["end"]["sum_received"]["bits_per_second"]) / 1e9


def udp_kpps(report: dict[str, Any]) -> float:
    """Return the rate of packets that the receiver of a UDP run saw."""
    total = report["end"]["sum"]
    return float(total["packets"] - total["lost_packets"]) / float(total["seconds"]) / 1e3


def ping_pong_us(client: Node, server: Node, target: str, seconds: int) -> tuple[float, float]:
    """Return average and 99th percentile of half a round trip of 64-byte packets."""
    listener = server.pod.spawn("sockperf", "server", "-i", target, "-p", str(PING_PONG_PORT))
    try:
        _wait_bound(server, PING_PONG_PORT, "-u")
        command = (
            "sockperf",
            "ping-pong",
            "-i",
            target,
            "-p",
            str(PING_PONG_PORT),
            "-m",
            "64",
            "-t",
            str(seconds),
        )
        said = client.pod.run(*command, timeout_s=seconds + 20).stdout
    finally:
        listener.terminate()
        listener.wait(10)
    average = re.search(r"avg-latency=([0-9.]+)|Latency is ([0-9.]+)", said)
    tail = re.search(r"percentile 99\.000 =\s*([0-9.]+)", said)
    if not average or not tail:
        raise AssertionError(f"sockperf said nothing useful: {said[-300:]}")
    return float(average[1] or average[2]), float(tail[1])
