# SPDX-License-Identifier: Apache-2.0
"""Frozen values that the layers hand each other. No I/O, no parsing of text beyond addresses."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TypeVar

from dataplane.errors import one_line

TITLE_MAX = 80  # characters

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

T = TypeVar("T")
U = TypeVar("U")


def can_be_node(ip: Address) -> bool:
    """Return whether other nodes could reach an address at all: what flannel.check_unicast() takes."""
    is_mapped = ip.version == 6 and ip.ipv4_mapped is not None
    is_this_net = ip.version == 4 and ip.packed[0] in (0, 255)
    is_special = ip.is_loopback or ip.is_link_local or ip.is_multicast or ip.is_unspecified
    return not (is_mapped or is_this_net or is_special)


class Encap(IntEnum):
    """How packets to a subnet cross the underlay; values of `enum dp_encap`."""

    NONE = 0  # flannel's alloc
    VXLAN = 1
    IPIP = 2
    DIRECT = 3  # flannel's host-gw
    FLANNEL_UDP = 4  # of a lease: it says nothing of itself, as those of alloc do


# These carry IPv4 only, over IPv4 only, and say nothing of a VTEP.
PLAIN_ENCAPS = frozenset({Encap.IPIP, Encap.FLANNEL_UDP})
# Of these nothing is wrapped into anything.
BARE_ENCAPS = frozenset({Encap.NONE, Encap.DIRECT})
# When packets to peers are encapsulated: CROSS_SUBNET is unless their node is on our link.
ALWAYS, CROSS_SUBNET, NEVER = ENCAPSULATE = ("always", "cross-subnet", "never")

OUTER_TTL = 64  # of outer headers, unless told otherwise: what the sockets that send have


class Offload(IntFlag):
    """Work that the kernel does for us, or lets us do for it; bits of `enum dp_tier`."""

    TUN_VNET = 1
    TUN_CSUM = 2
    MMSG = 4
    TUN_TSO = 8
    TUN_USO = 16
    UDP_GSO = 32
    UDP_GRO = 64
    TUN_GRO = 128
    TUN_UGRO = 256

    @property
    def label(self) -> str:
        """How people write one of them: `tun-vnet`."""
        return str(self.name).lower().replace("_", "-")


OFFLOADS = {offload.label: offload for offload in Offload}
ALL_OFFLOADS = Offload(sum(Offload))
# What cannot be without another.
OFFLOAD_NEEDS = {
    Offload.TUN_CSUM: Offload.TUN_VNET,
    Offload.TUN_TSO: Offload.TUN_CSUM,
    Offload.TUN_USO: Offload.TUN_CSUM,
    Offload.TUN_GRO: Offload.TUN_VNET,
    Offload.TUN_UGRO: Offload.TUN_GRO,
}


def tier_text(tier: int) -> str:
    """Name a mask of enum dp_tier: `full`, `full but tun-uso, udp-gso`, or `plain`."""
    missing = [offload.label for offload in Offload if not tier & offload]
    if not missing:
        return "full"
    return "plain" if not tier else f"full but {', '.join(missing)}"


def offloads_without(disabled: Offload) -> Offload:
    """Return all offloads but some, and but those that need one of them."""
    left = ALL_OFFLOADS & ~disabled
    for offload, needed in OFFLOAD_NEEDS.items():  # the needed ones stand first
        if needed not in left:
            left &= ~offload
    return left


@dataclass(frozen=True, slots=True)
class MacAddress:
    """48 bits in wire order."""

    octets: bytes

    def __str__(self) -> str:
        return self.octets.hex(":")


@dataclass(frozen=True, slots=True)
class SubnetRange:
    """The subnets that nodes may take in one family: all of one length, from the first to the last."""

    length: int  # bits of prefix
    first: int  # where the lowest subnet begins, as a number
    last: int  # where the highest one begins


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """The cluster's network: flannel's network config after parsing, defaults filled in."""

    network: IPv4Network | None
    network6: IPv6Network | None
    encap: Encap
    vni: int = 1
    port: int = 8472
    underlay_mtu: int | None = None  # Backend.MTU: replaces the interface's MTU
    subnets: SubnetRange | None = None
    subnets6: SubnetRange | None = None
    has_direct_routing: bool = False  # Backend.DirectRouting: plain routes to nodes on our link

    def networks(self) -> tuple[Network, ...]:
        """The networks there are, IPv4 first."""
        return tuple(net for net in (self.network, self.network6) if net is not None)

    def holds(self, address: Address) -> bool:
        """Return whether an address lies inside the overlay."""
        net = self.network if address.version == 4 else self.network6
        return net is not None and address in net


def _present(one: T | None, other: U | None) -> tuple[T | U, ...]:
    """Return those that are there: in a large cluster this is asked very often."""
    if other is None:
        return () if one is None else (one,)
    return (other,) if one is None else (one, other)


@dataclass(frozen=True, slots=True)
class SubnetKey:
    """What a lease is keyed by: the subnet of a node, in one or both families."""

    subnet: IPv4Network | None
    subnet6: IPv6Network | None = None

    def __str__(self) -> str:
        return "&".join(str(net) for net in (self.subnet, self.subnet6) if net is not None)

    def subnets(self) -> tuple[Network, ...]:
        """The subnets there are, IPv4 first."""
        return _present(self.subnet, self.subnet6)


@dataclass(frozen=True, slots=True)
class Lease:
    """A subnet and the node that holds it: flannel's lease value (flannel.md §1.3)."""

    key: SubnetKey
    public_ip: IPv4Address | None
    public_ip6: IPv6Address | None
    encap: Encap
    vtep_mac: MacAddress | None = None
    vtep_mac6: MacAddress | None = None
    vni: int | None = None

    def public_ips(self) -> tuple[Address, ...]:
        """The node's underlay addresses, IPv4 first."""
        return _present(self.public_ip, self.public_ip6)


