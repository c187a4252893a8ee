# SPDX-License-Identifier: Apache-2.0
"""What carries the packets, behind one small protocol; `userspace` is the forwarder, `kernel` devices of
the kernel, `routes` plain routes alone, or past the forwarder. `switch` takes the one that fits the network.

The daemon calls adopt() once, and then, at start and whenever something changed, prepare(), set_up_host(),
carry(), in this order: what can be missing or taken is found out before anything is changed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Protocol

from dataplane.config import RunConfig
from dataplane.figures import Dataplane
from dataplane.model import Encap, HostPlan, Interface, MacAddress, NetworkConfig, Peer, Table
from dataplane.rundir import RunDir


@dataclass(frozen=True, slots=True)
class Place:
    """Where a backend works: fixed for the life of a control."""

    config: RunConfig
    run_dir: RunDir
    epoch: int
    kept: dict[str, int] = field(default_factory=dict)  # by a service manager, from an earlier control


@dataclass(frozen=True, slots=True)
class Settings:
    """What a backend must know besides the table."""

    network: NetworkConfig
    encaps: frozenset[Encap]  # accepted and sent
    tun_name: str
    mtu: int  # of the overlay, bytes
    underlay: Interface
    underlay4: IPv4Address | None
    underlay6: IPv6Address | None
    vtep_mac4: MacAddress | None
    vtep_mac6: MacAddress | None
    trusts_paths: bool = True  # what the kernel learns of paths is believed by our sockets

    @property
    def direct_mtu(self) -> int:
        """What may go by a plain route, in bytes; 0: what the underlay takes.

        Where some peers are behind an encapsulation, no more than by that: so connections of this host live
        when a peer moves from one to the other, and nothing is too big for the pods' devices of the peer.
        """
        return self.mtu if self.mtu < self.underlay.mtu else 0


class Backend(Protocol):
    """Carries the packets of one node."""

    async def adopt(self) -> tuple[Peer, ...]:
        """Take over what an earlier control left running, untouched; return the peers in its table."""
        ...

    async def warm(self, settings: Settings, plan: HostPlan) -> None:
        """Do of prepare() and set_up_host() what can be done while somebody else still carries packets."""
        ...

    async def prepare(self, settings: Settings) -> None:
        """Open what is needed and not there yet; raises, with everything as before, if it cannot be had."""
        ...

    async def set_up_host(self, plan: HostPlan) -> list[str]:
        """Make the host as planned; return what was changed."""
        ...

    async def carry(self, table: Table) -> None:
        """Put settings and table in force; what already is in force is not touched."""
        ...

    @property
    def tier_wanted(self) -> int | None:
        """The rungs that were allowed when the TUN was opened; the next control wants to know."""
        ...

    @property
    def selftest(self) -> dict[str, object]:
        """What the self-test of offloads found; the next control wants to know."""
        ...

    @property
    def offloads_off(self) -> dict[str, str]:
        """Which offloads are not used, and why."""
        ...

    def describe(self) -> Dataplane:
        """Return what status shows of it."""
        ...

    def warnings(self) -> tuple[str, ...]:
        """Return what the operator should know, a line each."""
        ...

    async def undo(self) -> bool:
        """Take back a start that failed; True if the TUN device was made by it and must be removed."""
        ...

    async def close(self) -> None:
        """Let go of it and leave it running."""
        ...
