# SPDX-License-Identifier: Apache-2.0
"""Our own lease: what is asked of the store, when, and what is said of it, whatever others do meanwhile."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv6Address

import pytest

from dataplane import flannel
from dataplane.alloc import Choose
from dataplane.lease import TTL_S, WAITING, DropLease, Identity, Lessee, PutLease, find_mine
from dataplane.model import Encap, Entry, LeaseDeleted, LeasePut, Listed, NetworkConfig, NetworkPut, SubnetKey
from tests.leases import address, mac

VXLAN = {"Backend": {"Type": "vxlan"}}
SMALL = flannel.parse_network({"Network": "10.244.0.0/16", "SubnetMax": "10.244.4.0", **VXLAN})
ELSEWHERE = flannel.parse_network({"Network": "10.3.0.0/16", **VXLAN})
BOTH_FIELDS = {"Network": "10.3.0.0/16", "EnableIPv6": True, "IPv6Network": "fd00:3::/48"}
BOTH = flannel.parse_network({**BOTH_FIELDS, **VXLAN})
START = 10  # revision of the first list
NAME = "10.244.1.0-24"  # ours, mostly


def key(subnet: int | str) -> SubnetKey:
    """Return a key: 1 is 10.244.1.0/24."""
    return flannel.parse_key(f"10.244.{subnet}.0/24" if isinstance(subnet, int) else subnet)


def me(node: int = 1, vtep: int | None = None) -> Identity:
    """Return who node n is; `vtep` is a MAC other than that of its number."""
    return Identity(address(node), None, Encap.VXLAN, mac(vtep or node))


def held(subnet: int | str, node: int = 1, created: int = 1, expires_s: float | None = TTL_S) -> Entry:
    """Return a lease of a node as the store holds it."""
    lease = me(node).lease(key(subnet))
    return Entry(flannel.format_key(lease.key), lease, None, created, created, expires_s)


def changed(entry: Entry, revision: int, identity: Identity | None = None) -> Entry:
    """Return a lease as it is after a change, maybe with another identity."""
    assert entry.lease is not None
    lease = entry.lease if identity is None else identity.lease(entry.lease.key)
    return replace(entry, lease=lease, changed=revision)


def first(n: int) -> int:
    """Choose the lowest."""
    return 0


def start(
    *entries: Entry, network: NetworkConfig = SMALL, previous: int | str | None = None, choose: Choose = first
) -> Lessee:
    """Return a lessee who knows who it is (node 1) and what there is."""
    lessee = Lessee(choose, None if previous is None else key(previous))
    lessee.apply(Listed(START, network, entries))
    lessee.identify(me())
    return lessee


def holding(*others: Entry, expires_s: float | None = TTL_S) -> Lessee:
    """Return a lessee who holds 10.244.1.0/24 since revision START."""
    lessee = start(held(1, expires_s=expires_s), *others)
    operation = lessee.next_operation(0.0)
    if operation is not None:
        assert isinstance(operation, PutLease)
        lessee.written(replace(changed(held(1), START + 1), expires_s=operation.ttl_s))
    assert lessee.next_operation(0.0) is None
    return lessee


def wants(lessee: Lessee, subnet: int | str, expected: int = 0, now: float = 0.0) -> PutLease:
    """Check that a lease of this subnet is to be written over that revision; return the operation."""
    operation = lessee.next_operation(now)
    assert isinstance(operation, PutLease)
    assert (operation.lease.key, operation.expected) == (key(subnet), expected)
    return operation


def rest(lessee: Lessee, now: float = 0.0) -> str:
    """Check that nothing is to be done; return the reason, "" if there is none."""
    assert lessee.next_operation(now) is None
    return lessee.reason(now) or ""


# --- acquire ----------------------------------------------------------------------------------------------


def test_nothing_is_known() -> None:
    """Before the store and the host have spoken nothing is done, and the reason says what is missing."""
    lessee = Lessee(first)
    assert rest(lessee) == WAITING
    assert [lessee.own, lessee.wake_s(0.0), lessee.renews_s()] == [None] * 3
    lessee.apply(Listed(1, None, (), "no network"))
    assert rest(lessee) == "no network"
    lessee.apply(NetworkPut(2, SMALL))
    lessee.identify(None, "no address")
    assert rest(lessee) == "no address"
    lessee.identify(me())
    assert wants(lessee, 1).ttl_s == TTL_S
    assert lessee.reason(0.0) == "taking a subnet"


def test_found_by_address() -> None:
    """The lease that has our address is taken over by CAS and renewed, before any other subnet."""
    lessee = start(held(2, 2), held(3, expires_s=5.0), previous=4)
    assert wants(lessee, 3, expected=1) == PutLease(me().lease(key(3)), TTL_S, 1)
    lessee.written(changed(held(3), START + 1))
    assert rest(lessee) == ""
    assert lessee.own == changed(held(3), START + 1)


def test_which_of_ours() -> None:
    """Of several leases with our address the oldest of the network is taken, also outside the range."""
    wants(start(held(1, created=9), held(4, created=3), held(2, created=7)), 4, expected=3)
    wants(start(held("10.3.1.0/24", created=1), held(2, created=5)), 2, expected=5)
    wants(start(held(9)), 9, expected=1)


def test_find_mine() -> None:
    """Ours are the leases whose first address is ours, oldest first; without an address there are none."""
    six = flannel.parse_key("fd00:244:0:1::/64")
    entries = [held(2, created=5), held(3, 2), replace(held(4), lease=None), held(1, created=4)]
    assert [entry.name for entry in find_mine(entries, address(1))] == ["10.244.1.0-24", "10.244.2.0-24"]
    assert find_mine(entries, None) == []
    dual = Identity(address(1), IPv6Address("2001:db8::1"), Encap.VXLAN)
    entries = [Entry("v6", dual.lease(six)), Entry("old", replace(dual, public_ip=None).lease(six))]
    assert dual.address == address(1)
    assert [entry.name for entry in find_mine(entries, dual.address)] == ["v6"]
    assert [entry.name for entry in find_mine(entries, dual.public_ip6)] == ["old"]


@pytest.mark.parametrize(
    "subnet", ["10.3.1.0/24", "10.244.1.0/25", "0.0.0.0/0", "10.244.2.0/24&fd00::/64", "fd00::/64"]
)
def test_unusable_ones_of_ours(subnet: str) -> None:
    """Leases of ours that nobody could use are deleted by CAS, oldest first, and then another is taken."""
    unusable = (held(subnet, created=3), held("10.3.9.0/24", created=7))
    lessee = start(*unusable[::-1], previous=3)
    for entry in unusable:
        assert lessee.next_operation(0.0) == DropLease(entry.name, entry.changed)
        lessee.dropped(entry.name)
    wants(lessee, 3)


def test_one_family_in_a_network_of_two() -> None:
    """When the network has got IPv6, a node that starts trades its IPv4 lease for one of both families."""
    lessee = start(held("10.3.1.0/24"), network=BOTH, previous="10.3.1.0/24")
    assert lessee.next_operation(0.0) == DropLease("10.3.1.0-24", 1)
    lessee.dropped("10.3.1.0-24")
    wants(lessee, "10.3.1.0/24&fd00:3:0:1::/64")


def test_reservation() -> None:
    """A lease without an end that says of us what we would write is ours as it is, for ever."""
    lessee = start(held(2, expires_s=None))
    assert (rest(lessee), lessee.own) == ("", held(2, expires_s=None))
    assert (rest(lessee, 1e9), lessee.renews_s(), lessee.wake_s(0.0)) == ("", None, None)
    lessee = holding()  # and an operator makes a reservation of it now
    lessee.apply(LeasePut(START + 5, replace(changed(held(1), START + 5), expires_s=None)))
    assert rest(lessee, TTL_S) == ""


def test_reservation_with_another_mac() -> None:
    """A reservation that says something else of us is rewritten, and stays one."""
    lessee = start(changed(held(2, expires_s=None), 7, me(1, 9)))
    assert wants(lessee, 2, expected=7) == PutLease(me().lease(key(2)), None, 7)
    lessee.written(changed(held(2, expires_s=None), START + 1))
    lessee.identify(me(1, 8))
    assert wants(lessee, 2, expected=START + 1).ttl_s is None
    lessee.apply(LeaseDeleted(START + 2, "10.244.2.0-24"))  # the operator does not want it any more
    assert wants(lessee, 2).ttl_s == TTL_S


@pytest.mark.parametrize("expires_s", [None, TTL_S], ids=["reservation", "lease"])
def test_ours_is_younger_than_another(expires_s: float | None) -> None:
    """A lease of ours that shares its subnet with an older one of another is not surely ours for a moment."""
    lessee = start(held("10.244.1.0/24&fd00::/64", 2, 1), held(1, 1, 2, expires_s))
    if lessee.next_operation(0.0) is not None:
        lessee.written(changed(held(1, 1, 2), START + 1))
    assert lessee.reason(0.0) is not None
    assert "taken" in rest(lessee)


@pytest.mark.parametrize(
    "previous", [2, 9, "10.4.1.0/24", "10.244.3.0/25", "10.244.3.0/24&fd00::/64", "fd00::/64"]
)
def test_previous_subnet_is_no_use(previous: int | str) -> None:
    """A subnet of the last run that is taken or does not fit is forgotten."""
    wants(start(held(2, 2), previous=previous), 1)


def test_previous_subnet_is_tried_once() -> None:
    """If another is quicker to take our previous subnet, any other is taken, even if that is free again."""
    lessee = start(held(1, 2), previous=3)
    assert wants(lessee, 3).lease == me().lease(key(3))
    lessee.conflicted("10.244.3.0-24", [held(3, 2, START + 1)], 0.0)
    lessee.apply(LeaseDeleted(START + 2, "10.244.3.0-24"))
    wants(lessee, 2)


@pytest.mark.parametrize(("chosen", "subnet"), [(0, 1), (1, 3), (2, 4)])
def test_random_subnet(chosen: int, subnet: int) -> None:
    """Each free subnet can be chosen."""
    wants(start(held(2, 2), choose=lambda n: chosen), subnet)


def test_both_families() -> None:
    """In two families a lease has a subnet of each."""
    wants(start(held("10.3.1.0/24&fd00:3:0:1::/64", 2), network=BOTH), "10.3.2.0/24&fd00:3:0:2::/64")
    wants(start(held("10.3.1.0/24", 2), network=BOTH), "10.3.2.0/24&fd00:3:0:1::/64")


def test_no_subnet_left() -> None:
    """Each that others were quicker to take is left to them; the reason says when there is none any more."""
    lessee = start()
    for n in range(1, 5):
        wants(lessee, n)
        lessee.conflicted(f"10.244.{n}.0-24", [held(n, n + 1, START + n)], 0.0)
    assert rest(lessee).startswith("no subnet of 10.244.0.0/16 is free; see overlayd lease ls")
    lessee.apply(LeaseDeleted(START + 9, "10.244.3.0-24"))
    wants(lessee, 3)


@pytest.mark.parametrize(
    "subnets",
    [
        *(["0.0.0.0/0"], ["10.244.0.0/16"], ["10.0.0.0/9", "10.128.0.0/9"], ["10.3.0.0/24"]),
        *(["10.244.0.0/17", "10.244.128.0/17"], ["10.244.0.0/22", "10.244.4.0/32"]),
    ],
    ids=" ".join,
)
def test_hostile_leases_block_nobody(subnets: list[str]) -> None:
    """Leases of another length or network keep nobody from taking, or keeping, a subnet."""
    hostile = [held(subnet, 2, created=0) for subnet in subnets]
    wants(start(*hostile), 1)
    assert holding(*hostile).reason(0.0) is None


def test_other_lengths_are_avoided() -> None:
    """A subnet that overlaps a lease of another length is not picked while there are others."""
    wants(start(held("10.244.1.0/25", 2), held("10.244.2.0/23", 3)), 4)


def test_unreadable_lease_is_not_tried_again_and_again() -> None:
    """A subnet whose key holds rubbish cannot be taken: the next one is, and none if it was the last."""
    rubbish = replace(held(1, 2), lease=None, problem="no valid JSON")
    wants(start(rubbish), 2)
    assert "no subnet of" in rest(start(rubbish, held(2, 2), held(3, 3), held(4, 4)))


# --- what becomes of an operation -------------------------------------------------------------------------


def test_conflicts_without_end() -> None:
    """Who is always too late pauses."""
    lessee = start()
    for _ in range(101):
        wants(lessee, 1, now=5.0)
        lessee.conflicted(NAME, [], 5.0)
    assert rest(lessee, 5.0).endswith("others are always quicker")
    assert lessee.wake_s(5.0) == 6.0
    wants(lessee, 1, now=6.0)


def test_store_fails() -> None:
    """A store that fails is asked again after 1, 2, 4 … 60 s, anew after it answered; the reason says why."""
    lessee, now = start(), 0.0
    for pause_s in (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0):
        wants(lessee, 1, now=now)
        lessee.failed("no answer", now)
        assert lessee.reason(now) == "taking a subnet: no answer"
        assert lessee.wake_s(now) == now + pause_s
        assert lessee.next_operation(now + pause_s - 0.1) is None
        now += pause_s
    lessee.written(changed(held(1), START + 1))
    assert (rest(lessee, now), lessee.trouble) == ("", None)
    lessee.identify(me(1, 9))
    wants(lessee, 1, expected=START + 1, now=now)
    lessee.failed("no answer", now)
    assert (lessee.wake_s(now), lessee.reason(now), lessee.trouble) == (now + 1.0, None, "no answer")


@pytest.mark.parametrize("news", [(), (LeasePut(START + 1, held(3, 2, START + 1)),)], ids=["none", "old"])
def test_first_write_lost_its_answer(news: tuple[LeasePut, ...]) -> None:
    """After a write of which we know nothing the same subnet is wanted: another would make us hold two."""
    choices = iter((2, 0))
    lessee = start(choose=lambda n: next(choices))
    wants(lessee, 3)
    lessee.failed("no answer", 0.0)
    for event in news:  # of a lease that is gone by now
        lessee.apply(event)
    wants(lessee, 3, now=1.0)
    lessee.conflicted("10.244.3.0-24", [held(3, created=START + 3)], 1.0)
    wants(lessee, 3, expected=START + 3, now=1.0)


# --- hold, lost, taken ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ttl_s", "margin_s", "renews_s"),
    [(TTL_S, 3600.0, 82800.0), (TTL_S, 43201.0, 43200.0), (3.0, 3600.0, 1.5), (100.0, 0.0, 100.0)],
    ids=["usual", "more than half", "short lease", "no margin"],
)
def test_renewal(ttl_s: float, margin_s: float, renews_s: float) -> None:
    """A lease is renewed by CAS when the margin is left of it, which is never more than half of its life."""
    lessee = Lessee(first, None, ttl_s, margin_s)
    lessee.apply(Listed(START, SMALL, ()))
    lessee.identify(me())
    assert wants(lessee, 1).ttl_s == ttl_s
    lessee.written(held(1, created=START + 1, expires_s=ttl_s))
    assert (lessee.renews_s(), lessee.wake_s(0.0)) == (renews_s, renews_s)
    assert lessee.next_operation(renews_s - 0.001) is None
    assert wants(lessee, 1, START + 1, renews_s) == PutLease(me().lease(key(1)), ttl_s, START + 1)
    lessee.written(replace(changed(held(1), START + 2), expires_s=renews_s + ttl_s))
    assert (rest(lessee, renews_s), lessee.renews_s()) == ("", 2 * renews_s)


def test_silent_store() -> None:
    """A lease that nobody renewed is not surely ours when it is over, whatever the store did not say."""
    lessee = holding()
    wants(lessee, 1, START + 1, TTL_S - 10)
    lessee.failed("no answer", TTL_S - 10)
    assert (lessee.reason(TTL_S - 1), lessee.trouble) == (None, "no answer")
    assert lessee.reason(TTL_S) == f"our lease of {NAME} has expired, and the store does not renew it"
    assert holding().wake_s(TTL_S - 5) == TTL_S
    wants(lessee, 1, START + 1, TTL_S)
    lessee.conflicted(NAME, [], TTL_S)
    assert wants(lessee, 1, now=TTL_S).lease == me().lease(key(1))


@pytest.mark.parametrize("now", [0.0, 2 * TTL_S], ids=["deleted", "expired"])
def test_lost(now: float) -> None:
    """A lease that is gone is taken back under the same key, as a new one."""
    lessee = holding()
    lessee.apply(LeaseDeleted(START + 2, NAME))
    assert wants(lessee, 1, now=now) == PutLease(me().lease(key(1)), TTL_S, 0)
    assert lessee.reason(now) == f"our lease of {NAME} is lost; taking it back"
    lessee.written(held(1, created=START + 3, expires_s=now + TTL_S))
    assert rest(lessee, now) == ""


def test_rubbish_over_ours() -> None:
    """Rubbish in place of our lease is nobody's: we write over it. Beside it, it is in our way."""
    lessee = holding()
    lessee.apply(LeasePut(START + 2, replace(changed(held(1), START + 2), lease=None)))
    wants(lessee, 1, expected=START + 2)
    assert "rubbish" in str(lessee.reason(0.0))
    lessee.apply(LeaseDeleted(START + 3, NAME))
    wants(lessee, 1)
    rubbish = replace(held("10.244.1.0/24&fd00::/64"), lease=None, changed=START + 4)
    lessee.conflicted(NAME, [rubbish], 0.0)
    assert rubbish.name in rest(lessee)


