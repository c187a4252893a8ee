# SPDX-License-Identifier: Apache-2.0
"""What a node knew last, in one file of the state directory: it can start from that when its store is away.

    overlayd-last-state 1 SHA-256-OF-THE-REST
    {"store": …, "network": …, "own": …, "peers": [[NAME, LEASE, CREATED, CHANGED, EXPIRES], …], …}

The first line names format and checksum, so a file that was cut off, damaged or half-written is no state.
What is in it is read as strictly as what is in a store: anybody may have written it. Leases of peers are read
when they are needed, which is seldom, and takes a while for many; then one bad lease spoils all. Ends of
leases are by the wall clock, since no other survives a reboot; it may have been set meanwhile.

All is pure but load(), save() and forget().
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Container, Iterable
from dataclasses import dataclass
from pathlib import Path

from dataplane import flannel
from dataplane.alloc import overlap
from dataplane.config import RunConfig
from dataplane.errors import RuntimeFailure
from dataplane.model import Entry, Lease, NetworkConfig
from dataplane.rundir import failure, write_atomically
from dataplane.store.keyvalue import Record
from dataplane.store.registry import SUBNETS, read_entry

NAME = "last-state"
MAGIC = "overlayd-last-state"
FORMAT = 1
BYTES_MAX = 64 << 20  # 131072 peers are about 30 MiB
FIELDS = ("store", "written", "identity", "revision", "network", "own", "peers")
SOME_TIME = 0  # of the end of a lease: it has one, and nobody told when


@dataclass(frozen=True, slots=True)
class StoreName:
    """Which store it is, as far as flags tell: where it is, and below which key."""

    places: tuple[str, ...]
    prefix: str = ""

    def is_same(self, other: StoreName) -> bool:
        """Return whether two names are of one store: etcd has several places, of which some may go."""
        return self.prefix == other.prefix and not set(self.places).isdisjoint(other.places)

    def __str__(self) -> str:
        return f"{','.join(self.places)}{self.prefix}"


def name_store(config: RunConfig) -> StoreName:
    """Name the store that a configuration means."""
    if config.store == "etcd":
        return StoreName(config.etcd_endpoints, config.etcd_prefix)
    return StoreName((config.store,))


@dataclass(frozen=True, slots=True)
class Clocks:
    """One moment by two clocks."""

    monotonic_s: float
    wall_s: float


Row = list[object]  # of a peer's lease: name, flannel's value, revisions, end


@dataclass(frozen=True, slots=True)
class LastState:
    """What was in force, and the store said so."""

    store: StoreName
    written_s: float  # by the wall clock
    identity: str  # of the store, by its own account
    revision: int
    network: NetworkConfig
    own: Entry
    peers: tuple[Row, ...]

    def names(self) -> frozenset[str]:
        """Return what the leases of the peers are called."""
        return frozenset(str(row[0]) for row in self.peers)


# --- pure -----------------------------------------------------------------------------------------------


def format_state(state: LastState, clocks: Clocks) -> str:
    """Return the text of a state."""
    body = {
        "store": [list(state.store.places), state.store.prefix],
        "written": state.written_s,
        "identity": state.identity,
        "revision": state.revision,
        "network": flannel.network_value(state.network),
        "own": _write_entry(state.own, clocks),
        "peers": state.peers,
    }
    text = json.dumps(body, separators=(",", ":")) + "\n"
    return f"{MAGIC} {FORMAT} {hashlib.sha256(text.encode()).hexdigest()}\n{text}"


def write_peers(entries: Iterable[Entry], clocks: Clocks) -> tuple[Row, ...]:
    """Return leases as they are kept."""
    return tuple(_write_entry(entry, clocks) for entry in entries)


def _write_entry(entry: Entry, clocks: Clocks) -> Row:
    assert entry.lease is not None
    ends: float | None = None
    if entry.expires_s is not None:
        offset_s = clocks.wall_s - clocks.monotonic_s
        ends = round(entry.expires_s + offset_s, 3) if math.isfinite(entry.expires_s) else SOME_TIME
    return [entry.name, _write_lease(entry.lease), entry.created, entry.changed, ends]


def _write_lease(lease: Lease) -> str:
    """Return flannel's value; it says no VNI where the lease says none."""
    text = flannel.lease_value(lease)
    return text if lease.vni is not None else text.replace('"VNI":1,', "")


