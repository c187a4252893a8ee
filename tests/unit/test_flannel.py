# SPDX-License-Identifier: Apache-2.0
"""flannel's formats: what is taken, what is refused and in which words, and the bytes that are written."""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network

import pytest

from dataplane import flannel
from dataplane.model import Encap, NetworkConfig


def network(**changes: object) -> dict[str, object]:
    """Return the least network config with some fields changed, or left out where they are `...`."""
    fields = {"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}, **changes}
    return {name: value for name, value in fields.items() if value is not ...}


def backend(**fields: object) -> dict[str, object]:
    """Return a network config whose VXLAN backend has these fields besides."""
    return network(Backend={"Type": "vxlan", **fields})


# --- network config ---------------------------------------------------------------------------------


def test_network_defaults() -> None:
    """What flannel leaves out means VNI 1, port 8472, no MTU of its own, IPv4 only."""
    found = flannel.parse_network(network())
    assert replace(found, subnets=None) == NetworkConfig(
        IPv4Network("10.244.0.0/16"), None, Encap.VXLAN, vni=1, port=8472, underlay_mtu=None
    )


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(
            {"network": "10.244.0.0/16", "BACKEND": {"tYPE": "VXLAN", "vni": 7}},
            NetworkConfig(IPv4Network("10.244.0.0/16"), None, Encap.VXLAN, vni=7),
            id="names in any case",
        ),
        pytest.param(
            network(Network="10.244.3.9/16"),
            NetworkConfig(IPv4Network("10.244.0.0/16"), None, Encap.VXLAN),
            id="host bits cut off",
        ),
        pytest.param(
            network(EnableIPv6=True, IPv6Network="fd00:244::9/48"),
            NetworkConfig(IPv4Network("10.244.0.0/16"), IPv6Network("fd00:244::/48"), Encap.VXLAN),
            id="dual stack, host bits cut off",
        ),
        pytest.param(
            network(Network=..., EnableIPv4=False, EnableIPv6=True, IPv6Network="fd00:244::/48"),
            NetworkConfig(None, IPv6Network("fd00:244::/48"), Encap.VXLAN),
            id="IPv6 only",
        ),
        pytest.param(
            network(IPv6Network="fd00:244::/48"),
            NetworkConfig(IPv4Network("10.244.0.0/16"), None, Encap.VXLAN),
            id="IPv6Network without EnableIPv6",
        ),
        pytest.param(
            network(SubnetLen=26, SubnetMin="10.244.1.0", SubnetMax="10.244.9.0", EnableNFTables=True),
            NetworkConfig(IPv4Network("10.244.0.0/16"), None, Encap.VXLAN),
            id="subnets of another length",
        ),
        pytest.param(
            network(SubnetLen=0, SubnetMin=None, SubnetMax=None),
            NetworkConfig(IPv4Network("10.244.0.0/16"), None, Encap.VXLAN),
            id="subnets left to their defaults",
        ),
        pytest.param(
            network(Network="10.244.0.0/28", SubnetMax="10.244.0.12"),
            NetworkConfig(IPv4Network("10.244.0.0/28"), None, Encap.VXLAN),
            id="smallest network, subnets of /30 by default",
        ),
        pytest.param(
            network(Backend={"Type": "ipip"}),
            NetworkConfig(IPv4Network("10.244.0.0/16"), None, Encap.IPIP),
            id="ipip",
        ),
        pytest.param(
            network(Backend={"Type": "UDP"}),
            NetworkConfig(IPv4Network("10.244.0.0/16"), None, Encap.FLANNEL_UDP, port=8285),
            id="udp, whose port is another",
        ),
        pytest.param(
            network(Backend={"Type": "udp", "Port": 7000}),
            NetworkConfig(IPv4Network("10.244.0.0/16"), None, Encap.FLANNEL_UDP, port=7000),
            id="udp with a port",
        ),
        pytest.param(
            backend(VNI=0, Port=0, MTU=0),
            NetworkConfig(IPv4Network("10.244.0.0/16"), None, Encap.VXLAN, vni=0),
            id="zeros: VNI 0, default port and MTU",
        ),
        pytest.param(
            backend(VNI=16777215, Port=65535, MTU=65535),
            NetworkConfig(IPv4Network("10.244.0.0/16"), None, Encap.VXLAN, 16777215, 65535, 65535),
            id="largest numbers",
        ),
        pytest.param(
            backend(Port=1, MTU=576),
            NetworkConfig(IPv4Network("10.244.0.0/16"), None, Encap.VXLAN, port=1, underlay_mtu=576),
            id="smallest numbers",
        ),
        pytest.param(
            backend(GBP=False, Learning=False, DirectRouting=False),
            NetworkConfig(IPv4Network("10.244.0.0/16"), None, Encap.VXLAN),
            id="features off",
        ),
        pytest.param(
            backend(directrouting=True),
            NetworkConfig(IPv4Network("10.244.0.0/16"), None, Encap.VXLAN, has_direct_routing=True),
            id="DirectRouting",
        ),
    ],
)
def test_network_is_read(data: object, expected: NetworkConfig) -> None:
    """Every form that flannel takes, and that we support, says the same here."""
    found = flannel.parse_network(data)
    assert replace(found, subnets=None, subnets6=None) == expected