def test_rewritten_by_another() -> None:
    """Who finds another node in its lease writes nothing, and takes the subnet back when that is gone."""
    lessee, theft = holding(), changed(held(1), START + 2, me(2))
    lessee.apply(LeasePut(START + 2, theft))
    rewritten = "its lease was rewritten for 192.0.2.2; see overlayd lease ls"
    for now in (0.0, TTL_S - 1, 2 * TTL_S):
        assert rest(lessee, now) == f"our subnet {NAME} is taken: {rewritten}"
    assert lessee.own == changed(held(1), START + 1)
    lessee.apply(LeaseDeleted(START + 3, NAME))
    wants(lessee, 1)
    lessee.conflicted(NAME, [changed(theft, START + 4)], 0.0)
    assert (lessee.next_operation(0.0), lessee.trouble) == (None, None)
    assert lessee.rival == rewritten


def test_theft_during_a_pause() -> None:
    """A theft is told when it is heard of, even while the store is not to be asked."""
    lessee = holding()
    wants(lessee, 1, START + 1, TTL_S - 100)
    lessee.failed("no answer", TTL_S - 100)
    lessee.apply(LeasePut(START + 2, changed(held(1), START + 2, me(2))))
    assert "taken" in rest(lessee, TTL_S - 100)


@pytest.mark.parametrize(("created", "is_taken"), [(0, True), (START + 9, False)], ids=["older", "younger"])
def test_overlap(created: int, is_taken: bool) -> None:
    """Of two leases that share a subnet the older one has it; the younger has it when that is gone."""
    lessee, other = holding(), held("10.244.1.0/24&fd00::/64", 2, created)
    lessee.apply(LeasePut(START + 9, replace(other, changed=START + 9)))
    assert lessee.next_operation(TTL_S) is None if is_taken else wants(lessee, 1, START + 1, TTL_S)
    assert (lessee.rival is not None) is is_taken
    lessee.apply(LeaseDeleted(START + 10, NAME))  # now the other is older than what we could write
    assert rest(lessee, TTL_S).endswith(f"192.0.2.2 has it too, by the lease {other.name}")
    lessee.apply(LeaseDeleted(START + 11, other.name))
    wants(lessee, 1, now=TTL_S)


