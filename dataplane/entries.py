# SPDX-License-Identifier: Apache-2.0
"""What the kernel must know of each peer, as netlink messages; and the same read back.

A peer behind a VXLAN device has a neighbour, a forwarding entry and an onlink route there; one that is
reached directly has a plain route by way of its node. A route whose way changes is replaced in one step.

pyroute2 builds each message from a description in Python and needs a third of a millisecond for one; a
cluster of 10 000 nodes needs 30 000 of them at start. These are six kinds of fixed messages, packed here
(linux/rtnetlink.h, linux/neighbour.h). Pure: netbatch.py sends them.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import NamedTuple, TypeVar

from dataplane.model import Address, Encap, MacAddress, Network, SubnetEntry

HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
NDMSG = struct.Struct("=BBHiHBB")  # family, pads, interface, state, flags, type
RTMSG = struct.Struct("=BBBBBBBBI")  # family, dst_len, src_len, tos, table, protocol, scope, type, flags
IFINFOMSG = struct.Struct("=BBHiII")  # family, pad, type, interface, flags, change
ATTRIBUTE = struct.Struct("=HH")  # length, type

RTM_NEWLINK = 16
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
NLM_F_REQUEST, NLM_F_ACK, NLM_F_REPLACE, NLM_F_CREATE, NLM_F_DUMP = 0x1, 0x4, 0x100, 0x400, 0x300
NDA_DST, NDA_LLADDR = 1, 2
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_METRICS = 1, 4, 5, 8
RTAX_MTU = 2
NUD_PERMANENT, NUD_NOARP, NTF_SELF = 0x80, 0x40, 0x02
RTNH_F_ONLINK = 4
MAIN_TABLE, SCOPE_UNIVERSE, RTN_UNICAST = 254, 0, 1
AF_INET, AF_INET6, AF_BRIDGE = 2, 10, 7
ROUTE_PROTOCOL = 112  # "overlayd" peers in `ip route show proto 112`; netlink.py has 111 for the network

K = TypeVar("K")
V = TypeVar("V")

NEW = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE
GONE = NLM_F_REQUEST | NLM_F_ACK


class Hop(NamedTuple):
    """Where a route leads."""

    gateway: Address | None  # None: on the device itself
    iface: int  # index
    is_onlink: bool = False  # behind a VXLAN device; else the gateway is a neighbour already
    mtu: int = 0  # bytes; 0: the device's


class Links(NamedTuple):
    """The devices that routes lead to."""

    overlay: int  # index of a VXLAN device; 0: there is none
    underlay: int  # index
    direct_mtu: int = 0  # bytes that go by a plain route; 0: the underlay's
    tun: int = 0  # index of the forwarder's device; 0: it has no routes of peers


@dataclass(slots=True)
class Entries:
    """What the kernel knows of peers whose pods are of one IP version."""

    neighbours: dict[Address, MacAddress] = field(default_factory=dict)  # where a subnet begins -> VTEP MAC
    forwarding: dict[MacAddress, Address] = field(default_factory=dict)  # VTEP MAC -> node
    routes: dict[Network, Hop] = field(default_factory=dict)


def wanted(subnets: tuple[SubnetEntry, ...], version: int, links: Links) -> Entries:
    """Return the entries for peers whose pods are of an IP version.

    Those behind the VXLAN device stay there also when they are reached directly: who encapsulates may change
    back at any time. The forwarder's device has one route for all, and others for peers that take less: so
    the kernel tells pods, and cuts what it may, before a packet comes to us.
    """
    entries = Entries()
    for entry in subnets:
        if entry.prefix.version != version:
            continue
        if entry.is_direct:
            mtu = min(filter(None, (entry.mtu, links.direct_mtu)), default=0)
            entries.routes[entry.prefix] = Hop(entry.vtep, links.underlay, mtu=mtu)
        elif links.tun and entry.mtu:
            entries.routes[entry.prefix] = Hop(None, links.tun, mtu=entry.mtu)
        if not links.overlay or entry.vtep_mac is None:
            continue
        gateway = entry.prefix.network_address
        entries.neighbours[gateway] = entry.vtep_mac
        entries.forwarding[entry.vtep_mac] = entry.vtep
        if not entry.is_direct and entry.encap is not Encap.DIRECT:
            entries.routes[entry.prefix] = Hop(gateway, links.overlay, is_onlink=True, mtu=entry.mtu)
    return entries


def find_shared(subnets: Iterable[SubnetEntry]) -> dict[MacAddress, set[Address]]:
    """Return the VTEP MACs that several nodes have: the kernel sends to one node for each.

    So it is when a node came back with another address, and its old lease is still there.
    """
    first: dict[tuple[int, MacAddress], Address] = {}
    shared: dict[MacAddress, set[Address]] = {}
    for entry in subnets:
        if entry.vtep_mac is None:
            continue
        node = first.setdefault((entry.prefix.version, entry.vtep_mac), entry.vtep)
        if node != entry.vtep:
            shared.setdefault(entry.vtep_mac, {node}).add(entry.vtep)
    return shared


# --- packing --------------------------------------------------------------------------------------------


def attribute(kind: int, data: bytes) -> bytes:
    """Return an attribute of a message."""
    return ATTRIBUTE.pack(4 + len(data), kind) + data + b"\0" * (-len(data) % 4)


def message(kind: int, flags: int, body: bytes) -> bytes:
    """Put a header before a message; sequence and port are for who sends it."""
    return HEADER.pack(HEADER.size + len(body), kind, flags, 0, 0) + body


def _family(address: Address) -> int:
    return AF_INET if address.version == 4 else AF_INET6


def neighbour(kind: int, index: int, address: Address, mac: MacAddress | None) -> bytes:
    """Return a message about a permanent neighbour."""
    body = NDMSG.pack(_family(address), 0, 0, index, NUD_PERMANENT, 0, 0)
    body += attribute(NDA_DST, address.packed)
    if mac is not None:
        body += attribute(NDA_LLADDR, mac.octets)
    return message(kind, NEW if kind == RTM_NEWNEIGH else GONE, body)


def forwarding(kind: int, index: int, mac: MacAddress, node: Address) -> bytes:
    """Return a message about a permanent entry of the device's own forwarding table."""
    body = NDMSG.pack(AF_BRIDGE, 0, 0, index, NUD_PERMANENT | NUD_NOARP, NTF_SELF, 0)
    body += attribute(NDA_DST, node.packed) + attribute(NDA_LLADDR, mac.octets)
    return message(kind, NEW if kind == RTM_NEWNEIGH else GONE, body)


