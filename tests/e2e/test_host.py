# SPDX-License-Identifier: Apache-2.0
"""The host's network by netlink: exactly what is planned, said once, and nothing of anybody else's.

host namespace
overlay0 (TUN)      what Host sets up and removes
under0 192.0.2.1    what it must not touch, with routes and addresses of others
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from bench.lab import Namespace, wait_for
from tests.e2e import warm

PLAN = """HostPlan(
    "overlay0",
    1450,
    (IPv4Address("10.244.1.0"), IPv6Address("fd00:244:0:1::")),
    (IPv4Network("10.244.0.0/16"), IPv6Network("fd00:244::/48")),
)"""
PLAN4 = 'HostPlan("overlay0", 1400, (IPv4Address("10.244.2.0"),), (IPv4Network("10.0.0.0/8"),))'
EVERY_GROUP = 0x7FFFFFFF  # of netlink: links, neighbours, queues, addresses, routes, rules
APPLY, REMOVE = f"await host.apply({PLAN})", 'await host.remove("overlay0")'

SCRIPT = """
import asyncio, json
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from dataplane.errors import OverlaydError
from dataplane.model import HostPlan
from dataplane.netlink import Host

async def main():
    host = Host()
    try:
        return [{steps}]
    except OverlaydError as err:
        return f"{{type(err).__name__}}: {{err}}"
    finally:
        await host.close()

