# SPDX-License-Identifier: Apache-2.0
"""Leases that wait until they may count: what became of them meanwhile is what they are then."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dataplane.gate import Scene
from dataplane.model import Encap, Entry
from dataplane.peers import Peers
from tests.leases import NET, entry, lease

SCENE = Scene(NET, lease(1), frozenset(), frozenset({Encap.VXLAN}), is_leased=True)
A, B, C = (entry(lease(number), created=number) for number in (2, 3, 4))


def held(found: Entry) -> Entry:
    """Return a lease as one that is only held."""
    return replace(found, is_held=True)


class Few:
    """Peers of which one may be."""

    def __init__(self, *entries: Entry) -> None:
        """Take them one after the other."""
        self.peers = Peers((), 1)
        self.put(*entries)

    def put(self, *entries: Entry) -> None:
        """Take new or changed leases."""
        for each in entries:
            self.peers.put(each)
            self.peers.judge(SCENE, 0.0)

    def remove(self, found: Entry) -> None:
        """Take that a lease is gone."""
        self.peers.remove(found.name)
        self.peers.judge(SCENE, 0.0)

    def counts(self) -> list[str]:
        """Return whose leases count, as the table has them, too."""
        found = list(self.peers.in_force())
        assert len(self.peers.peers()) == len(self.peers.subnets()) == len(found)
        return found


def test_gone_while_it_waited() -> None:
    """A lease that went while it waited takes no place when there is one: the next that is there does."""
    few = Few(A, B, C)
    assert few.counts() == [A.name]
    few.remove(B)
    assert few.peers.count_waiting() == 1
    few.remove(A)
    assert few.counts() == [C.name]
    assert few.peers.count_waiting() == 0


@pytest.mark.timeout(20)
def test_held_while_it_waited() -> None:
    """Of two that are only held neither makes room for the other, whatever they were when they came."""
    few = Few(A, B)
    few.put(held(B), held(A))
    assert few.counts() == [A.name]
    few.put(C)
    assert few.counts() == [C.name]
    few.remove(C)
    assert len(few.counts()) == 1


def test_alive_again_while_it_waited() -> None:
    """A lease that was held while it waited and lives again takes the place of one that is held."""
    few = Few(A, held(B), B)
    assert few.counts() == [A.name]
    few.put(held(A))
    assert few.counts() == [B.name]
