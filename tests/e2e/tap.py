# SPDX-License-Identifier: Apache-2.0
"""A tap: frames put on and read from one device, below everything the kernel or overlayd would do to them."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable
from typing import TypeAlias

from scapy.packet import Packet

from bench.lab import Namespace

ETH_P_ALL = 0x0003
SOL_PACKET = 263
PACKET_IGNORE_OUTGOING = 23
SO_RCVBUFFORCE = 33
PACKET_OUTGOING = 4
DEADLINE_S = 5.0

Frame: TypeAlias = Packet | bytes


class Tap:
    """A packet socket on one device of a namespace.

    It sees what the device receives: what comes in from the other end of a veth, what overlayd writes to a
    TUN. With `outgoing` it sees what the kernel sends through the device instead.
    """

    def __init__(self, namespace: Namespace, device: str, outgoing: bool = False) -> None:
        """Open it; frames are kept from now on."""
        self.device = device
        self._outgoing = outgoing
        self.sock = namespace.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self.sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
        if not outgoing:
            self.sock.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        self.sock.bind((device, ETH_P_ALL))
        self.sock.setblocking(False)

    def close(self) -> None:
        """Close it. May be called again."""
        self.sock.close()

    def send(self, *frames: Frame) -> None:
        """Put frames on the device, in order."""
        for frame in frames:
            self.sock.send(bytes(frame))

    def take(self) -> list[bytes]:
        """Return what is there now."""
        frames: list[bytes] = []
        while True:
            try:
                frame, address = self.sock.recvfrom(1 << 17)
            except BlockingIOError:
                return frames
            if (address[2] == PACKET_OUTGOING) == self._outgoing:
                frames.append(frame)

    def wait(
        self, is_wanted: Callable[[bytes], bool], what: str, deadline_s: float = DEADLINE_S
    ) -> list[bytes]:
        """Return all frames that were there when the wanted one came; fail after the deadline."""
        frames: list[bytes] = []
        end = time.monotonic() + deadline_s
        while (left := end - time.monotonic()) > 0:
            select.select([self.sock], [], [], left)
            new = self.take()
            frames += new
            if any(is_wanted(frame) for frame in new):
                return frames
        raise AssertionError(f"{what} did not come out of {self.device}, but {[f.hex() for f in frames]}")