# --- who we are, and what the network is ------------------------------------------------------------------


@pytest.mark.parametrize("identity", [me(1, 9), me(7), replace(me(), vni=5)], ids=["MAC", "address", "VNI"])
def test_identity_changes(identity: Identity) -> None:
    """When we are another, our lease is rewritten by CAS, also if the answer to that was lost."""
    lessee = holding()
    lessee.identify(identity)
    assert wants(lessee, 1, START + 1).lease == identity.lease(key(1))
    lessee.failed("no answer", 0.0)
    lessee.apply(LeasePut(START + 2, changed(held(1), START + 2, identity)))
    assert (lessee.next_operation(1.0), lessee.reason(1.0), lessee.trouble) == (None, None, None)
    assert lessee.own == changed(held(1), START + 2, identity)


@pytest.mark.parametrize("last", [me(8), me(1)], ids=["a third", "the first again"])
def test_identity_changes_twice(last: Identity) -> None:
    """What we wrote ourselves is no theft, even if its answer was lost and we are another by now."""
    lessee = holding()
    lessee.identify(me(7))
    wants(lessee, 1, START + 1)
    lessee.failed("no answer", 0.0)
    lessee.apply(LeasePut(START + 2, changed(held(1), START + 2, me(7))))
    lessee.identify(last)
    assert wants(lessee, 1, START + 2, 1.0).lease == last.lease(key(1))


