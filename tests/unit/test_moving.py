# SPDX-License-Identifier: Apache-2.0
"""Which changes of a node's addresses are believed at once, which have to last, and where we move to."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest

from dataplane.lease import Identity
from dataplane.model import Address, Alarm, Encap, HostFacts, Interface
from dataplane.moving import LOSS_S, SETTLE_S, Mover
from dataplane.reconcile import Reconciler
from dataplane.underlay import find_identity
from tests.leases import (
    CONFIG,
    DUAL,
    FACTS,
    FACTS_DUAL,
    IP1,
    IP1_6,
    IP2,
    IP2_6,
    LO,
    NET,
    dual,
    lease,
    listed,
    mac,
    put,
)

OWN = dual(1)
BOTH = Identity(IP1, IP1_6, Encap.VXLAN, mac(1), mac(0x61), None)
MOVED, ONLY6 = replace(BOTH, public_ip=IP2), replace(BOTH, public_ip=None)
NONE: frozenset[Address] = frozenset()


def test_nothing_is_held_back_while_we_have_our_addresses() -> None:
    """At start, and as long as our addresses are held, what is found counts at once."""
    mover = Mover()
    assert mover.judge(MOVED, None, NONE, 0.0) == MOVED
    assert mover.judge(MOVED, OWN, frozenset((IP1, IP1_6)), 0.0) == MOVED
    assert mover.due_s is None


def test_another_address_has_to_last_a_moment() -> None:
    """A new address is believed after a moment; until then we are who we were, with all else that is new."""
    mover = Mover()
    assert mover.judge(replace(MOVED, vni=9), OWN, frozenset((IP2, IP1_6)), 5.0) == replace(BOTH, vni=9)
    assert mover.due_s == 5.0 + SETTLE_S
    assert mover.judge(MOVED, OWN, NONE, 5.0 + SETTLE_S) == MOVED
    assert mover.due_s is None


def test_a_lost_family_has_to_last_longer() -> None:
    """That there is no address of a family any more is believed late; what comes meanwhile counts anew."""
    mover = Mover()
    assert mover.judge(ONLY6, OWN, NONE, 0.0) == BOTH
    assert mover.judge(ONLY6, OWN, NONE, LOSS_S - 0.1) == BOTH
    assert mover.judge(MOVED, OWN, NONE, LOSS_S) == BOTH
    assert mover.due_s == LOSS_S + SETTLE_S
    assert mover.judge(ONLY6, OWN, NONE, LOSS_S + 0.1) == BOTH
    assert mover.judge(ONLY6, OWN, NONE, 2 * LOSS_S + 0.1) == ONLY6


def test_what_comes_back_is_as_if_nothing_had_been() -> None:
    """An address that comes back, or is gone altogether, ends the waiting; the next change waits anew."""
    mover = Mover()
    mover.judge(MOVED, OWN, NONE, 0.0)
    assert mover.judge(BOTH, OWN, frozenset((IP1, IP1_6)), 0.1) == BOTH
    assert mover.due_s is None
    mover.judge(MOVED, OWN, NONE, 0.2)
    mover.forget()
    assert mover.due_s is None
    assert mover.judge(MOVED, OWN, NONE, 9.0) == BOTH


ETH0, ETH1 = Interface("eth0", 2, 1500), Interface("eth1", 3, 1500, (IP2, IP2_6))
DOCKER = Interface("docker0", 4, 1500, (IPv4Address("172.17.0.1"),))
NEW, NEW6 = IPv4Address("198.51.100.1"), IPv6Address("2001:db8:9::1")


@pytest.mark.parametrize(
    ("held", "default", "expected"),
    [
        pytest.param((NEW, NEW6), (), (NEW, NEW6), id="changed where it was"),
        pytest.param((NEW, NEW6), ("eth1",), (NEW, NEW6), id="before the default route"),
        pytest.param((NEW, IP1_6), (), (NEW, IP1_6), id="one of two changed"),
        pytest.param((NEW6,), ("eth1",), (IP2, IP2_6), id="the default route has both families"),
        pytest.param((NEW6,), (), (None, NEW6), id="one family is left"),
        pytest.param((), ("eth1",), (IP2, IP2_6), id="gone to the default route"),
    ],
)
def test_where_we_move_to(
    held: tuple[Address, ...], default: tuple[str, ...], expected: tuple[Address | None, ...]
) -> None:
    """We stay on our interface while it has an address, else we follow the default route."""
    facts = HostFacts((LO, replace(ETH0, addresses=held), ETH1, DOCKER), default)
    found = find_identity(CONFIG, facts, DUAL, (mac(1), mac(1)), OWN, "eth0")
    assert isinstance(found, Identity)
    assert (found.public_ip, found.public_ip6) == expected


def test_nothing_is_guessed_while_running() -> None:
    """An interface that is the only one with an address is not taken for that by a node that runs."""
    facts = HostFacts((LO, ETH0, DOCKER))
    found = find_identity(CONFIG, facts, DUAL, (mac(1), mac(1)), OWN, "eth0")
    assert found == "interface eth0 does not have the address 192.0.2.1 any more, and no other"
    assert isinstance(find_identity(CONFIG, facts, DUAL, (mac(1), mac(1)), OWN), Identity)


def test_a_told_address_is_never_changed() -> None:
    """With --public-ip the node waits for that address."""
    facts = HostFacts((LO, replace(ETH0, addresses=(NEW,))), ("eth0",))
    told = replace(CONFIG, public_ip=IP1)
    found = find_identity(told, facts, DUAL, (mac(1), mac(1)), OWN, "eth0")
    assert found == "no interface of this host has the address 192.0.2.1"


@pytest.mark.parametrize("is_own_first", [False, True])
def test_our_lease_that_moves_is_not_refused(is_own_first: bool) -> None:
    """Our rewritten lease is ours whichever comes first: the store's word of it, or our own."""
    reconciler = Reconciler(CONFIG, FACTS, is_leased=True)
    reconciler.apply(listed(lease(1), lease(2)), 0.0)
    reconciler.own_changed(lease(1), None, 0.0)
    moved = replace(lease(1), public_ip=NEW)
    reconciler.host_changed(HostFacts((LO, Interface("eth0", 2, 1500, (NEW,)))), 1.0)
    assert reconciler.reason == "no interface of this host has the address 192.0.2.1"
    actions = reconciler.own_changed(moved, None, 1.0) if is_own_first else []
    actions += reconciler.apply(put(2, moved), 1.0)
    actions += reconciler.own_changed(moved, None, 1.0)
    assert not [action for action in actions if isinstance(action, Alarm) and "refused" in action.text]
    assert reconciler.reason is None
    assert [view.entry.lease for view in reconciler.peers()] == [lease(2)]


