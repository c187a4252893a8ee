# SPDX-License-Identifier: Apache-2.0
"""Many nodes and one store: whatever goes wrong on the way, nobody's subnet is taken, and all find peace.

The store is a model of etcd's: revisions, compare-and-swap, expiry by its own clock, a log that is cut off
now and then. Each node follows it late; operations may fail, or be done although a failure is told.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from random import Random

import pytest

from dataplane import flannel
from dataplane.lease import DropLease, Identity, Lessee, Operation, PutLease
from dataplane.model import (
    Encap,
    Entry,
    Event,
    LeaseDeleted,
    LeasePut,
    Listed,
    MacAddress,
    NetworkConfig,
    SubnetKey,
)

NODES = 12
STEPS = 120
TTL_S, MARGIN_S = 100.0, 30.0


def network(subnets: int) -> NetworkConfig:
    """Return a network with so many subnets to take."""
    fields = {"Network": "10.1.0.0/16", "SubnetMax": f"10.1.{subnets}.0", "Backend": {"Type": "vxlan"}}
    return flannel.parse_network(fields)


class Refused(Exception):
    """What was expected is not there; carries what is."""

    def __init__(self, found: list[Entry]) -> None:
        super().__init__()
        self.found = found


@dataclass
class Row:
    """A lease in the model, by the clock of the store."""

    entry: Entry
    expires: float | None


@dataclass
class Shop:
    """The store."""

    config: NetworkConfig
    clock: float = 0.0  # its own, which may jump
    revision: int = 1
    rows: dict[str, Row] = field(default_factory=dict)
    log: list[tuple[int, str, Row | None]] = field(default_factory=list)
    cut: int = 1  # changes up to here are not kept

    def expire(self) -> None:
        """Delete what is over."""
        for name, row in list(self.rows.items()):
            if row.expires is not None and row.expires <= self.clock:
                self.delete(name)

    def delete(self, name: str) -> None:
        """Delete a lease."""
        del self.rows[name]
        self.revision += 1
        self.log.append((self.revision, name, None))

    def do(self, operation: Operation, now: float) -> Entry | None:
        """Do what a node wants, or refuse."""
        self.expire()
        name = flannel.format_key(operation.lease.key) if isinstance(operation, PutLease) else operation.name
        row = self.rows.get(name)
        if (row.entry.changed if row else 0) != operation.expected:
            raise Refused([self.seen(row, now)] if row else [])
        if isinstance(operation, DropLease):
            self.delete(name)
            return None
        self.revision += 1
        created = row.entry.created if row else self.revision
        entry = Entry(name, operation.lease, None, created, self.revision)
        expires = None if operation.ttl_s is None else self.clock + operation.ttl_s
        self.rows[name] = Row(entry, expires)
        self.log.append((self.revision, name, self.rows[name]))
        return self.seen(self.rows[name], now)

    def seen(self, row: Row, now: float) -> Entry:
        """Return a lease with its end by the clock of who reads it."""
        return replace(row.entry, expires_s=None if row.expires is None else now + row.expires - self.clock)

    def list(self, now: float) -> Listed:
        """Return all there is."""
        return Listed(self.revision, self.config, tuple(self.seen(row, now) for row in self.rows.values()))


@dataclass
class Node:
    """A daemon: its lessee, and how far it has read."""

    number: int
    lessee: Lessee
    read: int | None = None
    is_cut_off: bool = False

    @property
    def address(self) -> IPv4Address:
        """Its underlay address."""
        return IPv4Address(f"192.0.2.{self.number}")


class World:
    """Nodes, the store, time and chance."""

    def __init__(self, seed: int, subnets: int) -> None:
        """Nobody runs yet."""
        self.chance = Random(seed)
        self.shop = Shop(config=network(subnets))
        self.now = 0.0
        self.nodes: dict[int, Node] = {}
        self.loss = 0.1  # of answers
        self.memory: dict[int, SubnetKey] = {}  # each node's subnet.env

    # --- what happens

    def start(self, number: int) -> None:
        """A node starts, with what its last run left."""
        lessee = Lessee(self.chance.randrange, self.memory.get(number), TTL_S, MARGIN_S)
        mac = MacAddress(bytes((2, 0, 0, 0, 0, number)))
        self.nodes[number] = Node(number, lessee)
        lessee.identify(Identity(self.nodes[number].address, None, Encap.VXLAN, mac, None, 1))

    def read(self, node: Node, most: int) -> None:
        """A node hears of up to `most` changes; of all, after a gap."""
        if node.is_cut_off:
            return
        self.shop.expire()
        if node.read is None or node.read < self.shop.cut:
            node.lessee.apply(self.shop.list(self.now))
            node.read = self.shop.revision
        for revision, name, row in [entry for entry in self.shop.log if entry[0] > node.read][:most]:
            event: Event = LeaseDeleted(revision, name)
            if row is not None:
                event = LeasePut(revision, self.shop.seen(row, self.now))
            node.lessee.apply(event)
            node.read = revision

    def act(self, node: Node) -> bool:
        """A node asks its lessee what to do, and does it; return whether there was anything."""
        operation = node.lessee.next_operation(self.now)
        if operation is None:
            self.remember(node)
            return False
        name = flannel.format_key(operation.lease.key) if isinstance(operation, PutLease) else operation.name
        if node.is_cut_off:
            node.lessee.failed("no answer", self.now)
            return True
        self.shop.expire()
        before = self.shop.rows.get(name)
        try:
            entry = self.shop.do(operation, self.now)
        except Refused as refused:
            node.lessee.conflicted(name, refused.found, self.now)
            return True
        assert before is None or holder(before.entry) == node.address, "another node's lease was written over"
        if self.chance.random() < self.loss:
            node.lessee.failed("the answer was lost", self.now)
        elif entry is None:
            node.lessee.dropped(name)
        else:
            node.lessee.written(entry)
        self.remember(node)
        return True

    def remember(self, node: Node) -> None:
        own = node.lessee.own
        if own is not None and own.lease is not None:
            self.memory[node.number] = own.lease.key

    def step(self) -> None:
        """Something happens."""
        chance = self.chance
        number = chance.randrange(1, NODES + 1)
        node = self.nodes.get(number)
        what = chance.random()
        if node is None:
            self.start(number)
        elif what < 0.05:
            del self.nodes[number]  # it crashes
        elif what < 0.08:
            node.lessee.leave()
        elif what < 0.16:
            node.is_cut_off = not node.is_cut_off
        elif what < 0.30:
            passed = chance.choice((0.5, 5.0, 40.0, 90.0))
            self.now += passed
            self.shop.clock += passed
        elif what < 0.33:
            self.shop.clock += chance.choice((10.0, 200.0))  # set forward: leases end too early
        elif what < 0.36 and self.shop.rows:
            self.shop.delete(chance.choice(sorted(self.shop.rows)))  # an operator
        elif what < 0.40:
            self.shop.cut = self.shop.revision
        elif what < 0.70:
            self.read(node, chance.randrange(1, 4))
        else:
            self.act(node)
        self.check()

    # --- what must hold

    def check(self) -> None:
        """No two leases share a subnet."""
        subnets = [
            net for row in self.shop.rows.values() if row.entry.lease for net in row.entry.lease.key.subnets()
        ]
        assert len(subnets) == len(set(subnets))

    def settle(self) -> None:
        """Let everything that can happen happen, until nobody wants anything."""
        self.loss = 0.0
        for number, node in list(self.nodes.items()):
            node.is_cut_off = False
            if node.lessee.is_released or node.lessee._is_leaving:
                del self.nodes[number]
        for _ in range(200):
            self.now += 1.0
            self.shop.clock += 1.0
            busy = False
            for node in self.nodes.values():
                self.read(node, 1 << 30)
                while self.act(node):
                    busy = True
                    self.read(node, 1 << 30)
            self.check()
            nodes = self.nodes.values()
            if not busy and all(
                node.read == self.shop.revision and not node.lessee.trouble for node in nodes
            ):
                return
        raise AssertionError("they never come to rest")


def holder(entry: Entry) -> IPv4Address | None:
    """Return who holds a lease."""
    return None if entry.lease is None else entry.lease.public_ip


@pytest.mark.parametrize("subnets", [NODES, NODES // 2], ids=["enough subnets", "half of them"])
@pytest.mark.parametrize("seed", range(250))
def test_many_nodes(seed: int, subnets: int) -> None:
    """After any history, each node that is sure of its lease holds it in the store, and alone."""
    world = World(seed, subnets)
    for _ in range(STEPS):
        world.step()
    world.settle()
    owners = {holder(row.entry): row.entry.name for row in world.shop.rows.values()}
    sure = [node for node in world.nodes.values() if node.lessee.reason(world.now) is None]
    for node in sure:
        assert node.lessee.own is not None
        assert owners[node.address] == node.lessee.own.name
    names = [node.lessee.own.name for node in sure if node.lessee.own]
    assert len(names) == len(set(names))
    for node in world.nodes.values():
        reason = node.lessee.reason(world.now)
        assert reason is None or "is taken" in reason or "no subnet of" in reason, reason
    if subnets == NODES:
        assert not [
            node for node in world.nodes.values() if "no subnet" in str(node.lessee.reason(world.now))
        ]
