# SPDX-License-Identifier: Apache-2.0
"""The gate between store and table: which lease of another node becomes a peer, and why the others do not.

Whoever can write to the store could otherwise send any traffic anywhere. So a lease counts only if it is
readable, claims a part of the network and nothing of ours, and names a node that could be in the underlay;
and where two collide, the older one counts. A refused lease never keeps another one out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from dataplane.alloc import overlap
from dataplane.flannel import BACKEND_NAMES
from dataplane.model import PLAIN_ENCAPS, Address, Encap, Entry, Lease, Network, NetworkConfig, told_vni
from dataplane.reach import ENCAPSULATED, Reach

KINDS = ("unreadable", "subnet", "address", "backend", "collision", "count")  # of reasons


class Refusal(str):
    """Why a lease is no peer, for people; its kind is the same for programs."""

    __slots__ = ("kind",)
    kind: str

    def __new__(cls, kind: str, text: str) -> Refusal:
        """Make a text of a kind."""
        made = super().__new__(cls, text)
        made.kind = kind
        return made


@dataclass(frozen=True, slots=True)
class Scene:
    """What leases are judged by."""

    network: NetworkConfig
    own: Lease
    held: frozenset[Address]  # of this host, besides the overlay device's own
    encaps: frozenset[Encap]  # accepted and sent
    is_leased: bool  # nodes take their subnets by the network's rules; otherwise a person wrote them
    reach: Reach = ENCAPSULATED  # no lease is refused for it
    broadcasts: frozenset[Address] = frozenset()  # of our link: no node's
    # What follows, worked out once and not for each lease.
    inside: tuple[Address, ...] = field(init=False, compare=False, repr=False)  # those held in the network
    own_ips: frozenset[Address] = field(init=False, compare=False, repr=False)  # held, or of our lease
    own_versions: frozenset[int] = field(init=False, compare=False, repr=False)  # of our lease

    def __post_init__(self) -> None:
        """Work out what follows."""
        ips = self.own.public_ips()
        object.__setattr__(self, "inside", tuple(filter(self.network.holds, self.held)))
        object.__setattr__(self, "own_ips", self.held.union(ips))
        object.__setattr__(self, "own_versions", frozenset(ip.version for ip in ips))


def refuse(entry: Entry, scene: Scene) -> Refusal | None:
    """Say why a lease cannot be a peer, whatever other leases there are; None if it can."""
    lease = entry.lease
    if lease is None:
        return Refusal("unreadable", entry.problem or "it is unreadable")
    for kind, check in (("subnet", _refuse_subnets), ("address", _refuse_node), ("backend", _refuse_backend)):
        reason = check(lease, scene)
        if reason is not None:
            return Refusal(kind, reason)
    return None


def _refuse_subnets(lease: Lease, scene: Scene) -> str | None:
    network = scene.network
    for subnet in lease.key.subnets():
        is4 = subnet.version == 4
        whole, subnets = (network.network, network.subnets) if is4 else (network.network6, network.subnets6)
        if whole is None:
            return f"its subnet {subnet}: the network has no IPv{subnet.version}"
        if not overlap(subnet, whole) or subnet.prefixlen < whole.prefixlen:
            return f"its subnet {subnet} is outside the network {whole}"
        if subnet == whole:
            return f"its subnet {subnet} is the whole network"
        if scene.is_leased and subnets is not None and subnet.prefixlen != subnets.length:
            return f"its subnet {subnet} is no /{subnets.length}, as the network's are"
        mine = scene.own.key.subnet if is4 else scene.own.key.subnet6
        if mine is not None and overlap(subnet, mine):
            return f"its subnet {subnet} overlaps our own"
        for ip in scene.inside:
            if ip.version == subnet.version and ip in subnet:
                return f"its subnet {subnet} holds {ip}, an address of this host"
    return None


def _refuse_node(lease: Lease, scene: Scene) -> str | None:
    ips = lease.public_ips()
    for ip in ips:
        name = "PublicIP" if ip.version == 4 else "PublicIPv6"
        if ip in scene.own_ips:
            return f"its {name} {ip} is an address of this host"
        if ip in scene.broadcasts:
            return f"its {name} {ip} is a broadcast address"
        if scene.network.holds(ip):
            return f"its {name} {ip} lies inside the overlay network"
    if scene.own_versions.isdisjoint([ip.version for ip in ips]):
        return "it has no underlay address of a family that we have"
    return None


def _refuse_backend(lease: Lease, scene: Scene) -> str | None:
    if scene.network.encap is Encap.NONE and lease.encap is Encap.FLANNEL_UDP:
        return None
    if lease.encap is Encap.FLANNEL_UDP and lease.encap not in scene.encaps:
        return 'its "BackendType" is missing, or udp, which is not enabled here; see --encap'
    if lease.encap not in scene.encaps:
        return f"its backend {BACKEND_NAMES[lease.encap]} is not enabled here; see --encap"
    vni = scene.network.vni
    if lease.encap is Encap.VXLAN and lease.vni not in (None, vni, told_vni(vni)):
        return f"its VNI {lease.vni} is not the network's VNI {vni}"
    if lease.encap is Encap.VXLAN and lease.vtep_mac is None and lease.vtep_mac6 is None:
        return "it has no VtepMAC"
    if lease.encap in PLAIN_ENCAPS and scene.own.public_ip is None:
        return f"{BACKEND_NAMES[lease.encap]} needs an IPv4 underlay, and our lease has no PublicIP"
    if lease.encap in PLAIN_ENCAPS and (lease.public_ip is None or lease.key.subnet6 is not None):
        return f"{BACKEND_NAMES[lease.encap]} carries IPv4 over IPv4, and it has something else"
    return None


def find_collisions(entries: Iterable[Entry]) -> dict[str, Refusal]:
    """Say, by name, which leases claim an address or a subnet of another node.

    The table cannot hold a prefix twice. Of two that collide the older one stays, in whatever order they
    came; where ages are not known, the one with the lower name. One that is only held yields to any other.
    """
    refusals: dict[str, Refusal] = {}
    nodes: dict[Address, Lease] = {}  # who has this underlay address
    holders: dict[Network, Lease] = {}
    for entry in sorted(entries, key=lambda entry: (entry.is_held, entry.created, entry.name)):
        lease = entry.lease
        if lease is None:
            continue
        subnets = lease.key.subnets()
        taken = next((net for net in subnets if net in holders), None)
        stolen = next(
            (ip for ip in lease.public_ips() if ip in nodes and not is_same_node(lease, nodes[ip])), None
        )
        if taken is not None:
            reason = f"its subnet {taken} is also leased to {holders[taken].public_ips()[0]}"
            refusals[entry.name] = Refusal("collision", reason)
        elif stolen is not None:
            reason = f"its PublicIP {stolen} is also that of {nodes[stolen].key}"
            refusals[entry.name] = Refusal("collision", reason)
        else:
            nodes |= dict.fromkeys(lease.public_ips(), lease)
            holders |= dict.fromkeys(subnets, lease)
    return refusals


def is_same_node(one: Lease, other: Lease) -> bool:
    """Return whether two leases are of one node: it is known by its first public address."""
    return one.public_ips()[0] == other.public_ips()[0]