print(json.dumps(asyncio.run(main()), default=str))
"""


@pytest.fixture
def space() -> Iterator[Namespace]:
    """Yield a host with an underlay and a TUN, which has no addresses yet."""
    with closing(Namespace(f"host{os.getpid() % 100000}")) as space:
        space.run("sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0", "net.ipv6.conf.all.accept_dad=0")
        space.ip(
            "link set lo up\nlink add under0 type veth peer name far0\nlink set under0 up\nlink set far0 up\n"
            "addr add 192.0.2.1/24 dev under0\naddr add 2001:db8::1/64 dev under0 nodad\n"
            "route add 10.99.0.0/16 via 192.0.2.9\nroute add unreachable 10.98.0.0/16 metric 4278190080\n"
            "route add 10.97.0.0/16 via 192.0.2.9 proto 112\nroute add 2001:db8:9::/48 via 2001:db8::9\n"
        )
        yield space


@pytest.fixture
def tun(space: Namespace) -> Namespace:
    """Give the host a TUN."""
    space.ip("tuntap add overlay0 mode tun\n")
    return space


def do(space: Namespace, *steps: str) -> Any:
    """Let a Host do this in a namespace; return what each step returned, or the error."""
    done = warm.python(space, SCRIPT.format(steps=", ".join(steps)))
    assert done.stderr == ""
    return json.loads(done.stdout)


def show(space: Namespace, *args: str) -> Any:
    """Return what `ip` shows, as values."""
    return json.loads(space.run("ip", "-j", *args).stdout)


def is_settled(link: Any) -> bool:
    """Tell whether a link shows its final state: the kernel follows its carrier a moment later."""
    if link["operstate"] != "UP":
        return bool(link["ifname"] == "lo" or link["operstate"] == "DOWN")
    infos = [info for info in link["addr_info"] if info["scope"] == "link"]
    return bool(infos) and not any(info.get("tentative") for info in infos)


def settle(space: Namespace) -> None:
    """Wait until every link shows its final state."""
    wait_for(lambda: all(map(is_settled, show(space, "addr"))), "links have settled")


def snapshot(space: Namespace) -> list[list[str]]:
    """Return all links, addresses and routes, in no order: the kernel lists what is newer later."""
    settle(space)
    routes = ("route", "show", "table", "all")
    tables = [show(space, *args) for args in (("link",), ("addr",), ("-4", *routes), ("-6", *routes))]
    return [sorted(json.dumps(line, sort_keys=True) for line in table) for table in tables]


def own_addresses(space: Namespace, device: str = "overlay0") -> list[str]:
    """Return the addresses of a device that are no link-local ones."""
    (link,) = show(space, "addr", "show", "dev", device)
    infos = [info for info in link["addr_info"] if info["scope"] != "link"]
    return [f"{info['local']}/{info['prefixlen']}" for info in infos]


def own_routes(space: Namespace) -> list[str]:
    """Return the routes of our protocol."""
    lines: list[str] = []
    for family in ("-4", "-6"):
        lines += space.run("ip", family, "route", "show", "proto", "111").stdout.splitlines()
    return [" ".join(line.split()) for line in lines]


# --- apply() --------------------------------------------------------------------------------------------


def test_apply(tun: Namespace) -> None:
    """The device gets the planned MTU, addresses and routes, and the settings it needs."""
    changed, again = do(tun, APPLY, APPLY)
    assert sorted(changed) == sorted(
        [
            "overlay0 mtu 1450",
            "overlay0 txqueuelen 4096",
            "overlay0 qdisc noqueue",
            *(line for line in changed if line.startswith("net.")),
            "overlay0 up",
            "overlay0 10.244.1.0/32",
            "overlay0 fd00:244:0:1::/128",
            *("route 10.244.0.0/16 unreachable", "route 10.244.0.0/16 overlay0"),
            *("route fd00:244::/48 unreachable", "route fd00:244::/48 overlay0"),
        ]
    )
    assert again == []
    (link,) = show(tun, "link", "show", "dev", "overlay0")
    assert (link["mtu"], link["txqlen"], link["qdisc"]) == (1450, 4096, "noqueue")
    assert "UP" in link["flags"]
    assert own_addresses(tun) == ["10.244.1.0/32", "fd00:244:0:1::/128"]
    # A TUN that no process holds has no carrier, so the kernel says linkdown.
    assert [line.replace(" linkdown", "") for line in own_routes(tun)] == [
        "10.244.0.0/16 dev overlay0 scope link src 10.244.1.0",
        "unreachable 10.244.0.0/16 metric 4278190080",
        "fd00:244::/48 dev overlay0 src fd00:244:0:1:: metric 1024 pref medium",
        "unreachable fd00:244::/48 dev lo metric 4278190080 pref medium",
    ]
    settings = (
        "ipv4.conf.overlay0.rp_filter",
        "ipv6.conf.overlay0.accept_ra",
        "ipv6.conf.overlay0.addr_gen_mode",
        "ipv6.conf.overlay0.disable_ipv6",
    )
    read = tun.run("sysctl", "-n", *(f"net.{name}" for name in settings)).stdout.split()
    assert read == ["2", "0", "1", "0"]


def test_apply_by_another_process(tun: Namespace) -> None:
    """What a process set up is as it must be for the next: nothing is written twice."""
    do(tun, APPLY)
    before = snapshot(tun)
    with tun.socket(socket.AF_NETLINK, socket.SOCK_RAW) as told:
        told.bind((0, EVERY_GROUP))
        assert do(tun, APPLY) == [[]]
        # The kernel tells of changes before it answers who made them.
        with pytest.raises(BlockingIOError):
            told.recv(1 << 16, socket.MSG_DONTWAIT)
        do(tun, f"await host.apply({PLAN4})")
        assert told.recv(1 << 16, socket.MSG_DONTWAIT)
    do(tun, APPLY)
    assert snapshot(tun) == before


@pytest.mark.parametrize(
    ("damage", "repaired"),
    [
        pytest.param("link set overlay0 mtu 1300", ["overlay0 mtu 1450"], id="mtu"),
        pytest.param("link set overlay0 txqueuelen 10", ["overlay0 txqueuelen 4096"], id="queue"),
        pytest.param(
            "addr del 10.244.1.0/32 dev overlay0",
            ["overlay0 10.244.1.0/32", "route 10.244.0.0/16 overlay0"],
            id="address gone, and its route with it",
        ),
        pytest.param(
            "addr add 10.244.1.7/24 dev overlay0", ["overlay0 without 10.244.1.7/24"], id="address too many"
        ),
        pytest.param(
            "route del 10.244.0.0/16 dev overlay0", ["route 10.244.0.0/16 overlay0"], id="route gone"
        ),
        pytest.param(
            "route del unreachable 10.244.0.0/16 metric 4278190080",
            ["route 10.244.0.0/16 unreachable"],
            id="unreachable route gone",
        ),
        pytest.param(
            "route del fd00:244::/48 dev overlay0", ["route fd00:244::/48 overlay0"], id="IPv6 route gone"
        ),
        pytest.param(
            "route add 10.50.0.0/16 dev overlay0 proto 111", ["no route 10.50.0.0/16"], id="stale route"
        ),
        pytest.param(
            "route add unreachable 10.51.0.0/16 metric 4278190080 proto 111",
            ["no route 10.51.0.0/16"],
            id="stale unreachable route",
        ),
        pytest.param(
            "route add fd00:50::/48 dev overlay0 proto 111",
            ["no route fd00:50::/48"],
            id="stale IPv6 route",
        ),
        pytest.param(
            "route replace 10.244.0.0/16 via 192.0.2.9 proto 111",
            ["route 10.244.0.0/16 overlay0"],
            id="route elsewhere",
        ),
        pytest.param(
            "route add 10.244.0.0/16 dev overlay0 src 10.244.1.0 metric 9 proto 111",
            ["no route 10.244.0.0/16"],
            id="other metric",
        ),
    ],
)
def test_repair(tun: Namespace, damage: str, repaired: list[str]) -> None:
    """Whatever somebody changed of ours is put right, and only that."""
    do(tun, APPLY)
    before = snapshot(tun)
    tun.ip(damage + "\n")
    assert snapshot(tun) != before
    assert do(tun, APPLY) == [repaired]
    assert do(tun, APPLY) == [[]]
    assert snapshot(tun) == before


def test_another_plan(tun: Namespace) -> None:
    """A new plan replaces the old one whole."""
    do(tun, APPLY)
    do(tun, f"await host.apply({PLAN4})")
    assert own_addresses(tun) == ["10.244.2.0/32"]
    assert [line.replace(" linkdown", "") for line in own_routes(tun)] == [
        "10.0.0.0/8 dev overlay0 scope link src 10.244.2.0",
        "unreachable 10.0.0.0/8 metric 4278190080",
    ]
    assert show(tun, "link", "show", "dev", "overlay0")[0]["mtu"] == 1400
    assert tun.run("sysctl", "-n", "net.ipv6.conf.overlay0.disable_ipv6").stdout.strip() == "1"


def test_others_are_left_alone(tun: Namespace) -> None:
    """Links, addresses and routes of others are as they were, through set-up, change and removal."""

    def others() -> list[list[str]]:
        return [
            [line for line in table if "overlay0" not in line and '"111"' not in line]
            for table in snapshot(tun)
        ]

    before = others()
    assert len(before[2]) > 4
    for step in (APPLY, f"await host.apply({PLAN4})", APPLY, REMOVE):
        do(tun, step)
        assert others() == before


def test_no_device(space: Namespace) -> None:
    """Without the device nothing is set up, and the error says which is gone."""
    before = snapshot(space)
    assert do(space, APPLY) == "RuntimeFailure: device overlay0 is gone"
    assert snapshot(space) == before


# --- remove() -------------------------------------------------------------------------------------------


def test_remove(space: Namespace) -> None:
    """After removal the host is as it was before; removing again is nothing."""
    before = snapshot(space)
    space.ip("tuntap add overlay0 mode tun\n")
    do(space, APPLY)
    assert sorted(*do(space, REMOVE)) == [
        "no overlay0",
        "no route 10.244.0.0/16",
        "no route fd00:244::/48",
    ]
    assert snapshot(space) == before
    assert do(space, REMOVE) == [[]]


@pytest.mark.parametrize(
    "made", ["link add overlay0 type bridge", "link add overlay0 type veth", "tuntap add overlay0 mode tap"]
)
def test_remove_leaves_other_kinds(space: Namespace, made: str) -> None:
    """A device of our name that is no TUN is somebody else's."""
    space.ip(f"{made}\n")
    before = snapshot(space)
    assert do(space, REMOVE) == [[]]
    assert snapshot(space) == before


