# SPDX-License-Identifier: Apache-2.0
"""The cases of flannel's unit tests of addresses, interfaces, MACs and subnet.env, named after the originals.

They are asked of what in our product does the same. docs/flannel-tests.md lists all of flannel's tests.
"""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from pathlib import Path
from typing import Any

import pytest

from dataplane import flannel, subnetfile, vtep
from dataplane.alloc import pick_key
from dataplane.lease import Identity
from dataplane.model import Encap, HostFacts, Interface, Lease, NetworkConfig, SubnetKey, Way
from dataplane.underlay import find_identity, find_told
from tests.leases import CONFIG, DUAL, NET, mac

# --- pkg/ip -------------------------------------------------------------------------------------------------


def value_of(**fields: Any) -> dict[str, Any]:
    """Return a lease as flannel's JSON."""
    key = SubnetKey(IPv4Network("10.5.1.0/24"))
    value: dict[str, Any] = json.loads(flannel.lease_value(Lease(key, encap=Encap.IPIP, **fields)))
    return value


def test_ip4() -> None:
    """TestIP4: an address is read, and written as text, as JSON and with dashes in a key."""
    assert value_of(public_ip=IPv4Address("1.2.3.4"), public_ip6=None)["PublicIP"] == "1.2.3.4"
    key = flannel.parse_key("1.2.3.0-24")
    assert key.subnet == IPv4Network("1.2.3.0/24")
    assert flannel.format_key(key) == "1.2.3.0-24"
    read = flannel.parse_lease(key, {"PublicIP": "1.2.3.4", "BackendType": "ipip"})
    assert read.public_ip == IPv4Address("1.2.3.4")


def test_ip6() -> None:
    """TestIP6: the same of IPv6; what is empty is null."""
    told = value_of(public_ip=IPv4Address("1.2.3.4"), public_ip6=IPv6Address("fc00::1"))
    assert told["PublicIPv6"] == "fc00::1"
    assert value_of(public_ip=IPv4Address("1.2.3.4"), public_ip6=None)["PublicIPv6"] is None


@pytest.mark.parametrize(
    ("net", "other", "overlaps"),
    [
        *[("1.2.3.0/24", "1.2.3.0/24", True), ("1.2.3.0/24", "1.2.0.0/16", True)],
        *[("1.2.3.0/24", "1.2.4.0/24", False), ("1.2.3.0/24", "7.2.4.0/22", False)],
        *[("fc00:1::/64", "fc00:1::/64", True), ("fc00:1::/64", "fc00::/16", True)],
        *[("fc00:1::/64", "fc00:2::/64", False), ("fc00:1::/64", "fb00:2::/48", False)],
    ],
)
def test_net_overlaps(net: str, other: str, overlaps: bool) -> None:
    """TestIP4Net, TestIP6Net, Overlaps: a subnet is taken if and only if nothing overlaps it."""
    version = 6 if ":" in net else 4
    wide = str(IPv6Network(net).supernet(2) if version == 6 else IPv4Network(net).supernet(2))
    names = ("IPv6Network", "IPv6SubnetMin", "IPv6SubnetMax", "IPv6SubnetLen")
    plain = ("Network", "SubnetMin", "SubnetMax", "SubnetLen")
    first, _, length = net.partition("/")
    fields = dict(zip(names if version == 6 else plain, (wide, first, first, int(length)), strict=True))
    switches = {"EnableIPv4": False, "EnableIPv6": True} if version == 6 else {}
    network = flannel.parse_network({**fields, **switches, "Backend": {"Type": "vxlan"}}, strict=False)
    taken = {IPv6Network(other) if version == 6 else IPv4Network(other)}
    assert (pick_key(taken, network, lambda n: 0) is None) is overlaps


@pytest.mark.parametrize(
    ("address", "is_held"),
    [
        *[("1.2.3.0", True), ("1.2.3.4", True), ("1.2.4.0", False)],
        *[("fc00:1::", True), ("fc00:1::1", True), ("fc00:2::", False)],
    ],
)
def test_net_contains(address: str, is_held: bool) -> None:
    """TestIP4Net, TestIP6Net, Contains: which addresses are a network's."""
    network = NetworkConfig(IPv4Network("1.2.3.0/24"), IPv6Network("fc00:1::/64"), Encap.VXLAN)
    assert network.holds(ip_address(address)) is is_held


