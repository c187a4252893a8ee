# SPDX-License-Identifier: Apache-2.0
"""The host's links, addresses and routes, by netlink: the only importer of pyroute2.

pyroute2 does not run on a uvloop loop, so it has a thread of its own, and a selector loop there; Host hands
every call to that thread. Only what differs is written: where all is as it must be, `ip monitor` is silent.
Everything overlayd makes hangs on its device, or carries its route protocol number and a metric that stands
for the name of its device: each of several daemons of one host knows its own. Nothing else is ever changed or
removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import struct
import zlib
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Any, TypeVar

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from dataplane import netbatch, netwatch, vxlan, ways
from dataplane.entries import MAIN_TABLE
from dataplane.errors import KernelError, RuntimeFailure
from dataplane.model import Address, HostFacts, HostPlan, Interface, Network, SubnetEntry, VxlanDevice
from dataplane.repairs import Changes
from dataplane.sysctls import check_sysctls, device_sysctls, set_sysctls
from dataplane.underlay import rank_addresses

ROUTE_PROTOCOL = ways.OWN_PROTOCOL  # "overlayd" in `ip route show proto 111`; unassigned elsewhere
UNREACHABLE_METRIC, USUAL_NAME = 0xFF000000, b"overlay0"  # behind every other route to the network
IPV6_METRIC = 1024  # what the kernel gives to IPv6 routes that ask for none
# Packets that may wait in each queue of the device: 400 ms of 10 000 a second, while a forwarder is replaced
# on a busy machine. Beside bulk TCP 256 gave the same latency; who fills a queue waits behind himself alone.
TX_QUEUE_LEN = 4096
TC_H_ROOT = 0xFFFFFFFF
RTN_UNICAST, RTN_BLACKHOLE, RTN_UNREACHABLE = 1, 6, 7
NOWHERE = {RTN_BLACKHOLE: "blackhole", RTN_UNREACHABLE: "unreachable"}
SCOPE_LINK, SCOPE_GLOBAL, SCOPE_ANY = 253, 0, 255
IFF_UP = 1
IFF_TUN = 1  # IFLA_TUN_TYPE; 2 is a TAP
IFA_F_NODAD = 0x02

NLMSG_ERROR = struct.Struct("=IHHIIi16x")  # what the kernel answers instead, with the question it is about

Result = TypeVar("Result")


# --- in the thread ----------------------------------------------------------------------------------------


def _attr(message: Any, name: str) -> Any:
    return message.get_attr(name)


def _read_facts(ipr: IPRoute) -> HostFacts:
    addresses: dict[int, list[tuple[Address, int]]] = {}
    for message in ipr.get_addr():
        text = _attr(message, "IFA_LOCAL") or _attr(message, "IFA_ADDRESS")
        if text is not None:
            flags = _attr(message, "IFA_FLAGS") or message["flags"]
            addresses.setdefault(message["index"], []).append((ip_address(text), flags))
    links = list(ipr.get_links())
    interfaces = tuple(
        Interface(
            _attr(link, "IFLA_IFNAME"),
            link["index"],
            _attr(link, "IFLA_MTU"),
            *rank_addresses(addresses.get(link["index"], [])),
        )
        for link in links
    )
    names = {link.index: link.name for link in interfaces}
    found, defaults = ways.read()
    ipip = [
        (_attr(link, "IFLA_IFNAME"), link["flags"] & IFF_UP) for link in links if vxlan.kind(link) == "ipip"
    ]
    return HostFacts(
        interfaces,
        tuple(names[index] for index in defaults if index in names),
        found,
        ipip_up=tuple(name for name, is_up in ipip if is_up),
        ipip_down=tuple(name for name, is_up in ipip if not is_up),
    )


def _is_tun(link: Any) -> bool:
    # A TAP is of kind "tun" too, and never ours.
    if vxlan.kind(link) != "tun":
        return False
    data = _attr(link, "IFLA_LINKINFO").get_attr("IFLA_INFO_DATA")
    return data is not None and data.get_attr("IFLA_TUN_TYPE") == IFF_TUN


def _has_carrier(ipr: IPRoute, name: str) -> bool:
    link = vxlan.find_link(ipr, name)
    return link is not None and _is_tun(link) and bool(_attr(link, "IFLA_CARRIER"))


def _is_foreign(ipr: IPRoute, name: str) -> bool:
    link = vxlan.find_link(ipr, name)
    return link is not None and not _is_tun(link)


def _set_link(ipr: IPRoute, link: Any, plan: HostPlan, changes: Changes) -> None:
    """Set MTU, queue and state of the device."""
    index, name = link["index"], plan.tun_name
    _set_mtu(ipr, link, plan, changes)
    if _attr(link, "IFLA_TXQLEN") != TX_QUEUE_LEN and changes.may(f"{name} txqueuelen {TX_QUEUE_LEN}"):
        ipr.link("set", index=index, txqlen=TX_QUEUE_LEN)
    _set_settings(plan, changes)
    _set_up(ipr, link, plan, changes)
    # A device that is down has none yet.
    has_queue = any(_attr(qdisc, "TCA_KIND") != "noqueue" for qdisc in ipr.get_qdiscs(index=index))
    # The device has a queue of its own; another one in front of it costs a lock, and time.
    if has_queue and changes.may(f"{name} qdisc noqueue"):
        ipr.tc("replace", "noqueue", index=index, parent=TC_H_ROOT)


def _set_mtu(ipr: IPRoute, link: Any, plan: HostPlan, changes: Changes) -> None:
    if _attr(link, "IFLA_MTU") != plan.mtu and changes.may(f"{plan.tun_name} mtu {plan.mtu}"):
        ipr.link("set", index=link["index"], mtu=plan.mtu)


def _set_settings(plan: HostPlan, changes: Changes) -> None:
    has_ipv6 = any(ip.version == 6 for ip in plan.addresses)
    set_sysctls(device_sysctls(plan.tun_name, has_ipv6=has_ipv6), changes)


def _set_up(ipr: IPRoute, link: Any, plan: HostPlan, changes: Changes) -> None:
    if not link["flags"] & IFF_UP and changes.may(f"{plan.tun_name} up"):
        ipr.link("set", index=link["index"], state="up")


def _set_addresses(ipr: IPRoute, index: int, plan: HostPlan, changes: Changes) -> None:
    """Give the device exactly the planned addresses."""
    wanted = {ip_interface((ip, ip.max_prefixlen)) for ip in plan.addresses}
    found = set()
    for message in ipr.get_addr(index=index):
        text = _attr(message, "IFA_LOCAL") or _attr(message, "IFA_ADDRESS")
        found.add(ip_interface(f"{text}/{message['prefixlen']}"))
    for interface in sorted(found - wanted, key=str):
        if changes.may(f"{plan.tun_name} without {interface}"):
            ipr.addr("del", index=index, address=str(interface.ip), prefixlen=interface.network.prefixlen)
    for interface in sorted(wanted - found, key=str):
        if not changes.may(f"{plan.tun_name} {interface}"):
            continue
        # Without, an IPv6 address is tentative for a moment, and a route that prefers it as source invalid.
        flags = IFA_F_NODAD if interface.version == 6 else 0
        ipr.addr(
            "add", index=index, address=str(interface.ip), prefixlen=interface.network.prefixlen, flags=flags
        )


# (destination, type, interface or None, preferred source or None, metric)
Route = tuple[Network, int, int | None, Address | None, int]


def unreachable_metric(tun_name: str) -> int:
    """Return the metric of unreachable routes of the daemon whose device this is: they have no device."""
    return UNREACHABLE_METRIC | (zlib.crc32(tun_name.encode()) ^ zlib.crc32(USUAL_NAME)) & 0xFFFFFF


def _own_routes(index: int | None, tun_name: str) -> set[Route]:
    """Return the routes of our protocol by way of our device, and those that are unreachable behind it."""
    metric = unreachable_metric(tun_name)
    return {
        (
            route.prefix,
            route.kind,
            None if route.kind in NOWHERE else route.iface,
            route.source,
            route.metric,
        )
        for route in ways.list_routes(ROUTE_PROTOCOL)
        if (route.metric == metric if route.kind in NOWHERE else route.iface == (index or -1))
    }


def _wanted_routes(index: int | None, plan: HostPlan) -> set[Route]:
    sources = {ip.version: ip for ip in plan.addresses}
    routes: set[Route] = {
        (net, RTN_BLACKHOLE, None, None, unreachable_metric(plan.tun_name)) for net in plan.blackholes
    }
    for net in plan.networks:
        routes.add((net, RTN_UNREACHABLE, None, None, unreachable_metric(plan.tun_name)))
        if index is not None and net.version in sources:
            metric = 0 if net.version == 4 else IPV6_METRIC
            routes.add((net, RTN_UNICAST, index, sources[net.version], metric))
    return routes


def _route_fields(route: Route) -> dict[str, Any]:
    net, kind, index, source, metric = route
    fields: dict[str, Any] = {
        "family": socket.AF_INET if net.version == 4 else socket.AF_INET6,
        "dst": str(net),
        "proto": ROUTE_PROTOCOL,
        "table": MAIN_TABLE,
        "type": kind,
        "priority": metric,
    }
    if kind in NOWHERE:
        return fields
    fields |= {"oif": index, "scope": SCOPE_LINK if net.version == 4 else SCOPE_GLOBAL}
    return fields if source is None else {**fields, "prefsrc": str(source)}


def _set_routes(ipr: IPRoute, index: int | None, plan: HostPlan, changes: Changes) -> None:
    """Have exactly the planned routes among those that are ours; the unreachable ones come first."""
    found, wanted = _own_routes(index, plan.tun_name), _wanted_routes(index, plan)
    for route in sorted(wanted - found, key=lambda route: (-route[1], str(route[0]))):
        if changes.may(f"route {route[0]} {NOWHERE.get(route[1], plan.tun_name)}"):
            ipr.route("replace", **_route_fields(route))
    # What "replace" replaced is gone already.
    for route in _own_routes(index, plan.tun_name) - wanted if found - wanted else ():
        if changes.may(f"no route {route[0]}"):
            ipr.route("del", **_route_fields(route) | {"scope": SCOPE_ANY})


def _apply(ipr: IPRoute, plan: HostPlan, paused: frozenset[str]) -> list[str]:
    link = vxlan.find_link(ipr, plan.tun_name)
    if link is None:
        raise RuntimeFailure(f"device {plan.tun_name} is gone")
    changes = Changes(paused)
    _set_link(ipr, link, plan, changes)
    _set_addresses(ipr, link["index"], plan, changes)
    # A device that has to stay down, or without its address, takes no routes.
    needed = {f"{plan.tun_name} up", *(f"{plan.tun_name} {ip}/{ip.max_prefixlen}" for ip in plan.addresses)}
    if needed.isdisjoint(changes.waiting):
        _set_routes(ipr, link["index"], plan, changes)
    return changes.made


def _remove_tun(ipr: IPRoute, plan: HostPlan, paused: frozenset[str]) -> list[str]:
    changes = Changes(paused)
    link = vxlan.find_link(ipr, plan.tun_name)
    if link is not None and _is_tun(link) and changes.may(f"no {plan.tun_name}"):
        ipr.link("del", index=link["index"])
    _set_routes(ipr, None, plan, changes)
    return changes.made


def _set_up_vxlan(ipr: IPRoute, plan: HostPlan, paused: frozenset[str]) -> list[str]:
    link = vxlan.find_link(ipr, plan.tun_name)
    if link is None:
        raise RuntimeFailure(f"device {plan.tun_name} is gone")
    changes = Changes(paused)
    _set_mtu(ipr, link, plan, changes)
    _set_settings(plan, changes)
    _set_addresses(ipr, link["index"], plan, changes)
    _set_up(ipr, link, plan, changes)
    return changes.made


def _rename(ipr: IPRoute, old: str, name: str) -> None:
    """Give a device of ours its name; before Linux 6.2 it has to be down for that."""
    link = vxlan.find_link(ipr, old)
    if link is None:
        raise RuntimeFailure(f"device {old} is gone")
    try:
        ipr.link("set", index=link["index"], ifname=name)
    except NetlinkError as err:
        if err.code != errno.EBUSY:
            raise
        ipr.link("set", index=link["index"], state="down")
        ipr.link("set", index=link["index"], ifname=name)


def _remove(ipr: IPRoute, tun_name: str, networks: tuple[Network, ...]) -> list[str]:
    changed = []
    for link in ipr.get_links():
        name = str(_attr(link, "IFLA_IFNAME"))
        is_ours = _is_tun(link) if name == tun_name else vxlan.is_of(link, tun_name)
        if is_ours:
            ipr.link("del", index=link["index"])
            changed.append(f"no {name}")
    for route in _own_routes(None, tun_name):
        ipr.route("del", **_route_fields(route) | {"scope": SCOPE_ANY})
        changed.append(f"no route {route[0]}")
    return changed + netbatch.forget_routes(networks)


# --- who holds a port ---------------------------------------------------------------------------------------


def _find_vxlan(ipr: IPRoute, port: int) -> str | None:
    for link in ipr.get_links():
        # One that is down has no socket.
        if vxlan.kind(link) != "vxlan" or not link["flags"] & IFF_UP:
            continue
        data = _attr(link, "IFLA_LINKINFO").get_attr("IFLA_INFO_DATA")
        if data.get_attr("IFLA_VXLAN_PORT") == port:
            name, vni = _attr(link, "IFLA_IFNAME"), data.get_attr("IFLA_VXLAN_ID")
            return f"kernel device {name} (vni {vni})"
    return None


def _find_process(port: int) -> str | None:
    inodes = set()
    for table in ("udp", "udp6"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/net/{table}").read_text(encoding="ascii").splitlines()[1:]:
                fields = line.split()
                if int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{fields[9]}]")
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if str(link.readlink()) in inodes:
                pid = link.parts[2]
                name = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
                return f"process {name} (pid {pid})"
    return None


# --- the shell --------------------------------------------------------------------------------------


class Host:
    """This host's network, in the network namespace of this process."""

    def __init__(self) -> None:
        """Prepare; the netlink socket is opened at the first call."""
        self._thread = ThreadPoolExecutor(1, "netlink")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ipr: IPRoute | None = None
        self._has_failed = False  # the socket, which is opened anew for the next call
        self._has_ipv6 = False
        self.paused: frozenset[str] = frozenset()  # changes that are not to be made now

    def _do(self, what: Callable[..., Result], *args: Any) -> Result:
        """Run in the thread: open the socket at first use, and turn netlink's errors into ours."""
        name = what.__name__.strip("_")
        try:
            if self._ipr is None:
                self._open()
            return what(self._ipr, *args)
        except NetlinkError as err:
            if self._has_failed:
                self._close()
            if err.code in (errno.EPERM, errno.EACCES):
                raise RuntimeFailure(
                    "overlayd run needs CAP_NET_ADMIN to set up the host's network"
                ) from None
            raise KernelError(f"netlink ({name})", err.code) from None
        except OSError as err:
            self._close()
            raise KernelError(f"netlink ({name})", err.errno or errno.EIO) from None

    def _open(self) -> None:
        self._loop = asyncio.SelectorEventLoop()
        try:
            self._ipr = IPRoute(use_event_loop=self._loop)
        except KeyError:  # it has tried to bind its socket to this port and that
            raise OSError(errno.EADDRINUSE, "no port") from None
        self._has_failed = False
        self._ipr.asyncore.protocol.error_received = self._fail

    def _fail(self, err: OSError) -> None:
        """End whoever waits for an answer of a socket that failed: pyroute2 would let him wait for ever."""
        self._has_failed = True
        if self._ipr is not None:
            for number, queue in self._ipr.asyncore.msg_queue.queues.items():
                queue.put_nowait(
                    NLMSG_ERROR.pack(NLMSG_ERROR.size, 2, 0, number, 0, -(err.errno or errno.EIO))
                )

    async def _call(self, what: Callable[..., Result], *args: Any) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._do, what, *args)

    async def facts(self) -> HostFacts:
        """Return the interfaces of this host with their addresses."""
        return await self._call(_read_facts)

    async def apply(self, plan: HostPlan) -> list[str]:
        """Make the host as planned; return what was changed. The device must be there."""
        self._has_ipv6 = any(net.version == 6 for net in plan.networks)
        return await self._call(_apply, plan, self.paused)

    async def rename(self, old: str, name: str) -> None:
        """Give a device another name."""
        await self._call(_rename, old, name)

    async def vxlan(self, name: str) -> VxlanDevice | None:
        """Return a VXLAN device; None if there is none of that name."""
        return await self._call(vxlan.read, name)

    async def find_twin(self, device: VxlanDevice) -> VxlanDevice | None:
        """Return the VXLAN device that is this one but for its name."""
        return await self._call(vxlan.find_twin, device)

    async def set_mac(self, device: VxlanDevice) -> None:
        """Give a VXLAN device its MAC address."""
        await self._call(vxlan.set_mac, device)

    async def own_vxlan(self, tun_name: str) -> list[str]:
        """Return the names of the VXLAN devices that we have made."""
        return await self._call(vxlan.list_own, tun_name)

    async def remove_vxlan(self, name: str) -> None:
        """Remove a VXLAN device, and with it all the kernel knows of peers behind it."""
        await self._call(vxlan.remove, name)

    async def vxlan_obstacle(self) -> str | None:
        """Say why the kernel makes no VXLAN devices; None if it does."""
        try:
            await self._call(vxlan.probe)
        except KernelError as err:
            if err.errno in (errno.EOPNOTSUPP, errno.ENODEV):
                return "the kernel has no VXLAN devices; try: modprobe vxlan"
            if err.errno != errno.EEXIST:  # somebody else looks just now, or was interrupted
                return f"the kernel makes no VXLAN device: {os.strerror(err.errno)}"
        with contextlib.suppress(KernelError):  # who else looks may have been quicker
            await self._call(vxlan.remove, vxlan.PROBE)
        return None

    async def make_vxlan(self, device: VxlanDevice, address: Address | None = None) -> None:
        """Make a VXLAN device that is down yet."""
        await self._call(vxlan.make, device, address)

    async def set_up_vxlan(self, plan: HostPlan) -> list[str]:
        """Give a VXLAN device MTU and addresses, and set it up; return what was changed."""
        return await self._call(_set_up_vxlan, plan, self.paused)

    async def remove_tun(self, plan: HostPlan) -> list[str]:
        """Remove the TUN of a plan, and the routes into it; return what was changed."""
        self._has_ipv6 = any(net.version == 6 for net in plan.networks)
        return await self._call(_remove_tun, plan, self.paused)

    async def set_forwarding(self, name: str, peers: Iterable[SubnetEntry]) -> None:
        """Tell a VXLAN device which node has which VTEP MAC."""
        await self._call(vxlan.set_forwarding, name, peers)

    async def go_vxlan(self, name: str, peers: Iterable[SubnetEntry]) -> None:
        """Set a VXLAN device up, and lead the subnets of peers there."""
        await self._call(vxlan.go, name, peers)

    async def remove(self, tun_name: str, networks: tuple[Network, ...] = ()) -> list[str]:
        """Remove our device and routes, of those to peers the ones to networks; return what was removed."""
        return await self._call(_remove, tun_name, networks)

    def port_holder(self, port: int) -> str | None:
        """Say who holds a UDP port; None if nobody can be found."""
        return self._thread.submit(self._do, _find_vxlan, port).result() or _find_process(port)

    def is_tun_held(self, name: str) -> bool:
        """Return whether a process holds a TUN device: only then has it a carrier, even while down."""
        return self._thread.submit(self._do, _has_carrier, name).result()

    async def is_foreign(self, name: str) -> bool:
        """Return whether a device of this name is there and is no TUN device."""
        return await self._call(_is_foreign, name)

    def warnings(self) -> list[str]:
        """Return what about this host keeps packets from flowing, with the remedy."""
        return check_sysctls(has_ipv6=self._has_ipv6)

    def changes(self) -> AsyncIterator[None]:
        """Yield after each change of links, addresses or routes; several at once count as one."""
        return netwatch.host_changes()

    def _close(self) -> None:
        if self._ipr is not None:
            self._ipr.close()
        if self._loop is not None:
            self._loop.run_until_complete(asyncio.sleep(0))  # lets the transport end
            self._loop.close()
        self._ipr = self._loop = None

    async def close(self) -> None:
        """Close the netlink socket and end the thread."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown()
