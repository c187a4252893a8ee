# SPDX-License-Identifier: Apache-2.0
"""The lab: hosts and pods of a small cluster as network namespaces of this machine, with no way out of it.

        pod a 10.244.1.2          pod b 10.244.2.2          pod c 10.244.3.2
           │ eth0                    │ eth0                    │ eth0
        cni0 10.244.1.1           cni0 10.244.2.1           cni0 10.244.3.1
        host a                    host b                    host c
        under0 192.0.2.2          under0 192.0.2.6          under0 192.0.2.10
        2001:db8:1::2             2001:db8:2::2             2001:db8:3::2
           └───────── ra ─────────┐  │ rb  ┌─────── rc ────────┘
                                  router
                     .1 of each /30, ::1 of each /64; no other interface

Hosts route by default to the router, so that what leaks is seen there. Namespaces are named PREFIX-NAME; a
lab that was left behind is found, and taken down, by its prefix.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OVERLAYD = [sys.executable, "-m", "dataplane"]
NETNS = Path("/run/netns")
CLONE_NEWNET = 0x40000000
HOSTS = ("a", "b", "c")
NETWORK, NETWORK6 = "10.244.0.0/16", "fd00:244::/48"

# What turns a veth pair into something like a wire: frames of at most the MTU, merged by the receiver's NAPI.
WIRE_FEATURES = (
    *("tx-udp_tnl-segmentation", "off", "tx-udp_tnl-csum-segmentation", "off"),
    *("tx-udp-segmentation", "off", "tso", "off", "gso", "off", "gro", "on"),
)

_libc = ctypes.CDLL(None, use_errno=True)


def wait_for(
    condition: Callable[[], object], what: str | Callable[[], str], deadline_s: float = 10.0
) -> None:
    """Wait until a condition holds; AssertionError names it after the deadline.

    A text that shows a state, as a log does, is to be a callable: it is asked for at the end of the wait.
    """
    end = time.monotonic() + deadline_s
    pause_s = 0.001
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline_s:g} s: {what if isinstance(what, str) else what()}")
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 0.02)


def _setns(fd: int) -> None:
    if _libc.setns(fd, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def stands_still(pid: int) -> bool:
    """Tell whether all threads of a process have come to a stop: SIGSTOP returns before they have."""
    stats = Path(f"/proc/{pid}/task").glob("*/stat")
    try:
        states = [stat.read_text(encoding="ascii").rpartition(")")[2].split()[0] for stat in stats]
    except FileNotFoundError:  # a thread that ended meanwhile
        return False
    return set(states) == {"T"}


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Let a process of ours stand still meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_for(lambda: stands_still(pid), "the process stands still")
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


class Namespace:
    """A network namespace that is ours to make and to end."""

    def __init__(self, name: str) -> None:
        """Make it; it has nothing but a loopback device that is down."""
        self.name = name
        subprocess.run(["ip", "netns", "add", name], check=True)

    def command(self, *args: str) -> list[str]:
        """Return the command line that runs a program in here."""
        return ["ip", "netns", "exec", self.name, *args]

    def run(
        self, *args: str, check: bool = True, timeout_s: float = 30.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in here to its end."""
        return subprocess.run(
            self.command(*args), check=check, capture_output=True, text=True, timeout=timeout_s, cwd=ROOT
        )

    def spawn(self, *args: str, log: Path | None = None) -> subprocess.Popen[bytes]:
        """Start a program in here; close() ends it."""
        with log.open("ab") if log else open(os.devnull, "wb") as out:  # noqa: PTH123
            return subprocess.Popen(self.command(*args), stdout=out, stderr=out, cwd=ROOT)

    def ip(self, batch: str) -> None:
        """Run lines of `ip` in here."""
        subprocess.run(
            ["ip", "-n", self.name, "-batch", "-"], input=batch, check=True, capture_output=True, text=True
        )

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Let this thread be in here: what it opens stays so."""
        with open("/proc/thread-self/ns/net", "rb") as home, (NETNS / self.name).open("rb") as there:  # noqa: PTH123
            _setns(there.fileno())
            try:
                yield
            finally:
                _setns(home.fileno())

    def socket(self, family: int, kind: int, proto: int = 0) -> socket.socket:
        """Open a socket in here, for use by this process."""
        with self.inside():
            return socket.socket(family, kind, proto)

    def close(self) -> None:
        """End every process in here, and the namespace with all its devices."""
        remove_namespace(self.name)


def _list_pids(name: str) -> list[int]:
    found = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True)
    return [int(pid) for pid in found.stdout.split()]


def remove_namespace(name: str) -> None:
    """End every process in a namespace, and the namespace; nothing there is fine."""

    def is_empty() -> bool:
        pids = _list_pids(name)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not pids

    if not (NETNS / name).exists():
        return
    with contextlib.suppress(AssertionError):
        wait_for(is_empty, f"namespace {name} is empty", 5.0)
    subprocess.run(["ip", "netns", "del", name], capture_output=True)


def remove_lab(prefix: str) -> None:
    """Take down a lab, whoever left it behind."""
    names = [path.name for path in NETNS.glob(f"{prefix}-*")] if NETNS.exists() else []
    for name in sorted(names):
        remove_namespace(name)
    shutil.rmtree(lab_directory(prefix), ignore_errors=True)


def lab_directory(prefix: str) -> Path:
    """Return where a lab keeps its files."""
    return Path(tempfile.gettempdir()) / f"overlayd-{prefix}"


# --- nodes ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel VXLAN network beside overlayd's: its device and numbers."""

    device: str = "flannel.1"
    vni: int = 1
    port: int = 8472
    second_octet: int = 244