def parse_state(raw: bytes, clocks: Clocks) -> LastState:
    """Read a state; ValueError says what is wrong with it."""
    head, _, text = raw.partition(b"\n")
    if not head.startswith(MAGIC.encode()):
        raise ValueError("it is no state of overlayd")
    if head.split(b" ")[1:2] != [str(FORMAT).encode()]:
        raise ValueError(f"it is of another format; this overlayd knows {FORMAT}")
    if head != f"{MAGIC} {FORMAT} {hashlib.sha256(text).hexdigest()}".encode():
        raise ValueError("it is damaged")
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("it is no JSON") from None
    return _read_body(body, clocks)


def _read_body(body: object, clocks: Clocks) -> LastState:
    fields = flannel.fold_names(body, FIELDS, "state", strict=True)
    if missing := [name for name in FIELDS if name not in fields]:
        raise ValueError(f'state: "{missing[0]}" is missing')
    network = flannel.parse_network(fields["network"])
    peers = fields["peers"]
    if not isinstance(peers, list):
        raise ValueError("peers: expected a list")
    own, rows = _read_entry(fields["own"], clocks), tuple(map(_read_row, peers))
    if len({own.name, *(row[0] for row in rows)}) != 1 + len(rows):
        raise ValueError("a lease stands in it twice")
    assert own.lease is not None
    if not all(any(overlap(net, whole) for whole in network.networks()) for net in own.lease.key.subnets()):
        raise ValueError(f"our lease {own.name} is not of its network")
    return LastState(
        _read_store(fields["store"]),
        _read_time(fields["written"]),
        flannel.read_text(fields["identity"], "identity"),
        flannel.read_int(fields["revision"], "revision", 0, 1 << 63),
        network,
        own,
        rows,
    )


def read_peers(state: LastState, clocks: Clocks, names: Container[str] | None = None) -> tuple[Entry, ...]:
    """Read the leases of peers, of all or of some; ValueError says what is wrong with one."""
    rows = state.peers if names is None else (row for row in state.peers if row[0] in names)
    return tuple(_read_entry(row, clocks) for row in rows)


def _read_store(value: object) -> StoreName:
    if not isinstance(value, list) or len(value) != 2 or not isinstance(value[0], list):
        raise ValueError("store: expected places and a prefix")
    places = tuple(flannel.read_text(place, "store") for place in value[0])
    return StoreName(places, flannel.read_text(value[1], "store"))


def _read_time(value: object) -> float:
    """Read seconds of the wall clock."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1 << 40:
        raise ValueError("a time is none")
    return float(value)


def _read_row(value: object) -> Row:
    if not isinstance(value, list) or len(value) != 5 or not isinstance(value[0], str):
        raise ValueError("a lease is none")
    return value


def _read_entry(value: object, clocks: Clocks) -> Entry:
    name, text, created, changed, ends = _read_row(value)
    record = Record(
        SUBNETS + flannel.read_text(name, "lease"),
        flannel.read_text(text, "lease"),
        flannel.read_int(created, "lease", 0, 1 << 63),
        flannel.read_int(changed, "lease", 0, 1 << 63),
        _read_left(ends, clocks),
    )
    entry = read_entry(record, clocks.monotonic_s)
    if entry.lease is None:
        raise ValueError(f"{entry.title}: {entry.problem}")
    return entry


def _read_left(value: object, clocks: Clocks) -> float | None:
    """Return what a lease has to live."""
    if value is None:
        return None
    ends_s = _read_time(value)
    return math.inf if ends_s == SOME_TIME else ends_s - clocks.wall_s


# --- the shell --------------------------------------------------------------------------------------------


def load(path: Path, clocks: Clocks) -> LastState | None:
    """Read the file; None if there is none, RuntimeFailure if it cannot be used."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as err:
        raise failure("read", path, err) from None
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise RuntimeFailure(f"{path} is no regular file")
        if found.st_uid != os.geteuid() or found.st_mode & 0o022:
            raise RuntimeFailure(f"{path} can be written to by others. Fix: remove it")
        with os.fdopen(fd, "rb", closefd=False) as file:
            raw = file.read(BYTES_MAX + 1)
    finally:
        os.close(fd)
    if len(raw) > BYTES_MAX:
        raise RuntimeFailure(f"{path} is larger than {BYTES_MAX >> 20} MiB")
    try:
        return parse_state(raw, clocks)
    except ValueError as err:
        raise RuntimeFailure(f"{path}: {err}") from None


def save(path: Path, state: LastState, clocks: Clocks) -> None:
    """Write the file: a crash at any moment leaves the old state or the new one."""
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as err:
        raise failure("make state directory", path.parent, err) from None
    write_atomically(path, format_state(state, clocks), 0o600)


def forget(path: Path) -> None:
    """Remove the file: what it says is not to be relied on any more."""
    path.unlink(missing_ok=True)
