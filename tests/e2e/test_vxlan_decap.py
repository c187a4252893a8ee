# SPDX-License-Identifier: Apache-2.0
"""What comes out of a VXLAN packet, and what is refused: cases 1 to 23.

    wire0 (the test as peers and strangers) ── VXLAN ──> under0  overlayd  overlay0 ──> the test

Drawn in full at the head of rig.py. A refused packet is always followed by a good one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from scapy.layers.inet import IPOption_NOP
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet, Raw

from tests.e2e import frames
from tests.e2e.frames import (
    DUAL,
    FOUR,
    IPIP,
    SIX,
    STRANGER,
    US,
    VXLAN_HEADER,
    from_peer,
    inner4,
    inner6,
    patched,
    udp4,
    udp6,
    vxlan,
    vxlan6,
    vxlan_payload,
)
from tests.e2e.rig import DEFAULT_FLAGS, Rig, risen

VXLAN_LEN, ETH_LEN, IP4_LEN, IP6_LEN = 8, 14, 20, 40
RESERVED_BITS = [bit for bit in range(64) if bit != 4 and not 32 <= bit < 56]  # of the header, from its first


@pytest.fixture(scope="module")
def ignoring_rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """Yield a rig whose overlayd ignores reserved bits, as RFC 7348 says."""
    flags = (*DEFAULT_FLAGS, "--vxlan-reserved", "ignore")
    with Rig(tmp_path_factory.mktemp("ignoring") / "node", flags=flags, name="r") as built:
        yield built


# --- good packets -----------------------------------------------------------------------------------

GOOD: dict[str, Callable[[], tuple[Packet, Packet]]] = {
    "v4-over-v4": lambda: (inner := from_peer(DUAL), vxlan(inner)),
    "v6-over-v4": lambda: (inner := from_peer(FOUR, 6), vxlan(inner, FOUR)),
    "v4-over-v6": lambda: (inner := from_peer(SIX), vxlan6(inner, SIX)),
    "v6-over-v6": lambda: (inner := from_peer(DUAL, 6), vxlan6(inner)),
    "v6-over-the-other-family": lambda: (inner := from_peer(DUAL, 6), vxlan(inner)),
    "from-overlay-address": lambda: (inner := inner4(DUAL.pod(0), US.pod()), vxlan(inner)),
    "from-node-address": lambda: (inner := inner4(str(DUAL.ip), US.pod()), vxlan(inner)),
    "from-node-address-v6": lambda: (inner := inner6(str(DUAL.ip6), US.pod6()), vxlan6(inner)),
    "to-overlay-address": lambda: (inner := from_peer(dst=US.pod(0)), vxlan(inner)),
}


@pytest.mark.parametrize("name", GOOD)
def test_good_packet_is_delivered_unchanged(rig: Rig, name: str) -> None:
    """A good packet comes out of the TUN byte for byte, whatever families are inside and outside."""
    inner, frame = GOOD[name]()
    rig.accepted(frame, inner)


# --- 1 to 5: UDP payload, VXLAN header, sender ------------------------------------------------------


@pytest.mark.parametrize("length", range(VXLAN_LEN + ETH_LEN + IP4_LEN), ids="case_001-{}".format)
def test_truncated_payload_is_refused(rig: Rig, length: int) -> None:
    """A UDP payload too short for VXLAN, Ethernet and IP headers is refused at every length."""
    reason = "short" if length < VXLAN_LEN + ETH_LEN else "inner_header"
    rig.refused(udp4(vxlan_payload(from_peer())[:length]), reason)


@pytest.mark.parametrize("length", range(ETH_LEN + VXLAN_LEN, 62, 13), ids="case_001-v6-{}".format)
def test_truncated_v6_payload_is_refused(rig: Rig, length: int) -> None:
    """A UDP payload too short for an inner IPv6 header is refused."""
    rig.refused(udp6(vxlan_payload(from_peer(family=6))[:length]), "inner_header")


@pytest.mark.parametrize("flags", [0x00, 0xF7], ids="case_002-{:02x}".format)
def test_clear_i_flag_is_refused(rig: Rig, flags: int) -> None:
    """Without the I flag there is no VNI, so there is no packet."""
    rig.refused(udp4(vxlan_payload(from_peer(), header=bytes([flags]) + VXLAN_HEADER[1:])), "vxlan_flags")


@pytest.mark.parametrize("flags", [0x00, 0xF7], ids="case_002-ignore-{:02x}".format)
def test_clear_i_flag_is_refused_whatever_is_ignored(ignoring_rig: Rig, flags: int) -> None:
    """The I flag is no reserved bit: --vxlan-reserved ignore does not ignore that it is clear."""
    payload = vxlan_payload(from_peer(), header=bytes([flags]) + VXLAN_HEADER[1:])
    ignoring_rig.refused(udp4(payload), "vxlan_flags")


def _set_bit(bit: int) -> bytes:
    return (int.from_bytes(VXLAN_HEADER, "big") | 1 << (63 - bit)).to_bytes(8, "big")


def test_reserved_bits_are_39() -> None:
    """The header has 7 + 24 + 8 reserved bits."""
    assert len(RESERVED_BITS) == 39


@pytest.mark.parametrize("bit", RESERVED_BITS, ids="case_003-bit{}".format)
def test_reserved_bit_is_refused(rig: Rig, bit: int) -> None:
    """Each reserved bit marks an extension with a payload of another kind: refused, as the kernel does."""
    rig.refused(udp4(vxlan_payload(from_peer(), header=_set_bit(bit))), "vxlan_flags")


@pytest.mark.parametrize("bit", RESERVED_BITS, ids="case_003-ignore-bit{}".format)
def test_reserved_bit_is_ignored_on_request(ignoring_rig: Rig, bit: int) -> None:
    """With --vxlan-reserved ignore each reserved bit is ignored, as RFC 7348 says."""
    inner = from_peer()
    ignoring_rig.accepted(udp4(vxlan_payload(inner, header=_set_bit(bit))), inner)


@pytest.mark.parametrize(
    "vni", [frames.VNI - 1, frames.VNI + 1, 0xFFFFFF, 0x010000], ids="case_004-{:#x}".format
)
def test_other_vni_is_refused(rig: Rig, vni: int) -> None:
    """Only our VNI is taken; there is no default one."""
    header = VXLAN_HEADER[:4] + vni.to_bytes(3, "big") + b"\0"
    rig.refused(udp4(vxlan_payload(from_peer(), header=header)), "vni")


UNKNOWN_SOURCES: dict[str, Callable[[], Packet]] = {
    "stranger": lambda: udp4(vxlan_payload(from_peer()), STRANGER),
    "stranger-v6": lambda: udp6(vxlan_payload(from_peer(family=6)), STRANGER),
    "overlay-address-of-a-peer": lambda: vxlan(from_peer(), src=DUAL.pod(0)),
    "outside": lambda: vxlan(from_peer(), src="198.51.100.7"),
    "our-own-v6": lambda: vxlan6(from_peer(family=6), src=str(US.ip6)),
}


@pytest.mark.parametrize("name", UNKNOWN_SOURCES, ids="case_005-{}".format)
def test_unknown_source_is_refused(rig: Rig, name: str) -> None:
    """A good packet from an underlay address that is no peer's is refused."""
    rig.refused(UNKNOWN_SOURCES[name](), "unknown_vtep")


