# SPDX-License-Identifier: Apache-2.0
"""Pods made by CNI's real plugins, from `overlayd cni-conf`, talk over the overlay. Drawn at plugged.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bench.lab import Namespace, wait_for
from tests.e2e.cni_runtime import INTERFACE, PluginError, Pod, Port
from tests.e2e.plugged import Host, Plugged, Service

MTU = 1430  # VXLAN over IPv6 underlays is among the encapsulations: 1500 - 70
WEB, WEB_OUTSIDE = 80, 8080
DNS, DNS_OUTSIDE = 53, 8053
PORTS = (Port(WEB_OUTSIDE, WEB), Port(DNS_OUTSIDE, DNS, "udp"))
SUBNETS = {"a": ("10.244.1.", "fd00:244:0:1::"), "b": ("10.244.2.", "fd00:244:0:2::")}
FAMILIES = pytest.mark.parametrize("family", [4, 6])
AT_A_TIME = 8


class Village:
    """Two hosts and their pods: a1 with ports of the host, a2, b1; for a3 and b2 nobody masquerades."""

    def __init__(self, directory: Path, name: str = "cni", *flags: str) -> None:
        """Build it, with these flags of overlayd's, and have the plugins make the pods."""
        self.plugged = Plugged(directory, name, flags)
        try:
            self.a, self.b = self.plugged.hosts["a"], self.plugged.hosts["b"]
            self.runtimes = {host.node.name: host.write_conf() for host in (self.a, self.b)}
            self.a1 = self._join(self.a, "a1", *PORTS)
            self.a2 = self._join(self.a, "a2")
            self.b1 = self._join(self.b, "b1")
            for host in (self.a, self.b):
                self.runtimes[host.node.name] = host.write_conf("--plugin-masq", "false", name="plain")
            self.a3 = self._join(self.a, "a3")
            self.b2 = self._join(self.b, "b2")
        except BaseException:
            self.plugged.close()
            raise

    def _join(self, host: Host, name: str, *ports: Port) -> Pod:
        pod = host.make_pod(name, *ports)
        self.runtimes[host.node.name].add(pod)
        return pod

    @property
    def pods(self) -> list[Pod]:
        """All pods that stay."""
        return [self.a1, self.a2, self.a3, self.b1, self.b2]

    def space(self, name: str) -> Namespace:
        """Return the namespace of a pod, of `host a`, `host b` or `outside`."""
        if name == "outside":
            return self.outside
        found = getattr(self, name.removeprefix("host "))
        return found.space  # type: ignore[no-any-return]

    def address(self, name: str, family: int) -> str:
        """Return an address of the same; the outside has one on each link, this is the one of host a."""
        if name == "outside":
            return self.a.node.gateway if family == 4 else "2001:db8:1::1"
        found = getattr(self, name.removeprefix("host "))
        if isinstance(found, Pod):
            return found.address(family)
        return str(found.node.address if family == 4 else found.node.address6)

    @property
    def outside(self) -> Namespace:
        """A host that is not in the overlay."""
        return self.plugged.outside


@pytest.fixture(scope="module")
def village(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Village]:
    """Yield the hosts with three pods, shared by the tests of this file."""
    built = Village(tmp_path_factory.mktemp("cni"))
    yield built
    built.plugged.close()


def show(space: Namespace, *args: str) -> list[dict[str, Any]]:
    """Return what `ip -j ARGS` says in a namespace."""
    shown: list[dict[str, Any]] = json.loads(space.run("ip", "-j", *args).stdout or "[]")
    return shown


def pings(sender: Namespace, address: str, size: int = 56) -> bool:
    """Tell whether a packet, in one piece if it fits, is answered."""
    fits = size + (48 if ":" in address else 28) <= MTU
    whole = ["-M", "do"] if fits else []
    command = ["ping", "-q", "-c", "1", "-W", "2", "-s", str(size), *whole, address]
    return sender.run(*command, check=False).returncode == 0


