# SPDX-License-Identifier: Apache-2.0
"""flannel's keys in a key-value store: the network config and the leases, as events and as commands.

The first part is pure: it reads what stands in the store, whoever wrote it, and makes of every value either a
lease or a reason. Registry lists once and then follows; it resumes from the last revision it has seen, and
lists anew when the store does not keep the changes since then.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

from dataplane import flannel
from dataplane.errors import ConfigError, StoreError, one_line
from dataplane.model import (
    Entry,
    Event,
    Heard,
    Lease,
    LeaseDeleted,
    LeasePut,
    Listed,
    NetworkConfig,
    NetworkPut,
)
from dataplane.store.keyvalue import Compacted, KeyValue, Record, Snapshot

CONFIG = "config"
SUBNETS = "subnets/"
VALUE_MAX = 64 << 10  # bytes; flannel's longest value is well under one KiB
PROBLEM_MAX = 300  # characters of a reason that a stranger's value may fill
NO_NETWORK = "the store has no network yet; set one with: overlayd network set"


# --- pure -------------------------------------------------------------------------------------------------


def _load(text: str) -> object:
    """Parse JSON that anybody may have written; ValueError for whatever is wrong with it."""
    if len(text) > VALUE_MAX:
        raise ValueError(f"{len(text)} characters are too many; allowed are {VALUE_MAX}")
    try:
        return json.loads(text)
    except json.JSONDecodeError as err:
        raise ValueError(f"no valid JSON: {err.msg} (column {err.colno})") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValueError:
        raise ValueError("holds a number of more digits than anybody needs") from None


def _shorten(text: str) -> str:
    text = one_line(text)
    return text if len(text) <= PROBLEM_MAX else f"{text[:PROBLEM_MAX]}…"


def read_network(text: str | None) -> tuple[NetworkConfig | None, str | None]:
    """Read the network config, or say why there is none."""
    if text is None:
        return None, NO_NETWORK
    try:
        return flannel.parse_network(_load(text), strict=False), None
    except ValueError as err:
        return None, _shorten(f"the network in the store is unusable: {err}")


def read_entry(record: Record, now: float) -> Entry:
    """Read a lease, or say why it is none; `now` is CLOCK_MONOTONIC when the record was read."""
    name = record.key.removeprefix(SUBNETS)
    entry = Entry(
        name,
        None,
        created=record.created,
        changed=record.changed,
        expires_s=None if record.ttl_s is None else now + record.ttl_s,
    )
    try:
        key = flannel.parse_key(name)
        if name != flannel.format_key(key):  # two keys for one subnet would be two owners
            raise ValueError(f'"{name}" is no key; flannel writes {flannel.format_key(key)}')
        return replace(entry, lease=flannel.parse_lease(key, _load(record.value or ""), strict=False))
    except ValueError as err:
        return replace(entry, problem=_shorten(str(err)))


def read_list(snapshot: Snapshot, now: float) -> Listed:
    """Read all there is."""
    values = {record.key: record.value for record in snapshot.records}
    network, problem = read_network(values.get(CONFIG))
    entries = (read_entry(record, now) for record in snapshot.records if record.key.startswith(SUBNETS))
    return Listed(snapshot.revision, network, tuple(entries), problem, snapshot.identity, now)


def read_change(record: Record, now: float) -> Event | None:
    """Read one change; None if it concerns nothing of ours."""
    if record.key == CONFIG:
        return NetworkPut(record.changed, *read_network(record.value))
    if not record.key.startswith(SUBNETS):
        return None
    if record.value is None:
        return LeaseDeleted(record.changed, record.key.removeprefix(SUBNETS))
    return LeasePut(record.changed, read_entry(record, now))


# --- the shell --------------------------------------------------------------------------------------------


class Registry:
    """A lease store (store.LeaseStore) on top of any key-value store."""

    def __init__(
        self, keys: KeyValue, clock: Callable[[], float] = time.monotonic, *, is_remote: bool = False
    ) -> None:
        """Work on `keys`, which is ours from now on; nothing is read yet."""
        self._keys = keys
        self.is_remote = is_remote
        self._clock = clock
        self._revision: int | None = None  # everything up to here has been told
        self._is_list_due = False

    async def read(self) -> Listed:
        """Return all there is now."""
        return read_list(await self._keys.snapshot(), self._clock())

    async def read_config(self) -> tuple[str | None, int]:
        """Return the network config as it is written, and the revision of that; (None, 0) for none."""
        for record in (await self._keys.snapshot()).records:
            if record.key == CONFIG:
                return record.value, record.changed
        return None, 0

    async def events(self) -> AsyncIterator[Event | Heard]:
        """Yield a list and then every change; from where it was left, when it is called again."""
        start = None  # where the last list ended, as long as nothing followed it
        if self._is_list_due:
            self._is_list_due, self._revision = False, None
        if self._revision is not None:
            yield Heard(await self._keys.revision())
        while True:
            if self._revision is None:
                listed = await self.read()
                start = self._revision = listed.revision
                yield listed
            try:
                async for record in self._keys.watch(self._revision):
                    start, self._revision = None, max(self._revision, record.changed)
                    event = read_change(record, self._clock())
                    if event is not None:
                        yield event
            except Compacted:
                is_useless = start == self._revision
                self._revision = None
                if is_useless:  # another list would end the same way: let the caller wait first
                    raise

    async def put_config(self, text: str, expected: int) -> None:
        """Write the network config in place of that of revision `expected`, 0 for none."""
        await self._keys.put(CONFIG, text, None, expected)

    async def put(self, lease: Lease, ttl_s: float | None, expected: int) -> Entry:
        """Write a lease in place of that of revision `expected`, 0 for a new one (keyvalue.KeyValue.put).

        Raises keyvalue.Conflict.
        """
        value = flannel.lease_value(lease)
        check = read_entry(Record(SUBNETS + flannel.format_key(lease.key), value, 0, 0), 0.0)
        if check.lease is None:
            raise StoreError(
                f"the lease of {lease.key} is not written: nobody could read it: {check.problem}"
            )
        now = self._clock()  # before the store's own reckoning: rather too early than too late
        key = SUBNETS + flannel.format_key(lease.key)
        return read_entry(await self._keys.put(key, value, ttl_s, expected), now)

    async def delete(self, name: str, expected: int) -> int:
        """Delete a lease of revision `expected`; return the revision of that. Raises keyvalue.Conflict."""
        return await self._keys.delete(SUBNETS + name, expected)

    async def reopen(self) -> None:
        """Open the store anew, and list it with the next events()."""
        await self._keys.reopen()
        self._is_list_due = True

    async def close(self) -> None:
        """Let go of the store."""
        await self._keys.close()


def parse_config(text: str) -> tuple[NetworkConfig, str]:
    """Read a network config that a person wrote; return it, and as it is to be stored."""
    try:
        data = _load(text)
        return flannel.parse_network(data), json.dumps(data, separators=(",", ":"))
    except ValueError as err:
        raise ConfigError(one_line(str(err))) from None
