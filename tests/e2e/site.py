# SPDX-License-Identifier: Apache-2.0
"""A site: two hosts on one link, and an etcd that speaks TLS; any number of daemons on each host.

    pod 10.x.n.2                                                      pod 10.x.m.2
      │ eth0                                                            │ eth0
    NETWORK0  FLANNEL_SUBNET, 10.x.n.1/24       NETWORK0  FLANNEL_SUBNET, 10.x.m.1/24
    host a    overlayd for each network         host b    overlayd for each network
      │ under0 192.0.2.1, 2001:db8::1             │ under0 192.0.2.2, 2001:db8::2
      └───────────────────┬─────────────────────┘
                      br0 192.0.2.254: etcd, which wants a certificate of who comes

Where flannel's own tests make a dummy device for the host's address, here is one end of a veth, whose other
end is a pod's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from ipaddress import ip_interface
from itertools import permutations
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bench.lab import Namespace, remove_lab, skip_dad, wait_for
from dataplane.native import Totals
from tests.e2e import warm
from tests.e2e.rig import START_S, Daemon, hasten
from tests.etcd import Etcd, Seat
from tests.pki import Authority

HOSTS = ("a", "b")
ADDRESSES = {"a": ("192.0.2.1", "2001:db8::1"), "b": ("192.0.2.2", "2001:db8::2")}
ETCD = "192.0.2.254"


@dataclass(frozen=True, slots=True)
class Overlay:
    """A network that daemons of a site carry."""

    name: str  # of its interfaces, at most eight letters
    config: dict[str, Any]
    flags: tuple[str, ...] = ()

    @property
    def prefix(self) -> str:
        """Where its keys are."""
        return f"/{self.name}/network"

    @property
    def tun(self) -> str:
        """The overlay device of its daemons."""
        return f"over-{self.name}"


class SiteDaemon(Daemon):
    """An `overlayd run` on the etcd of a site, for one of its networks."""

    def __init__(self, site: Site, host: str, overlay: Overlay) -> None:
        """Belong to a host; nothing is started yet."""
        self.overlay = overlay
        self._site = site
        super().__init__(site.hosts[host], site.new_directory(f"{overlay.name}-{host}"), {}, overlay.flags)

    def run_command(self) -> list[str]:
        """Return the command line of `overlayd run`."""
        command = super().run_command()
        place = command.index("--store")
        command[place : place + 2] = [*self._site.access, "--etcd-prefix", self.overlay.prefix]
        return [*command, "--tun-name", self.overlay.tun]

    def wait_ready(self) -> None:
        """Wait until it is ready, however it was started."""
        wait_for(
            self._is_ready, lambda: f"overlayd run of {self.directory} ready: {self.log()[-2000:]}", START_S
        )

    def env(self) -> dict[str, str]:
        """Return what subnet.env says."""
        lines = self.subnet_file.read_text(encoding="ascii").splitlines()
        return dict(line.split("=", 1) for line in lines)

    def peers(self) -> set[str]:
        """Return the subnets of its peers, once what status lists is in force."""
        return {peer["subnet"] for peer in self.settled_status()["peers"]}

    def _open_counters(self) -> Any:
        return super()._open_counters() if self.forwarder_pid() else None

    def down(self) -> None:
        """Take it down, and see that this is done without a word."""
        done = warm.run(self.namespace, self.command("down"), START_S)
        assert (done.returncode, done.stdout + done.stderr) == (0, "")
        if self._counters is not None:
            self._counters[0].close()
            os.close(self._counters[1])
        self.process = self._counters = None

    def settled_if_ours(self) -> Totals | None:
        """Return what its forwarder has counted, once all is accounted for; None if there is none."""
        if not self.forwarder_pid():
            return None
        if self._counters is None:
            self._counters = self._open_counters()
        return self.settled()


@dataclass(slots=True)
class Member:
    """One daemon with a pod behind it."""

    host: Namespace
    daemon: SiteDaemon
    pod: Namespace
    own: dict[int, str] = field(default_factory=dict)  # FLANNEL_SUBNET's address, by family
    pod_ip: dict[int, str] = field(default_factory=dict)

    def join_pod(self) -> None:
        """Give host and pod addresses of the subnet that the daemon has written down."""
        env, name = self.daemon.env(), f"{self.daemon.overlay.name}0"
        mtu = env["FLANNEL_MTU"]
        self.host.ip(f"link add {name} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {self.pod.name}\n")
        self.host.ip(f"link set {name} up\n")
        self.pod.ip("link set lo up\nlink set eth0 up\n")
        for family, key in ((4, "FLANNEL_SUBNET"), (6, "FLANNEL_IPV6_SUBNET")):
            if key not in env:
                continue
            gateway = ip_interface(env[key])
            self.own[family], self.pod_ip[family] = str(gateway.ip), str(gateway.ip + 1)
            self.host.ip(f"addr add {gateway} dev {name} nodad\n")
            self.pod.ip(
                f"addr add {gateway.ip + 1}/{gateway.network.prefixlen} dev eth0 nodad\n"
                f"route add default via {gateway.ip}\n"
            )

    def recreate_pod(self, prefix: str) -> None:
        """Let the pod go and another one come in its place."""
        self.host.ip(f"link del {self.daemon.overlay.name}0\n")
        self.pod.close()
        self.pod = Namespace(prefix)
        self.join_pod()


class Site:
    """The drawing above."""

    def __init__(self, directory: Path, name: str = "site") -> None:
        """Build the hosts and start etcd."""
        self.directory = directory
        self.prefix = f"{name}{os.getpid() % 100000}"
        self._members: list[Member] = []
        remove_lab(self.prefix)
        with ExitStack() as stack:
            self.switch = self._namespace(stack, "switch")
            self.switch.ip(f"link set lo up\nlink add br0 type bridge\naddr add {ETCD}/24 dev br0\n")
            self.switch.ip("link set br0 up\n")
            self.hosts = {host: self._namespace(stack, host) for host in HOSTS}
            for host, space in self.hosts.items():
                self._join(host, space)
            self._start_etcd(stack)
            self._stack = stack.pop_all()

    def _namespace(self, stack: ExitStack, name: str) -> Namespace:
        namespace = Namespace(f"{self.prefix}-{name}")
        stack.callback(namespace.close)
        skip_dad(namespace)
        return namespace

    def _join(self, host: str, space: Namespace) -> None:
        hasten(space)
        ip, ip6 = ADDRESSES[host]
        space.ip(f"link add under0 type veth peer name port-{host} netns {self.switch.name}\n")
        self.switch.ip(f"link set port-{host} master br0 up\n")
        space.ip(
            f"link set lo up\nlink set under0 up\naddr add {ip}/24 dev under0\n"
            f"addr add {ip6}/64 dev under0 nodad\n"
            f"route add default via {ETCD}\nroute add default via 2001:db8::fe dev under0\n"
        )
        # Who asks the link for an overlay's address gets no answer: that would be a way around the overlay.
        sysctls = (
            "net.ipv4.ip_forward=1",
            "net.ipv6.conf.all.forwarding=1",
            "net.ipv4.conf.all.arp_ignore=1",
        )
        space.run("sysctl", "-qw", *sysctls)

    def _start_etcd(self, stack: ExitStack) -> None:
        authority = Authority(self.directory / "pki", "authority", ETCD)
        key, certificate = authority.issue("server")
        trust = ("--client-cert-auth", "--trusted-ca-file", str(authority.certificate))
        flags = ("--key-file", str(key), "--cert-file", str(certificate), *trust)
        self.etcd = Etcd(self.directory / "etcd", 1, flags, seat=Seat("https", ETCD, self.switch))
        stack.callback(self.etcd.close)
        key, certificate = authority.issue("node")
        ours = (str(key), str(certificate), str(authority.certificate))
        self.etcd.control_flags = [f"--{k}={v}" for k, v in zip(("key", "cert", "cacert"), ours, strict=True)]
        names = ("--etcd-keyfile", "--etcd-certfile", "--etcd-cafile")
        self.access = [word for pair in zip(names, ours, strict=True) for word in pair]
        self.access += ["--etcd-endpoints", self.etcd.urls[0]]
        self.etcd.wait_healthy()

    # --- daemons

    def new_directory(self, name: str) -> Path:
        """Return where a daemon can keep its files: nothing is there yet."""
        path, turn = self.directory / name, 1
        while path.exists():
            turn += 1
            path = self.directory / f"{name}{turn}"
        return path

    def put_config(self, overlay: Overlay) -> None:
        """Write the network config of an overlay."""
        self.etcd.put(f"{overlay.prefix}/config", json.dumps(overlay.config))

    def run(self, *overlays: Overlay) -> Running:
        """Start a daemon of each overlay on each host; they end with the block."""
        return Running(self, overlays)

    def close(self) -> None:
        """Take it all down."""
        self._stack.close()


class Running:
    """The daemons of some overlays of a site, all ready and with a pod each, as a block."""

    def __init__(self, site: Site, overlays: Sequence[Overlay]) -> None:
        """Know what to start."""
        self.site = site
        self._overlays = overlays
        self.members: dict[tuple[str, str], Member] = {}  # by overlay and host

    def pair(self, name: str) -> tuple[Member, Member]:
        """Return the two members of an overlay."""
        return self.members[name, "a"], self.members[name, "b"]

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for overlay in self._overlays:
                self.site.put_config(overlay)
                for host in HOSTS:
                    pod = self.site._namespace(stack, f"pod-{overlay.name}-{host}")
                    daemon = SiteDaemon(self.site, host, overlay)
                    stack.callback(daemon.close)
                    self.members[overlay.name, host] = Member(self.site.hosts[host], daemon, pod)
                    daemon.launch()
            for member in self.members.values():
                member.daemon.wait_ready()
                member.join_pod()
                stack.callback(member.host.ip, f"link del {member.daemon.overlay.name}0\n")
            self.settle()
            self._stack = stack.pop_all()
        return self

    def settle(self) -> None:
        """Wait until the pods of each overlay reach each other: a peer is known before it is in force."""
        for overlay in self._overlays:
            for near, far in permutations(self.pair(overlay.name)):
                for family, ip in near.pod_ip.items():
                    wait_for(
                        lambda n=near, i=ip, t=far.pod_ip[family]: can_ping(n.pod, i, t, 1, 1.0),  # type: ignore[misc]
                        f"pods of {overlay.name} reach each other",
                        START_S,
                    )

    def totals(self) -> list[Totals]:
        """Return what all forwarders have counted, once all is accounted for."""
        found = (member.daemon.settled_if_ours() for member in self.members.values())
        return [totals for totals in found if totals is not None]

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None
    ) -> None:
        with self._stack:
            self.totals()


def can_ping(space: Namespace, source: str, target: str, count: int = 3, wait_s: float = 2.0) -> bool:
    """Tell whether `ping -I SOURCE TARGET` gets every answer."""
    command = ("ping", "-n", "-q", "-c", str(count), "-i", "0.05", "-W", f"{wait_s:g}", "-I", source, target)
    return " 0% packet loss" in space.run(*command, check=False).stdout


def addresses(members: Iterable[Member], family: int) -> list[str]:
    """Return FLANNEL_SUBNET's address of each."""
    return [member.own[family] for member in members]