def told_vni(vni: int) -> int:
    """Return the VNI that a lease of ours tells: flannel's has 16 bits for it, and reads no more."""
    return vni & 0xFFFF


# --- events: what the store said -------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Entry:
    """A lease as the store holds it, or what stands there instead of one."""

    name: str  # its key as the store writes it
    lease: Lease | None
    problem: str | None = None  # why there is no lease
    created: int = 0  # revision that made it: of two that collide, the older one counts
    changed: int = 0  # revision that changed or renewed it last
    expires_s: float | None = None  # CLOCK_MONOTONIC of this process; None: never, inf: some time
    is_held: bool = False  # the store has it no more; it left with so many others that it is kept for a while

    def left_s(self, now: float) -> float | None:
        """Return what it has to live, in seconds; None if it lives for ever, or nobody knows how long."""
        is_known = self.expires_s is not None and math.isfinite(self.expires_s)
        return round(self.expires_s - now, 3) if self.expires_s is not None and is_known else None

    @property
    def title(self) -> str:
        """Its name as far as it is fit to be shown; whoever wrote it may have written a book."""
        name = one_line(self.name[: TITLE_MAX + 1])
        return name if len(name) <= TITLE_MAX else f"{name[:TITLE_MAX]}…"


@dataclass(frozen=True, slots=True)
class Listed:
    """A complete list: whatever is not in it is gone."""

    revision: int
    network: NetworkConfig | None
    entries: tuple[Entry, ...]
    problem: str | None = None  # why there is no network
    identity: str = ""  # of the store: with another one, revisions begin anew
    read_s: float | None = field(default=None, compare=False)  # CLOCK_MONOTONIC; None: just now


@dataclass(frozen=True, slots=True)
class NetworkPut:
    """The network config changed, or is gone or unusable."""

    revision: int
    network: NetworkConfig | None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class LeasePut:
    """A lease appeared, changed or was renewed."""

    revision: int
    entry: Entry


@dataclass(frozen=True, slots=True)
class LeaseDeleted:
    """A lease is gone: released, removed or expired."""

    revision: int
    name: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """The store holds something unusable; what was in force stays in force."""

    revision: int
    reason: str


@dataclass(frozen=True, slots=True)
class Heard:
    """The store answers again, and is followed from where it was left."""

    revision: int


Event = Listed | NetworkPut | LeasePut | LeaseDeleted | Rejected


