# SPDX-License-Identifier: Apache-2.0
"""flannel's lease keys and values: what is read, what is refused and why, what is written."""

from __future__ import annotations

import json
import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane import flannel
from dataplane.model import Encap, Lease, MacAddress, SubnetKey

MAC = MacAddress(bytes.fromhex("020000000001"))
MAC6 = MacAddress(bytes.fromhex("020000000006"))
KEY = SubnetKey(IPv4Network("10.244.1.0/24"))
KEY6 = SubnetKey(None, IPv6Network("fd00:244:1::/64"))
DUAL = SubnetKey(KEY.subnet, KEY6.subnet6)
DATA = {"VNI": 1, "VtepMAC": "02:00:00:00:00:01"}
LEASE = {"PublicIP": "192.0.2.1", "BackendType": "vxlan", "BackendData": DATA}


def lease(**changes: object) -> dict[str, object]:
    """Return a lease value with some fields changed, or left out where they are `...`."""
    return {name: value for name, value in {**LEASE, **changes}.items() if value is not ...}


# --- keys -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "key", "written"),
    [
        pytest.param("10.244.1.0/24", KEY, "10.244.1.0-24", id="slash"),
        pytest.param("10.244.1.0-24", KEY, "10.244.1.0-24", id="flannel"),
        pytest.param("fd00:244:1::/64", KEY6, "fd00:244:1::-64", id="IPv6"),
        pytest.param("FD00:244:1:0::-64", KEY6, "fd00:244:1::-64", id="IPv6 written otherwise"),
        pytest.param("10.244.1.0-24&fd00:244:1::-64", DUAL, "10.244.1.0-24&fd00:244:1::-64", id="dual"),
        pytest.param("10.244.1.0/24&fd00:244:1::-64", DUAL, "10.244.1.0-24&fd00:244:1::-64", id="mixed"),
    ],
)
def test_key_is_read_and_written(text: str, key: SubnetKey, written: str) -> None:
    """Both forms of a key mean the same subnet; flannel's form is what is written, and reads back."""
    assert flannel.parse_key(text) == key
    assert flannel.format_key(key) == written
    assert flannel.parse_key(written) == key


@given(
    v4=st.none() | st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)),
    v6=st.none() | st.tuples(st.integers(0, 2**128 - 1), st.integers(0, 128)),
)
def test_key_round_trip(v4: tuple[int, int] | None, v6: tuple[int, int] | None) -> None:
    """Every key there can be reads back as it was, from both forms."""
    if v4 is None and v6 is None:
        return
    key = SubnetKey(
        None if v4 is None else IPv4Network(v4, strict=False),
        None if v6 is None else IPv6Network(v6, strict=False),
    )
    assert flannel.parse_key(flannel.format_key(key)) == key
    assert flannel.parse_key(str(key)) == key


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("&", id="only &"),
        pytest.param("10.244.1.0", id="no length"),
        pytest.param("10.244.1.0/", id="empty length"),
        pytest.param("10.244.1.0/33", id="length 33"),
        pytest.param("10.244.1.5/24", id="host bits"),
        pytest.param("10.244.1/24", id="three octets"),
        pytest.param("10.244.256.0/24", id="octet 256"),
        pytest.param("10.244.01.0/24", id="octet with a leading zero"),
        pytest.param("10.244.1.0/255.255.255.0", id="netmask"),
        pytest.param(" 10.244.1.0/24", id="blank"),
        pytest.param("10.244.1.0/24\n", id="newline"),
        pytest.param("10.244.1.0/24&", id="nothing after &"),
        pytest.param("&fd00:244:1::/64", id="nothing before &"),
        pytest.param("10.244.1.0/24fd00:244:1::/64", id="no & between"),
        pytest.param("fd00:244:1::/64&10.244.1.0/24", id="IPv6 first"),
        pytest.param("10.244.1.0/24&10.244.2.0/24", id="IPv4 twice"),
        pytest.param("fd00:244:1::1/64", id="IPv6 host bits"),
        pytest.param("fd00:244:1::/129", id="IPv6 length 129"),
        pytest.param("fd00:::/64", id="IPv6 with three colons"),
        pytest.param("fd00:244:1::%eth0/64", id="IPv6 with a zone"),
        pytest.param("10.244.1.0/２４", id="digits that are not ASCII"),
        pytest.param("pods", id="a word"),
    ],
)
def test_key_is_refused(text: str) -> None:
    """What is no subnet in one of the forms is refused, and the text says which key it was."""
    with pytest.raises(ValueError, match=re.escape(f'"{text}" is no subnet')):
        flannel.parse_key(text)


