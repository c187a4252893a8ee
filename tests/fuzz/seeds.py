# SPDX-License-Identifier: Apache-2.0
"""What each fuzz target begins with: inputs of every shape, made by a program.

What fuzzing found besides is kept in corpus/.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from pathlib import Path

from tests import inner, oracle, probe, supers
from tests.oracle import PROTO_TCP, PROTO_UDP, ip4, ip6, tcp, udp, with_check

SHORT_ENOUGH = 600
VNET = struct.Struct("=BBHHHHH")


def between(packet: bytes, src: str, dst: str) -> bytes:
    """Return an IPv4 packet with other addresses."""
    return supers.finish(packet[:12] + oracle.packed(src) + oracle.packed(dst) + packet[20:])


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
        yield b"\0" + oracle.ipip(packet, tos=how % 4)
    yield b"\x00" + oracle.ipip(oracle.ipip(inner.UDP4))
    yield b"\x00" + oracle.ipip(inner.UDP4, options=b"\x01" * 40)


def decap_bare() -> Iterator[bytes]:
    """Yield inputs of decap_bare.c: how, UDP payload."""
    yield b"\x00"
    for how, packet in enumerate(packets()):
        yield bytes([how % 4 << 4]) + packet


def offload_complete() -> Iterator[bytes]:
    """Yield inputs of offload_complete.c: virtio header, packet."""
    for packet, start, offset in partial_packets():
        yield VNET.pack(1, 0, start + 8, 0, start, offset, 0) + packet
        yield VNET.pack(1, 1, start + 20, 1000, start, offset, 0) + packet
        yield VNET.pack(1, 0, 0, 0, start, 0xFFFF - start, 0) + packet
        yield VNET.pack(0, 0, 0, 0, 0, 0, 0) + packet


def fib_open() -> Iterator[bytes]:
    """Yield inputs of fib_open.c: nothing, snapshot."""
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
        yield b"\0" + os.pread(fd, 1 << 16, 0)
        os.close(fd)


def checksum() -> Iterator[bytes]:
    """Yield inputs of checksum.c: where to cut, what to change, bytes."""
    for length in (0, 1, 2, 7, 20, 64, 127, 128, 1023, 1024):
        yield bytes([length % 256, length % 251]) + bytes(range(256)) * 4 + b"\xff" * length


def icmp_build() -> Iterator[bytes]:
    """Yield inputs of icmp_build.c: path MTU, packet."""
    for packet in packets():
        yield b"\x05\x00" + packet
    for kind in (0, 3, 8, 13, 129, 1):
        yield b"\x05\x78" + ip4(bytes([kind]) + bytes(30), oracle.PROTO_ICMP)
        yield b"\x00\x00" + ip6(bytes([kind]) + bytes(30), oracle.PROTO_ICMP6)


def split() -> Iterator[bytes]:
    """Yield inputs of split.c: virtio header, super-packet."""
    for family in (4, 6):
        for proto in (PROTO_TCP, PROTO_UDP):
            packet = supers.partial(supers.segment(bytes(900), family=family, proto=proto, seq=7))
            yield VNET.pack(*supers.described(packet, 300)) + packet
            yield VNET.pack(*supers.described(packet, 1000)) + packet


def merge() -> Iterator[bytes]:
    """Yield inputs of merge.c: how, packets of 5 bytes."""
    for how in (b"\1", b"\0", b"\3"):
        for key in range(4):
            row = bytes([key | 0x40, 7, 0, 0, 0])
            yield how + row * 8
            yield how + row * 3 + bytes([key, 4, 1, 0, 0]) + row  # a short one with PSH
            yield how + row * 70  # more than one super-packet can hold
            yield how + b"".join(row + bytes([key, 7, 0, 0x80 | odd, 4]) + row for odd in range(20))
        yield how + b"".join(bytes([key, 7, 0, 0, 0]) for key in range(64)) * 2  # more flows than are open


def fib() -> Iterator[bytes]:
    """Yield inputs of fib.c: operations of 5 bytes."""
    for family in (0, 0x40):
        yield b"".join(bytes([family + kind, 16, 10, kind, kind]) for kind in range(5))
        yield b"".join(bytes([family + 4, length, 10, 0x85, length]) for length in range(0, 33, 3))
        for wrong in range(5):
            yield bytes([family + 4 + 0x80, 16, 10, 0, wrong, family + wrong + 0x80, 16, 10, 0, wrong])


def encap() -> Iterator[bytes]:
    """Yield inputs of encap.c: how, then lengths, virtio headers and packets."""
    plain = bytes(12) + between(supers.segment(bytes(100)), "10.244.1.5", "10.0.1.5")
    packet = supers.partial(between(supers.segment(bytes(900), seq=7), "10.244.1.5", "10.0.2.5"))
    frames = [plain, plain, VNET.pack(*supers.described(packet, 300)) + packet, plain]
    for how in range(0, 128, 5):
        yield bytes([how]) + b"".join(struct.pack(">H", len(frame) - 12) + frame for frame in frames)


def deliver() -> Iterator[bytes]:
    """Yield inputs of deliver.c: how, then peers, segment sizes, lengths and messages."""
    packet = between(supers.segment(bytes(100)), "10.0.1.5", "10.244.1.5")
    vxlan = oracle.vxlan(packet)
    outer = ip4(packet, oracle.PROTO_IPIP, src="192.0.2.101", dst="192.0.2.1")
    for how in range(0, 128, 3):
        message = {1: outer, 2: packet}.get(how % 4, vxlan)
        size = len(message) if how % 4 != 1 else 0
        yield bytes([how]) + struct.pack(">BHH", 1, size, 2 * len(message)) + message * 2
        yield bytes([how]) + (struct.pack(">BHH", 1, 0, len(message)) + message) * 3


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
    yield (
        bytes([64]) + started[1:] + b"".join(bytes([0, kind, 5, 0, 0, 0, 0, 0]) for kind in (quiesce, resume))
    )
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
    "checksum": checksum,
    "icmp_build": icmp_build,
    "split": split,
    "merge": merge,
    "encap": encap,
    "deliver": deliver,
    "fib": fib,
    "fib_open": fib_open,
    "lpm": lpm,
    "control": control,
}


def write(target: str, directory: Path) -> int:
    """Write the seeds of a target into a directory; return how many there are."""
    directory.mkdir(parents=True, exist_ok=True)
    count = 0
    for count, seed in enumerate(TARGETS[target](), 1):
        (directory / f"seed-{count:03}").write_bytes(seed)
    return count
