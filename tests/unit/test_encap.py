# SPDX-License-Identifier: Apache-2.0
"""Outer headers: put on exactly, taken off only if everything is right, and the marks of both combined."""

from __future__ import annotations

import pytest

from tests import inner, oracle
from tests.inner import DATA, GOOD, INVALID4, INVALID6
from tests.oracle import OUR_MAC4, OUR_MAC6, PEER_MAC, VNI, ip4, ip6, ipip, vxlan
from tests.probe import (
    HEADROOM,
    View,
    check_ipip,
    config,
    decap_bare,
    decap_ecn,
    decap_ipip,
    decap_vxlan,
    ffi,
    flow_of,
    ip4_pull,
    lib,
    vxlan_pull,
    vxlan_push,
)

VXLAN_PUSH = 22
RESERVED_BITS = [bit for bit in range(64) if bit != 4 and not 32 <= bit < 56]  # of the header, from its first
BROADCAST = b"\xff" * 6
OWN_MACS = {4: OUR_MAC4, 6: OUR_MAC6}
INNER = {4: inner.UDP4, 6: inner.UDP6}


def flipped(data: bytes, bit: int) -> bytes:
    """Return the data with one bit flipped, counted from the first."""
    return data[: bit // 8] + bytes([data[bit // 8] ^ 0x80 >> bit % 8]) + data[bit // 8 + 1 :]


# --- VXLAN push ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("vni", [0, 1, VNI, 0xFFFFFF], ids=hex)
def test_vxlan_push_is_what_the_rfc_says(family: int, vni: int) -> None:
    """Headers put on are those of an independent encoder, and the inner packet is untouched."""
    packet = INNER[family]
    assert vxlan_push(packet, family, vni) == vxlan(packet, vni=vni)


@pytest.mark.parametrize("headroom", [0, 1, VXLAN_PUSH - 1])
def test_vxlan_push_needs_headroom(headroom: int) -> None:
    """Without room for the headers nothing is written."""
    assert vxlan_push(inner.UDP4, 4, VNI, headroom) is None


def test_vxlan_push_fills_its_headroom_only() -> None:
    """Bytes in front of the headers stay as they were."""
    view = View(b"\xee" * 50, headroom=0)
    lib.probe_pkt_pull(view.pkt, 30)
    assert lib.probe_encap_vxlan_push(view.pkt, 4, VNI, OUR_MAC4, PEER_MAC)
    assert bytes(view.buf)[:8] == b"\xee" * 8
    assert bytes(view) == vxlan(b"\xee" * 20, ethertype=0x0800, dst_mac=OUR_MAC4)


@pytest.mark.parametrize("name", GOOD)
def test_vxlan_push_and_pull_are_inverse(name: str) -> None:
    """What went in comes out, by way of the oracle's idea of the frame."""
    packet = GOOD[name]
    family = packet[0] >> 4
    pushed = vxlan_push(packet, family, VNI)
    assert pushed is not None
    assert vxlan_pull(pushed) == ("none", family, packet)


# --- VXLAN pull ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GOOD)
def test_good_vxlan_is_accepted(name: str) -> None:
    """A valid payload gives its inner packet and the family of its ethertype."""
    packet = GOOD[name]
    assert vxlan_pull(vxlan(packet)) == ("none", packet[0] >> 4, packet)
    assert decap_vxlan(vxlan(packet)) == ("none", packet)


@pytest.mark.parametrize("length", range(36), ids="case_001-{}".format)
def test_short_payload_is_refused(length: int) -> None:
    """Less than VXLAN and Ethernet headers is short; an empty or cut inner header is no packet."""
    payload = vxlan(inner.UDP4)[:length]
    assert decap_vxlan(payload)[0] == ("short" if length < VXLAN_PUSH else "inner_header")


@pytest.mark.parametrize("reserved_ignore", [False, True])
@pytest.mark.parametrize("flags", [0x00000000, 0xF7000000, 0x80000000, 0x04000000, 0x10000000], ids=hex)
def test_case_002_without_i_flag(flags: int, reserved_ignore: bool) -> None:
    """Without the I flag there is no VNI, in either mode and whatever other flags are set."""
    drop, _, _ = vxlan_pull(vxlan(inner.UDP4, flags=flags), reserved_ignore=reserved_ignore)
    assert drop == "vxlan_flags"


@pytest.mark.parametrize("bit", RESERVED_BITS, ids="case_003-bit-{}".format)
@pytest.mark.parametrize("reserved_ignore", [False, True], ids=["drop", "ignore"])
def test_reserved_bit(bit: int, reserved_ignore: bool) -> None:
    """Each of the 39 reserved bits is refused by default, as the kernel does, or ignored as the RFC says."""
    drop, family, packet = vxlan_pull(flipped(vxlan(inner.UDP4), bit), reserved_ignore=reserved_ignore)
    if reserved_ignore:
        assert (drop, family, packet) == ("none", 4, inner.UDP4)
    else:
        assert drop == "vxlan_flags"


def test_case_003_there_are_39_reserved_bits() -> None:
    """RFC 7348 section 5: 64 bits, less the I flag and the VNI."""
    assert len(RESERVED_BITS) == 39


OTHER_VNIS = [VNI - 1, VNI + 1, 0, 0xFFFFFF, *(VNI ^ 1 << bit for bit in range(24))]


@pytest.mark.parametrize("vni", OTHER_VNIS, ids="case_004-{:06x}".format)
@pytest.mark.parametrize("reserved_ignore", [False, True])
def test_other_vni_is_refused(vni: int, reserved_ignore: bool) -> None:
    """All 24 bits of the VNI count."""
    assert vxlan_pull(vxlan(inner.UDP4, vni=vni), reserved_ignore=reserved_ignore)[0] == "vni"


@pytest.mark.parametrize("vni", [0, 1, 0xFFFFFF], ids="case_004-{:06x}".format)
def test_own_vni_is_accepted(vni: int) -> None:
    """The extremes are VNIs like any other."""
    assert vxlan_pull(vxlan(inner.UDP4, vni=vni), vni=vni)[0] == "none"


@pytest.mark.parametrize("bit", range(48), ids="case_009-bit-{}".format)
@pytest.mark.parametrize("family", [4, 6])
def test_other_destination_mac_is_refused(bit: int, family: int) -> None:
    """A frame for another station is refused, however little its address differs."""
    frame = vxlan(INNER[family], dst_mac=flipped(OWN_MACS[family], bit))
    assert vxlan_pull(frame)[0] == "inner_mac"


@pytest.mark.parametrize("mac", [BROADCAST, bytes(6), PEER_MAC], ids=["broadcast", "zero", "peer"])
def test_case_009_special_destination_macs(mac: bytes) -> None:
    """There is nothing to broadcast to behind a point-to-point device."""
    assert vxlan_pull(vxlan(inner.UDP4, dst_mac=mac))[0] == "inner_mac"


@pytest.mark.parametrize("family", [4, 6])
def test_case_009_mac_of_the_other_family(family: int) -> None:
    """flannel publishes one MAC for each family; each is right for its own only."""
    assert vxlan_pull(vxlan(INNER[family], dst_mac=OWN_MACS[10 - family]))[0] == "inner_mac"


@pytest.mark.parametrize(
    "mac",
    [OUR_MAC4, OUR_MAC6, bytes(6), BROADCAST, bytes.fromhex("01005e000001"), bytes.fromhex("3333000000fb")],
    ids=lambda mac: f"case_010-{mac.hex()}",
)
@pytest.mark.parametrize("family", [4, 6])
def test_impossible_source_mac_is_refused(mac: bytes, family: int) -> None:
    """A frame from us, from a group or from nobody is not a peer's."""
    assert vxlan_pull(vxlan(INNER[family], src_mac=mac))[0] == "inner_mac"


@pytest.mark.parametrize("mac", ["fe0000000000", "000000000001", "024f00000400", "025000000401"])
def test_other_source_macs_are_accepted(mac: str) -> None:
    """Any unicast address may be a peer's: the address in its lease may have changed meanwhile."""
    assert vxlan_pull(vxlan(inner.UDP4, src_mac=bytes.fromhex(mac)))[0] == "none"


ETHERTYPES = {
    "arp": 0x0806,
    "vlan": 0x8100,
    "qinq": 0x88A8,
    "mpls": 0x8847,
    "mpls-multicast": 0x8848,
    "zero": 0x0000,
    "length": 0x05DC,
    "all-ones": 0xFFFF,
    "v4-low-byte": 0x0801,
    "v4-high-byte": 0x0900,
    "v6-low-byte": 0x86DC,
    "v6-high-byte": 0x87DD,
    "swapped": 0x0008,
}


@pytest.mark.parametrize("name", ETHERTYPES, ids="case_011-{}".format)
def test_other_ethertype_is_refused(name: str) -> None:
    """The tunnel carries IPv4 and IPv6."""
    assert vxlan_pull(vxlan(inner.UDP4, ethertype=ETHERTYPES[name]))[0] == "ethertype"


def test_case_011_vlan_tagged_ip_is_refused() -> None:
    """A whole 802.1Q frame with a good packet in it stays refused."""
    tagged = b"\x00\x05\x08\x00" + inner.UDP4
    assert vxlan_pull(vxlan(tagged, ethertype=0x8100, dst_mac=OUR_MAC4))[0] == "ethertype"


@pytest.mark.parametrize("name", INVALID4, ids="case_012-{}".format)
def test_invalid_inner_ipv4_is_refused(name: str) -> None:
    """What is wrong with an inner IPv4 packet is named as without a tunnel."""
    drop, packet = INVALID4[name]
    assert decap_vxlan(vxlan(packet, ethertype=oracle.ETHERTYPE_V4, dst_mac=OUR_MAC4))[0] == drop


@pytest.mark.parametrize("name", INVALID6, ids="case_015-{}".format)
def test_invalid_inner_ipv6_is_refused(name: str) -> None:
    """What is wrong with an inner IPv6 packet is named as without a tunnel."""
    drop, packet = INVALID6[name]
    assert decap_vxlan(vxlan(packet))[0] == drop


def test_case_012_ethertype_and_version_disagree() -> None:
    """IPv6 under the ethertype of IPv4 is refused, and the other way round."""
    as_v4 = vxlan(inner.UDP6, ethertype=oracle.ETHERTYPE_V4, dst_mac=OUR_MAC4)
    as_v6 = vxlan(inner.UDP4, ethertype=oracle.ETHERTYPE_V6, dst_mac=OUR_MAC6)
    assert [decap_vxlan(as_v4)[0], decap_vxlan(as_v6)[0]] == ["inner_version", "inner_version"]


@pytest.mark.parametrize("padding", [1, 18, 46], ids="case_013-{}".format)
@pytest.mark.parametrize("name", ["udp4", "header4-only", "udp6", "header6-only"])
def test_ethernet_padding_is_trimmed(name: str, padding: int) -> None:
    """A frame padded to Ethernet's minimum gives the packet without the padding (case 15 for IPv6)."""
    packet = GOOD[name]
    assert decap_vxlan(vxlan(packet + b"\xee" * padding)) == ("none", packet)


def test_checks_come_in_order() -> None:
    """Of several faults the outermost is named: flags, VNI, ethertype, MAC."""
    everything = {"flags": 0, "vni": 0, "ethertype": 0, "dst_mac": BROADCAST, "src_mac": BROADCAST}
    order = [("flags", "vxlan_flags"), ("vni", "vni"), ("ethertype", "ethertype"), ("dst_mac", "inner_mac")]
    for field, drop in order:
        assert vxlan_pull(vxlan(inner.UDP4, **everything))[0] == drop  # type: ignore[arg-type]
        del everything[field]
    assert vxlan_pull(vxlan(inner.UDP4, **everything))[0] == "inner_mac"  # type: ignore[arg-type]


# --- truncation ---------------------------------------------------------------------------------------

SHORT_ENOUGH = [name for name, packet in GOOD.items() if len(packet) < 1000]


@pytest.mark.parametrize("name", SHORT_ENOUGH)
def test_vxlan_cut_at_every_byte_is_refused(name: str) -> None:
    """No prefix of a good VXLAN payload is good, and each is refused by the layer that was cut."""
    payload = vxlan(GOOD[name])
    for length in range(len(payload)):
        drop, packet = decap_vxlan(payload[:length])
        assert drop in ({"short"} if length < VXLAN_PUSH else {"inner_header", "inner_length"})
        assert packet == b""


@pytest.mark.parametrize("length", range(VXLAN_PUSH))
def test_short_pull_leaves_the_packet_alone(length: int) -> None:
    """A payload that is too short is not moved."""
    view = View(vxlan(inner.UDP4)[:length])
    lib.probe_encap_vxlan_pull(view.pkt, config(), ffi.new("uint8_t *"))
    assert view.place == (HEADROOM, length)


@pytest.mark.parametrize("name", [name for name in SHORT_ENOUGH if GOOD[name][0] >> 4 == 4])
@pytest.mark.parametrize("options", [b"", b"\x01" * 40], ids=["ihl-5", "ihl-15"])
def test_ipip_cut_at_every_byte_is_refused(name: str, options: bytes) -> None:
    """No prefix of a good IPIP packet is good, and each is refused by the layer that was cut."""
    packet = ipip(GOOD[name], options=options)
    outer_len = 20 + len(options)
    for length in range(len(packet)):
        drop = decap_ipip(packet[:length])[0]
        assert drop in ({"short"} if length <= outer_len else {"inner_header", "inner_length"})


# --- IPIP ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, packet in GOOD.items() if packet[0] >> 4 == 4])
def test_good_ipip_is_accepted(name: str) -> None:
    """A valid packet gives its inner packet, and the outer TOS byte for later."""
    if len(GOOD[name]) < 65000:
        assert ip4_pull(ipip(GOOD[name], tos=0xB9)) == ("none", 0xB9, GOOD[name])
        assert decap_ipip(ipip(GOOD[name])) == ("none", GOOD[name])


@pytest.mark.parametrize("words", range(11), ids="case_021-ihl-{}".format)
def test_outer_options_are_skipped(words: int) -> None:
    """An outer header with options of any length comes off whole."""
    assert ip4_pull(ipip(inner.UDP4, options=b"\x01" * 4 * words)) == ("none", 0, inner.UDP4)


@pytest.mark.parametrize("name", [name for name in INVALID4 if name != "empty"], ids="case_024-{}".format)
def test_invalid_ipip_inner_is_refused(name: str) -> None:
    """What is wrong with the inner packet is named as without a tunnel."""
    drop, packet = INVALID4[name]
    assert decap_ipip(ipip(packet))[0] == drop


@pytest.mark.parametrize("ihl", range(5), ids="case_024-outer-ihl-{}".format)
def test_outer_header_length_below_minimum_is_refused(ihl: int) -> None:
    """The kernel would not hand one up; if it did, nothing would be read by it."""
    packet = ipip(inner.UDP4)
    assert ip4_pull(bytes([0x40 | ihl]) + packet[1:])[0] == "short"


@pytest.mark.parametrize("proto", [oracle.PROTO_IPIP, oracle.PROTO_IPV6], ids="case_027-proto-{}".format)
def test_nested_tunnel_is_refused(proto: int) -> None:
    """A tunnel in the tunnel is refused, whole or only claimed."""
    assert check_ipip(ip4(ip4(DATA), proto)) == "nested"
    assert check_ipip(ip4(DATA, proto)) == "nested"


def test_case_027_ipv6_in_ipip_is_refused() -> None:
    """IPIP carries IPv4; for IPv6 there is another protocol number."""
    assert check_ipip(inner.UDP6) == "inner_version"


@pytest.mark.parametrize("proto", [1, 3, 5, 6, 17, 40, 42, 47, 94, 137])
def test_other_protocols_in_ipip_are_accepted(proto: int) -> None:
    """What is not a tunnel of IP in IP passes."""
    assert check_ipip(ip4(DATA, proto)) == "none"


@pytest.mark.parametrize(
    ("ttl", "drop"), [(0, "inner_ttl"), (1, "none")], ids=["case_029-ttl-0", "case_029-ttl-1"]
)
def test_ttl_of_ipip_inner(ttl: int, drop: str) -> None:
    """TTL 0 is refused; TTL 1 may still be delivered on this host."""
    assert decap_ipip(ipip(ip4(DATA, ttl=ttl)))[0] == drop


@pytest.mark.parametrize("options", [b"", b"\x01" * 40], ids=["case_033", "case_033-options"])
def test_empty_ipip_is_refused(options: bytes) -> None:
    """An outer header alone carries no packet."""
    assert decap_ipip(ipip(b"", options=options))[0] == "short"


# --- bare packets in UDP ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in GOOD if len(GOOD[name]) < 1000])
def test_bare_cut_at_every_byte_is_refused(name: str) -> None:
    """A bare packet cut anywhere is refused: short without a byte, by its header or its length after that."""
    for length in range(len(GOOD[name])):
        drop = decap_bare(GOOD[name][:length])[0]
        assert drop == "short" if not length else drop in {"inner_header", "inner_length"}


@pytest.mark.parametrize("name", GOOD)
def test_good_bare_packet_is_accepted(name: str) -> None:
    """Every good IPv4 packet passes without the padding behind it; IPv6 is refused by its version."""
    expected = ("none", GOOD[name]) if GOOD[name][0] >> 4 == 4 else ("inner_version", b"")
    assert decap_bare(GOOD[name]) == expected
    assert decap_bare(GOOD[name] + bytes(9)) == expected


@pytest.mark.parametrize("name", INVALID4)
def test_invalid_bare_packet_is_refused(name: str) -> None:
    """An invalid inner packet is refused for the same reason as in every other encapsulation."""
    drop, packet = INVALID4[name]
    assert decap_bare(packet)[0] == (drop if packet else "short")


# --- ECN ----------------------------------------------------------------------------------------------

DSCP = 0xB8
NAMES = oracle.ECN_NAMES
ENCAP_ROWS = [
    pytest.param(mark, id=f"case_{46 + row:03}-{NAMES[mark]}") for row, mark in enumerate(oracle.ECN_ORDER)
]
DECAP_ROWS = [
    pytest.param(family, mark, outer, id=f"case_{first + 4 * row + column:03}-{NAMES[mark]}-{NAMES[outer]}")
    for family, first in ((4, 50), (6, 66))
    for row, mark in enumerate(oracle.ECN_ORDER)
    for column, outer in enumerate(oracle.ECN_ORDER)
]


@pytest.mark.parametrize("mark", ENCAP_ROWS)
@pytest.mark.parametrize("dscp", [0, DSCP, 0xFC])
def test_encap_copies_the_mark(mark: int, dscp: int) -> None:
    """The outer mark is the inner one (RFC 6040 section 4.1); DSCP stays inside unless told (RFC 2983)."""
    assert lib.encap_tos(config(), dscp | mark) == mark
    assert lib.encap_tos(config(dscp_inherit=True), dscp | mark) == dscp | mark


@pytest.mark.parametrize(("family", "inner_mark", "outer_mark"), DECAP_ROWS)
@pytest.mark.parametrize("dscp", [0, DSCP, 0xFC])
def test_decap_combines_both_marks(family: int, inner_mark: int, outer_mark: int, dscp: int) -> None:
    """The delivered mark is that of RFC 6040 figure 4; DSCP, flow label and everything else stay."""
    outer_dscp = 0x28
    drop, packet = decap_ecn(_marked(family, dscp | inner_mark), outer_dscp | outer_mark)
    combined = oracle.ecn_decap(inner_mark, outer_mark)
    if combined is None:
        assert drop == "ecn"
        assert packet == _marked(family, dscp | inner_mark)
        return
    assert drop == "none"
    assert packet == _marked(family, dscp | combined)
    assert flow_of(packet).tos == dscp | combined  # which verifies the header checksum, too


def _marked(family: int, tos: int) -> bytes:
    return ip4(DATA, tos=tos) if family == 4 else ip6(DATA, tclass=tos, flow_label=0xABCDE)


def test_checksum_stays_right_for_every_header() -> None:
    """Marking CE keeps the header checksum right, whatever it was."""
    for low in range(65536):
        packet = ip4(b"", src=f"10.9.{low >> 8}.{low & 255}", tos=oracle.ECT0)
        drop, marked = decap_ecn(packet, oracle.CE)
        assert drop == "none"
        assert oracle.ones_sum(marked[:20]) == 0xFFFF
        assert marked[1] == oracle.CE
