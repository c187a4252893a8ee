# SPDX-License-Identifier: Apache-2.0
"""Nodes around a router whose links can be made narrow (drawn at bench/lab.py).

    a  overlayd, IPv4 and IPv6 underlay
    b  overlayd, IPv6 underlay alone: both families of a's pods cross IPv6 to it, and both back
    c  overlayd, IPv4 underlay alone: likewise over IPv4
    k  both, as a

A path is narrow in one direction, towards a node: the router has a route of that MTU. Router and hosts send
as many ICMP errors as they like.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6

from bench.lab import Lab, Node, wait_for
from tests.e2e.rig import Daemon
from tests.e2e.tap import Tap

UNDERLAYS = {"a": (4, 6), "b": (6,), "c": (4,), "k": (4, 6)}
SAID_S = 10.0  # until something is so


class PathDaemon(Daemon):
    """An `overlayd run` on any datapath, which may be launched before it is waited for."""

    def launch(self) -> None:
        """Start it, unless it was already."""
        if self.process is None:
            super().launch()

    def _open_counters(self) -> Any:
        return super()._open_counters() if self.forwarder_pid() else None


class PathLab:
    """The drawing above."""

    def __init__(
        self, directory: Path, backend: dict[str, Any], flags: Mapping[str, Sequence[str]], mtu: int
    ) -> None:
        """Build it, and start overlayd with these flags on the nodes named there; pods have this MTU."""
        self.backend = backend
        self._narrowed: set[str] = set()
        with ExitStack() as stack:
            self.lab = Lab(f"path{os.getpid() % 100000}{backend['Type']}", tuple(flags), mtu)
            stack.callback(self.lab.close)
            self.nodes = self.lab.nodes
            self.router = self.lab.router
            for space in (self.router, *(node.host for node in self.nodes.values())):
                space.run("sysctl", "-qw", "net.ipv4.icmp_ratelimit=0", "net.ipv6.icmp.ratelimit=0")
            self.daemons: dict[str, PathDaemon] = {}
            for name, more in flags.items():
                own = [*self._addresses(name), *more]
                daemon = PathDaemon(self.nodes[name].host, directory / name, self._peers_file(), own)
                self.daemons[name] = daemon
                stack.callback(daemon.close)
                daemon.launch()
            for daemon in self.daemons.values():  # they start at once, on few processors
                wait_for(daemon._is_ready, f"{daemon.directory} ready", 60.0)
                daemon.start()
            self._stack = stack.pop_all()

    def _underlays(self, name: str) -> tuple[int, ...]:
        return UNDERLAYS[name] if self.backend["Type"] == "vxlan" else (4,)

    def _addresses(self, name: str) -> list[str]:
        node, families = self.nodes[name], self._underlays(name)
        told = ["--public-ip", node.address] if 4 in families else []
        return told + (["--public-ipv6", node.address6] if 6 in families else [])

    def _peers_file(self) -> dict[str, Any]:
        is_vxlan = self.backend["Type"] == "vxlan"
        network: dict[str, Any] = {"Network": "10.244.0.0/16", "Backend": self.backend}
        if is_vxlan:
            network |= {"EnableIPv6": True, "IPv6Network": "fd00:244::/48"}
        return {"network": network, "leases": dict(map(self._lease, self.nodes.values()))}

    def _lease(self, node: Node) -> tuple[str, dict[str, Any]]:
        lease = node.lease(self.backend["Type"])
        if self.backend["Type"] != "vxlan":
            return node.subnet(), lease
        families = self._underlays(node.name)
        lease["PublicIP"] = node.address if 4 in families else None
        lease["PublicIPv6"] = node.address6 if 6 in families else None
        lease["BackendV6Data"] = lease["BackendData"]
        return f"{node.subnet()}&fd00:244:0:{node.third}::/64", lease

    def close(self) -> None:
        """Take it all down."""
        self._stack.close()

    # --- the underlay ---------------------------------------------------------------------------------

    def narrow(self, name: str, mtu: int | None) -> None:
        """Let the path to a node take so much; None: what the links take."""
        node, link = self.nodes[name], f"r{name}"
        if mtu is not None:
            self._narrowed.add(name)
        more = "" if mtu is None else f"mtu {mtu}"
        self.router.ip(f"route replace 192.0.2.{4 * node.index - 4}/30 dev {link} {more}\n")
        self.router.ip(f"route replace 2001:db8:{node.index}::/64 dev {link} metric 256 {more}\n")

    def forget(self, name: str = "a") -> None:
        """Let a node and its pod forget what they learned: routes that are made anew know nothing."""
        node = self.nodes[name]
        ways = [(node.host, node.gateway), (node.host, f"2001:db8:{node.index}::1")]
        ways += [(node.pod, f"10.244.{node.third}.1"), (node.pod, f"fd00:244:0:{node.third}::1")]
        for space, gateway in ways:
            space.ip(f"route del default via {gateway}\nroute add default via {gateway}\n")
        wait_for(
            lambda: not self.paths(name) and not self.routes(name),
            lambda: f"no path is known: {self.paths(name)}, {self.routes(name)}, {self.daemons[name].log()}",
            SAID_S,
        )

    def set_link(self, name: str, mtu: int) -> None:
        """Give both ends of a node's link an MTU, and its pod what VXLAN leaves of that."""
        self.router.ip(f"link set r{name} mtu {mtu}\n")
        self.nodes[name].host.ip(f"link set under0 mtu {mtu}\n")
        pods = mtu - (70 if 6 in self._underlays(name) else 50)
        self.nodes[name].set_pod_mtu(pods)
        env = self.daemons[name].subnet_file
        wait_for(lambda: f"FLANNEL_MTU={pods}\n" in env.read_text("ascii"), "the node follows", SAID_S)

    def widen(self) -> None:
        """Let every path take all it can, and a know it."""
        for name in self._narrowed:
            self.narrow(name, None)
        if self._narrowed:
            self.forget()
        self._narrowed.clear()

    def node_of(self, name: str, family: int) -> str:
        """Return the underlay address of a node."""
        return self.nodes[name].address6 if family == 6 else self.nodes[name].address

    def forge(self, name: str, family: int, mtu: int) -> None:
        """Let a stranger tell a that the path to a node takes so much, about a packet that there was."""
        self._narrowed.add(name)
        to, quote = self.node_of("a", family), self._packet_to(name, family)[:128]
        if family == 4:
            forged = IP(src="203.0.113.9", dst=to) / ICMP(type=3, code=4, nexthopmtu=mtu) / quote
        else:
            forged = IPv6(src="2001:db8:ffff::9", dst=to) / ICMPv6PacketTooBig(mtu=mtu) / quote
        kind = socket.AF_INET6 if family == 6 else socket.AF_INET
        with self.router.socket(kind, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
            sock.sendto(bytes(forged), (to, 0))

    def _packet_to(self, name: str, family: int) -> bytes:
        """Return a packet that a sent to a node; routers speak to it, too, and ask whether it is there."""
        both = b"".join(ip_address(self.node_of(node, family)).packed for node in ("a", name))
        found: list[bytes] = []
        tap = Tap(self.router, f"r{name}", outgoing=True)

        def is_seen() -> bool:
            self.ping(f"a{name}", 4, 100)
            found.extend(frame[14:] for frame in tap.take() if both in frame[14:54])
            return bool(found)

        try:
            wait_for(is_seen, "a packet to quote", SAID_S)
        finally:
            tap.close()
        return found[0]

    # --- what overlayd says ---------------------------------------------------------------------------

    def paths(self, name: str = "a") -> dict[str, dict[str, Any]]:
        """Return what a node knows of paths, by the name of the peer."""
        rows = self.daemons[name].status()["peers"]
        names = {f"10.244.{node.third}.0/24": node.name for node in self.nodes.values()}
        return {names[row["subnet"].partition("&")[0]]: row["path"] for row in rows if row["path"]}

    def routes(self, name: str = "a") -> list[str]:
        """Return the routes that a node has for single peers."""
        space = self.nodes[name].host
        shown = [space.run("ip", family, "route", "show", "proto", "112").stdout for family in ("-4", "-6")]
        return [" ".join(line.split()) for text in shown for line in text.splitlines()]

    # --- what pods do ---------------------------------------------------------------------------------

    def pod_of(self, name: str, family: int) -> str:
        """Return the address of a pod."""
        return self.nodes[name].pod_ip6 if family == 6 else self.nodes[name].pod_ip()

    def ping(self, way: str, family: int, size: int, *more: str) -> str:
        """Let a pod ping another, `ac`: a's pings c's, packets of `size` bytes; return what ping says."""
        bytes_ = size - (48 if family == 6 else 28)
        command = ["ping", "-n", "-W", "0.5", "-s", str(bytes_), *(more or ("-c", "1", "-M", "do"))]
        done = self.nodes[way[0]].pod.run(*command, self.pod_of(way[1], family), check=False)
        return done.stdout + done.stderr

    def passes(self, way: str, family: int, size: int) -> bool:
        """Tell whether one packet of a size crosses in one piece, and its answer."""
        return " 0% packet loss" in self.ping(way, family, size)

    def wait_passes(self, way: str, family: int, size: int) -> None:
        """Wait until packets of a size cross in one piece."""
        wait_for(lambda: self.passes(way, family, size), f"{size} bytes pass {way}", 2 * SAID_S)

    def wait_told(self, way: str, family: int, size: int, mtu: int) -> None:
        """Wait until the sender of packets of a size is told what is passed on; a busy machine takes time."""
        wait_for(
            lambda: self.ping(way, family, size) and self.told(way, family) == mtu,
            f"pods are told {mtu}",
            SAID_S,
        )

    def told(self, way: str, family: int) -> int:
        """Return what MTU the pod's kernel has for another pod; 0: that of its link."""
        there = self.pod_of(way[1], family)
        text = self.nodes[way[0]].pod.run("ip", "route", "get", there).stdout
        found = re.search(r" mtu (\d+)", text)
        return int(found[1]) if found else 0
