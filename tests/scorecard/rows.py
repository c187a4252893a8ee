# SPDX-License-Identifier: Apache-2.0
"""The rows of the scorecard: what is measured by which programs, beside what, and what is enough.

Numbers are those of the reliability scorecard that the product was planned with; its first nine are
tests that pass or not. An anchor is the best figure that is published of others, or that follows from
what they publish; of kernel VXLAN the row measures it itself where it can.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from tests.scorecard.verdict import Aspect, Mark

Command = tuple[str, ...]
PYTHON = sys.executable
KERNEL = "kernel VXLAN"
BENCHED = "kernel-vxlan"  # the same by the name that benches have for it
E2E = "tests/e2e/test_"


@dataclass(frozen=True, slots=True)
class Row:
    """One row; it passes if all its programs end with 0 and all marks are met."""

    number: int
    title: str
    anchor: str
    marks: tuple[Mark, ...]
    full: tuple[Command, ...]
    quick: tuple[Command, ...]
    timeout_s: float  # of all programs together
    beside: tuple[Aspect, ...] = ()  # what the row measures of others
    also: tuple[Aspect, ...] = ()  # what else of ours is worth a look
    long: tuple[Command, ...] = ()  # instead of `full`, where --soak is given
    needs: str = ""  # a file without which there is nothing to read


def tests(*names: str) -> Command:
    """Return what runs some tests, whatever their marks, and lets them print."""
    return (PYTHON, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "-m", "", *names)


def module(name: str, *words: str) -> Command:
    """Return what runs a module."""
    return (PYTHON, "-m", name, *words)


COLD = (tests(f"{E2E}cold_start.py::test_cold_start_without_store"),)
RACE = f"{E2E}lease_race.py::test_case_121_fifty_nodes_race"
HUNG = f"{E2E}control_killed.py::test_case_115_hung_store"
KILLED = f"{E2E}control_killed.py::test_case_125_killed_in_a_rewrite"
CHURN = f"{E2E}table_churn.py::test_"
PEERS = f"{E2E}many_peers.py::test_"
BOOKS = tuple(
    f"{E2E}{name}.py"
    for name in ("exact_count", "conservation", "rare_drops", "vxlan_decap", "ipip", "table_churn")
)

ROWS = (
    Row(
        10,
        "goodput beside a flood of strangers",
        "kernel VXLAN: refused in softirq",
        (
            Mark("left of quiet goodput", "median", 0.5, least=5, of="overlayd", is_floor=True),
            Mark("grown", "max", 0, "KiB", least=4, of="overlayd"),
        ),
        (module("bench.flood", "--rounds", "5", "--seconds", "3"),),
        (module("bench.flood", "--rounds", "2", "--seconds", "2"),),
        420,
        (Aspect("left of quiet goodput", "median", BENCHED),),
        (Aspect("flood", "median", "overlayd"),),
    ),
    Row(
        11,
        "loss at half of the highest rate, 60 s",
        "kernel VXLAN: about 0 below saturation",
        (Mark("lost share", "max", 1e-5, of="overlayd-vxlan"),),
        (module("bench.steady", "--seconds", "60"),),
        (module("bench.steady", "--seconds", "6"),),
        420,
        (Aspect("lost share", "max", BENCHED),),
        (Aspect("half of the highest rate", "max", "overlayd-vxlan"),),
    ),
    Row(
        12,
        "soak, 30 min",
        "Kubernetes soak tests run for days; no figure is published",
        (
            Mark("minutes", "max", 30, "min", is_quota=True),
            Mark("RSS slope", "max", 1, "MiB/h", of="control"),
            Mark("RSS slope", "max", 1, "MiB/h", of="forwarder"),
            Mark("unaccounted", "sum", 0, "packets"),
            Mark("findings that are not good", "max", 0),
        ),
        (module("tests.scorecard.soaked"),),
        (module("tests.scorecard.soaked"),),
        2400,
        long=(module("tests.soak.run", "--minutes", "30"), module("tests.scorecard.soaked")),
        needs="build/soak/verdict.json",
    ),
    Row(
        13,
        "control is killed 100 times, 10 kpps each way",
        "Cilium, Felix, WireGuard in the kernel: 0 lost, as their dataplane is no process",
        (Mark("lost", "sum", 0, "packets"), Mark("kills", "sum", 100, "kills", is_quota=True)),
        (tests(f"{KILLED}[userspace-100]"), tests(f"{KILLED}[kernel-8]")),
        (tests(f"{KILLED}[userspace-8]"),),
        600,
        (Aspect("lost", "sum", KERNEL), Aspect("kills", "sum", KERNEL)),
        (Aspect("sent", "sum"),),
    ),
    Row(
        14,
        "forwarder is killed 100 times, 10 kpps",
        "flannel's udp backend: its TUN vanishes; Antrea 355: 10 s",
        (
            Mark("stall", "median", 20, "ms", least=100),
            Mark("stall", "max", 60, "ms", least=100),
            Mark("lost in a gap", "max", 64, "packets"),
            Mark("leaked in clear", "sum", 0, "packets"),
        ),
        (tests(f"{E2E}forwarder_killed.py::test_case_126_hundred_kills"),),
        (tests(f"{E2E}forwarder_killed.py::test_case_126_ten_kills"),),
        300,
    ),
    Row(
        15,
        "20 upgrades, old to new and new to old, 10 kpps each way",
        "Cilium: 0 interrupted connections; Envoy: drains for 600 s",
        (
            Mark("lost", "sum", 0, "packets"),
            Mark("TCP connections that broke", "sum", 0),
            Mark("paused", "max", 60, "ms", least=20),
        ),
        (tests(f"{E2E}upgrade.py::test_case_129_case_130_many_upgrades"),),
        (tests(f"{E2E}upgrade.py::test_case_129_case_130_upgrades_both_ways_lose_nothing"),),
        600,
        also=(Aspect("paused", "median"), Aspect("sent", "sum")),
    ),
    Row(
        16,
        "cold start while the store is away, exec to first packet",
        "flannel: does not start without its store",
        (Mark("from exec to the first packet", "max", 1, "s", least=10),),
        COLD * 10,
        COLD * 2,
        300,
        also=(Aspect("from exec to the first packet", "median"),),
    ),
    Row(
        17,
        "the store stands still for a minute (with --soak for an hour), 10 kpps each way",
        "flannel on kernel VXLAN: lasts as long as the lease, 24 h less its age",
        (Mark("lost", "sum", 0, "packets"),),
        (tests(f"{HUNG}[userspace-long]"),),
        (tests(f"{HUNG}[userspace-3s]"),),
        300,
        also=(Aspect("outage", "sum"), Aspect("sent", "sum")),
        long=(("env", "OUTAGE_S=3600", *tests(f"{HUNG}[userspace-long]")),),
    ),
    Row(
        18,
        "etcd is back, until a change is on the wire",
        "flannel: tries again after 5 s at most; etcd elects a leader within 1 s",
        (
            Mark("from its return to the wire", "p99", 2, "s", least=30, of="etcd that hung"),
            Mark("from its return to the wire", "p99", 2, "s", least=30, of="etcd that was killed"),
        ),
        (tests(f"{E2E}reconnect.py::test_reconnect[full]"),),
        (tests(f"{E2E}reconnect.py::test_reconnect[quick]"),),
        420,
        also=(
            Aspect("from its return to the wire", "median", "etcd that hung"),
            Aspect("from its return to the wire", "median", "etcd that was killed"),
        ),
    ),
    Row(
        19,
        "one peer changes in etcd, put to wire",
        "flannel: about a watch's round trip; Felix holds back for 100 ms",
        (Mark("from put to the wire", "p99", 200, "ms", least=500),),
        (tests(f"{E2E}etcd_scale.py::test_change_reaches_the_wire"),),
        (tests(f"{E2E}etcd_scale.py::test_change_reaches_the_wire"),),
        120,
        also=(Aspect("from put to the wire", "median"),),
    ),
    Row(
        20,
        "cold start with many peers in etcd, exec to a packet to the last",
        "flannel: a queue of 5000 events; flannel 719: trouble above 100 nodes",
        (
            Mark("from exec to the last peer", "median", 1, "s", least=5, of="1000 peers"),
            Mark("from exec to the last peer", "median", 10, "s", least=3, of="10000 peers"),
        ),
        (
            tests(
                f"{PEERS}cold[1000-userspace]", f"{PEERS}cold[10000-userspace]", f"{PEERS}cold[1000-kernel]"
            ),
        ),
        (tests(f"{PEERS}cold[1000-userspace]"),),
        420,
        (Aspect("from exec to the last peer", "median", f"1000 peers, {KERNEL}"),),
    ),
    Row(
        21,
        "a peer alternates between two versions, and all peers change at once, under load",
        "WireGuard: atomic for each peer",
        (
            Mark("sent wrong", "sum", 0, "packets"),
            Mark("lost", "sum", 0, "packets"),
            Mark("tables", "sum", 250, is_quota=True),
        ),
        (tests(f"{CHURN}peer_alternates", f"{CHURN}all_peers_are_replaced[2000]"),),
        (tests(f"{CHURN}all_peers_are_replaced[2000]"),),
        180,
        also=(Aspect("packets sent", "sum"),),
    ),
    Row(
        22,
        "10 000 transactions with kills, restarts, compactions: events lost, doubled, out of order",
        "etcd's guarantees of a watch",
        (
            Mark("violations", "sum", 0),
            Mark("transactions followed", "sum", 10_000, is_quota=True),
        ),
        (tests(f"{E2E}etcd_watch.py::test_case_109_nothing_is_lost_or_told_twice[10000]"),),
        (tests(f"{E2E}etcd_watch.py::test_case_109_nothing_is_lost_or_told_twice[1500]"),),
        300,
        also=(Aspect("changes told", "sum"), Aspect("lists", "sum")),
    ),
    Row(
        23,
        "50 nodes race for 50 subnets: subnets leased twice",
        "flannel: happens (its issues 1289, 805, 1129, 813)",
        (
            Mark("leased twice", "sum", 0, "subnets"),
            Mark("nodes without a lease", "sum", 0),
            Mark("races", "sum", 100, is_quota=True),
        ),
        (
            tests(*(f"{RACE}[{turn}]" for turn in range(3))),
            tests(f"{E2E}allocators.py::test_case_121_race[full]"),
        ),
        (tests(f"{E2E}allocators.py::test_case_121_race[quick]"),),
        600,
        also=(Aspect("stood still", "sum"),),
    ),
    Row(
        24,
        "hostile leases that are taken for peers",
        "flannel: takes them; nobody publishes a figure",
        (Mark("hostile leases that were not refused", "sum", 0, least=10),),
        (tests("-k", "case_114", f"{E2E}lease_table.py"),),
        (tests("-k", "case_114", f"{E2E}lease_table.py"),),
        120,
    ),
    Row(
        25,
        "the path shrinks under TCP",
        "the kernel's own tunnels, by its test pmtu.sh: goes on",
        (
            Mark("longest round meanwhile", "max", 1, "s", of="IPv4"),
            Mark("longest round meanwhile", "max", 1, "s", of="IPv6"),
        ),
        (tests("-k", "case_096_tcp_goes_on", f"{E2E}path_mtu.py"),),
        (tests("-k", "case_096_tcp_goes_on", f"{E2E}path_mtu.py"),),
        120,
    ),
    Row(
        26,
        "each system call of both processes fails with each errno",
        "nobody publishes one",
        (
            Mark("processes that ended", "max", 0),
            Mark("processor", "max", 20, "% of a core"),
            Mark("until packets passed", "max", 1, "s"),
            Mark("until in order", "max", 1, "s"),
        ),
        (module("tests.faults"),),
        (module("tests.faults", "--process", "forwarder", "recvmmsg", "sendmmsg", "epoll_wait"),),
        900,
        also=(Aspect("processor", "p99"), Aspect("calls that failed", "sum")),
    ),
    Row(
        27,
        "ICMP errors in a flood of packets that are too large, share of --icmp-rate",
        "Linux: 1000/s in all, bursts of 50; 1/s a destination",
        (
            Mark("of the configured rate", "max", 1, of="one sender"),
            Mark("of the configured rate", "max", 1, of="many senders"),
        ),
        (tests(f"{E2E}icmp_flood.py"),),
        (tests(f"{E2E}icmp_flood.py"),),
        120,
        also=(
            Aspect("flood sent", "max"),
            Aspect("ICMP errors", "max", "one sender"),
            Aspect("ICMP errors", "max", "many senders"),
        ),
    ),
    Row(
        28,
        "what the forwarder may do; exposure of both units",
        "passt: no capability, a list of system calls; systemd: 9.6 without hardening",
        (
            Mark("capabilities of a thread of the forwarder", "max", 0),
            Mark("exposure", "max", 3, "of 10", of="overlayd"),
            Mark("exposure", "max", 3, "of 10", of="overlayd-forwarder@"),
        ),
        (tests(f"{E2E}privilege.py", f"{E2E}units.py::test_units_are_tight"),),
        (tests(f"{E2E}privilege.py", f"{E2E}units.py::test_units_are_tight"),),
        240,
    ),
    Row(
        29,
        "memory with 10 000 peers, control and forwarder",
        "WireGuard: some KB a peer",
        (Mark("RSS of both", "max", 64, "MiB"),),
        (tests(f"{PEERS}memory"),),
        (tests(f"{PEERS}memory"),),
        180,
        also=(
            Aspect("PSS of both", "max"),
            Aspect("RSS", "max", "control"),
            Aspect("RSS", "max", "forwarder"),
            Aspect("PSS", "max", "spare"),
        ),
    ),
    Row(
        30,
        "books: offered = forwarded + drops, and as nftables counts",
        "nobody publishes one",
        (
            Mark("unaccounted", "sum", 0, "packets", least=100),
            Mark("off by", "sum", 0),
            Mark("packets", "sum", 60_000, "packets", is_quota=True),
        ),
        (tests(*BOOKS),),
        (tests(BOOKS[0]),),
        300,
    ),
)
