# SPDX-License-Identifier: Apache-2.0
"""The rules that fit the MSS of TCP connections between pods to their path, in the JSON that nft takes. Pure.

Both ends of a connection say in its first packets how large segments to them may be (RFC 9293 section 3.7.1).
Where those packets pass here, out of or into an overlay device, that is lowered to what the path takes; then
a connection needs no ICMP to be told. The kernel's `rt mtu` is the smaller MTU of the routes to the receiver
and back to the sender, one of which leads to the peer: so it fits in both directions. It never raises an MSS.

Connections of this host itself need no rule: its TCP goes by its routes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

Expr = dict[str, Any]

CHAIN = "mss"
HOOK = ("filter", "forward", -150)  # type, hook, priority: where others change packets, too

# SYN, with ACK or without.
OPENS: Expr = {
    "match": {
        "left": {"&": [{"payload": {"protocol": "tcp", "field": "flags"}}, ["syn", "rst"]]},
        "op": "==",
        "right": "syn",
    }
}
FIT: Expr = {
    "mangle": {
        "key": {"tcp option": {"name": "maxseg", "field": "size"}},
        "value": {"rt": {"key": "mtu"}},
    }
}


def rules(devices: Iterable[str]) -> Iterator[tuple[str, list[Expr]]]:
    """Yield chain and expressions of each rule for these overlay devices."""
    for device in devices:
        for way in ("oifname", "iifname"):
            by_device: Expr = {"match": {"left": {"meta": {"key": way}}, "op": "==", "right": device}}
            yield CHAIN, [by_device, OPENS, FIT]