# --- what the plugins made -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a1", "b1"])
def test_link(village: Village, name: str) -> None:
    """Both ends of the link and the bridge have the MTU of subnet.env; the plugins' CHECK agrees with ADD."""
    pod, host = getattr(village, name), getattr(village, name[0])
    assert f"FLANNEL_MTU={MTU}\n" in host.daemon.subnet_file.read_text()
    ends = (pod.space, INTERFACE), (host.space, pod.host_link()), (host.space, "cni0")
    assert [show(space, "link", "show", device)[0]["mtu"] for space, device in ends] == [MTU] * 3
    if not pod.ports:  # portmap 1.1.1 looks for IPv4 rules among those of IPv6
        village.runtimes[name[0]].check(pod)


@pytest.mark.parametrize("name", ["a1", "b1"])
def test_addresses_and_routes(village: Village, name: str) -> None:
    """A pod has an address of its host's subnet in each family, and the bridge is its default gateway."""
    pod, host = getattr(village, name), getattr(village, name[0])
    bridge = {
        entry["local"] for link in show(host.space, "address", "show", "cni0") for entry in link["addr_info"]
    }
    for family, prefix in zip((4, 6), SUBNETS[name[0]], strict=True):
        assert pod.address(family).startswith(prefix)
        assert pod.gateway(family) == f"{prefix}1"
        assert pod.gateway(family) in bridge
        (default,) = show(pod.space, f"-{family}", "route", "show", "default")
        assert default["gateway"] == pod.gateway(family)


def test_check_sees_what_is_missing(village: Village) -> None:
    """CHECK fails when the pod's address is gone, so that it means something when it passes."""
    pod, runtime = village.b1, village.runtimes["b"]
    address = f"{pod.address()}/24"
    pod.space.ip(f"addr del {address} dev {INTERFACE}\n")
    with pytest.raises(PluginError, match=pod.address()):
        runtime.check(pod)
    pod.space.ip(
        f"addr add {address} broadcast + dev {INTERFACE}\nroute add default via {pod.gateway()}\n"
        f"route add 10.244.0.0/16 via {pod.gateway()}\n"
    )
    runtime.check(pod)


# --- who reaches whom ----------------------------------------------------------------------------------


@FAMILIES
@pytest.mark.parametrize("way", [("a1", "a2"), ("a1", "b1"), ("b1", "a2")], ids=" to ".join)
def test_pods_talk(village: Village, way: tuple[str, str], family: int) -> None:
    """Pods of one host and of two exchange packets of every size, and streams, whole."""
    sender, receiver = (getattr(village, name) for name in way)
    address = receiver.address(family)
    service = Service(receiver.space, WEB)
    assert pings(sender.space, address)
    assert pings(sender.space, address, MTU - (28 if family == 4 else 48))
    assert pings(sender.space, address, 8000)
    service.tcp(sender.space, address, size=1 << 20)
    service.udp(sender.space, address, size=9000)


@FAMILIES
@pytest.mark.parametrize("name", ["a1", "b1"])
def test_hosts_and_pods(village: Village, name: str, family: int) -> None:
    """A host and a pod reach each other, also when the pod is another host's."""
    pod = getattr(village, name)
    for host in (village.a, village.b):
        assert Service(pod.space, WEB).tcp(host.space, pod.address(family), size=1 << 16)
        overlay = SUBNETS[host.node.name][0 if family == 4 else 1] + ("0" if family == 4 else "")
        assert pings(pod.space, overlay)
        assert pings(pod.space, host.node.address if family == 4 else host.node.address6)


# --- whose address is seen -----------------------------------------------------------------------------