def test_remove_without_device(tun: Namespace) -> None:
    """When the device is gone already, the routes that are left of ours go too."""
    do(tun, APPLY)
    tun.ip("link del overlay0\nroute add unreachable 10.50.0.0/16 metric 4278190080 proto 111\n")
    assert sorted(*do(tun, REMOVE)) == [
        *("no route 10.244.0.0/16", "no route 10.50.0.0/16", "no route fd00:244::/48")
    ]
    assert own_routes(tun) == []


# --- what is told of the host ---------------------------------------------------------------------------


def test_facts(tun: Namespace) -> None:
    """The facts are every interface with its index, MTU and addresses, IPv4 first."""
    listed = (
        "[[l.name, l.index, l.mtu, [str(ip) for ip in l.addresses]] for l in (await host.facts()).interfaces]"
    )
    settle(tun)
    (facts,) = do(tun, listed)
    shown = [[link["ifname"], link["ifindex"], link["mtu"]] for link in show(tun, "link")]
    assert sorted(fact[:3] for fact in facts) == sorted(shown)
    addresses = {name: found for name, _, _, found in facts}
    assert addresses["lo"] == ["127.0.0.1", "::1"]
    assert addresses["under0"][:2] == ["192.0.2.1", "2001:db8::1"]
    assert addresses["overlay0"] == []


