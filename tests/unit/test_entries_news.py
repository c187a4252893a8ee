# SPDX-License-Identifier: Apache-2.0
"""What the kernel tells of entries is news of ours, unless it comes of what we have told it ourselves."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from dataplane.entries import (
    HEADER,
    MAIN_TABLE,
    ROUTE_PROTOCOL,
    RTA_DST,
    RTM_DELNEIGH,
    RTM_DELROUTE,
    RTM_NEWNEIGH,
    RTM_NEWROUTE,
    RTMSG,
    Entries,
    Hop,
    contradicts,
    forwarding,
    neighbour,
    replaces,
    route,
)
from dataplane.model import Address, MacAddress

OURS = frozenset((ip_network("10.244.2.0/24"), ip_network("fd00:244:0:2::/64")))


def told(prefix: str, protocol: int = 4, table: int = MAIN_TABLE) -> bytes:
    """Return what the kernel says of a route; one that leads everywhere has no destination."""
    net = ip_network(prefix)
    family = 2 if net.version == 4 else 10
    body = RTMSG.pack(family, net.prefixlen, 0, 0, table, protocol, 0, 1, 0)
    if not net.prefixlen:
        return body
    data = net.network_address.packed
    return body + (4 + len(data)).to_bytes(2, "little") + RTA_DST.to_bytes(2, "little") + data


@pytest.mark.parametrize(
    ("kind", "body", "is_news"),
    [
        pytest.param(RTM_NEWROUTE, told("10.244.2.0/24"), True, id="in our place"),
        pytest.param(RTM_NEWROUTE, told("fd00:244:0:2::/64"), True, id="in our place, IPv6"),
        pytest.param(RTM_NEWROUTE, told("10.244.2.0/24", ROUTE_PROTOCOL), False, id="ours"),
        pytest.param(RTM_NEWROUTE, told("10.244.2.0/25"), False, id="inside"),
        pytest.param(RTM_NEWROUTE, told("10.244.2.0/24", table=7), False, id="another table"),
        pytest.param(RTM_DELROUTE, told("10.244.2.0/24"), False, id="goes"),
        pytest.param(RTM_NEWROUTE, told("0.0.0.0/0"), False, id="default"),
        pytest.param(RTM_NEWROUTE, told("::/0"), False, id="IPv6 default"),
        pytest.param(RTM_NEWROUTE, told("10.244.2.0/24")[:8], False, id="cut off"),
    ],
)
def test_replaces(kind: int, body: bytes, is_news: bool) -> None:
    """Only a route to the same subnet in the same table can have replaced ours: nothing else says so."""
    assert replaces(kind, body, OURS) is is_news


INDEX, MAC, OTHER_MAC = 3, MacAddress(b"\x02\0\0\0\0\x02"), MacAddress(b"\x02\0\0\0\0\x99")
GATEWAY, NODE, OTHER = (ip_address(text) for text in ("10.244.2.0", "192.0.2.2", "192.0.2.99"))
NET = ip_network("10.244.2.0/24")
HOP = Hop(GATEWAY, INDEX, True)
WANTED = Entries({GATEWAY: MAC}, {MAC: NODE}, {NET: HOP})


def given_up(address: Address) -> bytes:
    """Return what the kernel says of a neighbour that somebody deletes, before it says that it is gone."""
    head = bytearray(neighbour(RTM_NEWNEIGH, INDEX, address, None))
    head[HEADER.size + 8] = 0x20  # NUD_FAILED
    return bytes(head)


@pytest.mark.parametrize(
    ("kind", "said", "is_foreign"),
    [
        pytest.param(RTM_NEWNEIGH, neighbour(RTM_NEWNEIGH, INDEX, GATEWAY, MAC), False, id="our neighbour"),
        pytest.param(RTM_NEWNEIGH, neighbour(RTM_NEWNEIGH, INDEX, GATEWAY, OTHER_MAC), True, id="MAC"),
        pytest.param(RTM_NEWNEIGH, given_up(GATEWAY), True, id="neighbour given up"),
        pytest.param(RTM_DELNEIGH, neighbour(RTM_DELNEIGH, INDEX, GATEWAY, None), True, id="neighbour gone"),
        pytest.param(RTM_DELNEIGH, neighbour(RTM_DELNEIGH, INDEX, OTHER, None), False, id="old one gone"),
        pytest.param(RTM_NEWNEIGH, forwarding(RTM_NEWNEIGH, INDEX, MAC, NODE), False, id="our node"),
        pytest.param(RTM_NEWNEIGH, forwarding(RTM_NEWNEIGH, INDEX, MAC, OTHER), True, id="another node"),
        pytest.param(RTM_DELNEIGH, forwarding(RTM_DELNEIGH, INDEX, MAC, NODE), True, id="node gone"),
        pytest.param(RTM_DELNEIGH, forwarding(RTM_DELNEIGH, INDEX, OTHER_MAC, NODE), False, id="old gone"),
        pytest.param(RTM_NEWROUTE, route(RTM_NEWROUTE, NET, HOP), False, id="our route"),
        pytest.param(RTM_NEWROUTE, route(RTM_NEWROUTE, NET, Hop(OTHER, INDEX, True)), True, id="another way"),
        pytest.param(RTM_DELROUTE, route(RTM_DELROUTE, NET, HOP), True, id="route gone"),
        pytest.param(
            RTM_DELROUTE, route(RTM_DELROUTE, ip_network("10.244.9.0/24"), HOP), False, id="old route gone"
        ),
        pytest.param(16, bytes(HEADER.size + 16), True, id="link"),
    ],
)
def test_contradicts(kind: int, said: bytes, is_foreign: bool) -> None:
    """While we tell, what cannot come of that is somebody else's doing; what can is not looked at again."""
    assert contradicts(WANTED, INDEX, kind, said[HEADER.size :]) is is_foreign
