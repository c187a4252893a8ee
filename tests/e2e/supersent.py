# SPDX-License-Identifier: Apache-2.0
"""Super-packets put on a device as one, as a stack with offloads hands them to its card.

A packet socket that takes a virtio header before each frame (PACKET_VNET_HDR) is the only way to say every
bit of a super-packet, its marks included. A veth takes it as it is, so the other end gets it in one piece.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from scapy.layers.inet import UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from bench.lab import stopped, wait_for
from tests.e2e.frames import VXLAN_HEADER, is_tunnel, link
from tests.e2e.rig import Rig
from tests.e2e.tap import SOL_PACKET, Tap
from tests.supers import described, partial

PACKET_VNET_HDR = 15
ETHER = 14
VNET = struct.Struct("=BBHHHH")


def send(tap: Tap, frame: bytes, size: int) -> None:
    """Put an Ethernet frame on the device of a tap, to be cut into `size` bytes of payload each."""
    packet = partial(frame[ETHER:])
    vnet = described(packet, size)
    header = VNET.pack(
        *(vnet.flags, vnet.gso_type, ETHER + vnet.hdr_len, size),
        *(ETHER + vnet.csum_start, vnet.csum_offset),
    )
    tap.sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    try:
        tap.sock.send(header + frame[:ETHER] + packet)
    finally:
        tap.sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 0)


def joined(frames: list[Packet]) -> tuple[bytes, int]:
    """Return equally long VXLAN frames of a peer as one super-datagram, and the bytes of each part."""
    payloads = [bytes(frame[UDP].payload) for frame in frames]
    size = len(payloads[0])
    assert all(payload.startswith(VXLAN_HEADER) and len(payload) == size for payload in payloads)
    whole = frames[0].copy()
    whole[UDP].remove_payload()
    return bytes(link(Ether(bytes(whole)).payload / Raw(b"".join(payloads)))), size


@contextmanager
def held(rig: Rig) -> Iterator[None]:
    """Stop the forwarder meanwhile, so that it finds all that was sent in one batch."""
    with stopped(rig.daemon.forwarder_pid()):
        yield


def take(tap: Tap, count: int, is_wanted: Callable[[bytes], bool] = is_tunnel) -> list[bytes]:
    """Return the wanted frames of a tap once there are that many."""
    seen: list[bytes] = []

    def is_there() -> bool:
        seen.extend(frame for frame in tap.take() if is_wanted(frame))
        return len(seen) >= count

    wait_for(is_there, f"{count} frames from {tap.device}")
    return seen
