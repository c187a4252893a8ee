# SPDX-License-Identifier: Apache-2.0
"""Flows are spread over queues and threads, and each keeps its own.

a socket of the test ── route ── overlay device ── queue 0 .. 3 (read by the test)
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from bench.lab import NETNS, Namespace, _setns
from dataplane import native
from dataplane.model import Offload
from tests.e2e.pair import PORT, WINDOW, Load, Pair

QUEUES = 4
FLOWS = 32
VNET_LEN = 12
TARGETS = {socket.AF_INET: "10.77.0.2", socket.AF_INET6: "fd77::2"}


@contextmanager
def inside(space: Namespace) -> Iterator[None]:
    """Do something in a namespace with this thread."""
    with open("/proc/thread-self/ns/net", "rb") as home, (NETNS / space.name).open("rb") as there:  # noqa: PTH123
        _setns(there.fileno())
        try:
            yield
        finally:
            _setns(home.fileno())


@pytest.fixture
def space() -> Iterator[Namespace]:
    """Yield a namespace of its own, without a way out."""
    built = Namespace(f"queues{os.getpid()}")
    try:
        yield built
    finally:
        built.close()


@pytest.fixture
def queues(space: Namespace) -> Iterator[list[int]]:
    """Yield the queues of a device that is steered by flow."""
    with inside(space):
        fds = [native.tun_open("overlay0", int(Offload.TUN_VNET)).fd for _ in range(QUEUES)]
        native.tun_steer(fds[0])
    space.ip(
        "link set overlay0 up\naddr add 10.77.0.1/24 dev overlay0\n"
        "addr add fd77::1/64 dev overlay0 nodad\nlink set overlay0 mtu 1500\n"
    )
    drain(fds)
    yield fds
    for fd in fds:
        os.close(fd)


def drain(fds: list[int]) -> list[list[bytes]]:
    """Take what is in each queue."""
    found: list[list[bytes]] = []
    for fd in fds:
        packets = []
        try:
            while True:
                packets.append(os.read(fd, 1 << 16)[VNET_LEN:])
        except BlockingIOError:
            found.append(packets)
    return found


def places(fds: list[int], marks: list[bytes]) -> list[set[int]]:
    """Return for each mark in which queues packets with it are."""
    found = drain(fds)
    return [
        {i for i, packets in enumerate(found) if any(mark in packet for packet in packets)} for mark in marks
    ]


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"])
def test_a_flow_keeps_its_queue(space: Namespace, queues: list[int], family: int) -> None:
    """All packets of a flow are in one queue, wherever its answers were written; flows are in several."""
    marks = [b"flow-%03d-" % i for i in range(FLOWS)]
    socks = [space.socket(family, socket.SOCK_DGRAM) for _ in range(FLOWS)]
    seen = []
    for _ in range(3):
        for sock, mark in zip(socks, marks, strict=True):
            for _ in range(2):
                sock.sendto(mark, (TARGETS[socket.AddressFamily(family)], 9))
        seen.append(places(queues, marks))
        # What the kernel would learn from: each flow answered through the next queue.
        for fd, sock in zip(queues * (FLOWS // QUEUES), socks, strict=True):
            os.write(fd, bytes(VNET_LEN) + answer(family, sock.getsockname()[1]))
    for sock in socks:
        sock.close()
    assert all(len(place) == 1 for place in seen[0])
    assert seen[0] == seen[1] == seen[2]
    assert len(set.union(*seen[0])) >= 3


def answer(family: int, port: int) -> bytes:
    """Return a datagram from the target to a port of the host; its checksum says that there is none."""
    from scapy.layers.inet import IP, UDP
    from scapy.layers.inet6 import IPv6

    if family == socket.AF_INET6:
        return bytes(IPv6(src="fd77::2", dst="fd77::1") / UDP(sport=9, dport=port) / b"answer")
    return bytes(IP(src="10.77.0.2", dst="10.77.0.1") / UDP(sport=9, dport=port) / b"answer")


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"])
def test_fragments_stay_together(space: Namespace, queues: list[int], family: int) -> None:
    """All fragments of a datagram are in one queue, although only the first one has its ports."""
    for i in range(8):
        with space.socket(family, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"piece%02d-" % i * 500, (TARGETS[socket.AddressFamily(family)], 9))
        held = [sum(b"piece%02d-" % i in packet for packet in packets) for packets in drain(queues)]
        assert sum(held) == 3
        assert max(held) == 3


# What is told, and how many threads there are then.
THREADS = {
    ("--threads", "2"): 2,
    ("--threads", "3", "--queues", "8"): 3,
    ("--threads", "1", "--queues", "1"): 1,
}


@pytest.mark.parametrize("flags", THREADS, ids="".join)
def test_threads_carry_everything_once_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, flags: tuple[str, ...]
) -> None:
    """With several threads and queues nothing is lost, doubled or reordered, and all is accounted for."""
    with Pair(tmp_path_factory.mktemp("threads"), flags=flags) as pair:
        loads = [Load(pair, PORT + i, WINDOW // 3) for i in range(3)]
        with ExitStack() as flowing:
            for load in loads:
                flowing.enter_context(load)
            for load in loads:
                load.flow_on()
        assert [load.lost() for load in loads] == [0, 0, 0]
        workers = pair.daemons["a"].status()["workers"]
        assert workers["threads"] == pair.daemons["a"].counters.header().threads == THREADS[flags]
        assert workers["queues"] == (int(flags[-1]) if "--queues" in flags else 4)
