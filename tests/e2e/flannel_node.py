# SPDX-License-Identifier: Apache-2.0
"""A node of a cluster that runs flannel, as far as other nodes can tell; nothing of it is ours.

It writes its lease with etcdctl and follows the others with `etcdctl watch`, and programs the kernel with the
commands that stand for flannel's netlink calls: per peer a permanent neighbour, a forwarding entry and an
onlink route, or a plain route where the peer is on its own link and the network has DirectRouting.
"""

from __future__ import annotations

import json
import subprocess
import threading
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

from bench.lab import Namespace

PREFIX = "/coreos.com/network"
NONE = "0.0.0.0"


@dataclass(frozen=True, slots=True)
class Side:
    """What a node has in one family."""

    address: str  # on the underlay, with the length of that link's network
    subnet: str
    mac: str

    @property
    def version(self) -> int:
        """4 or 6."""
        return ip_network(self.subnet).version

    @property
    def ip(self) -> str:
        """The underlay address alone."""
        return self.address.partition("/")[0]

    @property
    def device(self) -> str:
        """flannel's name of the device."""
        return "flannel.1" if self.version == 4 else "flannel-v6.1"

    @property
    def mtu(self) -> int:
        """Of the device on an underlay of 1500 bytes."""
        return 1450 if self.version == 4 else 1430


@dataclass(frozen=True, slots=True)
class Remote:
    """A peer's part of one family, as the store says it."""

    subnet: str
    ip: str
    mac: str

    @property
    def overlay(self) -> str:
        """The address of its VTEP in the overlay."""
        return self.subnet.partition("/")[0]


def key_of(*subnets: str) -> str:
    """Return flannel's key of a lease."""
    return f"{PREFIX}/subnets/" + "&".join(subnet.replace("/", "-") for subnet in subnets)