@pytest.mark.parametrize(
    ("data", "text"),
    [
        pytest.param(None, "network: expected an object, not null", id="null"),
        pytest.param([], "network: expected an object, not an array", id="array"),
        pytest.param("x", "network: expected an object, not a string", id="string"),
        pytest.param(
            network(Network=...),
            'network: "Network" is missing, expected for example "10.244.0.0/16"',
            id="no Network",
        ),
        pytest.param(
            network(Network=10),
            "network.Network: expected a string, not the number 10",
            id="Network is a number",
        ),
        pytest.param(
            network(Network="10.244.0.0"),
            'network.Network: "10.244.0.0" is no IPv4 network, expected for example 10.244.0.0/16',
            id="Network without length",
        ),
        pytest.param(
            network(Network="10.244.0.0/255.255.0.0"),
            'network.Network: "10.244.0.0/255.255.0.0" is no IPv4 network',
            id="netmask",
        ),
        pytest.param(network(Network="10.244.0.0/33"), '"10.244.0.0/33" is no IPv4 network', id="length 33"),
        pytest.param(network(Network="fd00::/48"), '"fd00::/48" is no IPv4 network', id="IPv6 as IPv4"),
        pytest.param(
            network(Network="10.0.0.0/7"),
            "network.Network: 10.0.0.0/7 has an unusable length, allowed is /8 to /28",
            id="too wide",
        ),
        pytest.param(
            network(Network="10.0.0.0/29"), "unusable length, allowed is /8 to /28", id="too narrow"
        ),
        pytest.param(
            network(Network="127.0.0.0/8"),
            "network.Network: 127.0.0.0/8 holds loopback, link-local, multicast or unspecified addresses",
            id="loopback",
        ),
        pytest.param(network(Network="0.0.0.0/8"), "0.0.0.0/8 holds loopback, link-local", id="zero"),
        pytest.param(network(Network="169.254.0.0/16"), "169.254.0.0/16 holds loopback", id="link-local"),
        pytest.param(network(Network="224.1.0.0/16"), "224.1.0.0/16 holds loopback", id="multicast"),
        pytest.param(
            network(EnableIPv6=True, IPv6Network="::/16"), "::/16 holds loopback", id="IPv6 loopback"
        ),
        pytest.param(
            network(EnableIPv6=True, IPv6Network="fe80::/64"),
            "fe80::/64 holds loopback",
            id="IPv6 link-local",
        ),
        pytest.param(
            network(EnableIPv6=True, IPv6Network="ff02::/16"), "ff02::/16 holds loopback", id="IPv6 multicast"
        ),
        pytest.param(
            network(EnableNFTables="yes"),
            "network.EnableNFTables: expected true or false, not a string",
            id="EnableNFTables is a string",
        ),
        pytest.param(
            network(SubnetLen="24"),
            "network.SubnetLen: expected an integer from 0 to 30, not a string",
            id="SubnetLen is a string",
        ),
        pytest.param(
            network(SubnetLen=31),
            "network.SubnetLen: 31 is out of range, allowed is 0 to 30",
            id="SubnetLen 31",
        ),
        pytest.param(
            network(SubnetLen=17),
            "network.SubnetLen: 17 leaves no four subnets in 10.244.0.0/16; allowed is 18 to 30",
            id="SubnetLen too short",
        ),
        pytest.param(
            network(SubnetMin="10.245.0.0"),
            "network.SubnetMin: 10.245.0.0 is outside the network 10.244.0.0/16",
            id="SubnetMin outside",
        ),
        pytest.param(
            network(SubnetMax="10.244.1.128"),
            "network.SubnetMax: 10.244.1.128 is not where a /24 begins",
            id="SubnetMax between subnets",
        ),
        pytest.param(
            network(SubnetMin="10.244.9.0", SubnetMax="10.244.8.0"),
            "network.SubnetMin is above SubnetMax",
            id="SubnetMin above SubnetMax",
        ),
        pytest.param(
            network(SubnetMin="10.244.1.0/24"),
            'network.SubnetMin: "10.244.1.0/24" is no IPv4 address',
            id="SubnetMin is a network",
        ),
        pytest.param(
            network(SubnetMax=7), "network.SubnetMax: expected a string", id="SubnetMax is a number"
        ),
        pytest.param(
            network(EnableIPv6=True, IPv6Network="fd00:244::/48", IPv6SubnetLen=127),
            "network.IPv6SubnetLen: 127 is out of range, allowed is 0 to 126",
            id="IPv6SubnetLen 127",
        ),
        pytest.param(
            network(EnableIPv6=True, IPv6Network="fd00:244::/48", IPv6SubnetMin="fd00:244::%eth0"),
            'network.IPv6SubnetMin: "fd00:244::%eth0" is no IPv6 address',
            id="IPv6SubnetMin with a zone",
        ),
        pytest.param(
            network(EnableIPv6=True),
            'network: "IPv6Network" is missing, expected for example "fd00:244::/48"',
            id="no IPv6Network",
        ),
        pytest.param(
            network(EnableIPv6=True, IPv6Network="10.0.0.0/8"),
            'network.IPv6Network: "10.0.0.0/8" is no IPv6 network',
            id="IPv4 as IPv6",
        ),
        pytest.param(
            network(EnableIPv6=True, IPv6Network="fd00::%eth0/48"),
            'network.IPv6Network: "fd00::%eth0/48" is no IPv6 network',
            id="IPv6Network with a zone",
        ),
        pytest.param(
            network(EnableIPv6=True, IPv6Network="fd00::/125"),
            "network.IPv6Network: fd00::/125 has an unusable length, allowed is /16 to /124",
            id="IPv6 too narrow",
        ),
        pytest.param(
            network(EnableIPv4=False),
            "network: EnableIPv4 and EnableIPv6 are both false",
            id="both families off",
        ),
        pytest.param(
            network(EnableIPv4="yes"),
            "network.EnableIPv4: expected true or false, not a string",
            id="EnableIPv4 is a string",
        ),
        pytest.param(
            network(EnableIPv6=1),
            "network.EnableIPv6: expected true or false, not the number 1",
            id="EnableIPv6 is a number",
        ),
        pytest.param(
            network(Backend=...),
            'network: "Backend" is missing, expected for example {"Type": "vxlan"}',
            id="no Backend",
        ),
        pytest.param(
            network(Backend="vxlan"),
            "network.Backend: expected an object, not a string",
            id="Backend is a string",
        ),
        pytest.param(
            network(Backend={"VNI": 1}),
            'network.Backend: "Type" is missing; allowed are vxlan, ipip',
            id="no Type",
        ),
        pytest.param(
            network(Backend={"Type": True}),
            "Backend.Type: expected a string, not the boolean true",
            id="Type is a boolean",
        ),
        pytest.param(
            network(Backend={"Type": "vxlna"}),
            'Backend.Type "vxlna": allowed are vxlan, ipip, udp, host-gw, alloc (did you mean vxlan?)',
            id="Type with a typing error",
        ),
        pytest.param(
            network(Backend={"Type": "geneve"}),
            'Backend.Type "geneve": allowed are vxlan, ipip',
            id="Type like nothing",
        ),
        pytest.param(
            network(Backend={"Type": "ipsec"}),
            'Backend.Type "ipsec" is not supported yet: allowed are vxlan, ipip',
            id="ipsec",
        ),
        pytest.param(
            network(Backend={"Type": "wireguard"}), '"wireguard" is not supported yet', id="wireguard"
        ),
        pytest.param(
            network(Backend={"Type": "ipip"}, EnableIPv6=True, IPv6Network="fd00:244::/48"),
            "network.Backend.Type: ipip carries IPv4 only; use vxlan for an IPv6Network",
            id="ipip with IPv6",
        ),
        pytest.param(
            network(Backend={"Type": "udp"}, EnableIPv6=True, IPv6Network="fd00:244::/48"),
            "network.Backend.Type: udp carries IPv4 only; use vxlan for an IPv6Network",
            id="udp with IPv6",
        ),
        pytest.param(
            backend(VNI=16777216),
            "network.Backend.VNI: 16777216 is out of range, allowed is 0 to 16777215",
            id="VNI too large",
        ),
        pytest.param(backend(VNI=-1), "Backend.VNI: -1 is out of range", id="VNI negative"),
        pytest.param(
            backend(VNI="1"),
            "network.Backend.VNI: expected an integer from 0 to 16777215, not a string",
            id="VNI is a string",
        ),
        pytest.param(
            backend(VNI=True), "expected an integer from 0 to 16777215, not the boolean true", id="VNI true"
        ),
        pytest.param(backend(VNI=1.0), "Backend.VNI: expected an integer", id="VNI 1.0"),
        pytest.param(
            backend(Port=65536),
            "network.Backend.Port: 65536 is out of range, allowed is 0 to 65535",
            id="Port too large",
        ),
        pytest.param(backend(Port=None), "Backend.Port: expected an integer", id="Port null"),
        pytest.param(
            backend(MTU=575),
            "network.Backend.MTU: 575 is too small, allowed is 576 to 65535, or 0",
            id="MTU too small",
        ),
        pytest.param(backend(MTU=65536), "Backend.MTU: 65536 is out of range", id="MTU too large"),
        pytest.param(
            backend(DirectRouting="yes"),
            "network.Backend.DirectRouting: expected true or false, not a string",
            id="DirectRouting",
        ),
        pytest.param(backend(GBP=True), "Backend.GBP: true is not supported yet", id="GBP"),
        pytest.param(backend(Learning=0), "Learning: expected true or false", id="Learning is a number"),
        pytest.param(
            network(Netwrok="x"),
            'network: unknown field "Netwrok" (did you mean Network?); allowed are Network, SubnetLen',
            id="unknown field",
        ),
        pytest.param(
            backend(Prot=1),
            'network.Backend: unknown field "Prot" (did you mean Port?)',
            id="unknown in Backend",
        ),
        pytest.param(network(NETWORK="x"), 'network: "Network" is given twice', id="name twice"),
    ],
)
def test_network_is_refused(data: object, text: str) -> None:
    """A network config that cannot be used is refused in one line that names the field."""
    with pytest.raises(ValueError, match=re.escape(text)) as caught:
        flannel.parse_network(data)
    assert "\n" not in str(caught.value)


