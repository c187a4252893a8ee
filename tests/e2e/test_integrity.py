# SPDX-License-Identifier: Apache-2.0
"""What pods send arrives bit for bit, whatever is switched off on the way: case 91.

    pod a ── host a: overlayd        host b: overlayd, or kernel VXLAN ── pod b
                     under0 ── router ── under0

Drawn in full in crossing.py and at the head of bench/lab.py. Of the switches of both hosts, the encapsulation
and the settings of the devices, each pair of values occurs in at least one test; tests of one kind follow
each other, so that little changes between two.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import random
import socket
import threading
from collections.abc import Hashable, Iterator, Sequence

import pytest

from bench.lab import Namespace
from dataplane.model import ALL_OFFLOADS, OFFLOAD_NEEDS, Offload, offloads_without
from tests.e2e.covering import Row, cover, pairs_of
from tests.e2e.crossing import DEVICES, MTU, Crossing, Setting, drops
from tests.e2e.sequence import Exchange, Flow, size_max

TCP_PORT, UDP_PORT = 5201, 6000
TIMEOUT_S = 20.0
BYTES = 2 << 20  # each way, each family: 8 MiB a setting
BYTES_SLOW = 100 << 20
DATAGRAMS = 1200  # each setting
DATAGRAMS_PACED = 9000
PIECE = 1 << 20

SWITCHES: dict[str, Offload] = {f"{host} {o.label}": o for host in ("a", "b") for o in Offload}


def settle(row: Row) -> Row:
    """Return a row in which what cannot be without another is off when that is."""
    settled = dict(row)
    for host in ("a", "b"):
        if f"{host} mmsg" in row:
            left = offloads_of(row, host)
            settled |= {f"{host} {offload.label}": offload in left for offload in Offload}
    return settled


def offloads_of(row: Row, host: str) -> Offload:
    """Return what a row leaves to a host."""
    off = (o for name, o in SWITCHES.items() if name.startswith(host) and not row.get(name, True))
    return offloads_without(sum(off, Offload(0)))


def build_settings() -> list[Setting]:
    """Return all settings: with each kind of peer none and all of the offloads, then the covering array."""
    found = []
    for kinds in (("vxlan", "ipip", "udp"), ("kernel",)):
        switches = [name for name in SWITCHES if kinds != ("kernel",) or name.startswith("a")]
        factors: dict[str, Sequence[Hashable]] = {
            **dict.fromkeys(switches, (True, False)),
            "underlay": tuple(DEVICES),
            "pods": tuple(DEVICES),
            "kind": kinds,
        }
        ends: list[Row] = [
            {**dict.fromkeys(switches, value), "underlay": "veth", "pods": "veth", "kind": kind}
            for kind in kinds
            for value in (True, False)
        ]
        found += [
            Setting(
                str(row["kind"]),
                offloads_of(row, "a"),
                offloads_of(row, "b"),
                str(row["underlay"]),
                str(row["pods"]),
            )
            for row in cover(factors, settle, ends)
        ]
    return sorted(found, key=lambda setting: setting.kind, reverse=True)


SETTINGS = build_settings()
EACH = pytest.mark.parametrize("setting", SETTINGS, ids=str)


@pytest.fixture(scope="module")
def crossing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crossing]:
    """Yield the hosts, shared by all tests."""
    built = Crossing("ig", tmp_path_factory.mktemp("crossing"))
    yield built
    built.close()


# --- carrying ---------------------------------------------------------------------------------------


def send_bytes(sender: socket.socket, data: bytes) -> None:
    """Send half of the data as a whole, and half in pieces of all lengths, each at once."""
    draw = random.Random(len(data))
    sender.sendall(data[: len(data) // 2])
    sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    at = len(data) // 2
    while at < len(data):
        size = draw.randint(1, draw.choice((100, 1500, 60_000, 200_000)))
        sender.sendall(data[at : at + size])
        at += size


def digest_of_stream(source: Namespace, target: Namespace, address: str, data: bytes) -> str:
    """Send data by TCP; return the digest of what arrived."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    digest = hashlib.sha256()
    with (
        target.socket(family, socket.SOCK_STREAM) as listener,
        source.socket(family, socket.SOCK_STREAM) as sender,
    ):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, TCP_PORT))
        listener.listen()
        listener.settimeout(TIMEOUT_S)

        def receive() -> None:
            with contextlib.suppress(TimeoutError), listener.accept()[0] as connection:
                connection.settimeout(TIMEOUT_S)
                while chunk := connection.recv(PIECE):
                    digest.update(chunk)

        receiver = threading.Thread(target=receive)
        receiver.start()
        try:
            sender.settimeout(TIMEOUT_S)
            sender.connect((address, TCP_PORT))
            send_bytes(sender, data)
            sender.shutdown(socket.SHUT_WR)
        finally:
            receiver.join()
    return digest.hexdigest()


