# SPDX-License-Identifier: Apache-2.0
"""A path that loses large packets in silence, and connections that go on all the same.

    pod a ─ host a: overlayd ──── router ──── host b: flannel.1, flannel-v6.1 ─ pod b
            192.0.2.2                │                192.0.2.6
                        to b: no more than UNDERLAY bytes, and not a word about it

The peer is the kernel's, which knows nothing of probes. Drawn in full at bench/lab.py.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from bench.lab import Lab, Node, wait_for
from tests.e2e.narrow import Flow, narrow
from tests.e2e.rig import OVERLAYD, risen
from tests.e2e.test_kernel_peer import Pair

UNDERLAY = 1479  # an odd size, found in few steps
PODS = {4: UNDERLAY - 50, 6: UNDERLAY - 70}
STALL_S = 10.0  # the contract's; measured on two processors: 3.2
TRICKLE, PLENTY = 1 << 18, 1 << 20
ECHO = ("net.ipv4.icmp_echo_ignore_all", "net.ipv6.icmp.echo_ignore_all")
SETTLE_S, QUIET_S = 30.0, 20.0
ASKING = ("--path-probes", "true")


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    """Yield the drawing, with a path that still takes all."""
    built = Pair("hole", tmp_path, "wire", *ASKING)
    try:
        yield built
    finally:
        built.close()


@contextmanager
def flows(pair: Pair) -> Iterator[list[Flow]]:
    """Have a connection from pod a to pod b in each family."""
    with ExitStack() as stack:
        found = []
        for version in PODS:
            flow = Flow(pair.ours.pod, pair.kernels.pod, pair.pod(pair.kernels, version))
            found.append(stack.enter_context(closing(flow)))
            flow.wait(TRICKLE, SETTLE_S)
        yield found


def peer(pair: Pair) -> dict[str, Any]:
    """Return what status says of the peer."""
    (found,) = (peer for peer in pair.daemon.status()["peers"] if peer["id"] is not None)
    return dict(found)


def has_answered(pair: Pair) -> bool:
    """Tell whether the peer is known to answer."""
    answers = peer(pair)["answers"]
    return answers is not None and answers["age_s"] is not None


def requests(node: Node) -> int:
    """Return how many echo requests have come to a host, answered or not."""
    words = node.host.run("nstat", "-asz", "IcmpInEchos", "Icmp6InEchos").stdout.split()
    return sum(int(words[words.index(name) + 1]) for name in ("IcmpInEchos", "Icmp6InEchos"))


def in_force(pair: Pair) -> dict[int, int]:
    """Return the MTU of the routes to the peer's pods, by IP version, where they have one."""
    found = {}
    for version in PODS:
        target = pair.pod(pair.kernels, version)
        words = pair.ours.host.run("ip", f"-{version}", "route", "get", target).stdout.split()
        if "mtu" in words:
            found[version] = int(words[words.index("mtu") + 1])
    return found


@pytest.mark.alone
def test_black_hole(pair: Pair) -> None:
    """Connections of both families go on within 10 s, and what the path takes is found to the byte."""
    before = pair.daemon.settled()
    with flows(pair) as found:
        wait_for(lambda: has_answered(pair), "the peer answers", SETTLE_S)
        assert (peer(pair)["path"], in_force(pair)) == (None, {})
        narrow(pair.lab, "b", UNDERLAY, ("oifname",))
        for flow in found:
            flow.longest_s()
        wait_for(lambda: in_force(pair).keys() == PODS.keys(), "the hole is found", STALL_S)
        for flow in found:
            flow.wait(PLENTY, STALL_S)
        stalls_s = [flow.longest_s() for flow in found]
        wait_for(
            lambda: in_force(pair) == PODS, lambda: f"the most that passes: {pair.daemon.log()}", SETTLE_S
        )
        for flow in found:
            flow.wait(PLENTY, STALL_S)
    print("stalled for " + ", ".join(f"{stall_s:.1f} s" for stall_s in stalls_s))
    assert max(stalls_s) <= STALL_S
    shown = peer(pair)
    assert (shown["path"]["mtu"], shown["path"]["source"]) == (UNDERLAY, "probe")
    assert 0 < shown["answers"]["rtt_ms"] < 1000 * STALL_S
    assert risen(before, pair.daemon.settled()) == {}


@pytest.mark.soak
def test_peer_that_never_answers(pair: Pair) -> None:
    """It is shown as such, and nothing is made of it; when it answers after all, the hole is found."""
    for name in ECHO:
        pair.kernels.host.run("sysctl", "-qw", f"{name}=1")
    with flows(pair):
        narrow(pair.lab, "b", UNDERLAY, ("oifname",))
        wait_for(lambda: peer(pair)["answers"] == {"age_s": None, "rtt_ms": None}, "it is asked", SETTLE_S)
        table = pair.ours.host.run(*OVERLAYD, "peers", "--run-dir", str(pair.daemon.run_dir)).stdout
        assert "no answer yet" in table
        asked = requests(pair.kernels)
        wait_for(lambda: requests(pair.kernels) >= asked + 4, "several trials are over", SETTLE_S)
        assert in_force(pair) == {}
        for name in ECHO:
            pair.kernels.host.run("sysctl", "-qw", f"{name}=0")
        wait_for(lambda: in_force(pair) == PODS, "the most that passes", 3 * SETTLE_S)


@pytest.mark.soak
def test_idle_nodes_ask_nothing(tmp_path: Path) -> None:
    """Two nodes of ours find a hole under IPIP; when pods fall silent so do they, whoever was last."""
    with Lab(f"e2eipip{os.getpid() % 100000}", names=("a", "b")) as lab, ExitStack() as stack:
        lab.set_profile("wire")
        a, b = lab.nodes["a"], lab.nodes["b"]
        network = {"Network": "10.244.0.0/16", "Backend": {"Type": "ipip"}}
        leases = {node.subnet(): node.lease("ipip") for node in (a, b)}
        store = tmp_path / "peers.json"
        store.write_text(json.dumps({"network": network, "leases": leases}), encoding="utf-8")
        for node in (a, b):
            process = node.start_overlayd(f"file://{store}", "--public-ip", node.address)
            stack.callback(process.wait)
            stack.callback(process.terminate)
            stack.callback(node.host.run, *OVERLAYD, "down", "--run-dir", str(node.run_dir))
        for node, target in ((a, b.pod_ip()), (b, a.pod_ip())):
            command = ("ping", "-c1", "-W1", target)
            wait_for(
                lambda n=node, c=command: n.pod.run(*c, check=False).returncode == 0,  # type: ignore[misc]
                "pods talk",
                SETTLE_S,
            )
        with closing(Flow(a.pod, b.pod, b.pod_ip())) as flow:
            flow.wait(PLENTY, SETTLE_S)
            narrow(lab, "b", UNDERLAY)
            wait_for(
                lambda: f"mtu {UNDERLAY - 20}" in a.host.run("ip", "route", "get", b.pod_ip()).stdout,
                lambda: f"the most that passes: {a.log()}",
                SETTLE_S,
            )
            flow.wait(PLENTY, STALL_S)
        last, since_s = -1, 0.0

        def is_quiet() -> bool:
            nonlocal last, since_s
            asked = requests(a) + requests(b)
            if asked != last:
                last, since_s = asked, time.monotonic()
            return time.monotonic() - since_s > QUIET_S

        wait_for(is_quiet, "nobody asks any more", 6 * QUIET_S)
