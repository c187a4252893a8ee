# SPDX-License-Identifier: Apache-2.0
"""Tunnel packets that nobody should believe, made by scapy: what a stranger would send."""

from __future__ import annotations

from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN


def vxlan_payload(inner_src: str, inner_dst: str, src_mac: str, dst_mac: str, vni: int = 1) -> bytes:
    """Return the UDP payload of a VXLAN packet that carries a ping."""
    frame = Ether(src=src_mac, dst=dst_mac) / IP(src=inner_src, dst=inner_dst) / ICMP() / b"forged"
    return bytes(VXLAN(flags="Instance", vni=vni) / frame)


def forged_packet(outer_src: str, outer_dst: str, port: int, payload: bytes) -> bytes:
    """Return a whole IP packet with an outer source of one's choice, for a raw socket."""
    return bytes(IP(src=outer_src, dst=outer_dst) / UDP(sport=40000, dport=port) / payload)
