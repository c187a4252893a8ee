# SPDX-License-Identifier: Apache-2.0
"""What the underlay says of peers: what is believed, for how long, and what ends it."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest

from dataplane.icmp import IPIP, UDP, IcmpError, Trouble
from dataplane.model import Encap, Peer, SubnetEntry, Table
from dataplane.softstate import HOLD_S, SoftState, describe_said, is_relayed

US, ROUTER, PEER = IPv4Address("192.0.2.1"), IPv4Address("198.51.100.9"), IPv4Address("192.0.2.2")
NOW = 1000.0


def error(trouble: Trouble = Trouble.HOST_UNREACHABLE, protocol: int = UDP) -> IcmpError:
    """Return an error about one of our packets."""
    return IcmpError(trouble, ROUTER, US, PEER, protocol)


def entry(peer_id: int, third: int) -> SubnetEntry:
    """Return a subnet of a peer."""
    return SubnetEntry(IPv4Network(f"10.244.{third}.0/24"), peer_id, Encap.VXLAN, PEER, None)


TABLE = Table(peers=(Peer(1, (PEER,)),), subnets=(entry(1, 2), entry(2, 3), entry(1, 4)))


def nothing_came(_peer_id: int) -> int:
    """No packet has come from anybody."""
    return 0


def believing(now: float = NOW) -> SoftState:
    """Return a state in which peer 1 is believed to be unreachable."""
    state = SoftState()
    state.hear(1, error(), nothing_came, now)
    assert state.look(nothing_came, now)
    return state


# RFC 2003 section 4, item by item; what it does not know is as Linux's ipip has it.
RELAYED = {
    Trouble.NET_UNREACHABLE: (True, True),
    Trouble.HOST_UNREACHABLE: (True, True),
    Trouble.PROTOCOL_UNREACHABLE: (True, True),
    Trouble.PORT_UNREACHABLE: (False, True),
    Trouble.SOURCE_ROUTE: (False, False),
    Trouble.PROHIBITED: (True, True),
    Trouble.TOO_BIG: (False, False),
    Trouble.TIME_EXCEEDED: (True, True),
    Trouble.REASSEMBLY: (False, False),
    Trouble.PARAMETER: (False, False),
}


@pytest.mark.parametrize("trouble", Trouble, ids=lambda trouble: str(trouble.value))
def test_what_is_relayed(trouble: Trouble) -> None:
    """Of IPIP and of UDP, errors that mean "not reachable" are relayed, and the others are not."""
    assert (is_relayed(error(trouble, IPIP)), is_relayed(error(trouble))) == RELAYED[trouble]
    state = SoftState()
    state.hear(1, error(trouble), nothing_came, NOW)
    assert state.look(nothing_came, NOW) == RELAYED[trouble][1]


def test_a_belief_marks_the_subnets_of_its_peer() -> None:
    """All subnets of the peer are marked, those of others are not, and without a belief nothing is."""
    marked = believing().mark(TABLE)
    assert [entry.is_unreachable for entry in marked.subnets] == [True, False, True]
    assert marked.peers is TABLE.peers
    assert SoftState().mark(TABLE) is TABLE


def test_nothing_is_believed_before_a_look() -> None:
    """What is heard counts from the next look on, so that tables are not published for each error."""
    state = SoftState()
    state.hear(1, error(), nothing_came, NOW)
    assert state.mark(TABLE) is TABLE
    assert state.said(1) is None
    assert not state.is_idle


def test_a_belief_ends_by_itself() -> None:
    """It holds for 30 s, and not longer."""
    state = believing()
    assert not state.look(nothing_came, NOW + HOLD_S - 0.001)
    assert state.said(1) is not None
    assert state.look(nothing_came, NOW + HOLD_S)
    assert state.said(1) is None
    assert state.mark(TABLE) is TABLE
    assert state.is_idle


def test_a_belief_is_renewed() -> None:
    """Said again, it holds for 30 s from then on, and that is no change."""
    state = believing()
    state.hear(1, error(Trouble.TIME_EXCEEDED), nothing_came, NOW + 20)
    assert not state.look(nothing_came, NOW + HOLD_S + 10)
    said = state.said(1)
    assert said is not None
    assert describe_said(said, NOW + 23) == {"by": str(ROUTER), "says": "time exceeded", "age_s": 3.0}
    assert state.look(nothing_came, NOW + HOLD_S + 20)


def test_a_packet_from_the_peer_refutes_it() -> None:
    """What is said of a peer that sends to us is not believed, however often it is said, and others' is."""
    count = 0

    def something_came(peer_id: int) -> int:
        nonlocal count
        count += peer_id == 1
        return count if peer_id == 1 else 0

    state = SoftState()
    for second in range(100):
        state.hear(1, error(), something_came, NOW + second)
        state.hear(2, error(), something_came, NOW + second)
        assert state.look(something_came, NOW + second) == (second == 0)
        assert state.said(1) is None
        assert state.said(2) is not None


def test_a_belief_ends_when_the_peer_is_heard() -> None:
    """One packet is enough, and what is said after it is a new belief."""
    state = believing()
    assert state.look(lambda _: 1, NOW + 5)
    assert state.said(1) is None
    state.hear(1, error(), lambda _: 1, NOW + 6)
    assert state.look(lambda _: 1, NOW + 7)
    assert state.said(1) is not None


def test_who_is_no_peer_has_no_belief() -> None:
    """A refused lease has no id, and nothing is said of it."""
    assert believing().said(None) is None
