# SPDX-License-Identifier: Apache-2.0
"""VXLAN devices of the kernel, set up as flannel sets up its own. Runs in the thread of netlink.Host.

Per peer: a forwarding entry VTEP MAC -> node, a permanent neighbour (where its subnet begins) -> VTEP MAC,
and an onlink route of its subnet by way of that neighbour. So nobody ever asks who has an address.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

from dataplane.model import Address, MacAddress, SubnetEntry, VxlanDevice

NAME_MAX = 15  # IFNAMSIZ without its final NUL
PROBE, PROBE_VNI = "ovl-probe", (1 << 24) - 2
NLA_HEADER_BYTES = 4
NUD_PERMANENT = 0x80
NTF_SELF = 0x02
RTNH_F_ONLINK = 4
TOS_INHERIT = 1  # for IFLA_VXLAN_TOS: the DSCP of the inner packet; ECN is its own in any case
RTPROT_BOOT = 3  # as flannel's own, which it replaces


def find_link(ipr: Any, name: str) -> Any | None:
    """Return the link of that name, if there is one."""
    return next((link for link in ipr.get_links() if link.get_attr("IFLA_IFNAME") == name), None)


def kind(link: Any) -> str | None:
    """Return what sort of device a link is, if it is a virtual one."""
    info = link.get_attr("IFLA_LINKINFO")
    return None if info is None else str(info.get_attr("IFLA_INFO_KIND"))


def device_name(tun_name: str, vni: int, version: int) -> str:
    """Return what we call a device of ours: overlay0.1, and overlay0-v6.1 for IPv6 pods."""
    suffix = f".{vni}" if version == 4 else f"-v6.{vni}"
    return f"{tun_name[: NAME_MAX - len(suffix)]}{suffix}"


def is_of(link: Any, tun_name: str) -> bool:
    """Return whether a link is a VXLAN device that we have made."""
    if kind(link) != "vxlan":
        return False
    vni = link.get_attr("IFLA_LINKINFO").get_attr("IFLA_INFO_DATA").get_attr("IFLA_VXLAN_ID")
    name = link.get_attr("IFLA_IFNAME")
    return name in (device_name(tun_name, vni, 4), device_name(tun_name, vni, 6))


def list_own(ipr: Any, tun_name: str) -> list[str]:
    """Return the names of the VXLAN devices that we have made."""
    return [str(link.get_attr("IFLA_IFNAME")) for link in ipr.get_links() if is_of(link, tun_name)]


def read(ipr: Any, name: str) -> VxlanDevice | None:
    """Return a VXLAN device; None if there is none of that name."""
    link = find_link(ipr, name)
    if link is None or kind(link) != "vxlan":
        return None
    data = link.get_attr("IFLA_LINKINFO").get_attr("IFLA_INFO_DATA")
    local = data.get_attr("IFLA_VXLAN_LOCAL") or data.get_attr("IFLA_VXLAN_LOCAL6")
    return VxlanDevice(
        name,
        MacAddress(bytes.fromhex(link.get_attr("IFLA_ADDRESS").replace(":", ""))),
        data.get_attr("IFLA_VXLAN_ID"),
        data.get_attr("IFLA_VXLAN_PORT"),
        None if local is None else ip_address(local),
        link.get_attr("IFLA_MTU"),
        data.get_attr("IFLA_VXLAN_LINK") or 0,
        None if _inherits_ttl(data) else data.get_attr("IFLA_VXLAN_TTL"),
        data.get_attr("IFLA_VXLAN_TOS") == TOS_INHERIT,
        link["index"],
    )


def _inherits_ttl(data: Any) -> bool:
    """Read a byte of the kernel's which pyroute2 takes for a flag, so that being there would mean yes."""
    found = next((slot.nla for slot in data["attrs"] if slot[0] == "IFLA_VXLAN_TTL_INHERIT"), None)
    return found is not None and found.data[found.offset + NLA_HEADER_BYTES] != 0


def find_twin(ipr: Any, device: VxlanDevice) -> VxlanDevice | None:
    """Return the device that is this one but for its name: two with the same MAC and VNI are never needed."""
    found = (read(ipr, link.get_attr("IFLA_IFNAME")) for link in ipr.get_links() if kind(link) == "vxlan")
    alike = (one for one in found if one and replace(one, name=device.name, mtu=device.mtu) == device)
    return next(alike, None)


def set_mac(ipr: Any, device: VxlanDevice) -> None:
    """Give a device its MAC address."""
    ipr.link("set", index=_index(ipr, device.name), address=str(device.mac))


def remove(ipr: Any, name: str) -> None:
    """Remove a VXLAN device, and with it all the kernel knows of peers behind it."""
    link = find_link(ipr, name)
    if link is not None and kind(link) == "vxlan":
        ipr.link("del", index=link["index"])


def probe(ipr: Any) -> None:
    """Make a device, to see whether the kernel can; netlink's error says why not."""
    ipr.link("add", ifname=PROBE, kind="vxlan", vxlan_id=PROBE_VNI, vxlan_port=9, vxlan_learning=0)


def make(ipr: Any, device: VxlanDevice, address: Address | None) -> None:
    """Make a device that is down yet: its UDP port may still be another's."""
    more: dict[str, object] = {}
    if device.local is not None:
        more[_local_name(device.local)] = str(device.local)
    if device.ttl is None:
        more["vxlan_ttl_inherit"] = True
    elif device.ttl:
        more["vxlan_ttl"] = device.ttl
    if device.has_inner_dscp:
        more["vxlan_tos"] = TOS_INHERIT
    ipr.link(
        "add",
        ifname=device.name,
        kind="vxlan",
        address=str(device.mac),
        mtu=device.mtu,
        vxlan_id=device.vni,
        vxlan_link=device.link,
        vxlan_port=device.port,
        vxlan_learning=0,
        **more,
    )
    if address is not None:
        index = _index(ipr, device.name)
        ipr.addr("add", index=index, address=str(address), prefixlen=address.max_prefixlen)


def _local_name(local: Address) -> str:
    return "vxlan_local" if local.version == 4 else "vxlan_local6"


def set_forwarding(ipr: Any, name: str, peers: Iterable[SubnetEntry]) -> None:
    """Say which node has which VTEP MAC."""
    index = _index(ipr, name)
    for mac, node in {(str(peer.vtep_mac), str(peer.vtep)) for peer in peers}:
        ipr.fdb("append", ifindex=index, lladdr=mac, dst=node, state=NUD_PERMANENT, flags=NTF_SELF)


def go(ipr: Any, name: str, peers: Iterable[SubnetEntry]) -> None:
    """Set the device up, and lead the subnets of peers there."""
    index = _index(ipr, name)
    ipr.link("set", index=index, state="up")
    for peer in peers:
        family = socket.AF_INET if peer.prefix.version == 4 else socket.AF_INET6
        gateway = str(peer.prefix.network_address)
        ipr.neigh(
            "replace",
            family=family,
            ifindex=index,
            dst=gateway,
            lladdr=str(peer.vtep_mac),
            state=NUD_PERMANENT,
        )
        ipr.route(
            "replace",
            family=family,
            dst=str(peer.prefix),
            gateway=gateway,
            oif=index,
            flags=RTNH_F_ONLINK,
            proto=RTPROT_BOOT,
        )


def _index(ipr: Any, name: str) -> int:
    link = find_link(ipr, name)
    assert link is not None
    index: int = link["index"]
    return index
