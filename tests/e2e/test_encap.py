# SPDX-License-Identifier: Apache-2.0
"""What leaves: beside the kernel's own VXLAN byte for byte, and field by field. Cases 34 to 45 and 85.

    podw0 (the test as pods) ── pod0  overlayd  under0 ── wire0
                ref namespace:  vxlan4, vxlan6  under0 ── wirer  the same inner packet from the kernel

The first line is drawn in full at the head of rig.py. The ref namespace has the same addresses and MACs.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from bench.lab import Namespace
from tests.e2e import frames
from tests.e2e.frames import DUAL, FOUR, IPIP, PORT, SIX, US, VNI, inner4, inner6
from tests.e2e.rig import DEFAULT_FLAGS, Rig
from tests.e2e.tap import Tap

ETH_LEN, VXLAN_LEN = 14, 8
OUTER_LEN = {4: 20, 6: 40}  # bytes of the outer IP header


def split(frame: bytes) -> tuple[Packet, bytes]:
    """Return the outer packet and the bytes of the inner one of a VXLAN frame."""
    outer = Ether(frame).payload
    return outer, frame[ETH_LEN + OUTER_LEN[outer.version] + 8 + VXLAN_LEN + ETH_LEN :]


# --- 34: beside the kernel --------------------------------------------------------------------------

REFERENCE = f"""
link set lo up
link set under0 address {frames.DUT_MAC} up
addr add {US.ip}/24 dev under0
addr add {US.ip6}/64 dev under0 nodad
neigh add {DUAL.ip} lladdr {frames.WIRE_MAC} dev under0 nud permanent
neigh add {FOUR.ip} lladdr {frames.WIRE_MAC} dev under0 nud permanent
neigh add {DUAL.ip6} lladdr {frames.WIRE_MAC} dev under0 nud permanent
neigh add {SIX.ip6} lladdr {frames.WIRE_MAC} dev under0 nud permanent
link add vxlan4 type vxlan id {VNI} dev under0 local {US.ip} dstport {PORT} nolearning df set
link add vxlan6 type vxlan id {VNI} dev under0 local {US.ip6} dstport {PORT} nolearning
link set vxlan4 up
link set vxlan6 up
"""
FDB = {DUAL.mac: ("vxlan4", DUAL.ip), FOUR.mac: ("vxlan4", FOUR.ip), FOUR.mac6: ("vxlan4", FOUR.ip)}
FDB |= {DUAL.mac6: ("vxlan6", DUAL.ip6), SIX.mac: ("vxlan6", SIX.ip6)}


class Reference:
    """A kernel VXLAN endpoint in our place."""

    def __init__(self, far: Namespace) -> None:
        """Build it; its wire ends in `far`."""
        self.namespace = Namespace(f"e2e{os.getpid() % 100000}-ref")
        self.namespace.ip(f"link add under0 type veth peer name wirer netns {far.name}\n")
        far.ip(f"link set wirer address {frames.WIRE_MAC} up\n")
        self.namespace.ip(REFERENCE)
        self.namespace.run("ethtool", "-K", "under0", "tx", "off")
        for mac, (device, address) in FDB.items():
            self.namespace.run("bridge", "fdb", "append", mac, "dev", device, "dst", str(address))
        self.wire = Tap(far, "wirer")
        self.devices = {name: Tap(self.namespace, name) for name in ("vxlan4", "vxlan6")}

    def encapsulate(self, inner: bytes, mac: str) -> bytes:
        """Return the frame in which the kernel sends an inner packet to the peer with this VTEP MAC."""
        is_v6 = frames.family_of(inner) == 6
        source = US.mac6 if is_v6 else US.mac
        frame = Ether(src=source, dst=mac, type=0x86DD if is_v6 else 0x0800) / Raw(inner)
        self.wire.take()
        self.devices[FDB[mac][0]].send(frame)
        found = self.wire.wait(frames.is_tunnel, "the kernel's packet")  # and what its devices say when new
        return next(filter(frames.is_tunnel, reversed(found)))

    def close(self) -> None:
        """Take it down."""
        for tap in (self.wire, *self.devices.values()):
            tap.close()
        self.namespace.close()


@pytest.fixture(scope="module")
def reference(rig: Rig) -> Iterator[Reference]:
    """Yield the kernel VXLAN endpoint."""
    built = Reference(rig.far)
    yield built
    built.close()


def mask(frame: bytes) -> bytes:
    """Return a VXLAN frame without what a sender may choose: source port, UDP checksum, IP id, flow label."""
    masked = Ether(frame)
    assert frames.recomputed(masked) == frame, "a checksum is wrong"
    masked[UDP].sport = masked[UDP].chksum = 0
    if masked.type == 0x0800:
        masked[IP].id = masked[IP].chksum = 0
    else:
        masked[IPv6].fl = 0
    return bytes(masked)


def _tcp4(**tcp: object) -> Packet:
    fields = {"sport": 40000, "dport": 5201, "seq": 0x01020304, "ack": 7, "flags": "PA", **tcp}
    return IP(src=US.pod(), dst=DUAL.pod(), id=77) / TCP(**fields) / Raw(b"data")


SAME_AS_KERNEL: dict[str, tuple[str, Callable[[], Packet]]] = {
    "udp": (DUAL.mac, lambda: inner4(US.pod(), DUAL.pod())),
    "udp-df": (DUAL.mac, lambda: inner4(US.pod(), DUAL.pod(), flags="DF", id=5)),
    "udp-without-checksum": (DUAL.mac, lambda: IP(src=US.pod(), dst=DUAL.pod()) / UDP(chksum=0) / b"data"),
    "empty": (DUAL.mac, lambda: IP(src=US.pod(), dst=DUAL.pod(), proto=253)),
    "tcp": (DUAL.mac, _tcp4),
    "tcp-syn": (DUAL.mac, lambda: _tcp4(flags="S", options=[("MSS", 1390), ("WScale", 7)])),
    "icmp": (DUAL.mac, lambda: IP(src=US.pod(), dst=DUAL.pod()) / ICMP(id=3, seq=1) / Raw(bytes(56))),
    "largest": (DUAL.mac, lambda: inner4(US.pod(), DUAL.pod(), payload=bytes(1430 - 28))),
    "odd-length": (DUAL.mac, lambda: inner4(US.pod(), DUAL.pod(), payload=b"x" * 1001)),
    "first-fragment": (DUAL.mac, lambda: fragment(inner4(US.pod(), DUAL.pod(), payload=bytes(1200)), 600)[0]),
    "later-fragment": (DUAL.mac, lambda: fragment(inner4(US.pod(), DUAL.pod(), payload=bytes(1200)), 600)[1]),
    "dscp": (DUAL.mac, lambda: inner4(US.pod(), DUAL.pod(), tos=0xB8)),
    "ect0": (DUAL.mac, lambda: inner4(US.pod(), DUAL.pod(), tos=0xB8 | 2)),
    "ect1": (DUAL.mac, lambda: inner4(US.pod(), DUAL.pod(), tos=1)),
    "v6-over-v4": (FOUR.mac6, lambda: inner6(US.pod6(), FOUR.pod6())),
    "v6-over-v6": (DUAL.mac6, lambda: inner6(US.pod6(), DUAL.pod6())),
    "v6-icmp": (
        DUAL.mac6,
        lambda: IPv6(src=US.pod6(), dst=DUAL.pod6()) / ICMPv6EchoRequest(id=3, data=b"x" * 32),
    ),
    "v6-ect0": (DUAL.mac6, lambda: inner6(US.pod6(), DUAL.pod6(), tc=0xB8 | 2)),
    "v4-over-v6": (SIX.mac, lambda: inner4(US.pod(), SIX.pod())),
}


@pytest.mark.parametrize("name", SAME_AS_KERNEL, ids="case_034-{}".format)
def test_frame_is_the_kernels(rig: Rig, reference: Reference, name: str) -> None:
    """Our frame and the kernel's for the same inner packet differ only in what a sender may choose."""
    mac, build = SAME_AS_KERNEL[name]
    ours = rig.sent(build())
    assert mask(ours) == mask(reference.encapsulate(split(ours)[1], mac))