# --- the table and the host: what must be ----------------------------------------------------


@dataclass(frozen=True, slots=True)
class SubnetEntry:
    """Where packets to one remote subnet go; `struct dp_subnet`."""

    prefix: Network
    peer_id: int
    encap: Encap
    vtep: Address
    vtep_mac: MacAddress | None
    mtu: int = 0  # bytes; 0: the device's
    is_unreachable: bool = False  # so it is said; packets are sent there all the same, and pods are told
    is_direct: bool = False  # a route to its node leads there; `encap` is for what comes by another way


@dataclass(frozen=True, slots=True)
class Peer:
    """A remote node; `struct dp_peer`."""

    id: int
    addresses: tuple[Address, ...]  # underlay


@dataclass(frozen=True, slots=True)
class Table:
    """All the forwarder needs to decide; built into one FIB snapshot."""

    peers: tuple[Peer, ...] = ()
    subnets: tuple[SubnetEntry, ...] = ()
    own: tuple[Network, ...] = ()
    sources: tuple[Network, ...] = ()
    allowed: tuple[Network, ...] = ()


@dataclass(frozen=True, slots=True)
class HostPlan:
    """What overlayd wants of the host: one device, its addresses, its routes."""

    tun_name: str
    mtu: int
    addresses: tuple[Address, ...] = ()  # each as /32 or /128
    networks: tuple[Network, ...] = field(default=())  # each routed to the TUN, and unreachable behind it
    blackholes: tuple[Network, ...] = ()  # nothing goes there that no other route takes


@dataclass(frozen=True, slots=True)
class Publish:
    """Action: put this table in force."""

    table: Table


@dataclass(frozen=True, slots=True)
class PlanHost:
    """Action: make the host look like this."""

    plan: HostPlan


@dataclass(frozen=True, slots=True)
class Alarm:
    """Action: tell the operator; the text says what to do."""

    text: str


Action = Publish | PlanHost | Alarm


# --- the host: what is ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface of this host."""

    name: str
    index: int
    mtu: int  # bytes
    addresses: tuple[Address, ...] = ()  # those to be known by first
    unfit: frozenset[Address] = frozenset()  # of these, what nobody should be known by: deprecated, say


@dataclass(frozen=True, slots=True)
class VxlanDevice:
    """A VXLAN device of the kernel on this host."""

    name: str
    mac: MacAddress
    vni: int
    port: int
    local: Address | None  # outer source; None: whichever the route prefers
    mtu: int  # bytes
    link: int = 0  # index of the interface that its packets leave by
    ttl: int | None = 0  # of outer headers; 0: the host's own; None: that of the inner packet
    has_inner_dscp: bool = False  # outer headers have the DSCP of the inner packet
    index: int = field(default=0, compare=False)  # its own; 0: it is not there yet


@dataclass(frozen=True, slots=True)
class Way:
    """A unicast route of the host's main table; our own are none of them."""

    prefix: Network
    metric: int
    iface: int | None  # index; None: over several, or none at all
    gateway: Address | None  # None: the destination is on the link


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What reconciliation must know of this host."""

    interfaces: tuple[Interface, ...] = ()
    default_ifaces: tuple[str, ...] = ()  # of the default routes, IPv4 first
    ways: tuple[Way, ...] = ()
    ipip_up: tuple[str, ...] = ()  # IPIP devices of the kernel, by name
    ipip_down: tuple[str, ...] = ()

    def way_to(self, address: Address) -> Way | None:
        """Return the route that packets to an address take: the longest prefix, then the lowest metric."""
        fitting = (
            way for way in self.ways if way.prefix.version == address.version and address in way.prefix
        )
        return max(fitting, key=lambda way: (way.prefix.prefixlen, -way.metric), default=None)

    def held(self) -> frozenset[Address]:
        """Return all addresses of this host."""
        return frozenset(ip for link in self.interfaces for ip in link.addresses)

    def holder(self, address: Address, name: str | None = None) -> Interface | None:
        """Return the interface that holds an address; with a name, that one or none."""
        links = (link for link in self.interfaces if address in link.addresses)
        return next((link for link in links if name in (None, link.name)), None)
