# SPDX-License-Identifier: Apache-2.0
"""Path MTU: what routers say reaches the pods, what they do not say does not, and it ends (pathlab.py)."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from bench.figures import figure
from bench.lab import wait_for
from tests.e2e.pathlab import SAID_S, PathLab
from tests.e2e.rig import risen
from tests.e2e.stream import Stream

MTU = 1430  # of a's pods: VXLAN over IPv6 leaves that
OVERHEAD = {"b": 70, "c": 50}  # of what a sends there
STALL_S = 1.0
THRICE = ("-c", "3", "-i", "0.6", "-M", "do")  # what the first is told of is in force before the second


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PathLab]:
    """Yield nodes that talk VXLAN."""
    flags = {"a": (), "b": (), "c": (), "k": ("--datapath", "kernel")}
    built = PathLab(tmp_path_factory.mktemp("paths"), {"Type": "vxlan"}, flags, MTU)
    try:
        for way in ("ab", "ac", "ak"):
            for family in (4, 6):
                built.wait_passes(way, family, MTU)
        yield built
    finally:
        built.close()


@pytest.fixture(autouse=True)
def wide(request: pytest.FixtureRequest) -> Iterator[None]:
    """End each test with paths that take all they can."""
    yield
    if "paths" in request.fixturenames:
        request.getfixturevalue("paths").widen()


FAMILIES = [pytest.param("c", 4, id="v4-over-4"), pytest.param("b", 6, id="v6-over-6")]


@pytest.mark.parametrize(("peer", "family"), FAMILIES)
def test_case_096_router_lowers_the_path(paths: PathLab, peer: str, family: int) -> None:
    """Of packets too large for the path the second is answered: what the path takes, less our headers."""
    path = 1300 + OVERHEAD[peer] if family == 6 else 1300
    expected = path - OVERHEAD[peer]
    paths.narrow(peer, path)
    said = paths.ping(f"a{peer}", family, MTU, *THRICE)
    first = re.search(r"icmp_seq=(\d+) (?:Frag needed and DF set \(mtu = |Packet too big: mtu=)(\d+)", said)
    assert first is not None, said
    assert (int(first[1]), int(first[2])) == (2, expected)
    assert paths.told(f"a{peer}", family) == expected
    assert paths.passes(f"a{peer}", family, expected)
    (found,) = paths.paths().items()
    assert (found[0], found[1]["mtu"], found[1]["source"]) == (peer, path, "icmp")
    assert 500 < found[1]["expires_in_s"] <= 600
    assert any("dev overlay0" in line and f"mtu {expected}" in line for line in paths.routes())
    shown = paths.daemons["a"].command("peers")
    assert f"path MTU {path} (icmp)" in paths.nodes["a"].host.run(*shown[4:]).stdout


@pytest.mark.alone
@pytest.mark.parametrize(("peer", "family"), FAMILIES)
def test_case_096_tcp_goes_on(paths: PathLab, peer: str, family: int) -> None:
    """A path that shrinks under a bulk TCP connection, super-packets and all, stalls it under a second."""
    daemon = paths.daemons["a"]
    a, there = paths.nodes["a"], paths.nodes[peer]
    with Stream(a.pod, there.pod, paths.pod_of(peer, family)) as stream:
        usual_s = stream.longest_s()
        supers = daemon.counters.totals().supers
        paths.narrow(peer, 1300 if family == 4 else 1400)
        wait_for(lambda: paths.told(f"a{peer}", family), "the pod is told", SAID_S)
        stalled_s = stream.longest_s()
        figure("longest round before", [usual_s], "s", f"IPv{family}")
        figure("longest round meanwhile", [stalled_s], "s", f"IPv{family}")
        assert daemon.counters.totals().supers > supers
    assert stalled_s < STALL_S


def test_case_099_df_clear_is_cut(paths: PathLab) -> None:
    """IPv4 packets that may be cut are cut before they come to us, and arrive; nobody is told anything."""
    paths.narrow("c", 1300)
    paths.ping("ac", 4, MTU)
    wait_for(paths.routes, "the path is known", SAID_S)
    before = paths.daemons["a"].settled()
    assert " 0% packet loss" in paths.ping("ac", 4, MTU, "-c", "2", "-i", "0.1", "-M", "dont")
    assert risen(before, paths.daemons["a"].settled()) == {}


def test_case_100_recovery(paths: PathLab) -> None:
    """What a router said ends by itself: pods get the whole MTU back, and all that was set up is gone."""
    spaces = [paths.nodes["a"].host, paths.nodes["a"].pod]
    for space in spaces:
        space.run("sysctl", "-qw", "net.ipv4.route.mtu_expires=2")
    try:
        paths.narrow("c", 1300)
        paths.ping("ac", 4, MTU)
        wait_for(lambda: "c" in paths.paths(), "the path is known", SAID_S)
        paths.narrow("c", None)
        wait_for(lambda: paths.passes("ac", 4, MTU), "whole packets pass again", SAID_S)
        assert (paths.paths(), paths.routes()) == ({}, [])
    finally:
        for space in spaces:
            space.run("sysctl", "-qw", "net.ipv4.route.mtu_expires=600")


def test_route_change(paths: PathLab) -> None:
    """When the way to a peer changes, what was learned of the old one ends at once."""
    for mtu in (1300, 1350):
        paths.narrow("c", mtu)
        paths.ping("ac", 4, MTU)
        wait_for(lambda: "c" in paths.paths(), "the path is known", SAID_S)
        assert paths.paths()["c"]["mtu"] == mtu
        paths.narrow("c", None)
        paths.forget()
        assert paths.passes("ac", 4, MTU)
    node = paths.nodes["a"]
    way = f"{paths.nodes['c'].address}/32 via {node.gateway} dev under0"
    node.host.ip(f"route add {way} mtu 1320\n")
    paths.ping("ac", 4, MTU)
    wait_for(lambda: "c" in paths.paths(), "what somebody set up is known", SAID_S)
    assert (paths.paths()["c"]["mtu"], paths.paths()["c"]["source"]) == (1320, "route")
    wait_for(paths.routes, "it is in force", SAID_S)
    assert paths.ping("ac", 4, MTU).count("1270") == 1
    node.host.ip(f"route del {way}\n")
    wait_for(lambda: not paths.paths(), "and that it is no more", SAID_S)


FORGED = [
    pytest.param("c", 4, 68, 552, {4: 576, 6: 1280}, id="v4"),
    pytest.param("b", 6, 1280, 1280, {4: 1210, 6: 1280}, id="v6"),
]


@pytest.mark.parametrize(("peer", "family", "said", "believed", "least"), FORGED)
def test_case_101_forged(
    paths: PathLab, peer: str, family: int, said: int, believed: int, least: dict[int, int]
) -> None:
    """A stranger who forges a tiny MTU is suspected, and what every host must take passes all the same."""
    daemon, way = paths.daemons["a"], f"a{peer}"
    paths.forge(peer, family, said)
    wait_for(paths.routes, "the kernel believes it", SAID_S)
    assert paths.paths()[peer]["mtu"] == believed
    (warning,) = (line for line in daemon.status()["warnings"] if "path MTU" in line)
    assert f"is {believed}, a router says" in warning
    assert "somebody forges it" in warning
    assert daemon.log().count(f"path MTU of {paths.node_of(peer, family)} is ") == 1
    for other, size in least.items():
        paths.wait_passes(way, other, size)
    paths.wait_told(way, family, MTU, least[family])
    paths.forget()
    paths.wait_passes(way, family, MTU)
    paths.narrow(peer, 1400)  # the kernel is believed again
    paths.wait_told(way, family, MTU, 1400 - OVERHEAD[peer])


def test_kernel_datapath_by_itself(paths: PathLab) -> None:
    """On the kernel datapath a large packet crosses a smaller path, or its sender is told, without us."""
    paths.narrow("a", 1300)
    said = paths.ping("ka", 4, MTU, *THRICE)
    assert " 0% packet loss" in said or "mtu = 1250" in said, said
    assert paths.passes("ka", 4, 1250)


def test_case_102_underlay_changes(paths: PathLab) -> None:
    """Jumbo frames work end to end as soon as the links have them, and peers may have other MTUs.

    With 4000 and 5000 bytes as in the kernel's own tests (pmtu_ipv4_vxlan4_exception and its three likes): a
    pod's kernel must have an exception of the smallest link, less our headers.
    """
    a, b, c = (paths.nodes[name] for name in "abc")
    for name in ("a", "c"):
        paths.set_link(name, 9000)
    for family in (4, 6):
        assert paths.passes("ac", family, 8930)
        paths.ping("ab", family, 8930, *THRICE)
        assert paths.told("ab", family) == MTU
        assert paths.passes("ab", family, MTU)
    supers = paths.daemons["a"].counters.totals().supers
    with Stream(a.pod, c.pod, c.pod_ip()) as jumbo, Stream(a.pod, b.pod, b.pod_ip6) as usual:
        assert max(jumbo.longest_s(), usual.longest_s()) < STALL_S
    assert paths.daemons["a"].counters.totals().supers > supers
    for name, mtu in (("a", 5000), ("b", 4000), ("c", 4000)):
        paths.set_link(name, mtu)
    paths.forget()
    for peer, headers in OVERHEAD.items():
        for family in (4, 6):
            paths.ping(f"a{peer}", family, 4500, *THRICE)
            assert paths.told(f"a{peer}", family) == 4000 - headers
    for name in ("a", "b", "c"):
        paths.set_link(name, 1400)
    paths.forget()
    for way in ("ab", "ac"):
        for family in (4, 6):
            paths.wait_passes(way, family, 1330)
    for name in ("a", "b", "c"):
        paths.set_link(name, 1500)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PathLab]:
    """Yield nodes that talk IPIP."""
    built = PathLab(tmp_path_factory.mktemp("plain"), {"Type": "ipip"}, {"a": (), "c": ()}, 1480)
    try:
        built.wait_passes("ac", 4, 1480)
        yield built
    finally:
        built.close()


def test_case_095_ipip(plain: PathLab) -> None:
    """IPIP takes 1480 bytes of 1500, and of packets too large for a smaller path the second is answered."""
    assert plain.passes("ac", 4, 1480)
    assert "message too long" in plain.ping("ac", 4, 1481).lower()
    plain.narrow("c", 1300)
    said = plain.ping("ac", 4, 1480, *THRICE)
    assert "icmp_seq=2 Frag needed and DF set (mtu = 1280)" in said, said
    assert plain.passes("ac", 4, 1280)


def test_cleanup(plain: PathLab) -> None:
    """A node that goes down while smaller paths are known leaves none of them behind, nor what hung on them.

    As pmtu.sh's cleanup_ipv4_exception: the device goes at once, though routes of it had exceptions.
    """
    host, daemon = plain.nodes["a"].host, plain.daemons["a"]
    plain.narrow("c", 1300)
    plain.ping("ac", 4, 1480, *THRICE)
    wait_for(plain.routes, "the path is known", SAID_S)
    assert plain.told("ac", 4) == 1280
    daemon.stop()
    host.run(*daemon.command("down")[4:], timeout_s=10.0)
    assert plain.routes() == []
    for shown in (("link",), ("route", "show", "table", "all"), ("route", "show", "cache"), ("rule",)):
        assert "overlay0" not in host.run("ip", *shown).stdout
    assert " mtu " not in host.run("ip", "route", "get", plain.pod_of("c", 4)).stdout
