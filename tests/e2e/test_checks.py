# SPDX-License-Identifier: Apache-2.0
"""Who may send what to whom: the checks that are on by default, and the three switches that loosen them.

    podw0 (the test as a pod of this host) ── pod0  overlayd  under0 ── wire0 (the test as peers)

Drawn in full at the head of rig.py. What a peer may not send is in test_vxlan_decap.py and test_ipip.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from scapy.layers.inet6 import (
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_Redirect,
    ICMPv6ND_RS,
    ICMPv6NDOptPrefixInfo,
    IPv6,
)
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from tests.e2e import frames
from tests.e2e.frames import DUAL, FOUR, IPIP, US, from_peer, inner4, inner6, ipip, vxlan, vxlan6
from tests.e2e.rig import DEFAULT_FLAGS, Rig, risen

ALLOWED, ALLOWED6, NOT_ALLOWED = "203.0.113.5", "2001:db8:1::5", "198.51.100.5"


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """Yield a rig whose firewall lets forged packets come as far as the forwarder."""
    with Rig(tmp_path_factory.mktemp("rig") / "node", flags=(*DEFAULT_FLAGS, "--guard=false")) as built:
        yield built


@pytest.fixture(scope="module")
def observing_rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """Yield a rig that counts spoofed packets without dropping them."""
    flags = (*DEFAULT_FLAGS, "--spoof", "observe")
    with Rig(tmp_path_factory.mktemp("observing") / "node", flags=flags, name="o") as built:
        yield built


@pytest.fixture(scope="module")
def allowing_rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """Yield a rig that takes two more networks for valid sources, both ways."""
    flags = (*DEFAULT_FLAGS, "--allow-source", "203.0.113.0/24", "--allow-source", "2001:db8:1::/64")
    with Rig(tmp_path_factory.mktemp("allowing") / "node", flags=flags, name="a") as built:
        yield built


# --- a pod of this host forges a peer ---------------------------------------------------------------


def _from_pod(frame: Packet, **ip: str) -> bytes:
    """Return a tunnel packet as a pod of this host would send it, outer addresses changed."""
    frame.src, frame.dst = frames.POD_MAC, frames.POD_GATEWAY_MAC
    for field, value in ip.items():
        setattr(frame.payload, field, value)
    return bytes(frame)


FORGED: dict[str, Callable[[], bytes]] = {
    "vxlan": lambda: _from_pod(vxlan(from_peer(DUAL))),
    "vxlan-over-v6": lambda: _from_pod(vxlan6(from_peer(DUAL, 6))),
    "ipip": lambda: _from_pod(ipip(from_peer(IPIP))),
    "vxlan-from-itself": lambda: _from_pod(vxlan(from_peer(DUAL)), src=US.pod()),
    "vxlan-to-the-gateway": lambda: _from_pod(vxlan(from_peer(DUAL)), dst=US.pod(1)),
    "vxlan-to-the-overlay-address": lambda: _from_pod(vxlan(from_peer(DUAL)), dst=US.pod(0)),
}


@pytest.mark.parametrize("name", FORGED)
def test_pod_of_this_host_cannot_forge_a_peer(rig: Rig, name: str) -> None:
    """A tunnel packet that arrives on a pod's interface is refused, however well it is made."""
    inner, good = frames.good()
    before = rig.daemon.settled()
    rig.overlay.take()
    rig.pod.send(FORGED[name]())
    between = rig.daemon.settled(rx=before.rx.offered + 1)
    rig.wire.send(good)
    seen = rig.overlay.wait(lambda got: got == bytes(inner), "the good packet")
    after = rig.daemon.settled(rx=before.rx.offered + 2)
    assert [bytes(inner)] == seen + rig.overlay.take()
    assert risen(before, between) == risen(before, after) == {"wrong_iface": 1}


# --- what leaves ------------------------------------------------------------------------------------

