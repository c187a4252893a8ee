# SPDX-License-Identifier: Apache-2.0
"""Nodes and one store, whatever happens between them: nobody's lease is touched, and all find peace.

The store has etcd's rules: revisions, compare-and-swap, expiry by its own clock, a log that may be cut off.
A node reads the log late. Its operations are asked for, done and answered in three steps, between which
anything may happen; answers may be lost. Below are flannel's own tests of leases, by their names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from random import Random

import pytest

from dataplane import flannel
from dataplane.alloc import Choose, is_in_range
from dataplane.lease import TTL_S, Identity, Lessee, Operation, PutLease
from dataplane.model import (
    Encap,
    Entry,
    Event,
    Lease,
    LeaseDeleted,
    LeasePut,
    Listed,
    NetworkConfig,
    NetworkPut,
    SubnetKey,
)
from tests.leases import address, mac

NODES_MAX = 12
SHORT_S, MARGIN_S = 100.0, 30.0


class Refused(Exception):
    """What was expected is not there; carries what is."""

    def __init__(self, *found: Entry) -> None:
        super().__init__()
        self.found = found


@dataclass(frozen=True, slots=True)
class Row:
    """A lease in the store."""

    lease: Lease
    created: int
    changed: int
    expires: float | None  # by the clock of the store


class Shop:
    """The store, and the time."""

    def __init__(self, network: NetworkConfig) -> None:
        """Hold no leases yet."""
        self.network = network
        self.now = 0.0  # by the clock of every node
        self.ahead = 0.0  # what the store's clock says more
        self.revision = 1
        self.rows: dict[str, Row] = {}
        self.log: list[Callable[[], Event]] = []
        self.cut = 1  # changes up to here are not kept

    def change(self, make: Callable[[int], Callable[[], Event]]) -> None:
        """Take the next revision, and write down what it changed."""
        self.revision += 1
        self.log.append(make(self.revision))

    def set_network(self, network: NetworkConfig) -> None:
        """Change the network config."""
        self.network = network
        self.change(lambda revision: lambda: NetworkPut(revision, network))

    def expire(self) -> None:
        """Delete what is over."""
        clock = self.now + self.ahead
        for name in [name for name, row in self.rows.items() if row.expires and row.expires <= clock]:
            self.delete(name)

    def delete(self, name: str, expected: int | None = None) -> None:
        """Delete a lease; anybody's if nothing is expected."""
        if expected is not None:
            self.check(name, expected)
        del self.rows[name]
        self.change(lambda revision: lambda: LeaseDeleted(revision, name))

    def check(self, name: str, expected: int) -> None:
        """Refuse an operation that expects something else, or a new lease that shares a subnet."""
        self.expire()
        row = self.rows.get(name)
        if (0 if row is None else row.changed) != expected:
            raise Refused(*(() if row is None else (self.entry(name, row),)))
        parts = set(name.split("&"))
        shared = [self.entry(*item) for item in self.rows.items() if not parts.isdisjoint(item[0].split("&"))]
        if expected == 0 and shared:
            raise Refused(*shared)

    def put(self, lease: Lease, ttl_s: float | None, expected: int) -> Entry:
        """Write a lease."""
        name = flannel.format_key(lease.key)
        self.check(name, expected)
        expires = None if ttl_s is None else self.now + self.ahead + ttl_s
        created = self.rows[name].created if expected else self.revision + 1
        row = self.rows[name] = Row(lease, created, self.revision + 1, expires)
        self.change(lambda revision: lambda: LeasePut(revision, self.entry(name, row)))
        return self.entry(name, row)

    def entry(self, name: str, row: Row) -> Entry:
        """Return a lease with its end by the clock of who reads it."""
        expires_s = None if row.expires is None else row.expires - self.ahead
        return Entry(name, row.lease, None, row.created, row.changed, expires_s)

    def events(self, after: int | None) -> list[Event]:
        """Return what happened after a revision; a list for who has heard of nothing, or too little."""
        self.expire()
        if after is None or after < self.cut:
            return [
                Listed(self.revision, self.network, tuple(self.entry(*item) for item in self.rows.items()))
            ]
        return [make() for make in self.log[after - 1 :]]


