# SPDX-License-Identifier: Apache-2.0
"""12 000 good and 8 000 bad packets, shuffled: every figure is exact, and the kernel counted it, too.

    podw0 (the test as pods) ── pod0  overlayd  under0 ── wire0 (the test as peers)
      nft counts both ways                                  nft counts both ways

Drawn in full at the head of rig.py. What overlayd claims is compared with counters of nftables at the far
ends of both veths, which overlayd has no part in.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from scapy.packet import Packet

from bench.figures import figure
from bench.lab import wait_for
from tests.e2e import frames
from tests.e2e.frames import (
    DUAL,
    FOUR,
    IPIP,
    SIX,
    STRANGER,
    US,
    Node,
    from_peer,
    inner4,
    inner6,
    ipip,
    udp4,
    vxlan,
    vxlan6,
    vxlan_payload,
)
from tests.e2e.rig import Rig

GOOD, BAD = 3000, 1000  # packets of each kind
STEP = 200  # packets at a time: fewer than any queue on the way holds

# Neither MLD reports nor anything else that the kernel says of itself is counted.
COUNTERS = """
table netdev count {
  counter peers_sent { }
  counter peers_got { }
  counter pods_sent { }
  counter pods_got { }
  counter pods_told { }
  chain a { type filter hook egress device "wire0" priority 0
    meta l4proto { 4, 17 } counter name peers_sent; }
  chain b { type filter hook ingress device "wire0" priority 0
    meta l4proto { 4, 17 } counter name peers_got; }
  chain c { type filter hook egress device "podw0" priority 0
    meta l4proto 17 counter name pods_sent; }
  chain d { type filter hook ingress device "podw0" priority 0
    meta l4proto 17 counter name pods_got
    icmp type destination-unreachable counter name pods_told
    icmpv6 type destination-unreachable counter name pods_told; }
}
"""


@dataclass(frozen=True, slots=True)
class Kind:
    """Packets of one kind: how they enter, at which peer they are counted, and why they are dropped."""

    frame: bytes
    peer: Node | None = None
    reason: str | None = None
    inner_len: int = 0
    outer_len: int = 0  # that of the headers in which it leaves


def _vxlan_rx(_: Rig) -> list[Kind]:
    def good(inner: Packet, peer: Node = DUAL, over: Callable[..., Packet] = vxlan) -> Kind:
        return Kind(bytes(over(inner, peer)), peer, None, len(inner))

    def bad(frame: Packet, reason: str, peer: Node | None = DUAL) -> Kind:
        return Kind(bytes(frame), peer, reason)

    def payload(header: bytes = frames.VXLAN_HEADER, **eth: object) -> Packet:
        return udp4(vxlan_payload(from_peer(), header, eth))

    return [
        good(from_peer()),
        good(from_peer(FOUR, 6), FOUR),
        good(from_peer(SIX), SIX, vxlan6),
        good(from_peer(DUAL, 6), DUAL, vxlan6),
        bad(vxlan(from_peer(), STRANGER), "unknown_vtep", None),
        bad(payload(b"\0\0\0\0\0\0\1\0"), "vxlan_flags"),
        bad(payload(b"\x08\0\0\0\0\0\2\0"), "vni"),
        bad(payload(dst="02:4f:00:00:04:77"), "inner_mac"),
        bad(payload(type=0x0806), "ethertype"),
        bad(vxlan(from_peer(len=1000)), "inner_length"),
        bad(vxlan(from_peer(FOUR)), "spoofed"),
        bad(vxlan(from_peer(dst=SIX.pod())), "not_ours"),
    ]


def _ipip_rx(_: Rig) -> list[Kind]:
    def good(inner: Packet, **outer: Any) -> Kind:
        return Kind(bytes(ipip(inner, **outer)), IPIP, None, len(inner))

    def bad(inner: Packet, reason: str, peer: Node | None = IPIP, **outer: Any) -> Kind:
        return Kind(bytes(ipip(inner, peer or STRANGER, **outer)), peer, reason)

    return [
        good(from_peer(IPIP)),
        good(inner4(IPIP.pod(), US.pod(), bytes(1300))),
        good(inner4(str(IPIP.ip), US.pod())),
        good(from_peer(IPIP, tos=1), tos=3),
        bad(from_peer(IPIP), "unknown_vtep", None),
        bad(from_peer(IPIP, ihl=4), "inner_header"),
        bad(from_peer(IPIP, proto=4), "nested"),
        bad(from_peer(IPIP, chksum=1), "inner_csum"),
        bad(from_peer(IPIP, ttl=0), "inner_ttl"),
        bad(inner4("127.0.0.1", US.pod()), "martian"),
        bad(from_peer(DUAL), "spoofed"),
        bad(from_peer(IPIP), "ecn", tos=3),
    ]


def _tx(rig: Rig) -> list[Kind]:
    def good(inner: Packet, peer: Node, outer_len: int) -> Kind:
        return Kind(rig.to_pod_side(inner), peer, None, len(inner), outer_len)

    def bad(inner: Packet, reason: str) -> Kind:
        return Kind(rig.to_pod_side(inner), None, reason)

    return [
        good(inner4(US.pod(), DUAL.pod()), DUAL, 50),
        good(inner6(US.pod6(), FOUR.pod6()), FOUR, 50),
        good(inner4(US.pod(), SIX.pod()), SIX, 70),
        good(inner4(US.pod(), IPIP.pod()), IPIP, 20),
        bad(inner4(US.pod(), "10.244.99.5"), "no_peer"),
        bad(inner6(US.pod6(), "fd00:244:0:99::5"), "no_peer"),
        bad(inner4(US.pod(), "10.244.255.254"), "no_peer"),
        bad(inner6(US.pod6(), "fd00:244:0:ffff::1"), "no_peer"),
        bad(inner4(SIX.pod(), DUAL.pod()), "foreign_source"),
        bad(inner6(SIX.pod6(), DUAL.pod6()), "foreign_source"),
        bad(inner4(DUAL.pod(), DUAL.pod(9)), "foreign_source"),
        bad(inner4("203.0.113.5", "10.244.99.5"), "foreign_source"),
    ]


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """Yield a rig whose far ends count, and whose veths carry packets as a wire would: one by one."""
    directory = tmp_path_factory.mktemp("rig")
    with Rig(directory / "node", name="x") as built:
        for device in ("under0", "pod0"):
            built.dut.run("ethtool", "-K", device, "tx-udp-segmentation", "off", "gso", "off")
        (directory / "count").write_text(COUNTERS, encoding="ascii")
        built.far.run("nft", "-f", str(directory / "count"))
        yield built


# --- what is known of a moment ----------------------------------------------------------------------


def _counted(rig: Rig) -> Counter[str]:
    """Return what overlayd counts, and what nftables does at the far ends, by name."""
    totals, counted = rig.daemon.settled(), Counter[str]()
    for entry in json.loads(rig.far.run("nft", "-j", "list", "counters").stdout)["nftables"]:
        if counter := entry.get("counter"):
            counted[counter["name"]] = counter["packets"]
            if counter["name"] in ("pods_got", "peers_got"):
                counted[f"{counter['name']}_bytes"] = counter["bytes"]
    for way, direction in (("rx", totals.rx), ("tx", totals.tx)):
        counted[f"{way}_offered"] = direction.offered
        counted[f"{way}_forwarded"] = direction.forwarded
        counted.update({f"{way}_{reason}": count for reason, count in direction.drops.items()})
    for peer, shown in zip(frames.PEERS, rig.daemon.status()["peers"], strict=True):
        at = rig.daemon.counters.peer(shown["id"])
        counted.update({f"rx of {peer.number}": at.rx_packets, f"rx bytes of {peer.number}": at.rx_bytes})
        counted.update({f"tx of {peer.number}": at.tx_packets, f"tx bytes of {peer.number}": at.tx_bytes})
        counted.update({f"{reason} of {peer.number}": count for reason, count in at.drops.items()})
    counted["icmp_sent"] = totals.icmp_sent
    counted["rxq_overflow"] = sum(totals.queue_drops.values())
    return counted


def _lost(rig: Rig) -> int:
    """Return how many packets the kernel dropped in front of overlayd for want of room."""
    assert rig.daemon.process is not None
    raw = Path(f"/proc/{rig.daemon.process.pid}/net/raw").read_text(encoding="ascii").splitlines()[1:]
    full = rig.daemon.kernel("Udp.RcvbufErrors") + rig.daemon.kernel("Udp6RcvbufErrors")
    return full + sum(int(line.split()[-1]) for line in raw) + rig.daemon.tun_dropped()


# --- the test ---------------------------------------------------------------------------------------


def _expected(kinds: Sequence[Kind], way: str) -> Counter[str]:
    """Return by how much which figure must rise, and no other."""
    good = [kind for kind in kinds if not kind.reason]
    source, sink = ("peers_sent", "pods_got") if way == "rx" else ("pods_sent", "peers_got")
    expected = Counter({source: len(kinds), f"{way}_offered": len(kinds)})
    expected.update({sink: len(good), f"{way}_forwarded": len(good)})
    expected[f"{sink}_bytes"] = sum(kind.inner_len + kind.outer_len for kind in good)
    for kind in kinds:
        if kind.reason:
            expected[f"{way}_{kind.reason}"] += 1
        if kind.peer and kind.reason:
            expected[f"{kind.reason} of {kind.peer.number}"] += 1
        elif kind.peer:
            expected[f"{way} of {kind.peer.number}"] += 1
            expected[f"{way} bytes of {kind.peer.number}"] += kind.inner_len
    return expected


def _send(rig: Rig, order: Sequence[Kind], way: str) -> None:
    """Send these packets, each batch once the one before was taken."""
    tap = rig.wire if way == "rx" else rig.pod
    start, lost = getattr(rig.daemon.settled(), way).offered, _lost(rig)
    for end in range(STEP, len(order) + STEP, STEP):
        tap.send(*(kind.frame for kind in order[end - STEP : end]))

        def is_taken(wanted: int = start + min(end, len(order))) -> bool:
            offered: int = getattr(rig.daemon.counters.totals(), way).offered
            return offered >= wanted or _lost(rig) > lost

        wait_for(is_taken, f"the first {end} packets are offered")
        assert _lost(rig) == lost, "the kernel dropped packets in front of overlayd: nothing can be exact"


@pytest.mark.parametrize(
    ("way", "kinds_of"), [("rx", _vxlan_rx), ("rx", _ipip_rx), ("tx", _tx)], ids=["vxlan-rx", "ipip-rx", "tx"]
)
def test_every_figure_is_exact(rig: Rig, way: str, kinds_of: Callable[[Rig], list[Kind]]) -> None:
    """Of 12 000 good and 8 000 bad packets each is counted once, under its reason, as the kernel counts."""
    order = [kind for kind in kinds_of(rig) for _ in range(BAD if kind.reason else GOOD)]
    assert (len(order), sum(not kind.reason for kind in order)) == (20_000, 12_000)
    random.Random(12_000).shuffle(order)
    before, expected = _counted(rig), _expected(order, way)
    _send(rig, order, way)
    sink = "pods_got" if way == "rx" else "peers_got"
    wait_for(
        lambda: _counted(rig)[sink] >= before[sink] + expected[sink], "the last one came through the veth"
    )
    risen = _counted(rig) - before
    told, sent = risen.pop("pods_told", 0), risen.pop("icmp_sent", 0)  # as many as the rate allows
    figure("packets", [len(order)], "packets")
    off = [abs(risen[name] - expected[name]) for name in {*risen, *expected}]
    figure("off by", off, "packets or bytes a counter")
    assert told == sent <= risen["tx_no_peer"]
    assert risen == expected
