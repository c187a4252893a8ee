# SPDX-License-Identifier: Apache-2.0
"""Three nodes on one store, two of them on one link and one behind a router, dual-stack.

    pods      a           e                    b
              │           │                    │
    hosts  192.0.2.1   192.0.2.5             .130
              └─────┬─────┘                    │
                   br1 192.0.2.126/25 ──── router ──── br2 192.0.2.254/25
                       2001:db8:1::fe                      2001:db8:2::fe

All of them run overlayd; addresses and pods are those of cluster.py.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bench.lab import Namespace, remove_lab, wait_for
from dataplane.store.database import Database
from tests.e2e.cluster import Host, set_up_router
from tests.e2e.leased import LeasedDaemon
from tests.e2e.rig import Daemon
from tests.e2e.tap import SO_RCVBUFFORCE, Tap

SEATS = ("a", "e", "b")
PORT = 8472
PACE_S = 0.0005
BUFFER_BYTES = 8 << 20
TURN_S, PATIENCE_S = 0.05, 3.0


class LinkedDaemon(LeasedDaemon):
    """An `overlayd run` on the store of the lab, with a forwarder or without."""

    def write_peers(self, peers: dict[str, Any] | str) -> None:
        """Do nothing: the store is the lab's."""

    @property
    def store_path(self) -> Path:
        """The file of the store."""
        return self.directory.parent / "store.db"

    def _open_counters(self) -> Any:
        is_kernels = self.status()["datapath"] != "userspace"
        return None if is_kernels else Daemon._open_counters(self)

    def restart(self, *flags: str) -> None:
        """End control and start it anew, with these flags."""
        self.stop()
        self.flags = list(flags)
        self.start()

    def reached(self) -> dict[str, str | None]:
        """Return how each peer is reached, by its public address."""
        return {peer["public_ip"]: peer["reached"] for peer in self.status()["peers"]}

    def env(self) -> dict[str, str]:
        """Return what stands in subnet.env."""
        lines = self.subnet_file.read_text("ascii").splitlines()
        return dict(line.split("=", 1) for line in lines)


class Linked:
    """The drawing above."""

    def __init__(self, directory: Path, network: dict[str, Any], flags: Mapping[str, Sequence[str]]) -> None:
        """Build it and start overlayd with these flags on the nodes named there."""
        prefix = f"lnk{os.getpid() % 100000}"
        remove_lab(prefix)
        database = Database(directory / "store.db")
        # What is above is for nodes of make-believe.
        database.put("config", json.dumps({"SubnetMax": "10.244.250.0", **network}), None, 0)
        database.close()
        self.hosts: dict[str, Host] = {}
        self.daemons: dict[str, LinkedDaemon] = {}
        with ExitStack() as stack:
            self.router = Namespace(f"{prefix}-router")
            stack.callback(self.router.close)
            set_up_router(self.router)
            for name in flags:
                host = self.hosts[name] = Host(prefix, name, self.router)
                stack.callback(host.host.close)
                stack.callback(host.pod.close)
                daemon = self.daemons[name] = LinkedDaemon(host.host, directory / name, {}, flags[name])
                stack.callback(daemon.close)
                daemon.start()
                env = daemon.env()
                net = env["FLANNEL_SUBNET"].partition("/")[0].rpartition(".")[0]
                net6 = env["FLANNEL_IPV6_SUBNET"].partition("/")[0].removesuffix("1")
                host.join_pod(f"{net}.0/24", f"{net6}/64", int(env["FLANNEL_MTU"]))
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Take it all down."""
        self._stack.close()

    def can_ping(self, sender: str, receiver: str, family: int, size: int = 56) -> bool:
        """Tell whether one packet and its answer cross between two pods, in one piece."""
        address = self.hosts[receiver].pod_of(family)
        command = ["ping", "-q", "-c", "1", "-W", "1", "-s", str(size), "-M", "do", address]
        return self.hosts[sender].pod.run(*command, check=False).returncode == 0

    def settle(self, *pairs: tuple[str, str]) -> None:
        """Wait until these pods reach each other in both families."""
        for sender, receiver in pairs:
            for family in (4, 6):
                wait_for(
                    lambda s=sender, r=receiver, f=family: self.can_ping(s, r, f),  # type: ignore[misc]
                    f"pod {sender} reaches pod {receiver} by IPv{family}",
                    20.0,
                )

    def routes(self, name: str, *args: str) -> list[str]:
        """Return the plain routes of a node, as `ip route` shows them."""
        return [
            line.strip()
            for family in ("-4", "-6")
            for line in self.hosts[name].host.run("ip", family, "route", *args).stdout.splitlines()
        ]


class Wire:
    """Says how what a node sends to another pod leaves it."""

    def __init__(self, sender: Host, receiver: Host) -> None:
        """Look from now on."""
        self._tap = Tap(sender.host, "under0", outgoing=True)
        self._pods = {_packed(receiver.pod_ip), _packed(receiver.pod_ip6)}
        self._nodes = {_packed(receiver.ip), _packed(receiver.ip6)}

    def take(self) -> dict[str, int]:
        """Return how many packets left since the last call, by kind: plain, or vxlan."""
        counts = {"plain": 0, "vxlan": 0}
        for frame in self._tap.take():
            is4 = frame[12:14] == b"\x08\x00"
            target = frame[30:34] if is4 else frame[38:54]
            is_vxlan = frame[36:38] if is4 else frame[56:58]
            counts["plain"] += target in self._pods
            counts["vxlan"] += target in self._nodes and is_vxlan == PORT.to_bytes(2, "big")
        return counts

    def close(self) -> None:
        """Stop looking."""
        self._tap.close()


def _packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


class Numbers:
    """Numbered datagrams from one pod to another, two thousand a second: which of them did not come?"""

    def __init__(self, sender: Host, receiver: Host, family: int) -> None:
        """Start sending."""
        kind = socket.AF_INET6 if family == 6 else socket.AF_INET
        self._there = receiver.pod.socket(kind, socket.SOCK_DGRAM)
        self._there.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
        self._there.bind((receiver.pod_of(family), 0))
        self._there.settimeout(TURN_S)
        self._here = sender.pod.socket(kind, socket.SOCK_DGRAM)
        self._here.connect(self._there.getsockname())
        self._sent = 0
        self._came: set[int] = set()
        self._trouble = ""
        self._is_ending = False
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._send, self._receive)]
        for thread in self._threads:
            thread.start()

    def _send(self) -> None:
        try:
            while not self._is_ending:
                self._here.send(self._sent.to_bytes(4, "big"))
                self._sent += 1
                time.sleep(PACE_S)
        except OSError as err:
            self._trouble = str(err)

    def _receive(self) -> None:
        last_s = time.monotonic()
        while not self._is_ending or len(self._came) < self._sent:
            try:
                self._came.add(int.from_bytes(self._there.recv(16), "big"))
                last_s = time.monotonic()
            except TimeoutError:
                if self._is_ending and time.monotonic() > last_s + PATIENCE_S:
                    return  # the rest is lost

    def count(self) -> int:
        """Return how many have come so far."""
        return len(self._came)

    def finish(self) -> list[int]:
        """Stop; return the numbers of those that did not come."""
        self._is_ending = True
        for thread in self._threads:
            thread.join(3 * PATIENCE_S)
        self._here.close()
        self._there.close()
        assert not self._trouble, self._trouble
        return sorted(set(range(self._sent)) - self._came)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._is_ending = True
        self._here.close()
        self._there.close()
