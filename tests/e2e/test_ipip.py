# SPDX-License-Identifier: Apache-2.0
"""IPIP both ways against scapy, since not every kernel has an IPIP device: cases 24 to 30, 32, 33 and 43.

    wire0 (the test as peers and strangers) ── protocol 4 ── under0  overlayd  overlay0 ── the test

Drawn in full at the head of rig.py. A refused packet is always followed by a good one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, IPOption_NOP
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from bench.lab import stopped, wait_for
from dataplane.slots import Fd
from tests.e2e import frames
from tests.e2e.frames import DUAL, DUT_MAC, IPIP, STRANGER, US, from_peer, inner4, ipip, patched, vxlan
from tests.e2e.rig import Rig, risen

FLOOD = 12_000  # packets of which 16 MiB of socket buffer hold some 7000


def good_inner(**ip: Any) -> Packet:
    """Return a good inner packet of the IPIP peer."""
    return from_peer(IPIP, **ip)


GOOD: dict[str, Callable[[], tuple[Packet, Packet]]] = {
    "ipip": lambda: (inner := good_inner(), ipip(inner)),
    "ipip-from-a-vxlan-peer": lambda: (inner := from_peer(DUAL), ipip(inner, DUAL)),
    "vxlan-from-the-ipip-peer": lambda: (inner := good_inner(), vxlan(inner, IPIP)),
    "to-our-overlay-address": lambda: (inner := good_inner(dst=US.pod(0)), ipip(inner)),
    "from-node-address": lambda: (inner := good_inner(src=IPIP.ip), ipip(inner)),
    "case_029-ttl-1": lambda: (inner := good_inner(ttl=1), ipip(inner)),
}


@pytest.mark.parametrize("name", GOOD)
def test_good_packet_is_delivered_unchanged(rig: Rig, name: str) -> None:
    """A good packet comes out byte for byte; every enabled encapsulation is taken from every peer."""
    inner, frame = GOOD[name]()
    rig.accepted(frame, inner)


BAD_INNER: dict[str, tuple[str, Callable[[], bytes]]] = {
    "case_024-version-5": ("inner_version", lambda: patched(good_inner(), 0, b"\x55")),
    "case_024-version-0": ("inner_version", lambda: patched(good_inner(), 0, b"\x05")),
    "case_024-ipv6": ("inner_version", lambda: bytes(from_peer(DUAL, 6))),
    "case_024-ihl-4": ("inner_header", lambda: bytes(good_inner(ihl=4))),
    "case_024-ihl-beyond-packet": ("inner_header", lambda: patched(good_inner(), 0, b"\x4f")[:40]),
    "case_024-total-below-header": ("inner_length", lambda: bytes(good_inner(len=19))),
    "case_024-total-beyond-packet": ("inner_length", lambda: bytes(good_inner(len=45))),
    "case_024-total-max": ("inner_length", lambda: bytes(good_inner(len=0xFFFF))),
    "case_024-bad-checksum": ("inner_csum", lambda: bytes(good_inner(chksum=0x1234))),
    "case_027-ipip": ("nested", lambda: bytes(good_inner(proto=4))),
    "case_027-whole-ipip": ("nested", lambda: bytes(IP(src=IPIP.pod(), dst=US.pod()) / good_inner())),
    "case_027-ipv6-in-ipv4": ("nested", lambda: bytes(good_inner(proto=41))),
    "case_029-ttl-0": ("inner_ttl", lambda: bytes(good_inner(ttl=0))),
    "case_033-empty": ("short", lambda: b""),
    "martian": ("martian", lambda: bytes(good_inner(src="127.0.0.1"))),
    "multicast": ("multicast", lambda: bytes(good_inner(dst="224.0.0.5"))),
    "spoofed": ("spoofed", lambda: bytes(from_peer(DUAL))),
    "spoofed-ours": ("spoofed", lambda: bytes(good_inner(src=US.pod(9)))),
    "transit": ("not_ours", lambda: bytes(good_inner(dst=DUAL.pod()))),
    "relay": ("not_ours", lambda: bytes(good_inner(dst="203.0.113.5"))),
}


@pytest.mark.parametrize("name", BAD_INNER)
def test_bad_inner_packet_is_refused(rig: Rig, name: str) -> None:
    """What an IPIP packet carries must be one good IPv4 packet that this peer may send to us."""
    reason, build = BAD_INNER[name]
    rig.refused(ipip(build()), reason, via="ipip")


@pytest.mark.parametrize("length", range(1, 20), ids="case_024-cut-{}".format)
def test_truncated_inner_header_is_refused(rig: Rig, length: int) -> None:
    """An inner header cut short is refused at every length."""
    rig.refused(ipip(bytes(good_inner())[:length]), "inner_header", via="ipip")


def test_padding_is_trimmed(rig: Rig) -> None:
    """Bytes behind the inner total length are cut off before delivery."""
    inner = good_inner()
    rig.accepted(ipip(bytes(inner) + bytes(40)), inner)


STRANGERS: dict[str, Callable[[], Packet]] = {
    "case_025-good-inner": lambda: ipip(good_inner(), STRANGER),
    "case_025-relay-CVE-2020-10136": lambda: ipip(inner4("198.51.100.7", "203.0.113.5"), STRANGER),
    "case_025-inner-from-us": lambda: ipip(inner4(str(US.ip), US.pod()), STRANGER),
    "case_025-outside": lambda: ipip(good_inner(), src="198.51.100.7"),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_unknown_source_is_refused(rig: Rig, name: str) -> None:
    """Protocol 4 from an address that is no peer's is refused before anything in it is looked at."""
    rig.refused(STRANGERS[name](), "unknown_vtep", via="ipip")