def name_of(village: Village, address: str) -> str:
    """Return whose address that is."""
    names = {pod.address(family): f"pod {pod.name[-2:]}" for pod in village.pods for family in (4, 6)}
    for host in (village.a, village.b):
        name = host.node.name
        four, six = SUBNETS[name]
        names |= dict.fromkeys((host.node.address, host.node.address6), f"host {name}")
        names |= dict.fromkeys((f"{four}1", f"{six}1"), f"bridge {name}")
        names |= dict.fromkeys((f"{four}0", six), f"overlay {name}")
        names |= dict.fromkeys((host.node.gateway, f"2001:db8:{host.node.index}::1"), "outside")
    return names[address]


# Sender, receiver, whom the receiver sees. For a3 and b2 nobody masquerades; of those that the plugin
# masquerades, other hosts see not even pods: it knows the subnet of its own host only.
SOURCES = [
    ("a2", "a1", "pod a2"),
    ("a2", "b1", "overlay a"),
    ("a2", "host a", "pod a2"),
    ("a2", "outside", "host a"),
    ("b1", "a1", "overlay b"),
    ("b1", "outside", "host b"),
    ("a3", "a1", "pod a3"),
    ("a3", "b1", "pod a3"),
    ("a3", "outside", "pod a3"),
    ("b2", "a1", "pod b2"),
    ("host a", "a1", "bridge a"),
    ("host a", "b1", "overlay a"),
    ("host b", "a1", "overlay b"),
]


@FAMILIES
@pytest.mark.parametrize(("sender", "receiver", "seen"), SOURCES, ids=lambda word: word.replace(" ", "-"))
def test_source_address(village: Village, sender: str, receiver: str, seen: str, family: int) -> None:
    """Each receiver sees the source that the table says."""
    service = Service(village.space(receiver), DNS)
    source = service.hear(village.space(sender), village.address(receiver, family))
    assert name_of(village, source) == seen


# The same, and by a port of host a, where overlayd masquerades and so the plugin does not.
OURS = [
    ("a2", "a1", "pod a2"),
    ("a2", "b1", "pod a2"),
    ("a2", "outside", "host a"),
    ("b1", "a1", "pod b1"),
    ("b1", "outside", "host b"),
    ("host a", "b1", "overlay a"),
    ("host b", "a1", "overlay b"),
]


def test_overlayd_masquerades(tmp_path: Path) -> None:
    """With --ip-masq pods of all hosts see each other's addresses, the outside that of the host."""
    village = Village(tmp_path, "cnimasq", "--ip-masq")
    try:
        assert "FLANNEL_IPMASQ=true\n" in village.a.daemon.subnet_file.read_text()
        for family in (4, 6):
            for sender, receiver, seen in OURS:
                service = Service(village.space(receiver), DNS)
                source = service.hear(village.space(sender), village.address(receiver, family))
                assert (sender, receiver, name_of(village, source)) == (sender, receiver, seen)
            for user, seen in USERS:
                web, address = Service(village.a1.space, WEB), village.address("host a", family)
                source = web.tcp(village.space(user), address, WEB_OUTSIDE, size=1 << 16)
                assert (user, name_of(village, source)) == (user, seen)
    finally:
        village.plugged.close()


# --- ports of the host -----------------------------------------------------------------------------------


# Who uses a port of host a that leads to a1, and whom a1 sees. Where the way back would miss host a, and so
# the translation, portmap masquerades.
USERS = [
    ("outside", "outside"),
    ("host b", "host b"),
    ("b1", "host b"),
    ("host a", "host a"),
    ("a2", "bridge a"),
    ("a1", "bridge a"),
]


@FAMILIES
@pytest.mark.parametrize(("user", "seen"), USERS, ids=lambda word: word.replace(" ", "-"))
def test_host_port(village: Village, user: str, seen: str, family: int) -> None:
    """A pod is reached by a port of its host from everywhere, itself included (hairpin)."""
    space, address = village.space(user), village.address("host a", family)
    web, dns = Service(village.a1.space, WEB), Service(village.a1.space, DNS)
    assert name_of(village, web.tcp(space, address, WEB_OUTSIDE, size=1 << 16)) == seen
    assert name_of(village, dns.udp(space, address, DNS_OUTSIDE)) == seen


