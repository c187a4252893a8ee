# SPDX-License-Identifier: Apache-2.0
"""Asks the kernel how much the path to a node takes: what routers told it, or what a route says.

A router's word is checked by the kernel, which knows our sockets, and kept for some minutes beside the route
("cache expires 598sec mtu 1300" in `ip route get`). We ask as our sockets are routed, by mark and interface.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import ip_address

from dataplane import entries, netbatch
from dataplane.entries import (
    AF_INET,
    AF_INET6,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    RTA_DST,
    RTA_METRICS,
    RTA_OIF,
    RTAX_MTU,
    RTM_GETROUTE,
    RTM_NEWROUTE,
    RTMSG,
)
from dataplane.errors import KernelError
from dataplane.model import Address
from dataplane.pathmtu import ICMP, ROUTE, PathMtu
from dataplane.ruleset import MARK

RTA_CACHEINFO, RTA_MARK = 12, 16
RTM_F_CLONED = 0x200  # what was learned, and not what somebody set up
CACHEINFO = struct.Struct("=IIi")  # references, last use, ticks until it expires; more follows
USER_HZ = 100  # ticks a second, as told to programs


def ask(node: Address, iface: int, now: float) -> PathMtu | None:
    """Return what the kernel knows of the path to a node by an interface; None: it takes what that takes."""
    try:
        return read(netbatch.ask(ask_route(node, iface))[1], now)
    except KernelError:
        return None  # there is no route at all: whoever sends there hears so


def ask_route(node: Address, iface: int) -> bytes:
    """Return a request for the route that our packets to a node take."""
    family = AF_INET if node.version == 4 else AF_INET6
    body = RTMSG.pack(family, node.max_prefixlen, 0, 0, 0, 0, 0, 0, 0)
    body += entries.attribute(RTA_DST, node.packed)
    body += entries.attribute(RTA_OIF, struct.pack("=i", iface))
    body += entries.attribute(RTA_MARK, struct.pack("=I", MARK))
    return entries.message(RTM_GETROUTE, NLM_F_REQUEST, body)


def ask_learned(family: int) -> bytes:
    """Return a request for all that routers told the kernel in an IP family."""
    body = RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, RTM_F_CLONED)
    return entries.message(RTM_GETROUTE, NLM_F_REQUEST | NLM_F_DUMP, body)


def list_learned() -> Iterator[Address]:
    """Yield the destinations of which routers told the kernel something."""
    for family in (AF_INET, AF_INET6):
        with suppress(KernelError):  # before Linux 5.3 it may be unwilling; then each node is asked for
            for kind, body in netbatch.dump(ask_learned(family), is_filtered=True):
                found = entries.attributes(body, RTMSG.size)
                if kind == RTM_NEWROUTE and RTA_DST in found and RTMSG.unpack_from(body)[8] & RTM_F_CLONED:
                    yield ip_address(found[RTA_DST])


def read(body: bytes, now: float) -> PathMtu | None:
    """Return what a route says of its MTU; None if nothing."""
    found = entries.attributes(body, RTMSG.size)
    metrics = entries.attributes(found.get(RTA_METRICS, b""), 0)
    mtu = int.from_bytes(metrics.get(RTAX_MTU, b""), sys.byteorder)
    if not mtu:
        return None
    info = found.get(RTA_CACHEINFO, b"")
    ticks = CACHEINFO.unpack_from(info)[2] if len(info) >= CACHEINFO.size else 0
    if not ticks:
        return PathMtu(mtu, ROUTE)
    return PathMtu(mtu, ICMP, now + ticks / USER_HZ)