# --- leases -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "data", "expected"),
    [
        pytest.param(
            KEY,
            LEASE,
            Lease(KEY, IPv4Address("192.0.2.1"), None, Encap.VXLAN, MAC, None, 1),
            id="vxlan",
        ),
        pytest.param(
            KEY,
            {"publicip": "192.0.2.1", "backendtype": "VXLAN", "BACKENDDATA": {"vni": 1, "vtepmac": str(MAC)}},
            Lease(KEY, IPv4Address("192.0.2.1"), None, Encap.VXLAN, MAC, None, 1),
            id="names in any case",
        ),
        pytest.param(
            DUAL,
            lease(PublicIPv6="2001:db8::1", BackendV6Data={"VNI": 1, "VtepMAC": str(MAC6)}),
            Lease(DUAL, IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1"), Encap.VXLAN, MAC, MAC6, 1),
            id="dual stack",
        ),
        pytest.param(
            KEY6,
            lease(
                PublicIP="0.0.0.0",
                PublicIPv6="2001:db8::1",
                BackendData=None,
                BackendV6Data={"VtepMAC": str(MAC6)},
            ),
            Lease(KEY6, None, IPv6Address("2001:db8::1"), Encap.VXLAN, None, MAC6),
            id="IPv6 only: flannel writes 0.0.0.0",
        ),
        pytest.param(
            KEY,
            lease(BackendData=..., PublicIPv6=None),
            Lease(KEY, IPv4Address("192.0.2.1"), None, Encap.VXLAN),
            id="no data",
        ),
        pytest.param(
            KEY,
            {"PublicIP": "192.0.2.1", "BackendType": "ipip"},
            Lease(KEY, IPv4Address("192.0.2.1"), None, Encap.IPIP),
            id="ipip",
        ),
        pytest.param(
            KEY,
            {"PublicIP": "192.0.2.1", "BackendType": "udp"},
            Lease(KEY, IPv4Address("192.0.2.1"), None, Encap.FLANNEL_UDP),
            id="udp",
        ),
    ],
)
def test_lease_is_read(key: SubnetKey, data: object, expected: Lease) -> None:
    """Every form of lease that flannel writes is read."""
    assert flannel.parse_lease(key, data) == expected


