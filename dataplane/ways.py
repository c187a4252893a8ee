# SPDX-License-Identifier: Apache-2.0
"""Reads the routes of this host's main table, and takes a microsecond for one that is not asked for.

Thousands of them may be routes to peers, which tell nothing of the host; pyroute2 would turn each of them
into objects first, every time something on the host changes.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from typing import NamedTuple

from dataplane import entries, netbatch
from dataplane.entries import (
    AF_INET,
    AF_INET6,
    MAIN_TABLE,
    RTA_DST,
    RTA_GATEWAY,
    RTA_OIF,
    RTM_NEWROUTE,
    RTMSG,
)
from dataplane.model import Address, Network, Way

OWN_PROTOCOL = 111  # of the routes of our device
OURS = frozenset({OWN_PROTOCOL, entries.ROUTE_PROTOCOL})
RTA_PRIORITY, RTA_PREFSRC, RTA_MULTIPATH, RTA_TABLE, RTA_VIA = 6, 7, 9, 15, 18
RTN_UNICAST, RTN_BLACKHOLE, RTN_UNREACHABLE, RTN_PROHIBIT = 1, 6, 7, 8
LEADING = frozenset({RTN_UNICAST, RTN_BLACKHOLE, RTN_UNREACHABLE, RTN_PROHIBIT})
NEXTHOP = struct.Struct("=HBBi")  # length, flags, hops, interface


class Route(NamedTuple):
    """A route of the main table."""

    prefix: Network
    kind: int
    metric: int
    iface: int | None  # index; None: there is none, or several
    gateway: Address | None
    source: Address | None  # preferred
    first_iface: int | None  # of several


def list_routes(protocol: int = 0) -> Iterator[Route]:
    """Yield the routes of a protocol, in both families; without one, those that are not ours."""
    for family in (AF_INET, AF_INET6):
        for kind, body in netbatch.dump(entries.ask_routes(family, protocol), is_filtered=True):
            if kind != RTM_NEWROUTE or body[4] != MAIN_TABLE:
                continue
            if body[5] == protocol or (not protocol and body[5] not in OURS):
                yield _read(body)


def _number(data: bytes | None) -> int | None:
    return None if data is None else int.from_bytes(data, sys.byteorder)


def _address(data: bytes | None) -> Address | None:
    return None if data is None else ip_address(data)


def _read(body: bytes) -> Route:
    family, length, _, _, _, _, _, kind, _ = RTMSG.unpack_from(body)
    found = entries.attributes(body, RTMSG.size)
    everywhere = bytes(4 if family == AF_INET else 16)
    iface = first = _number(found.get(RTA_OIF))
    gateway = _address(found.get(RTA_GATEWAY))
    if RTA_VIA in found:  # IPv4 by way of an IPv6 router: two bytes of family first
        gateway = ip_address(found[RTA_VIA][2:])
    if RTA_MULTIPATH in found:
        iface, first = None, NEXTHOP.unpack_from(found[RTA_MULTIPATH])[3]
    return Route(
        ip_network((found.get(RTA_DST, everywhere), length)),
        kind,
        _number(found.get(RTA_PRIORITY)) or 0,
        iface if kind == RTN_UNICAST else None,
        gateway,
        _address(found.get(RTA_PREFSRC)),
        first if kind == RTN_UNICAST else None,
    )


def read() -> tuple[tuple[Way, ...], tuple[int, ...]]:
    """Return the ways there are, and the interfaces of the default routes with the lowest metric, IPv4 first.

    A way that ends in an error has no interface.
    """
    ways = []
    best: dict[int, tuple[int, int]] = {}
    for route in list_routes():
        if route.kind not in LEADING:
            continue
        ways.append(Way(route.prefix, route.metric, route.iface, route.gateway))
        if not route.prefix.prefixlen and route.first_iface is not None:
            version, found = route.prefix.version, (route.metric, route.first_iface)
            best[version] = min(best.get(version, found), found)
    return tuple(ways), tuple(best[version][1] for version in sorted(best))
