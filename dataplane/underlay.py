# SPDX-License-Identifier: Apache-2.0
"""Which underlay addresses this node publishes, when no lease says so. Pure."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address

from dataplane.config import RunConfig
from dataplane.flannel import BACKEND_NAMES
from dataplane.lease import Identity
from dataplane.model import (
    PLAIN_ENCAPS,
    Address,
    Encap,
    HostFacts,
    Interface,
    Lease,
    MacAddress,
    NetworkConfig,
    can_be_node,
    told_vni,
)

# Of an address, as the kernel tells (linux/if_addr.h).
IFA_F_TEMPORARY, IFA_F_DADFAILED, IFA_F_DEPRECATED, IFA_F_PERMANENT = 0x01, 0x08, 0x20, 0x80


def rank_addresses(found: list[tuple[Address, int]]) -> tuple[tuple[Address, ...], frozenset[Address]]:
    """Return addresses, each given with its flags, in flannel's order, and which are unfit.

    Global before link-local, permanent before dynamic, lasting before temporary (of IPv4: primary before
    secondary, the same bit); otherwise in the kernel's order.
    """

    def rank(item: tuple[Address, int]) -> tuple[bool, bool, bool]:
        ip, flags = item
        return ip.is_link_local, not flags & IFA_F_PERMANENT, bool(flags & IFA_F_TEMPORARY)

    unfit = frozenset(ip for ip, flags in found if flags & (IFA_F_DEPRECATED | IFA_F_DADFAILED))
    return tuple(ip for ip, _ in sorted(found, key=rank)), unfit


def _match_addresses(pattern: str, links: list[Interface], network: NetworkConfig | None) -> Interface | None:
    """Find the interface of which addresses match: one of each IP version of the pods, or else any."""
    nets = () if network is None else network.networks()
    matching = {
        link.name: {ip.version for ip in link.addresses if re.search(pattern, str(ip))} for link in links
    }
    wanted = {net.version for net in nets}
    whole = next((link for link in links if wanted and wanted <= matching[link.name]), None)
    return whole or next((link for link in links if matching[link.name]), None)


def find_told(
    config: RunConfig, facts: HostFacts, network: NetworkConfig | None = None
) -> Interface | str | None:
    """Find the interface that --iface, --iface-regex and --iface-can-reach name, tried in this order.

    None if none of them is given, a reason if what they name is not there.
    """
    links = [link for link in facts.interfaces if link.name != config.tun_name]
    for word in config.iface:
        for link in links:
            if word == link.name or word in map(str, link.addresses):
                return link
    for pattern in config.iface_regex:
        by_name = (link for link in links if re.search(pattern, link.name))
        matched = _match_addresses(pattern, links, network) or next(by_name, None)
        if matched is not None:
            return matched
    if config.iface_can_reach is not None:
        found = facts.way_to(config.iface_can_reach)
        for link in links:
            if found is not None and link.index == found.iface:
                return link
    told = [
        *(f"--iface {word}" for word in config.iface),
        *(f"--iface-regex {pattern}" for pattern in config.iface_regex),
        *([f"--iface-can-reach {config.iface_can_reach}"] if config.iface_can_reach else ()),
    ]
    if not told:
        return None
    names = ", ".join(link.name for link in links)
    return f"no interface is as told by {', '.join(told)} (there are: {names})"


def find_interface(
    config: RunConfig,
    facts: HostFacts,
    network: NetworkConfig,
    current: Lease | None,
    last: str | None = None,
) -> Interface | str:
    """Find the interface that faces the other nodes, or say what is missing.

    `last` is the one that had the address of our lease, while we run.
    """
    links = [link for link in facts.interfaces if link.name != config.tun_name]
    found = find_told(config, facts, network)
    if found is not None:
        return found
    told = [ip for ip in (config.public_ip, config.public_ip6) if ip is not None]
    holder = next((link for ip in told if (link := facts.holder(ip)) is not None), None)
    if told:
        return holder or f"no interface of this host has the address {told[0]}"
    if current is not None:
        # Others know us by it: a better default route is no reason to move.
        holder = facts.holder(current.public_ips()[0])
        if holder is not None and holder.name != config.tun_name:
            return holder
        if last is not None:
            return _find_next(facts, current, last)
    return _find_default(facts, links)


def _find_next(facts: HostFacts, lease: Lease, last: str) -> Interface | str:
    """Find where the address of a lease has gone: it changed where it was, or the default route leads there.

    Unlike at start, nothing is guessed: any interface of pods could be the only one for a moment.
    """
    has_address = {
        link.name: {ip.version for ip in link.addresses if can_be_node(ip)} for link in facts.interfaces
    }
    versions = {ip.version for ip in lease.public_ips()}
    names = [name for name in (last, *facts.default_ifaces) if has_address.get(name)]
    whole = [name for name in names if versions <= has_address[name]]
    found = next(iter(whole or names), None)
    for link in facts.interfaces:
        if link.name == found:
            return link
    return f"interface {last} does not have the address {lease.public_ips()[0]} any more, and no other"


def _find_default(facts: HostFacts, links: list[Interface]) -> Interface | str:
    """Find the interface of the default route, or the only one that could be meant."""
    for name in facts.default_ifaces:
        default = next((link for link in links if link.name == name), None)
        if default is not None:
            return default
    candidates = [link for link in links if any(map(can_be_node, link.addresses))]
    if len(candidates) == 1:
        return candidates[0]
    names = ", ".join(link.name for link in candidates) or "none"
    return f"no default route tells which interface faces the other nodes; give --iface (there are: {names})"


def find_addresses(
    config: RunConfig, link: Interface, network: NetworkConfig, current: Lease | None
) -> tuple[IPv4Address | None, IPv6Address | None]:
    """Return the addresses to publish: those that were told, else of each family that pods have.

    Those that we publish already come first, as long as we have them.
    """
    known = () if current is None else current.public_ips()
    nodes = [ip for ip in link.addresses if can_be_node(ip) and not network.holds(ip)]
    nodes = [ip for ip in nodes if ip not in link.unfit or str(ip) in config.iface]
    # An address that --iface names, or --iface-regex fits, is meant, not just the interface that holds it.
    nodes.sort(key=lambda ip: (not _is_meant(config, str(ip)), ip not in known))
    ip4 = next((ip for ip in nodes if isinstance(ip, IPv4Address)), None)
    ip6 = next((ip for ip in nodes if isinstance(ip, IPv6Address)), None)
    if network.encap in PLAIN_ENCAPS or (network.network6 is None and ip4 is not None):
        ip6 = None
    if network.network is None and ip6 is not None:
        ip4 = None
    if config.public_ip6 is not None and network.network is None:
        ip4 = None
    if config.public_ip is not None and network.network6 is None:
        ip6 = None
    return config.public_ip or ip4, config.public_ip6 or ip6


def _is_meant(config: RunConfig, ip: str) -> bool:
    return ip in config.iface or any(re.search(pattern, ip) for pattern in config.iface_regex)


def find_identity(
    config: RunConfig,
    facts: HostFacts,
    network: NetworkConfig,
    macs: tuple[MacAddress, MacAddress] | None,
    current: Lease | None = None,
    last: str | None = None,
) -> Identity | str:
    """Return what our lease is to say of us, or why that is not known yet.

    `macs` are our VTEP MACs for IPv4 and IPv6 pods; `current` is our lease as it is, or that of our last run;
    `last` is the interface that had its address, while we run.
    """
    link = find_interface(config, facts, network, current, last)
    if isinstance(link, str):
        return link
    ip4, ip6 = find_addresses(config, link, network, current)
    for ip in (ip4, ip6):
        if ip is not None and network.holds(ip):
            return f"our address {ip} lies inside the overlay network; give another --public-ip or --iface"
    if ip4 is None and ip6 is None:
        return f"interface {link.name} has no address that other nodes could reach; give --iface"
    if network.encap in PLAIN_ENCAPS and ip4 is None:
        name = BACKEND_NAMES[network.encap]
        return f"{name} needs an IPv4 underlay, and interface {link.name} has no IPv4 address; give --iface"
    if network.encap is Encap.NONE:
        return Identity(ip4, ip6, Encap.FLANNEL_UDP)  # as little as that one says
    if network.encap is not Encap.VXLAN or macs is None:
        return Identity(ip4, ip6, network.encap)
    mac4, mac6 = macs
    return Identity(
        *(ip4, ip6, network.encap),
        vtep_mac=mac4 if network.network is not None else None,
        vtep_mac6=mac6 if network.network6 is not None else None,
        vni=told_vni(network.vni),
    )