def _martian_sources() -> int:
    """Return how many packets this kernel has dropped for their source, in all namespaces."""
    lines = Path("/proc/net/stat/rt_cache").read_text(encoding="ascii").splitlines()
    column = lines[0].split().index("in_martian_src")
    return sum(int(line.split()[column], 16) for line in lines[1:])


def test_case_005_our_own_address_is_refused_by_the_kernel(rig: Rig) -> None:
    """Over IPv4 the kernel drops what comes from the wire with our own address; nothing of it gets to us."""
    inner, good = frames.good()
    before, martians = rig.daemon.settled(), _martian_sources()
    rig.overlay.take()
    rig.wire.send(vxlan(from_peer(), src=str(US.ip)), good)
    seen = rig.overlay.wait(lambda got: got == bytes(inner), "the good packet")
    after = rig.daemon.settled(rx=before.rx.offered + 1)
    assert [bytes(inner)] == seen + rig.overlay.take()
    assert after.rx.offered == before.rx.offered + 1
    assert risen(before, after) == {}
    assert _martian_sources() > martians


# --- 6 to 8: who may send from where to where -------------------------------------------------------

SPOOFED: dict[str, Callable[[], Packet]] = {
    "case_006-other-peers-pod": lambda: vxlan(inner4(FOUR.pod(), US.pod())),
    "case_006-other-peers-pod-v6": lambda: vxlan(inner6(FOUR.pod6(), US.pod6())),
    "case_006-ipip-peers-pod": lambda: vxlan(inner4(IPIP.pod(), US.pod())),
    "case_006-subnet-of-nobody": lambda: vxlan(inner4("10.244.99.5", US.pod())),
    "case_006-outside-the-network": lambda: vxlan(inner4("203.0.113.5", US.pod())),
    "case_006-outside-the-network-v6": lambda: vxlan6(inner6("2001:db8::5", US.pod6())),
    "case_006-other-peers-node-address": lambda: vxlan(inner4(str(FOUR.ip), US.pod())),
    "case_007-our-subnet": lambda: vxlan(inner4(US.pod(9), US.pod())),
    "case_007-our-subnet-v6": lambda: vxlan(inner6(US.pod6(9), US.pod6())),
    "case_007-our-overlay-address": lambda: vxlan(inner4(US.pod(0), US.pod())),
    "case_007-our-node-address": lambda: vxlan(inner4(str(US.ip), US.pod())),
    "case_007-our-node-address-v6": lambda: vxlan6(inner6(str(US.ip6), US.pod6())),
}


