# SPDX-License-Identifier: Apache-2.0
"""Two hosts on one store, one of each datapath, and numbered datagrams between their pods that never end.

    pod a ── cni0 ── host a: userspace       host b: kernel ── cni0 ── pod b
                     under0 ── ra  router  rb ── under0

Pods and underlay have both families, so four flows run: each way, IPv4 and IPv6. How long none of a flow
came is what a break of the host has cost. Drawn in full at the head of bench/lab.py.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_interface
from pathlib import Path
from typing import Any, Self

from bench.lab import Lab, Namespace, Node, wait_for
from dataplane.errors import RuntimeFailure
from dataplane.native import Counters
from dataplane.store.database import Database
from tests.e2e.leased import LeasedDaemon
from tests.e2e.rig import hasten

NETWORK: dict[str, Any] = {
    "Network": "10.244.0.0/16",
    "SubnetMax": "10.244.250.0",  # what is above is for nodes of make-believe
    "EnableIPv6": True,
    "IPv6Network": "fd00:244::/48",
    "Backend": {"Type": "vxlan"},
}
DATAPATHS = {"a": "userspace", "b": "kernel"}
DEVICES = {"userspace": ("overlay0",), "kernel": ("overlay0.1", "overlay0-v6.1")}
TICK_S = 0.005
PORT = 7777


@dataclass(slots=True)
class Flow:
    """Datagrams from one pod to another."""

    name: str
    out: socket.socket
    into: socket.socket
    came: list[tuple[int, float]] = field(default_factory=list)  # number, when


class Probe:
    """Sends a datagram on each flow every TICK_S, and notes which came, and when."""

    def __init__(self, ways: Sequence[tuple[Namespace, Namespace, str]]) -> None:
        """Open the sockets: source, target, address of the target."""
        self.flows: list[Flow] = []
        for source, target, address in ways:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            into = target.socket(family, socket.SOCK_DGRAM)
            into.bind((address, PORT))
            out = source.socket(family, socket.SOCK_DGRAM)
            out.connect((address, PORT))
            for sock in (into, out):
                sock.setblocking(False)
            self.flows.append(Flow(f"{source.name} to {address}", out, into))
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._number = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._is_over.set()
        self._thread.join()
        for flow in self.flows:
            flow.out.close()
            flow.into.close()

    def _run(self) -> None:
        for number in itertools.count():
            if self._is_over.is_set():
                return
            for flow in self.flows:
                # What the host says of a way that is not there is no news here.
                with contextlib.suppress(OSError):
                    flow.out.send(number.to_bytes(8, "big"))
            self._number = number
            end_s = time.monotonic() + TICK_S
            while (left_s := end_s - time.monotonic()) > 0:
                for sock in select.select([flow.into for flow in self.flows], [], [], left_s)[0]:
                    self._receive(next(flow for flow in self.flows if flow.into is sock))

    def _receive(self, flow: Flow) -> None:
        with contextlib.suppress(OSError):
            while True:
                number = int.from_bytes(flow.into.recv(64), "big")
                flow.came.append((number, time.monotonic()))

    def wait_flowing(self, what: str, deadline_s: float) -> None:
        """Wait until something that is sent from now on has come on every flow."""
        number = self._number + 1

        def stalled() -> list[str]:
            return [flow.name for flow in self.flows if not flow.came or flow.came[-1][0] <= number]

        try:
            wait_for(lambda: not stalled(), "all flows", deadline_s)
        except AssertionError:
            raise AssertionError(f"not within {deadline_s:g} s after {what}: {stalled()}") from None

    def silence_s(self, since_s: float) -> float:
        """Return how long none of some flow came at most, since a time; none may come twice.

        Late they may come: while a neighbour is looked for, the kernel lets some wait that others pass.
        """
        longest_s = 0.0
        for flow in self.flows:
            numbers = [number for number, _ in flow.came]
            assert len(numbers) == len(set(numbers)), f"{flow.name}: doubled"
            times = [since_s, *(at for _, at in flow.came if at > since_s), time.monotonic()]
            longest_s = max(longest_s, *(after - before for before, after in itertools.pairwise(times)))
        return longest_s


class Member(LeasedDaemon):
    """An overlayd on the store that both share."""

    def write_peers(self, peers: dict[str, Any] | str) -> None:
        """Leave the store to its owner."""

    @property
    def store_path(self) -> Path:
        """The file of the store."""
        return self.directory.parent / "store.db"

    def _open_counters(self) -> tuple[Counters, int] | None:  # type: ignore[override]
        return None if "kernel" in self.flags else super()._open_counters()

    def env(self) -> dict[str, str]:
        """Return the fields of subnet.env."""
        lines = self.subnet_file.read_text(encoding="ascii").splitlines()
        return dict(line.split("=", 1) for line in lines)

    def lease(self) -> dict[str, Any]:
        """Return our lease as it stands in the store."""
        key = self.status()["lease"]["key"]
        found = self.find(f"subnets/{key}")
        assert found is not None
        value: dict[str, Any] = json.loads(str(found.value))
        return value


class Meddled:
    """The drawing above."""

    def __init__(self, directory: Path, flags: dict[str, Sequence[str]] | None = None) -> None:
        """Build it."""
        self.members: dict[str, Member] = {}
        self.lab = Lab(f"e2emed{os.getpid() % 100000}", names=("a", "b"), has_pods=False)
        self.nodes = self.lab.nodes
        try:
            database = Database(directory / "store.db")
            database.put("config", json.dumps(NETWORK), None, 0)
            database.close()
            for name, node in self.nodes.items():
                hasten(node.host)
                own = ("--datapath", DATAPATHS[name], *(flags or {}).get(name, ()))
                member = self.members[name] = Member(node.host, directory / name, {}, own)
                member.start()
                self._join_pod(node, member.env())
            for member in self.members.values():
                wait_for(partial(has_peer, member), "the peer", 10.0)
        except BaseException:
            self.close()
            raise

    def _join_pod(self, node: Node, env: dict[str, str]) -> None:
        mtu = env["FLANNEL_MTU"]
        node.host.ip(
            f"link add cni0 mtu {mtu} type bridge\nlink set cni0 up\n"
            f"link add pod0 mtu {mtu} type veth peer name eth0 netns {node.pod.name}\n"
            "link set pod0 master cni0 up\n"
        )
        node.pod.ip(f"link set lo up\nlink set eth0 mtu {mtu} up\n")
        for name, dad in (("FLANNEL_SUBNET", ""), ("FLANNEL_IPV6_SUBNET", " nodad")):
            gateway = ip_interface(env[name])
            node.host.ip(f"addr add {gateway} dev cni0{dad}\n")
            node.pod.ip(
                f"addr add {gateway.ip + 1}/{gateway.network.prefixlen} dev eth0{dad}\n"
                f"route add default via {gateway.ip}\n"
            )

    def pod_ip(self, name: str, field_name: str) -> str:
        """Return an address of a pod, by the field of subnet.env that its gateway stands in."""
        return str(ip_interface(self.members[name].env()[field_name]).ip + 1)

    def probe(self) -> Probe:
        """Return the four flows."""
        return Probe(
            [
                (self.nodes[source].pod, self.nodes[target].pod, self.pod_ip(target, name))
                for source, target in (("a", "b"), ("b", "a"))
                for name in ("FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET")
            ]
        )

    def show(self, name: str, *args: str) -> list[dict[str, Any]]:
        """Return what `ip -j ARGS` says on a host."""
        shown: list[dict[str, Any]] = json.loads(self.nodes[name].host.run("ip", "-j", *args).stdout or "[]")
        return shown

    def devices(self, name: str) -> set[str]:
        """Return the names of the devices of a host."""
        return {link["ifname"] for link in self.show(name, "link")}

    def pids(self) -> list[int]:
        """Return the processes of overlayd on both hosts."""
        controls = [member.process.pid if member.process else 0 for member in self.members.values()]
        return [*controls, self.members["a"].forwarder_pid()]

    def mtu(self, name: str, device: str) -> int | None:
        """Return the MTU of a device of a host, if it is there."""
        found = (link for link in self.show(name, "link") if link["ifname"] == device)
        return next((int(link["mtu"]) for link in found), None)

    def look(self, name: str) -> list[list[str]]:
        """Return all of ours on a host that has no index in it."""
        commands = [
            ("ip", *family, "route", "show", "proto", number)
            for family in ((), ("-6",))
            for number in ("111", "112")
        ]
        for device in DEVICES[DATAPATHS[name]]:
            commands += [
                ("ip", "neigh", "show", "dev", device, "nud", "permanent"),
                ("ip", "-6", "neigh", "show", "dev", device, "nud", "permanent"),
                ("bridge", "fdb", "show", "dev", device),
                ("ip", "-brief", "address", "show", "dev", device),
                ("cat", f"/sys/class/net/{device}/mtu", f"/sys/class/net/{device}/address"),
                ("cat", f"/proc/sys/net/ipv4/conf/{device}/rp_filter"),
            ]
        runs = [self.nodes[name].host.run(*command, check=False) for command in commands]
        return [sorted(line.strip() for line in run.stdout.splitlines()) for run in runs]

    def wait_as(self, name: str, before: list[list[str]], what: str, deadline_s: float) -> None:
        """Wait until a host looks as it did before `what`."""

        def describe() -> str:
            now = self.look(name)
            pairs = [pair for pair in zip(before, now, strict=True) if pair[0] != pair[1]]
            return f"as before {what}: {pairs}\n{self.log(name)}"

        wait_for(lambda: self.look(name) == before, describe, deadline_s)

    def restart(self, name: str, *flags: str, datapath: str = "") -> None:
        """Start overlayd of a host anew, with these flags."""
        member = self.members[name]
        member.stop()
        member.flags = ["--datapath", datapath or DATAPATHS[name], *flags]
        member.start()

    def restart_all(self, *flags: str) -> None:
        """Start it anew on both, at the same time."""
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda name: self.restart(name, *flags), self.members))

    def log(self, name: str) -> str:
        """Return what a host's overlayd has said since its last start."""
        return self.members[name].log().rpartition("stopping: ")[2]

    def changes(self, name: str) -> Counter[str]:
        """Return what a host's overlayd has put right since its last start, and how often."""
        said = (line.partition("host changed change=")[2].strip('"') for line in self.log(name).splitlines())
        return Counter(change for change in said if change)

    def calm(self) -> None:
        """Let overlayd begin anew where it would soon take us for somebody who works against it."""
        for name in self.members:
            if any(count > 1 for count in self.changes(name).values()):
                self.restart(name)

    def address(self, name: str, family: int) -> str:
        """Return the address that a host publishes."""
        return str(self.members[name].lease()["PublicIP" if family == 4 else "PublicIPv6"])

    def close(self) -> None:
        """Take it down."""
        try:
            for member in self.members.values():
                member.close()
        finally:
            self.lab.close()


def has_peer(member: Member) -> bool:
    """Tell whether a node knows the other."""
    try:
        return len(member.status()["peers"]) == 1
    except RuntimeFailure:
        return False
