# SPDX-License-Identifier: Apache-2.0
"""The systems under test: how each one joins two hosts, each pair of hosts in a lab of its own.

All labs of a condition stand at the same time and are alike, down to the addresses; only the one that is
measured has traffic. So nothing comes up or goes down between two samples, and no system is in another's way.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from bench.lab import NETNS, NETWORK, ROOT, Kernel, Lab, Namespace, Node, remove_lab, wait_for
from bench.matrix import Condition
from dataplane.errors import RuntimeFailure

MTU = 1450  # of every pod, whatever carries its packets
READY_S = 20.0
AGAINST_S = 60.0
MODERATION = {"gro_flush_timeout": "50000", "napi_defer_hard_irqs": "2"}

# What flannel loads for --ip-masq, and a forward chain that asks for the state, as hosts have it.
MASQUERADE = """
table ip overlay-masq {{
    chain after {{
        type nat hook postrouting priority srcnat;
        meta mark 0x4000 return
        ip saddr {subnet} ip daddr {network} return
        ip saddr {network} ip daddr {subnet} return
        ip saddr != {subnet} ip daddr {network} return
        ip saddr {network} ip daddr != 224.0.0.0/4 masquerade fully-random
        ip saddr != {network} ip daddr {network} masquerade fully-random
    }}
    chain between {{
        type filter hook forward priority filter;
        ct state invalid drop
        ct state established,related accept
        ip saddr {network} accept
        ip daddr {network} accept
    }}
}}
"""


class System:
    """Two hosts, a router, a pod on each host, and something that carries the pods' packets."""

    name = "none"

    def __init__(self, prefix: str, condition: Condition) -> None:
        """Name the lab; nothing is built yet."""
        self.prefix = prefix
        self.condition = condition
        self.lab: Lab | None = None
        self.target = ""  # what pod a sends to

    @property
    def hosts(self) -> tuple[Node, Node]:
        """The two hosts."""
        assert self.lab is not None
        a, b = self.lab.nodes.values()
        return a, b

    def up(self) -> None:
        """Build the lab and join the hosts; the pods reach each other when this returns."""
        self.lab = lab = Lab(self.prefix, ("a", "b"), MTU)
        a, b = self.hosts
        lab.set_profile(self.condition.profile)
        if self.condition.variant == "moderated":
            for namespace, device in underlay_devices(lab):
                for name, value in MODERATION.items():
                    namespace.run("sh", "-c", f"echo {value} > /sys/class/net/{device}/{name}")
        if self.condition.variant == "masquerade":
            for node in (a, b):
                rules = MASQUERADE.format(subnet=node.subnet(), network=NETWORK)
                subprocess.run(node.host.command("nft", "-f", "-"), input=rules, text=True, check=True)
        self.target = b.pod_ip()
        self.join()
        self._wait_reached()

    def _wait_reached(self) -> None:
        a, b = self.hosts

        def is_reached() -> bool:
            found = a.pod.run("ping", "-n", "-c", "1", "-W", "0.3", self.target, check=False)
            return found.returncode == 0

        try:
            wait_for(is_reached, f"pod a reaches {self.target}", 10.0)
        except AssertionError as err:
            raise RuntimeFailure(f"{self.name}: {err} {a.log()[-300:]} {b.log()[-300:]}") from None

    def join(self) -> None:
        """Join the hosts: here, the pods' addresses are routed over the underlay as they are."""
        assert self.lab is not None
        for node, peer in (self.hosts, self.hosts[::-1]):
            node.host.ip(f"route add {peer.subnet()} via {node.gateway}\n")
            self.lab.router.ip(f"route add {node.subnet()} via {node.address}\n")

    def down(self) -> None:
        """Take everything down."""
        if self.lab is not None:
            self.lab.close()
            self.lab = None

    def own_pids(self) -> list[int]:
        """Return the processes of both hosts: whatever carries packets there; the loads run in the pods."""
        found = [
            subprocess.run(["ip", "netns", "pids", node.host.name], capture_output=True, text=True).stdout
            for node in self.hosts
        ]
        return [int(word) for text in found for word in text.split()]

    def spaces(self) -> list[Namespace]:
        """Return all namespaces of the lab."""
        assert self.lab is not None
        return [self.lab.router, *(space for node in self.hosts for space in (node.host, node.pod))]

    def describe(self) -> dict[str, Any]:
        """Return what it says of itself, for the result file."""
        return {}

    def inspect(self) -> dict[str, Any]:
        """Return all devices of the lab as `ip -d -j link` and `ethtool -k` show them."""
        assert self.lab is not None
        found: dict[str, Any] = {"target": self.target, "system": self.describe(), "namespaces": {}}
        for space in self.spaces():
            links = json.loads(space.run("ip", "-d", "-j", "link").stdout)
            names = [link["ifname"] for link in links if link["ifname"] != "lo"]
            found["namespaces"][space.name.removeprefix(f"{self.prefix}-")] = {
                "links": links,
                "features": {name: _features(space, name) for name in names},
            }
        found["moderation"] = {
            f"{space.name.removeprefix(f'{self.prefix}-')} {device}": {
                name: int(space.run("cat", f"/sys/class/net/{device}/{name}").stdout) for name in MODERATION
            }
            for space, device in underlay_devices(self.lab)
        }
        return found


