# SPDX-License-Identifier: Apache-2.0
"""The gate: what of the store may become a peer where nodes lease their subnets, and who wins a collision."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from dataplane.gate import KINDS, Scene, find_collisions, refuse
from dataplane.model import Encap, Entry, Lease, SubnetKey
from tests.leases import IP1, NET, dual, entry, lease

SCENE = Scene(
    *(NET, lease(1), frozenset({IP1, IPv4Address("10.244.7.1")}), frozenset({Encap.VXLAN}), True),
    broadcasts=frozenset({IPv4Address("192.0.2.255")}),
)
KIND_OF = {"its subnet": "subnet", "its Public": "address", "it has no u": "address"}


def at(subnet: str) -> Lease:
    """Return the lease of node 2 with another subnet."""
    return replace(lease(2), key=SubnetKey(IPv4Network(subnet)))


def of(ip: str) -> Lease:
    """Return the lease of node 2 with another address."""
    return replace(lease(2), public_ip=IPv4Address(ip))


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        pytest.param(lease(2), None, id="good"),
        pytest.param(at("10.244.0.0/24"), None, id="before SubnetMin: another config's, and harmless"),
        pytest.param(at("0.0.0.0/0"), "its subnet 0.0.0.0/0 is outside the network 10.244.0.0/16", id="all"),
        pytest.param(at("10.245.1.0/24"), "its subnet 10.245.1.0/24 is outside the network", id="outside"),
        pytest.param(at("10.244.0.0/16"), "its subnet 10.244.0.0/16 is the whole network", id="whole"),
        pytest.param(at("10.244.2.0/25"), "its subnet 10.244.2.0/25 is no /24, as", id="length"),
        pytest.param(at("10.244.1.0/24"), "its subnet 10.244.1.0/24 overlaps our own", id="ours"),
        pytest.param(
            at("10.244.7.0/24"), "its subnet 10.244.7.0/24 holds 10.244.7.1, an address of this", id="held"
        ),
        pytest.param(
            replace(dual(2), public_ip6=None, vtep_mac6=None),
            "its subnet fd00:244:0:2::/64: the network has no IPv6",
            id="family",
        ),
        pytest.param(of("192.0.2.1"), "its PublicIP 192.0.2.1 is an address of this host", id="our address"),
        pytest.param(of("192.0.2.255"), "its PublicIP 192.0.2.255 is a broadcast address", id="broadcast"),
        pytest.param(of("10.244.9.9"), "its PublicIP 10.244.9.9 lies inside the overlay", id="overlay"),
        pytest.param(replace(lease(2), vni=2), "its VNI 2 is not the network's VNI 1", id="VNI"),
        pytest.param(replace(lease(2), vtep_mac=None), "it has no VtepMAC", id="MAC"),
        pytest.param(lease(2, Encap.IPIP), "its backend ipip is not enabled here", id="backend"),
        pytest.param(
            lease(2, Encap.FLANNEL_UDP),
            'its "BackendType" is missing, or udp, which is not enabled',
            id="udp",
        ),
        pytest.param(
            replace(lease(2), public_ip=None, public_ip6=IPv6Address("2001:db8::2")),
            "it has no underlay address of a family that we have",
            id="IPv6 underlay",
        ),
    ],
)
def test_refuse(found: Lease, reason: str | None) -> None:
    """What cannot be a peer is refused with a reason, and nothing else is."""
    said = refuse(entry(found), SCENE)
    if said is None or reason is None:
        assert said is reason
        return
    assert said.startswith(reason)
    kinds = [kind for start, kind in KIND_OF.items() if reason.startswith(start)]
    assert said.kind == (kinds or ["backend"])[0]
    assert said.kind in KINDS


def test_unreadable() -> None:
    """What is no lease is refused for the reason that was found when it was read."""
    said = refuse(Entry("x", None, "no subnet"), SCENE)
    assert said == "no subnet"
    assert said.kind == "unreadable"
    assert refuse(Entry("x", None), SCENE) == "it is unreadable"
    assert find_collisions([Entry("x", None, created=1), entry(lease(2), created=2)]) == {}


IP6 = IPv6Address("2001:db8::2")
PLAIN = replace(
    SCENE, encaps=frozenset({Encap.IPIP}), own=replace(lease(1), public_ip6=IPv6Address("2001:db8::1"))
)


def test_plain_encapsulations_need_ipv4() -> None:
    """IPIP carries IPv4 over IPv4: a lease with anything else is refused, or any if we have no IPv4."""
    good = lease(2, Encap.IPIP)
    assert refuse(entry(good), PLAIN) is None
    reason = "ipip carries IPv4 over IPv4, and it has something else"
    assert refuse(entry(replace(good, public_ip=None, public_ip6=IP6)), PLAIN) == reason
    both = SubnetKey(good.key.subnet, IPv6Network("fd00:244:0:2::/64"))
    wide = replace(PLAIN, network=replace(NET, network6=IPv6Network("fd00:244::/48")), is_leased=False)
    assert refuse(entry(replace(good, key=both)), wide) == reason
    six = replace(PLAIN, own=replace(PLAIN.own, public_ip=None))
    reason = "ipip needs an IPv4 underlay, and our lease has no PublicIP"
    assert refuse(entry(replace(good, public_ip6=IP6)), six) == reason


def test_alloc_knows_no_backend() -> None:
    """In a network of type alloc leases name no backend, which elsewhere means udp, and count."""
    alloc = replace(SCENE, network=replace(NET, encap=Encap.NONE))
    assert refuse(entry(lease(2, Encap.FLANNEL_UDP)), alloc) is None


def test_lengths_are_free_where_people_write() -> None:
    """Where a person wrote down who has what, subnets may be of any length."""
    assert refuse(entry(at("10.244.2.0/25")), replace(SCENE, is_leased=False)) is None


@pytest.mark.parametrize("is_reversed", [False, True])
def test_case_111_older_one_counts(is_reversed: bool) -> None:
    """Of two leases that collide, the one of the lower revision stays, in whatever order they are read."""
    younger = entry(lease(2), created=9)
    older = replace(entry(replace(lease(3), key=lease(2).key), created=4), name="10.244.2.0/24")
    found = [older, younger] if is_reversed else [younger, older]
    reason = "its subnet 10.244.2.0/24 is also leased to 192.0.2.3"
    refusals = find_collisions(found)
    assert refusals == {"10.244.2.0-24": reason}
    assert refusals["10.244.2.0-24"].kind == "collision"


def test_stolen_address() -> None:
    """A second address that is another node's is refused; two leases of one node are no collision."""
    first = entry(replace(lease(2), public_ip6=IPv6Address("2001:db8::2")), created=1)
    thief = entry(replace(lease(3), public_ip6=IPv6Address("2001:db8::2")), created=2)
    assert find_collisions([thief, first]) == {
        "10.244.3.0-24": "its PublicIP 2001:db8::2 is also that of 10.244.2.0/24"
    }
    twin = entry(replace(lease(2), key=SubnetKey(IPv4Network("10.244.9.0/24"))), created=3)
    assert find_collisions([first, twin]) == {}


def test_network6() -> None:
    """The rules hold for IPv6 subnets too."""
    scene = replace(SCENE, network=replace(NET, network6=IPv6Network("fd00:244::/48")), own=dual(1))
    assert refuse(entry(dual(2)), scene) is None
    outside = replace(dual(2), key=SubnetKey(dual(2).key.subnet, IPv6Network("fd00:245::/64")))
    assert refuse(entry(outside), scene) == "its subnet fd00:245::/64 is outside the network fd00:244::/48"
