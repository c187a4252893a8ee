# SPDX-License-Identifier: Apache-2.0
"""Mass withdrawals: what is held, until when, and what is none. The peers are those of a real reconciler."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import IPv4Network

import pytest

from dataplane.model import (
    Entry,
    Event,
    LeasePut,
    Listed,
    NetworkConfig,
    NetworkPut,
    Publish,
    Rejected,
    Table,
)
from dataplane.reconcile import Reconciler
from dataplane.withdrawal import Limits, Withdrawal
from tests.leases import CONFIG, FACTS, NET, deleted, entry, lease, listed, put

OWN = lease(1)
PEERS = tuple(range(2, 22))  # 20 peers: more than 4 are too many
HOLD_S, WINDOW_S = 30.0, 10.0


class LastPeers:
    """The peers of a last run."""

    def __init__(self, numbers: Iterable[int]) -> None:
        self.entries = {found.name: found for found in map(entry, map(lease, numbers))}
        self.asked: set[str] = set()

    def names(self) -> frozenset[str]:
        """Return all names."""
        return frozenset(self.entries)

    def read(self, names: set[str]) -> dict[str, Entry]:
        """Return some of them."""
        self.asked |= names
        return {name: self.entries[name] for name in names}


class Node:
    """A withdrawal in front of a reconciler, as the daemon has them."""

    def __init__(
        self,
        limits: Limits | None = None,
        before: LastPeers | None = None,
        max_peers: int = 100,
        *,
        has_lease: bool = True,
    ) -> None:
        """Know nothing but our lease, if there is one."""
        self.withdrawal = Withdrawal(limits or Limits(), before)
        self.reconciler = Reconciler(replace(CONFIG, max_peers=max_peers), FACTS, is_leased=True)
        if has_lease:
            self.reconciler.own_changed(OWN, None, 0.0)
        self.table: Table | None = None

    def take(self, *events: Event, now: float) -> list[Event]:
        """Take events; return what came through."""
        passed = self.withdrawal.admit(events, self.reconciler, now)
        for action in self.reconciler.apply_all(passed, now):
            if isinstance(action, Publish):
                self.table = action.table
        return passed

    def peers(self) -> set[int]:
        """Return the nodes whose subnets the table has."""
        assert self.table is not None
        return {entry.prefix.network_address.packed[2] for entry in self.table.subnets}

    def held(self) -> set[int]:
        """Return the nodes whose leases are held, as the views have them."""
        views = [view for view in self.reconciler.peers() if view.entry.is_held]
        for view in views:
            assert self.withdrawal.held_for_s(view.entry.name, 1e6) is not None
        assert len(views) == self.withdrawal.count()
        return {view.entry.lease.key.subnet.network_address.packed[2] for view in views}  # type: ignore[union-attr]


def cluster(numbers: Iterable[int] = PEERS, revision: int = 1, network: NetworkConfig = NET) -> Listed:
    """Return a whole list of us and these."""
    return listed(OWN, *map(lease, numbers), revision=revision, network=network)


def gone(revision: int, *numbers: int) -> list[Event]:
    """Return that leases are gone."""
    return [deleted(revision, lease(number).key) for number in numbers]


def running(max_peers: int = 100) -> Node:
    """Return a node that has all peers."""
    node = Node(max_peers=max_peers)
    node.take(cluster(), now=0.0)
    assert node.peers() == set(PEERS)
    return node


@pytest.mark.parametrize("is_list", [False, True], ids=["deletes", "list"])
def test_many_at_once_are_held(*, is_list: bool) -> None:
    """More than a fifth and at least five stay in force, marked, whether they are deleted or not listed."""
    node = running()
    left = PEERS[:5]
    node.take(*([cluster(PEERS[5:], 2)] if is_list else gone(2, *left)), now=100.0)
    assert node.peers() == set(PEERS)
    assert node.held() == set(left)
    assert node.withdrawal.held_for_s(entry(lease(2)).name, 107.0) == 7.0
    assert node.withdrawal.held_for_s(entry(lease(9)).name, 107.0) is None


@pytest.mark.parametrize(
    ("there", "leave", "is_held"),
    [(20, 4, False), (20, 5, True), (25, 5, False), (25, 6, True), (6, 4, False), (6, 5, True), (5, 5, True)],
)
def test_thresholds(there: int, leave: int, *, is_held: bool) -> None:
    """Exactly a fifth goes, and so do fewer than five."""
    node = Node()
    node.take(cluster(range(2, 2 + there)), now=0.0)
    events = gone(2, *range(2, 2 + leave))
    passed = node.take(*events, now=1.0)
    assert (node.held() != set()) == is_held
    assert len(node.peers()) == (there if is_held else there - leave)
    assert (passed == events) != is_held


def test_one_by_one() -> None:
    """Who left first comes back with the one that makes them too many; after the window nobody counts."""
    node = running()
    for turn, number in enumerate(PEERS[:4]):
        node.take(*gone(2 + turn, number), now=turn * 3.0)
    assert node.peers() == set(PEERS[4:])
    node.take(*gone(9, PEERS[4]), now=9.9)
    assert node.peers() == set(PEERS)
    assert node.held() == set(PEERS[:5])
    slow = running()
    for turn, number in enumerate(PEERS):
        slow.take(*gone(2 + turn, number), now=turn * WINDOW_S / 2)
    assert (slow.peers(), slow.held()) == (set(), set())


def test_more_of_the_same() -> None:
    """Who leaves within the window of a mass withdrawal is held with it; later ones go as ever."""
    node = running()
    node.take(*gone(2, *PEERS[:5]), now=0.0)
    node.take(*gone(3, PEERS[5]), now=5.0)
    assert node.held() == set(PEERS[:6])
    node.take(*gone(4, PEERS[6]), now=16.0)
    assert node.held() == set(PEERS[:6])
    assert node.peers() == {*PEERS} - {PEERS[6]}


def test_a_second_list_releases() -> None:
    """A list that comes before its time releases nothing; one after it all that it lacks, once."""
    node = running()
    assert node.withdrawal.wait_s(0.0) is None
    node.take(*gone(2, *PEERS[:6]), now=100.0)
    assert node.withdrawal.wait_s(110.0) == HOLD_S - 10.0
    node.take(cluster(PEERS[6:], 3), now=100.0 + HOLD_S - 0.1)
    assert node.held() == set(PEERS[:6])
    assert node.withdrawal.wait_s(200.0) == 0.0
    node.take(cluster(PEERS[6:], 3), now=100.0 + HOLD_S)
    assert (node.peers(), node.held()) == (set(PEERS[6:]), set())
    assert node.withdrawal.wait_s(200.0) is None


def test_the_same_list_is_no_second_one() -> None:
    """A list that is taken again, since what followed from it failed, is as old as it was."""
    node = running()
    early = cluster(PEERS[6:], 2)
    for now in (0.0, 5.0, 10.0, 2 * HOLD_S):
        node.take(early, now=now)
        assert node.peers() == set(PEERS)
    node.take(cluster(PEERS[6:], 2), now=2 * HOLD_S)
    assert node.peers() == set(PEERS[6:])


def test_a_list_that_had_to_wait_is_as_old_as_its_reading() -> None:
    """A list that was read before its time, and is taken up after it, releases nothing."""
    node = running()
    node.take(*gone(2, *PEERS[:6]), now=100.0)
    node.take(replace(cluster(PEERS[6:], 3), read_s=100.0 + HOLD_S - 0.1), now=200.0)
    assert node.peers() == set(PEERS)
    node.take(replace(cluster(PEERS[6:], 3), read_s=100.0 + HOLD_S), now=200.0)
    assert node.peers() == set(PEERS[6:])


def test_back_again() -> None:
    """A lease that is put again, or listed, is not held any more, and may go like any other."""
    node = running()
    node.take(*gone(2, *PEERS[:6]), now=0.0)
    node.take(put(3, lease(2)), now=1.0)
    assert node.held() == set(PEERS[1:6])
    node.take(cluster((2, 3, *PEERS[6:]), 4), now=2.0)
    assert node.held() == set(PEERS[2:6])
    node.take(*gone(5, 2), now=20.0)
    assert node.peers() == set(PEERS) - {2}
    node.take(*gone(6, 4), now=20.0)  # once more
    assert 4 in node.held()


def test_the_operator_decides() -> None:
    """What is dropped is gone at once and for good, and who leaves next does not bring it back."""
    node = running()
    node.take(*gone(2, *PEERS[:6]), now=0.0)
    assert node.withdrawal.drop() == 6
    assert node.peers() == set(PEERS)
    node.take(now=1.0)
    assert (node.peers(), node.held()) == (set(PEERS[6:]), set())
    node.take(*gone(3, PEERS[6]), now=2.0)
    assert node.peers() == set(PEERS[7:])
    assert node.withdrawal.drop() == 0
    node.take(put(4, lease(2)), now=3.0)
    assert 2 in node.peers()


def rename(number: int, node: int, created: int) -> Entry:
    """Return a lease of a node in both families, whose IPv4 subnet is that of another lease."""
    found = replace(lease(node), key=replace(lease(number).key, subnet6=None))
    return Entry(f"other-{number}", found, created=created)


def test_another_node_takes_the_place() -> None:
    """A held lease yields its subnet, or its address, to any lease that lives, however young that is."""
    node = running()
    node.take(*gone(2, *PEERS[:6]), now=0.0)
    heir = rename(PEERS[0], 77, created=99)
    node.take(LeasePut(3, heir), now=1.0)
    assert node.table is not None
    (found,) = (entry for entry in node.table.subnets if entry.prefix == IPv4Network("10.244.2.0/24"))
    assert str(found.vtep) == "192.0.2.77"
    assert [view.entry.name for view in node.reconciler.peers() if view.refused] == [entry(lease(2)).name]
    moved = replace(lease(88), public_ip=lease(3).public_ip, public_ip6=None)
    node.take(put(4, moved), now=2.0)  # its address, in another subnet: it is the same node
    assert {3, 88} <= node.peers()


def test_places_are_for_the_living() -> None:
    """Where no more peers may be, one that is held makes room, and comes back when there is some."""
    node = running(max_peers=len(PEERS))
    node.take(*gone(2, *PEERS[:6]), now=0.0)
    node.take(put(3, lease(50)), put(4, lease(51)), now=1.0)
    assert {50, 51, *PEERS[6:]} <= node.peers()
    assert len(node.peers()) == len(PEERS)
    assert [str(view.refused) for view in node.reconciler.peers() if view.refused] == [
        "as many leases count already as may; see --max-peers"
    ] * 2
    node.take(*gone(5, 50), now=20.0)
    assert len(node.peers()) == len(PEERS)
    node.take(*(put(6, lease(number)) for number in PEERS[:6]), now=21.0)
    assert node.held() == set()
    assert node.peers() <= {51, *PEERS}
    assert len(node.peers()) == len(PEERS)


def test_another_network_is_no_accident() -> None:
    """When the network is another one, those that were in the old one go at once, with it or after it."""
    other = replace(NET, network=IPv4Network("10.0.0.0/8"), subnets=None)
    far = replace(NET, network=IPv4Network("10.99.0.0/16"), subnets=None)
    node = running()
    node.take(cluster(PEERS[6:], 2, network=other), now=0.0)
    assert node.held() == set(PEERS[:6])  # they lie in it
    node.take(cluster((), 3, network=far), now=1.0)
    assert node.withdrawal.count() == 0
    later = running()
    later.take(NetworkPut(2, far), now=0.0)
    later.take(*gone(3, *PEERS), now=1.0)
    assert later.withdrawal.count() == 0


def test_no_network_is_no_other() -> None:
    """A store that is empty, its network included, withdraws all: they are held."""
    node = running()
    node.take(Listed(2, None, (), "no network"), now=0.0)
    assert node.held() == set(PEERS)
    assert node.peers() == set(PEERS)


def test_the_first_list_after_a_restart() -> None:
    """A restart forgets nothing: peers of the last run that the first list lacks are held like others."""
    before = LastPeers(PEERS)
    node = Node(before=before)
    node.take(cluster(PEERS[6:]), now=0.0)
    assert node.peers() == set(PEERS)
    assert node.held() == set(PEERS[:6])
    assert before.asked == {entry(lease(number)).name for number in PEERS[:6]}
    few = Node(before=LastPeers(PEERS))
    few.take(cluster(PEERS[4:]), now=0.0)
    assert (few.peers(), few.held()) == (set(PEERS[4:]), set())
    few.take(cluster((), 2), now=50.0)
    assert few.held() == set(PEERS[4:])  # it was the first list alone


def test_few_are_few_before_we_have_a_lease() -> None:
    """Until our own lease is known nobody is in force: whom the first list lacks is one of all there were."""
    many = range(2, 42)
    node = Node(before=LastPeers(many), has_lease=False)
    node.take(cluster(many[5:]), now=0.0)
    node.take(now=1.0)
    node.take(put(2, lease(2)), now=2.0)
    node.take(deleted(3, lease(2).key), now=3.0)
    assert node.withdrawal.count() == 0
    node.reconciler.own_changed(OWN, None, 3.0)
    node.take(*gone(4, *many[5:7]), now=4.0)
    assert node.withdrawal.count() == 0
    node.take(*gone(5, *many[7:9]), now=5.0)
    assert node.held() == set(many[1:9])


def test_only_peers_count() -> None:
    """Leases that are no peers, our own among them, make no withdrawal, and keep none from being one."""
    rubbish = [Entry(f"x{number}", None, "unreadable") for number in range(100)]
    node = Node()
    node.take(replace(cluster(), entries=(*cluster().entries, *rubbish)), now=0.0)
    node.take(*gone(2, *PEERS[:5]), now=1.0)
    assert node.held() == set(PEERS[:5])
    junk = Node()
    junk.take(replace(cluster(), entries=(*cluster().entries, *rubbish)), now=0.0)
    junk.take(cluster(PEERS, 2), now=1.0)
    assert junk.withdrawal.count() == 0
    junk.take(*gone(3, 1), now=2.0)
    assert junk.withdrawal.count() == 0
    assert junk.peers() == set(PEERS)


def test_switched_off() -> None:
    """With a hold of 0 everything comes through as it is."""
    node = Node(Limits(hold_s=0))
    node.take(cluster(), now=0.0)
    events = [*gone(2, *PEERS), Rejected(3, "x")]
    assert node.take(*events, now=1.0) == events
    assert node.peers() == set()


def test_who_follows_prolongs_nothing() -> None:
    """Those that are held are held from when they left, whoever is held with them later."""
    node = running()
    node.take(*gone(2, *PEERS[:5]), now=0.0)
    node.take(*gone(3, PEERS[5]), now=5.0)
    assert node.withdrawal.held_for_s(entry(lease(PEERS[0])).name, 7.0) == 7.0
    assert node.withdrawal.held_for_s(entry(lease(PEERS[5])).name, 7.0) == 2.0


def test_a_store_that_has_lost_all_after_a_restart() -> None:
    """Before any network is known, peers of the last run are held as they were."""
    node = Node(before=LastPeers(PEERS))
    node.take(Listed(1, None, (), "no network"), now=0.0)
    assert node.withdrawal.count() == len(PEERS)


def test_one_that_is_deleted_twice() -> None:
    """That a lease which is held is gone is no news: it stays what it is, and in force."""
    node = running()
    node.take(*gone(2, *PEERS[:5]), now=0.0)
    assert node.take(*gone(3, PEERS[0]), now=5.0) == []
    assert node.held() == set(PEERS[:5])
    assert node.peers() == set(PEERS)