def _features(space: Namespace, device: str) -> dict[str, str]:
    lines = space.run("ethtool", "-k", device, check=False).stdout.splitlines()[1:]
    return {name.strip(): state.strip() for name, _, state in (line.partition(":") for line in lines)}


def underlay_devices(lab: Lab) -> list[tuple[Namespace, str]]:
    """Return the ends of all underlay links."""
    ends = [(node.host, "under0") for node in lab.nodes.values()]
    return ends + [(lab.router, f"r{name}") for name in lab.nodes]


class KernelVxlan(System):
    """A kernel VXLAN device, programmed with the entries that flannel programs."""

    name = "kernel-vxlan"

    def join(self) -> None:
        """Program both ends."""
        a, b = self.hosts
        a.program_kernel([b], Kernel())
        b.program_kernel([a], Kernel())


UNDERLAY_MTU = {"vxlan": MTU + 50, "ipip": MTU + 20, "udp": MTU + 28}


class Overlayd(System):
    """overlayd on both hosts, with the leases in a file."""

    name = "overlayd-vxlan"
    encap = "vxlan"
    flags: tuple[str, ...] = ()

    def join(self) -> None:
        """Start it and wait until both say that they are ready."""
        assert self.lab is not None
        path = self.lab.directory / "peers.json"
        leases = {node.subnet(): node.lease(self.encap) for node in self.hosts}
        # All systems have the same inner MTU: IPIP and udp, which need less, are told of a smaller underlay.
        backend = {"Type": self.encap, "MTU": UNDERLAY_MTU[self.encap]}
        network = {"Network": NETWORK, "Backend": backend}
        path.write_text(json.dumps({"network": network, "leases": leases}) + "\n", encoding="utf-8")
        started = [(node, node.start_overlayd(f"file://{path}", *self.flags)) for node in self.hosts]
        for node, process in started:
            self._wait_ready(node, process)

    def _wait_ready(self, node: Node, process: subprocess.Popen[bytes]) -> None:
        def is_ready() -> bool:
            if process.poll() is not None:
                raise RuntimeFailure(f"overlayd run ended on host {node.name}: {node.log()[-500:]}")
            return bool(read_status(node).get("ready"))

        try:
            wait_for(is_ready, f"overlayd is ready on host {node.name}", READY_S)
        except AssertionError as err:
            raise RuntimeFailure(f"{err}: {node.log()[-500:]}") from None

    def describe(self) -> dict[str, Any]:
        """Return the status of both hosts."""
        return {"flags": list(self.flags), "status": {node.name: read_status(node) for node in self.hosts}}


def read_status(node: Node) -> dict[str, Any]:
    """Return what `overlayd status --json` says on a host; empty while it is not running."""
    found = subprocess.run(node.overlayd("status", "--json"), capture_output=True, text=True, cwd=ROOT)
    status: dict[str, Any] = json.loads(found.stdout) if found.stdout else {}
    return status


class OverlaydIpip(Overlayd):
    """The same, IPIP."""

    name = "overlayd-ipip"
    encap = "ipip"


class OverlaydUdp(Overlayd):
    """The same, flannel's udp."""

    name = "overlayd-udp"
    encap = "udp"


class OverlaydPlain(Overlayd):
    """overlayd without any offload: one packet a system call, as userspace tunnels used to be."""

    name = "overlayd-plain"
    flags = ("--disable", "all")


