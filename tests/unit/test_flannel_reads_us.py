# SPDX-License-Identifier: Apache-2.0
"""What we write to the store, read by flannel's rules instead of our own.

The reader here shares nothing with ours. It does what Go's encoding/json and flannel's types do: field names
in any case, the last of two counts, unknown ones are passed over, numbers must fit their type, and of
addresses and MACs the spellings of Go's net package are taken.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

import pytest

from dataplane import flannel
from dataplane.gate import Scene, refuse
from dataplane.lease import Identity
from dataplane.model import Encap, HostFacts, Interface, Lease, MacAddress, SubnetKey
from dataplane.underlay import find_identity
from tests.leases import CONFIG, IP1, NET, entry, lease

# Unanchored on the left, and of IPv6 in lower case only.
PATTERN = re.compile(r"(\d+\.\d+.\d+.\d+)-(\d+)(?:&([a-f\d:]+)-(\d+))?$")
MAC = MacAddress(bytes.fromhex("0200000000ab"))
MAC6 = MacAddress(bytes.fromhex("0200000000cd"))
KEY4 = SubnetKey(IPv4Network("10.244.1.0/24"))
DUAL = SubnetKey(KEY4.subnet, IPv6Network("fd00:244:0:1::/64"))
ADDRESS, ADDRESS6 = IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1")


@dataclass(frozen=True)
class Peer:
    """What a vxlan node of flannel's takes from a lease to program its kernel, of one family."""

    subnet: str
    public_ip: str
    mac: str


# --- flannel's rules ---------------------------------------------------------------------------------------


def fields_of(text: str) -> dict[str, Any]:
    """Read a JSON object as Go does into a struct: names in any case."""
    value = json.loads(text)
    assert isinstance(value, dict)
    return {name.lower(): found for name, found in value.items()}


def read_key(key: str) -> tuple[str, str | None]:
    """Read a key: prefix lengths must fit into 5 and 7 bits, and be none of the whole world's."""
    found = PATTERN.search(key)
    assert found is not None, key
    address, length, address6, length6 = found.groups()
    assert 0 < int(length) < 1 << 5
    assert length6 is None or 0 < int(length6) < 1 << 7
    subnet6 = None if address6 is None else str(IPv6Network(f"{address6}/{length6}"))
    return str(IPv4Network(f"{address}/{length}")), subnet6


def read_data(data: object) -> str:
    """Read backend data of vxlan: the VNI is a uint16, the MAC one of six octets with colons."""
    assert isinstance(data, dict)
    fields = {name.lower(): found for name, found in data.items()}
    assert type(fields["vni"]) is int
    assert 0 <= fields["vni"] < 1 << 16
    assert re.fullmatch(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}", fields["vtepmac"])
    return str(fields["vtepmac"])


def read_lease(key: str, text: str) -> list[Peer]:
    """Return the peers that a vxlan node makes of a key and its value: none if it passes them over."""
    subnet, subnet6 = read_key(key)
    fields = fields_of(text)
    assert isinstance(fields["publicip"], str)  # not even null
    public_ip = IPv4Address(fields["publicip"])
    backend = fields.get("backendtype", "")
    assert isinstance(backend, str)
    if backend != "vxlan":
        return []
    peers = []
    if (data := fields.get("backenddata")) is not None:
        peers.append(Peer(subnet, str(public_ip), read_data(data)))
    if (data6 := fields.get("backendv6data")) is not None:
        assert subnet6 is not None
        peers.append(Peer(subnet6, str(IPv6Address(fields["publicipv6"])), read_data(data6)))
    return peers


# --- our leases --------------------------------------------------------------------------------------------

PEER = Peer("10.244.1.0/24", "192.0.2.1", str(MAC))
PEER6 = Peer("fd00:244:0:1::/64", "2001:db8::1", str(MAC6))


@pytest.mark.parametrize(
    ("lease", "peers"),
    [
        pytest.param(Lease(KEY4, ADDRESS, None, Encap.VXLAN, MAC, vni=1), [PEER], id="vxlan"),
        pytest.param(Lease(KEY4, ADDRESS, None, Encap.VXLAN, MAC), [PEER], id="VNI untold"),
        pytest.param(Lease(KEY4, ADDRESS, None, Encap.VXLAN, MAC, vni=65535), [PEER], id="high VNI"),
        pytest.param(
            Lease(DUAL, ADDRESS, ADDRESS6, Encap.VXLAN, MAC, MAC6, 1), [PEER, PEER6], id="dual stack"
        ),
        pytest.param(Lease(KEY4, ADDRESS, None, Encap.IPIP), [], id="ipip"),
        pytest.param(Lease(KEY4, ADDRESS, None, Encap.DIRECT), [], id="host-gw"),
        pytest.param(Lease(KEY4, ADDRESS, None, Encap.FLANNEL_UDP), [], id="udp"),
    ],
)
def test_case_149_flannel_reads_our_lease(lease: Lease, peers: list[Peer]) -> None:
    """A node of flannel's makes of our lease exactly the peer that we are, or passes over another backend."""
    text = flannel.lease_value(lease)
    assert read_lease(flannel.format_key(lease.key), text) == peers
    if lease.encap is not Encap.VXLAN:
        named = fields_of(text).get("backendtype")
        assert named == {Encap.IPIP: "ipip", Encap.DIRECT: "host-gw"}.get(lease.encap)


@pytest.mark.parametrize(("vni", "told"), [(1, 1), (65535, 65535), (65536, 0), (70000, 4464)])
def test_case_149_every_vni_can_be_read(vni: int, told: int) -> None:
    """A VNI of more bits than flannel's type has is told by its lower 16, as flannel does; nobody minds."""
    network = replace(NET, vni=vni)
    link = Interface("eth0", 2, 1500, (IP1,))
    ours = find_identity(CONFIG, HostFacts((link,), ("eth0",)), network, (MAC, MAC6))
    assert isinstance(ours, Identity)
    text = flannel.lease_value(ours.lease(KEY4))
    assert read_lease(flannel.format_key(KEY4), text) == [PEER]
    assert fields_of(text)["backenddata"]["VNI"] == told
    scene = Scene(network, lease(1), frozenset({IP1}), frozenset({Encap.VXLAN}), True)
    for good in {told, vni}:
        assert refuse(entry(replace(lease(2), vni=good)), scene) is None
    assert refuse(entry(replace(lease(2), vni=told + 1)), scene) is not None


@pytest.mark.parametrize(
    ("key", "text"),
    [
        pytest.param("10.244.1.0/24", '{"PublicIP":"192.0.2.1"}', id="key"),
        pytest.param("10.244.1.0-32", '{"PublicIP":"192.0.2.1"}', id="length"),
        pytest.param("10.244.1.0-24", '{"PublicIP":null}', id="no address"),
        pytest.param(
            "10.244.1.0-24",
            '{"PublicIP":"192.0.2.1","BackendType":"vxlan","BackendData":{"VNI":65536,"VtepMAC":"02:00:00:00:00:01"}}',
            id="VNI",
        ),
        pytest.param(
            "10.244.1.0-24",
            '{"PublicIP":"192.0.2.1","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"2:0:0:0:0:1"}}',
            id="MAC",
        ),
    ],
)
def test_case_149_the_reader_is_strict(key: str, text: str) -> None:
    """The reader of this test refuses what flannel's would: it is no proof otherwise."""
    with pytest.raises((AssertionError, ValueError)):
        read_lease(key, text)
