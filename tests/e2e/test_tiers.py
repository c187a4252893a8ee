# SPDX-License-Identifier: Apache-2.0
"""Without each offload, and without any, the same packets come out, with their checksums finished.

    podw0 (the test as a pod) ── pod0, no offloads  overlayd --disable …  under0 ── wire0 (the test as peers)

Drawn in full at the head of rig.py.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from scapy.utils import checksum

from tests.e2e import frames
from tests.e2e.frames import DUAL, IPIP, US, from_peer, inner4, inner6, ipip, vxlan, vxlan6
from tests.e2e.rig import DEFAULT_FLAGS, Rig

# What --disable leaves out, and what status says then.
TIERS = {
    "": "full",
    "tun-uso": "full but tun-uso",
    "tun-tso": "full but tun-tso",
    "tun-csum": "full but tun-csum, tun-tso, tun-uso",
    "tun-gro": "full but tun-gro, tun-ugro",
    "tun-ugro,udp-gro": "full but udp-gro, tun-ugro",
    "udp-gso,mmsg": "full but mmsg, udp-gso",
    "tun-vnet": "full but tun-vnet, tun-csum, tun-tso, tun-uso, tun-gro, tun-ugro",
    "all": "plain",
}


@pytest.fixture(scope="module", params=TIERS, ids=lambda disabled: disabled or "none")
def tiered(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """Yield a rig for each; what reaches a pod has its checksums finished, as on a real card."""
    flags = (*DEFAULT_FLAGS, *(("--disable", request.param) if request.param else ()))
    with Rig(tmp_path_factory.mktemp("tier") / "node", flags=flags, name="ti") as built:
        built.dut.run("ethtool", "-K", "pod0", "tx", "off")
        assert built.daemon.status()["tier"] == TIERS[request.param]
        yield built


def test_packets_pass_both_ways(tiered: Rig) -> None:
    """Good packets come out unchanged in every encapsulation, bad ones do not."""
    for inner, wrap in ((from_peer(DUAL), vxlan), (from_peer(DUAL, 6), vxlan6), (from_peer(IPIP), ipip)):
        tiered.accepted(wrap(inner), inner)
    for packet in (
        inner4(US.pod(), DUAL.pod()),
        inner6(US.pod6(), DUAL.pod6()),
        inner4(US.pod(), IPIP.pod()),
    ):
        assert frames.payload_of(packet) in tiered.sent(packet)
    tiered.refused(vxlan(from_peer(DUAL), frames.STRANGER), "unknown_vtep")
    tiered.unsent(inner4("203.0.113.1", DUAL.pod()), "foreign_source")


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM], ids=["udp", "tcp"])
@pytest.mark.parametrize("family", [4, 6])
def test_case_085_what_leaves_has_its_checksum(tiered: Rig, family: int, kind: int) -> None:
    """A packet of the host's own sockets is on the wire with a right checksum, whoever computed it."""
    tiered.wire.take()
    with tiered.dut.socket(socket.AF_INET6 if family == 6 else socket.AF_INET, kind) as sock:
        sock.setblocking(False)
        sock.connect_ex((DUAL.pod6() if family == 6 else DUAL.pod(), 9))
        if kind == socket.SOCK_DGRAM:
            sock.send(b"payload")
        frame = tiered.wire.wait(frames.is_tunnel, "the host's packet")[-1]
    inner = frame[(62 if family == 6 else 42) + 22 :]
    packet = IPv6(inner) if family == 6 else IP(inner)
    assert frames.recomputed(packet) == inner
    assert (packet[UDP] if UDP in packet else packet[TCP]).chksum != 0


def with_partial_checksum(packet: Packet, l4: type[Packet]) -> Packet:
    """Return a packet as a kernel leaves it to a card: the checksum field holds the pseudo-header's sum."""
    length = len(bytes(packet[l4]))
    family = socket.AF_INET6 if IPv6 in packet else socket.AF_INET
    pseudo = socket.inet_pton(family, packet.src) + socket.inet_pton(family, packet.dst)
    pseudo += length.to_bytes(4, "big") + (6 if l4 is TCP else 17).to_bytes(4, "big")
    packet[l4].chksum = ~checksum(pseudo) & 0xFFFF
    return packet


@pytest.mark.parametrize("l4", [UDP, TCP])
@pytest.mark.parametrize("family", [4, 6])
def test_partial_checksum_of_a_kernel_peer_is_finished(tiered: Rig, family: int, l4: type[Packet]) -> None:
    """A kernel peer may leave inner checksums unfinished: the pod gets the packet with a right one."""
    payload = frames.marker()
    header = IPv6(src=DUAL.pod6(), dst=US.pod6()) if family == 6 else IP(src=DUAL.pod(), dst=US.pod())
    packet = header / l4(sport=40000, dport=5201) / Raw(payload)
    whole = packet.copy()
    inner = with_partial_checksum(packet, l4)
    assert bytes(inner) != bytes(whole)
    before = tiered.daemon.settled()
    tiered.pod.take()
    tiered.wire.send(vxlan6(inner) if family == 6 else vxlan(inner))
    frame = tiered.pod.wait(lambda got: payload in got, "the packet at the pod")[-1]
    assert tiered.daemon.settled(rx=before.rx.offered + 1).rx.forwarded == before.rx.forwarded + 1
    got = Ether(frame).payload
    assert got[l4].chksum == whole.__class__(bytes(whole))[l4].chksum