def test_net_increment_ip() -> None:
    """TestIP4Net, TestIP6Net, IncrementIP and ToIPNet: subnet.env has the subnet's first address."""
    network = replace(DUAL, network=IPv4Network("1.2.0.0/16"), network6=IPv6Network("fc00::/16"))
    key = SubnetKey(IPv4Network("1.2.3.0/24"), IPv6Network("fc00:1::/64"))
    text = flannel.format_subnet_env(network, key, 1450, has_masq=False)
    assert "FLANNEL_SUBNET=1.2.3.1/24\n" in text
    assert "FLANNEL_IPV6_SUBNET=fc00:1::1/64\n" in text


# --- pkg/ipmatch --------------------------------------------------------------------------------------------

HELD = ("1.10.100.1", "192.168.200.128", "172.16.30.18", "172.16.31.200", "2001:db8::18")
DUMMY = Interface("dummy0", 5, 1500, tuple(map(ip_address, HELD)))
ETH = Interface("eth0", 2, 1500, (IPv4Address("192.0.2.1"), IPv6Address("2001:db8:1::1")))
FACTS = HostFacts((ETH, DUMMY), ("eth0",), (Way(IPv4Network("198.51.100.0/24"), 0, 5, None),))


@pytest.mark.parametrize(
    ("told", "address"),
    [
        pytest.param({"iface_regex": (r"192\.168\.200\.\d+",)}, "192.168.200.128", id="ByIfRegexForIPv4"),
        pytest.param({"iface_regex": (r"dummy\d+",)}, "1.10.100.1", id="ByIfRegexForName"),
        pytest.param({"iface": ("dummy0",)}, "1.10.100.1", id="ByName"),
        pytest.param({"iface": ("172.16.30.18",)}, "172.16.30.18", id="ByIPv4"),
        pytest.param(
            {"iface_regex": (r"172\.16\.30\.\d+",), "public_ip": IPv4Address("172.16.31.200")},
            "172.16.31.200",
            id="ByIfRegexMatchPublicIPv4",
        ),
        pytest.param({"iface_can_reach": IPv4Address("198.51.100.9")}, "1.10.100.1", id="CanReach"),
    ],
)
def test_lookup_ext_iface(told: dict[str, Any], address: str) -> None:
    """TestLookupExtIface: dummy0 is found, and the address that was meant is published."""
    config = replace(CONFIG, **told)
    link = find_told(config, FACTS)
    assert isinstance(link, Interface)
    assert link.name == "dummy0"
    found = find_identity(config, FACTS, NET, (mac(1), mac(1)))
    assert isinstance(found, Identity)
    assert found.public_ip == IPv4Address(address)


def test_lookup_ext_iface_dual() -> None:
    """TestLookupExtIface in a network of both families: the IPv6 address is the same interface's."""
    found = find_identity(replace(CONFIG, iface=("172.16.30.18",)), FACTS, DUAL, (mac(1), mac(1)))
    assert isinstance(found, Identity)
    assert (found.public_ip, found.public_ip6) == (IPv4Address("172.16.30.18"), IPv6Address("2001:db8::18"))


# --- main_test.go, pkg/mac ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(
            "FLANNEL_SUBNET=10.244.1.0/24,not-a-cidr\n",
            SubnetKey(IPv4Network("10.244.1.0/24")),
            id="SkipsInvalidCIDRs",
        ),
        pytest.param(
            "FLANNEL_SUBNET=x,10.244.1.0/24\nFLANNEL_IPV6_SUBNET=fd00::/64,not-a-cidr\n",
            SubnetKey(IPv4Network("10.244.1.0/24"), IPv6Network("fd00::/64")),
            id="IP6SkipsInvalidCIDRs",
        ),
        pytest.param("FLANNEL_SUBNET=10.244.1.0/24,not-a-cidr,10.244.2.0/24\n", None, id="two are none"),
        pytest.param("FLANNEL_SUBNET=not-a-cidr\n", None, id="InvalidOnlyReturnsEmpty"),
        pytest.param("FLANNEL_IPV6_SUBNET=not-a-cidr\n", None, id="IP6InvalidOnlyReturnsEmpty"),
    ],
)
def test_read_cidrs_from_subnet_file(tmp_path: Path, text: str, expected: SubnetKey | None) -> None:
    """TestReadCIDRsFromSubnetFile…: bad CIDRs are skipped; more than one good one tells no subnet."""
    path = tmp_path / "subnet.env"
    path.write_text(text, encoding="ascii")
    assert subnetfile.read_previous(path) == expected


def test_new_hardware_addr(tmp_path: Path) -> None:
    """TestNewHardwareAddr: one can always be had, for one host, unicast and of nobody's making."""
    addresses = [vtep.load(tmp_path / str(n)) for n in range(64)]
    assert len(set(addresses)) == 64
    assert {address.octets[0] & 3 for address in addresses} == {2}
