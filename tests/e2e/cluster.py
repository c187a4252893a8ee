# SPDX-License-Identifier: Apache-2.0
"""A cluster of five nodes of four kinds, dual-stack, on one real etcd.

    pods      a           e                    b           c           d
              │           │                    │           │           │
    hosts  userspace   flannel             userspace    kernel      flannel        etcd
           192.0.2.1   192.0.2.5           .130         .131        .132        203.0.113.2
              └─────┬─────┘                    └───────────┼───────────┘             │
                   br1 192.0.2.126/25 ──── router ──── br2 192.0.2.254/25 ───────────┘
                       2001:db8:1::fe                      2001:db8:2::fe        203.0.113.1

With DirectRouting, nodes on one link reach each other without encapsulation. "flannel" is flannel_node.py.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bench.lab import Namespace, remove_lab, skip_dad, wait_for
from dataplane.native import Totals
from tests.e2e.flannel_node import PREFIX, FlannelNode, Side
from tests.e2e.rig import Daemon, hasten

NETWORK: dict[str, Any] = {  # nodes that choose a subnet themselves leave those of d and e (100, 101) free
    "Network": "10.244.0.0/16",
    "SubnetMax": "10.244.99.0",
    "EnableIPv6": True,
    "IPv6Network": "fd00:244::/48",
    "IPv6SubnetMax": "fd00:244:0:63::",
    "Backend": {"Type": "vxlan"},
}
ETCD = "203.0.113.2"
ENDPOINT = f"http://{ETCD}:2379"
LINKS = {"br1": (1, 126), "br2": (2, 254)}  # IPv6 link number, the router's last octet
SEATS = {"a": ("br1", 1), "e": ("br1", 5), "b": ("br2", 130), "c": ("br2", 131), "d": ("br2", 132)}
START_S = 20.0


class EtcdDaemon(Daemon):
    """An `overlayd run` on the etcd of the cluster, on any datapath."""

    def run_command(self) -> list[str]:
        """Return the command line of `overlayd run`."""
        command = super().run_command()
        place = command.index("--store")
        return [*command[:place], *command[place + 2 :], "--etcd-endpoints", ENDPOINT]

    @property
    def is_kernel(self) -> bool:
        """Whether it was told to use the kernel's device."""
        return "kernel" in self.flags

    def restart(self, *flags: str) -> None:
        """End control, as an upgrade does, and start it with other flags."""
        self.stop()
        self.flags = list(flags)
        self.start()

    def _open_counters(self) -> Any:
        return None if self.is_kernel else super()._open_counters()

    def close(self) -> None:
        """End everything and take all of it down."""
        super().close()


def set_up_router(router: Namespace) -> None:
    """Give the router its links."""
    skip_dad(router)
    router.ip("link set lo up\n")
    router.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
    for link, (number, octet) in LINKS.items():
        router.ip(
            f"link add {link} type bridge\nlink set {link} up\naddr add 192.0.2.{octet}/25 dev {link}\n"
            f"addr add 2001:db8:{number}::fe/64 dev {link} nodad\n"
        )