FOREIGN: dict[str, Callable[[], Packet]] = {
    "outside-the-network": lambda: inner4(NOT_ALLOWED, DUAL.pod()),
    "outside-the-network-v6": lambda: inner6("2001:db8:2::5", DUAL.pod6()),
    "subnet-of-nobody": lambda: inner4("10.244.99.5", DUAL.pod()),
    "pod-of-the-destination": lambda: inner4(DUAL.pod(9), DUAL.pod()),
    "pod-of-another-peer": lambda: inner4(FOUR.pod(), DUAL.pod()),
    "pod-of-another-peer-v6": lambda: inner6(FOUR.pod6(), DUAL.pod6()),
    "node-address-of-a-peer": lambda: inner4(str(FOUR.ip), DUAL.pod()),
    "over-ipip": lambda: inner4(NOT_ALLOWED, IPIP.pod()),
    "neighbour-of-the-node-address": lambda: inner4("192.0.2.7", DUAL.pod()),
}


@pytest.mark.parametrize("name", FOREIGN, ids="case_143-{}".format)
def test_foreign_source_does_not_leave(rig: Rig, name: str) -> None:
    """A pod that sends from an address that is neither our subnet's nor this host's gets nothing out."""
    rig.unsent(FOREIGN[name](), "foreign_source")


def test_foreign_source_is_not_told_about_missing_peers(rig: Rig) -> None:
    """Source before destination: a forged source gets no ICMP error sent to whom it names."""
    before = rig.daemon.settled().icmp_sent
    rig.unsent(inner4(NOT_ALLOWED, "10.244.99.5"), "foreign_source")
    assert rig.daemon.settled().icmp_sent == before


# --- what neighbours say to each other (RFC 4861) -----------------------------------------------------

