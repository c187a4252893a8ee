# SPDX-License-Identifier: Apache-2.0
"""The TUN and the underlay sockets: opening them, and one line with the next step when that fails."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import TypeVar

from dataplane import native
from dataplane.errors import KernelError, RuntimeFailure
from dataplane.model import Encap
from dataplane.native import ForwarderConfig, TunHandle
from dataplane.ruleset import MARK
from dataplane.slots import BARE_MAX, EACH, Fd, Fds, role_of, slot_of

BUFFER_BYTES = 8 << 20
Name = TypeVar("Name")
# linux/in.h, in6.h: of both families alike; Python 3.11 has no names for them.
IP_MTU_DISCOVER, IPV6_MTU_DISCOVER = 10, 23
PMTUDISC_DO, PMTUDISC_PROBE = 2, 3


@dataclass(frozen=True, slots=True)
class Holders:
    """Who has what we want already; netlink knows."""

    port: Callable[[int], str | None]  # who holds a UDP port, in words
    is_tun_held: Callable[[str], bool]


# Opened anew when this changes, and only then.
Key = tuple[int | str | IPv4Address | IPv6Address | None, ...]

SENDING = (Fd.UDP4_TX, Fd.UDP6_TX, Fd.RAW4_TX)


def wanted_sockets(config: ForwarderConfig) -> dict[int, Key]:
    """List the sockets that a config needs, each with what it depends on."""
    if config.encaps >= {Encap.VXLAN, Encap.FLANNEL_UDP} and config.vxlan_port == config.bare_port:
        raise RuntimeFailure(f"UDP port {config.bare_port} is that of vxlan and of udp. Choose another Port")
    keys: dict[int, Key] = {}
    for encap, receiving, sending, address, port, most in (
        (Encap.VXLAN, Fd.UDP4, Fd.UDP4_TX, config.underlay4, config.vxlan_port, EACH),
        (Encap.VXLAN, Fd.UDP6, Fd.UDP6_TX, config.underlay6, config.vxlan_port, EACH),
        (Encap.FLANNEL_UDP, Fd.BARE4, Fd.UDP4_TX, config.underlay4, config.bare_port, BARE_MAX),
    ):
        if encap not in config.encaps or address is None:
            continue
        # The first one gets what is sent to no address of ours; the others share the rest, a queue each.
        keys[receiving] = (port,)
        for index in range(1, min(config.queues + 1, most) if config.queues > 1 else 1):
            keys[slot_of(receiving, index)] = (port, address)
        for index in range(config.sources):
            keys[slot_of(sending, index)] = (address, config.underlay_ifindex)
    if Encap.IPIP in config.encaps and config.underlay4 is not None:
        keys[Fd.RAW4] = ()
        keys[Fd.RAW4_TX] = ()
    return keys


def open_socket(slot: int, config: ForwarderConfig, device: str, holders: Holders) -> int:
    """Open one underlay socket with a large buffer."""
    role = role_of(slot)
    try:
        fd, _ = native.underlay_open(slot, config, device, BUFFER_BYTES)
        try:
            mark(slot, fd)
        except KernelError:
            os.close(fd)
            raise
        return fd
    except KernelError as err:
        address = config.underlay6 if role in (Fd.UDP6, Fd.UDP6_TX) else config.underlay4
        port = config.bare_port if role is Fd.BARE4 else config.vxlan_port
        if err.errno == errno.EADDRINUSE and role not in SENDING:
            raise port_taken(port, holders.port(port)) from None
        if err.errno == errno.EADDRNOTAVAIL:
            raise RuntimeFailure(f"{address} is not an address of this host. Check --public-ip") from None
        if err.errno in (errno.EPERM, errno.EACCES):
            raise RuntimeFailure(f"{err}. overlayd run needs CAP_NET_RAW and CAP_NET_ADMIN") from None
        raise


def port_taken(port: int, holder: str | None) -> RuntimeFailure:
    """Return the error that says who holds a UDP port, which no two networks of a host can share."""
    step = "Stop flanneld and remove the device" if holder and "kernel" in holder else "Stop it"
    # A running control may not look into other processes; a rehearsal may.
    holder = holder or f"another process (ss -lunp sport = {port} says which)"
    return RuntimeFailure(f"UDP port {port} is held by {holder}. {step}, or choose another Port")


def mark(slot: int, fd: int) -> None:
    """Let the firewall know our packets."""
    if role_of(slot) in SENDING:
        with socket.socket(fileno=duplicate(fd)) as sock:
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK)
            except OSError as err:
                raise KernelError("marking our packets", err.errno or 0) from None


def source_ports(fds: Fds) -> frozenset[int]:
    """Return the UDP ports that tunnel packets leave by."""
    ports = set()
    for slot, fd in fds.items():
        if role_of(slot) in (Fd.UDP4_TX, Fd.UDP6_TX):
            with socket.socket(fileno=duplicate(fd)) as sock:
                ports.add(int(sock.getsockname()[1]))
    return frozenset(ports)


def trust_paths(fds: Fds, *, is_trusting: bool) -> None:
    """Let the kernel refuse what is larger than it believes a path to take, or only than the interface.

    DF is set either way. Not to trust it is for when somebody makes it believe nonsense: the table knows.
    """
    for slot, fd in fds.items():
        if role_of(slot) in SENDING:
            with socket.socket(fileno=duplicate(fd)) as sock:
                is_ipv6 = role_of(slot) is Fd.UDP6_TX
                level = socket.IPPROTO_IPV6 if is_ipv6 else socket.IPPROTO_IP
                option = IPV6_MTU_DISCOVER if is_ipv6 else IP_MTU_DISCOVER
                sock.setsockopt(level, option, PMTUDISC_DO if is_trusting else PMTUDISC_PROBE)


def check_free(name: str, holders: Holders) -> None:
    """Raise if another process holds the TUN device; the kernel would let us share it."""
    if holders.is_tun_held(name):
        raise RuntimeFailure(
            f"TUN device {name} is held by another process. Stop it, or choose another --tun-name"
        )


def no_tun() -> RuntimeFailure:
    """Return what is wrong where the kernel has no TUN devices."""
    step = "mkdir -p /dev/net; mknod /dev/net/tun c 10 200; modprobe tun"
    return RuntimeFailure(f"there is no TUN here (/dev/net/tun). Fix: {step}")


def foreign_device(name: str) -> RuntimeFailure:
    """Return what is wrong where another kind of device has the name of ours."""
    return RuntimeFailure(f"{name} is there and is no TUN device. Remove it, or choose another --tun-name")


def open_tun(name: str, tier_mask: int) -> TunHandle:
    """Open a queue of the TUN device, which is made if it is not there."""
    try:
        return native.tun_open(name, tier_mask)
    except KernelError as err:
        if err.errno in (errno.ENOENT, errno.ENODEV):
            raise no_tun() from None
        if err.errno in (errno.EPERM, errno.EACCES):
            raise RuntimeFailure(
                f"{err}. overlayd run needs CAP_NET_ADMIN, and in containers leave to use /dev/net/tun"
            ) from None
        if err.errno == errno.EINVAL and has_device(name):
            raise foreign_device(name) from None
        raise


def has_device(name: str) -> bool:
    """Return whether this network namespace has a device of that name."""
    return Path(f"/proc/sys/net/ipv4/conf/{name}").exists()


def tun_name_of(fd: int) -> str | None:
    """Return the name of the device that a TUN descriptor is attached to; None if it was deleted."""
    for line in Path(f"/proc/self/fdinfo/{fd}").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("iff:"):
            return line.removeprefix("iff:").strip() or None
    return None


def duplicate(fd: int) -> int:
    """Return another descriptor of the same thing."""
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)


def close_all(fds: dict[Name, int]) -> None:
    """Close descriptors and forget them."""
    while fds:
        os.close(fds.popitem()[1])


def buffer_warnings(fds: Fds) -> list[str]:
    """Say which sockets got smaller buffers than they should have."""
    smallest: dict[str, int] = {}
    for slot, fd in fds.items():
        role = role_of(slot)
        if role in (Fd.TUN, Fd.COUNTERS, Fd.FIB):
            continue
        option, setting = (
            (socket.SO_SNDBUF, "wmem_max") if role in SENDING else (socket.SO_RCVBUF, "rmem_max")
        )
        sock = socket.socket(fileno=duplicate(fd))
        with sock:
            # The kernel tells twice what it grants.
            granted = sock.getsockopt(socket.SOL_SOCKET, option) // 2
        if granted < BUFFER_BYTES:
            smallest[setting] = min(granted, smallest.get(setting, granted))
    return [
        f"socket buffer {granted} of {BUFFER_BYTES} bytes granted: net.core.{setting}. "
        f"Fix: sysctl -w net.core.{setting}={BUFFER_BYTES}"
        for setting, granted in sorted(smallest.items())
    ]
