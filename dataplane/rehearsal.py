# SPDX-License-Identifier: Apache-2.0
"""`overlayd run --dry-run`: finds out what a start would do, says it, and does none of it.

It looks where a start looks, in the same order, and fails as that would. What it opens to find out whether it
can be had (a port, the device for TUNs) is closed again; nothing is written to the store, the host or a file.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from dataplane import journal, privilege, subnetfile, vtep, vxlan
from dataplane.backend.sockets import (
    Holders,
    check_free,
    close_all,
    foreign_device,
    no_tun,
    open_socket,
    wanted_sockets,
)
from dataplane.backend.spread import find_spread
from dataplane.config import RunConfig
from dataplane.control import connect_in_use
from dataplane.errors import NotRunning, RuntimeFailure, StoreError
from dataplane.flannel import find_port, format_key
from dataplane.health import places
from dataplane.lease import Lessee, PutLease
from dataplane.model import (
    BARE_ENCAPS,
    Encap,
    HostFacts,
    HostPlan,
    Interface,
    Lease,
    Listed,
    MacAddress,
    NetworkConfig,
    PlanHost,
    Publish,
)
from dataplane.native import ForwarderConfig
from dataplane.netlink import Host
from dataplane.privilege import Capability
from dataplane.recall import foretell
from dataplane.reconcile import Reconciler
from dataplane.rundir import RunDir
from dataplane.slots import Fds, role_of
from dataplane.store import LeaseStore, Store, open_store
from dataplane.store.registry import NO_NETWORK
from dataplane.sysctls import check_sysctls, device_sysctls
from dataplane.underlay import find_identity
from dataplane.web import Server

TRIES_MAX = 100  # useless leases of ours that would be deleted first
UNKNOWN_MAC = MacAddress(bytes(6))  # stands for one that would be chosen at random

log = journal.Journal("rehearsal")


@dataclass(slots=True)
class _Findings:
    """What was found out so far, and what is to be said."""

    facts: HostFacts
    lines: list[str] = field(default_factory=list)
    waits_for: str | None = None
    plan: HostPlan | None = None

    def say(self, subject: str, text: str) -> None:
        """Add a line."""
        self.lines.append(f"{subject:<11}{text}")


@dataclass(frozen=True, slots=True)
class _Node:
    """What is to be set up where."""

    config: RunConfig
    host: Host
    network: NetworkConfig
    own: Lease
    link: Interface
    plan: HostPlan


def rehearse(config: RunConfig) -> str:
    """Return what `overlayd run` would do, a line each; raises what it would."""
    journal.set_up("error", config.log_format)
    RunDir(config.run_dir).check()
    return asyncio.run(_rehearse(config))


async def _rehearse(config: RunConfig) -> str:
    host = Host()
    store = open_store(config, may_create=False)
    try:
        for address, port in places(config):
            server = Server(address, port, {})
            await server.open()
            await server.close()
        found = _Findings(await host.facts())
        listed = await _read_store(config, store, found)
        if listed is not None:
            reconciler = await _find_plan(config, store, host, found, listed)
            network, own, link = reconciler.network, reconciler.own, reconciler.underlay
            if found.plan is not None and network is not None and own is not None and link is not None:
                await _tell_host(_Node(config, host, network, own, link, found.plan), found)
        for (address, port), pages in places(config).items():
            found.say("listen", f"{address} port {port}: {', '.join(pages)}")
        if found.waits_for is not None:
            found.say("wait", f"not ready until this is over: {found.waits_for}")
        found.say("nothing", "was changed: this was --dry-run")
        return "\n".join(found.lines)
    finally:
        await store.close()
        await host.close()


async def _read_store(config: RunConfig, store: Store, found: _Findings) -> Listed | None:
    """Read the store; None, and why, where a start would wait for it."""
    found.say("store", f"{config.store} ({config.store_reason})")
    path = Path(config.store.removeprefix("sqlite://"))
    if config.store.startswith("sqlite://") and not path.exists():
        found.say("store", f"make {path}")
        found.waits_for = NO_NETWORK
        return None
    try:
        if isinstance(store, LeaseStore):
            return await store.read()
        async for event in store.events():
            if isinstance(event, Listed):
                return event
    except StoreError as err:
        if not store.is_remote:
            raise
        found.waits_for = str(err)
        if (state := foretell(config)) is not None:
            found.say("state", f"without a forwarder that carries on, run on {state} until then")
    return None


# --- the lease --------------------------------------------------------------------------------------------


async def _find_plan(
    config: RunConfig, store: Store, host: Host, found: _Findings, listed: Listed
) -> Reconciler:
    """Find out which lease would be ours, and what must be then."""
    is_leased = isinstance(store, LeaseStore)
    reconciler = Reconciler(config, found.facts, is_leased=is_leased)
    now = time.monotonic()
    actions = reconciler.apply_all([listed], now)
    if is_leased:
        own, problem = await _take_lease(config, host, found, listed)
        actions = reconciler.own_changed(own, problem, now)
    elif reconciler.own is not None:
        found.say("lease", f"{reconciler.own.key}, as the peers file says")
    found.waits_for = reconciler.reason
    for action in actions:
        if isinstance(action, PlanHost):
            found.plan = action.plan
        elif isinstance(action, Publish):
            subnets = action.table.subnets
            direct = sum(entry.encap is Encap.DIRECT for entry in subnets)
            by_routes = f", {direct} by plain routes" if direct else ""
            found.say("table", f"{len(action.table.peers)} peers, {len(subnets)} subnets{by_routes}")
    for view in reconciler.peers():
        if view.refused is not None:
            found.say("refused", f"{view.entry.title}: {view.refused}")
    return reconciler


async def _find_macs(config: RunConfig, host: Host) -> tuple[MacAddress, MacAddress]:
    """Return our VTEP MAC addresses, for pods of both IP versions; nothing is kept."""
    devices = [device for name in config.takeover if (device := await host.vxlan(name)) is not None]
    taken = {
        6 if device.local is not None and device.local.version == 6 else 4: device.mac for device in devices
    }
    mac = taken.get(4) or vtep.find(config.state_dir, 4) or UNKNOWN_MAC
    return mac, taken.get(6) or vtep.find(config.state_dir, 6) or mac


async def _take_lease(
    config: RunConfig, host: Host, found: _Findings, listed: Listed
) -> tuple[Lease | None, str | None]:
    """Let a Lessee decide, as often as a start would ask it; nothing is written."""
    lessee = Lessee(
        random.SystemRandom().randrange,
        subnetfile.read_previous(config.subnet_file),
        float(config.lease_ttl_s),
        config.renew_margin_min * 60.0,
    )
    lessee.apply(listed)
    if listed.network is None:
        return None, listed.problem
    macs = await _find_macs(config, host)
    current = lessee.find_own(found.facts.held())
    identity = find_identity(config, found.facts, listed.network, macs, current)
    if isinstance(identity, str):
        lessee.identify(None, identity)
        return None, identity
    lessee.identify(identity)
    for _ in range(TRIES_MAX):
        operation = lessee.next_operation(time.monotonic())
        if operation is None:
            break
        if isinstance(operation, PutLease):
            found.say("lease", _describe_lease(config, operation))
            return operation.lease, None
        found.say("lease", f"delete {operation.name}, which is ours and fits no network")
        lessee.dropped(operation.name)
    if lessee.own is not None and lessee.own.lease is not None:
        found.say("lease", f"{lessee.own.name}, which is ours already")
        return lessee.own.lease, None
    return None, lessee.reason(time.monotonic())


def _describe_lease(config: RunConfig, operation: PutLease) -> str:
    lease = operation.lease
    ips = " and ".join(map(str, lease.public_ips()))
    time_text = "for ever" if operation.ttl_s is None else f"for {operation.ttl_s:g} s"
    if operation.expected:
        how = "ours already, written anew"
    elif lease.key == subnetfile.read_previous(config.subnet_file):
        how = "taken, as the subnet file says"
    else:
        how = "taken; a free one at random, so maybe another"
    mac = lease.vtep_mac or lease.vtep_mac6
    mac_text = "" if mac is None else f", VTEP MAC {'chosen at random' if mac == UNKNOWN_MAC else mac}"
    return f"{format_key(lease.key)} of {ips}{mac_text}, {time_text} ({how})"


# --- the host ---------------------------------------------------------------------------------------------


async def _tell_host(node: _Node, found: _Findings) -> None:
    """Say what would be set up, after finding out whether that can be."""
    if not privilege.has(Capability.NET_ADMIN):
        raise RuntimeFailure("overlayd run needs CAP_NET_ADMIN to set up the host's network")
    config, plan = node.config, node.plan
    ips = " and ".join(map(str, node.own.public_ips()))
    found.say("underlay", f"{node.link.name}, {ips}, mtu {node.link.mtu}")
    if {node.network.encap, *config.encap} <= BARE_ENCAPS:
        found.say("device", "none: nothing is encapsulated")
        for net in plan.networks:
            found.say("route", f"to each peer on our link; {net} unreachable behind them")
    else:
        await (_tell_kernel if config.datapath == "kernel" else _tell_userspace)(node, found)
        _tell_device(plan, found)
    rules = {"guard": config.guard, "forward": config.forward_rules, "masquerade": config.ip_masq}
    rules["mss clamp"] = config.mss_clamp
    names = ", ".join(name for name, is_on in rules.items() if is_on)
    found.say("firewall", f"nftables rules of our own: {names or 'none'}")
    found.say("file", f"{config.subnet_file}, with FLANNEL_MTU={plan.mtu}")
    found.say("file", f"{config.run_dir}/ and {config.state_dir}/vtep-mac, where they are missing")


def _tell_device(plan: HostPlan, found: _Findings) -> None:
    for address in plan.addresses:
        found.say("address", f"{address}/{address.max_prefixlen}")
    for net in plan.networks:
        found.say("route", f"{net} into the device, and unreachable behind it")
    has_ipv6 = any(ip.version == 6 for ip in plan.addresses)
    for name, value in device_sysctls(plan.tun_name, has_ipv6=has_ipv6).items():
        found.say("sysctl", f"{name.replace('/', '.')} = {value}")
    for warning in check_sysctls(has_ipv6=has_ipv6):
        found.say("warning", warning)


async def _tell_kernel(node: _Node, found: _Findings) -> None:
    for net in node.plan.networks:
        name = vxlan.device_name(node.plan.tun_name, node.network.vni, net.version)
        state = "make" if await node.host.vxlan(name) is None else "keep"
        found.say("device", f"{state} {name}, VXLAN of the kernel, mtu {node.plan.mtu}")


async def _tell_userspace(node: _Node, found: _Findings) -> None:
    config, host, plan = node.config, node.host, node.plan
    if config.datapath == "auto":
        found.say("datapath", "the kernel's if it makes VXLAN devices; else:")
    forwarder = _forwarder_config(node)
    sockets = wanted_sockets(forwarder)
    pid = _find_forwarder(config)
    if pid is not None:
        found.say("forwarder", f"keep the one that runs, pid {pid}, and all it has")
    else:
        holders = Holders(host.port_holder, host.is_tun_held)
        await _try_device(plan.tun_name, host, holders)
        devices = [name for name in config.takeover if await host.vxlan(name) is not None]
        for name in devices:
            found.say("takeover", f"of {name}, which is removed")
        if not devices:  # else it has our port until then
            await asyncio.to_thread(_try_sockets, sockets, forwarder, node.link.name, holders)
        how = "start one" if config.forwarder == "spawn" else "wait for one"
        found.say("forwarder", f"{how}, {forwarder.threads} threads")
    kinds = Counter(role_of(slot).name.lower() for slot in sockets)
    found.say("sockets", ", ".join(f"{count} {name}" for name, count in kinds.items()))
    there = any(iface.name == plan.tun_name for iface in found.facts.interfaces)
    found.say("device", f"{'keep' if there else 'make'} TUN {plan.tun_name}, mtu {plan.mtu}")


def _forwarder_config(node: _Node) -> ForwarderConfig:
    """Return of the forwarder's configuration what its sockets depend on."""
    network, own, spread = node.network, node.own, find_spread(node.config)
    return ForwarderConfig(
        *(network.vni, find_port(network, Encap.VXLAN), node.link.index, node.plan.mtu),
        bare_port=find_port(network, Encap.FLANNEL_UDP),
        threads=spread.threads,
        queues=spread.queues,
        sources=spread.sources,
        underlay4=own.public_ip,
        underlay6=own.public_ip6,
        encaps=frozenset({network.encap, *node.config.encap}),
    )


def _find_forwarder(config: RunConfig) -> int | None:
    try:
        with connect_in_use(RunDir(config.run_dir)) as client:
            return client.pid
    except NotRunning:
        return None


async def _try_device(name: str, host: Host, holders: Holders) -> None:
    """Raise what opening the TUN would, without making it."""
    if await host.is_foreign(name):
        raise foreign_device(name)
    await asyncio.to_thread(check_free, name, holders)
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        raise no_tun() from None


def _try_sockets(keys: Iterable[int], forwarder: ForwarderConfig, device: str, holders: Holders) -> None:
    """Raise what opening the sockets would; they are closed again."""
    opened: Fds = {}
    try:
        for slot in keys:
            opened[slot] = open_socket(slot, forwarder, device, holders)
    finally:
        close_all(opened)