def test_one_of_two_addresses_is_missing() -> None:
    """A node that publishes an address it does not have is not ready, and says so once; it works on."""
    reconciler = Reconciler(CONFIG, FACTS_DUAL, is_leased=True)
    reconciler.apply(listed(dual(1), network=DUAL), 0.0)
    reconciler.own_changed(OWN, None, 0.0)
    assert reconciler.reason is None
    actions = reconciler.host_changed(FACTS, 1.0)
    reason = "no interface of this host has the address 2001:db8::1"
    assert Alarm(reason) in actions
    assert reconciler.reason == reason
    assert reconciler.host_changed(FACTS, 2.0) == []
    reconciler.host_changed(FACTS_DUAL, 3.0)
    assert reconciler.reason is None


@pytest.mark.parametrize(("mtu", "is_told"), [(None, False), (1500, False), (1501, True)])
def test_backend_mtu_larger_than_the_interface_is_told(mtu: int | None, is_told: bool) -> None:
    """Backend.MTU is not followed by anything; one that cannot be right is a warning."""
    reconciler = Reconciler(CONFIG, FACTS)
    reconciler.apply(listed(lease(1), network=replace(NET, underlay_mtu=mtu)), 0.0)
    told = (f"Backend.MTU is {mtu}, interface eth0 has 1500: larger packets are lost",)
    assert reconciler.warnings() == (told if is_told else ())
