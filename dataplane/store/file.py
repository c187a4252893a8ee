# SPDX-License-Identifier: Apache-2.0
"""The `file` store: a network and its leases in one JSON file that people write, reloaded when it changes.

    {"network": {"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}},
     "leases": {"10.244.1.0/24": {"PublicIP": "192.0.2.1", "BackendType": "vxlan",
                                  "BackendData": {"VNI": 1, "VtepMAC": "02:00:00:00:00:01"}}}}

A file is taken whole or not at all: a broken edit is refused with its line, and what was in force stays.
parse_peers() is pure; FileStore reads, and lets PathWatch tell it when.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import stat
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from dataplane import flannel
from dataplane.errors import ConfigError, OverlaydError, StoreError, one_line
from dataplane.model import Address, Encap, Entry, Event, Lease, Listed, NetworkConfig, Rejected
from dataplane.store.watch import PathWatch, explain

FILE_MAX = 16 << 20  # bytes

Peers = tuple[NetworkConfig, tuple[Lease, ...]]
FieldPath = tuple[str, ...]
_TOKEN = re.compile(r'(?P<name>"[^"\\]*(?:\\.[^"\\]*)*")(?=\s*:)|"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\],]')


# --- pure -----------------------------------------------------------------------------------------------


def list_fields(text: str) -> Iterator[tuple[FieldPath, int]]:
    """Yield each field of valid JSON, by the names that lead to it, and the line on which it is written."""
    outer: list[str] = []  # the name that each open object or array has
    name, line, at = "", 1, 0
    for token in _TOKEN.finditer(text):
        line, at = line + text.count("\n", at, token.start()), token.start()
        if token["name"]:
            name = json.loads(token["name"])
            yield (*outer[1:], name), line
        elif token[0] in "{[":
            outer.append(name)
        elif token[0] in "}]":
            outer.pop()
        if token[0] in "[,":
            name = f"#{at}"  # an element of an array is nobody's namesake


def find_line(text: str, path: FieldPath, reason: str = "") -> int | None:
    """Return the line of the innermost field, at `path` or below, that a reason names; None for no field."""
    lines: dict[FieldPath, int] = {}
    for found, line in list_fields(text):
        if found[: len(path)] == path:
            lines.setdefault(found, line)
    is_prefixed = path and reason.lower().startswith(path[-1].lower())
    plain = (reason[len(path[-1]) :] if is_prefixed else reason).partition(";")[0]
    for quoted, word in re.findall(r'"([^"]*)"|(\w+)', plain):
        named = (quoted or word).lower()
        inner = (
            found
            for found in lines
            if found[:-1] == path and found[-1].lower() == named  # as JSON in Go
        )
        path = next(inner, path)
    return lines.get(path)


def find_duplicate(text: str) -> tuple[str, int]:
    """Return the name and the line of the first field that is written a second time in its object."""
    seen: set[FieldPath] = set()
    for path, line in list_fields(text):
        if path in seen:
            return path[-1], line
        seen.add(path)
    raise AssertionError("called for a text without duplicates")


class _Duplicate(ValueError):
    """A field is written twice in one object."""


def _refuse_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields: dict[str, object] = {}
    for name, value in pairs:
        if name in fields:
            raise _Duplicate
        fields[name] = value
    return fields


def _field_of(address: Address) -> str:
    return "PublicIP" if address.version == 4 else "PublicIPv6"


def _check_within(lease: Lease, network: NetworkConfig) -> None:
    pairs = ((lease.key.subnet, network.network), (lease.key.subnet6, network.network6))
    for subnet, whole in pairs:
        if subnet is None:
            continue
        if whole is None:
            raise ValueError(f"{subnet}: the network has no IPv{subnet.version}")
        if not (subnet.version == whole.version and subnet.subnet_of(whole)):  # type: ignore[arg-type]
            raise ValueError(f"{subnet} is outside the network {whole}")
        if subnet == whole:
            raise ValueError(f"{subnet} is the whole network; a subnet is a part of it")
    for address in lease.public_ips():
        whole = network.network if address.version == 4 else network.network6
        if whole is not None and address in whole:
            raise ValueError(f"{_field_of(address)} {address} lies inside the overlay network {whole}")


def _check_backend(lease: Lease, network: NetworkConfig) -> None:
    if lease.encap is not Encap.VXLAN:
        return
    if lease.vni is not None and lease.vni != network.vni:
        raise ValueError(f"BackendData.VNI {lease.vni} is not the network's VNI {network.vni}")


class _Unique:
    """Subnets and addresses seen so far; each may belong to one lease."""

    def __init__(self) -> None:
        self._addresses: dict[Address, str] = {}
        self._subnets: dict[int, list[tuple[int, int, str]]] = {4: [], 6: []}

    def add(self, key: str, lease: Lease) -> None:
        """Note a lease under the key it is written with, or say which earlier one it collides with."""
        for address in lease.public_ips():
            other = self._addresses.setdefault(address, key)
            if other != key:
                raise ValueError(f"{_field_of(address)} {address} is also that of {other}")
        for subnet in lease.key.subnets():
            span = (int(subnet.network_address), int(subnet.broadcast_address), key)
            self._subnets[subnet.version].append(span)

    def check_overlaps(self) -> None:
        """Say which two subnets overlap, if any do."""
        for spans in self._subnets.values():
            spans.sort(key=lambda span: span[:2])
            for (_, last, one), (first, _, two) in itertools.pairwise(spans):
                if first <= last:
                    raise _Overlap(one, two)


class _Overlap(ValueError):
    """Two subnets overlap."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{two} overlaps {one}")
        self.key = two