@pytest.mark.parametrize("event", [NetworkPut(START + 2, None, "gone"), NetworkPut(START + 2, ELSEWHERE)])
def test_network_changes(event: NetworkPut) -> None:
    """Whatever becomes of the network, our lease is renewed as it is; the reason says if it does not fit."""
    lessee = holding()
    lessee.apply(event)
    if event.network is not None:
        lessee.identify(me(1, 9))  # not written while we are in the wrong network
    assert ("does not fit the network" in rest(lessee)) is (event.network is not None)
    assert (lessee.reason(0.0) is None) is (event.network is None)
    assert wants(lessee, 1, START + 1, TTL_S - 1).lease == me().lease(key(1))
    lessee.identify(me())
    lessee.apply(NetworkPut(START + 3, SMALL))
    assert rest(lessee) == ""


# --- release, and what comes too late ---------------------------------------------------------------------


def test_release() -> None:
    """A lease is given back by CAS, also after a conflict, and also in a pause; then nothing is done."""
    lessee = holding()
    lessee.failed("no answer", 0.0)
    lessee.leave()
    assert lessee.next_operation(0.0) == DropLease(NAME, START + 1)
    lessee.conflicted(NAME, [changed(held(1), START + 2)], 0.0)
    assert lessee.next_operation(0.0) == DropLease(NAME, START + 2)
    assert not lessee.is_released
    lessee.dropped(NAME)
    assert (rest(lessee), lessee.is_released, lessee.own) == ("the lease was given back", True, None)