def route(kind: int, prefix: Network, hop: Hop) -> bytes:
    """Return a message about a route of ours in the main table."""
    body = RTMSG.pack(
        *(_family(prefix.network_address), prefix.prefixlen, 0, 0, MAIN_TABLE),
        *(ROUTE_PROTOCOL, SCOPE_UNIVERSE, RTN_UNICAST, RTNH_F_ONLINK if hop.is_onlink else 0),
    )
    body += attribute(RTA_DST, prefix.network_address.packed)
    if hop.gateway is not None:
        body += attribute(RTA_GATEWAY, hop.gateway.packed)
    body += attribute(RTA_OIF, struct.pack("=i", hop.iface))
    if hop.mtu and kind == RTM_NEWROUTE:
        body += attribute(RTA_METRICS, attribute(RTAX_MTU, struct.pack("=I", hop.mtu)))
    return message(kind, NEW if kind == RTM_NEWROUTE else GONE, body)


def difference(index: int, before: Entries, after: Entries) -> Iterator[bytes]:
    """Yield what turns one state into another: what is new in the order in which it is used.

    `index` is that of the VXLAN device, if there is one.
    """
    for prefix, hop in before.routes.items():
        if prefix not in after.routes:
            yield route(RTM_DELROUTE, prefix, hop)
    for mac, node in before.forwarding.items():
        if mac not in after.forwarding:
            yield forwarding(RTM_DELNEIGH, index, mac, node)
    for address in before.neighbours.keys() - after.neighbours.keys():
        yield neighbour(RTM_DELNEIGH, index, address, None)
    for address, mac in _news(before.neighbours, after.neighbours):
        yield neighbour(RTM_NEWNEIGH, index, address, mac)
    for mac, node in _news(before.forwarding, after.forwarding):
        yield forwarding(RTM_NEWNEIGH, index, mac, node)
    for prefix, hop in _news(before.routes, after.routes):
        yield from _lead(prefix, before.routes.get(prefix), hop)


def _lead(prefix: Network, before: Hop | None, hop: Hop) -> Iterator[bytes]:
    """Yield what leads a prefix elsewhere, in one step."""
    change = route(RTM_NEWROUTE, prefix, hop)
    if prefix.version == 4 or not hop.is_onlink or before is None or before.iface == hop.iface:
        yield change
        return
    # IPv6 takes no gateway on one device to which another route leads, even if that is the one to go.
    spot, way = ip_network(prefix.network_address), Hop(None, hop.iface)
    yield route(RTM_NEWROUTE, spot, way)
    yield change
    yield route(RTM_DELROUTE, spot, way)


def _news(before: Mapping[K, V], after: Mapping[K, V]) -> Iterator[tuple[K, V]]:
    return ((key, value) for key, value in after.items() if before.get(key) != value)


# --- reading back ---------------------------------------------------------------------------------------


def ask_neighbours(family: int) -> bytes:
    """Return a request for all neighbours, or with AF_BRIDGE all forwarding entries."""
    return message(RTM_GETNEIGH, NLM_F_REQUEST | NLM_F_DUMP, NDMSG.pack(family, 0, 0, 0, 0, 0, 0))


def ask_routes(family: int, protocol: int = 0) -> bytes:
    """Return a request for the routes of the main table, if the kernel is willing of one protocol alone."""
    body = RTMSG.pack(family, 0, 0, 0, MAIN_TABLE, protocol, 0, 0, 0)
    return message(RTM_GETROUTE, NLM_F_REQUEST | NLM_F_DUMP, body)


