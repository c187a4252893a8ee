# SPDX-License-Identifier: Apache-2.0
"""Which subnet a node may take: inside the range, over nobody's, and each free one as likely as the next."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.alloc import belongs, claims, fits, is_in_range, overlap, pick, pick_key
from dataplane.model import Encap, Network, NetworkConfig, SubnetKey, SubnetRange

RANGE = SubnetRange(24, int(IPv4Address("10.1.1.0")), int(IPv4Address("10.1.4.0")))
RANGE6 = SubnetRange(64, int(IPv6Address("fd00:1:0:1::")), int(IPv6Address("fd00:1:0:3::")))
ONLY4 = NetworkConfig(IPv4Network("10.1.0.0/16"), None, Encap.VXLAN, subnets=RANGE)
ONLY6 = NetworkConfig(None, IPv6Network("fd00:1::/48"), Encap.VXLAN, subnets6=RANGE6)
DUAL = replace(ONLY4, network6=ONLY6.network6, subnets6=RANGE6)


def nets(*texts: str) -> list[Network]:
    """Return networks."""
    return [ip_network(text) for text in texts]


def key(text: str, text6: str | None = None) -> SubnetKey:
    """Return a key; "" is no IPv4 subnet."""
    return SubnetKey(IPv4Network(text) if text else None, IPv6Network(text6) if text6 else None)


def free(taken: Iterable[Network], subnets: SubnetRange) -> list[Network]:
    """Return every IPv4 subnet that pick() can return, in the order of choose(); check choose()'s bound."""
    taken, bounds = list(taken), set[int]()

    def count(total: int) -> int:
        bounds.add(total)
        return 0

    if pick(taken, subnets, IPv4Network, count) is None:
        return []
    (total,) = bounds
    found = [pick(taken, subnets, IPv4Network, lambda n, at=at: at) for at in range(total)]  # type: ignore[misc]
    assert None not in found
    return [net for net in found if net is not None]


def names(found: Iterable[Network]) -> list[str]:
    """Return networks as text."""
    return [str(net) for net in found]


# --- pick -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("taken", "third_octets"),
    [
        pytest.param((), (1, 2, 3, 4), id="none"),
        pytest.param(("10.1.2.0/24",), (1, 3, 4), id="one"),
        pytest.param(("10.1.1.0/24", "10.1.4.0/24"), (2, 3), id="first and last"),
        pytest.param(("10.1.3.0/24", "10.1.1.0/24"), (2, 4), id="out of order"),
        pytest.param(("10.1.2.0/24", "10.1.2.0/24"), (1, 3, 4), id="twice"),
        pytest.param(("10.1.2.128/25",), (1, 3, 4), id="upper half of one"),
        pytest.param(("10.1.2.77/32", "10.1.2.78/32"), (1, 3, 4), id="two addresses of one"),
        pytest.param(("10.1.2.0/23",), (1, 4), id="shorter"),
        pytest.param(("10.1.2.0/23", "10.1.3.0/24"), (1, 4), id="one within another"),
        pytest.param(("10.1.0.0/23",), (2, 3, 4), id="across the first"),
        pytest.param(("10.1.4.0/22",), (1, 2, 3), id="across the last"),
        pytest.param(("10.1.0.0/24", "9.0.0.0/8"), (1, 2, 3, 4), id="below the range"),
        pytest.param(("10.1.5.0/24", "11.0.0.0/8"), (1, 2, 3, 4), id="above the range"),
        pytest.param(("0.0.0.0/0",), (), id="everything"),
        pytest.param(("10.1.1.0/24", "10.1.2.0/23", "10.1.4.0/32"), (), id="full"),
    ],
)
def test_what_is_free(taken: tuple[str, ...], third_octets: tuple[int, ...]) -> None:
    """Each subnet of the range that overlaps no taken one can be picked by one number, and no other can."""
    assert names(free(nets(*taken), RANGE)) == [f"10.1.{n}.0/24" for n in third_octets]


def test_full_is_told_without_a_choice() -> None:
    """When nothing is free, nothing is chosen."""

    def refuse(total: int) -> int:
        raise AssertionError(f"asked for one of {total}")

    assert pick(nets("10.1.0.0/16"), RANGE, IPv4Network, refuse) is None


@pytest.mark.parametrize("chosen", [3, 4, 1000])
def test_choice_beyond_its_bound(chosen: int) -> None:
    """A number that was not offered gives no subnet at all, least of all a taken one."""
    with pytest.raises(AssertionError, match="bound"):
        pick(nets("10.1.2.0/24"), RANGE, IPv4Network, lambda n: chosen)