def test_port_held_by_a_device(space: Namespace) -> None:
    """A kernel VXLAN device that holds the port is named."""
    space.ip("link add flannel.1 type vxlan id 7 dev under0 dstport 8472 nolearning\nlink set flannel.1 up\n")
    assert do(space, "host.port_holder(8472)", "host.port_holder(8473)") == [
        "kernel device flannel.1 (vni 7)",
        None,
    ]


def test_port_not_held_by_a_device(space: Namespace) -> None:
    """A kernel VXLAN device that is down, or has another port, is not blamed."""
    down = "link add down0 type vxlan id 7 dev under0 dstport 8472"
    swapped = "link add swapped0 type vxlan id 8 dev under0 dstport 6177"  # 8472 with its bytes swapped
    space.ip(f"{down}\n{swapped}\nlink set swapped0 up\n")
    assert do(space, "host.port_holder(8472)") == [None]


@pytest.mark.parametrize(("family", "address"), [("AF_INET", "192.0.2.1"), ("AF_INET6", "::")])
def test_port_held_by_a_process(space: Namespace, family: str, address: str) -> None:
    """A process that holds the port is named with its pid."""
    bind = f"s = socket.socket(socket.{family}, socket.SOCK_DGRAM); s.bind(('{address}', 8472))"
    hold = f"import socket; {bind}; input()"
    with subprocess.Popen(
        space.command(sys.executable, "-c", hold), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    ) as process:
        wait_for(lambda: ":8472" in space.run("ss", "-Hlun").stdout, "the port is held")
        (holder,) = do(space, "host.port_holder(8472)")
        name = Path(f"/proc/{process.pid}/comm").read_text().strip()
        assert holder == f"process {name} (pid {process.pid})"
        process.communicate(b"\n", timeout=10)


FORWARD4, FORWARD6 = "net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"


def warning(name: str) -> str:
    """Return the warning about a setting that is off."""
    return f"{name} is 0: packets of pods are not forwarded. Fix: sysctl -w {name}=1"


@pytest.mark.parametrize(
    ("plan", "on", "expected"),
    [
        pytest.param(PLAN, (), [FORWARD4, FORWARD6], id="both off"),
        pytest.param(PLAN, (FORWARD4,), [FORWARD6], id="IPv6 off"),
        pytest.param(PLAN, (FORWARD4, FORWARD6), [], id="both on"),
        pytest.param(PLAN4, (), [FORWARD4], id="IPv4 only, off"),
        pytest.param(PLAN4, (FORWARD4,), [], id="IPv4 only, on"),
    ],
)
def test_warnings(tun: Namespace, plan: str, on: tuple[str, ...], expected: list[str]) -> None:
    """A host that does not forward what pods send is warned of, for its families, with the remedy."""
    tun.run("sysctl", "-qw", *(f"{name}={int(name in on)}" for name in (FORWARD4, FORWARD6)))
    _, warnings = do(tun, f"await host.apply({plan})", "host.warnings()")
    assert warnings == [warning(name) for name in expected]