def test_unknown_fields_of_a_store_are_passed_over() -> None:
    """What flannel writes into a store may have fields of later versions."""
    data = network(Later=1, Backend={"Type": "vxlan", "Newer": {}})
    assert flannel.parse_network(data, strict=False) == flannel.parse_network(network())


# --- MTU ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encap", "underlay", "is_underlay6", "expected"),
    [
        pytest.param(Encap.VXLAN, 1500, False, 1450, id="VXLAN over IPv4"),
        pytest.param(Encap.VXLAN, 1500, True, 1430, id="VXLAN over IPv6"),
        pytest.param(Encap.IPIP, 1500, False, 1480, id="IPIP"),
        pytest.param(Encap.IPIP, 1500, True, 1480, id="IPIP on a node that has IPv6 too"),
        pytest.param(Encap.FLANNEL_UDP, 1500, False, 1472, id="udp"),
        pytest.param(Encap.FLANNEL_UDP, 1500, True, 1472, id="udp on a node that has IPv6 too"),
        pytest.param(Encap.VXLAN, 9000, False, 8950, id="jumbo frames"),
        pytest.param(Encap.DIRECT, 1500, True, 1500, id="host-gw"),
        pytest.param(Encap.NONE, 1500, False, 1500, id="alloc"),
    ],
)
def test_overlay_mtu(encap: Encap, underlay: int, is_underlay6: bool, expected: int) -> None:
    """A pod's MTU is the underlay's less the outer headers."""
    assert flannel.overlay_mtu(encap, underlay, is_underlay6=is_underlay6) == expected


@pytest.mark.parametrize(
    ("of", "encap", "expected"),
    [
        pytest.param(Encap.VXLAN, Encap.VXLAN, 7000, id="vxlan of its network"),
        pytest.param(Encap.VXLAN, Encap.FLANNEL_UDP, 8285, id="udp beside vxlan"),
        pytest.param(Encap.FLANNEL_UDP, Encap.FLANNEL_UDP, 7000, id="udp of its network"),
        pytest.param(Encap.FLANNEL_UDP, Encap.VXLAN, 8472, id="vxlan beside udp"),
    ],
)
def test_find_port(of: Encap, encap: Encap, expected: int) -> None:
    """Port is that of the network's own type; what is enabled besides has its usual one."""
    config = NetworkConfig(IPv4Network("10.244.0.0/16"), None, of, port=7000)
    assert flannel.find_port(config, encap) == expected
