# SPDX-License-Identifier: Apache-2.0
"""While the table changes under traffic, no packet goes to a wrong peer: case 105, and all peers replaced.

    podw0 (the test as a pod) ── pod0  overlayd  under0 ── wire0 (the test as 1000 to 10 000 peers)

Drawn in full at the head of rig.py. Every packet carries a number. The capture on the wire is joined with the
log of changes: a packet may go only where some table sent its subnet that was in force between the moment it
was sent and the moment it was seen; and once a newer table was followed, no older one is.
"""

from __future__ import annotations

import ipaddress
import json
import random
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from bench.figures import figure
from bench.lab import wait_for
from tests.e2e import frames
from tests.e2e.frames import US
from tests.e2e.rig import Rig, risen

FLAGS = ("--public-ip", str(US.ip), "--withdrawal-hold", "0")  # the table is to follow at once
FIRST_ADDRESS = int(ipaddress.IPv4Address("198.18.1.0"))
BURST = 40
PAUSE_S = 0.004

# A table: subnet number -> number of the peer that has it. A peer's number makes up its address and MAC.
Table = dict[int, int]


def subnet(number: int) -> str:
    """Return a peer's subnet."""
    return f"10.{number // 200}.{number % 200}.0/24"


def address(peer: int) -> str:
    """Return the underlay address of a peer."""
    return str(ipaddress.IPv4Address(FIRST_ADDRESS + peer))


def mac(peer: int) -> str:
    """Return the VTEP MAC of a peer."""
    return f"02:50:00:{peer >> 16:02x}:{peer >> 8 & 0xFF:02x}:{peer & 0xFF:02x}"


def peers_file(table: Table) -> str:
    """Return the peers file that says what a table says."""
    leases: dict[str, Any] = {
        US.subnet: {"PublicIP": US.ip, "BackendType": "vxlan", "BackendData": {"VNI": 1, "VtepMAC": US.mac}}
    }
    for number, peer in table.items():
        leases[subnet(number)] = {
            "PublicIP": address(peer),
            "BackendType": "vxlan",
            "BackendData": {"VNI": 1, "VtepMAC": mac(peer)},
        }
    return json.dumps({"network": {"Network": "10.0.0.0/8", "Backend": {"Type": "vxlan"}}, "leases": leases})


# --- traffic ----------------------------------------------------------------------------------------


class Traffic:
    """Numbered packets from a pod to random subnets, and where each went, until stopped."""

    def __init__(self, rig: Rig, targets: list[int], seed: int) -> None:
        """Prepare a packet per target subnet."""
        self._rig = rig
        self._chance = random.Random(seed)
        self._targets = targets
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        head = {
            number: rig.to_pod_side(frames.inner4(US.pod(), subnet(number)[:-4] + "7")) for number in targets
        }
        # A zero UDP checksum, so that the number can be changed without summing up again.
        self._heads = {number: frame[:40] + b"\0\0" for number, frame in head.items()}
        self.sent: list[tuple[int, float]] = []  # by packet number: subnet and when
        self.seen: list[tuple[int, int, float]] = []  # in order: packet number, peer and when
        self.strange: list[str] = []

    def __enter__(self) -> Traffic:
        self._rig.wire.take()
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_over.wait(PAUSE_S):
            chosen = self._chance.choices(self._targets, k=BURST)
            now = time.monotonic()
            burst = []
            for target in chosen:
                burst.append(self._heads[target] + struct.pack(">8sQ", b"numbered", len(self.sent)))
                self.sent.append((target, now))
            self._rig.pod.send(*burst)
            self.look()

    def look(self) -> None:
        """Note what is on the wire."""
        frames_seen = self._rig.wire.take()
        now = time.monotonic()
        for frame in frames_seen:
            # Ethernet 14, IPv4 20, UDP 8, VXLAN 8, Ethernet 14, IPv4 20, UDP 8, then our 16 bytes
            if len(frame) != 108 or frame[92:100] != b"numbered":
                continue
            (number,) = struct.unpack(">Q", frame[100:108])
            peer = int.from_bytes(frame[30:34], "big") - FIRST_ADDRESS
            if frame[50:56].hex(":") != mac(peer):
                self.strange.append(f"packet {number} to peer {peer} with MAC {frame[50:56].hex(':')}")
            self.seen.append((number, peer, now))


# --- the log of changes -----------------------------------------------------------------------------


@dataclass(slots=True)
class Log:
    """Which tables there were, and when each could have been in force."""

    rig: Rig
    tables: list[Table] = field(default_factory=list)
    written_s: list[float] = field(default_factory=list)
    in_force_s: list[float] = field(default_factory=list)

    def change(self, table: Table) -> None:
        """Put another table in force; return when it is."""
        generation = self.rig.daemon.counters.header().generation
        text = peers_file(table)
        self.tables.append(table)
        self.written_s.append(time.monotonic())
        self.rig.daemon.write_peers(text)
        wait_for(
            lambda: self.rig.daemon.counters.header().generation > generation, "the table is in force", 60.0
        )
        self.in_force_s.append(time.monotonic())

    def judge(self, traffic: Traffic) -> list[str]:
        """Return what is wrong: packets where no table of their time sent them, old tables after new ones."""
        wrong = list(traffic.strange)
        newest = 0
        for number, peer, seen_s in traffic.seen:
            target, sent_s = traffic.sent[number]
            versions = [
                version
                for version in range(len(self.tables))
                if self.written_s[version] <= seen_s
                and (version + 1 == len(self.tables) or self.in_force_s[version + 1] >= sent_s)
                and self.tables[version].get(target) == peer
            ]
            if not versions:
                wrong.append(f"packet {number} for subnet {target} went to peer {peer}")
            elif versions[-1] < newest:
                wrong.append(f"packet {number} followed table {versions}, after {newest} was followed")
            else:
                newest = max(newest, versions[0])
        return wrong