def flows_of(crossing: Crossing) -> list[Flow]:
    """Return four flows for each way and family, the second and fourth of senders with UDP_SEGMENT."""
    ports = itertools.count(UDP_PORT)
    return [
        Flow(
            source.pod,
            target.pod,
            crossing.pod_address(target, family),
            next(ports),
            size_max(MTU, crossing.pod_address(target, family)),
            has_runs,
        )
        for source, target, family in crossing.ways()
        for has_runs in (False, True, False, True)
    ]


def exchange(crossing: Crossing, count: int) -> list[Flow]:
    """Send that many datagrams in all flows together; return the flows, with what has come."""
    flows = flows_of(crossing)
    for flow in flows:
        flow.plan(count // len(flows))
    crossed = Exchange(flows)
    try:
        crossed.run()
        crossing.settled()
        crossed.take()
    finally:
        crossed.close()
    return flows


def faults(flows: Sequence[Flow]) -> list[str]:
    """Return what is wrong with each flow that did not arrive as it was sent."""
    return [verdict for flow in flows if (verdict := flow.verdict())]


def stream(crossing: Crossing, size: int) -> None:
    """Send that many bytes each way in each family, and compare digests."""
    data = os.urandom(size)
    for source, target, family in crossing.ways():
        came = digest_of_stream(source.pod, target.pod, crossing.pod_address(target, family), data)
        way = f"IPv{family} from pod {source.name} to pod {target.name}"
        assert came == hashlib.sha256(data).hexdigest(), way


class Watch:
    """Asserts that while it lasts no checksum is wrong in a pod, and that no packet is dropped."""

    def __init__(self, crossing: Crossing) -> None:
        """Watch these hosts."""
        self._crossing = crossing

    def __enter__(self) -> None:
        self._totals, self._bad = self._crossing.settled(), self._crossing.bad_checksums()

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        bad = self._crossing.bad_checksums()
        risen = {name: count - self._bad[name] for name, count in bad.items() if count != self._bad[name]}
        assert risen == {}
        if kind is None:
            assert drops(self._totals, self._crossing.settled()) == {}


# --- tests ------------------------------------------------------------------------------------------


def test_settings_hold_each_pair_of_values() -> None:
    """Any two values of two switches or devices that can be together are together in one setting."""

    def row_of(setting: Setting) -> Row:
        row: Row = {"kind": setting.kind, "underlay": setting.underlay, "pods": setting.pods}
        for host, left in (("a", setting.left_a), ("b", setting.left_b)):
            if host == "a" or setting.kind != "kernel":
                row |= {f"{host} {offload.label}": offload in left for offload in Offload}
        return row

    covered = set().union(*(pairs_of(row_of(setting)) for setting in SETTINGS))
    for one, other in itertools.combinations(SWITCHES, 2):
        for values in itertools.product((True, False), repeat=2):
            is_ruled_out = one[0] == other[0] and is_without(one, other, values)
            assert (frozenset({(one, values[0]), (other, values[1])}) in covered) != is_ruled_out
    for device, where, (name, value) in itertools.product(
        DEVICES, ("underlay", "pods"), itertools.product(SWITCHES, (True, False))
    ):
        assert frozenset({(where, device), (name, value)}) in covered
    for kind, pair in itertools.product(
        ("vxlan", "ipip", "udp", "kernel"), itertools.product(DEVICES, repeat=2)
    ):
        assert frozenset({("kind", kind), ("pods", pair[0])}) in covered
        assert frozenset({("underlay", pair[1]), ("pods", pair[0])}) in covered


def is_without(one: str, other: str, values: Sequence[bool]) -> bool:
    """Return whether these values of two switches of a host leave one on without what it needs."""
    off = [SWITCHES[name] for name, value in zip((one, other), values, strict=True) if not value]
    on = [SWITCHES[name] for name, value in zip((one, other), values, strict=True) if value]
    return any(offload not in offloads_without(sum(off, Offload(0))) for offload in on)


def test_needs_are_known() -> None:
    """What is needed stands before what needs it, so that one pass of offloads_without() is enough."""
    assert all(needed < offload for offload, needed in OFFLOAD_NEEDS.items())
    assert offloads_without(Offload(0)) == ALL_OFFLOADS


@EACH
def test_case_091_all_arrives_unchanged(crossing: Crossing, setting: Setting) -> None:
    """Streams and datagrams arrive bit for bit, and no pod and no forwarder sees anything wrong."""
    crossing.become(setting)
    with Watch(crossing):
        stream(crossing, BYTES)
        assert faults(exchange(crossing, DATAGRAMS)) == []


@pytest.mark.soak
@EACH
def test_case_091_a_hundred_megabytes(crossing: Crossing, setting: Setting) -> None:
    """100 MB each way in each family arrive bit for bit."""
    crossing.become(setting)
    with Watch(crossing):
        stream(crossing, BYTES_SLOW)


@pytest.mark.parametrize("devices", ["veth", "wire"])
@pytest.mark.parametrize("kind", ["vxlan", "ipip", "udp", "kernel"])
def test_datagrams_keep_their_order(crossing: Crossing, kind: str, devices: str) -> None:
    """Of paced datagrams in many flows none is lost, changed, doubled or overtaken by another of its flow.

    However they were joined and cut on the way, each counts as one packet.
    """
    crossing.become(Setting(kind, underlay=devices, pods=devices))
    before = crossing.settled()
    with Watch(crossing):
        flows = exchange(crossing, DATAGRAMS_PACED)
        assert faults(flows) == []
    for host, after in crossing.settled().items():
        pod = crossing.lab.nodes[host].pod
        received = after.rx.forwarded - before[host].rx.forwarded
        assert received == sum(len(flow.came) for flow in flows if flow.target is pod)
        sent = after.tx.forwarded - before[host].tx.forwarded
        assert sent == sum(len(flow.sent) for flow in flows if flow.source is pod)


def test_offloads_of_an_earlier_run_end(crossing: Crossing) -> None:
    """Started again without any, overlayd leaves the TUN none of the offloads that it had before."""

    def features() -> dict[str, str]:
        lines = crossing.a.host.run("ethtool", "-k", "overlay0").stdout.splitlines()
        return {name.strip(): state.strip() for name, _, state in (line.partition(":") for line in lines)}

    names = ("tx-checksum-ip-generic", "tx-tcp-segmentation", "tx-tcp6-segmentation")
    crossing.become(Setting("vxlan"))
    assert [features()[name] for name in names] == ["on", "on", "on"]
    crossing.become(Setting("vxlan", Offload(0), Offload(0)))
    assert [features()[name] for name in names] == ["off", "off", "off"]
    with Watch(crossing):
        stream(crossing, BYTES)
