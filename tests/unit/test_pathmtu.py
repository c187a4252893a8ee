# SPDX-License-Identifier: Apache-2.0
"""What is kept of path MTUs, for how long, and what the table says of them."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest

from dataplane.model import Address, Encap, SubnetEntry, Table
from dataplane.pathmtu import (
    ALARM_S,
    ALARMS_MAX,
    ICMP,
    PROBE,
    ROUTE,
    PathMtu,
    Paths,
)
from tests.leases import IP1, IP1_6, IP2, mac

NET4, NET6 = ip_network("10.244.2.0/24"), ip_network("fd00:244:0:2::/64")
ENTRY = SubnetEntry(NET4, 1, Encap.VXLAN, IP1, mac(1))
OTHER = SubnetEntry(ip_network("10.244.3.0/24"), 2, Encap.VXLAN, IP2, mac(2))
TABLE = Table(subnets=(ENTRY, OTHER))


def told(mtu: int, source: str = ICMP, expires_s: float | None = 600.0) -> PathMtu:
    """Return what a source says."""
    return PathMtu(mtu, source, expires_s)


def mtus(paths: Paths, table: Table = TABLE, mtu: int = 1450) -> list[int]:
    """Return the MTUs of the subnets of a table once the paths are in it."""
    return [entry.mtu for entry in paths.narrow(table, mtu).subnets]


def test_nothing_known_changes_nothing() -> None:
    """Without paths a table stays the very same one."""
    assert Paths().narrow(TABLE, 1450) is TABLE
    assert (Paths().due(1e9), Paths().of(IP1)) == (set(), None)


def test_each_peer_has_its_own() -> None:
    """The path of one peer is nothing to the others; one that takes enough is nothing at all."""
    paths = Paths()
    assert paths.learn(IP1, told(1300))
    assert mtus(paths) == [1250, 0]
    assert paths.learn(IP2, told(1400))
    assert mtus(paths) == [1250, 1350]
    paths.learn(IP2, told(1500))
    assert mtus(paths) == [1250, 0]
    paths.learn(IP2, told(9000))
    assert mtus(paths) == [1250, 0]
    assert mtus(paths, mtu=8950) == [1250, 0]


@pytest.mark.parametrize(
    ("encap", "peer", "version", "path", "expected", "is_forced"),
    [
        pytest.param(Encap.VXLAN, IP1, 4, 1300, 1250, False, id="vxlan"),
        pytest.param(Encap.VXLAN, IP1_6, 4, 1400, 1330, False, id="vxlan6"),
        pytest.param(Encap.VXLAN, IP1_6, 6, 1400, 1330, False, id="vxlan6-6"),
        pytest.param(Encap.IPIP, IP1, 4, 1300, 1280, False, id="ipip"),
        pytest.param(Encap.FLANNEL_UDP, IP1, 4, 1300, 1272, False, id="udp"),
        pytest.param(Encap.VXLAN, IP1, 4, 68, 576, True, id="case_101-tiny"),
        pytest.param(Encap.VXLAN, IP1, 4, 0, 576, True, id="case_101-none"),
        pytest.param(Encap.VXLAN, IP1, 4, 626, 576, False, id="floor"),
        pytest.param(Encap.VXLAN, IP1, 6, 1300, 1280, True, id="case_097-floor6"),
        pytest.param(Encap.VXLAN, IP1_6, 6, 1280, 1280, True, id="case_097-floor6-over-6"),
    ],
)
def test_inner_mtu(
    encap: Encap, peer: Address, version: int, path: int, expected: int, *, is_forced: bool
) -> None:
    """Pods get what the path takes less the outer headers, and never less than every host must take."""
    paths = Paths()
    paths.learn(peer, told(path))
    table = Table(subnets=(SubnetEntry(NET4 if version == 4 else NET6, 1, encap, peer, mac(1)),))
    assert mtus(paths, table) == [expected]
    assert paths.forced == ({peer} if is_forced else frozenset())


def test_families_of_a_peer_differ() -> None:
    """Subnets of one peer get what its address of their underlay takes."""
    six = SubnetEntry(NET6, 1, Encap.VXLAN, IP1_6, mac(1))
    table = Table(subnets=(ENTRY, six))
    paths = Paths()
    paths.learn(IP1_6, told(1400))
    assert mtus(paths, table, 1430) == [0, 1330]
    paths.learn(IP1, told(1000))
    assert mtus(paths, table, 1430) == [950, 1330]


def test_plain_routes_are_left_alone() -> None:
    """What goes by a plain route is no business of ours, nor is a subnet that takes less anyway."""
    paths = Paths()
    paths.learn(IP1, told(1300))
    assert mtus(paths, Table(subnets=(replace(ENTRY, is_direct=True),))) == [0]
    assert mtus(paths, Table(subnets=(replace(ENTRY, mtu=1200),))) == [1200]


def test_the_smallest_word_counts() -> None:
    """Of several that know a path the smallest one counts; when that one falls silent, the next."""
    paths = Paths()
    assert paths.learn(IP1, told(1400, ROUTE, None))
    assert paths.learn(IP1, told(1300, PROBE, 50.0))
    assert paths.learn(IP1, told(1350, ICMP, 60.0))
    assert paths.of(IP1) == told(1300, PROBE, 50.0)
    assert dict(paths) == {IP1: told(1300, PROBE, 50.0)}
    assert paths.expire(50.0)
    assert paths.of(IP1) == told(1350, ICMP, 60.0)
    assert paths.forget(IP1, ICMP)
    assert not paths.forget(IP1, ICMP, PROBE)
    assert paths.of(IP1) == told(1400, ROUTE, None)
    assert paths.forget(IP1)
    assert list(paths) == []


def test_what_is_said_again() -> None:
    """The same word again is no change, but holds longer; another one takes its place, also upward."""
    paths = Paths()
    paths.learn(IP1, told(1300, expires_s=10.0))
    assert not paths.learn(IP1, told(1300, expires_s=20.0))
    assert (paths.due(10.0), paths.due(20.0), paths.expire(10.0)) == (set(), {IP1}, [])
    assert paths.learn(IP1, told(1400, expires_s=30.0))
    assert mtus(paths) == [1350, 0]


def test_case_100_recovery() -> None:
    """A path that is over gives its peer the whole MTU back, at its time and not before."""
    paths = Paths()
    paths.learn(IP1, told(1300, expires_s=10.0))
    paths.learn(IP2, told(1300, ROUTE, None))
    assert (paths.expire(9.9), mtus(paths)) == ([], [1250, 1250])
    assert (paths.expire(10.0), mtus(paths)) == ([IP1], [0, 1250])
    assert paths.expire(1e9) == []


def test_each_source_expires_by_itself() -> None:
    """Only what was said by those who are asked for ends; the rest of it is due still."""
    paths = Paths()
    paths.learn(IP1, told(1300, ICMP, 10.0))
    paths.learn(IP1, told(1200, PROBE, 10.0))
    assert paths.expire(10.0, PROBE) == [IP1]
    assert (paths.due(10.0), paths.of(IP1)) == ({IP1}, told(1300, ICMP, 10.0))


def test_only_peers_are_kept() -> None:
    """What is said of others than peers takes no room."""
    paths = Paths()
    for n in range(100):
        paths.learn(IPv4Address(n), told(1300))
    paths.learn(IP1, told(1300))
    assert paths.keep({IP1, IP2})
    assert not paths.keep({IP1, IP2})
    assert dict(paths) == {IP1: told(1300)}


def test_case_101_alarm() -> None:
    """A path below 1280 bytes is told once in ten minutes, and a warning as long as it lasts."""
    paths = Paths()
    paths.learn(IP1, told(1280))
    assert (paths.alarms(0.0), paths.warnings()) == ([], ())
    paths.learn(IP1, told(552))
    assert paths.narrow(TABLE, 1450).subnets[0].mtu == 576
    (alarm,) = paths.alarms(0.0)
    assert alarm == (
        "path MTU of 192.0.2.1 is 552, a router says. Pods are told no less than 576 bytes (by IPv6 1280), "
        "so if that is true, what is larger is lost. If no link there is that small, somebody forges it"
    )
    assert paths.warnings() == (alarm,)
    assert paths.alarms(ALARM_S - 1) == []
    assert paths.alarms(ALARM_S) == [alarm]
    paths.forget(IP1)
    assert (paths.warnings(), paths.alarms(3 * ALARM_S)) == ((), [])


def test_small_is_not_too_small() -> None:
    """Nobody's pods are told more than their path takes if that is small but enough; it is an alarm still."""
    paths = Paths()
    paths.learn(IP1, told(1200))
    assert mtus(paths) == [1150, 0]
    assert paths.forced == frozenset()
    assert paths.warnings() == (
        "path MTU of 192.0.2.1 is 1200, a router says. If no link there is that small, somebody forges it",
    )


