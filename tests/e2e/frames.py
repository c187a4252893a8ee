# SPDX-License-Identifier: Apache-2.0
"""Packets and the nodes they travel between, built by scapy: an encoder that shares nothing with ours.

A case states only how it deviates: every builder makes a good packet, and takes the fields of a header to
change as a dict. Ethernet addresses are always given (scapy would otherwise ask the network for them).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scapy.layers.inet import IP, UDP, fragment
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

NETWORK = "10.244.0.0/16"
NETWORK6 = "fd00:244::/48"
VNI = 1
PORT = 8472
BARE_PORT = 8285  # of flannel's udp

DUT_MAC = "02:00:00:00:01:01"  # underlay interface of the host under test
WIRE_MAC = "02:00:00:00:01:02"  # the other end: whoever sends tunnel packets in these tests
POD_GATEWAY_MAC = "02:00:00:00:02:01"  # pods' side of the host under test
POD_MAC = "02:00:00:00:02:02"

Fields = Mapping[str, Any]
Lease = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the cluster: its number makes up its addresses."""

    number: int
    ip: str | None
    ip6: str | None = None
    encap: str = "vxlan"
    has_subnet6: bool = True

    @property
    def mac(self) -> str:
        """Its VTEP MAC for inner IPv4."""
        return f"02:4f:00:00:04:{self.number:02x}"

    @property
    def mac6(self) -> str:
        """Its VTEP MAC for inner IPv6."""
        return f"02:4f:00:00:06:{self.number:02x}"

    @property
    def subnet(self) -> str:
        """Its IPv4 subnet."""
        return f"10.244.{self.number}.0/24"

    @property
    def subnet6(self) -> str:
        """Its IPv6 subnet."""
        return f"fd00:244:0:{self.number}::/64"

    def pod(self, host: int = 5) -> str:
        """An IPv4 address in its subnet; host 0 is the node's own overlay address."""
        return f"10.244.{self.number}.{host}"

    def pod6(self, host: int = 5) -> str:
        """An IPv6 address in its subnet."""
        return f"fd00:244:0:{self.number}::{host:x}"

    @property
    def key(self) -> str:
        """The key of its lease."""
        return f"{self.subnet}&{self.subnet6}" if self.has_subnet6 else self.subnet

    @property
    def lease(self) -> Lease:
        """Its lease in flannel's JSON."""
        lease: Lease = {"PublicIP": self.ip or "0.0.0.0", "PublicIPv6": self.ip6, "BackendType": self.encap}
        if self.encap == "vxlan":
            lease["BackendData"] = {"VNI": VNI, "VtepMAC": self.mac}
            if self.has_subnet6:
                lease["BackendV6Data"] = {"VNI": VNI, "VtepMAC": self.mac6}
        return lease


US = Node(1, "192.0.2.1", "fd00:192::1")  # the host under test
DUAL = Node(2, "192.0.2.2", "fd00:192::2")  # VXLAN, each family over its own
FOUR = Node(3, "192.0.2.3")  # VXLAN, IPv6 pods over the IPv4 underlay
IPIP = Node(4, "192.0.2.4", encap="ipip", has_subnet6=False)
SIX = Node(5, None, "fd00:192::5")  # VXLAN, IPv4 pods over the IPv6 underlay
BARE = Node(6, "192.0.2.6", encap="udp", has_subnet6=False)  # bare packets in UDP; in no rig's default
STRANGER = Node(66, "192.0.2.66", "fd00:192::66")  # on the underlay, in no lease
PEERS = (DUAL, FOUR, IPIP, SIX)
OTHER_ADDRESS = "192.0.2.101"  # of the host under test, but not its underlay address
OTHER_ADDRESS6 = "fd00:192::101"


def peers_file(peers: tuple[Node, ...] = PEERS, **backend: object) -> dict[str, Any]:
    """Return the content of a peers file with us and these peers."""
    return {
        "network": {
            "Network": NETWORK,
            "EnableIPv6": True,
            "IPv6Network": NETWORK6,
            "Backend": {"Type": "vxlan", "VNI": VNI, "Port": PORT, **backend},
        },
        "leases": {node.key: node.lease for node in (US, *peers)},
    }


_serial = itertools.count(1)


def marker() -> bytes:
    """Return 16 bytes that occur in no other packet of this run."""
    return b"overlay-" + next(_serial).to_bytes(8, "big")


# --- inner packets ----------------------------------------------------------------------------------


def inner4(src: str, dst: str, payload: bytes | None = None, **ip: Any) -> Packet:
    """Return an IPv4 UDP packet of a pod, payload a marker by default."""
    return IP(src=src, dst=dst, **ip) / UDP(sport=40000, dport=5201) / Raw(payload or marker())


def inner6(src: str, dst: str, payload: bytes | None = None, **ip: Any) -> Packet:
    """Return an IPv6 UDP packet of a pod, payload a marker by default."""
    return IPv6(src=src, dst=dst, **ip) / UDP(sport=40000, dport=5201) / Raw(payload or marker())


def from_peer(peer: Node = DUAL, family: int = 4, **ip: Any) -> Packet:
    """Return a good inner packet from a pod of a peer to a pod of ours."""
    if family == 6:
        return inner6(**{"src": peer.pod6(), "dst": US.pod6(), **ip})
    return inner4(**{"src": peer.pod(), "dst": US.pod(), **ip})