# --- 35 to 44: field by field -----------------------------------------------------------------------


def test_case_036_fragments_of_a_flow_share_the_source_port(rig: Rig) -> None:
    """All fragments of a datagram leave from one source port, so that no router reorders them."""
    pieces = fragment(inner4(US.pod(), DUAL.pod(), payload=bytes(3000), id=9), 1000)
    ports = {split(rig.sent(piece))[0][UDP].sport for piece in pieces}
    assert len(pieces) > 2
    assert len(ports) == 1


def test_case_035_source_port_is_in_the_recommended_range(rig: Rig) -> None:
    """RFC 7348 section 5: the source port is one of 49152 to 65535; one flow keeps its port."""
    for payload in (b"one", b"two", b"three"):
        ports = {
            split(rig.sent(inner4(US.pod(), DUAL.pod(), payload=payload)))[0][UDP].sport for _ in range(2)
        }
        assert len(ports) == 1
        assert 49152 <= ports.pop() <= 65535


def test_case_035_flows_are_spread_over_source_ports(rig: Rig) -> None:
    """Flows to one peer leave from several ports, to be told apart by; each flow keeps its own."""
    flows = [inner4(US.pod(), DUAL.pod(i)) for i in range(1, 33)]
    ports = [{split(rig.sent(flow))[0][UDP].sport for _ in range(2)} for flow in flows]
    assert {len(chosen) for chosen in ports} == {1}
    assert len(set.union(*ports)) >= 4