def test_case_097_too_small_for_ipv6_alone() -> None:
    """What IPv4 pods can live with may be too small for IPv6: then it is forced, and told."""
    paths = Paths()
    six = SubnetEntry(NET6, 1, Encap.VXLAN, IP1, mac(1))
    paths.learn(IP1, told(1300))
    assert mtus(paths, Table(subnets=(ENTRY, six))) == [1250, 1280]
    assert paths.forced == {IP1}
    assert len(paths.warnings()) == 1
    paths.narrow(Table(subnets=(ENTRY,)), 1450)
    assert (paths.forced, paths.warnings()) == (frozenset(), ())


def test_many_alarms_are_few() -> None:
    """However many paths are forged at once, one pass tells of ten, and so does status."""
    paths = Paths()
    for n in range(100):
        paths.learn(IPv6Address(n), told(600))
    assert len(paths.alarms(0.0)) == ALARMS_MAX
    assert len(paths.warnings()) == ALARMS_MAX + 1
    assert paths.warnings()[-1] == "and 90 more such paths"


def test_what_others_than_probes_say() -> None:
    """A probe is told what others say of a path, and nothing where only probes did."""
    paths = Paths()
    paths.learn(IP1, told(1300, PROBE))
    assert (paths.told(IP1), paths.told(IP2)) == (None, None)
    paths.learn(IP1, told(1400, ROUTE))
    paths.learn(IP1, told(1350, ICMP))
    assert paths.told(IP1) == 1350


def test_what_is_shown_of_a_node() -> None:
    """Of a node with several addresses the smallest path is shown, and nothing where nothing is known."""
    paths = Paths()
    paths.learn(IP2, told(1400))
    paths.learn(IP1_6, told(1300, ROUTE, None))
    assert paths.describe((IP1,), 0.0) is None
    assert paths.describe((IP1, IP2), 100.0) == {"mtu": 1400, "source": ICMP, "expires_in_s": 500.0}
    assert paths.describe((IP2, IP1_6), 0.0) == {"mtu": 1300, "source": ROUTE, "expires_in_s": None}


def test_only_known_tunnels_are_forced() -> None:
    """A plain route forces nobody to anything, nor does a path of which nothing is said, however small."""
    paths = Paths()
    paths.learn(IP1, told(68))
    small = Table(subnets=(replace(ENTRY, is_direct=True), replace(OTHER, mtu=500)))
    assert mtus(paths, small) == [0, 500]
    assert paths.forced == frozenset()
    assert mtus(paths) == [576, 0]
    assert paths.forced == {IP1}
