# SPDX-License-Identifier: Apache-2.0
"""IPIP devices of the kernel beside ours. Sans-IO.

The kernel gives each packet of protocol 4 to every raw socket, and to such a device as well. One that is up
decapsulates it, and pods get what no check of ours has seen. With one that is down, the kernel answers the
packet with ICMP port unreachable although we took it.
"""

from __future__ import annotations

from collections.abc import Iterable

from dataplane.errors import RuntimeFailure
from dataplane.model import Encap, HostFacts

Encaps = Iterable[Encap]


def check(facts: HostFacts, encaps: Encaps) -> None:
    """Raise if a device would carry packets past us."""
    if Encap.IPIP in encaps and facts.ipip_up:
        raise RuntimeFailure(_takes_all(facts.ipip_up[0]))


def warnings(facts: HostFacts, encaps: Encaps) -> tuple[str, ...]:
    """Return what the operator should know of such devices, a line each."""
    if Encap.IPIP not in encaps:
        return ()
    found = [_takes_all(name) for name in facts.ipip_up]
    if facts.ipip_down:
        name = facts.ipip_down[0]
        found.append(
            f"IPIP device {name} is there, and down: the kernel answers each IPIP packet with ICMP port "
            f"unreachable. Fix: ip link del {name}, or for tunl0: rmmod ipip"
        )
    return tuple(found)


def _takes_all(name: str) -> str:
    return (
        f"IPIP device {name} is up: the kernel carries IPIP packets past us, unchecked. "
        f"Fix: ip link set {name} down"
    )
