# SPDX-License-Identifier: Apache-2.0
"""flannel's case "multi": several daemons on a host, each with a network, a device and routes of its own.

The original is in functional/etcd_test.go, "multi (vxlan+host-gw dual networks)". The rest is ours: none of
them touches what is another's, and what two cannot share is refused.

The host's part alone is tried on two TUN devices in one namespace; whole daemons on a site (see site.py).
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from bench.lab import Namespace, wait_for
from dataplane.netlink import UNREACHABLE_METRIC, unreachable_metric
from tests.e2e.rig import ROOT, START_S, risen
from tests.e2e.site import Member, Overlay, Running, Site, SiteDaemon, can_ping
from tests.e2e.test_host import APPLY, REMOVE, do, space, tun

__all__ = ["space", "tun"]  # fixtures

OTHER = """HostPlan(
    "overlay1",
    1400,
    (IPv4Address("10.12.1.0"), IPv6Address("fd00:12:0:1::")),
    (IPv4Network("10.12.0.0/16"), IPv6Network("fd00:12::/48")),
)"""
OTHER_NOW = 'HostPlan("overlay1", 1400, (IPv4Address("10.13.1.0"),), (IPv4Network("10.13.0.0/16"),))'


def vxlan(name: str, net: str, *flags: str, vni: int = 1, port: int = 8472) -> Overlay:
    """Return a VXLAN network of a site."""
    return Overlay(name, {"Network": net, "Backend": {"Type": "vxlan", "VNI": vni, "Port": port}}, flags)


# --- the host's part ----------------------------------------------------------------------------------------


def test_metrics_tell_whose() -> None:
    """Unreachable routes of two daemons have different metrics, behind all others."""
    names = ["overlay0", "overlay1", "over-vx", "a", "b" * 15]
    metrics = [unreachable_metric(name) for name in names]
    assert metrics[0] == UNREACHABLE_METRIC
    assert len(set(metrics)) == len(names)
    assert all(UNREACHABLE_METRIC <= metric < 1 << 32 for metric in metrics)


def look(space: Namespace) -> list[str]:
    """Return the devices with their addresses and all routes, without what comes and goes by itself."""
    devices = space.run("ip", "-br", "addr").stdout.splitlines()
    lines = [re.sub(r" (UNKNOWN|UP|DOWN)|fe80::\S+", "", line) for line in devices]
    for family in ("-4", "-6"):
        shown = space.run("ip", family, "route", "show", "table", "all").stdout
        lines += [line for line in shown.splitlines() if "fe80::" not in line and "ff00::" not in line]
    return sorted(" ".join(line.replace(" linkdown", "").split()) for line in lines)


def own_routes(space: Namespace) -> list[str]:
    """Return the routes that daemons have made."""
    lines: list[str] = []
    for protocol in ("111", "112"):
        for family in ("-4", "-6"):
            lines += space.run("ip", family, "route", "show", "proto", protocol).stdout.splitlines()
    return sorted(" ".join(line.split()) for line in lines)


def routes_of(space: Namespace, network: str) -> list[str]:
    """Return the routes of our protocol to a network."""
    return [line for line in own_routes(space) if network in line]


def test_plans_side_by_side(tun: Namespace) -> None:
    """Setting up, changing, putting right and removing one plan touches nothing of the other."""
    do(tun, APPLY)
    before = look(tun)
    tun.ip("tuntap add overlay1 mode tun\n")
    do(tun, f"await host.apply({OTHER})")
    ours = (routes_of(tun, "10.244.0.0/16"), routes_of(tun, "fd00:244::/48"))
    assert [len(routes) for routes in ours] == [2, 2]
    assert do(tun, APPLY) == [[]]
    do(tun, f"await host.apply({OTHER_NOW})")
    assert [len(routes_of(tun, net)) for net in ("10.12.0.0/16", "fd00:12::/48", "10.13.0.0/16")] == [0, 0, 2]
    assert (routes_of(tun, "10.244.0.0/16"), routes_of(tun, "fd00:244::/48")) == ours
    tun.ip("route flush 10.13.0.0/16\n")
    assert do(tun, APPLY) == [[]]
    assert len(routes_of(tun, "10.13.0.0/16")) == 0
    do(tun, f"await host.apply({OTHER_NOW})", 'await host.remove("overlay1")')
    assert look(tun) == before
    assert do(tun, APPLY) == [[]]


@pytest.mark.soak
def test_removal_leaves_the_other(tun: Namespace) -> None:
    """Removing one leaves device, addresses and routes of the other, with and without its device."""
    do(tun, APPLY)
    before = look(tun)
    for gone in ("", "link del overlay1\n"):
        tun.ip("tuntap add overlay1 mode tun\n")
        do(tun, f"await host.apply({OTHER})")
        tun.ip(gone)
        do(tun, 'await host.remove("overlay1")')
        assert look(tun) == before
    assert len(do(tun, REMOVE)[0]) == 3
    assert [line for line in own_routes(tun) if "244" in line] == []


PROBE = """
import asyncio, json
from dataplane.netlink import Host