@pytest.mark.parametrize("ttl", [2, 64, 255], ids="case_037-{}".format)
def test_outer_ttl_is_64(rig: Rig, ttl: int) -> None:
    """The outer TTL is 64 whatever the inner one is."""
    assert split(rig.sent(inner4(US.pod(), DUAL.pod(), ttl=ttl)))[0].ttl == 64
    assert split(rig.sent(inner6(US.pod6(), DUAL.pod6(), hlim=ttl)))[0].hlim == 64


@pytest.mark.parametrize("dscp", [0x04, 0x28, 0xB8, 0xFC], ids="case_038-{:#x}".format)
def test_outer_dscp_is_0(rig: Rig, dscp: int) -> None:
    """The outer DSCP is 0 whatever the inner one is, which stays (RFC 2983, pipe model)."""
    outer, inner = split(rig.sent(inner4(US.pod(), DUAL.pod(), tos=dscp)))
    assert (outer.tos, IP(inner).tos) == (0, dscp)
    outer, inner = split(rig.sent(inner6(US.pod6(), DUAL.pod6(), tc=dscp)))
    assert (outer.tc, IPv6(inner).tc) == (0, dscp)


def test_case_039_vxlan_header_is_exact(rig: Rig) -> None:
    """I flag and VNI are set, everything else of the header is 0."""
    frame = rig.sent(inner4(US.pod(), DUAL.pod()))
    at = ETH_LEN + 20 + 8
    assert frame[at : at + VXLAN_LEN] == frames.VXLAN_HEADER


MACS: dict[str, tuple[Callable[[], Packet], str, str, int]] = {
    "v4": (lambda: inner4(US.pod(), DUAL.pod()), US.mac, DUAL.mac, 0x0800),
    "v6": (lambda: inner6(US.pod6(), DUAL.pod6()), US.mac6, DUAL.mac6, 0x86DD),
    "v6-over-v4": (lambda: inner6(US.pod6(), FOUR.pod6()), US.mac6, FOUR.mac6, 0x86DD),
    "v4-over-v6": (lambda: inner4(US.pod(), SIX.pod()), US.mac, SIX.mac, 0x0800),
}


@pytest.mark.parametrize("name", MACS, ids="case_040-{}".format)
def test_inner_macs_are_the_vteps(rig: Rig, name: str) -> None:
    """The inner Ethernet header has the VTEP MACs that both leases publish for the inner family."""
    build, source, destination, ethertype = MACS[name]
    frame = rig.sent(build())
    eth = Ether(frame[ETH_LEN + OUTER_LEN[Ether(frame).payload.version] + 8 + VXLAN_LEN :])
    assert (eth.src, eth.dst, eth.type) == (source, destination, ethertype)