class FlannelNode:
    """flannel's part in one namespace; its underlay addresses are those of `link`, which is there already."""

    def __init__(self, namespace: Namespace, endpoint: str, *sides: Side, link: str = "under0") -> None:
        """Say who it is, in one family or two, IPv4 first."""
        self.namespace = namespace
        self.sides = sides
        self.has_direct_routing = False
        self._link = link
        self._endpoint = endpoint
        self._programmed: dict[str, Remote] = {}  # by subnet
        self._watch: subprocess.Popen[str] | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    # --- the store

    def etcdctl(self, *args: str) -> str:
        """Run etcdctl in its namespace; return what it prints."""
        found = subprocess.run(self._etcdctl(*args), check=True, capture_output=True, text=True, timeout=20)
        return found.stdout

    def _etcdctl(self, *args: str) -> list[str]:
        command = ("env", "ETCDCTL_API=3", "etcdctl", "--endpoints", self._endpoint, *args)
        return self.namespace.command(*command)

    @property
    def key(self) -> str:
        """The key of its lease."""
        return key_of(*(side.subnet for side in self.sides))

    def value(self) -> str:
        """Its lease, as flannel writes it."""
        sides = {side.version: side for side in self.sides}
        data = {version: {"VNI": 1, "VtepMAC": side.mac} for version, side in sides.items()}
        lease = {
            "PublicIP": sides[4].ip if 4 in sides else NONE,
            "PublicIPv6": sides[6].ip if 6 in sides else None,
            "BackendType": "vxlan",
            **({"BackendData": data[4]} if 4 in sides else {}),
            **({"BackendV6Data": data[6]} if 6 in sides else {}),
        }
        return json.dumps(lease, separators=(",", ":"))

    def put(self) -> None:
        """Write its lease, for a day."""
        granted = self.etcdctl("lease", "grant", "86400", "-w", "json")
        self.etcdctl("put", "--lease", f"{json.loads(granted)['ID']:x}", self.key, self.value())

    def leave(self) -> None:
        """Take its lease back."""
        self.etcdctl("del", self.key)

    def _remotes(self) -> dict[str, Remote]:
        lines = self.etcdctl("get", "--prefix", f"{PREFIX}/subnets").splitlines()
        remotes = {}
        for key, value in zip(lines[::2], lines[1::2], strict=True):
            if key == self.key:
                continue
            lease: dict[str, Any] = json.loads(value)
            for subnet in key.rpartition("/")[2].replace("-", "/").split("&"):
                is6 = ":" in subnet
                data = lease.get("BackendV6Data" if is6 else "BackendData")
                ip = lease["PublicIPv6" if is6 else "PublicIP"]
                if data and ip and lease["BackendType"] == "vxlan":
                    remotes[subnet] = Remote(subnet, ip, data["VtepMAC"])
        return remotes

    # --- the kernel

    def make_devices(self) -> None:
        """Make flannel.1, and flannel-v6.1 where there is IPv6, as flannel does."""
        for side in self.sides:
            first = ip_network(side.subnet).network_address
            self.namespace.ip(
                f"link add {side.device} address {side.mac} mtu {side.mtu} type vxlan id 1 dev {self._link} "
                f"local {side.ip} dstport 8472 nolearning\n"
                f"addr add {first}/{first.max_prefixlen} dev {side.device} nodad\n"
                f"link set {side.device} up\n"
            )

    def sync(self) -> None:
        """Make the kernel's entries those of the leases in the store."""
        with self._lock:
            wanted = self._remotes()
            for subnet, remote in list(self._programmed.items()):
                if wanted.get(subnet) != remote:
                    self._remove(self._programmed.pop(subnet))
            for subnet, remote in wanted.items():
                if subnet not in self._programmed:
                    self._add(remote)
                    self._programmed[subnet] = remote

    def _side_of(self, remote: Remote) -> Side:
        version = ip_network(remote.subnet).version
        return next(side for side in self.sides if side.version == version)

    def _is_direct(self, remote: Remote) -> bool:
        side = self._side_of(remote)
        return self.has_direct_routing and ip_address(remote.ip) in ip_interface(side.address).network

    def _fdb(self, verb: str, remote: Remote, device: str, *more: str) -> None:
        command = ("fdb", verb, remote.mac, "dev", device, "dst", remote.ip, "self", *more)
        self.namespace.run("bridge", *command)

    def _add(self, remote: Remote) -> None:
        if self._is_direct(remote):
            self.namespace.ip(f"route replace {remote.subnet} via {remote.ip} dev {self._link}\n")
            return
        device = self._side_of(remote).device
        self.namespace.ip(f"neigh replace {remote.overlay} lladdr {remote.mac} dev {device} nud permanent\n")
        self._fdb("replace", remote, device, "permanent")
        self.namespace.ip(f"route replace {remote.subnet} via {remote.overlay} dev {device} onlink\n")

    def _remove(self, remote: Remote) -> None:
        if self._is_direct(remote):
            self.namespace.ip(f"route del {remote.subnet} via {remote.ip} dev {self._link}\n")
            return
        device = self._side_of(remote).device
        self.namespace.ip(
            f"route del {remote.subnet} via {remote.overlay} dev {device} onlink\n"
            f"neigh del {remote.overlay} dev {device}\n"
        )
        self._fdb("del", remote, device)

    # --- following

    def start(self) -> None:
        """Write the lease, and follow those of the others from now on."""
        self.put()
        command = self._etcdctl("watch", "--prefix", f"{PREFIX}/subnets")
        self._watch = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.sync()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        assert self._watch is not None
        assert self._watch.stdout is not None
        for line in self._watch.stdout:
            if line.strip() in ("PUT", "DELETE"):
                self.sync()

    def stop(self) -> None:
        """End it as flannel ends: lease, device and routes stay."""
        if self._watch is not None:
            self._watch.kill()
            self._watch.wait()
        if self._thread is not None:
            self._thread.join()
        if self._watch is not None and self._watch.stdout is not None:
            self._watch.stdout.close()
        self._watch = self._thread = None
