# SPDX-License-Identifier: Apache-2.0
"""Which addresses and MAC a node publishes, by what it was told and by what the host has."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

import pytest

from dataplane.lease import Identity
from dataplane.model import Address, Encap, HostFacts, Interface, NetworkConfig, SubnetKey, Way
from dataplane.underlay import find_identity, find_told, rank_addresses
from tests.leases import CONFIG, DUAL, IP1, IP1_6, IP2, IP2_6, LO, NET, NET6, mac

LOCAL6 = IPv6Address("fe80::1")
ETH0 = Interface("eth0", 2, 1500, (IP1, LOCAL6, IP1_6))
ETH1 = Interface("eth1", 3, 1500, (IP2, IP2_6))
CNI0 = Interface("cni0", 4, 1500, (IPv4Address("10.244.1.1"),))
BARE = Interface("eth2", 5, 1500, (LOCAL6,))
FACTS = HostFacts((LO, ETH0, ETH1, CNI0, BARE), ("eth0",))
THERE = "there are: lo, eth0, eth1, cni0, eth2"
V4 = Identity(IP1, None, Encap.VXLAN, mac(7), None, 1)


@pytest.mark.parametrize(
    ("told", "network", "expected"),
    [
        pytest.param({}, NET, V4, id="default route"),
        pytest.param({"iface": ("eth1",)}, NET, replace(V4, public_ip=IP2), id="--iface"),
        pytest.param({"public_ip": IP2}, NET, replace(V4, public_ip=IP2), id="--public-ip"),
        pytest.param(
            {"public_ip": IPv4Address("203.0.113.9"), "iface": ("eth0",)},
            *(NET, replace(V4, public_ip=IPv4Address("203.0.113.9"))),
            id="--public-ip behind NAT",
        ),
        pytest.param({}, DUAL, replace(V4, public_ip6=IP1_6, vtep_mac6=mac(7)), id="dual stack"),
        pytest.param({}, NET6, Identity(None, IP1_6, Encap.VXLAN, None, mac(7), 1), id="IPv6 only"),
        pytest.param(
            {"public_ip6": IP2_6},
            *(DUAL, replace(V4, public_ip=IP2, public_ip6=IP2_6, vtep_mac6=mac(7))),
            id="--public-ipv6",
        ),
        pytest.param(
            {"public_ip": IP1}, NET6, Identity(IP1, IP1_6, Encap.VXLAN, None, mac(7), 1), id="told IPv4 too"
        ),
        pytest.param({}, replace(NET, encap=Encap.IPIP), Identity(IP1, None, Encap.IPIP), id="ipip"),
        pytest.param(
            {}, replace(NET, encap=Encap.FLANNEL_UDP), Identity(IP1, None, Encap.FLANNEL_UDP), id="udp"
        ),
        pytest.param({}, replace(NET, vni=9), replace(V4, vni=9), id="VNI"),
    ],
)
def test_identity(told: dict[str, Any], network: NetworkConfig, expected: Identity) -> None:
    """A node publishes what it was told, else the addresses of the interface that faces the others."""
    assert find_identity(replace(CONFIG, **told), FACTS, network, (mac(7), mac(7))) == expected


def test_one_candidate() -> None:
    """Without a default route the one interface with an address is taken."""
    assert find_identity(CONFIG, HostFacts((LO, ETH0, BARE)), NET, (mac(7), mac(7))) == V4


@pytest.mark.parametrize(
    ("told", "facts", "network", "reason"),
    [
        pytest.param(
            *({}, HostFacts((LO, ETH0, ETH1)), NET),
            "no default route tells which interface faces the other nodes; give --iface"
            " (there are: eth0, eth1)",
            id="no default route",
        ),
        pytest.param(
            {"iface": ("eth9",)},
            FACTS,
            NET,
            "no interface is as told by --iface eth9 (there are: lo, eth0, eth1, cni0, eth2)",
            id="no such interface",
        ),
        pytest.param(
            *({"public_ip": IPv4Address("192.0.2.77")}, FACTS, NET),
            "no interface of this host has the address 192.0.2.77",
            id="no such address",
        ),
        pytest.param(
            *({"iface": ("eth2",)}, FACTS, NET),
            "interface eth2 has no address that other nodes could reach; give --iface",
            id="no address",
        ),
        pytest.param(
            *({"iface": ("cni0",)}, FACTS, NET),
            "interface cni0 has no address that other nodes could reach; give --iface",
            id="only an overlay address",
        ),
        pytest.param(
            *({"public_ip": IPv4Address("10.244.1.1")}, FACTS, NET),
            "our address 10.244.1.1 lies inside the overlay network; give another --public-ip or --iface",
            id="told an overlay address",
        ),
        pytest.param(
            *({}, HostFacts((Interface("eth0", 2, 1500, (IP1_6,)),)), replace(NET, encap=Encap.IPIP)),
            "interface eth0 has no address that other nodes could reach; give --iface",
            id="ipip without IPv4",
        ),
        pytest.param(
            *({"public_ip6": IP1_6}, HostFacts((Interface("eth0", 2, 1500, (IP1_6,)),))),
            replace(NET, encap=Encap.FLANNEL_UDP),
            "udp needs an IPv4 underlay, and interface eth0 has no IPv4 address; give --iface",
            id="udp without IPv4",
        ),
    ],
)
def test_no_identity(told: dict[str, Any], facts: HostFacts, network: NetworkConfig, reason: str) -> None:
    """Where it is not clear, the reason says what to do."""
    assert find_identity(replace(CONFIG, **told), facts, network, (mac(7), mac(7))) == reason


WAYS = (
    Way(IPv4Network("0.0.0.0/0"), 0, 2, IPv4Address("192.0.2.254")),
    Way(IPv4Network("198.51.100.0/24"), 100, 2, None),
    Way(IPv4Network("198.51.100.0/24"), 50, 3, None),
    Way(IPv6Network("::/0"), 1024, 4, IPv6Address("fe80::1")),
)


@pytest.mark.parametrize(
    ("told", "name"),
    [
        pytest.param({"iface": ("eth9", "eth1")}, "eth1", id="the first that is there"),
        pytest.param({"iface": ("10.244.1.1",)}, "cni0", id="by its address"),
        pytest.param({"iface_regex": (r"^10\.244\.",)}, "cni0", id="pattern of an address"),
        pytest.param({"iface_regex": ("nothing", "th1$")}, "eth1", id="pattern of a name"),
        pytest.param({"iface_regex": ("^eth1",), "iface": ("eth2",)}, "eth2", id="names before patterns"),
        pytest.param({"iface_can_reach": IPv4Address("203.0.113.9")}, "eth0", id="by the default route"),
        pytest.param({"iface_can_reach": IPv4Address("198.51.100.9")}, "eth1", id="by the lower metric"),
        pytest.param(
            {"iface_can_reach": IPv4Address("198.51.100.9"), "iface_regex": ("^eth0$",)},
            "eth0",
            id="patterns before reaching",
        ),
    ],
)
def test_interface_is_found(told: dict[str, Any], name: str) -> None:
    """Names come before patterns, patterns before what can reach an address; of each the first that fits."""
    found = find_told(replace(CONFIG, **told), replace(FACTS, ways=WAYS))
    assert isinstance(found, Interface)
    assert found.name == name


@pytest.mark.parametrize(
    ("network", "name"),
    [
        pytest.param(DUAL, "eth1", id="both versions"),
        pytest.param(NET, "eth0", id="IPv4 alone"),
        pytest.param(NET6, "eth1", id="IPv6 alone"),
    ],
)
def test_pattern_of_both_versions(network: NetworkConfig, name: str) -> None:
    """A pattern means the interface that it matches in each IP version of the pods; one of them is enough."""
    config = replace(CONFIG, iface_regex=(r"^192\.0\.2\.|^2001:db8::2$",))
    found = find_told(config, FACTS, network)
    assert isinstance(found, Interface)
    assert found.name == name
    only4 = find_told(replace(CONFIG, iface_regex=(r"^192\.0\.2\.2$",)), FACTS, DUAL)
    assert only4 == ETH1


PERMANENT, DYNAMIC, TEMPORARY, DEPRECATED, FAILED = 0x80, 0, 0x01, 0x20, 0x08
IPS = tuple(IPv6Address(f"2001:db8::{n}") for n in range(1, 6))


def test_addresses_in_order() -> None:
    """Global before link-local, permanent before dynamic, lasting before temporary, else as it was."""
    found: list[tuple[Address, int]] = [
        (LOCAL6, PERMANENT),
        *((IPS[0], DYNAMIC | TEMPORARY), (IPS[1], DYNAMIC), (IPS[2], PERMANENT), (IPS[3], PERMANENT)),
        *((IP2, DYNAMIC), (IP1, PERMANENT), (IPS[4], PERMANENT | DEPRECATED), (IP1_6, PERMANENT | FAILED)),
    ]
    order, unfit = rank_addresses(found)
    assert order == (IPS[2], IPS[3], IP1, IPS[4], IP1_6, IPS[1], IP2, IPS[0], LOCAL6)
    assert unfit == {IPS[4], IP1_6}


def test_unfit_address() -> None:
    """A deprecated address is not published, even if it was before, unless --iface names it."""
    link = replace(ETH0, addresses=(IP1, IP2, IP1_6), unfit=frozenset({IP1, IP1_6}))
    facts = HostFacts((link,), ("eth0",))
    before = V4.lease(SubnetKey(IPv4Network("10.244.1.0/24")))
    for current in (None, before):
        found = find_identity(CONFIG, facts, DUAL, (mac(7), mac(7)), current)
        assert isinstance(found, Identity)
        assert (found.public_ip, found.public_ip6) == (IP2, None)
    meant = find_identity(replace(CONFIG, iface=(str(IP1),)), facts, NET, (mac(7), mac(7)))
    assert meant == V4
    alone = HostFacts((replace(link, addresses=(IP1,)),), ("eth0",))
    assert "no address that other nodes could reach" in str(find_identity(CONFIG, alone, NET, None))


def test_nothing_reaches() -> None:
    """An address that no route leads to is a reason, which lists what was told."""
    config = replace(CONFIG, iface=("eth9",), iface_can_reach=IPv6Address("2001:db8::9"))
    found = find_told(config, FACTS)
    assert found == (f"no interface is as told by --iface eth9, --iface-can-reach 2001:db8::9 ({THERE})")
    assert find_told(CONFIG, FACTS) is None
