# SPDX-License-Identifier: Apache-2.0
"""Every packet offered is forwarded or counted under exactly one reason, whatever happens to it.

    podw0 (the test as pods) ── pod0  overlayd  under0 ── wire0 (the test as peers)

Drawn in full at the head of rig.py. conftest.py asserts the equation after every e2e test; here the rare
reasons are provoked one by one, and floods of known composition are compared with the counters.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from scapy.packet import Packet

from bench.lab import stopped, wait_for
from dataplane.slots import Fd
from tests.e2e import frames
from tests.e2e.frames import (
    DUAL,
    FOUR,
    IPIP,
    SIX,
    STRANGER,
    US,
    from_peer,
    inner4,
    inner6,
    ipip,
    vxlan,
    vxlan6,
)
from tests.e2e.rig import Rig, conserves, risen

# --- the reasons a send can fail for ----------------------------------------------------------------


@contextmanager
def _route(rig: Rig, route: str) -> Iterator[None]:
    """Let one route of the host be another meanwhile."""
    rig.dut.ip(f"route add {route}\n")
    try:
        yield
    finally:
        rig.dut.ip(f"route del {route}\n")


@contextmanager
def _firewall(rig: Rig, rule: str) -> Iterator[None]:
    """Let the host's output chain have one rule meanwhile."""
    chain = "add chain inet e2e out { type filter hook output priority 0; }"
    rig.dut.run("nft", f"add table inet e2e; {chain}; add rule inet e2e out {rule}")
    try:
        yield
    finally:
        rig.dut.run("nft", "delete table inet e2e")


BIG = bytes(1380)
FAILING_SENDS: dict[str, tuple[str, Callable[[Rig], object], Callable[[], Packet]]] = {
    "too_big-vxlan": (
        "too_big",
        lambda rig: _route(rig, f"{DUAL.ip}/32 dev under0 mtu lock 1300"),
        lambda: inner4(US.pod(), DUAL.pod(), payload=BIG + frames.marker()),
    ),
    "too_big-vxlan6": (
        "too_big",
        lambda rig: _route(rig, f"{DUAL.ip6}/128 dev under0 mtu lock 1300"),
        lambda: inner6(US.pod6(), DUAL.pod6(), payload=BIG[:1360] + frames.marker()),
    ),
    "too_big-ipip": (
        "too_big",
        lambda rig: _route(rig, f"{IPIP.ip}/32 dev under0 mtu lock 1300"),
        lambda: inner4(US.pod(), IPIP.pod(), payload=BIG + frames.marker()),
    ),
    "send_denied-vxlan": (
        "send_denied",
        lambda rig: _firewall(rig, "udp dport 8472 drop"),
        lambda: inner4(US.pod(), DUAL.pod()),
    ),
    "send_denied-vxlan6": (
        "send_denied",
        lambda rig: _firewall(rig, "meta l4proto udp drop"),
        lambda: inner6(US.pod6(), DUAL.pod6()),
    ),
    "send_denied-ipip": (
        "send_denied",
        lambda rig: _firewall(rig, "meta l4proto 4 drop"),
        lambda: inner4(US.pod(), IPIP.pod()),
    ),
}


@pytest.mark.parametrize("name", FAILING_SENDS)
def test_failed_send_is_counted(rig: Rig, name: str) -> None:
    """A packet whose send the kernel refused is counted under the reason; the next one passes."""
    reason, condition, build = FAILING_SENDS[name]
    packet = build()
    before = rig.daemon.settled()
    rig.wire.take()
    with rig.without_control(), condition(rig):  # type: ignore[attr-defined]
        rig.pod.send(rig.to_pod_side(packet))
        after = rig.daemon.settled(tx=before.tx.offered + 1)
    assert risen(before, after) == {reason: 1}
    assert after.tx.forwarded == before.tx.forwarded
    rig.sent(build())
    assert frames.payload_of(packet) not in b"".join(rig.wire.take())


def test_failed_send_in_a_batch_costs_nobody_else(rig: Rig) -> None:
    """A peer whose packets are refused costs its own; those of others between them all leave."""
    good = [inner4(US.pod(), FOUR.pod()) for _ in range(300)]
    bad = [inner4(US.pod(), DUAL.pod()) for _ in range(300)]
    packets = [packet for pair in zip(good, bad, strict=True) for packet in pair]
    before = after = rig.daemon.settled()
    lost = rig.daemon.tun_dropped()
    rig.wire.take()
    with _firewall(rig, f"ip daddr {DUAL.ip} drop"):
        for some in range(0, 600, 100):
            rig.pod.send(*map(rig.to_pod_side, packets[some : some + 100]))
            after = rig.daemon.settled(tx=before.tx.offered + some + 100)
    assert rig.daemon.tun_dropped() == lost
    assert risen(before, after) == {"send_denied": 300}
    wire = b"".join(rig.wire.take())
    assert all(frames.payload_of(packet) in wire for packet in good)
    assert not any(frames.payload_of(packet) in wire for packet in bad)