@pytest.mark.parametrize("name", SPOOFED)
def test_foreign_inner_source_is_refused(rig: Rig, name: str) -> None:
    """An inner source that is not the sending peer's is refused, whoever else's it is."""
    rig.refused(SPOOFED[name](), "spoofed")


FOREIGN_DESTINATIONS: dict[str, Callable[[], Packet]] = {
    "transit-to-a-peer": lambda: vxlan(from_peer(dst=FOUR.pod())),
    "back-to-the-sender": lambda: vxlan(from_peer(dst=DUAL.pod(9))),
    "subnet-of-nobody": lambda: vxlan(from_peer(dst="10.244.99.5")),
    "outside-the-network": lambda: vxlan(from_peer(dst="203.0.113.5")),
    "our-node-address": lambda: vxlan(from_peer(dst=US.ip)),
    "transit-to-a-peer-v6": lambda: vxlan(from_peer(DUAL, 6, dst=FOUR.pod6())),
    "our-node-address-v6": lambda: vxlan6(from_peer(DUAL, 6, dst=US.ip6)),
}


@pytest.mark.parametrize("name", FOREIGN_DESTINATIONS, ids="case_008-{}".format)
def test_foreign_inner_destination_is_refused(rig: Rig, name: str) -> None:
    """An inner destination outside our subnet is refused: this node is nobody's transit or relay."""
    rig.refused(FOREIGN_DESTINATIONS[name](), "not_ours")


# --- 9 to 11: the inner Ethernet header -------------------------------------------------------------

MACS = {
    "case_009-peers": {"dst": DUAL.mac},
    "case_009-broadcast": {"dst": "ff:ff:ff:ff:ff:ff"},
    "case_009-multicast": {"dst": "01:00:5e:00:00:01"},
    "case_009-zero": {"dst": "00:00:00:00:00:00"},
    "case_009-of-the-other-family": {"dst": US.mac6},
    "case_009-of-the-underlay-interface": {"dst": frames.DUT_MAC},
    "case_010-ours": {"src": US.mac},
    "case_010-ours-of-the-other-family": {"src": US.mac6},
    "case_010-multicast": {"src": "03:00:5e:00:00:01"},
    "case_010-broadcast": {"src": "ff:ff:ff:ff:ff:ff"},
    "case_010-zero": {"src": "00:00:00:00:00:00"},
}


@pytest.mark.parametrize("name", MACS)
def test_impossible_inner_mac_is_refused(rig: Rig, name: str) -> None:
    """The inner frame must be for our VTEP MAC, and its source could be somebody's and is not ours."""
    rig.refused(udp4(vxlan_payload(from_peer(), eth=MACS[name])), "inner_mac")


def test_case_010_any_unicast_source_mac_is_taken(rig: Rig) -> None:
    """A source MAC that differs from the lease's is taken: a peer that got a new one is not cut off."""
    inner = from_peer()
    rig.accepted(udp4(vxlan_payload(inner, eth={"src": "02:00:00:12:34:56"})), inner)


ETHERTYPES = {
    "arp": 0x0806,
    "vlan": 0x8100,
    "qinq": 0x88A8,
    "mpls": 0x8847,
    "zero": 0,
    "length": 60,
    "max": 0xFFFF,
}


@pytest.mark.parametrize("name", ETHERTYPES, ids="case_011-{}".format)
def test_other_ethertype_is_refused(rig: Rig, name: str) -> None:
    """Only IPv4 and IPv6 come out of the tunnel: no ARP, no tags, no other protocol."""
    rig.refused(udp4(vxlan_payload(from_peer(), eth={"type": ETHERTYPES[name]})), "ethertype")


# --- 12 to 15: the inner IP header ------------------------------------------------------------------


def _v6_with_extension(extension: bytes) -> bytes:
    return bytes(IPv6(src=DUAL.pod6(), dst=US.pod6(), nh=0) / Raw(extension))