class Against(System):
    """Somebody else's overlay, brought up by an executable; docs/bench.md says how it is called."""

    def __init__(self, prefix: str, condition: Condition, executable: Path) -> None:
        """Name it after its executable."""
        super().__init__(prefix, condition)
        self.executable = executable
        self.name = against_name(executable)
        self._is_called = False

    def _environment(self, node: Node, peer: Node) -> dict[str, str]:
        return {
            "BENCH_HOST": node.name,
            "BENCH_DEVICE": "under0",
            "BENCH_UNDERLAY": node.address,
            "BENCH_PEER_UNDERLAY": peer.address,
            "BENCH_SUBNET": node.subnet(),
            "BENCH_PEER_SUBNET": peer.subnet(),
            "BENCH_NETWORK": NETWORK,
            "BENCH_MTU": str(MTU),
            "BENCH_POD_NAMESPACE": node.pod.name,
            "BENCH_DIRECTORY": str(node.directory),
        }

    def _call(self, verb: str, node: Node, peer: Node) -> str:
        """Run the executable in a host; it writes to files, which daemons that it leaves may hold open."""
        out, log = node.directory / f"{verb}.out", node.directory / "log"
        command = node.host.command(str(self.executable), verb)
        environment = {**os.environ, **self._environment(node, peer)}
        with out.open("w") as stdout, log.open("a") as stderr:
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, cwd=ROOT
            )
            try:
                code = process.wait(AGAINST_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise RuntimeFailure(f"{self.executable} {verb} took more than {AGAINST_S:g} s") from None
        if code != 0:
            raise RuntimeFailure(
                f"{self.executable} {verb} ended with status {code} on host {node.name}: {node.log()[-300:]}"
            )
        return out.read_text(encoding="utf-8", errors="replace").strip()

    def join(self) -> None:
        """Let the executable bring up both hosts, then ask it how pod b is reached."""
        a, b = self.hosts
        self._is_called = True
        for node, peer in ((a, b), (b, a)):
            self._call("up", node, peer)
        said = self._call("address", b, a)
        try:
            self.target = str(ip_address(said))
        except ValueError:
            raise RuntimeFailure(f'{self.executable} address printed "{said[:60]}", no IP address') from None

    def down(self) -> None:
        """Let the executable clean up outside the lab, if it must; then take down the lab."""
        try:
            if self._is_called:
                self._is_called = False
                a, b = self.hosts
                for node, peer in ((a, b), (b, a)):
                    self._call("down", node, peer)
        finally:
            super().down()


def against_name(executable: Path) -> str:
    """Return the name of the system that an executable stands for."""
    return executable.stem


_KINDS = (System, KernelVxlan, Overlayd, OverlaydIpip, OverlaydUdp, OverlaydPlain)
_CLASSES = {system.name: system for system in _KINDS}


def make(name: str, prefix: str, condition: Condition, against: dict[str, Path]) -> System:
    """Return a system by its name; nothing is built yet."""
    if name in against:
        return Against(prefix, condition, against[name])
    return _CLASSES[name](prefix, condition)


# --- cleaning up ------------------------------------------------------------------------------------------

PREFIX = "ovl-bench"


def run_prefix() -> str:
    """Return the prefix of all labs of this process."""
    return f"{PREFIX}{os.getpid()}"


def remove_labs(prefix: str) -> None:
    """Take down all labs of a run."""
    names = [path.name for path in NETNS.glob(f"{prefix}-*")] if NETNS.exists() else []
    numbers = {name.removeprefix(f"{prefix}-").partition("-")[0] for name in names}
    for number in sorted(numbers):
        remove_lab(f"{prefix}-{number}")


@contextmanager
def own_labs() -> Iterator[str]:
    """Yield the prefix of this run's labs: those of a run that is gone go before, they afterwards."""
    remove_leftovers()
    try:
        yield run_prefix()
    finally:
        remove_labs(run_prefix())


def remove_leftovers() -> None:
    """Take down labs of benches that are gone; those of one that runs stay."""
    names = [path.name for path in NETNS.glob(f"{PREFIX}*")] if NETNS.exists() else []
    pids = {name.removeprefix(PREFIX).partition("-")[0] for name in names}
    for pid in sorted(pids):
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            remove_labs(f"{PREFIX}{pid}")