def test_host_port_of_localhost(village: Village) -> None:
    """The host itself reaches the pod by 127.0.0.1."""
    source = Service(village.a1.space, WEB).tcp(village.a.space, "127.0.0.1", WEB_OUTSIDE)
    assert name_of(village, source) == "bridge a"


def test_no_hairpin(village: Village) -> None:
    """With --no-hairpin a pod does not reach itself by a port of its host, others do; after DEL, nobody."""
    runtime = village.a.write_conf("--no-hairpin", name="no-hairpin")
    pod = village.a.make_pod("a9", Port(WEB_OUTSIDE + 1, WEB))
    runtime.add(pod)
    web = Service(pod.space, WEB)
    web.tcp(village.outside, village.a.node.address, WEB_OUTSIDE + 1)
    with pytest.raises(TimeoutError):
        Service(pod.space, WEB, timeout_s=1.0).tcp(pod.space, village.a.node.address, WEB_OUTSIDE + 1)
    web.tcp(village.a2.space, village.a.node.address, WEB_OUTSIDE + 1)
    runtime.delete(pod)
    with pytest.raises(ConnectionRefusedError):
        web.tcp(village.outside, village.a.node.address, WEB_OUTSIDE + 1)
    Service(village.a1.space, WEB).tcp(village.outside, village.a.node.address, WEB_OUTSIDE)


# --- the end ---------------------------------------------------------------------------------------------


def test_nothing_stays(village: Village) -> None:
    """After DEL links, addresses, records and rules are what they were; DEL again, or of nobody, is fine."""
    runtime = village.runtimes["a"]
    before = village.a.look()
    pod = village.a.make_pod("gone", Port(9000, 90), Port(9001, 91, "udp"))
    runtime.add(pod)
    assert "9000" in village.a.look()
    runtime.delete(pod)
    wait_for(lambda: village.a.look() == before, "everything is as before")
    runtime.delete(pod)
    runtime.delete(village.a.make_pod("never"))
    assert village.a.look() == before


def test_add_fails_half_way(village: Village) -> None:
    """When a later plugin refuses, DEL takes back what the earlier ones did."""
    before = village.a.look()
    pod = village.a.make_pod("half", Port(9000, 90, "nonsense"))
    with pytest.raises(PluginError, match="portmap ADD"):
        village.runtimes["a"].add(pod)
    wait_for(lambda: village.a.look() == before, "everything is as before")


@pytest.mark.parametrize("count", [24, pytest.param(200, marks=pytest.mark.soak)])
def test_many_pods(village: Village, count: int) -> None:
    """Pods that come and go eight at a time get different addresses, talk, and leave nothing."""
    host, runtime = village.a, village.runtimes["a"]
    before = host.look()
    plain = [host.make_pod(f"m{number}") for number in range(count // 2)]
    exposed = [host.make_pod(f"p{number}", Port(10000 + number, WEB)) for number in range(count // 2)]
    pods = [pod for pair in zip(plain, exposed, strict=True) for pod in pair]
    try:
        with ThreadPoolExecutor(AT_A_TIME) as pool:
            list(pool.map(runtime.add, pods))
            held = {pod.address(family) for pod in pods for family in (4, 6)}
            assert len(held) == 2 * count
            assert all(address.startswith(SUBNETS["a"]) for address in held)
            assert all(pool.map(lambda pod: pings(village.b1.space, pod.address()), pods))
            assert all(pool.map(lambda pod: pings(pod.space, village.b1.address(6)), pods))
            list(pool.map(runtime.check, plain))
            for pod in exposed:
                Service(pod.space, WEB).tcp(village.outside, host.node.address, pod.ports[0].host)
            list(pool.map(runtime.delete, pods))
        wait_for(lambda: host.look() == before, "everything is as before")
    finally:
        for pod in pods:
            pod.space.close()