async def look():
    host = Host()
    try:
        return [await host.vxlan_obstacle() for _ in range(20)]
    finally:
        await host.close()

async def main():
    return await asyncio.gather(*(look() for _ in range(4)))

print(json.dumps(sum(asyncio.run(main()), [])))
"""


def test_probes_at_the_same_time(space: Namespace) -> None:
    """Daemons that look at once whether the kernel has VXLAN all find it, and leave no device behind."""
    space.ip("link add ovl-probe type vxlan id 16777214 dstport 9\n")  # one was interrupted
    found = json.loads(space.run(sys.executable, "-c", PROBE).stdout)
    assert found == [None] * 80
    assert "ovl-probe" not in space.run("ip", "link").stdout


# --- whole daemons ------------------------------------------------------------------------------------------

FIRST = vxlan("one", "10.11.0.0/16")
SECOND = Overlay("two", {"Network": "10.12.0.0/16", "Backend": {"Type": "host-gw"}})
THIRD = Overlay("three", {"Network": "10.13.0.0/16", "Backend": {"Type": "ipip"}})
NETWORKS = (FIRST, SECOND, THIRD)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Yield the site; nothing runs there yet."""
    built = Site(tmp_path_factory.mktemp("site"), "several")
    yield built
    built.close()


@pytest.fixture(scope="module")
def running(site: Site) -> Iterator[Running]:
    """Yield the networks, on both hosts."""
    with site.run(*NETWORKS) as running:
        yield running


def is_connected(running: Running, name: str) -> bool:
    """Tell whether the pods of a network reach each other."""
    near, far = running.pair(name)
    return can_ping(near.pod, near.pod_ip[4], far.pod_ip[4])


def others(member: Member) -> list[str]:
    """Return what a host has but for what belongs to a daemon."""
    tun = member.daemon.overlay.tun
    net = member.daemon.env()["FLANNEL_NETWORK"].removesuffix("0.0/16")
    return [line for line in look(member.host) if tun not in line and net not in line]


def test_multi_right_interface(running: Running) -> None:
    """Theirs, "routes traffic over the correct backend": each network answers, and nothing is dropped."""
    before = running.totals()
    for name in [overlay.name for overlay in NETWORKS]:
        near, far = running.pair(name)
        assert can_ping(near.host, near.own[4], far.own[4])
        assert can_ping(far.host, far.own[4], near.own[4])
        assert can_ping(near.pod, near.pod_ip[4], far.pod_ip[4])
        done = far.host.run("ping", "-n", "-q", "-c", "3", "-i", "0.05", "-W", "2", near.own[4])
        assert " 0% packet loss" in done.stdout
    for was, now in zip(before, running.totals(), strict=True):
        assert risen(was, now) == {}


@pytest.mark.parametrize(
    ("device", "target"), [(FIRST.tun, SECOND.name), (THIRD.tun, FIRST.name), ("under0", FIRST.name)]
)
def test_multi_wrong_interface(running: Running, device: str, target: str) -> None:
    """Theirs, "wrong-interface pings should fail": what leaves by another device does not come there."""
    near, far = running.pair(target)
    assert not can_ping(near.host, device, far.own[4], 1, 1.0)
    assert can_ping(near.host, near.own[4], far.own[4])


def test_multi_wrong_source(running: Running) -> None:
    """Not theirs: with an address of one network as source, packets to the other are dropped as forged."""
    near, far = running.pair(FIRST.name)
    stranger = running.members[SECOND.name, "a"].own[4]
    before = far.daemon.settled_if_ours()
    assert not can_ping(near.host, stranger, far.own[4], 1, 1.0)
    after = far.daemon.settled_if_ours()
    assert before is not None
    assert after is not None
    assert risen(before, after) == {"spoofed": 1}
    assert can_ping(near.host, near.own[4], far.own[4])


@pytest.mark.parametrize("name", [SECOND.name, THIRD.name])
def test_restart_and_down_of_one(running: Running, name: str) -> None:
    """One is ended, taken down and started again: the others lose neither route nor packet nor peace."""
    member = running.members[name, "a"]
    kept = [running.members[overlay.name, "a"].daemon for overlay in NETWORKS if overlay.name != name]
    before, counted = others(member), [daemon.settled_if_ours() for daemon in kept]
    member.daemon.stop()
    member.daemon.start()
    assert others(member) == before
    member.daemon.stop()
    member.daemon.down()
    assert others(member) == before
    assert [line for line in look(member.host) if member.daemon.overlay.tun in line] == []
    assert all(is_connected(running, daemon.overlay.name) for daemon in kept)
    member.daemon.start()
    wait_for(lambda: is_connected(running, name), "its network again", START_S)
    assert others(member) == before
    for was, now in zip(counted, [daemon.settled_if_ours() for daemon in kept], strict=True):
        assert was is None or (now is not None and risen(was, now) == {})
    assert [daemon.status()["warnings"] for daemon in kept] == [[]] * len(kept)