NEIGHBOURS: dict[str, Callable[[], Packet]] = {
    "ra": lambda: ICMPv6ND_RA() / ICMPv6NDOptPrefixInfo(prefix="2001:db8:bad::"),
    "rs": lambda: ICMPv6ND_RS(),
    "ns": lambda: ICMPv6ND_NS(tgt=US.pod6()),
    "na": lambda: ICMPv6ND_NA(tgt=US.pod6(), O=1),
    "redirect": lambda: ICMPv6ND_Redirect(tgt="fe80::2", dst="2001:db8::1"),
}
WAYS = {  # source, destination -> reason
    "from-a-router-to-all": ("fe80::2", "ff02::1", "martian"),
    "from-a-router-to-a-pod": ("fe80::2", US.pod6(), "martian"),
    "from-a-router-to-our-device": ("fe80::2", US.pod6(0), "martian"),
    "from-a-pod-to-all": (DUAL.pod6(), "ff02::1", "multicast"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", NEIGHBOURS)
def test_neighbours_are_not_heard(rig: Rig, kind: str, way: str) -> None:
    """A peer cannot pose as a router or a neighbour: no word of one passes."""
    source, target, reason = WAYS[way]
    rig.refused(vxlan(IPv6(src=source, dst=target, hlim=255) / NEIGHBOURS[kind]()), reason)


@pytest.mark.parametrize("kind", NEIGHBOURS)
def test_what_a_pod_says_as_a_neighbour_is_void(rig: Rig, kind: str) -> None:
    """From its own address a remote pod reaches ours, but a hop away, so it is not believed."""
    rig.pod.take()
    inner = IPv6(src=DUAL.pod6(), dst=US.pod6(), hlim=255) / NEIGHBOURS[kind]()
    rig.accepted(vxlan(inner), inner)
    body = bytes(inner)[40:]
    frame = next(frame for frame in rig.pod.wait(lambda got: body in got, "the packet") if body in frame)
    assert Ether(frame)[IPv6].hlim == 254


@pytest.mark.parametrize("kind", NEIGHBOURS)
def test_pods_are_no_routers(rig: Rig, kind: str) -> None:
    """Nothing that a pod of ours says from a link-local address leaves for a peer; the kernel keeps it."""
    good = inner6(US.pod6(), DUAL.pod6())
    rig.wire.take()
    packet = IPv6(src="fe80::5", dst=DUAL.pod6(), hlim=255) / NEIGHBOURS[kind]()
    before = rig.daemon.settled()
    rig.pod.send(rig.to_pod_side(packet), rig.to_pod_side(good))
    seen = rig.wire.wait(lambda frame: frames.payload_of(good) in frame, "the good packet")
    after = rig.daemon.settled(tx=before.tx.offered + 1)
    assert len([frame for frame in seen + rig.wire.take() if frames.is_tunnel(frame)]) == 1
    assert risen(before, after) == {}


HOST_SOURCES = {"overlay": US.pod(0), "node": str(US.ip), "other": frames.OTHER_ADDRESS, "gateway": US.pod(1)}


@pytest.mark.parametrize("name", HOST_SOURCES)
def test_addresses_of_this_host_may_leave(rig: Rig, name: str) -> None:
    """The host itself talks to pods from any of its addresses."""
    packet = inner4(HOST_SOURCES[name], DUAL.pod())
    payload = frames.payload_of(packet)
    rig.wire.take()
    with rig.dut.socket(2, 3, 255) as raw:  # AF_INET, SOCK_RAW, IPPROTO_RAW: the packet as it is
        raw.sendto(bytes(packet), (DUAL.pod(), 0))
    assert rig.wire.wait(lambda frame: payload in frame, "the host's packet")


LEAVING: dict[str, tuple[str, Callable[[], Packet]]] = {
    "nobodys-subnet": ("no_peer", lambda: inner4(US.pod(), "10.244.99.5")),
    "nobodys-subnet-v6": ("no_peer", lambda: inner6(US.pod6(), "fd00:244:0:99::5")),
}


@pytest.mark.parametrize("name", LEAVING)
def test_destination_of_nobody_does_not_leave(rig: Rig, name: str) -> None:
    """A destination in no peer's subnet goes nowhere."""
    reason, build = LEAVING[name]
    rig.unsent(build(), reason)


# --- --spoof observe --------------------------------------------------------------------------------

SPOOFED: dict[str, Callable[[], tuple[Packet, Packet]]] = {
    "other-peers-pod": lambda: (inner := inner4(FOUR.pod(), US.pod()), vxlan(inner)),
    "outside-the-network": lambda: (inner := inner4(NOT_ALLOWED, US.pod()), vxlan(inner)),
    "outside-the-network-v6": lambda: (inner := inner6("2001:db8:2::5", US.pod6()), vxlan6(inner)),
    "over-ipip": lambda: (inner := inner4(NOT_ALLOWED, US.pod()), ipip(inner)),
}


@pytest.mark.parametrize("name", SPOOFED)
def test_spoof_observe_counts_without_dropping(observing_rig: Rig, name: str) -> None:
    """With --spoof observe a foreign inner source is delivered, and counted."""
    inner, frame = SPOOFED[name]()
    before = observing_rig.daemon.settled().observed
    observing_rig.accepted(frame, inner)
    assert observing_rig.daemon.settled().observed == before + 1
    assert observing_rig.daemon.status()["spoof_observed"] == before + 1


OBSERVED_AND_REFUSED: dict[str, tuple[str, Callable[[], Packet]]] = {
    "martian": ("martian", lambda: vxlan(inner4("127.0.0.1", US.pod()))),
    "not-ours": ("not_ours", lambda: vxlan(from_peer(dst="203.0.113.9"))),
    "stranger": ("unknown_vtep", lambda: vxlan(from_peer(DUAL), frames.STRANGER)),
}


@pytest.mark.parametrize("name", OBSERVED_AND_REFUSED)
def test_spoof_observe_loosens_nothing_else(observing_rig: Rig, name: str) -> None:
    """With --spoof observe everything but the inner source is checked as ever."""
    reason, build = OBSERVED_AND_REFUSED[name]
    observing_rig.refused(build(), reason)


def test_spoof_observe_does_not_count_honest_packets(observing_rig: Rig) -> None:
    """A packet from its own subnet is not an observation."""
    before = observing_rig.daemon.settled().observed
    inner, frame = frames.good()
    observing_rig.accepted(frame, inner)
    assert observing_rig.daemon.settled().observed == before


# --- --allow-source ---------------------------------------------------------------------------------

ALLOWED_IN: dict[str, Callable[[], tuple[Packet, Packet]]] = {
    "v4": lambda: (inner := inner4(ALLOWED, US.pod()), vxlan(inner)),
    "v6": lambda: (inner := inner6(ALLOWED6, US.pod6()), vxlan6(inner)),
    "from-another-peer": lambda: (inner := inner4(ALLOWED, US.pod()), vxlan(inner, FOUR)),
    "ipip": lambda: (inner := inner4(ALLOWED, US.pod()), ipip(inner)),
}


@pytest.mark.parametrize("name", ALLOWED_IN)
def test_allowed_source_is_delivered(allowing_rig: Rig, name: str) -> None:
    """--allow-source CIDR: any peer may send from it."""
    inner, frame = ALLOWED_IN[name]()
    allowing_rig.accepted(frame, inner)


def test_allowed_source_may_leave(allowing_rig: Rig) -> None:
    """--allow-source CIDR: packets from it may leave, too."""
    for packet in (inner4(ALLOWED, DUAL.pod()), inner6(ALLOWED6, DUAL.pod6()), inner4(ALLOWED, IPIP.pod())):
        assert frames.payload_of(packet) in allowing_rig.sent(packet)


def test_allow_source_allows_nothing_else(allowing_rig: Rig) -> None:
    """--allow-source CIDR: a source beside it is refused both ways, and strangers stay strangers."""
    allowing_rig.refused(vxlan(inner4("203.0.114.5", US.pod())), "spoofed")
    allowing_rig.refused(vxlan(inner4(FOUR.pod(), US.pod())), "spoofed")
    allowing_rig.refused(vxlan(inner4(ALLOWED, US.pod()), frames.STRANGER), "unknown_vtep")
    allowing_rig.refused(vxlan(inner4(ALLOWED, "203.0.113.9")), "not_ours")
    allowing_rig.unsent(inner4(NOT_ALLOWED, DUAL.pod()), "foreign_source")


# --- per peer ---------------------------------------------------------------------------------------


def test_refusals_are_counted_at_the_peer(rig: Rig) -> None:
    """What a known peer did wrong stands with that peer alone; what a stranger did, with nobody."""

    def by_peer() -> dict[str, dict[str, int]]:
        return {peer["public_ip"]: peer["drops"] for peer in rig.daemon.status()["peers"]}

    before = by_peer()
    rig.refused(vxlan(inner4(DUAL.pod(), US.pod()), FOUR), "spoofed")
    rig.refused(vxlan(from_peer(DUAL), frames.STRANGER), "unknown_vtep")
    after = by_peer()
    changed = {
        (ip, name): count - before[ip].get(name, 0)
        for ip, drops in after.items()
        for name, count in drops.items()
        if count != before[ip].get(name, 0)
    }
    assert changed == {(FOUR.ip, "spoofed"): 1}


def test_last_address_of_a_refusal_is_shown(rig: Rig) -> None:
    """Beside each reason stands the address of the latest packet: who to look for."""
    rig.refused(vxlan(from_peer(DUAL), frames.STRANGER), "unknown_vtep")
    rig.unsent(inner4(US.pod(), "10.244.99.5"), "no_peer")
    status = rig.daemon.status()
    assert status["rx"]["last"]["unknown_vtep"]["address"] == frames.STRANGER.ip
    assert status["tx"]["last"]["no_peer"]["address"] == "10.244.99.5"