STRICT = """
import asyncio, fcntl, json, os, socket, struct
from ipaddress import IPv4Address, IPv4Network
from scapy.layers.inet import IP, UDP
from dataplane.model import HostPlan
from dataplane.netlink import Host

tun = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tun, 0x400454CA, struct.pack("16sH22x", b"overlay0", 0x1001))  # TUNSETIFF

async def main():
    host = Host()
    await host.apply(PLAN4)
    warnings = host.warnings()
    await host.close()
    return warnings

warnings = asyncio.run(main())
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.bind(("10.244.2.0", 7))
    sock.settimeout(10)
    os.write(tun, bytes(IP(src="192.0.2.9", dst="10.244.2.0") / UDP(sport=7, dport=7) / b"x"))
    print(json.dumps([warnings, sock.recvfrom(9)[1][0]]))
""".replace("PLAN4", PLAN4)


def test_strict_reverse_path_filter_does_no_harm(tun: Namespace) -> None:
    """What peers send from their node address arrives on a host with a strict filter: ours is loose."""
    tun.run("sysctl", "-qw", f"{FORWARD4}=1", "net.ipv4.conf.all.rp_filter=1")
    done = tun.run(sys.executable, "-c", STRICT)
    assert json.loads(done.stdout) == [[], "192.0.2.9"]


CHANGES = """
import asyncio, subprocess, sys
import uvloop
from dataplane.netlink import Host

async def main(is_expected, lines):
    host = Host()
    changes = host.changes()
    waiting = asyncio.ensure_future(anext(changes))
    await asyncio.sleep(0)  # now it listens
    for line in lines:
        subprocess.run(["ip", *line.split()], check=True, stdout=subprocess.DEVNULL)
    if is_expected:
        await asyncio.wait([waiting], timeout=10)
        told = waiting.done()
        waiting = asyncio.ensure_future(anext(changes))
    # The kernel told before `ip` ended: a few turns of the loop are enough to read it.
    for _ in range(10):
        await asyncio.sleep(0)
    print([told, waiting.done()] if is_expected else [waiting.done()])
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await host.close()

asyncio.Runner(loop_factory=uvloop.new_event_loop).run(main(sys.argv[1] == "True", sys.argv[2:]))
"""


def watch(space: Namespace, lines: list[str], *, is_expected: bool) -> list[bool]:
    """Change a host while changes() is watched; return whether it told, and if expected, whether again."""
    settle(space)
    done = warm.python(space, CHANGES, str(is_expected), *lines)
    assert done.stderr == ""
    told: list[bool] = json.loads(done.stdout.lower())
    return told


@pytest.mark.parametrize(
    "line",
    [
        pytest.param("link set under0 mtu 1400", id="link"),
        pytest.param("addr add 192.0.2.77/24 dev under0", id="address"),
        pytest.param("addr add 2001:db8::77/64 dev under0 nodad", id="IPv6 address"),
        pytest.param("route add 10.50.0.0/16 via 192.0.2.9 proto 111", id="route"),
    ],
)
def test_changes(space: Namespace, line: str) -> None:
    """On uvloop one is told of changes of links, of addresses and of our routes."""
    assert watch(space, [line], is_expected=True)[0]


def test_changes_at_once_are_one(space: Namespace) -> None:
    """Changes that came together are told of together."""
    lines = ["link set under0 mtu 1400", "addr add 192.0.2.77/24 dev under0", "link set under0 mtu 1500"]
    assert watch(space, lines, is_expected=True) == [True, False]


@pytest.mark.parametrize(
    "line",
    [
        pytest.param("route add 10.50.0.0/16 via 192.0.2.9 proto 112", id="IPv4"),
        pytest.param("route add 2001:db8:7::/48 via 2001:db8::9 proto 112", id="IPv6"),
        pytest.param("route add 10.50.0.0/16 via 192.0.2.9 table 77", id="another table"),
    ],
)
def test_routes_that_lead_to_no_node_are_no_changes(space: Namespace, line: str) -> None:
    """What we tell the kernel of peers, and routes of other tables, do not keep us busy."""
    assert watch(space, [line], is_expected=False) == [False]


def test_no_capability(tun: Namespace) -> None:
    """Without CAP_NET_ADMIN the error says that it is needed."""
    without = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin")
    done = tun.run(*without, sys.executable, "-c", SCRIPT.format(steps=APPLY))
    text = "RuntimeFailure: overlayd run needs CAP_NET_ADMIN to set up the host's network"
    assert json.loads(done.stdout) == text