def patched(packet: Packet | bytes, at: int, new: bytes) -> bytes:
    """Return a packet's bytes with some replaced."""
    old = bytes(packet)
    return old[:at] + new + old[at + len(new) :]


def family_of(packet: Packet | bytes) -> int:
    """Return 4 or 6, of an IP packet."""
    return 6 if bytes(packet)[:1] >= b"\x60" else 4


# --- tunnel packets ---------------------------------------------------------------------------------

VXLAN_HEADER = bytes([0x08, 0, 0, 0]) + VNI.to_bytes(3, "big") + b"\0"


def vxlan_payload(
    inner: Packet | bytes, header: bytes = VXLAN_HEADER, eth: Fields | None = None, peer: Node = DUAL
) -> bytes:
    """Return VXLAN header, inner Ethernet header and inner packet: what UDP carries."""
    is_v6 = family_of(inner) == 6
    macs = {"src": peer.mac6, "dst": US.mac6} if is_v6 else {"src": peer.mac, "dst": US.mac}
    fields = {**macs, "type": 0x86DD if is_v6 else 0x0800, **(eth or {})}
    return header + bytes(Ether(**fields) / Raw(bytes(inner)))


def link(packet: Packet, **fields: str) -> Packet:
    """Return an underlay packet in an Ethernet frame from the wire to the host under test."""
    return Ether(**{"src": WIRE_MAC, "dst": DUT_MAC, **fields}) / packet


def udp4(payload: bytes, peer: Node = DUAL, ip: Fields | None = None, udp: Fields | None = None) -> Packet:
    """Return a UDP packet to our VXLAN port over IPv4."""
    header = IP(**{"src": peer.ip, "dst": US.ip, "id": 0, "flags": "DF", **(ip or {})})
    return link(header / UDP(**{"sport": 50000, "dport": PORT, **(udp or {})}) / Raw(payload))


def udp6(payload: bytes, peer: Node = DUAL, ip: Fields | None = None, udp: Fields | None = None) -> Packet:
    """Return a UDP packet to our VXLAN port over IPv6."""
    header = IPv6(**{"src": peer.ip6, "dst": US.ip6, **(ip or {})})
    return link(header / UDP(**{"sport": 50000, "dport": PORT, **(udp or {})}) / Raw(payload))


def vxlan(inner: Packet | bytes, peer: Node = DUAL, **ip: Any) -> Packet:
    """Return a VXLAN frame over IPv4 from a peer, to be given outer IP fields."""
    return udp4(vxlan_payload(inner, peer=peer), peer, ip=ip)


def vxlan6(inner: Packet | bytes, peer: Node = DUAL, **ip: Any) -> Packet:
    """Return a VXLAN frame over IPv6 from a peer, to be given outer IP fields."""
    return udp6(vxlan_payload(inner, peer=peer), peer, ip=ip)


def ipip(inner: Packet | bytes, peer: Node = IPIP, **ip: Any) -> Packet:
    """Return an IPIP frame from a peer, to be given outer IP fields."""
    fields = {"src": peer.ip, "dst": US.ip, "id": 0, "flags": "DF", "proto": 4, **ip}
    return link(IP(**fields) / Raw(bytes(inner)))


def bare(
    inner: Packet | bytes, peer: Node = BARE, ip: Fields | None = None, udp: Fields | None = None
) -> Packet:
    """Return a bare packet in UDP from a peer as flannel sends it, to be given outer fields."""
    ports = {"sport": BARE_PORT, "dport": BARE_PORT}
    return udp4(bytes(inner), peer, ip, {**ports, **(udp or {})})


def fragments(frame: Packet, count: int) -> list[Packet]:
    """Return an IPv4 frame cut into that many outer fragments."""
    packet = IP(bytes(frame[IP]))
    packet.flags, packet.id = 0, next(_serial) & 0xFFFF
    size = -(-len(packet.payload) // count)
    pieces = fragment(packet, fragsize=size + -size % 8)
    assert len(pieces) == count
    return [link(piece) for piece in pieces]


def good(via: str = "vxlan") -> tuple[Packet, Packet]:
    """Return a good packet, as inner packet and as the frame that carries it."""
    if via == "ipip":
        inner = from_peer(IPIP)
        return inner, ipip(inner)
    if via == "udp":
        inner = from_peer(BARE)
        return inner, bare(inner)
    inner = from_peer(DUAL)
    return inner, vxlan(inner)


def is_tunnel(frame: bytes) -> bool:
    """Tell whether an Ethernet frame is VXLAN to our port, IPIP, or a bare packet in UDP."""
    packet = Ether(frame)
    if packet.type == 0x0800:
        ip = packet[IP]
        port = packet[UDP].dport if ip.proto == 17 and UDP in packet else None
        return ip.proto == 4 or port in (PORT, BARE_PORT)
    return bool(packet.type == 0x86DD and packet[IPv6].nh == 17 and packet[UDP].dport == PORT)


def payload_of(packet: Packet) -> bytes:
    """Return the marker of a packet."""
    return bytes(packet[Raw].load)


def recomputed(packet: Packet) -> bytes:
    """Return the packet as scapy encodes it with all checksums its own, but those behind a VXLAN header.

    scapy looks behind one if anybody in this process has imported its VXLAN layer.
    """
    copy = packet.__class__(bytes(packet))
    layer = copy
    while layer and layer.name != "VXLAN":
        if "chksum" in layer.fields:
            del layer.chksum
        layer = layer.payload
    return bytes(copy)