class Node:
    """A daemon: its lessee, how far it has read, and the operation that is on its way."""

    def __init__(
        self, shop: Shop, number: int, choose: Choose, previous: SubnetKey | None = None, ttl_s: float = TTL_S
    ) -> None:
        """Know nothing yet but who it is."""
        self.shop = shop
        self.address = address(number)
        self.lessee = Lessee(choose, previous, ttl_s, MARGIN_S)
        self.read_to: int | None = None
        self.is_cut_off = False
        self.is_in_doubt = False  # an answer was lost
        self.operation: Operation | None = None
        self.tell: Callable[[], None] | None = None  # the answer
        self.identify(number)

    def identify(self, vtep: int) -> None:
        """Have this VTEP."""
        self.lessee.identify(Identity(self.address, None, Encap.VXLAN, mac(vtep), None, 1))

    def read(self, most: int | None = None) -> list[Event]:
        """Hear of so many changes, of all of them, or of a whole list; return them."""
        events = [] if self.is_cut_off else self.shop.events(self.read_to)[:most]
        for event in events:
            self.lessee.apply(event)
            self.read_to = event.revision
        return events

    def ask(self) -> bool:
        """Ask what is to be done, unless that is under way already; return whether there is anything."""
        if self.operation is None and self.tell is None:
            self.operation = self.lessee.next_operation(self.shop.now)
        return self.operation is not None

    def do(self) -> None:
        """Do what is to be done, and keep the answer."""
        operation, self.operation = self.operation, None
        if operation is None:
            return
        if self.is_cut_off:
            self.tell = lambda: self.lessee.failed("no answer", self.shop.now)
            return
        name = flannel.format_key(operation.lease.key) if isinstance(operation, PutLease) else operation.name
        self.shop.expire()
        before = self.shop.rows.get(name)
        try:
            if isinstance(operation, PutLease):
                entry = self.shop.put(operation.lease, operation.ttl_s, operation.expected)
                self.tell = partial(self.lessee.written, entry)
            else:
                self.shop.delete(name, operation.expected)
                self.tell = partial(self.lessee.dropped, name)
        except Refused as refused:
            found = refused.found
            self.tell = lambda: self.lessee.conflicted(name, found, self.shop.now)
        else:
            assert before is None or before.lease.public_ip == self.address, "another's lease was touched"

    def answer(self, *, is_lost: bool = False) -> None:
        """Tell the answer, or that there was none."""
        tell, self.tell = self.tell, None
        if tell is not None:
            self.is_in_doubt = is_lost
            if is_lost:
                self.lessee.failed("the answer was lost", self.shop.now)
            else:
                tell()

    def work(self) -> bool:
        """Hear of everything and do all there is to do; return whether there was anything."""
        is_busy = self.tell is not None
        self.answer()
        self.read()
        while self.ask():
            is_busy = True
            self.do()
            self.answer()
            self.read()
        return is_busy

    @property
    def key(self) -> SubnetKey | None:
        """The subnet of its subnet.env, if it has had one."""
        own = self.lessee.own
        return None if own is None or own.lease is None else own.lease.key


