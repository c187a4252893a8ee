# SPDX-License-Identifier: Apache-2.0
"""The way back: `overlayd down --hand-over flannel.1` leaves kernel devices that carry on where we end.

They are what flannel itself would have made: flanneld finds them, with our MAC addresses, and keeps them. All
that the kernel lets us do is done before our forwarder ends, since only then is the UDP port free; what is
left to do then are the neighbours and routes of each peer.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from ipaddress import IPv6Address

from dataplane import native
from dataplane.control import ForwarderClient
from dataplane.errors import RuntimeFailure
from dataplane.model import Address, Encap, HostFacts, SubnetEntry, VxlanDevice
from dataplane.native import ForwarderConfig
from dataplane.netlink import Host
from dataplane.slots import Fd


@dataclass(frozen=True, slots=True)
class HandOver:
    """One device to be, and who is behind it."""

    device: VxlanDevice
    address: Address  # of the node in the overlay: where its subnet begins
    peers: tuple[SubnetEntry, ...]


def read(client: ForwarderClient, names: tuple[str, ...], tun_name: str, facts: HostFacts) -> list[HandOver]:
    """Return what the forwarder carries as devices of these names, IPv4 pods' first. Changes nothing.

    Raises RuntimeFailure if kernel devices could not carry it.
    """
    message, fds = client.inspect()
    try:
        if message.config is None or Fd.FIB not in fds:
            raise RuntimeFailure("there is nothing to hand over: the forwarder carries nothing")
        config = message.config
        _, table = native.read_fib(fds[Fd.FIB])
    finally:
        for fd in fds.values():
            os.close(fd)
    links = {link.name: link for link in facts.interfaces}
    taken = sorted(links.keys() & set(names))
    if taken:
        raise RuntimeFailure(f"cannot hand over to {taken[0]}: there is such a device already")
    addresses = links[tun_name].addresses if tun_name in links else ()
    others = sorted({entry.encap.name.lower() for entry in table.subnets} - {"vxlan", "direct"})
    if others:
        raise RuntimeFailure(f"cannot hand over: peers are reached by {', '.join(others)}, not by VXLAN")
    ours = sorted((ip for ip in addresses if not ip.is_link_local), key=lambda ip: ip.version)
    if not ours:
        raise RuntimeFailure("cannot hand over: the overlay device has no address")
    if len(names) != len(ours):
        raise RuntimeFailure(
            f"cannot hand over to {', '.join(names)}: give {len(ours)}, one for pods of each IP version"
        )
    return [_plan(name, config, ip, table.subnets) for name, ip in zip(names, ours, strict=True)]


def find_peers(subnets: tuple[SubnetEntry, ...], version: int) -> tuple[SubnetEntry, ...]:
    """Return those whose pods are of an IP version and behind VXLAN."""
    return tuple(
        entry
        for entry in subnets
        if entry.prefix.version == version and entry.encap is Encap.VXLAN and entry.vtep_mac
    )


def _plan(name: str, config: ForwarderConfig, address: Address, subnets: tuple[SubnetEntry, ...]) -> HandOver:
    is6 = isinstance(address, IPv6Address)
    peers = find_peers(subnets, address.version)
    # IPv6 pods are behind IPv6 nodes, with flannel; where they are not, the device has the nodes' family.
    versions = {entry.vtep.version for entry in peers} or {address.version}
    if len(versions) > 1:
        raise RuntimeFailure("cannot hand over: some peers have IPv4 addresses, others IPv6 ones")
    local = config.underlay6 if versions == {6} else config.underlay4
    mac = config.vtep_mac6 if is6 else config.vtep_mac4
    if mac is None:
        raise RuntimeFailure("cannot hand over: the node has no VTEP MAC address")
    device = VxlanDevice(
        name, mac, config.vni, config.vxlan_port, local, config.tun_mtu, config.underlay_ifindex
    )
    return HandOver(device, address, peers)


async def prepare(host: Host, plans: list[HandOver]) -> None:
    """Make the devices, down, with their addresses and who is where; all of them or none."""
    made = []
    try:
        for plan in plans:
            await host.make_vxlan(plan.device, plan.address)
            made.append(plan.device.name)
            await host.set_forwarding(plan.device.name, plan.peers)
    except BaseException:
        for name in made:
            await host.remove_vxlan(name)
        raise


async def finish(host: Host, plans: list[HandOver]) -> None:
    """Let them carry: the port is free now."""
    for plan in plans:
        await host.go_vxlan(plan.device.name, plan.peers)