@pytest.mark.parametrize("peer", [DUAL, IPIP], ids=["case_041-vxlan", "case_041-ipip"])
def test_outer_df_is_set_and_id_harmless(rig: Rig, peer: frames.Node) -> None:
    """DF is always set; then the IP id means nothing (RFC 6864), so it is 0 or varies."""
    outers = [Ether(rig.sent(inner4(US.pod(), peer.pod(), flags=flags)))[IP] for flags in ("", "DF", "")]
    assert {str(outer.flags) for outer in outers} == {"DF"}
    ids = [outer.id for outer in outers]
    assert set(ids) == {0} or len(set(ids)) == len(ids)


def test_case_042_outer_ipv6_has_a_valid_udp_checksum(rig: Rig) -> None:
    """Over IPv6 the UDP checksum is there and right, and the hop limit 64."""
    for packet in (inner6(US.pod6(), DUAL.pod6()), inner4(US.pod(), SIX.pod())):
        frame = rig.sent(packet)
        outer = Ether(frame)[IPv6]
        assert outer[UDP].chksum != 0
        assert frames.recomputed(Ether(frame)) == frame
        assert (outer.hlim, outer.plen) == (64, len(frame) - ETH_LEN - 40)


TTL_WAYS: dict[str, Callable[[int], Packet]] = {
    "vxlan": lambda ttl: inner4(US.pod(), DUAL.pod(), ttl=ttl),
    "vxlan6": lambda ttl: inner6(US.pod6(), DUAL.pod6(), hlim=ttl),
    "ipip": lambda ttl: inner4(US.pod(), IPIP.pod(), ttl=ttl),
}


@pytest.mark.parametrize("ttl", [2, 64, 255])
@pytest.mark.parametrize("way", TTL_WAYS, ids="case_044-{}".format)
def test_inner_packet_is_unchanged_but_for_the_hosts_hop(rig: Rig, way: str, ttl: int) -> None:
    """The host's forwarding takes one from the TTL; the tunnel takes none, and changes nothing else."""
    expected = bytes(TTL_WAYS[way](ttl - 1))
    packet = TTL_WAYS[way](ttl)
    packet[Raw].load = payload = bytes(expected[-16:])
    frame = rig.sent(packet)
    inner = frame[frame.index(payload) + len(payload) - len(expected) :]
    assert inner == expected


# --- 45: nobody to send to --------------------------------------------------------------------------


def is_unreachable(frame: bytes) -> bool:
    """Tell whether a frame is an ICMP destination unreachable, either family."""
    packet = Ether(frame)
    return (ICMP in packet and packet[ICMP].type == 3) or ICMPv6DestUnreach in packet


def test_case_045_no_peer_is_answered(rig: Rig) -> None:
    """A destination of no peer gets the pod "net unreachable", from that destination, quoting the packet."""
    packet = inner4(US.pod(), "10.244.99.5")
    rig.pod.take()
    rig.unsent(packet, "no_peer")
    error = Ether(rig.pod.wait(is_unreachable, "an ICMP error")[-1])[IP]
    assert (error.src, error.dst, error[ICMP].type, error[ICMP].code) == ("10.244.99.5", US.pod(), 3, 0)
    assert frames.payload_of(packet) in bytes(error[ICMP].payload)
    assert frames.recomputed(error) == bytes(error)


def test_case_045_no_peer_is_answered_v6(rig: Rig) -> None:
    """The same for IPv6: "no route to destination"."""
    packet = inner6(US.pod6(), "fd00:244:0:99::5")
    rig.pod.take()
    rig.unsent(packet, "no_peer")
    error = Ether(rig.pod.wait(is_unreachable, "an ICMP error")[-1])[IPv6]
    assert (error.src, error.dst, error[ICMPv6DestUnreach].code) == ("fd00:244:0:99::5", US.pod6(), 0)
    assert frames.payload_of(packet) in bytes(error)


def test_case_045_icmp_errors_are_never_answered(rig: Rig) -> None:
    """An ICMP error without a way gets no ICMP error (RFC 1122): it is only counted."""
    quote = bytes(inner4(US.pod(), "10.244.99.5"))[:28]
    packet = IP(src=US.pod(), dst="10.244.99.5") / ICMP(type=3, code=1) / Raw(quote)
    before = rig.daemon.settled().icmp_sent
    rig.unsent(packet, "no_peer")
    assert rig.daemon.settled().icmp_sent == before