class World:
    """Some nodes, the store, and chance."""

    def __init__(self, seed: int, nodes: int, subnets: int) -> None:
        """Nobody runs yet."""
        self.chance = Random(seed)
        self.count, self.subnets = nodes, subnets
        fields = {"Network": "10.1.0.0/16", "SubnetMax": f"10.1.{subnets}.0"}
        self.shop = Shop(flannel.parse_network({**fields, "Backend": {"Type": "vxlan"}}))
        self.nodes: dict[int, Node] = {}
        self.memory: dict[int, SubnetKey] = {}  # each node's subnet.env
        self.vteps = nodes
        self.checked = 0  # revision

    # --- what may happen

    def step(self) -> None:
        """Something happens, to a node, which starts if it does not run, or to all."""
        number = self.chance.randint(1, self.count)
        node = self.nodes.get(number)
        if node is None:
            previous = self.memory.get(number)
            self.nodes[number] = Node(self.shop, number, self.chance.randrange, previous, SHORT_S)
            return
        weights = (2, 2, 20 if node.is_cut_off else 3, 9, 16, 8, 14, 14, 8, 8, 1, 6, 2)
        events: tuple[Callable[[], object], ...] = (
            lambda: self.nodes.pop(number),  # it dies, maybe with an operation on its way
            lambda: self.leave(node),
            lambda: self.partition(node),
            lambda: self.rename(node),
            lambda: node.read(self.chance.randint(1, 3)),
            node.ask,
            node.do,
            node.answer,
            lambda: node.answer(is_lost=True),
            self.wait,
            self.set_clock,
            self.delete,
            self.compact,
        )
        self.chance.choices(events, weights)[0]()
        self.check(number)

    def leave(self, node: Node) -> None:
        """A node wants to give its lease back."""
        node.lessee.leave()

    def partition(self, node: Node) -> None:
        """A node loses the store, or finds it again."""
        node.is_cut_off = not node.is_cut_off

    def rename(self, node: Node) -> None:
        """A node gets another VTEP."""
        self.vteps = self.vteps % 200 + 1
        node.identify(self.vteps)

    def wait(self) -> None:
        """Time passes."""
        self.shop.now += self.chance.choice((0.5, 5.0, 40.0))

    def set_clock(self) -> None:
        """The clock of the store is set forward: leases end too early."""
        self.shop.ahead += self.chance.choice((10.0, 200.0))

    def delete(self) -> None:
        """An operator deletes a lease."""
        if self.shop.rows:
            self.shop.delete(self.chance.choice(sorted(self.shop.rows)))

    def compact(self) -> None:
        """The store forgets how it came to be what it is."""
        self.shop.cut = self.shop.revision

    # --- what must hold

    def check(self, *numbers: int) -> None:
        """No two leases share a subnet, or a node; of these nodes, note the subnet."""
        for number in numbers:
            if number in self.nodes and (key := self.nodes[number].key) is not None:
                self.memory[number] = key
        if self.checked == self.shop.revision:  # it tells of every change
            return
        self.checked = self.shop.revision
        subnets = [net for row in self.shop.rows.values() for net in row.lease.key.subnets()]
        assert len(subnets) == len(set(subnets))
        owners = [row.lease.public_ip for row in self.shop.rows.values()]
        assert len(owners) == len(set(owners)), "a node has two leases"

    def calm_down(self) -> None:
        """Everything works again, until nobody wants anything."""
        for node in self.nodes.values():
            node.is_cut_off = False
            node.do()
            node.answer()
        self.shop.now += 61.0  # no pause is longer
        while sum(node.work() for node in self.nodes.values()):
            self.check()
        assert {node.lessee.trouble for node in self.nodes.values()} <= {None}

    def check_calm(self, node: Node) -> None:
        """Check what a node says against the store."""
        reason, rows = node.lessee.reason(self.shop.now), self.shop.rows
        if reason is None:
            own = node.lessee.own
            assert own is not None
            assert own.lease is not None
            # Not its end: the clock of the store may have been set since.
            assert own == replace(self.shop.entry(own.name, rows[own.name]), expires_s=own.expires_s)
            assert own.lease.public_ip == node.address
        elif "is taken" in reason:
            assert node.key is not None
            assert rows[flannel.format_key(node.key)].lease.public_ip != node.address
        else:
            assert "no subnet of" in reason
            assert len(rows) == self.subnets < self.count


