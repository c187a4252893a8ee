# SPDX-License-Identifier: Apache-2.0
"""Two hosts whose overlay and whose devices change from test to test, with the pods' own counters.

    pod a ── eth0 ─ pod0 ── host a              host b ── pod0 ─ eth0 ── pod b
                            overlayd            overlayd, or flannel.1 and flannel-v6.1
                            under0 ── router ── under0

Inner IPv4 goes over IPv4 and inner IPv6 over IPv6. IPIP and udp carry inner IPv4 alone. Between two tests
overlayd starts anew with other switches and takes over the forwarder that runs. Drawn in full at the head of
bench/lab.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.lab import WIRE_FEATURES, Kernel, Lab, Namespace, Node
from dataplane import native
from dataplane.model import ALL_OFFLOADS, OFFLOADS, Offload, tier_text
from tests.e2e.rig import Daemon, hasten, risen
from tests.e2e.test_kernel_peer import peers_file, program_kernel6

MTU = 1430  # of the pods: what VXLAN over IPv6 leaves of 1500 bytes
PLAIN = ("ipip", "udp")  # these carry IPv4 alone, over IPv4
SILENT = frozenset({"multicast"})  # what a host says on a new TUN, and no peer takes

# What a veth has as it comes, and what each setting changes.
AS_IT_COMES = (
    *("tx", "on", "tso", "on", "gso", "on", "gro", "off"),
    *("tx-udp_tnl-segmentation", "on", "tx-udp_tnl-csum-segmentation", "on", "tx-udp-segmentation", "on"),
)
DEVICES: dict[str, tuple[str, ...]] = {
    "veth": (),
    "cut": ("tso", "off", "gso", "off", "gro", "off"),
    "summed": ("tx", "off"),  # each packet has its checksums before it leaves
    "wire": WIRE_FEATURES,
}


@dataclass(frozen=True, slots=True)
class Setting:
    """What carries packets, without which offloads, over which devices."""

    kind: str  # vxlan, ipip, udp: overlayd on both hosts; kernel: kernel VXLAN on host b
    left_a: Offload = ALL_OFFLOADS
    left_b: Offload = ALL_OFFLOADS
    underlay: str = "veth"
    pods: str = "veth"

    def __str__(self) -> str:
        sides = (f"host {name}: {tier_text(left)}" for name, left in (("a", self.left_a), ("b", self.left_b)))
        return f"{self.kind}, {'; '.join(sides)}; underlay {self.underlay}, pods {self.pods}"


def disable_flags(left: Offload) -> tuple[str, ...]:
    """Return the switches that leave these offloads."""
    gone = [label for label, offload in OFFLOADS.items() if offload not in left]
    return ("--disable", ",".join(gone)) if gone else ()


class Crossing:
    """The drawing above."""

    def __init__(self, name: str, directory: Path) -> None:
        """Build the hosts; nothing carries packets yet."""
        self._setting: Setting | None = None
        self._stack = ExitStack()
        self._before: dict[str, native.Totals] = {}
        with ExitStack() as stack:
            self.lab = Lab(f"e2e{name}{os.getpid() % 100000}", names=("a", "b"))
            stack.callback(self.lab.close)
            self.a, self.b = self.nodes = tuple(self.lab.nodes.values())
            self.daemons: dict[str, Daemon] = {}
            for node in self.nodes:
                hasten(node.host)
                node.set_pod_mtu(MTU)
                self.daemons[node.name] = Daemon(node.host, directory / node.name, {}, ())
            stack.callback(self._end, self.nodes)
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Take it down."""
        self._stack.close()

    # --- changing

    def become(self, setting: Setting) -> None:
        """Let other overlays and other devices take over."""
        was, self._setting = self._setting, setting
        self._set_devices(was, setting)
        if was == setting:
            return
        if was is not None:
            self._on_all(Daemon.stop, self._ours(was))
        if setting.kind == "kernel" and (was is None or was.kind != "kernel"):
            self._end([self.b])
            self.b.program_kernel([self.a], Kernel())
            program_kernel6(self.b, self.a)
        elif setting.kind != "kernel" and was is not None and was.kind == "kernel":
            self.b.host.ip("link del flannel.1\nlink del flannel-v6.1\n")
        self._start(setting)

    def _set_devices(self, was: Setting | None, setting: Setting) -> None:
        if was is None or was.underlay != setting.underlay:
            for node in self.nodes:
                set_features(node.host, "under0", setting.underlay)
                set_features(self.lab.router, f"r{node.name}", setting.underlay)
        if was is None or was.pods != setting.pods:
            for node in self.nodes:
                set_features(node.host, "pod0", setting.pods)
                set_features(node.pod, "eth0", setting.pods)

    def _start(self, setting: Setting) -> None:
        peers = self._plain_file(setting.kind) if setting.kind in PLAIN else peers_file(list(self.nodes))
        for node in self._ours(setting):
            daemon = self.daemons[node.name]
            daemon.write_peers(peers)
            addresses = ("--public-ip", node.address, "--public-ipv6", node.address6)
            left = setting.left_a if node is self.a else setting.left_b
            daemon.flags = [*addresses, *disable_flags(left)]
        self._on_all(Daemon.start, self._ours(setting))
        for node in self._ours(setting):
            left = setting.left_a if node is self.a else setting.left_b
            tier = self.daemons[node.name].status()["tier"]
            assert tier == tier_text(left), f"host {node.name} of {setting} is {tier}"

    def _plain_file(self, kind: str) -> dict[str, Any]:
        leases = {node.subnet(): node.lease(kind) for node in self.nodes}
        return {"network": {"Network": "10.244.0.0/16", "Backend": {"Type": kind}}, "leases": leases}

    def _ours(self, setting: Setting) -> Sequence[Node]:
        return self.nodes[:1] if setting.kind == "kernel" else self.nodes

    def _on_all(self, act: Any, nodes: Iterable[Node]) -> None:
        """Do something with several daemons at a time."""
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(act, [self.daemons[node.name] for node in nodes]))

    def _end(self, nodes: Iterable[Node]) -> None:
        for node in nodes:
            self.daemons[node.name].close()

    # --- looking

    def families(self) -> tuple[int, ...]:
        """Return which inner families the present setting carries."""
        assert self._setting is not None
        return (4,) if self._setting.kind in PLAIN else (4, 6)

    def pod_address(self, node: Node, family: int) -> str:
        """Return the address of the pod behind a node."""
        return node.pod_ip6 if family == 6 else node.pod_ip()

    def ways(self) -> list[tuple[Node, Node, int]]:
        """Return source, destination and inner family of all that can be carried."""
        return [
            (source, target, family)
            for source, target in (self.nodes, self.nodes[::-1])
            for family in self.families()
        ]

    def settled(self) -> dict[str, native.Totals]:
        """Return the totals of each forwarder, once offered = forwarded + drops."""
        assert self._setting is not None
        return {node.name: self.daemons[node.name].settled() for node in self._ours(self._setting)}

    def bad_checksums(self) -> dict[str, int]:
        """Return the counters of both pods' kernels that say that a checksum was wrong."""
        return {
            f"pod {node.name} {name}": count
            for node in self.nodes
            for name, count in read_snmp(node.pod).items()
            if name.endswith("InCsumErrors")
        }


