# SPDX-License-Identifier: Apache-2.0
"""What each fuzz target begins with: inputs of every shape, made by a program instead of kept as files."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from pathlib import Path

from tests import inner, oracle, probe
from tests.oracle import PROTO_TCP, PROTO_UDP, ip4, ip6, tcp, udp, with_check

SHORT_ENOUGH = 600
VNET = struct.Struct("=BBHHHHH")


def partial_packets() -> Iterator[tuple[bytes, int, int]]:
    """Yield packets whose checksum was left to us, with start and offset of its field."""
    small, large = b"x" * 30, b"x" * 1500  # the larger one makes a super-packet
    for proto, segment in ((PROTO_UDP, udp(small)), (PROTO_TCP, tcp(small)), (PROTO_TCP, tcp(large))):
        at = 16 if proto == PROTO_TCP else 6
        check4 = oracle.l4_partial(segment, proto, oracle.SRC4, oracle.DST4)
        yield ip4(with_check(segment, proto, check4), proto), 20, at
        check6 = oracle.l4_partial(segment, proto, oracle.SRC6, oracle.DST6)
        yield ip6(with_check(segment, proto, check6), proto), 40, at


def packets() -> Iterator[bytes]:
    """Yield good and bad inner packets."""
    yield from (packet for packet in inner.GOOD.values() if len(packet) < SHORT_ENOUGH)
    yield from (packet for _, packet in (*inner.INVALID4.values(), *inner.INVALID6.values()))
    yield from (packet for packet, _, _ in partial_packets())
    yield ip4(b"\x08\x00" + bytes(30), oracle.PROTO_ICMP, tos=oracle.ECT0)
    yield ip6(b"\x80\x00" + bytes(30), oracle.PROTO_ICMP6, tclass=oracle.ECT1)


def parse() -> Iterator[bytes]:
    """Yield inputs of parse.c: how, packet."""
    for how, packet in enumerate(packets()):
        yield bytes([how * 5 % 256]) + packet


def decap_vxlan() -> Iterator[bytes]:
    """Yield inputs of decap_vxlan.c: how, UDP payload."""
    for how, packet in enumerate(packets()):
        yield bytes([how % 4 << 4]) + oracle.vxlan(packet)
        yield bytes([how % 64]) + oracle.vxlan(packet)[:-3]
    yield b"\x04" + oracle.vxlan(inner.UDP4, flags=0xFFFFFFFF, last=0xFF)


def decap_ipip() -> Iterator[bytes]:
    """Yield inputs of decap_ipip.c: how, packet with its outer header."""
    for how, packet in enumerate(packets()):
        yield bytes([how % 2]) + oracle.ipip(packet, tos=how % 4)
    yield b"\x00" + oracle.ipip(oracle.ipip(inner.UDP4))
    yield b"\x00" + oracle.ipip(inner.UDP4, options=b"\x01" * 40)


def decap_bare() -> Iterator[bytes]:
    """Yield inputs of decap_bare.c: how, UDP payload."""
    yield b"\x00"
    for how, packet in enumerate(packets()):
        yield bytes([how % 4 << 4 | how % 2]) + packet


def offload_complete() -> Iterator[bytes]:
    """Yield inputs of offload_complete.c: virtio header, packet."""
    for packet, start, offset in partial_packets():
        yield VNET.pack(1, 0, start + 8, 0, start, offset, 0) + packet
        yield VNET.pack(1, 1, start + 20, 1000, start, offset, 0) + packet
        yield VNET.pack(1, 0, 0, 0, start, 0xFFFF - start, 0) + packet
        yield VNET.pack(0, 0, 0, 0, 0, 0, 0) + packet


def fib_open() -> Iterator[bytes]:
    """Yield inputs of fib_open.c: how, snapshot."""
    nets = [ip_network("10.244.1.0/24"), ip_network("fd00:1::/64")]
    full = probe.Spec(
        peers=[(3, "192.0.2.3", "2001:db8::3"), (4, "192.0.2.4", None)],
        subnets=[probe.Subnet(ip_network("10.244.3.0/24"), 3), probe.Subnet(ip_network("fd00:3::/64"), 3)],
        own=nets,
        sources=nets,
        allowed=nets,
    )
    for spec in (probe.Spec(), full):
        fd = probe.fib_create(spec)
        for how in (b"\x00", b"\x01"):
            yield how + os.pread(fd, 1 << 16, 0)
        os.close(fd)


def lpm() -> Iterator[bytes]:
    """Yield inputs of lpm.c: family, operations."""
    for family in (b"\x00", b"\x01"):
        yield family
        yield family + bytes([0, 1, 0, 0])
        yield family + b"".join(bytes([length, length + 1, 10, 0x85]) for length in range(33))
        yield family + bytes([8, 1, 10, 0, 32, 2, 10, 1, 128, 3, 10, 2, 8, 0, 10, 0])


def control() -> Iterator[bytes]:
    """Yield inputs of control.c: requests of 8 bytes."""
    hello, take, go, publish, quiesce, resume, inspect, stop = range(1, 9)
    greeting = bytes([0, hello, 5, 0, 0, 0, 0, 0])
    started = greeting + bytes([0, go, 5, 0x00, 0x07, 0, 40, 1])
    yield greeting
    for kind in range(11):
        yield bytes([0, kind, 5, 0, 0, 0, 0, 0])
        yield started + bytes([0, kind, 5, 0x00, 0x04, 0, 0, 0]) + bytes([0, inspect, 0, 0, 0, 0, 0, 0])
    yield started + b"".join(bytes([0, kind, 5, 0, 0, 0, 0, 0]) for kind in (quiesce, take, resume))
    yield started + started + bytes([0, publish, 5, 0, 4, 0, 0, 0, 0, stop, 5, 0, 0, 0, 0, 0])
    yield started + bytes([0, hello, 3, 0, 0, 0, 0, 0]) + bytes([0, hello, 9, 0, 0, 0, 0, 0])
    for how in (1, 2, 4, 8, 16, 32, 0x80):
        yield started + bytes([how, publish, 5, 0x00, 0x04, 0x83, 0, 200])
    for sent in (0x84, 0x83):  # no descriptor; more than a message has room for
        yield greeting + bytes([0, go, 5, 0x01, 0xFF, sent, 40, 1])


TARGETS: dict[str, Callable[[], Iterator[bytes]]] = {
    "decap_vxlan": decap_vxlan,
    "decap_ipip": decap_ipip,
    "decap_bare": decap_bare,
    "parse": parse,
    "offload_complete": offload_complete,
    "fib_open": fib_open,
    "lpm": lpm,
    "control": control,
}


def write(target: str, directory: Path) -> int:
    """Write the seeds of a target into a directory; return how many there are."""
    directory.mkdir(parents=True, exist_ok=True)
    count = 0
    for count, seed in enumerate(TARGETS[target](), 1):
        (directory / f"{count:03}").write_bytes(seed)
    return count