def conclude(rig: Rig, log: Log, traffic: Traffic, before: Any, lost: int) -> None:
    """Assert that every packet went right: seen in its place, or counted as having nowhere to go."""
    assert rig.daemon.tun_dropped() == lost
    after = rig.daemon.settled(tx=before.tx.offered + len(traffic.sent))
    wait_for(lambda: _all_seen(traffic, after.tx.forwarded - before.tx.forwarded), "all that left is seen")
    wrong, dropped = log.judge(traffic), risen(before, after)
    figure("packets sent", [len(traffic.sent)], "packets")
    figure("sent wrong", [len(wrong)], "packets")
    figure("lost", [len(traffic.sent) - len(traffic.seen) - dropped.get("no_peer", 0)], "packets")
    figure("tables", [len(log.tables)], "tables")
    assert wrong == []
    assert set(dropped) <= {"no_peer"}
    assert len(traffic.seen) + dropped.get("no_peer", 0) == len(traffic.sent)
    assert len({number for number, _, _ in traffic.seen}) == len(traffic.seen)


def _all_seen(traffic: Traffic, count: int) -> bool:
    traffic.look()
    return len(traffic.seen) == count


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """Yield a rig with no peers yet."""
    peers = json.loads(peers_file({}))
    with Rig(tmp_path_factory.mktemp("churn") / "node", peers=peers, flags=FLAGS) as built:
        yield built


def test_case_105_peers_change_in_random_order(rig: Rig) -> None:
    """1000 peers come, move and go in random order: each packet goes right or is counted no_peer."""
    chance = random.Random(105)
    numbers = list(range(1000))
    table: Table = {}
    log = Log(rig)
    log.change(dict.fromkeys(numbers[:1], 0))
    before, lost = rig.daemon.settled(), rig.daemon.tun_dropped()
    with Traffic(rig, numbers, 105) as traffic:
        for _ in range(30):
            for number in chance.sample(numbers, 100):
                if number in table and chance.random() < 0.4:
                    del table[number]
                else:
                    table[number] = chance.choice(sorted(set(range(2000)) - set(table.values())))
            log.change(dict(table))
    conclude(rig, log, traffic, before, lost)
    assert len(traffic.seen) > 1000
    assert {peer["subnet"] for peer in rig.daemon.status()["peers"]} == {subnet(number) for number in table}


@pytest.mark.parametrize("count", [2000, pytest.param(10_000, marks=pytest.mark.soak)])
def test_all_peers_are_replaced(rig: Rig, count: int) -> None:
    """Thousands of peers are replaced at once, again and again: not one packet goes wrong or is lost."""
    chance = random.Random(count)
    numbers = list(range(count))
    log = Log(rig)
    log.change(dict(zip(numbers, numbers, strict=True)))
    before, lost = rig.daemon.settled(), rig.daemon.tun_dropped()
    with Traffic(rig, chance.sample(numbers, 2000), count) as traffic:
        for _ in range(5):
            log.change(dict(zip(numbers, chance.sample(range(2 * count), count), strict=True)))
    conclude(rig, log, traffic, before, lost)
    assert len(traffic.seen) == len(traffic.sent) > 1000


@pytest.mark.parametrize("versions", [pytest.param(250, id="250", marks=pytest.mark.soak)])
def test_peer_alternates(rig: Rig, versions: int) -> None:
    """A peer that has one address and MAC, then another, and back: each packet goes to one of both, whole."""
    log = Log(rig)
    log.change({1: 10})
    before, lost = rig.daemon.settled(), rig.daemon.tun_dropped()
    with Traffic(rig, [1], 21) as traffic:
        for turn in range(1, versions):
            log.change({1: (10, 20)[turn % 2]})
    conclude(rig, log, traffic, before, lost)
    assert {peer for _, peer, _ in traffic.seen} == {10, 20}


def test_receiving_follows_the_table_too(rig: Rig) -> None:
    """When two peers change places, each may send from its new subnet and no more from its old one."""
    log = Log(rig)
    for one, other in ((1, 2), (2, 1)):
        log.change({1: one, 2: other})
        for number, owner, stranger in ((1, one, other), (2, other, one)):
            inner = frames.inner4(subnet(number)[:-4] + "5", US.pod())
            rig.accepted(frames.vxlan(inner, src=address(owner)), inner)
            before = rig.daemon.settled()
            rig.wire.send(frames.vxlan(inner, src=address(stranger)))
            assert risen(before, rig.daemon.settled(rx=before.rx.offered + 1)) == {"spoofed": 1}
            assert rig.overlay.take() == []


def test_judge_finds_a_packet_that_went_wrong(rig: Rig) -> None:
    """The judgement itself: right packets pass, wrong peers and returns to an older table do not."""
    log = Log(rig, [{1: 10}, {1: 20}], [0.0, 5.0], [1.0, 6.0])
    traffic = Traffic(rig, [1], 1)
    traffic.sent = [(1, 2.0), (1, 5.1), (1, 5.2), (1, 7.0), (1, 2.0)]
    traffic.seen = [(0, 10, 2.1), (1, 20, 5.2), (2, 10, 5.3), (3, 10, 7.1), (4, 20, 2.1)]
    assert [text.split()[1] for text in log.judge(traffic)] == ["2", "3", "4"]
