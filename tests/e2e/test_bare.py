# SPDX-License-Identifier: Apache-2.0
"""flannel's `udp` both ways against scapy: bare IPv4 packets in UDP, beside VXLAN and IPIP.

    wire0 (the test as peers and strangers) ── UDP 8285 ── under0  overlayd  overlay0 ── the test

Drawn in full at the head of rig.py. A refused packet is always followed by a good one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from tests import oracle
from tests.e2e import frames
from tests.e2e.frames import (
    BARE,
    BARE_PORT,
    DUAL,
    DUT_MAC,
    IPIP,
    PEERS,
    STRANGER,
    US,
    WIRE_MAC,
    bare,
    from_peer,
    inner4,
    inner6,
    ipip,
    patched,
    vxlan,
)
from tests.e2e.rig import DEFAULT_FLAGS, Rig


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """Yield a rig with all three encapsulations, and a peer more."""
    peers = frames.peers_file((*PEERS, BARE))
    # A route of its own, because the neighbours of the usual peers are set up before the daemon starts.
    with Rig(
        tmp_path_factory.mktemp("bare") / "node", peers, (*DEFAULT_FLAGS, "--encap", "udp"), "u"
    ) as built:
        built.dut.ip(f"neigh replace {BARE.ip} lladdr {WIRE_MAC} dev under0 nud permanent\n")
        yield built


def good_inner(**ip: Any) -> Packet:
    """Return a good inner packet of the peer."""
    return from_peer(BARE, **ip)


GOOD: dict[str, Callable[[], tuple[Packet, Packet]]] = {
    "flannels": lambda: (inner := good_inner(), bare(inner)),
    "from-any-source-port": lambda: (inner := good_inner(), bare(inner, udp={"sport": 53})),
    "without-outer-checksum": lambda: (inner := good_inner(), bare(inner, udp={"chksum": 0})),
    "from-a-vxlan-peer": lambda: (inner := from_peer(DUAL), bare(inner, DUAL)),
    "from-the-ipip-peer": lambda: (inner := from_peer(IPIP), bare(inner, IPIP)),
    "vxlan-from-the-peer": lambda: (inner := good_inner(), vxlan(inner, BARE)),
    "ipip-from-the-peer": lambda: (inner := good_inner(), ipip(inner, BARE)),
    "to-our-overlay-address": lambda: (inner := good_inner(dst=US.pod(0)), bare(inner)),
    "from-node-address": lambda: (inner := good_inner(src=BARE.ip), bare(inner)),
    "ttl-1": lambda: (inner := good_inner(ttl=1), bare(inner)),
    "tunnel-of-a-pod": lambda: (inner := good_inner(proto=4), bare(inner)),
    "smallest": lambda: (inner := IP(src=BARE.pod(), dst=US.pod(), proto=253), bare(inner)),
}


@pytest.mark.parametrize("name", GOOD)
def test_good_packet_is_delivered_unchanged(rig: Rig, name: str) -> None:
    """A good packet comes out byte for byte; every enabled encapsulation is taken from every peer."""
    inner, frame = GOOD[name]()
    rig.accepted(frame, inner)


BAD_INNER: dict[str, tuple[str, Callable[[], bytes]]] = {
    "version-5": ("inner_version", lambda: patched(good_inner(), 0, b"\x55")),
    "ipv6": ("inner_version", lambda: bytes(from_peer(DUAL, 6))),
    "vxlan-header": ("inner_version", lambda: frames.vxlan_payload(good_inner())),
    "ihl-4": ("inner_header", lambda: bytes(good_inner(ihl=4))),
    "total-below-header": ("inner_length", lambda: bytes(good_inner(len=19))),
    "total-beyond-packet": ("inner_length", lambda: bytes(good_inner(len=45))),
    "bad-checksum": ("inner_csum", lambda: bytes(good_inner(chksum=0x1234))),
    "ttl-0": ("inner_ttl", lambda: bytes(good_inner(ttl=0))),
    "empty": ("short", lambda: b""),
    "martian": ("martian", lambda: bytes(good_inner(src="127.0.0.1"))),
    "multicast": ("multicast", lambda: bytes(good_inner(dst="224.0.0.5"))),
    "spoofed": ("spoofed", lambda: bytes(from_peer(DUAL))),
    "spoofed-ours": ("spoofed", lambda: bytes(good_inner(src=US.pod(9)))),
    "transit": ("not_ours", lambda: bytes(good_inner(dst=DUAL.pod()))),
    "relay": ("not_ours", lambda: bytes(good_inner(dst="203.0.113.5"))),
}


@pytest.mark.parametrize("name", BAD_INNER)
def test_bad_inner_packet_is_refused(rig: Rig, name: str) -> None:
    """What a datagram carries must be one good IPv4 packet that this peer may send to us."""
    reason, build = BAD_INNER[name]
    rig.refused(bare(build()), reason, via="udp")


@pytest.mark.parametrize("length", range(1, 20))
def test_truncated_inner_header_is_refused(rig: Rig, length: int) -> None:
    """An inner header cut short is refused at every length."""
    rig.refused(bare(bytes(good_inner())[:length]), "inner_header", via="udp")


def test_padding_is_trimmed(rig: Rig) -> None:
    """Bytes behind the inner total length are cut off before delivery."""
    inner = good_inner()
    rig.accepted(bare(bytes(inner) + bytes(40)), inner)


def _to(address: str, mac: str = DUT_MAC) -> Packet:
    frame = bare(good_inner(), ip={"dst": address})
    frame.dst = mac
    return frame


REFUSED: dict[str, tuple[str, Callable[[], Packet]]] = {
    "stranger": ("unknown_vtep", lambda: bare(good_inner(), STRANGER)),
    "outside": ("unknown_vtep", lambda: bare(good_inner(), ip={"src": "198.51.100.7"})),
    "other-address-of-this-host": ("outer_dst", lambda: _to(frames.OTHER_ADDRESS)),
    "our-overlay-address": ("outer_dst", lambda: _to(US.pod(0))),
    "subnet-broadcast": ("outer_dst", lambda: _to("192.0.2.255", "ff:ff:ff:ff:ff:ff")),
    "outer-checksum": ("kernel:Udp.InCsumErrors", lambda: bare(good_inner(), udp={"chksum": 0x1234})),
    "vxlan-port": ("inner_version", lambda: bare(frames.vxlan_payload(good_inner(), peer=BARE))),
    "on-the-vxlan-port": ("vxlan_flags", lambda: bare(good_inner(), udp={"dport": frames.PORT})),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_outer_packet_is_refused(rig: Rig, name: str) -> None:
    """It must come from a peer, to our underlay address, to the port of its encapsulation."""
    reason, build = REFUSED[name]
    rig.refused(build(), reason, via="udp")


@pytest.mark.parametrize("count", [2, 3, 4])
def test_outer_fragments_are_reassembled(rig: Rig, count: int) -> None:
    """A tunnel packet that was fragmented on its way is delivered whole."""
    inner = good_inner() / Raw(bytes(range(256)) * 4)
    rig.accepted(frames.fragments(bare(inner), count), inner)


@pytest.mark.parametrize("outer", oracle.ECN_ORDER, ids=oracle.ECN_NAMES.get)
@pytest.mark.parametrize("inner", oracle.ECN_ORDER, ids=oracle.ECN_NAMES.get)
def test_marks_combine(rig: Rig, inner: int, outer: int) -> None:
    """Outer and inner ECN marks combine as RFC 6040 figure 4 says."""
    packet = good_inner(tos=0xB8 | inner)
    expected = oracle.ecn_decap(inner, outer)
    frame = bare(packet, ip={"tos": outer})
    if expected is None:
        rig.refused(frame, "ecn", via="udp")
    else:
        packet.tos = 0xB8 | expected
        rig.accepted(frame, packet)


@pytest.mark.parametrize("tos", [0xB8, 0xB8 | 1, 2, 3])
@pytest.mark.parametrize("size", [0, 1, 576, 1400])
def test_sent_packet_is_flannels(rig: Rig, size: int, tos: int) -> None:
    """Outer: to port 8285, DF, TTL 64, the inner ECN mark. Payload: the inner packet, and nothing else."""
    packet = inner4(US.pod(), BARE.pod(), payload=bytes(size), tos=tos)
    frame = rig.sent(packet)
    outer = Ether(frame)[IP]
    inner = bytes(outer[UDP].payload)
    assert (outer.src, outer.dst, outer.proto, outer[UDP].dport) == (US.ip, BARE.ip, 17, BARE_PORT)
    assert (outer.len, str(outer.flags), outer.ttl, outer.tos) == (28 + len(inner), "DF", 64, tos & 3)
    assert frames.recomputed(Ether(frame)) == frame
    packet.ttl -= 1  # the host's forwarding; the tunnel takes none
    assert inner == bytes(packet)


def test_flows_are_spread_over_source_ports(rig: Rig) -> None:
    """Flows to one peer leave from several ports; each flow keeps its own."""
    flows = [inner4(US.pod(), BARE.pod(i)) for i in range(1, 33)]
    ports = [{Ether(rig.sent(flow))[UDP].sport for _ in range(2)} for flow in flows]
    assert {len(chosen) for chosen in ports} == {1}
    assert len(set.union(*ports)) >= 4


def test_larger_than_the_path_is_counted(rig: Rig) -> None:
    """What the route to the peer does not take is dropped as too big, and the next packet passes."""
    rig.dut.ip(f"route add {BARE.ip}/32 dev under0 mtu lock 1300\n")
    try:
        rig.unsent(inner4(US.pod(), BARE.pod(), payload=bytes(1380)), "too_big")
    finally:
        rig.dut.ip(f"route del {BARE.ip}/32 dev under0\n")


def test_ipv6_has_no_way(rig: Rig) -> None:
    """The peer has no IPv6 subnet, because nothing could carry it: such a packet has no peer."""
    rig.unsent(inner6(US.pod6(), BARE.pod6()), "no_peer")


def test_port_8285_over_ipv6_is_nobodys(rig: Rig) -> None:
    """Bare packets come over IPv4 alone: over IPv6 no socket hears them."""
    frame = frames.udp6(bytes(from_peer(DUAL, 6)), udp={"sport": BARE_PORT, "dport": BARE_PORT})
    rig.refused(frame, "kernel:Udp6NoPorts", via="udp")


def test_echo_with_the_host(rig: Rig) -> None:
    """A ping from the peer to our overlay address is answered over the same encapsulation."""
    ping = IP(src=BARE.pod(), dst=US.pod(0), id=7) / ICMP(id=9, seq=1) / Raw(b"x" * 64)
    rig.wire.take()
    rig.wire.send(bare(ping))
    frame = rig.wire.wait(frames.is_tunnel, "the echo")[-1]
    answer = IP(bytes(Ether(frame)[UDP].payload))
    assert (answer.dst, answer[ICMP].type, answer[ICMP].seq) == (BARE.pod(), 0, 1)
    assert frames.recomputed(answer) == bytes(answer)


def test_status_says_it(rig: Rig) -> None:
    """The peer is listed with its encapsulation."""
    peers = {peer["subnet"]: peer for peer in rig.daemon.status()["peers"]}
    assert peers[BARE.subnet]["encap"] == "flannel-udp"


def test_one_worker_with_all_sources_there_can_be(tmp_path: Path) -> None:
    """With most queues and every encapsulation one worker still hears each of its sockets."""
    flags = (*DEFAULT_FLAGS, "--encap", "udp", "--queues", "15", "--threads", "1")
    peers = frames.peers_file((*PEERS, BARE))
    with Rig(tmp_path / "node", peers, flags, "q") as rig:
        rig.dut.ip(f"neigh replace {BARE.ip} lladdr {WIRE_MAC} dev under0 nud permanent\n")
        assert rig.daemon.status()["workers"]["queues"] == 15
        for port in range(20):  # of one flow each: the kernel chooses the socket by them
            inner = good_inner()
            rig.accepted(bare(inner, udp={"sport": 50000 + port}), inner)
        rig.refused(_to(frames.OTHER_ADDRESS), "outer_dst", via="udp")
        for peer, wrap in ((DUAL, vxlan), (IPIP, ipip)):
            inner = from_peer(peer)
            rig.accepted(wrap(inner, peer), inner)
        rig.sent(inner4(US.pod(), BARE.pod()))