def split(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type and body of each message in a datagram of the kernel's."""
    return ((kind, body) for kind, _, body in split_ports(data))


def split_ports(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield type, port of whom it is about and body of each message in a datagram of the kernel's."""
    offset = 0
    while offset + HEADER.size <= len(data):
        length, kind, _, _, port = HEADER.unpack_from(data, offset)
        if length < HEADER.size:
            return
        yield kind, port, data[offset + HEADER.size : offset + length]
        offset += (length + 3) & ~3


def attributes(body: bytes, offset: int) -> dict[int, bytes]:
    """Return the attributes of a message that begin at an offset, by type."""
    found = {}
    while offset + ATTRIBUTE.size <= len(body):
        length, kind = ATTRIBUTE.unpack_from(body, offset)
        if length < ATTRIBUTE.size:
            break
        found[kind & 0x3FFF] = body[offset + ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3
    return found


def note(entries: Entries, index: int, kind: int, body: bytes) -> None:
    """Take a message that says what there is: of this device, and of routes if they are ours."""
    if kind == RTM_NEWNEIGH:
        family, _, _, ifindex, state, flags, _ = NDMSG.unpack_from(body)
        found = attributes(body, NDMSG.size)
        if ifindex != index or not state & NUD_PERMANENT or NDA_DST not in found or NDA_LLADDR not in found:
            return
        mac, address = MacAddress(found[NDA_LLADDR]), ip_address(found[NDA_DST])
        if family != AF_BRIDGE:
            entries.neighbours[address] = mac
        elif flags & NTF_SELF:
            entries.forwarding[mac] = address
    elif kind == RTM_NEWROUTE:
        _, length, _, _, table, protocol, _, _, flags = RTMSG.unpack_from(body)
        if table != MAIN_TABLE or protocol != ROUTE_PROTOCOL:
            return
        found = attributes(body, RTMSG.size)
        if {RTA_DST, RTA_OIF} <= found.keys():
            metrics = attributes(found.get(RTA_METRICS, b""), 0)
            entries.routes[ip_network((found[RTA_DST], length))] = Hop(
                ip_address(found[RTA_GATEWAY]) if RTA_GATEWAY in found else None,
                int.from_bytes(found[RTA_OIF], sys.byteorder),
                bool(flags & RTNH_F_ONLINK),
                int.from_bytes(metrics.get(RTAX_MTU, b""), sys.byteorder),
            )


def replaces(kind: int, body: bytes, routes: Container[Network]) -> bool:
    """Tell whether a message is about a route of somebody else's to what one of these leads to.

    Of one that takes the place of ours nothing else is said.
    """
    if kind != RTM_NEWROUTE or len(body) < RTMSG.size:
        return False
    _, length, _, _, table, protocol, *_ = RTMSG.unpack_from(body)
    if table != MAIN_TABLE or protocol == ROUTE_PROTOCOL:
        return False
    found = attributes(body, RTMSG.size).get(RTA_DST)
    return found is not None and ip_network((found, length)) in routes


def contradicts(wanted: Entries, index: int, kind: int, body: bytes) -> bool:
    """Tell whether a message about a device is none that our own telling of these entries makes.

    Whoever removes an entry while we tell of it is heard together with ourselves.
    """
    found = Entries()
    is_gone = kind in (RTM_DELNEIGH, RTM_DELROUTE)
    if kind in (RTM_NEWNEIGH, RTM_DELNEIGH):
        head = list(NDMSG.unpack_from(body))
        is_gone |= not head[4] & NUD_PERMANENT
        head[4] |= NUD_PERMANENT
        body = NDMSG.pack(*head) + body[NDMSG.size :]
        # One that is given up has no MAC address any more.
        address = attributes(body, NDMSG.size).get(NDA_DST)
        if is_gone and head[0] != AF_BRIDGE and address is not None:
            return ip_address(address) in wanted.neighbours
        note(found, index, RTM_NEWNEIGH, body)
    elif kind in (RTM_NEWROUTE, RTM_DELROUTE):
        note(found, index, RTM_NEWROUTE, body)
    else:
        return True
    for told, ours in (
        (found.neighbours, wanted.neighbours),
        (found.forwarding, wanted.forwarding),
        (found.routes, wanted.routes),
    ):
        for key, value in told.items():
            if key in ours and (is_gone or ours[key] != value):  # type: ignore[index]
                return True
    return False


def undoes(family: int, links: Links, kind: int, body: bytes) -> bool:
    """Tell whether a message of the kernel's says that something we told it for a family went or changed."""
    if kind in (RTM_NEWNEIGH, RTM_DELNEIGH):
        return len(body) >= NDMSG.size and bool(links.overlay) and NDMSG.unpack_from(body)[3] == links.overlay
    if kind in (RTM_NEWROUTE, RTM_DELROUTE):
        return len(body) >= RTMSG.size and (body[0], body[5]) == (family, ROUTE_PROTOCOL)
    # With a link that goes down, its IPv4 routes go without a word.
    return kind == RTM_NEWLINK and IFINFOMSG.unpack_from(body)[3] in (links.underlay, links.tun)