class Host:
    """A node of the cluster: its namespace on the underlay, and one of a pod behind it."""

    def __init__(self, prefix: str, name: str, router: Namespace) -> None:
        """Make both, and join the host to its link."""
        self.name = name
        self.link, octet = SEATS[name]
        number, gateway = LINKS[self.link]
        self.ip, self.ip6 = f"192.0.2.{octet}", f"2001:db8:{number}::{octet:x}"
        self.host = Namespace(f"{prefix}-{name}")
        self.pod = Namespace(f"{prefix}-pod-{name}")
        self.pod_ip = self.pod_ip6 = ""
        skip_dad(self.host, self.pod)
        hasten(self.host)
        port = f"p{name}"
        self.host.ip(f"link add under0 type veth peer name {port} netns {router.name}\n")
        router.ip(f"link set {port} master {self.link} up\n")
        self.host.ip(
            f"link set lo up\nlink set under0 up\naddr add {self.ip}/25 dev under0\n"
            f"addr add {self.ip6}/64 dev under0 nodad\nroute add default via 192.0.2.{gateway}\n"
            f"route add default via 2001:db8:{number}::fe\n"
        )
        self.host.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")

    def join_pod(self, subnet: str, subnet6: str, mtu: int) -> None:
        """Give the pod addresses in the node's subnets, as the CNI bridge plugin does."""
        net, net6 = subnet.rpartition(".")[0], subnet6.partition("/")[0]
        self.pod_ip, self.pod_ip6 = f"{net}.2", f"{net6}2"
        self.host.ip(
            f"link add cni0 mtu {mtu} type bridge\nlink set cni0 up\n"
            f"addr add {net}.1/24 dev cni0\naddr add {net6}1/64 dev cni0 nodad\n"
            f"link add pod0 mtu {mtu} type veth peer name eth0 netns {self.pod.name}\n"
            "link set pod0 master cni0 up\n"
        )
        self.pod.ip(
            f"link set lo up\nlink set eth0 mtu {mtu} up\naddr add {self.pod_ip}/24 dev eth0\n"
            f"addr add {self.pod_ip6}/64 dev eth0 nodad\nroute add default via {net}.1\n"
            f"route add default via {net6}1\n"
        )

    def pod_of(self, family: int) -> str:
        """Return the pod's address in a family."""
        return self.pod_ip6 if family == 6 else self.pod_ip


