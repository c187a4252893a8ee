# SPDX-License-Identifier: Apache-2.0
"""What a flannel node of type `udp` is, without flannel: a TUN, one UDP socket, and a loop between them.

    python flannel_proxy.py OVERLAY/32 NETWORK MTU UNDERLAY[:PORT] SUBNET=UNDERLAY ...

As flannel's does, it sends from its own port always, takes packets from anybody, looks for the first route
that holds the destination, and takes one from the TTL of each packet in both directions.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import subprocess
import sys
from ipaddress import IPv4Network

PORT = 8285
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 1, 0x1000
NAME = "flannel0"

Routes = list[tuple[int, int, str]]  # network, mask, underlay address


def open_tun(overlay: str, network: str, mtu: str) -> int:
    """Make the device, with a route for the whole network."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", NAME.encode(), IFF_TUN | IFF_NO_PI))
    for command in (
        f"addr add {overlay} dev {NAME}",
        f"link set {NAME} mtu {mtu} up",
        f"route add {network} dev {NAME}",
    ):
        subprocess.run(["ip", *command.split()], check=True)
    return fd


def take_ttl(packet: bytearray) -> bool:
    """Take one from the TTL and mend the checksum (RFC 1624); False if nothing is left of it."""
    if len(packet) < 20 or packet[8] <= 1:
        return False
    old = packet[8] << 8 | packet[9]
    packet[8] -= 1
    new = packet[8] << 8 | packet[9]
    total = (~(packet[10] << 8 | packet[11]) & 0xFFFF) + (~old & 0xFFFF) + new
    total = (total & 0xFFFF) + (total >> 16)
    packet[10:12] = (~((total & 0xFFFF) + (total >> 16)) & 0xFFFF).to_bytes(2, "big")
    return True


def find_route(routes: Routes, packet: bytearray) -> str | None:
    """Return where the first route that holds the destination leads."""
    destination = int.from_bytes(packet[16:20], "big")
    return next((to for net, mask, to in routes if destination & mask == net), None)


def main(overlay: str, network: str, mtu: str, underlay: str, *words: str) -> None:
    """Carry packets until the end."""
    address, _, port = underlay.partition(":")
    number = int(port or PORT)
    routes: Routes = []
    for word in words:
        subnet, _, to = word.partition("=")
        net = IPv4Network(subnet)
        routes.append((int(net.network_address), int(net.netmask), to))
    tun = open_tun(overlay, network, mtu)
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.bind((address, number))
    while True:
        select.select([tun, sock.fileno()], [], [])
        is_active = True
        while is_active:
            is_active = False
            try:
                packet = bytearray(os.read(tun, int(mtu)))
                is_active = True
                found = find_route(routes, packet)
                if found and take_ttl(packet):
                    sock.sendto(packet, (found, number))
            except BlockingIOError:
                pass
            try:
                packet = bytearray(sock.recv(int(mtu)))
                is_active = True
                if take_ttl(packet):
                    os.write(tun, packet)
            except BlockingIOError:
                pass


if __name__ == "__main__":
    main(*sys.argv[1:])