def test_case_045_answers_are_rate_limited(rig: Rig) -> None:
    """A flood without a way is counted packet by packet and answered at a bounded rate."""
    count = 3000
    before, lost, start = rig.daemon.settled(), rig.daemon.tun_dropped(), time.monotonic()
    rig.pod.send(*[rig.to_pod_side(inner4(US.pod(), "10.244.99.5"))] * count)
    count -= rig.daemon.tun_dropped() - lost
    after = rig.daemon.settled(tx=before.tx.offered + count)
    seconds = time.monotonic() - start
    assert after.tx.drops["no_peer"] - before.tx.drops.get("no_peer", 0) == count
    assert after.icmp_sent - before.icmp_sent <= 100 + 1000 * seconds
    assert after.icmp_sent - before.icmp_sent < count / 2


def test_case_045_no_peer_is_silent_on_request(tmp_path: Path) -> None:
    """With --no-route drop the packet is counted and the pod hears nothing."""
    with Rig(tmp_path / "node", flags=(*DEFAULT_FLAGS, "--no-route", "drop"), name="s") as rig:
        rig.unsent([inner4(US.pod(), "10.244.99.5"), inner6(US.pod6(), "fd00:244:0:99::5")], "no_peer")
        assert rig.daemon.settled().icmp_sent == 0
        assert [frame for frame in rig.pod.take() if is_unreachable(frame)] == []


# --- 85: what the kernel left to us -----------------------------------------------------------------


class HostSocket:
    """A connected socket of the host itself, whose checksums the kernel leaves to the TUN."""

    def __init__(self, rig: Rig, family: int, kind: int) -> None:
        """Connect to a pod of a peer; for TCP that sends a SYN."""
        self.rig = rig
        self.before = rig.daemon.settled()
        rig.wire.take()
        self.sock = rig.dut.socket(socket.AF_INET6 if family == 6 else socket.AF_INET, kind, 0)
        self.sock.setblocking(False)
        self.sock.connect_ex((DUAL.pod6() if family == 6 else DUAL.pod(), 9))

    def sent(self, payload: bytes = b"") -> Packet:
        """Send a payload, if there is one, and return the inner packet on the wire; close."""
        if payload:
            self.sock.send(payload)
        inner = split(self.rig.wire.wait(frames.is_tunnel, "the host's packet")[-1])[1]
        self.rig.daemon.settled(tx=self.before.tx.offered + 1)
        self.sock.close()
        packet = IPv6(inner) if frames.family_of(inner) == 6 else IP(inner)
        assert frames.recomputed(packet) == inner
        return packet


@pytest.mark.parametrize("family", [4, 6])
def test_case_085_tcp_checksum_is_completed(rig: Rig, family: int) -> None:
    """A TCP packet whose checksum the kernel left to the device has a right one on the wire."""
    assert HostSocket(rig, family, socket.SOCK_STREAM).sent()[TCP].chksum != 0


@pytest.mark.parametrize("family", [4, 6])
def test_case_085_udp_checksum_is_completed(rig: Rig, family: int) -> None:
    """A UDP packet whose checksum the kernel left to the device has a right one on the wire."""
    assert HostSocket(rig, family, socket.SOCK_DGRAM).sent(b"odd")[UDP].chksum != 0


@pytest.mark.parametrize("family", [4, 6])
def test_case_085_udp_checksum_0_becomes_ffff(rig: Rig, family: int) -> None:
    """A UDP checksum that comes out as 0 is sent as 0xffff: 0 means there is none (RFC 768)."""
    host = HostSocket(rig, family, socket.SOCK_DGRAM)
    source, port = host.sock.getsockname()[:2]
    udp = UDP(sport=port, dport=9) / Raw(bytes(2))
    packet = IPv6(src=source, dst=DUAL.pod6()) / udp if family == 6 else IP(src=source, dst=DUAL.pod()) / udp
    rest = (IPv6 if family == 6 else IP)(bytes(packet))[UDP].chksum  # what is missing to make the sum 0
    assert host.sent(rest.to_bytes(2, "big"))[UDP].chksum == 0xFFFF
