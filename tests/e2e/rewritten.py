# SPDX-License-Identifier: Apache-2.0
"""Two nodes; the one under test follows an etcd with a thousand leases, which are written again and again.

        a namespace                                 b namespace
        etcd, overlayd run (under test)             overlayd run, knows a and b alone
        10.244.1.0 on overlay0 or overlay0.1        10.244.2.0 on overlay0
        under0 192.0.2.1 ────────── veth ────────── under0 192.0.2.2

Of the thousand, some hundreds move, leave and come; the others are written anew as they are. What a names is
never more than the store has or had, and at last it is what the store has.
"""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.lab import Namespace, wait_for
from dataplane.control import ForwarderClient
from dataplane.native import read_fib
from dataplane.slots import Fd
from tests.e2e import frames
from tests.e2e.frames import DUAL, US
from tests.e2e.leased import value
from tests.e2e.leased_etcd import EtcdLeasedDaemon
from tests.e2e.numbered import Numbered
from tests.e2e.pair import Pair
from tests.e2e.rig import Daemon

LEASES = 1000
MOVING = 300  # of them
AT_ONCE = 10
PLACES = 3  # of each that moves; and now and then it is gone
NETWORK: dict[str, Any] = {
    "Network": "10.0.0.0/8",
    "Backend": {"Type": "vxlan", "VNI": frames.VNI, "Port": frames.PORT},
}
OWN = {node.subnet: value(node.ip, node.mac) for node in (US, DUAL)}
SETTLE_S = 20.0

Place = tuple[str, str]  # a node's address and MAC


def subnet(n: int) -> str:
    """Return the subnet of lease n."""
    return f"10.{1 + n // 250}.{n % 250}.0/24"


def place(n: int, turn: int) -> Place:
    """Return where lease n is."""
    return f"198.18.{turn * 4 + n // 250}.{n % 250 + 1}", f"02:51:{turn:02x}:00:{n // 250:02x}:{n % 250:02x}"


class RewrittenDaemon(EtcdLeasedDaemon):
    """The daemon under test; on the kernel datapath it has no forwarder."""

    @property
    def is_kernel(self) -> bool:
        """Whether the kernel carries its packets."""
        return "kernel" in self.flags

    def _open_counters(self) -> Any:
        return None if self.is_kernel else super()._open_counters()


@dataclass(frozen=True, slots=True)
class Told:
    """What carries the packets of `a` was told of one peer."""

    place: Place
    id: int = 0  # the kernel has none