def test_underlay_that_is_down_is_counted(tmp_path: Path) -> None:
    """While the underlay interface is down, what would leave is counted under unreachable."""
    with Rig(tmp_path / "node", name="u") as rig, rig.without_control():
        before = rig.daemon.settled()
        rig.dut.ip("link set under0 down\n")
        packets = (inner4(US.pod(), DUAL.pod()), inner6(US.pod6(), DUAL.pod6()), inner4(US.pod(), IPIP.pod()))
        rig.pod.send(*map(rig.to_pod_side, packets))
        after = rig.daemon.settled(tx=before.tx.offered + 3)
        rig.dut.ip("link set under0 up\n")
        assert risen(before, after) == {"unreachable": 3}


def test_full_send_buffer_is_counted(rig: Rig) -> None:
    """While the underlay's queue is full, packets are dropped and counted: a tunnel must not wait."""
    packet = rig.to_pod_side(inner4(US.pod(), DUAL.pod(), payload=BIG))
    before = rig.daemon.settled()
    rig.dut.run("tc", "qdisc", "add", "dev", "under0", "root", "tbf", *SLOW)
    try:
        wait_for(lambda: _send_until(rig, packet, "send_full"), "the send buffer is full", 20.0)
    finally:
        rig.dut.run("tc", "qdisc", "del", "dev", "under0", "root")
    assert set(risen(before, rig.daemon.settled())) == {"send_full"}
    rig.sent(inner4(US.pod(), DUAL.pod()))


SLOW = ("rate", "8kbit", "burst", "1600", "limit", "1000000000")


def _send_until(rig: Rig, frame: bytes, reason: str) -> bool:
    rig.pod.send(*[frame] * 100)
    return bool(rig.daemon.settled().tx.drops.get(reason))


# --- the TUN ----------------------------------------------------------------------------------------


def test_case_133_tun_that_is_down_is_counted(tmp_path: Path) -> None:
    """While the TUN is down, what arrives is counted under tun_down; once it is up again, packets pass."""
    with Rig(tmp_path / "node", name="d") as rig:
        before = rig.daemon.settled()
        with rig.without_control():
            rig.dut.ip("link set overlay0 down\n")
            rig.wire.send(vxlan(from_peer(DUAL)), ipip(from_peer(IPIP)))
            after = rig.daemon.settled(rx=before.rx.offered + 2)
            rig.dut.ip("link set overlay0 up\n")
        assert risen(before, after) == {"tun_down": 2}
        rig.watch_overlay()  # the old tap was told that its device went down
        # Down, the device lost its IPv6 address; with it back, the kernel reports multicast groups again.
        address = "inet6 fd00:244:0:1::/128"
        wait_for(lambda: address in rig.dut.run("ip", "addr", "show", "overlay0").stdout, "overlayd repairs")
        rig.daemon.wait_quiet()
        inner, good = frames.good()
        rig.accepted(good, inner)


def test_full_queues_of_the_kernel_stand_beside_the_equation(rig: Rig) -> None:
    """What the kernel drops before the forwarder reads it is shown: sent = offered + that, both ways."""
    packet, sent = rig.to_pod_side(inner4(US.pod(), DUAL.pod())), 0
    before, tun_before = rig.daemon.settled(), rig.daemon.tun_dropped()
    with rig.without_control(), stopped(rig.daemon.forwarder_pid()):  # which would replace one that hangs
        rig.wire.send(*[bytes(vxlan(from_peer(DUAL)))] * 40_000)
        while rig.daemon.tun_dropped() == tun_before:
            rig.pod.send(*[packet] * 500)
            sent += 500
    rig.daemon.settled(tx=before.tx.offered + sent - (rig.daemon.tun_dropped() - tun_before))
    inner, good = frames.good()
    wait_for(lambda: _passes(rig, good, inner), "a good packet passes once the queue is empty")

    def lost() -> int:
        return rig.daemon.settled().queue_drops[Fd.UDP4] - before.queue_drops[Fd.UDP4]

    wait_for(lambda: lost() > 0, "the kernel's drops are known")
    status = rig.daemon.status()["kernel"]
    assert status["tun_tx_dropped"] == rig.daemon.tun_dropped()
    assert status["rxq_overflow"]["udp4"] == rig.daemon.settled().queue_drops[Fd.UDP4]
    assert risen(before, rig.daemon.settled()) == {}


def _passes(rig: Rig, good: Packet, inner: Packet) -> bool:
    rig.wire.send(good)
    return bytes(inner) in rig.overlay.take()


# --- floods -----------------------------------------------------------------------------------------