@settings(max_examples=300)
@given(
    st.integers(22, 28),
    st.integers(0, 15),
    st.integers(0, 15),
    st.lists(st.tuples(st.integers(0, 255), st.integers(18, 32)), max_size=12),
)
def test_against_enumeration(length: int, low: int, size: int, drawn: list[tuple[int, int]]) -> None:
    """What can be picked is what walking through the range and comparing with every taken one leaves."""
    step, base = 1 << 32 - length, int(IPv4Address("10.1.0.0"))
    subnets = SubnetRange(length, base + low * step, base + (low + size) * step)
    # Around the range, beginning at quarters of a subnet.
    taken = [IPv4Network((base + (at - 64) * (step // 4), bits), strict=False) for at, bits in drawn]
    walked = [IPv4Network((at, length)) for at in range(subnets.first, subnets.last + 1, step)]
    assert free(taken, subnets) == [net for net in walked if not any(map(net.overlaps, taken))]


@pytest.mark.parametrize(
    ("network", "subnets", "total"),
    [
        pytest.param(
            IPv4Network("10.0.0.0/8"),
            SubnetRange(30, 10 << 24, (11 << 24) - 4),
            1 << 22,
            id="IPv4 /8 of /30",
        ),
        pytest.param(
            IPv6Network("fd00::/16"),
            SubnetRange(64, 0xFD00 << 112, (0xFD01 << 112) - (1 << 64)),
            1 << 48,
            id="IPv6 /16 of /64",
        ),
        pytest.param(
            IPv6Network("fd00::/16"),
            SubnetRange(126, 0xFD00 << 112, (0xFD01 << 112) - 4),
            1 << 110,
            id="IPv6 /16 of /126",
        ),
    ],
)
def test_huge_networks(network: Network, subnets: SubnetRange, total: int) -> None:
    """In a network that nobody could walk through, the bound is exact, and both ends can be picked."""
    asked: list[int] = []

    def choose_last(n: int) -> int:
        asked.append(n)
        return n - 1

    kind = type(network)
    ends = [kind((subnets.first, subnets.length)), kind((subnets.last, subnets.length))]
    assert pick([], subnets, kind, lambda n: 0) == ends[0]
    assert pick([], subnets, kind, choose_last) == ends[1]
    middle = pick(ends, subnets, kind, lambda n: n // 2)
    assert pick([*ends, middle], subnets, kind, choose_last) not in (None, middle, *ends)  # type: ignore[list-item]
    assert asked == [total, total - 3]


def test_many_leases() -> None:
    """Among a thousand leases at odd places of a huge range, each gap is counted once."""
    subnets = SubnetRange(64, 0xFD00 << 112, (0xFD01 << 112) - (1 << 64))
    taken = [IPv6Network((subnets.first + (n << 65), 64)) for n in range(1000)]  # every other one
    picked = [pick(taken, subnets, IPv6Network, lambda n, at=at: at) for at in (0, 1, 998, 999)]  # type: ignore[misc]
    wanted = [subnets.first + (2 * n + 1 << 64) for n in (0, 1, 998, 999)]
    assert picked == [IPv6Network((at, 64)) for at in wanted]


# --- what a lease keeps from others -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("subnet", "is_in"),
    [
        pytest.param("10.1.1.0/24", True, id="first"),
        pytest.param("10.1.4.0/24", True, id="last"),
        pytest.param("10.1.0.0/24", False, id="below"),
        pytest.param("10.1.5.0/24", False, id="above"),
        pytest.param("10.1.2.0/25", False, id="longer"),
        pytest.param("10.1.2.0/23", False, id="shorter"),
    ],
)
def test_is_in_range(subnet: str, is_in: bool) -> None:
    """A subnet is in the range if it has its length and lies between its ends, which belong to it."""
    assert is_in_range(IPv4Network(subnet), RANGE) is is_in


V6 = "fd00:1:0:1::/64"


@pytest.mark.parametrize(
    ("lease", "network", "can_take", "can_keep", "claimed"),
    [
        pytest.param(key("10.1.1.0/24"), ONLY4, True, True, ["10.1.1.0/24"], id="IPv4"),
        pytest.param(key("10.1.0.0/24"), ONLY4, False, True, ["10.1.0.0/24"], id="IPv4 below the range"),
        pytest.param(key("10.1.9.0/24"), ONLY4, False, True, ["10.1.9.0/24"], id="IPv4 above the range"),
        pytest.param(key("10.1.1.0/25"), ONLY4, False, False, [], id="IPv4 longer"),
        pytest.param(key("10.1.2.0/23"), ONLY4, False, False, [], id="IPv4 shorter"),
        pytest.param(key("0.0.0.0/0"), ONLY4, False, False, [], id="everything"),
        pytest.param(key("10.2.1.0/24"), ONLY4, False, False, [], id="IPv4 of another network"),
        pytest.param(key("", V6), ONLY4, False, False, [], id="IPv6 in IPv4"),
        pytest.param(key("10.1.1.0/24", V6), ONLY4, False, False, ["10.1.1.0/24"], id="both in IPv4"),
        pytest.param(key("", V6), ONLY6, True, True, [V6], id="IPv6"),
        pytest.param(key("", "::/0"), ONLY6, False, False, [], id="everything of IPv6"),
        pytest.param(key("10.1.1.0/24"), ONLY6, False, False, [], id="IPv4 in IPv6"),
        pytest.param(key("10.1.1.0/24", V6), ONLY6, False, False, [V6], id="both in IPv6"),
        pytest.param(key("10.1.1.0/24", V6), DUAL, True, True, ["10.1.1.0/24", V6], id="both"),
        pytest.param(
            key("10.1.1.0/24", "fd00:1::/64"),
            DUAL,
            *(False, True, ["10.1.1.0/24", "fd00:1::/64"]),
            id="both, IPv6 below the range",
        ),
        pytest.param(
            key("10.1.1.0/24", "fd00:2:0:1::/64"),
            DUAL,
            *(False, False, ["10.1.1.0/24"]),
            id="both, IPv6 of another network",
        ),
        pytest.param(key("10.1.1.0/25", V6), DUAL, False, False, [V6], id="both, IPv4 longer"),
        pytest.param(key("10.1.1.0/24"), DUAL, False, True, ["10.1.1.0/24"], id="IPv4 in both"),
        pytest.param(key("", V6), DUAL, False, True, [V6], id="IPv6 in both"),
    ],
)
def test_what_a_lease_is_worth(
    lease: SubnetKey, network: NetworkConfig, can_take: bool, can_keep: bool, claimed: list[str]
) -> None:
    """Only a lease of the range can be taken, one of the network kept; others lose what nodes could use."""
    assert fits(lease, network) is can_take
    assert belongs(lease, network) is can_keep
    assert names(claims(lease, network)) == claimed


@pytest.mark.parametrize(
    ("one", "other", "do"),
    [
        pytest.param("10.0.0.0/8", "10.1.0.0/16", True, id="within"),
        pytest.param("10.1.0.0/16", "10.0.0.0/8", True, id="around"),
        pytest.param("10.1.0.0/16", "10.2.0.0/16", False, id="beside"),
        pytest.param("0.0.0.0/0", "::/0", False, id="other family"),
    ],
)
def test_overlap(one: str, other: str, do: bool) -> None:
    """Networks overlap if they share addresses; those of two families never do."""
    assert overlap(ip_network(one), ip_network(other)) is do


# --- pick_key -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "picked"),
    [
        pytest.param(ONLY4, "10.1.1.0/24", id="IPv4"),
        pytest.param(ONLY6, "fd00:1:0:1::/64", id="IPv6"),
        pytest.param(DUAL, "10.1.1.0/24&fd00:1:0:1::/64", id="both"),
    ],
)
def test_pick_key(network: NetworkConfig, picked: str) -> None:
    """A lease gets a subnet of each family that the network has, and of no other."""
    assert str(pick_key([], network, lambda n: 0)) == picked


def test_pick_key_of_both_families() -> None:
    """In each family the taken subnets of that family are avoided, and each is chosen by itself."""
    asked: list[int] = []

    def choose_last(n: int) -> int:
        asked.append(n)
        return n - 1

    taken = iter(nets("10.1.4.0/24", V6, "fd00:1:0:3::/64", "10.1.3.0/24"))
    assert str(pick_key(taken, DUAL, choose_last)) == "10.1.2.0/24&fd00:1:0:2::/64"
    assert asked == [2, 1]


@pytest.mark.parametrize(
    ("taken", "network"),
    [
        pytest.param(("10.1.0.0/21",), ONLY4, id="IPv4"),
        pytest.param(("fd00:1::/62",), ONLY6, id="IPv6"),
        pytest.param(("10.1.0.0/21",), DUAL, id="IPv4 of both"),
        pytest.param(("fd00:1::/62",), DUAL, id="IPv6 of both"),
    ],
)
def test_pick_key_full(taken: tuple[str, ...], network: NetworkConfig) -> None:
    """Without a free subnet in each family there is no lease at all."""
    assert pick_key(nets(*taken), network, lambda n: 0) is None


@given(
    st.lists(st.sampled_from([f"10.1.{n}.0/24" for n in range(6)]), max_size=5),
    st.lists(st.sampled_from([f"fd00:1:0:{n}::/64" for n in range(5)]), max_size=4),
    st.integers(0, 1 << 16),
)
def test_what_is_picked_can_be_taken(taken: list[str], taken6: list[str], chance: int) -> None:
    """A key that is picked fits the network, and shares no address with what is taken."""
    busy = nets(*taken, *taken6)
    picked = pick_key(busy, DUAL, lambda n: chance % n)
    if picked is None:
        full4 = {f"10.1.{n}.0/24" for n in range(1, 5)} <= set(taken)
        assert full4 or {f"fd00:1:0:{n}::/64" for n in range(1, 4)} <= set(taken6)
        return
    assert fits(picked, DUAL)
    assert belongs(picked, DUAL)
    assert not [net for net in busy if any(overlap(net, mine) for mine in picked.subnets())]