class Rewritten(Pair):
    """The drawing above."""

    def __init__(self, directory: Path, flags: Sequence[str] = ()) -> None:
        """Build it, and start both with the first thousand in the store."""
        self.rng = random.Random(125)
        self.moving = self.rng.sample(range(LEASES), MOVING)
        self.wanted = {subnet(n): place(n, 0) for n in range(LEASES)}
        self._flags = flags
        super().__init__(directory)
        self._favour_forwarders()
        self.settle()

    def make_daemon(self, name: str, directory: Path, flags: list[str]) -> Daemon:
        """Return the daemon of a host, not started yet."""
        if name == "b":
            return Daemon(self.spaces[name], directory, {"network": NETWORK, "leases": OWN}, flags)
        daemon = RewrittenDaemon(
            self.spaces[name], directory, {"network": NETWORK, "leases": OWN}, [*flags, *self._flags]
        )
        daemon.gateway.put_all({key(net): text(where) for net, where in self.wanted.items()})
        return daemon

    @property
    def daemon(self) -> RewrittenDaemon:
        """The daemon under test."""
        daemon = self.daemons["a"]
        assert isinstance(daemon, RewrittenDaemon)
        return daemon

    @property
    def space(self) -> Namespace:
        """The host of the daemon under test."""
        return self.spaces["a"]

    def _favour_forwarders(self) -> None:
        """Let forwarders wait for nobody: what others of this machine do is not what is looked at.

        Where each session has its share of the processors (autogroups), a forwarder has a session of its own.
        """
        for pid in filter(None, (daemon.forwarder_pid() for daemon in self.daemons.values())):
            share = Path(f"/proc/{pid}/autogroup")
            if share.exists():
                share.write_text("-20", encoding="ascii")
            for task in Path(f"/proc/{pid}/task").iterdir():
                os.setpriority(os.PRIO_PROCESS, int(task.name), -20)

    def dropped(self) -> dict[str, int]:
        """Return how many packets the kernel had no room for so far, by place: where to look after a loss."""
        processors = Path("/proc/net/softnet_stat").read_text("ascii").splitlines()
        found = {"backlog": sum(int(line.split()[1], 16) for line in processors)}
        for name, daemon in self.daemons.items():
            found[f"socket {name}"] = daemon.kernel("Udp.RcvbufErrors")
            if daemon._counters is not None:
                found[f"device {name}"] = daemon.tun_dropped()
        return found

    def stream(self) -> Numbered:
        """Return numbered packets both ways."""
        return Numbered((self.spaces["a"], US.pod(0)), (self.spaces["b"], DUAL.pod(0)))

    # --- what is written ----------------------------------------------------------------------------

    def order(self) -> list[list[int]]:
        """Return the leases in a new order, as many together as are written at once."""
        order = self.rng.sample(range(LEASES), LEASES)
        return [order[start : start + AT_ONCE] for start in range(0, LEASES, AT_ONCE)]

    def write(self, some: Iterable[int]) -> None:
        """Write leases: as they are, or, those that move, somewhere; and some of these are gone."""
        puts, gone = {}, []
        for n in some:
            net = subnet(n)
            if n in self.moving:
                turn = self.rng.randrange(PLACES + 1)
                if turn == PLACES and net in self.wanted:
                    del self.wanted[net]
                    gone.append(key(net))
                    continue
                self.wanted[net] = place(n, turn % PLACES)
            puts[key(net)] = text(self.wanted[net])
        self.daemon.gateway.write(puts, gone)

    # --- what is there ------------------------------------------------------------------------------

    def told(self) -> dict[str, Told]:
        """Return what carries the packets of `a` knows of peers, whether control lives or not."""
        return told_kernel(self.space) if self.daemon.is_kernel else self._told_forwarder()

    def _told_forwarder(self) -> dict[str, Told]:
        with ForwarderClient(self.daemon.run_dir / "forwarder.sock") as client:
            _, fds = client.inspect()
        try:
            _, table = read_fib(fds[Fd.FIB])
        finally:
            for fd in fds.values():
                os.close(fd)
        return {
            str(entry.prefix): Told((str(entry.vtep), str(entry.vtep_mac)), entry.peer_id)
            for entry in table.subnets
        }

    def places(self) -> dict[str, Place]:
        """Return the same without ids, and without the other node."""
        return {net: told.place for net, told in self.told().items() if net != DUAL.subnet}

    def settle(self) -> None:
        """Wait until what carries the packets of `a`, and its firewall, know what the store has."""
        wait_for(
            lambda: self.places() == self.wanted,
            lambda: f"as the store: {self.daemon.log()[-500:]}",
            SETTLE_S,
        )
        if not self.daemon.is_kernel:
            peers = {DUAL.ip, *(ip for ip, _ in self.wanted.values())}
            wait_for(lambda: self._admitted() == peers, "the firewall knows the peers", SETTLE_S)

    def _admitted(self) -> set[str]:
        listed = self.space.run("nft", "-j", "list", "set", "inet", "overlayd-overlay0", "peers4").stdout
        return set(re.findall(r'"(\d+\.\d+\.\d+\.\d+)"', listed))

    def check_told(self, first: dict[str, Told]) -> None:
        """See that who does not move is as at `first`, id and all, and the others only where they were."""
        now = self.told()
        moving = {subnet(n): {place(n, turn) for turn in range(PLACES)} for n in self.moving}
        still = {net: told for net, told in now.items() if net not in moving}
        assert still == {net: told for net, told in first.items() if net not in moving}
        assert not [net for net in moving if net in now and now[net].place not in moving[net]]

    def strange(self, said: str) -> list[str]:
        """Return what `ip monitor` said that is not of leases that move; in userspace nothing is of them.

        What is said of the link, and of devices without neighbours (NOARP), is the kernel's own.
        """
        lines = [line for line in said.splitlines() if "dev under0" not in line and "NOARP" not in line]
        if not self.daemon.is_kernel:
            return lines
        names = {subnet(n).partition("/")[0] for n in self.moving}
        macs = {place(n, turn)[1] for n in self.moving for turn in range(PLACES)}
        return [line for line in lines if not (names | macs) & set(re.split(r"[\s/]+", line))]


def key(net: str) -> str:
    """Return the key of a subnet's lease."""
    return f"subnets/{net.replace('/', '-')}"


def text(where: Place) -> str:
    """Return the lease of a node."""
    return json.dumps(value(*where))


def told_kernel(space: Namespace) -> dict[str, Told]:
    """Return what the kernel knows of peers: what a packet to each subnet gets on its way."""
    device = "overlay0.1"
    routes = json.loads(space.run("ip", "-j", "route", "show", "dev", device, "proto", "112").stdout)
    neighbours = json.loads(space.run("ip", "-j", "neigh", "show", "dev", device, "nud", "permanent").stdout)
    macs = {entry["dst"]: entry["lladdr"] for entry in neighbours}
    forwarding = space.run("bridge", "fdb", "show", "dev", device).stdout
    nodes = dict(re.findall(r"^(\S+) dst (\S+)", forwarding, re.MULTILINE))
    found = {}
    for route in routes:
        mac = macs.get(route["gateway"], "no neighbour")
        found[route["dst"]] = Told((nodes.get(mac, "no forwarding entry"), mac))
    assert len(found) == len(routes)
    return found


def counted(rewritten: Rewritten) -> list[int]:
    """Return counters of the forwarder that only ever grow; none where the kernel carries the packets."""
    if rewritten.daemon.is_kernel:
        return []
    counters = rewritten.daemon.counters
    totals, peer = counters.totals(), counters.peer(rewritten.told()[DUAL.subnet].id)
    return [
        counters.header().generation,
        *(totals.tx.offered, totals.tx.forwarded, totals.rx.offered, totals.rx.forwarded),
        *(peer.tx_packets, peer.tx_bytes, peer.rx_packets, peer.rx_bytes),
    ]
