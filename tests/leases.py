# SPDX-License-Identifier: Apache-2.0
"""Leases, hosts and what reconciliation makes of them, for the tests of the reconciler."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

from dataplane.config import RunConfig
from dataplane.flannel import format_key
from dataplane.model import (
    Action,
    Address,
    Encap,
    Entry,
    HostFacts,
    HostPlan,
    Interface,
    Lease,
    LeaseDeleted,
    LeasePut,
    Listed,
    MacAddress,
    NetworkConfig,
    PlanHost,
    Publish,
    SubnetKey,
    SubnetRange,
    Table,
)

CONFIG = RunConfig(store="file:///x")
SUBNETS = SubnetRange(24, int(IPv4Address("10.244.1.0")), int(IPv4Address("10.244.255.0")))
NET = NetworkConfig(IPv4Network("10.244.0.0/16"), None, Encap.VXLAN, subnets=SUBNETS)
NET6 = NetworkConfig(None, IPv6Network("fd00:244::/48"), Encap.VXLAN)
DUAL = NetworkConfig(NET.network, NET6.network6, Encap.VXLAN)
LO = Interface("lo", 1, 65536, (IPv4Address("127.0.0.1"), IPv6Address("::1")))
IP1, IP2 = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")
IP1_6, IP2_6 = IPv6Address("2001:db8::1"), IPv6Address("2001:db8::2")
FACTS = HostFacts((LO, Interface("eth0", 2, 1500, (IP1,))))
FACTS_DUAL = HostFacts((LO, Interface("eth0", 2, 1500, (IP1, IP1_6, IPv6Address("fe80::1")))))


def mac(n: int) -> MacAddress:
    """Return the MAC of node n."""
    return MacAddress(bytes((2, 0, 0, 0, 0, n)))


def lease(n: int, encap: Encap = Encap.VXLAN) -> Lease:
    """Return the lease of node n, IPv4 only."""
    return Lease(
        SubnetKey(IPv4Network(f"10.244.{n}.0/24")),
        IPv4Address(f"192.0.2.{n}"),
        None,
        encap,
        mac(n) if encap is Encap.VXLAN else None,
    )


def dual(n: int) -> Lease:
    """Return the lease of node n, in both families."""
    return replace(
        lease(n),
        key=SubnetKey(IPv4Network(f"10.244.{n}.0/24"), IPv6Network(f"fd00:244:0:{n}::/64")),
        public_ip6=IPv6Address(f"2001:db8::{n}"),
        vtep_mac6=mac(0x60 + n),
    )


def only6(n: int) -> Lease:
    """Return the lease of node n, IPv6 only."""
    whole = dual(n)
    return replace(whole, key=SubnetKey(None, whole.key.subnet6), public_ip=None, vtep_mac=None)


def listed(*leases: Lease, network: NetworkConfig = NET, revision: int = 1) -> Listed:
    """Return a complete list."""
    return Listed(revision, network, tuple(map(entry, leases)))


def entry(lease: Lease, **more: Any) -> Entry:
    """Return a lease as a store holds it."""
    return Entry(format_key(lease.key), lease, **more)


def put(revision: int, lease: Lease) -> LeasePut:
    """Return that a lease appeared or changed."""
    return LeasePut(revision, entry(lease, changed=revision))


def deleted(revision: int, key: SubnetKey) -> LeaseDeleted:
    """Return that a lease is gone."""
    return LeaseDeleted(revision, format_key(key))


def table_of(actions: Iterable[Action]) -> Table:
    """Return the one table that is to be published."""
    (table,) = (action.table for action in actions if isinstance(action, Publish))
    return table


def plan_of(actions: Iterable[Action]) -> HostPlan:
    """Return the one plan for the host."""
    (plan,) = (action.plan for action in actions if isinstance(action, PlanHost))
    return plan


def ids(table: Table) -> dict[Address, int]:
    """Return the peers of a table by their first address."""
    return {peer.addresses[0]: peer.id for peer in table.peers}


def address(n: int) -> IPv4Address:
    """Return the underlay address of node n."""
    return IPv4Address(f"192.0.2.{n}")
