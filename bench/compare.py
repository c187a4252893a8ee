# SPDX-License-Identifier: Apache-2.0
"""`make bench`: overlayd beside kernel VXLAN, pod to pod, alternated in the same run. Quote the ratios."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

from bench.demo import PREFIX, SECOND, Demo, say
from bench.iperf import ping_pong_us, run_iperf, tcp_gbit_s, udp_kpps
from bench.lab import Lab, Node, remove_lab

PROFILES = ("veth", "wire")

# Name, unit, whether more is better, and how it is measured: (client, server, target, seconds) -> figure.
Measure = Callable[[Node, Node, str, int], float]
MEASURES: tuple[tuple[str, str, bool, Measure], ...] = (
    ("TCP, 1 stream", "Gbit/s", True, lambda a, b, ip, s: tcp_gbit_s(run_iperf(a, b, ip, s))),
    ("TCP, 4 streams", "Gbit/s", True, lambda a, b, ip, s: tcp_gbit_s(run_iperf(a, b, ip, s, "-P", "4"))),
    (
        *("UDP 64 B flood, received", "kpps", True),
        lambda a, b, ip, s: udp_kpps(run_iperf(a, b, ip, s, "-u", "-b", "0", "-l", "64")),
    ),
    ("ping-pong, half trip avg", "us", False, lambda a, b, ip, s: ping_pong_us(a, b, ip, s)[0]),
    ("ping-pong, half trip p99", "us", False, lambda a, b, ip, s: ping_pong_us(a, b, ip, s)[1]),
)


def write_peers(lab: Lab, nodes: list[Node]) -> Path:
    """Write a peers file with these hosts."""
    path = lab.directory / "peers.json"
    config = {
        "network": {"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}},
        "leases": {node.subnet(): node.lease("vxlan") for node in nodes},
    }
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return path


def compare(profile: str, seconds: int, rounds: int) -> list[dict[str, object]]:
    """Measure both systems on one profile of the underlay; figures are medians."""
    demo = Demo()
    demo.lab = lab = Lab(PREFIX, names=("a", "b"))
    try:
        lab.set_profile(profile)
        a, b = lab.nodes.values()
        demo.start("ab", f"file://{write_peers(lab, [a, b])}")
        for node, peer in ((a, b), (b, a)):
            node.add_second_network(SECOND.second_octet)
            node.program_kernel([peer], SECOND)
        rows = []
        for name, unit, _, measure in MEASURES:
            ours, kernel = [], []
            for _ in range(rounds):
                ours.append(measure(a, b, b.pod_ip(), seconds))
                kernel.append(measure(a, b, b.pod_ip(SECOND.second_octet), seconds))
            row = {
                "profile": profile,
                "measure": name,
                "unit": unit,
                "overlayd": round(statistics.median(ours), 2),
                "kernel": round(statistics.median(kernel), 2),
                "ratio": round(statistics.median(x / y for x, y in zip(ours, kernel, strict=True)), 3),
            }
            rows.append(row)
            say(
                f"{profile:<5} {name:<26} overlayd {row['overlayd']:>9} kernel {row['kernel']:>9} {unit:<7}"
                f" ratio {row['ratio']}"
            )
        return list(rows)
    finally:
        lab.close()


def main() -> int:
    """Run the comparison; return the exit status."""
    parser = argparse.ArgumentParser(prog="bench.compare", description=__doc__)
    parser.add_argument("--profile", choices=PROFILES, action="append", help="default: both")
    parser.add_argument("--seconds", type=int, default=2, help="per run (default: 2)")
    parser.add_argument("--rounds", type=int, default=3, help="pairs per figure (default: 3)")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    args = parser.parse_args()
    rows = []
    try:
        for profile in args.profile or PROFILES:
            rows += compare(profile, args.seconds, args.rounds)
    except KeyboardInterrupt:
        return 130
    finally:
        remove_lab(PREFIX)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
