# SPDX-License-Identifier: Apache-2.0
"""Paths that take less than the interfaces at their ends, and the silence about it."""

from __future__ import annotations

from bench.lab import Lab, Namespace

ERRORS = (
    "icmp type { destination-unreachable, parameter-problem } drop",
    "icmpv6 type { destination-unreachable, packet-too-big, parameter-problem } drop",
)


def deafen(*places: Namespace) -> None:
    """Have hosts and routers neither hear nor tell of ICMP errors."""
    for place in places:
        place.run("nft", "add table inet deaf")
        for hook in ("input", "output", "forward"):
            place.run("nft", f"add chain inet deaf {hook} {{ type filter hook {hook} priority -200; }}")
            for error in ERRORS:
                place.run("nft", f"add rule inet deaf {hook} {error}")


def narrow(lab: Lab, name: str, mtu: int) -> None:
    """Let the link between router and a node take so much, in either direction, and say nothing of it.

    A veth takes in only what its own MTU allows; super-packets it takes always, so senders must make none.
    """
    if "deaf" not in lab.router.run("nft", "list", "tables").stdout:
        deafen(lab.router)
    lab.router.ip(f"link set r{name} mtu {mtu}\n")