RX_KINDS: list[tuple[str | None, Callable[[], Packet]]] = [
    (None, lambda: vxlan(from_peer(DUAL))),
    (None, lambda: vxlan(from_peer(FOUR, 6), FOUR)),
    (None, lambda: vxlan6(from_peer(SIX), SIX)),
    (None, lambda: ipip(from_peer(IPIP))),
    ("unknown_vtep", lambda: vxlan(from_peer(DUAL), STRANGER)),
    ("spoofed", lambda: vxlan(from_peer(FOUR))),
    ("not_ours", lambda: vxlan(from_peer(dst=SIX.pod()))),
    ("inner_csum", lambda: ipip(from_peer(IPIP, chksum=1))),
    ("inner_ttl", lambda: vxlan6(from_peer(SIX, ttl=0), SIX)),
    ("ecn", lambda: vxlan(from_peer(DUAL), tos=3)),
    ("short", lambda: frames.udp4(b"hello")),
    ("vni", lambda: frames.udp4(frames.vxlan_payload(from_peer(), header=b"\x08\0\0\0\0\0\x02\0"))),
    ("martian", lambda: vxlan(inner4("127.0.0.1", US.pod()))),
    ("outer_dst", lambda: vxlan(from_peer(DUAL), dst=frames.OTHER_ADDRESS)),
]
TX_KINDS: list[tuple[str | None, Callable[[], Packet]]] = [
    (None, lambda: inner4(US.pod(), DUAL.pod())),
    (None, lambda: inner4(US.pod(), IPIP.pod())),
    (None, lambda: inner6(US.pod6(), FOUR.pod6())),
    ("no_peer", lambda: inner4(US.pod(), "10.244.99.5")),
    ("foreign_source", lambda: inner4(SIX.pod(), DUAL.pod())),
]
STEP = 200  # packets at a time: fewer than any queue on the way holds


def test_flood_of_everything_is_counted_exactly(rig: Rig) -> None:
    """Thousands of good and bad packets both ways, mixed at random: each count is exactly what was sent."""
    chance = random.Random(5)
    rx = [(reason, bytes(build())) for reason, build in RX_KINDS]
    tx = [(reason, rig.to_pod_side(build())) for reason, build in TX_KINDS]
    expected_rx: Counter[str | None] = Counter()
    expected_tx: Counter[str | None] = Counter()
    before = after = rig.daemon.settled()
    lost = rig.daemon.tun_dropped()
    for _ in range(20):
        some_rx, some_tx = chance.choices(rx, k=STEP), chance.choices(tx, k=STEP)
        expected_rx.update(reason for reason, _ in some_rx)
        expected_tx.update(reason for reason, _ in some_tx)
        rig.wire.send(*(frame for _, frame in some_rx))
        rig.pod.send(*(frame for _, frame in some_tx))
        after = rig.daemon.settled(
            rx=before.rx.offered + expected_rx.total(), tx=before.tx.offered + expected_tx.total()
        )
    assert rig.daemon.tun_dropped() == lost
    for now, was, expected in ((after.rx, before.rx, expected_rx), (after.tx, before.tx, expected_tx)):
        assert now.offered - was.offered == expected.total()
        assert now.forwarded - was.forwarded == expected[None]
        reasons = [reason for reason in expected if reason is not None]
        for reason in reasons:
            assert (reason, now.drops[reason] - was.drops.get(reason, 0)) == (reason, expected[reason])


def test_status_says_what_the_counters_say(rig: Rig) -> None:
    """`status --json` and the shared memory agree, and the peers' shares add up to the totals."""
    rig.sent(inner4(US.pod(), DUAL.pod()))
    rig.accepted(vxlan(inner := from_peer(FOUR), FOUR), inner)
    totals, status = rig.daemon.settled(), rig.daemon.status()
    assert conserves(totals)
    for name, way in (("tx", totals.tx), ("rx", totals.rx)):
        shown = status[name]
        assert (shown["offered"], shown["forwarded"], shown["bytes"]) == (
            way.offered,
            way.forwarded,
            way.bytes,
        )
        assert shown["drops"] == way.drops
        assert sum(peer[f"{name}_packets"] for peer in status["peers"]) == way.forwarded
        assert sum(peer[f"{name}_bytes"] for peer in status["peers"]) == way.bytes


def test_bytes_are_inner_bytes(rig: Rig) -> None:
    """The byte counters count inner packets, without what the tunnel adds, at their peer."""
    index = frames.PEERS.index(FOUR)
    public_ips = [peer["public_ip"] for peer in rig.daemon.status()["peers"]]
    assert public_ips[index] == FOUR.ip
    peer_id = rig.daemon.status()["peers"][index]["id"]
    was = rig.daemon.counters.peer(peer_id)
    packet, inner = inner4(US.pod(), FOUR.pod(), payload=bytes(500)), from_peer(FOUR)
    rig.sent(packet)
    rig.accepted(vxlan(inner, FOUR), inner)
    now = rig.daemon.counters.peer(peer_id)
    assert (now.tx_packets - was.tx_packets, now.tx_bytes - was.tx_bytes) == (1, len(packet))
    assert (now.rx_packets - was.rx_packets, now.rx_bytes - was.rx_bytes) == (1, len(inner))