def skip_dad(*namespaces: Namespace) -> None:
    """Let IPv6 work at once: nobody in a lab has an address twice, and looking for that takes two seconds."""
    for namespace in namespaces:
        namespace.run("sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0")


class Node:
    """A host of the lab with one pod behind it."""

    def __init__(self, name: str, index: int, prefix: str, directory: Path) -> None:
        """Make its two namespaces; they are not joined to anything yet."""
        self.name = name
        self.index = index
        self.third = index  # octet of its subnets; take_subnet() learns another
        self.mac = f"02:00:00:00:00:{index:02x}"  # of its VTEP, as the peers file has it
        self.directory = directory / name
        self.run_dir = self.directory / "run"
        self.subnet_file = self.directory / "subnet.env"
        self.host = Namespace(f"{prefix}-{name}")
        self.pod = Namespace(f"{prefix}-pod-{name}")
        skip_dad(self.host, self.pod)
        self.directory.mkdir(parents=True)

    @property
    def address(self) -> str:
        """Its underlay address."""
        return f"192.0.2.{4 * self.index - 2}"

    @property
    def address6(self) -> str:
        """Its IPv6 underlay address."""
        return f"2001:db8:{self.index}::2"

    @property
    def gateway(self) -> str:
        """The router's address on its link."""
        return f"192.0.2.{4 * self.index - 3}"

    def subnet(self, second_octet: int = 244) -> str:
        """Its pod subnet, of overlayd's network or of another."""
        return f"10.{second_octet}.{self.third}.0/24"

    def pod_ip(self, second_octet: int = 244) -> str:
        """The address of its pod."""
        return f"10.{second_octet}.{self.third}.2"

    @property
    def pod_ip6(self) -> str:
        """The IPv6 address of its pod."""
        return f"fd00:244:0:{self.third}::2"

    def join_router(self, router: Namespace) -> None:
        """Join host and router by a veth."""
        link = f"r{self.name}"
        self.host.ip(f"link add under0 type veth peer name {link} netns {router.name}\n")
        router.ip(
            f"link set {link} up\naddr add {self.gateway}/30 dev {link}\n"
            f"addr add 2001:db8:{self.index}::1/64 dev {link} nodad\n"
        )
        self.host.ip(
            f"link set lo up\nlink set under0 up\naddr add {self.address}/30 dev under0\n"
            f"addr add {self.address6}/64 dev under0 nodad\nroute add default via {self.gateway}\n"
            f"route add default via 2001:db8:{self.index}::1\n"
        )
        self.host.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")

    def join_pod(self, mtu: int) -> None:
        """Join pod and host by a bridge, as the CNI bridge plugin does."""
        self.host.ip(
            f"link add cni0 mtu {mtu} type bridge\nlink set cni0 up\n"
            f"addr add 10.244.{self.third}.1/24 dev cni0\n"
            f"addr add fd00:244:0:{self.third}::1/64 dev cni0 nodad\n"
            f"link add pod0 mtu {mtu} type veth peer name eth0 netns {self.pod.name}\n"
            "link set pod0 master cni0 up\n"
        )
        self.pod.ip(
            f"link set lo up\nlink set eth0 mtu {mtu} up\naddr add {self.pod_ip()}/24 dev eth0\n"
            f"addr add {self.pod_ip6}/64 dev eth0 nodad\nroute add default via 10.244.{self.third}.1\n"
            f"route add default via fd00:244:0:{self.third}::1\n"
        )

    def set_pod_mtu(self, mtu: int) -> None:
        """Give the pod's link another MTU."""
        self.host.ip(f"link set pod0 mtu {mtu}\nlink set cni0 mtu {mtu}\n")
        self.pod.ip(f"link set eth0 mtu {mtu}\n")

    def add_second_network(self, second_octet: int) -> None:
        """Give the pod an address in another network too."""
        self.host.ip(f"addr add 10.{second_octet}.{self.third}.1/24 dev cni0\n")
        self.pod.ip(
            f"addr add {self.pod_ip(second_octet)}/24 dev eth0\n"
            f"route add 10.{second_octet}.0.0/16 via 10.{second_octet}.{self.third}.1\n"
        )

    def program_kernel(self, peers: Iterable[Node], kernel: Kernel) -> None:
        """Make it a kernel VXLAN endpoint, with the three entries per peer that flannel programs."""
        dev, octet = kernel.device, kernel.second_octet
        self.host.ip(
            f"link add {dev} address {self.mac} mtu 1450 type vxlan id {kernel.vni} dev under0 "
            f"local {self.address} dstport {kernel.port} nolearning\n"
            f"addr add 10.{octet}.{self.third}.0/32 dev {dev}\nlink set {dev} up\n"
        )
        for peer in peers:
            overlay = f"10.{octet}.{peer.third}.0"
            fdb = ["bridge", "-n", self.host.name, "fdb", "replace", peer.mac, "dev", dev]
            subprocess.run([*fdb, "dst", peer.address, "self", "permanent"], check=True)
            self.host.ip(
                f"neigh replace {overlay} lladdr {peer.mac} dev {dev} nud permanent\n"
                f"route replace {overlay}/24 via {overlay} dev {dev} onlink\n"
            )

    def lease(self, encap: str = "vxlan") -> dict[str, Any]:
        """Return its lease in flannel's form."""
        lease: dict[str, Any] = {"PublicIP": self.address, "BackendType": encap}
        if encap == "vxlan":
            lease["BackendData"] = {"VNI": 1, "VtepMAC": self.mac}
        return lease

    def overlayd(self, *args: str) -> list[str]:
        """Return an overlayd command line for this host."""
        return self.host.command(*OVERLAYD, *args, "--run-dir", str(self.run_dir))

    def start_overlayd(self, store: str, *flags: str) -> subprocess.Popen[bytes]:
        """Start `overlayd run` on a store."""
        paths = ("--state-dir", str(self.directory / "state"), "--subnet-file", str(self.subnet_file))
        command = self.overlayd("run", "--store", store, *paths, *flags)
        with (self.directory / "log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)

    def take_subnet(self) -> str:
        """Learn from subnet.env, as a CNI plugin does, which subnet overlayd has leased; return it."""
        fields = dict(
            line.split("=", 1) for line in self.subnet_file.read_text(encoding="ascii").splitlines()
        )
        self.third = int(fields["FLANNEL_SUBNET"].split(".")[2])
        return self.subnet()

    def log(self) -> str:
        """Return what overlayd wrote."""
        path = self.directory / "log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


class Lab:
    """Hosts with a pod each, around a router."""

    def __init__(
        self, prefix: str, names: Iterable[str] = HOSTS, mtu: int = 1450, *, has_pods: bool = True
    ) -> None:
        """Build it, in place of one of the same prefix that was left behind; pods may join later."""
        remove_lab(prefix)
        self.prefix = prefix
        self.directory = lab_directory(prefix)
        self.directory.mkdir()
        self.nodes: dict[str, Node] = {}
        try:
            self.router = Namespace(f"{prefix}-router")
            skip_dad(self.router)
            self.router.ip("link set lo up\n")
            self.router.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
            for index, name in enumerate(names, 1):
                node = self.nodes[name] = Node(name, index, prefix, self.directory)
                node.join_router(self.router)
                if has_pods:
                    node.join_pod(mtu)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Take all of it down."""
        remove_lab(self.prefix)

    def set_profile(self, profile: str) -> None:
        """Make the underlay behave like `veth` (as it comes) or like a `wire`."""
        if profile == "veth":
            return
        for node in self.nodes.values():
            node.host.run("ethtool", "-K", "under0", *WIRE_FEATURES)
            self.router.run("ethtool", "-K", f"r{node.name}", *WIRE_FEATURES)


class FrameCounter:
    """Counts frames that a device receives, by what a function says of each."""

    def __init__(self, namespace: Namespace, device: str) -> None:
        """Listen from now on."""
        self._sock = namespace.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._sock.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)  # SO_RCVBUFFORCE
        self._sock.setsockopt(263, 23, 1)  # SOL_PACKET, PACKET_IGNORE_OUTGOING
        self._sock.bind((device, 0x0003))  # ETH_P_ALL
        self._sock.setblocking(False)

    def take(self) -> list[bytes]:
        """Return the frames that have come since the last call."""
        frames = []
        with contextlib.suppress(BlockingIOError):
            while True:
                frames.append(self._sock.recv(1 << 17))
        return frames

    def close(self) -> None:
        """Stop listening."""
        self._sock.close()