def _v6_length(length: int) -> bytes:
    return patched(from_peer(family=6), 4, length.to_bytes(2, "big"))


BAD_INNER: dict[str, tuple[str, Callable[[], bytes]]] = {
    "case_012-version-5": ("inner_version", lambda: patched(from_peer(), 0, b"\x55")),
    "case_012-version-0": ("inner_version", lambda: patched(from_peer(), 0, b"\x05")),
    "case_012-version-6-as-ipv4": ("inner_version", lambda: bytes(from_peer(family=6))),
    "case_012-ihl-4": ("inner_header", lambda: bytes(from_peer(ihl=4))),
    "case_012-ihl-0": ("inner_header", lambda: bytes(from_peer(ihl=0))),
    "case_012-ihl-beyond-packet": ("inner_header", lambda: patched(from_peer(), 0, b"\x4f")[:40]),
    "case_012-total-below-header": ("inner_length", lambda: bytes(from_peer(len=19))),
    "case_012-total-zero": ("inner_length", lambda: bytes(from_peer(len=0))),
    "case_012-total-below-options": (
        "inner_length",
        lambda: bytes(from_peer(len=23, options=[IPOption_NOP()])),
    ),
    "case_012-total-beyond-packet": ("inner_length", lambda: bytes(from_peer(len=45))),
    "case_012-total-max": ("inner_length", lambda: bytes(from_peer(len=0xFFFF))),
    "case_014-bad-checksum": ("inner_csum", lambda: bytes(from_peer(chksum=0x1234))),
    "case_014-checksum-off-by-one-bit": ("inner_csum", lambda: _flip_checksum_bit()),
    "case_015-payload-larger": ("inner_length", lambda: _v6_length(25)),
    "case_029-ttl-0": ("inner_ttl", lambda: bytes(from_peer(ttl=0))),
    "case_029-hop-limit-0": ("inner_ttl", lambda: bytes(from_peer(DUAL, 6, hlim=0))),
    "case_012-extension-header-cut-short": ("inner_header", lambda: _v6_with_extension(bytes(6))),
    "case_012-extension-header-beyond-packet": (
        "inner_header",
        lambda: _v6_with_extension(b"\x3b\x01" + bytes(6)),
    ),
}


def _flip_checksum_bit() -> bytes:
    packet = bytes(from_peer())
    return patched(packet, 11, bytes([packet[11] ^ 1]))


@pytest.mark.parametrize("name", BAD_INNER)
def test_bad_inner_header_is_refused(rig: Rig, name: str) -> None:
    """An inner header that contradicts itself or what arrived is refused."""
    reason, build = BAD_INNER[name]
    inner = build()
    eth = {"type": 0x0800, "dst": US.mac, "src": DUAL.mac} if name.endswith("as-ipv4") else None
    rig.refused(udp4(vxlan_payload(inner, eth=eth)), reason)


@pytest.mark.parametrize("length", [*range(0xFFD8, 0x10000, 7), 0xFFFF], ids="case_015-{:#x}".format)
def test_wrapping_payload_length_is_refused(rig: Rig, length: int) -> None:
    """A payload length that with 40 bytes of header exceeds 16 bits is refused, not taken for a small one."""
    rig.refused(vxlan(_v6_length(length)), "inner_length")


@pytest.mark.parametrize("padding", [1, 2, 18, 1000], ids="case_013-{}".format)
def test_padding_is_trimmed(rig: Rig, padding: int) -> None:
    """Bytes behind the inner total length, such as Ethernet padding, are cut off before delivery."""
    inner = from_peer()
    rig.accepted(vxlan(bytes(inner) + bytes(padding)), inner)


@pytest.mark.parametrize("padding", [1, 46], ids="case_015-smaller-{}".format)
def test_padding_is_trimmed_v6(rig: Rig, padding: int) -> None:
    """Bytes behind the inner IPv6 payload length are cut off before delivery."""
    inner = from_peer(family=6)
    rig.accepted(vxlan(bytes(inner) + bytes(padding)), inner)


# --- 16 and 17: addresses that are nobody's ---------------------------------------------------------

MARTIANS = ["127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3", "224.0.0.1", "239.1.1.1", "240.0.0.1"]
MARTIANS += ["255.255.255.255", "::", "::1", "ff02::1", "::ffff:10.244.2.5", "::10.244.2.5", "fe80::2"]


@pytest.mark.parametrize("source", MARTIANS, ids="case_016-{}".format)
def test_martian_source_is_refused(rig: Rig, source: str) -> None:
    """A source that can be nobody's is refused."""
    inner = inner6(source, US.pod6()) if ":" in source else inner4(source, US.pod())
    rig.refused(vxlan(inner), "martian")


