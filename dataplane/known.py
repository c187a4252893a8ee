# SPDX-License-Identifier: Apache-2.0
"""The leases of a store as we know them, found by name or by what they claim. Pure."""

from __future__ import annotations

from collections.abc import Iterable, ValuesView

from dataplane.flannel import parse_key
from dataplane.model import Entry, Network, SubnetKey


def key_of(entry: Entry) -> SubnetKey | None:
    """Return what a lease claims by its key, also if its value is rubbish; None if the key is, too."""
    if entry.lease is not None:
        return entry.lease.key
    try:
        return parse_key(entry.name)
    except ValueError:
        return None


class Known:
    """Entries by name; who claims a subnet is known without asking each of them."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        """Know these; of two of one name the later one."""
        self._entries: dict[str, Entry] = {}
        self._claimants: dict[Network, tuple[str, ...]] = {}
        for entry in entries:
            self.put(entry)

    def get(self, name: str) -> Entry | None:
        """Return the entry of that name, if there is one."""
        return self._entries.get(name)

    def values(self) -> ValuesView[Entry]:
        """Return all entries."""
        return self._entries.values()

    def claimants(self, subnets: Iterable[Network]) -> list[Entry]:
        """Return the entries that claim exactly one of some subnets, the oldest first."""
        names = {name for subnet in subnets for name in self._claimants.get(subnet, ())}
        return sorted((self._entries[name] for name in names), key=lambda entry: (entry.created, entry.name))

    def put(self, entry: Entry) -> None:
        """Know an entry, instead of another of its name."""
        self.drop(entry.name)
        self._entries[entry.name] = entry
        for subnet in _subnets_of(entry):
            self._claimants[subnet] = (*self._claimants.get(subnet, ()), entry.name)

    def drop(self, name: str) -> None:
        """Know an entry no more."""
        entry = self._entries.pop(name, None)
        if entry is None:
            return
        for subnet in _subnets_of(entry):
            others = tuple(other for other in self._claimants.pop(subnet) if other != name)
            if others:
                self._claimants[subnet] = others


def _subnets_of(entry: Entry) -> tuple[Network, ...]:
    key = key_of(entry)
    return () if key is None else key.subnets()
