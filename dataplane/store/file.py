# SPDX-License-Identifier: Apache-2.0
"""The `file` store: a network and its leases in one JSON file that people write, reloaded when it changes.

    {"network": {"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}},
     "leases": {"10.244.1.0/24": {"PublicIP": "192.0.2.1", "BackendType": "vxlan",
                                  "BackendData": {"VNI": 1, "VtepMAC": "02:00:00:00:00:01"}}}}

A file is taken whole or not at all: a broken edit is refused with its line, and what was in force stays.
parse_peers() is pure; FileStore reads, and watches the directory (editors replace files by renaming).
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import stat
from collections.abc import AsyncIterator
from pathlib import Path

from inotify_simple import INotify, flags

from dataplane import flannel
from dataplane.errors import ConfigError, OverlaydError, StoreError
from dataplane.model import Address, Encap, Event, Lease, Listed, NetworkConfig, Rejected

FILE_MAX = 16 << 20  # bytes
WATCHED = (
    flags.CLOSE_WRITE | flags.MOVED_TO | flags.MOVED_FROM | flags.DELETE | flags.DELETE_SELF | flags.MOVE_SELF
)

Peers = tuple[NetworkConfig, tuple[Lease, ...]]


# --- pure -----------------------------------------------------------------------------------------------


def find_line(text: str, name: str) -> int | None:
    """Return the line on which a field of that name is first written."""
    match = re.search(re.escape(json.dumps(name, ensure_ascii=False)) + r"\s*:", text)
    return text.count("\n", 0, match.start()) + 1 if match else None


class _Duplicate(ValueError):
    """A field is written twice in one object."""

    def __init__(self, name: str) -> None:
        super().__init__(f'"{name}" is given twice')
        self.name = name


def _refuse_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields: dict[str, object] = {}
    for name, value in pairs:
        if name in fields:
            raise _Duplicate(name)
        fields[name] = value
    return fields


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
            raise ValueError(f"PublicIP {address} lies inside the overlay network {whole}")


def _check_backend(lease: Lease, network: NetworkConfig) -> None:
    if lease.encap is not Encap.VXLAN:
        return
    if lease.vni is not None and lease.vni != network.vni:
        raise ValueError(f"BackendData.VNI {lease.vni} is not the network's VNI {network.vni}")


class _Unique:
    """Subnets and addresses seen so far; each may belong to one lease."""

    def __init__(self) -> None:
        self._addresses: dict[Address, Lease] = {}
        self._subnets: dict[int, list[tuple[int, int, Lease]]] = {4: [], 6: []}

    def add(self, lease: Lease) -> None:
        """Note a lease, or say which earlier one it collides with."""
        for address in lease.public_ips():
            other = self._addresses.setdefault(address, lease)
            if other is not lease:
                raise ValueError(f"PublicIP {address} is also that of {other.key}")
        for subnet in lease.key.subnets():
            span = (int(subnet.network_address), int(subnet.broadcast_address), lease)
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

    def __init__(self, one: Lease, two: Lease) -> None:
        super().__init__(f"{two.key} overlaps {one.key}")
        self.name = str(two.key)


def _parse_leases(data: object, network: NetworkConfig, text: str, name: str) -> tuple[Lease, ...]:
    if not isinstance(data, dict):
        raise ConfigError(f"{name}: leases: expected an object, not {flannel.describe_type(data)}")
    unique = _Unique()
    leases = []
    for key, value in data.items():
        try:
            lease = flannel.parse_lease(flannel.parse_key(key), value, key)
            _check_within(lease, network)
            _check_backend(lease, network)
            unique.add(lease)
        except ValueError as err:
            raise ConfigError(_at_line(name, text, key, str(err))) from None
        leases.append(lease)
    try:
        unique.check_overlaps()
    except _Overlap as err:
        raise ConfigError(_at_line(name, text, err.name, str(err))) from None
    return tuple(leases)


def _at_line(name: str, text: str, field: str, reason: str) -> str:
    line = find_line(text, field)
    reason = "".join(char if char.isprintable() else repr(char)[1:-1] for char in reason)  # one line
    return f"{name}: {reason}" if line is None else f"{name} line {line}: {reason}"


def parse_peers(text: str, name: str = "peers.json") -> Peers:
    """Read a peers file, or say file, line and reason.

    StoreError: it is damaged, no JSON at all. ConfigError: what its author wrote is wrong.
    """
    try:
        data = json.loads(text, object_pairs_hook=_refuse_duplicates)
    except _Duplicate as err:
        raise ConfigError(_at_line(name, text, err.name, str(err))) from None
    except json.JSONDecodeError as err:
        raise StoreError(f"{name} line {err.lineno}: no valid JSON: {err.msg} (column {err.colno})") from None
    except RecursionError:
        raise StoreError(f"{name}: nested too deeply") from None
    except ValueError as err:
        raise StoreError(f"{name}: {err}") from None
    try:
        fields = flannel.fold_names(data, ("network", "leases"), "file", strict=True)
        if "network" not in fields:
            raise ValueError('file: "network" is missing')
        network = flannel.parse_network(fields["network"])
    except ValueError as err:
        named = re.search(r'"([^"]+)"|\.(\w+)', str(err))
        field = (named[1] or named[2]) if named else "network"
        raise ConfigError(_at_line(name, text, field, str(err))) from None
    return network, _parse_leases(fields.get("leases", {}), network, text, name)


# --- the shell ------------------------------------------------------------------------------------------


class FileStore:
    """The store behind file:///path."""

    is_preassigned = True

    def __init__(self, path: Path) -> None:
        """Name the file; it is read by events()."""
        self._path = path
        self._inotify: INotify | None = None
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

    def _watch(self) -> None:
        try:
            self._inotify = INotify(nonblocking=True)
            self._inotify.add_watch(self._path.parent, WATCHED)
        except OSError as err:
            raise StoreError(f"cannot watch {self._path.parent}: {err.strerror}") from None
        asyncio.get_running_loop().add_reader(self._inotify.fileno(), self._drain)

    def _drain(self) -> None:
        """Take all that inotify has to tell; what concerns other files of the directory is nothing to us."""
        assert self._inotify is not None
        names = {event.name for event in self._inotify.read(timeout=0)}
        # A link may lead through any name here: Kubernetes swaps `..data`, to which its files are links.
        if names & {"", self._path.name} or self._path.is_symlink():
            self._changed.set()

    def _load(self) -> Event | None:
        """Read the file again; None if nothing changed in what it says."""
        try:
            peers = self._read()
        except OverlaydError as err:
            return Rejected(self._revision, str(err))
        if peers == self._peers:
            return None
        self._revision += 1
        self._peers = peers
        return Listed(self._revision, *peers)

    async def events(self) -> AsyncIterator[Event]:
        """Yield what the file says, then each change of it, and why an edit was refused."""
        await self.close()
        self._watch()
        self._peers = self._read()
        self._revision += 1
        event: Event | None = Listed(self._revision, *self._peers)
        was_rejected = False
        while True:
            if event is None and was_rejected and self._peers is not None:
                event = Listed(self._revision, *self._peers)  # mended to what was in force all along
            if event is not None:
                was_rejected = isinstance(event, Rejected)
                yield event
            await self._changed.wait()
            self._changed.clear()
            event = self._load()

    async def close(self) -> None:
        """Stop watching."""
        if self._inotify is not None:
            asyncio.get_running_loop().remove_reader(self._inotify.fileno())
            self._inotify.close()
            self._inotify = None