def set_features(namespace: Namespace, device: str, name: str) -> None:
    """Give a device the features of DEVICES."""
    namespace.run("ethtool", "-K", device, *AS_IT_COMES)
    if DEVICES[name]:
        namespace.run("ethtool", "-K", device, *DEVICES[name])


def read_snmp(namespace: Namespace) -> dict[str, int]:
    """Return the kernel's counters of a namespace: `Tcp.InCsumErrors`, `Udp6InCsumErrors`."""
    counts: dict[str, int] = {}
    lines = namespace.run("cat", "/proc/net/snmp", "/proc/net/snmp6").stdout.splitlines()
    names: list[str] = []
    for line in lines:
        group, colon, rest = line.partition(": ")
        if not colon:
            name, value = line.split()
            counts[name] = int(value)
        elif names:
            counts |= {f"{group}.{name}": int(word) for name, word in zip(names, rest.split(), strict=True)}
            names = []
        else:
            names = rest.split()
    return counts


def drops(before: dict[str, native.Totals], after: dict[str, native.Totals]) -> dict[str, int]:
    """Return by how much drop counters rose at either host, those of its own first words left out."""
    return {
        f"{host} {name}": count
        for host in after
        for name, count in risen(before[host], after[host]).items()
        if name not in SILENT
    }