@pytest.mark.parametrize(
    ("data", "text"),
    [
        pytest.param([], "lease: expected an object, not an array", id="array"),
        pytest.param(
            lease(PublicIP=...),
            'lease: "PublicIP" is missing, expected the underlay address of the node',
            id="no PublicIP",
        ),
        pytest.param(lease(PublicIP=None), '"PublicIP" is missing', id="PublicIP null"),
        pytest.param(lease(PublicIP="0.0.0.0"), '"PublicIP" is missing', id="PublicIP unspecified"),
        pytest.param(
            lease(PublicIPv6="::"),
            "lease.PublicIPv6: :: is unspecified, expected the unicast address of a node",
            id="PublicIPv6 unspecified",
        ),
        pytest.param(lease(PublicIP=1), "lease.PublicIP: expected a string", id="PublicIP is a number"),
        pytest.param(lease(PublicIP="node1"), '"node1" is no IPv4 address', id="PublicIP is a name"),
        pytest.param(lease(PublicIP="::1"), '"::1" is no IPv4 address', id="PublicIP is IPv6"),
        pytest.param(lease(PublicIP="192.0.2.1/24"), '"192.0.2.1/24" is no IPv4 address', id="PublicIP/24"),
        pytest.param(
            lease(PublicIP="127.0.0.1"),
            "lease.PublicIP: 127.0.0.1 is a loopback address, expected the unicast address of a node",
            id="loopback",
        ),
        pytest.param(lease(PublicIP="224.0.0.1"), "224.0.0.1 is a multicast address", id="multicast"),
        pytest.param(
            lease(PublicIP="255.255.255.255"), "255.255.255.255 is the broadcast address", id="broadcast"
        ),
        pytest.param(lease(PublicIP="169.254.1.1"), "169.254.1.1 is a link-local address", id="link-local"),
        pytest.param(lease(PublicIP="0.1.2.3"), "0.1.2.3 is in 0.0.0.0/8", id="this network"),
        pytest.param(
            lease(PublicIPv6="::ffff:192.0.2.1"), "is an IPv4 address written as IPv6", id="mapped IPv4"
        ),
        pytest.param(lease(PublicIPv6="::1"), "::1 is a loopback address", id="IPv6 loopback"),
        pytest.param(lease(PublicIPv6="ff02::1"), "ff02::1 is a multicast address", id="IPv6 multicast"),
        pytest.param(lease(PublicIPv6="fe80::1"), "fe80::1 is a link-local address", id="IPv6 link-local"),
        pytest.param(
            lease(PublicIPv6="192.0.2.1"), '"192.0.2.1" is no IPv6 address', id="PublicIPv6 is IPv4"
        ),
        pytest.param(
            lease(PublicIPv6="2001:db8::1%eth0"), "2001:db8::1%eth0 is an address with a zone", id="zone"
        ),
        pytest.param(
            lease(BackendType=...),
            'lease: "BackendType" is missing; allowed are vxlan, ipip',
            id="no BackendType",
        ),
        pytest.param(
            lease(BackendType="wireguard"),
            'lease.BackendType "wireguard" is not supported yet: allowed are vxlan, ipip',
            id="wireguard",
        ),
        pytest.param(
            lease(BackendType="ipi"),
            '"ipi": allowed are vxlan, ipip, udp, host-gw, alloc (did you mean ipip?)',
            id="ipi",
        ),
        pytest.param(
            lease(BackendData={"VNI": 1, "VtepMAC": "03:00:00:00:00:01"}),
            "lease.BackendData.VtepMAC: 03:00:00:00:00:01 is no unicast MAC address",
            id="multicast MAC",
        ),
        pytest.param(
            lease(BackendData={"VtepMAC": "00:00:00:00:00:00"}), "is no unicast MAC address", id="zero MAC"
        ),
        pytest.param(
            lease(BackendData={"VtepMAC": "02:00:5e"}),
            'BackendData.VtepMAC: "02:00:5e" is no MAC address, expected for example 02:00:5e:10:00:01',
            id="short MAC",
        ),
        pytest.param(
            lease(BackendData={"VtepMAC": "02-00-00-00-00-01"}), "is no MAC address", id="MAC with -"
        ),
        pytest.param(lease(BackendData={"VtepMAC": 2}), "VtepMAC: expected a string", id="MAC is a number"),
        pytest.param(
            lease(BackendData={"VNI": 1 << 24}),
            "lease.BackendData.VNI: 16777216 is out of range, allowed is 0 to 16777215",
            id="VNI too large",
        ),
        pytest.param(lease(BackendData="x"), "lease.BackendData: expected an object", id="data is a string"),
        pytest.param(
            lease(BackendV6Data={"VNI": 2}),
            "lease: BackendData has VNI 1, BackendV6Data 2; they must be equal",
            id="two VNIs",
        ),
        pytest.param(
            lease(BackendDta={}),
            'lease: unknown field "BackendDta" (did you mean BackendData?); allowed are PublicIP, PublicIPv6',
            id="unknown field",
        ),
        pytest.param(
            lease(BackendData={"Vin": 1}),
            'lease.BackendData: unknown field "Vin"',
            id="unknown field in data",
        ),
        pytest.param(
            lease(PublicIP=..., PublicIPv6="2001:db8::1", BackendType="ipip"),
            'lease: ipip carries IPv4 over IPv4: it needs a "PublicIP" and one IPv4 subnet',
            id="ipip without IPv4",
        ),
        pytest.param(
            lease(PublicIP=..., PublicIPv6="2001:db8::1", BackendType="udp"),
            'lease: udp carries IPv4 over IPv4: it needs a "PublicIP" and one IPv4 subnet',
            id="udp without IPv4",
        ),
    ],
)
def test_lease_is_refused(data: object, text: str) -> None:
    """A lease that cannot be used is refused in one line that names the field and what is allowed."""
    with pytest.raises(ValueError, match=re.escape(text)) as caught:
        flannel.parse_lease(KEY, data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("backend", ["ipip", "udp"])
@pytest.mark.parametrize("key", ["fd00:244:1::/64", "10.244.1.0/24&fd00:244:1::/64"])
def test_ipip_and_udp_need_an_ipv4_subnet(key: str, backend: str) -> None:
    """Neither can carry anything to an IPv6 subnet, so a lease that has one is refused."""
    with pytest.raises(ValueError, match="one IPv4 subnet"):
        flannel.parse_lease(flannel.parse_key(key), {"PublicIP": "192.0.2.1", "BackendType": backend})


def test_lease_of_flannels_udp() -> None:
    """flannel's udp says nothing of itself: no type and no data is udp, in what it writes itself."""
    value = Lease(KEY, IPv4Address("192.0.2.1"), None, Encap.FLANNEL_UDP)
    text = '{"PublicIP":"192.0.2.1","PublicIPv6":null}'
    assert flannel.lease_value(value) == text
    assert flannel.parse_lease(KEY, json.loads(text), strict=False) == value
    with pytest.raises(ValueError, match='"BackendType" is missing'):  # a person says what is meant
        flannel.parse_lease(KEY, json.loads(text))


@pytest.mark.parametrize("name", ["BackendData", "BackendV6Data"])
def test_data_without_a_type_is_refused(name: str) -> None:
    """Data is of some type; which one is not guessed."""
    with pytest.raises(ValueError, match='"BackendType" is missing'):
        flannel.parse_lease(KEY, {"PublicIP": "192.0.2.1", name: DATA}, strict=False)


def test_unknown_fields_of_a_lease_are_passed_over() -> None:
    """A lease in flannel's own store may have fields of later versions."""
    data = lease(Later=1, BackendData={**DATA, "Newer": 1})
    assert flannel.parse_lease(KEY, data, strict=False) == flannel.parse_lease(KEY, LEASE)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        pytest.param(
            Lease(KEY, IPv4Address("192.0.2.1"), None, Encap.VXLAN, MAC, vni=1),
            '{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan",'
            '"BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}}',
            id="vxlan",
        ),
        pytest.param(
            Lease(DUAL, IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1"), Encap.VXLAN, MAC, MAC6, 9),
            '{"PublicIP":"192.0.2.1","PublicIPv6":"2001:db8::1","BackendType":"vxlan",'
            '"BackendData":{"VNI":9,"VtepMAC":"02:00:00:00:00:01"},'
            '"BackendV6Data":{"VNI":9,"VtepMAC":"02:00:00:00:00:06"}}',
            id="dual stack",
        ),
        pytest.param(
            Lease(KEY6, None, IPv6Address("2001:db8::1"), Encap.VXLAN, None, MAC6, 1),
            '{"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8::1","BackendType":"vxlan",'
            '"BackendV6Data":{"VNI":1,"VtepMAC":"02:00:00:00:00:06"}}',
            id="IPv6 only",
        ),
        pytest.param(
            Lease(KEY, IPv4Address("192.0.2.1"), None, Encap.IPIP),
            '{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"ipip"}',
            id="ipip",
        ),
    ],
)
def test_lease_value(value: Lease, text: str) -> None:
    """A lease is written byte for byte as flannel does, and reads back as it was."""
    assert flannel.lease_value(value) == text
    assert flannel.parse_lease(value.key, json.loads(text)) == value
