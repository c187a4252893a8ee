# SPDX-License-Identifier: Apache-2.0
"""Two hosts with overlayd, one on each datapath, whose pods are made by CNI's real plugins.

    pods a1, a2, …             router: "outside"             pods b1, …
     │ eth0                                                   │ eth0
    cni0 10.244.1.1                                          cni0 10.244.2.1
    host a: userspace                                        host b: kernel
         192.0.2.2 ──────────── .1      .5 ──────────── 192.0.2.6          (drawn at bench/lab.py)

The network config is what `overlayd cni-conf` wrote, and the plugins keep their records beside it.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import subprocess
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench.lab import Lab, Namespace, Node
from dataplane.native import Counters
from tests.e2e.cni_runtime import Pod, Port, Runtime
from tests.e2e.rig import OVERLAYD, ROOT, Daemon, hasten
from tests.e2e.test_kernel_peer import peers_file

TIMEOUT_S = 5.0
DATAPATHS = {"a": "userspace", "b": "kernel"}
BASELINE = (
    ("ip", "-brief", "link"),
    ("ip", "-brief", "address"),
    ("ip", "route", "show", "table", "all"),
    ("ip", "-6", "route", "show", "table", "all"),
    ("ip", "rule"),
    ("nft", "--stateless", "list", "ruleset"),
    ("iptables-nft-save",),
    ("ip6tables-nft-save",),
)


class PluggedDaemon(Daemon):
    """An overlayd that has a forwarder only on the userspace datapath."""

    def _open_counters(self) -> tuple[Counters, int]:
        if "kernel" in self.flags:
            return None  # type: ignore[return-value]
        return super()._open_counters()


class Host:
    """One of the hosts: its node, its daemon, and the network of its pods."""

    def __init__(self, node: Node, directory: Path, peers: dict[str, object], flags: Sequence[str]) -> None:
        """Start overlayd; pods may be made then."""
        self.node = node
        self.space = node.host
        self.directory = directory
        own = ["--public-ip", node.address, "--public-ipv6", node.address6, *flags]
        self.daemon = PluggedDaemon(node.host, directory, peers, own)
        self.pods: list[Pod] = []

    @property
    def records(self) -> Path:
        """Where host-local keeps its records."""
        return self.directory / "networks"

    def write_conf(self, *flags: str, name: str = "net.d") -> Runtime:
        """Have `overlayd cni-conf` write a network config; return the plugins that it lists."""
        path = self.directory / name / "10-overlayd.conflist"
        paths = ("--subnet-file", self.daemon.subnet_file, "--output", path, "--data-dir", self.records)
        command = self.space.command(*OVERLAYD, "cni-conf", *map(str, paths), *flags)
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return Runtime(self.space, path)

    def make_pod(self, name: str, *ports: Port) -> Pod:
        """Make a namespace for a pod, which is taken down with the host."""
        pod = Pod(f"{self.space.name}-{name}", ports)
        self.pods.append(pod)
        return pod

    def look(self) -> str:
        """Return links, addresses, routes, rules and records of the host, without counters and ages."""
        shown = "".join(self.space.run(*command).stdout for command in BASELINE)
        shown = re.sub(r"^#.*\n|\[\d+:\d+\]| expires \d+sec", "", shown, flags=re.MULTILINE)
        held = sorted(path.name for path in self.records.glob("*/*") if "last_reserved" not in path.name)
        return f"{shown}\n{held}\n"


class Plugged:
    """The drawing above."""

    def __init__(self, directory: Path, name: str, flags: Sequence[str] = ()) -> None:
        """Build it and start overlayd on both hosts, with these flags too; `name` tells labs apart."""
        with ExitStack() as stack:
            self.lab = Lab(f"e2e{name}{os.getpid() % 100000}", names=("a", "b"), has_pods=False)
            stack.callback(self.lab.close)
            nodes = list(self.lab.nodes.values())
            self.hosts: dict[str, Host] = {}
            for node in nodes:
                hasten(node.host)
                own = ["--datapath", DATAPATHS[node.name], *flags]
                host = self.hosts[node.name] = Host(node, directory / node.name, peers_file(nodes), own)
                stack.callback(host.daemon.close)
                host.daemon.start()
            self._stack = stack.pop_all()

    @property
    def outside(self) -> Namespace:
        """A host that is not in the overlay: the router."""
        return self.lab.router

    def close(self) -> None:
        """Check conservation, and take it all down."""
        with self._stack:
            for host in self.hosts.values():
                for pod in host.pods:
                    pod.space.close()
            self.hosts["a"].daemon.settled()


# --- what is sent -------------------------------------------------------------------------------------------


def family_of(address: str) -> socket.AddressFamily:
    """Return the family of an address, as sockets have it."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


@dataclass(frozen=True, slots=True)
class Service:
    """Something that listens in a namespace, on one port of both families."""

    space: Namespace
    port: int
    timeout_s: float = TIMEOUT_S  # of whoever connects

    def tcp(self, sender: Namespace, address: str, port: int | None = None, size: int = 1) -> str:
        """Connect from elsewhere to an address, and send bytes; return the source that the service sees.

        OSError if nobody answers.
        """
        family = family_of(address)
        with (
            self.space.socket(family, socket.SOCK_STREAM) as listener,
            sender.socket(family, socket.SOCK_STREAM) as near,
        ):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("", self.port))
            listener.listen(8)
            listener.settimeout(TIMEOUT_S)
            near.settimeout(self.timeout_s)
            near.connect((address, port or self.port))
            far, source = listener.accept()
            with far:
                _exchange(near, far, size)
            return str(source[0])

    def udp(self, sender: Namespace, address: str, port: int | None = None, size: int = 1) -> str:
        """Send a datagram, and get one back; return the source that the service sees."""
        family = family_of(address)
        with (
            self.space.socket(family, socket.SOCK_DGRAM) as receiver,
            sender.socket(family, socket.SOCK_DGRAM) as near,
        ):
            receiver.bind(("", self.port))
            receiver.settimeout(TIMEOUT_S)
            near.settimeout(TIMEOUT_S)
            near.connect((address, port or self.port))
            sent = os.urandom(size)
            near.send(sent)
            data, source = receiver.recvfrom(1 << 16)
            receiver.sendto(data, source)
            assert near.recv(1 << 16) == sent
            return str(source[0])

    def hear(self, sender: Namespace, address: str) -> str:
        """Send a datagram that nobody answers; return the source that the service sees."""
        family = family_of(address)
        with (
            self.space.socket(family, socket.SOCK_DGRAM) as receiver,
            sender.socket(family, socket.SOCK_DGRAM) as near,
        ):
            receiver.bind(("", self.port))
            receiver.settimeout(TIMEOUT_S)
            near.sendto(b"x", (address, self.port))
            return str(receiver.recvfrom(16)[1][0])


def _exchange(near: socket.socket, far: socket.socket, size: int) -> None:
    """Send random bytes one way; the digest of what came goes the other way."""
    far.settimeout(TIMEOUT_S)
    sent = os.urandom(size)

    def receive() -> None:
        digest, left = hashlib.sha256(), size
        while left:
            data = far.recv(min(left, 1 << 16))
            assert data, "the connection ended early"
            digest.update(data)
            left -= len(data)
        far.sendall(digest.digest())

    thread = threading.Thread(target=receive)
    thread.start()
    try:
        near.sendall(sent)
        assert near.recv(32, socket.MSG_WAITALL) == hashlib.sha256(sent).digest()
    finally:
        thread.join()
