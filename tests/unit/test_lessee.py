# SPDX-License-Identifier: Apache-2.0
"""A Lessee, told one thing after the other: what it wants next, and what it believes."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network, IPv6Address
from random import Random

import pytest

from dataplane import flannel
from dataplane.lease import DropLease, Identity, Lessee, Operation, PutLease
from dataplane.model import Encap, Entry, Lease, LeaseDeleted, LeasePut, Listed, NetworkPut, SubnetKey
from tests.leases import address, entry, lease, mac

NETWORK = flannel.parse_network({"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}})
ME = Identity(address(1), None, Encap.VXLAN, mac(1), None, 1)


def key(n: int) -> SubnetKey:
    """Return the key of subnet n."""
    return SubnetKey(IPv4Network(f"10.244.{n}.0/24"))


def mine(n: int, changed: int, *, created: int = 1, expires_s: float | None = 100.0) -> Entry:
    """Return our lease of subnet n as the store has it."""
    return entry(ME.lease(key(n)), created=created, changed=changed, expires_s=expires_s)


def other(n: int, changed: int, *, created: int = 1, subnet: int | None = None) -> Entry:
    """Return a lease of node n."""
    theirs = replace(lease(n), vni=1, key=key(n if subnet is None else subnet))
    return entry(theirs, created=created, changed=changed)


def listed(*entries: Entry, revision: int = 10, identity: str = "") -> Listed:
    """Return a list."""
    return Listed(revision, NETWORK, entries, identity=identity)


def lessee(*entries: Entry, previous: int | None = None, revision: int = 10) -> Lessee:
    """Return a Lessee that has heard a list; chance always takes the first free subnet."""
    found = Lessee(lambda n: 0, None if previous is None else key(previous), 100.0, 30.0)
    found.identify(ME)
    found.apply(listed(*entries, revision=revision))
    return found


def holder(changed: int = 11) -> Lessee:
    """Return a Lessee that holds subnet 5."""
    found = lessee(previous=5)
    assert found.next_operation(0.0) == PutLease(ME.lease(key(5)), 100.0, 0)
    found.written(mine(5, changed, created=changed))
    assert found.next_operation(0.0) is None
    assert found.reason(0.0) is None
    return found


def put(n: int, expected: int = 0) -> Operation:
    """Return that subnet n is to be written."""
    return PutLease(ME.lease(key(n)), 100.0, expected)


def test_previous_subnet_only_if_free() -> None:
    """The subnet of the last run is taken if nobody has it, and another one if somebody has."""
    assert lessee(previous=5).next_operation(0.0) == put(5)
    assert lessee(other(9, 3, subnet=5), previous=5).next_operation(0.0) == put(1)


def test_conflict_leads_to_another_subnet() -> None:
    """What stood in the way is known from then on, before the store tells of it."""
    found = lessee(previous=5)
    found.next_operation(0.0)
    found.conflicted("10.244.5.0-24", [other(9, 12, subnet=5)], 0.0)
    assert found.next_operation(0.0) == put(1)
    found.conflicted("10.244.1.0-24", [other(9, 13, subnet=1)], 0.0)
    assert found.next_operation(0.0) == put(2)


def test_rubbish_is_nobodys() -> None:
    """Rubbish at our key is replaced, as often as it takes."""
    found = holder(changed=20)
    found.apply(LeasePut(21, Entry("10.244.5.0-24", None, "no JSON", 20, 21)))
    assert found.next_operation(0.0) == put(5, 21)
    found.failed("busy", 0.0)
    assert found.next_operation(2.0) == put(5, 21)


def test_conflict_with_nothing_keeps_the_subnet() -> None:
    """Our own lease that was over before we could renew it is taken again under the same subnet."""
    found = lessee(mine(7, 3))
    assert found.next_operation(0.0) == put(7, 3)
    found.conflicted("10.244.7.0-24", [], 0.0)
    assert found.next_operation(0.0) == put(7)


def test_oldest_of_ours_is_taken_and_the_unfit_dropped() -> None:
    """Of several leases with our address the oldest counts; one of another length is deleted first."""
    assert lessee(mine(7, 3, created=2), mine(6, 4, created=1)).next_operation(0.0) == put(6, 4)
    unfit = entry(ME.lease(SubnetKey(IPv4Network("10.244.8.0/25"))), changed=4, expires_s=100.0)
    found = lessee(unfit)
    assert found.next_operation(0.0) == DropLease("10.244.8.0-25", 4)
    found.dropped("10.244.8.0-25")
    assert found.next_operation(0.0) == put(1)


def test_stale_events_change_nothing() -> None:
    """What was true before our own write, and is told after it, is not believed."""
    found = holder(changed=20)
    found.apply(LeaseDeleted(15, "10.244.5.0-24"))
    found.apply(LeasePut(16, other(9, 16, subnet=5)))
    assert found.next_operation(0.0) is None
    assert found.reason(0.0) is None
    found.apply(listed(revision=18))
    assert found.next_operation(0.0) is None


def test_answer_that_comes_last() -> None:
    """An answer that arrives after the events behind it does not bring back what is gone already."""
    found = lessee(previous=5)
    assert found.next_operation(0.0) == put(5)
    found.apply(LeasePut(11, mine(5, 11, created=11)))
    found.apply(LeaseDeleted(12, "10.244.5.0-24"))
    found.written(mine(5, 11, created=11))
    assert found.next_operation(0.0) == put(5)
    assert "is lost" in str(found.reason(0.0))


def test_theft_during_a_pause() -> None:
    """What happens is told at once, even while the store is not to be asked."""
    found = holder(changed=20)
    assert found.next_operation(70.0) == put(5, 20)
    found.failed("disk full", 70.0)
    found.apply(LeasePut(21, other(9, 21, subnet=5)))
    assert found.next_operation(70.1) is None
    assert "is taken" in str(found.reason(70.1))


def test_later_events_are_believed() -> None:
    """What came after our write is: a deletion is mended, a theft is not."""
    found = holder(changed=20)
    found.apply(LeaseDeleted(21, "10.244.5.0-24"))
    assert found.next_operation(0.0) == put(5)
    assert "is lost" in str(found.reason(0.0))
    found = holder(changed=20)
    found.apply(LeasePut(21, other(9, 21, subnet=5)))
    assert found.next_operation(0.0) is None
    assert "is taken: its lease was rewritten for 192.0.2.9" in str(found.reason(0.0))


def test_older_copy_of_the_store() -> None:
    """A list whose revisions go back is of an older copy: what we knew of the newer one is not there."""
    found = holder(changed=20)
    found.apply(LeasePut(21, other(9, 21)))
    found.apply(listed(revision=12))
    assert found.next_operation(0.0) == put(5)
    found.apply(LeasePut(13, other(9, 13, subnet=5, created=13)))
    assert found.next_operation(0.0) is None
    assert "is taken" in str(found.reason(0.0))


def test_another_store() -> None:
    """In a new store our subnet is taken anew, whatever its revisions are."""
    for revision in (1, 15, 30):
        found = holder(changed=20)
        found.apply(listed(revision=revision, identity="new"))
        assert found.next_operation(0.0) == put(5)


def test_answer_that_was_lost() -> None:
    """A write that was done although we were told otherwise is no theft."""
    found = holder(changed=20)
    moved = replace(ME, vtep_mac=mac(2))
    found.identify(moved)
    assert found.next_operation(0.0) == PutLease(moved.lease(key(5)), 100.0, 20)
    found.failed("no answer", 0.0)
    done = entry(moved.lease(key(5)), created=20, changed=21, expires_s=100.0)
    found.apply(LeasePut(21, done))
    assert found.next_operation(2.0) is None
    assert (found.reason(2.0), found.trouble) == (None, None)


def test_renewal() -> None:
    """A lease is renewed when the margin of its life is left, over what stands there."""
    found = holder(changed=20)
    assert (found.renews_s(), found.wake_s(0.0)) == (70.0, 70.0)
    assert found.next_operation(69.9) is None
    assert found.next_operation(70.0) == put(5, 20)


def test_holder_without_identity() -> None:
    """A node that has lost its address keeps its lease alive as it is, and hears of a theft."""
    found = holder(changed=20)
    found.identify(None, "eth0 has no address")
    assert found.next_operation(70.0) == put(5, 20)
    found.apply(LeasePut(21, other(9, 21, subnet=5)))
    assert found.next_operation(70.0) is None
    assert "is taken" in str(found.reason(70.0))


def test_case_123_pauses_differ() -> None:
    """Nodes that a store refused at one moment do not all come back at one: each pause is its own."""
    retries_s = []
    for seed in range(20):
        found = Lessee(Random(seed).randrange, key(5), 100.0, 30.0)
        found.identify(ME)
        found.apply(listed())
        assert found.next_operation(0.0) == put(5)
        found.failed("disk full", 0.0)
        retries_s.append(found.wake_s(0.0))
    assert len(set(retries_s)) > 5
    assert all(at is not None and 0.75 <= at <= 1.0 for at in retries_s)


def test_pauses_grow() -> None:
    """A store that fails is tried again after 1, 2, 4 … 60 seconds; success ends that."""
    found = holder(changed=20)
    now = 70.0
    for pause_s in (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0):
        assert found.next_operation(now) == put(5, 20)
        found.failed("disk full", now)
        assert found.next_operation(now + pause_s - 0.01) is None
        now += pause_s
    assert "has expired" in str(found.reason(now))
    found.written(mine(5, 30, created=20, expires_s=now + 100))
    assert (found.trouble, found.reason(now)) == (None, None)


def test_margin_is_at_most_half_of_the_life() -> None:
    """A margin as long as the life would renew without end."""
    found = Lessee(lambda n: 0, ttl_s=100.0, margin_s=3600.0)
    found.identify(ME)
    found.apply(listed())
    found.next_operation(0.0)
    found.written(mine(1, 11))
    assert found.renews_s() == 50.0


@pytest.mark.parametrize("created", [5, 30])
def test_same_subnet_by_another_key(created: int) -> None:
    """Of two leases of one subnet the older owner stays; the younger is no business of ours."""
    found = holder(changed=20)
    both = SubnetKey(key(5).subnet, None)
    rival = Entry("10.244.5.0-24&x", replace(lease(9), key=both), None, created, 31)
    found.apply(LeasePut(31, rival))
    assert found.next_operation(0.0) is None
    assert (found.reason(0.0) is None) == (created == 30)


def test_nobody_is_our_rival_outside_the_network() -> None:
    """Whoever claims our subnet, which is no part of the network any more, is refused by all: no rival."""
    found = holder(changed=20)
    rival = Entry("10.244.5.0-24&x", replace(lease(9), key=key(5)), None, 5, 31)
    found.apply(
        NetworkPut(30, flannel.parse_network({"Network": "10.3.0.0/16", "Backend": {"Type": "vxlan"}}))
    )
    found.apply(LeasePut(31, rival))
    assert found.next_operation(0.0) is None
    assert found.rival is None
    assert (found.reason(0.0) or "").startswith("our subnet 10.244.5.0-24 does not fit the network any more")


@pytest.mark.parametrize("subnet", ["0.0.0.0/0", "10.0.0.0/8", "10.244.0.0/16", "10.245.0.0/16"])
def test_hostile_lease_blocks_nobody(subnet: str) -> None:
    """A lease of everything, or of what is no part of the network, keeps nobody from a subnet."""
    hostile = entry(replace(lease(9), key=SubnetKey(IPv4Network(subnet))), created=1, changed=3)
    assert lessee(hostile, previous=5).next_operation(0.0) == put(5)
    assert lessee(hostile).next_operation(0.0) == put(1)
    found = holder(changed=20)
    found.apply(LeasePut(21, replace(hostile, changed=21)))
    assert found.next_operation(0.0) is None
    assert found.reason(0.0) is None


def test_own_lease_is_ours_by_any_address() -> None:
    """Once we have a lease, its address is not looked for on this host, nor is it taken for given back."""
    found = holder()
    assert found.find_own(frozenset()) == ME.lease(key(5))
    assert found.find_own(frozenset({address(9)})) == ME.lease(key(5))
    assert not found.is_released
    assert not lessee().is_released


def test_node_without_ipv4_finds_its_lease() -> None:
    """Who has no IPv4 address is known by the IPv6 one, and keeps its subnet through a restart."""
    six = Identity(None, IPv6Address("2001:db8::1"), Encap.VXLAN, None, mac(1), 1)
    found = Lessee(lambda n: 0, None, 100.0, 30.0)
    found.identify(six)
    found.apply(listed(other(4, 2), entry(six.lease(key(7)), changed=3, expires_s=100.0)))
    assert found.next_operation(0.0) == PutLease(six.lease(key(7)), 100.0, 3)


def test_release() -> None:
    """A lease that is ours is deleted, at once; one that is another's is left alone."""
    found = holder(changed=20)
    found.failed("busy", 0.0)
    found.leave()
    assert found.next_operation(0.0) == DropLease("10.244.5.0-24", 20)
    found.dropped("10.244.5.0-24")
    assert found.is_released
    assert found.next_operation(0.0) is None
    found = holder(changed=20)
    found.apply(LeasePut(21, other(9, 21, subnet=5)))
    found.leave()
    assert found.next_operation(0.0) is None
    assert found.is_released


def test_unknown_self() -> None:
    """Without a network, or not knowing who we are, nothing is done, and the reason is told."""
    found = Lessee(lambda n: 0)
    assert found.reason(0.0) == "waiting for the store"
    found.apply(Listed(1, None, (), "no network"))
    assert (found.next_operation(0.0), found.reason(0.0)) == (None, "no network")
    found.apply(listed())
    found.identify(None, "give --iface")
    assert (found.next_operation(0.0), found.reason(0.0)) == (None, "give --iface")
    assert found.find_own(frozenset({address(1)})) is None
    found.apply(LeasePut(11, mine(7, 11)))
    own: Lease | None = found.find_own(frozenset({address(1)}))
    assert own is not None
    assert own.key == key(7)