def _outer_to(address: str, mac: str) -> Packet:
    frame = ipip(good_inner(), dst=address)
    frame.dst = mac
    return frame


OUTER_DESTINATIONS: dict[str, Callable[[], Packet]] = {
    "case_026-other-address-of-this-host": lambda: _outer_to(frames.OTHER_ADDRESS, DUT_MAC),
    "case_026-our-overlay-address": lambda: _outer_to(US.pod(0), DUT_MAC),
    "case_026-subnet-broadcast": lambda: _outer_to("192.0.2.255", "ff:ff:ff:ff:ff:ff"),
}


@pytest.mark.parametrize("name", OUTER_DESTINATIONS)
def test_other_outer_destination_is_refused(rig: Rig, name: str) -> None:
    """Protocol 4 to anything but our underlay address is refused."""
    rig.refused(OUTER_DESTINATIONS[name](), "outer_dst", via="ipip")


@pytest.mark.parametrize("ihl", [6, 15], ids="case_021-ipip-ihl{}".format)
def test_outer_options_are_skipped(rig: Rig, ihl: int) -> None:
    """Outer IP options change nothing: the inner packet is found behind them."""
    inner = good_inner()
    rig.accepted(ipip(inner, options=[IPOption_NOP()] * (4 * (ihl - 5))), inner)


@pytest.mark.parametrize("count", [2, 3, 4], ids="case_028-{}".format)
def test_outer_fragments_are_reassembled(rig: Rig, count: int) -> None:
    """A tunnel packet that was fragmented on its way is delivered whole."""
    inner = good_inner() / Raw(bytes(range(256)) * 4)
    rig.accepted(frames.fragments(ipip(inner), count), inner)


def test_case_029_ttl_1_for_a_pod_is_answered_by_the_kernel(rig: Rig) -> None:
    """The tunnel is no hop: TTL 1 is delivered, and the host's forwarding says time exceeded."""
    inner = good_inner(ttl=1)
    rig.wire.take()
    rig.accepted(ipip(inner), inner)
    frame = rig.wire.wait(frames.is_tunnel, "the answer")[-1]
    answer = IP(bytes(Ether(frame)[IP].payload))
    assert (answer.dst, answer[ICMP].type, answer[ICMP].code) == (IPIP.pod(), 11, 0)


def test_case_030_full_receive_buffer_sends_no_icmp(rig: Rig) -> None:
    """While the receive buffer is full the kernel must not tell peers that this host has no protocol 4."""
    flood = [bytes(ipip(good_inner() / Raw(bytes(1200))))] * FLOOD
    inner, good = frames.good("ipip")
    before = rig.daemon.settled()
    rig.wire.take()
    with rig.without_control(), stopped(rig.daemon.forwarder_pid()):  # it would be replaced
        rig.wire.send(*flood)
    goods = itertools.count(1)

    def is_through() -> bool:
        rig.wire.send(good)
        next(goods)
        return bytes(inner) in rig.overlay.take()

    wait_for(is_through, "a good packet passes once the queue is empty")
    sent = FLOOD + next(goods) - 1

    def count() -> tuple[int, int]:
        now = rig.daemon.settled()
        lost = now.queue_drops[Fd.RAW4] - before.queue_drops[Fd.RAW4]
        return now.rx.offered - before.rx.offered, lost

    wait_for(lambda: sum(count()) == sent, lambda: f"offered and lost are {sent}, not {count()}")
    assert count()[1] > 0
    assert [frame for frame in rig.wire.take() if ICMP in Ether(frame) and Ether(frame)[ICMP].type == 3] == []
    assert risen(before, rig.daemon.settled()) == {}


def test_case_032_protocol_41_is_refused_by_the_kernel(rig: Rig) -> None:
    """IPv6 in IPv4 is not ours to take: no socket hears it."""
    frame = ipip(from_peer(DUAL, 6), proto=41)
    rig.refused(frame, "kernel:Ip.InUnknownProtos", via="ipip")


@pytest.mark.parametrize("size", [0, 1, 576, 1400], ids="case_043-{}".format)
def test_sent_packet_is_rfc2003(rig: Rig, size: int) -> None:
    """Outer: protocol 4, five words, right length and checksum, DF, TTL 64, TOS 0. Inner: as it was."""
    packet = inner4(US.pod(), IPIP.pod(), payload=bytes(size), tos=0xB8)
    outer = Ether(rig.sent(packet))[IP]
    inner = bytes(outer.payload)
    assert (outer.src, outer.dst, outer.proto, outer.ihl) == (US.ip, IPIP.ip, 4, 5)
    assert (outer.len, str(outer.flags), outer.frag, outer.ttl, outer.tos) == (
        20 + len(inner),
        "DF",
        0,
        64,
        0,
    )
    assert frames.recomputed(outer) == bytes(outer)
    packet.ttl -= 1
    assert inner == bytes(packet)