@pytest.mark.parametrize(("name", "backend"), [(SECOND.name, "host-gw"), (THIRD.name, "ipip")])
def test_network_and_device_of_one_change(site: Site, running: Running, name: str, backend: str) -> None:
    """With another network and another name since its last run, one leaves nothing of its former self."""
    host, daemon = site.hosts["a"], running.members[name, "a"].daemon
    former, net = daemon.overlay, daemon.env()["FLANNEL_NETWORK"].removesuffix("0.0/16")
    kept = [line for line in own_routes(host) if net not in line]
    assert len(kept) == 4
    daemon.stop()
    daemon.overlay = Overlay("moved", {"Network": "10.14.0.0/16", "Backend": {"Type": backend}})
    site.put_config(daemon.overlay)
    daemon.start()
    assert [line for line in own_routes(host) if "10.14." not in line] == kept
    assert former.tun not in host.run("ip", "link").stdout + host.run("nft", "list", "tables").stdout
    daemon.stop()
    daemon.overlay = former
    daemon.start()
    wait_for(lambda: is_connected(running, name), "its network again", START_S)
    assert [line for line in own_routes(host) if net not in line] == kept


# --- what cannot be shared ----------------------------------------------------------------------------------


def words(site: Site, prefix: str) -> list[str]:
    """Return keys and values of a network in the store."""
    return site.etcd.ctl("get", "--prefix", prefix).splitlines()


def refused(site: Site, overlay: Overlay, *flags: str) -> str:
    """Start a daemon that must not come to work; return its last words. Nothing of it may stay."""
    host = site.hosts["a"]
    before, kept = look(host), words(site, "/")
    site.put_config(overlay)
    daemon = SiteDaemon(site, "a", overlay)
    command = daemon.run_command()
    for flag, value in zip(flags[::2], flags[1::2], strict=True):
        if flag in command:
            place = command.index(flag)
            del command[place : place + 2]
        command += [flag, value]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=START_S)
    assert done.returncode == 1, done.stderr
    site.etcd.ctl("del", f"{overlay.prefix}/config")
    assert words(site, "/") == kept
    assert look(host) == before
    shutil.rmtree(daemon.directory)
    return done.stderr.splitlines()[-1].removeprefix("overlayd: ")


NEW = vxlan("new", "10.15.0.0/16", vni=3, port=8474)
HELD = r"UDP port 8472 is held by another process \(.*\). Stop it, or choose another Port"
CLASHES: dict[str, tuple[Overlay, Callable[[SiteDaemon], list[str]], str]] = {
    "port, other VNI": (vxlan("new", "10.15.0.0/16", vni=3), lambda first: [], HELD),
    "port, kernel": (
        vxlan("new", "10.15.0.0/16", "--datapath", "kernel", vni=3),
        lambda first: [],
        HELD,
    ),
    "prefix": (NEW, lambda first: ["--etcd-prefix", FIRST.prefix], HELD),
    "device": (
        NEW,
        lambda first: ["--tun-name", FIRST.tun],
        f"TUN device {FIRST.tun} is held by another process. Stop it, or choose another --tun-name",
    ),
    "run directory": (
        NEW,
        lambda first: ["--run-dir", str(first.run_dir)],
        r"another overlayd run \(pid \d+\) owns /.*/one-a/run",
    ),
    "subnet file": (
        NEW,
        lambda first: ["--subnet-file", str(first.subnet_file)],
        r"another overlayd run \(pid \d+\) writes /.*/one-a/subnet.env. Choose another --subnet-file",
    ),
}


@pytest.mark.parametrize("clash", CLASHES)
def test_clash_is_refused(site: Site, running: Running, clash: str) -> None:
    """What two daemons cannot share is refused in one line; host, store and the first are as before."""
    overlay, flags, expected = CLASHES[clash]
    first = running.members["one", "a"].daemon
    assert re.fullmatch(expected, refused(site, overlay, *flags(first)))
    assert is_connected(running, "one")
    wait_for(lambda: first.status()["reason"] == "ok", "the first is at ease", START_S)


@pytest.mark.soak
def test_kernel_devices_of_two(site: Site) -> None:
    """Kernel devices share a port if their VNIs differ; else the second is told whose port it is."""
    kernel = ("--datapath", "kernel")
    one, two = (vxlan(f"k{n}", f"10.3{n}.0.0/16", *kernel, vni=n, port=8480) for n in (1, 2))
    device = r"UDP port 8480 is held by kernel device over-k1.1 \(vni 1\). Stop .*, or choose another Port"
    with site.run(one) as running:
        for flags, vni in ((kernel, 1), ((), 3)):
            clash = vxlan("new", "10.15.0.0/16", *flags, vni=vni, port=8480)
            assert re.fullmatch(device, refused(site, clash))
        first, second = running.members["k1", "a"], SiteDaemon(site, "a", two)
        before = others(first)
        site.put_config(two)
        try:
            second.start()
            assert second.status()["warnings"] == []
            assert is_connected(running, "k1")
        finally:
            second.close()
        assert is_connected(running, "k1")
        assert others(first) == before
