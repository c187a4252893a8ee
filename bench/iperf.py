# SPDX-License-Identifier: Apache-2.0
"""iperf3 between two pods of the lab."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from typing import Any

from bench.lab import Node, wait_for

PORT = 5201


def wait_bound(node: Node, port: int, kind: str) -> None:
    """Wait until a port of a pod is bound; `kind` is -t or -u."""
    wait_for(lambda: f":{port} " in node.pod.run("ss", "-ln", kind).stdout, f"port {port} is bound")


def run_iperf(client: Node, server: Node, target: str, seconds: int, *flags: str) -> dict[str, Any]:
    """Return iperf3's report of a run from the client's pod to an address of the server's pod."""
    listener = server.pod.spawn("iperf3", "-s", "-1")
    try:
        wait_bound(server, PORT, "-t")
        command = ("iperf3", "-c", target, "-t", str(seconds), "-J", *flags)
        found = client.pod.run(*command, check=False, timeout_s=seconds + 20)
    finally:
        _end(listener)
    report: dict[str, Any] = json.loads(found.stdout)
    if "error" in report:
        raise AssertionError(f"iperf3: {report['error']}")
    return report


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a program that should end by itself by now."""
    try:
        process.wait(2)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def flowing(client: Node, server: Node, target: str, seconds: int, *flags: str) -> Iterator[None]:
    """Keep a stream running; inside, it has begun to carry data and goes on for at most `seconds`."""
    listener = server.pod.spawn("iperf3", "-s", "-1")
    sender = None
    try:
        wait_bound(server, PORT, "-t")
        sender = client.pod.spawn("iperf3", "-c", target, "-t", str(seconds), *flags)
        wait_for(lambda: received_bytes(server) > 1 << 20, "iperf3 carries data")
        yield
    finally:
        if sender is not None:
            sender.kill()
            sender.wait()
        listener.kill()
        listener.wait()


def received_bytes(server: Node) -> int:
    """Return how many bytes the connections of the running server have received so far."""
    said = server.pod.run("ss", "-tinH", f"sport = :{PORT}").stdout
    words = [word for word in said.split() if word.startswith("bytes_received:")]
    return sum(int(word.partition(":")[2]) for word in words)


def tcp_gbit_s(report: dict[str, Any]) -> float:
    """Return the throughput that the receiver of a TCP run saw."""
    return float(report["end"]["sum_received"]["bits_per_second"]) / 1e9
