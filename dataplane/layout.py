# SPDX-License-Identifier: Apache-2.0
"""The table's values as bytes: struct dp_peer, dp_subnet and dp_prefix of csrc/dp.h.

Packed here because a field-by-field copy through cffi takes 20 times as long; native.py checks the sizes.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Generic, TypeVar

from dataplane.errors import ControlError
from dataplane.model import Address, Encap, MacAddress, Network, Peer, SubnetEntry

PEER = struct.Struct("=B16sB16s2xI")
SUBNET = struct.Struct("=B16sBB6sB16s?xII")
PREFIX = struct.Struct("=B16sB")

BLOCK = 4096  # values compared at a time
PATCH_MAX = 100  # values that differ; with more of them all are packed

_NO_ADDR = (0, b"")

T = TypeVar("T")


def pack_peer(peer: Peer) -> bytes:
    """Return the struct dp_peer; a peer has at most one address per family."""
    if len(peer.addresses) == 1 and isinstance(only := peer.addresses[0], IPv4Address):
        return PEER.pack(4, only.packed, 0, b"", peer.id)  # nearly always
    addr4 = addr6 = _NO_ADDR
    for address in peer.addresses:
        if address.version == 4:
            addr4 = (4, address.packed)
        else:
            addr6 = (6, address.packed)
    return PEER.pack(*addr4, *addr6, peer.id)


def pack_subnet(entry: SubnetEntry) -> bytes:
    """Return the struct dp_subnet."""
    net, vtep = entry.prefix, entry.vtep
    return SUBNET.pack(
        4 if isinstance(net, IPv4Network) else 6,  # quicker than to ask for its version
        net.network_address.packed,
        net.prefixlen,
        entry.encap,
        b"" if entry.vtep_mac is None else entry.vtep_mac.octets,
        4 if isinstance(vtep, IPv4Address) else 6,
        vtep.packed,
        entry.is_unreachable,
        entry.peer_id,
        entry.mtu,
    )


def pack_prefix(net: Network) -> bytes:
    """Return the struct dp_prefix."""
    return PREFIX.pack(net.version, net.network_address.packed, net.prefixlen)


def pack_prefixes(nets: Iterable[Network]) -> bytes:
    """Return an array of struct dp_prefix in order of their bytes."""
    return b"".join(sorted(map(pack_prefix, nets)))


class Records(Generic[T]):
    """Values as an array of records in order of their bytes; the next ones are mostly those it holds.

    Only what is not there already is packed, so a table with one peer changed costs a comparison and a copy.
    """

    def __init__(self, pack: Callable[[T], bytes], width: int) -> None:
        """Begin with no values; `pack` makes `width` bytes of each."""
        self._pack = pack
        self._width = width
        self._values: tuple[T, ...] = ()
        self._data = bytearray()

    def update(self, values: tuple[T, ...]) -> bytearray:
        """Take other values; return their records, which are good until the next update."""
        gone, come = _find_changed(self._values, values)
        if len(gone) + len(come) > PATCH_MAX:
            self._data = bytearray().join(sorted(map(self._pack, values)))
        else:
            old, new = [*map(self._pack, gone)], [*map(self._pack, come)]
            for record in old:
                at = self._find(record)
                del self._data[at : at + self._width]
            for record in new:
                at = self._find(record)
                self._data[at:at] = record
        self._values = values
        return self._data

    def _find(self, record: bytes) -> int:
        """Return where a record is, or belongs."""
        data, width = self._data, self._width
        rows = range(len(data) // width)
        return width * bisect_left(rows, record, key=lambda i: bytes(data[i * width : (i + 1) * width]))


def _find_changed(old: tuple[T, ...], new: tuple[T, ...]) -> tuple[tuple[T, ...], tuple[T, ...]]:
    """Return what of the old values is gone, and what of the new ones was not there; or more of both."""
    if len(old) != len(new):
        head = _count_same(old, new)
        tail = _count_same(old[head:][::-1], new[head:][::-1])
        return old[head : len(old) - tail], new[head : len(new) - tail]
    # By blocks: comparing tuples of the same objects takes 2 ns for each.
    blocks = ((old[at : at + BLOCK], new[at : at + BLOCK]) for at in range(0, len(old), BLOCK))
    pairs = [pair for a, b in blocks if a != b for pair in zip(a, b, strict=True) if pair[0] is not pair[1]]
    return tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs)


def _count_same(old: tuple[T, ...], new: tuple[T, ...]) -> int:
    """Return how many values of both are equal before the first that are not."""
    most = min(len(old), len(new))
    for at in range(0, most, BLOCK):
        end = min(at + BLOCK, most)
        if old[at:end] != new[at:end]:
            return next(i for i in range(at, end) if old[i] != new[i])
    return most


def read_addr(family: int, octets: bytes) -> Address | None:
    """Read family and bytes of a struct dp_addr."""
    if family == 4:
        return IPv4Address(octets[:4])
    return IPv6Address(octets) if family == 6 else None


def read_mac(octets: bytes) -> MacAddress | None:
    """Read a MAC address; all zeros mean none."""
    return MacAddress(octets) if any(octets) else None


def unpack_peers(data: bytes) -> tuple[Peer, ...]:
    """Read an array of struct dp_peer; what is said of one peer in several places is put together."""
    peers: dict[int, tuple[Address, ...]] = {}
    for family4, addr4, family6, addr6, peer_id in PEER.iter_unpack(data):
        both = (read_addr(family4, addr4), read_addr(family6, addr6))
        peers[peer_id] = peers.get(peer_id, ()) + tuple(address for address in both if address is not None)
    return tuple(Peer(peer_id, addresses) for peer_id, addresses in peers.items())


def unpack_subnets(data: bytes) -> tuple[SubnetEntry, ...]:
    """Read an array of struct dp_subnet."""
    entries = []
    for family, net, bits, encap, mac, vtep_family, vtep, is_unreachable, peer_id, mtu in SUBNET.iter_unpack(
        data
    ):
        prefix = IPv4Network((net[:4], bits)) if family == 4 else IPv6Network((net, bits))
        address = read_addr(vtep_family, vtep)
        if address is None:
            raise ControlError(f"the forwarder's table has no VTEP for {prefix}")
        known = SubnetEntry(prefix, peer_id, Encap(encap), address, read_mac(mac), mtu)
        entries.append(replace(known, is_unreachable=True) if is_unreachable else known)
    return tuple(entries)