def _parse_leases(
    data: object, network: NetworkConfig, text: str, name: str, field: str
) -> tuple[Lease, ...]:
    if not isinstance(data, dict):
        reason = f"leases: expected an object, not {flannel.describe_type(data)}"
        raise ConfigError(_at_line(name, text, (field,), reason))
    unique = _Unique()
    leases = []
    for key, value in data.items():
        try:
            lease = flannel.parse_lease(flannel.parse_key(key), value, key)
            _check_within(lease, network)
            _check_backend(lease, network)
            unique.add(key, lease)
        except ValueError as err:
            raise ConfigError(_at_line(name, text, (field, key), str(err))) from None
        leases.append(lease)
    try:
        unique.check_overlaps()
    except _Overlap as err:
        raise ConfigError(_at_line(name, text, (field, err.key), str(err))) from None
    return tuple(leases)


def _at_line(name: str, text: str, path: FieldPath, reason: str) -> str:
    line = find_line(text, path, reason)
    return _one_line(name, line, reason)


def _one_line(name: str, line: int | None, reason: str) -> str:
    return one_line(f"{name}: {reason}" if line is None else f"{name} line {line}: {reason}")


def parse_peers(text: str, name: str = "peers.json") -> Peers:
    """Read a peers file, or say file, line and reason.

    StoreError: it is damaged, no JSON at all. ConfigError: what its author wrote is wrong.
    """
    try:
        data = json.loads(text, object_pairs_hook=_refuse_duplicates)
    except _Duplicate:
        field, line = find_duplicate(text)
        raise ConfigError(_one_line(name, line, f'"{field}" is given twice')) from None
    except json.JSONDecodeError as err:
        raise StoreError(f"{name} line {err.lineno}: no valid JSON: {err.msg} (column {err.colno})") from None
    except RecursionError:
        raise StoreError(f"{name}: nested too deeply") from None
    except ValueError:  # Python's limit
        raise StoreError(f"{name}: holds a number of more digits than anybody needs") from None
    try:
        fields = flannel.fold_names(data, ("network", "leases"), "file", strict=True)
        if "network" not in fields:
            raise ValueError('file: "network" is missing')
    except ValueError as err:
        raise ConfigError(_at_line(name, text, (), str(err))) from None
    written = {field.lower(): field for field in data}
    try:
        network = flannel.parse_network(fields["network"])
    except ValueError as err:
        raise ConfigError(_at_line(name, text, (written["network"],), str(err))) from None
    return network, _parse_leases(fields.get("leases", {}), network, text, name, written.get("leases", ""))


# --- the shell ------------------------------------------------------------------------------------------


class FileStore:
    """The store behind file:///path."""

    is_remote = False

    def __init__(self, path: Path) -> None:
        """Name the file; it is read by events()."""
        self._path = path
        self._watch: PathWatch | None = None
        self._changed = asyncio.Event()
        self._revision = 0
        self._peers: Peers | None = None

    def _read(self) -> Peers:
        """Read and parse the file; raises what parse_peers() does, and StoreError if it cannot be read."""
        try:
            if not stat.S_ISREG(self._path.stat().st_mode):
                raise StoreError(f"{self._path} is no regular file")
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            with os.fdopen(fd, "rb") as file:
                raw = file.read(FILE_MAX + 1)
        except OSError as err:
            raise StoreError(f"cannot read {self._path}: {err.strerror}") from None
        if len(raw) > FILE_MAX:
            raise StoreError(f"{self._path} is larger than {FILE_MAX >> 20} MiB")
        try:
            return parse_peers(raw.decode("utf-8-sig"), self._path.name)
        except UnicodeDecodeError as err:
            line = raw.count(b"\n", 0, err.start) + 1
            raise StoreError(f"{self._path.name} line {line}: no valid UTF-8") from None

    def _follow(self) -> None:
        if self._watch is not None and self._watch.has_failed:
            self._stop_watching()
        try:
            if self._watch is None:
                self._watch = PathWatch(self._path)
                asyncio.get_running_loop().add_reader(self._watch.fileno(), self._drain)
            self._watch.follow()
        except OSError as err:
            raise StoreError(f"cannot watch {self._path}: {explain(err)}") from None

    def _drain(self) -> None:
        assert self._watch is not None
        if self._watch.drain():
            self._changed.set()

    def _load(self) -> Listed:
        """Read the file; what changes after that sets `_changed`."""
        self._follow()
        peers = self._read()
        if peers != self._peers:
            self._revision += 1
            self._peers = peers
        network, leases = peers
        entries = tuple(Entry(flannel.format_key(lease.key), lease) for lease in leases)
        return Listed(self._revision, network, entries, read_s=time.monotonic())

    async def events(self) -> AsyncIterator[Event]:
        """Yield what the file says, then each change of it, and why an edit was refused."""
        await self.close()
        self._peers = None
        said: Event = self._load()
        yield said
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                event: Event = self._load()
            except OverlaydError as err:
                event = Rejected(self._revision, str(err))
            if event != said:
                said = event
                yield event

    async def reopen(self) -> None:
        """Check that the file can be read, as the next events() will."""
        self._read()

    async def close(self) -> None:
        """Stop watching."""
        self._stop_watching()

    def _stop_watching(self) -> None:
        if self._watch is not None:
            asyncio.get_running_loop().remove_reader(self._watch.fileno())
            self._watch.close()
            self._watch = None