MANY = ["224.0.0.1", "239.255.255.255", "255.255.255.255", "0.0.0.0", "240.0.0.1", "ff02::1", "ff0e::1", "::"]


@pytest.mark.parametrize("destination", MANY, ids="case_017-{}".format)
def test_multicast_destination_is_refused(rig: Rig, destination: str) -> None:
    """An inner packet for many, for all or for nobody is refused."""
    if ":" in destination:
        rig.refused(vxlan(inner6(DUAL.pod6(), destination)), "multicast")
    else:
        rig.refused(vxlan(inner4(DUAL.pod(), destination)), "multicast")


# --- 18 to 23: the outer headers --------------------------------------------------------------------

OUTER_DESTINATIONS: dict[str, Callable[[], Packet]] = {
    "subnet-broadcast": lambda: _outer_to("192.0.2.255", "ff:ff:ff:ff:ff:ff"),
    "broadcast": lambda: _outer_to("255.255.255.255", "ff:ff:ff:ff:ff:ff"),
    "multicast": lambda: _outer_to("224.0.0.1", "01:00:5e:00:00:01"),
    "other-address-of-this-host": lambda: _outer_to(frames.OTHER_ADDRESS, frames.DUT_MAC),
    "our-overlay-address": lambda: _outer_to(US.pod(0), frames.DUT_MAC),
    "other-address-of-this-host-v6": lambda: vxlan6(from_peer(family=6), dst=frames.OTHER_ADDRESS6),
}


def _outer_to(address: str, mac: str) -> Packet:
    frame = vxlan(from_peer(), dst=address)
    frame.dst = mac
    return frame


@pytest.mark.parametrize("name", OUTER_DESTINATIONS, ids="case_018-{}".format)
def test_other_outer_destination_is_refused(rig: Rig, name: str) -> None:
    """A tunnel packet to anything but our underlay address is refused, although the socket hears it."""
    rig.refused(OUTER_DESTINATIONS[name](), "outer_dst")


def test_case_019_bad_udp_checksum_is_refused_by_the_kernel(rig: Rig) -> None:
    """A wrong outer UDP checksum costs the packet in the kernel, which counts it."""
    rig.refused(udp4(vxlan_payload(from_peer()), udp={"chksum": 0x1234}), "kernel:Udp.InCsumErrors")


def test_case_019_bad_udp_checksum_is_refused_by_the_kernel_v6(rig: Rig) -> None:
    """The same over IPv6."""
    rig.refused(udp6(vxlan_payload(from_peer(family=6)), udp={"chksum": 0x1234}), "kernel:Udp6InCsumErrors")


def test_case_020_zero_udp_checksum_is_taken_over_ipv4(rig: Rig) -> None:
    """RFC 7348: a zero checksum must be accepted."""
    inner = from_peer()
    rig.accepted(udp4(vxlan_payload(inner), udp={"chksum": 0}), inner)


def test_case_020_zero_udp_checksum_is_refused_over_ipv6(rig: Rig) -> None:
    """RFC 6936 is not turned on: IPv6 without UDP checksum is dropped by the kernel, which counts it."""
    rig.refused(udp6(vxlan_payload(from_peer(family=6)), udp={"chksum": 0}), "kernel:Udp6InCsumErrors")


@pytest.mark.parametrize("ihl", range(6, 16), ids="case_021-ihl{}".format)
def test_outer_options_are_skipped(rig: Rig, ihl: int) -> None:
    """Outer IP options of every length change nothing."""
    inner = from_peer()
    rig.accepted(vxlan(inner, options=[IPOption_NOP()] * (4 * (ihl - 5))), inner)


@pytest.mark.parametrize("count", [2, 3, 4], ids="case_022-{}".format)
def test_outer_fragments_are_reassembled(rig: Rig, count: int) -> None:
    """A tunnel packet that was fragmented on its way, as kernel peers' may be, is delivered whole."""
    inner = from_peer() / Raw(bytes(range(256)) * 4)
    rig.accepted(frames.fragments(vxlan(inner), count), inner)


PORTS = [1, 53, 1023, 8472, 32768, 49151, 60999, 65535, *random.Random(23).sample(range(2, 65535), 24)]


@pytest.mark.parametrize("port", PORTS, ids="case_023-{}".format)
def test_any_source_port_is_taken(rig: Rig, port: int) -> None:
    """The source port is the sender's choice; kernels use another range than the RFC recommends."""
    inner = from_peer()
    rig.accepted(udp4(vxlan_payload(inner), udp={"sport": port}), inner)