@pytest.mark.parametrize("found", [[], [changed(held(1), START + 2, me(2))]], ids=["gone", "another's"])
def test_release_of_what_is_not_ours(found: list[Entry]) -> None:
    """What is not ours any more is not deleted, and counts as given back."""
    lessee = holding()
    lessee.leave()
    assert lessee.next_operation(0.0) == DropLease(NAME, START + 1)
    lessee.conflicted(NAME, found, 0.0)
    assert (lessee.next_operation(0.0), lessee.is_released) == (None, True)


def test_release_after_a_lost_answer() -> None:
    """What we wrote ourselves is given back, even if the answer to that was lost."""
    lessee = holding()
    lessee.identify(me(7))
    wants(lessee, 1, START + 1)
    lessee.failed("no answer", 0.0)
    lessee.apply(LeasePut(START + 2, changed(held(1), START + 2, me(7))))
    lessee.leave()
    assert lessee.next_operation(0.0) == DropLease(NAME, START + 2)


def test_late_answers() -> None:
    """An answer that comes after the news of what followed brings nothing back."""
    lessee = start(*(held(n, n) for n in range(2, 5)))
    wants(lessee, 1)
    for node, revision in ((1, START + 1), (2, START + 3)):
        lessee.apply(LeasePut(revision, changed(held(1, node), revision)))
        lessee.apply(LeaseDeleted(revision + 1, NAME))
    lessee.conflicted(NAME, [changed(held(1, 2), START + 3)], 0.0)
    wants(lessee, 1)
    lessee.written(changed(held(1), START + 1))
    wants(lessee, 1)


def test_conflict_of_which_we_have_heard() -> None:
    """What an answer says for the second time is no less true: a lease in our way stays known."""
    lessee, theft = holding(), changed(held(1), START + 2, me(2))
    lessee.identify(me(1, 9))
    wants(lessee, 1, START + 1)
    lessee.apply(LeasePut(START + 2, theft))
    lessee.conflicted(NAME, [theft], 0.0)
    assert "taken" in rest(lessee)