class Cluster:
    """The drawing above."""

    def __init__(self, directory: Path, network: dict[str, Any], flags: Mapping[str, Sequence[str]]) -> None:
        """Build it, start etcd, flannel on d and e, overlayd with these flags on the nodes named there."""
        self.directory = directory
        self.prefix = f"clu{os.getpid() % 100000}"
        self.daemons: dict[str, EtcdDaemon] = {}
        self.flannels: dict[str, FlannelNode] = {}
        remove_lab(self.prefix)
        with ExitStack() as stack:
            self._build(stack)
            self._start_etcd(stack)
            self.etcdctl("put", f"{PREFIX}/config", _json(network))
            for name in SEATS:
                if name in flags:
                    self._start_overlayd(stack, name, flags[name])
                else:
                    self._start_flannel(stack, name, has_direct=bool(network["Backend"].get("DirectRouting")))
            self._stack = stack.pop_all()

    def _build(self, stack: ExitStack) -> None:
        self.router = self._namespace(stack, "router")
        set_up_router(self.router)
        self.hosts: dict[str, Host] = {}
        for name in SEATS:
            host = self.hosts[name] = Host(self.prefix, name, self.router)
            stack.callback(host.host.close)
            stack.callback(host.pod.close)

    def _namespace(self, stack: ExitStack, name: str) -> Namespace:
        namespace = Namespace(f"{self.prefix}-{name}")
        stack.callback(namespace.close)
        return namespace

    def _start_etcd(self, stack: ExitStack) -> None:
        self.etcd = self._namespace(stack, "etcd")
        self.etcd.ip(f"link set lo up\nlink add under0 type veth peer name petcd netns {self.router.name}\n")
        self.router.ip("link set petcd up\naddr add 203.0.113.1/24 dev petcd\n")
        self.etcd.ip(
            f"link set under0 up\naddr add {ETCD}/24 dev under0\nroute add default via 203.0.113.1\n"
        )
        urls = (
            "--listen-client-urls",
            f"{ENDPOINT},http://127.0.0.1:2379",
            "--advertise-client-urls",
            ENDPOINT,
        )
        data = ("--data-dir", str(self.directory / "etcd"), "--log-level", "error", "--unsafe-no-fsync")
        process = self.etcd.spawn("etcd", *urls, *data, log=self.directory / "etcd.log")
        stack.callback(process.wait)
        stack.callback(process.kill)
        wait_for(self._is_etcd_healthy, "etcd is healthy", START_S)

    def _is_etcd_healthy(self) -> bool:
        return self._run_etcdctl("endpoint", "health").returncode == 0

    def _run_etcdctl(self, *args: str) -> subprocess.CompletedProcess[str]:
        return self.etcd.run("env", "ETCDCTL_API=3", "etcdctl", *args, check=False)

    def etcdctl(self, *args: str) -> str:
        """Run etcdctl beside etcd; return what it prints."""
        done = self._run_etcdctl(*args)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def _start_flannel(self, stack: ExitStack, name: str, *, has_direct: bool) -> None:
        host, number = self.hosts[name], ord(name)
        sides = (
            Side(f"{host.ip}/25", f"10.244.{number}.0/24", f"02:00:00:00:04:{number:02x}"),
            Side(f"{host.ip6}/64", f"fd00:244:0:{number:x}::/64", f"02:00:00:00:06:{number:02x}"),
        )
        node = self.flannels[name] = FlannelNode(host.host, ENDPOINT, *sides)
        node.has_direct_routing = has_direct
        node.make_devices()
        stack.callback(node.stop)
        node.start()
        host.join_pod(sides[0].subnet, sides[1].subnet, 1430)

    def _start_overlayd(self, stack: ExitStack, name: str, flags: Sequence[str]) -> None:
        host = self.hosts[name]
        daemon = self.daemons[name] = EtcdDaemon(host.host, self.directory / name, {}, flags)
        stack.callback(daemon.close)
        daemon.start()
        fields = dict(line.split("=", 1) for line in daemon.subnet_file.read_text("ascii").splitlines())
        net = fields["FLANNEL_SUBNET"].partition("/")[0].rpartition(".")[0]
        net6 = fields["FLANNEL_IPV6_SUBNET"].partition("/")[0].removesuffix("1")
        host.join_pod(f"{net}.0/24", f"{net6}/64", int(fields["FLANNEL_MTU"]))

    def move_flannel(self, name: str, octet: int, mac_end: int) -> FlannelNode:
        """Let a flannel node that has left come back with its subnets, at other addresses with other MACs."""
        old, host = self.flannels[name], self.hosts[name]
        number, gateway = LINKS[host.link]
        old.stop()
        host.ip, host.ip6 = f"192.0.2.{octet}", f"2001:db8:{number}::{octet:x}"
        host.host.ip(
            "".join(f"link del {side.device}\n" for side in old.sides) + "addr flush dev under0\n"
            f"addr add {host.ip}/25 dev under0\naddr add {host.ip6}/64 dev under0 nodad\n"
            f"route replace default via 192.0.2.{gateway}\n"
            f"route replace default via 2001:db8:{number}::fe\n"
        )
        node = FlannelNode(
            host.host,
            ENDPOINT,
            Side(f"{host.ip}/25", old.sides[0].subnet, f"02:00:00:00:04:{mac_end:02x}"),
            Side(f"{host.ip6}/64", old.sides[1].subnet, f"02:00:00:00:06:{mac_end:02x}"),
        )
        node.has_direct_routing = old.has_direct_routing
        node.make_devices()
        self._stack.callback(node.stop)
        node.start()
        self.flannels[name] = node
        return node

    def close(self) -> None:
        """Take it all down."""
        self._stack.close()

    def totals(self) -> dict[str, Totals]:
        """Return what the forwarders of the cluster have counted, once all is accounted for."""
        return {name: node.settled() for name, node in self.daemons.items() if not node.is_kernel}

    # --- what pods do

    def can_ping(self, sender: Host, receiver: Host, family: int, size: int = 56) -> bool:
        """Tell whether one packet and its answer cross, in one piece unless it is larger than any link."""
        whole = ["-M", "do"] if size < 1400 else []
        command = ["ping", "-q", "-c", "1", "-W", "2", "-s", str(size), *whole, receiver.pod_of(family)]
        return sender.pod.run(*command, check=False).returncode == 0

    def settle(self) -> None:
        """Wait until every pod reaches every other, in both families."""
        for sender in self.hosts.values():
            for receiver in self.hosts.values():
                for family in (4, 6) if sender is not receiver else ():
                    wait_for(
                        lambda s=sender, r=receiver, f=family: self.can_ping(s, r, f),  # type: ignore[misc]
                        f"pod {sender.name} reaches pod {receiver.name} by IPv{family}",
                        START_S,
                    )


@contextmanager
def settled(
    directory: Path, network: dict[str, Any], flags: Mapping[str, Sequence[str]]
) -> Iterator[Cluster]:
    """Yield a cluster in which everybody reaches everybody, and take it down."""
    built = Cluster(directory, network, flags)
    try:
        built.settle()
        yield built
    finally:
        built.close()


def _json(value: dict[str, Any]) -> str:
    import json

    return json.dumps(value, separators=(",", ":"))
