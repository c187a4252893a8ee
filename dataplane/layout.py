# SPDX-License-Identifier: Apache-2.0
"""The table's values as bytes: struct dp_peer, dp_subnet and dp_prefix of csrc/dp.h.

Packed here because a field-by-field copy through cffi takes 20 times as long; native.py checks the sizes.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from dataplane.errors import ControlError
from dataplane.model import Address, Encap, MacAddress, Network, Peer, SubnetEntry

PEER = struct.Struct("=IB16sB16s2x")
SUBNET = struct.Struct("=B16sBB6sB16s2xII")
PREFIX = struct.Struct("=B16sB")

_NO_ADDR = (0, b"")


def pack_peer(peer: Peer) -> bytes:
    """Return the struct dp_peer; a peer has at most one address per family."""
    addr4 = addr6 = _NO_ADDR
    for address in peer.addresses:
        if address.version == 4:
            addr4 = (4, address.packed)
        else:
            addr6 = (6, address.packed)
    return PEER.pack(peer.id, *addr4, *addr6)


def pack_subnet(entry: SubnetEntry) -> bytes:
    """Return the struct dp_subnet."""
    net, vtep = entry.prefix, entry.vtep
    return SUBNET.pack(
        net.version,
        net.network_address.packed,
        net.prefixlen,
        entry.encap,
        b"" if entry.vtep_mac is None else entry.vtep_mac.octets,
        vtep.version,
        vtep.packed,
        entry.peer_id,
        entry.mtu,
    )


def pack_prefix(net: Network) -> bytes:
    """Return the struct dp_prefix."""
    return PREFIX.pack(net.version, net.network_address.packed, net.prefixlen)


def read_addr(family: int, octets: bytes) -> Address | None:
    """Read family and bytes of a struct dp_addr."""
    if family == 4:
        return IPv4Address(octets[:4])
    return IPv6Address(octets) if family == 6 else None


def read_mac(octets: bytes) -> MacAddress | None:
    """Read a MAC address; all zeros mean none."""
    return MacAddress(octets) if any(octets) else None


def unpack_peers(data: bytes) -> tuple[Peer, ...]:
    """Read an array of struct dp_peer."""
    peers = []
    for peer_id, family4, addr4, family6, addr6 in PEER.iter_unpack(data):
        addresses = (read_addr(family4, addr4), read_addr(family6, addr6))
        peers.append(Peer(peer_id, tuple(address for address in addresses if address is not None)))
    return tuple(peers)


def unpack_subnets(data: bytes) -> tuple[SubnetEntry, ...]:
    """Read an array of struct dp_subnet."""
    entries = []
    for family, net, bits, encap, mac, vtep_family, vtep, peer_id, mtu in SUBNET.iter_unpack(data):
        prefix = IPv4Network((net[:4], bits)) if family == 4 else IPv6Network((net, bits))
        address = read_addr(vtep_family, vtep)
        if address is None:
            raise ControlError(f"the forwarder's table has no VTEP for {prefix}")
        entries.append(SubnetEntry(prefix, peer_id, Encap(encap), address, read_mac(mac), mtu))
    return tuple(entries)