@pytest.mark.parametrize("few", [False, True], ids=["a subnet for each", "half of them"])
@pytest.mark.parametrize("seed", range(400))
def test_any_history(seed: int, few: bool) -> None:
    """When all works again, every node has one lease, or knows who has its subnet, or that none is left."""
    nodes = 2 + seed % (NODES_MAX - 1)
    world = World(seed, nodes, max(nodes // 2, 1) if few else nodes)
    for _ in range(150 * nodes):
        world.step()
    world.calm_down()
    for node in world.nodes.values():
        if not node.lessee.is_released:
            world.check_calm(node)


# --- flannel's own tests (pkg/subnet/etcd/subnet_test.go) -------------------------------------------------

FLANNEL = {"Network": "10.3.0.0/16", "SubnetMin": "10.3.1.0", "SubnetMax": "10.3.25.0"}
OTHERS = ("10.3.1.0/24", "10.3.2.0/24", "10.3.4.0/24", "10.3.5.0/24", "10.3.31.0/24")


def parse_network(**fields: str) -> NetworkConfig:
    """Return a network config; flannel's tests name no backend."""
    return flannel.parse_network({**fields, "Backend": {"Type": "vxlan"}})


def write(shop: Shop, subnet: str, ttl_s: float | None = TTL_S) -> Entry:
    """Write a lease of another node, of which there may be several."""
    other = Identity(address(200), None, Encap.VXLAN, mac(200), None, 1)
    return shop.put(other.lease(flannel.parse_key(subnet)), ttl_s, 0)


def flannel_shop() -> Shop:
    """Return the store of flannel's tests."""
    shop = Shop(parse_network(**FLANNEL))
    for subnet in OTHERS:
        write(shop, subnet)
    return shop


def acquire(shop: Shop, number: int = 1, previous: str | None = None, chosen: int = 0) -> tuple[Node, str]:
    """Start a node; return it, and the subnet that it has then, for sure."""
    key = None if previous is None else flannel.parse_key(previous)
    node = Node(shop, number, lambda n: chosen % n, key)
    node.work()
    assert node.lessee.reason(shop.now) is None
    return node, str(node.key)


@pytest.mark.parametrize("chosen", range(0, 100, 7))
def test_flannel_acquire_lease(chosen: int) -> None:
    """A free subnet of the range is taken; the same by the same address; the previous one if it fits."""
    shop = flannel_shop()
    node, subnet = acquire(shop, chosen=chosen)
    assert shop.network.subnets is not None
    assert node.key is not None
    assert node.key.subnet is not None
    assert is_in_range(node.key.subnet, shop.network.subnets)
    assert subnet not in OTHERS
    assert acquire(shop, chosen=chosen + 1)[1] == subnet
    assert acquire(flannel_shop(), previous="10.3.6.0/24", chosen=chosen)[1] == "10.3.6.0/24"
    assert acquire(flannel_shop(), previous="10.4.1.0/24", chosen=chosen)[1] == subnet


def test_flannel_config_changed() -> None:
    """After a change of Network a node keeps its subnet until it starts anew, and then takes a new one."""
    shop = flannel_shop()
    node, subnet = acquire(shop)
    shop.set_network(parse_network(Network="10.4.0.0/16"))
    assert not node.work()
    assert "does not fit the network" in str(node.lessee.reason(shop.now))
    assert acquire(shop, previous=subnet)[1] == "10.4.1.0/24"
    assert flannel.format_key(flannel.parse_key(subnet)) not in shop.rows  # nobody could use it


def test_flannel_watch_lease_added() -> None:
    """The news of our own lease, and of a new one of another node, are no reason to do anything."""
    shop = flannel_shop()
    node, subnet = acquire(shop)
    assert node.read_to == shop.revision
    own = node.lessee.own
    assert own is not None
    node.lessee.apply(LeasePut(own.changed, own))  # once more
    assert node.lessee.next_operation(shop.now) is None
    added = write(shop, "10.3.30.0/24", None)
    assert node.read() == [LeasePut(shop.revision, added)]
    assert not node.ask()
    assert (node.lessee.own, str(node.key)) == (own, subnet)
    assert node.lessee.reason(shop.now) is None


def test_flannel_watch_lease_removed() -> None:
    """A lease of three seconds is there, and then gone, and its subnet free."""
    shop = Shop(parse_network(**{**FLANNEL, "SubnetMax": "10.3.2.0"}))
    node, subnet = acquire(shop)
    assert subnet == "10.3.1.0/24"
    added = write(shop, "10.3.2.0/24", 3.0)
    assert node.read() == [LeasePut(shop.revision, added)]
    late = Node(shop, 2, lambda n: 0)
    assert not late.work()
    assert "no subnet of" in str(late.lessee.reason(shop.now))
    shop.now += 2.9
    assert node.read() == []
    shop.now += 0.1
    assert node.read() == [LeaseDeleted(shop.revision, added.name)]
    assert not node.ask()
    assert late.work()
    assert str(late.key) == "10.3.2.0/24"


def test_flannel_complete_lease() -> None:
    """Our lease is added, renewed, deleted by hand and taken back: each is one change that all can follow."""
    shop = flannel_shop()
    watcher = Node(shop, 2, lambda n: 1)
    watcher.read()
    node, _ = acquire(shop)
    name = str(node.lessee.own and node.lessee.own.name)
    added = watcher.read()
    assert added == [LeasePut(shop.revision, shop.entry(name, shop.rows[name]))]
    shop.now = TTL_S - MARGIN_S
    assert node.work()
    renewed = watcher.read()
    assert renewed == [LeasePut(shop.revision, shop.entry(name, shop.rows[name]))]
    assert shop.rows[name].created < shop.rows[name].changed
    shop.delete(name)
    assert watcher.read() == [LeaseDeleted(shop.revision, name)]
    assert node.work()
    assert watcher.read() == [LeasePut(shop.revision, shop.entry(name, shop.rows[name]))]


def test_flannel_renew_lease() -> None:
    """A lease is renewed until 24 hours from then, and says what it said before."""
    shop = flannel_shop()
    node, _ = acquire(shop)
    name = str(node.lessee.own and node.lessee.own.name)
    before = shop.rows[name]
    assert before.expires == TTL_S
    shop.now = TTL_S - MARGIN_S - 1
    assert not node.work()
    shop.now += 1
    assert node.work()
    assert shop.rows[name] == replace(before, changed=shop.revision, expires=shop.now + 24 * 3600)
