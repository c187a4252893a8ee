# SPDX-License-Identifier: Apache-2.0
"""The index of leases: by name and by subnet, through all that can happen to an entry."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network

import pytest

from dataplane import known, lease
from dataplane.known import Known
from dataplane.lease import Lessee
from dataplane.model import Entry, LeasePut, Listed
from tests.leases import NET, entry
from tests.leases import lease as a_lease

SUBNET = IPv4Network("10.244.1.0/24")


def rubbish(name: str, created: int) -> Entry:
    """Return what stands under a key without being a lease."""
    return Entry(name, None, "it is rubbish", created, created)


def test_claimants() -> None:
    """Who claims a subnet is found, the oldest first, also where the value is rubbish; nobody else is."""
    one, other = entry(a_lease(1)), entry(a_lease(2))
    bad = rubbish("10.244.1.0-24", 0)
    index = Known([other, replace(one, name="another name", created=7), bad])
    assert [found.name for found in index.claimants([SUBNET])] == ["10.244.1.0-24", "another name"]
    assert index.claimants([IPv4Network("10.244.9.0/24")]) == []
    index.drop("10.244.1.0-24")
    index.drop("never heard of")
    assert [found.name for found in index.claimants([SUBNET])] == ["another name"]
    assert index.get("another name") is not None
    index.drop("another name")
    assert index.claimants([SUBNET]) == []
    assert index.get("another name") is None
    assert list(index.values()) == [other]


def test_put_replaces() -> None:
    """An entry that claims something else now is not found by what it claimed before."""
    index = Known([replace(entry(a_lease(1)), name="x")])
    index.put(replace(entry(a_lease(2)), name="x"))
    assert index.claimants([SUBNET]) == []
    assert [found.name for found in index.claimants([IPv4Network("10.244.2.0/24")])] == ["x"]
    index.put(rubbish("no key at all", 1))
    assert len(list(index.values())) == 2


def test_event_does_not_ask_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """One changed lease among many costs our own lease a look at those that claim its subnet."""
    asked: list[str] = []

    def count(found: Entry) -> object:
        asked.append(found.name)
        return known.key_of(found)

    entries = [replace(entry(a_lease(number)), name=str(number)) for number in range(1, 251)]
    lessee = Lessee(lambda count: 0)
    lessee.apply(Listed(1, NET, tuple(entries)))
    lessee.written(replace(entries[0], changed=2))
    monkeypatch.setattr(lease, "key_of", count)
    lessee.apply(LeasePut(3, replace(entries[200], changed=3)))
    assert lessee.next_operation(0.0) is None
    assert len(asked) <= 2
