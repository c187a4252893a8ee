# SPDX-License-Identifier: Apache-2.0
"""The guard: tunnel packets of others' making neither leave a node nor get into it.

The topology is drawn at the head of walled.py. Who forges builds a VXLAN packet to pod b (or pod a), as if it
came from a pod of the other node.
"""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable, Iterator

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Raw

from bench.lab import Namespace, Node, wait_for
from tests.e2e.test_kernel_peer import mac6
from tests.e2e.walled import PORT, TABLE, WAIT_S, Walled, listen, speak

VXLAN_PORT = 8472
FIRED = 2000  # packets: more than the firewall lets pass to show them
FLAGS = ("--ip-masq", "--ip-masq-fully-random-disable", "--iptables-resync=1")
COUNTED = """
table inet bystander {
	counter untracked_in { }
	counter untracked_out { }
	counter tracked { }
	chain in {
		type filter hook input priority filter
		udp dport 8472 ct state untracked counter name untracked_in accept
		udp dport 8472 counter name tracked
	}
	chain out {
		type filter hook output priority filter
		udp dport 8472 ct state untracked counter name untracked_out accept
		udp dport 8472 counter name tracked
	}
}
"""


@pytest.fixture(scope="module", params=["userspace", "kernel"])
def walled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walled]:
    """Yield the drawing, on each datapath."""
    flags = (*FLAGS, "--encap=ipip") if request.param == "userspace" else FLAGS
    built = Walled(tmp_path_factory.mktemp("walled"), *flags, datapath=request.param)
    try:
        yield built
    finally:
        built.close()


def forge(walled: Walled, to: str, family: int = 4, source: str = "") -> bytes:
    """Return what is in the UDP datagram: a packet to pod `a` or `b`, as if from a pod of the other node."""
    node, other = (walled.a, walled.b) if to == "a" else (walled.b, walled.a)
    if family == 6:
        ends = IPv6(src=source or f"fd00:244:0:{other.index}::9", dst=node.pod_ip6)
        macs = Ether(dst=mac6(node), src=mac6(other))
    else:
        ends = IP(src=source or f"10.244.{other.third}.9", dst=node.pod_ip())
        macs = Ether(dst=node.mac, src=other.mac)
    return bytes(VXLAN(vni=1, flags=8) / macs / ends / UDP(sport=PORT, dport=PORT) / Raw(b"forged"))


def refused(
    walled: Walled, counter: str, receiver: Namespace, family: int, forgery: Callable[[], None]
) -> None:
    """Forge a packet: it is not received, one counter says so, and the next good packet is received."""
    before = walled.guard()
    sender, address = walled.a.pod, walled.b.pod_ip6 if family == 6 else walled.b.pod_ip()
    if receiver is walled.a.pod:
        sender, address = walled.b.pod, walled.a.pod_ip6 if family == 6 else walled.a.pod_ip()
    with listen(receiver, family) as sock:
        forgery()
        wait_for(lambda: walled.guard() != before, f"{counter} rises: {before}", WAIT_S)
        speak(sender, (address, PORT), b"good")
        assert sock.recv(100) == b"good"
    assert walled.guard() == {**before, counter: before[counter] + 1}


def test_case_142_pod_forges_to_another_node(walled: Walled) -> None:
    """A pod's own tunnel packet to a peer, which would come from this node's address, does not leave."""
    b = walled.b
    for family, address in ((4, b.address), (6, b.address6)):
        packet = forge(walled, "b", family)
        to = (address, VXLAN_PORT)
        refused(walled, "laundered", b.pod, family, lambda p=packet, t=to: speak(walled.a.pod, t, p))  # type: ignore[misc]


def test_case_142_pod_forges_to_its_node(walled: Walled) -> None:
    """A pod's own tunnel packet to its node, as if a peer had sent it, is not taken."""
    packet, to = forge(walled, "a"), (walled.a.address, VXLAN_PORT)
    refused(walled, "laundered", walled.a.pod, 4, lambda: speak(walled.a.pod, to, packet))


def test_process_of_the_host_forges(walled: Walled) -> None:
    """What another socket of this host sends to the port of a peer does not leave, whoever opened it."""

    def forgery() -> None:
        with pytest.raises(PermissionError):
            speak(walled.a.host, (walled.b.address, VXLAN_PORT), forge(walled, "b"))

    refused(walled, "laundered", walled.b.pod, 4, forgery)


def test_overlays_of_pods_pass(walled: Walled) -> None:
    """What is for a pod is its business, also on the port of tunnels: from a pod, and from this host."""
    before = walled.guard()
    for sender in (walled.a.pod, walled.a.host):
        for family, address in ((4, walled.b.pod_ip()), (6, walled.b.pod_ip6)):
            with listen(walled.b.pod, family, VXLAN_PORT) as sock:
                speak(sender, (address, VXLAN_PORT), b"nested")
                assert sock.recv(100) == b"nested"
    assert walled.guard() == before


def test_a_user_of_the_host_reaches_pods(walled: Walled) -> None:
    """A program without rights on this host talks to pods elsewhere: the tunnel's packet is not its own."""
    code = f"import socket; socket.socket(2, 2).sendto(b'user', ({walled.b.pod_ip()!r}, {PORT}))"
    with listen(walled.b.pod, 4) as sock:
        walled.a.host.run("setpriv", "--reuid=65534", "--clear-groups", sys.executable, "-S", "-c", code)
        assert sock.recv(100) == b"user"


def test_source_ports(walled: Walled) -> None:
    """Masqueraded packets keep their source port, but never get that of tunnels."""
    with listen(walled.lab.router, 4) as sock:
        ports = []
        for port in (9999, VXLAN_PORT):
            speak(walled.a.pod, (walled.b.gateway, PORT), b"out", ("", port))
            ports.append(sock.recvfrom(100)[1][1])
    assert ports[0] == 9999
    assert ports[1] > VXLAN_PORT


def test_tunnels_are_not_tracked(walled: Walled) -> None:
    """No tunnel packet has an entry in connection tracking, in either direction."""
    walled.load(COUNTED)
    for sender, receiver, address in (
        (walled.a.pod, walled.b.pod, walled.b.pod_ip()),
        (walled.b.pod, walled.a.pod, walled.a.pod_ip()),
        (walled.b.pod, walled.a.pod, walled.a.pod_ip6),
    ):
        with listen(receiver, 6 if ":" in address else 4) as sock:
            speak(sender, (address, PORT), b"over")
            assert sock.recv(100) == b"over"
    listed = walled.nft("list", "counters", "table", "inet", "bystander")
    counts = [int(line.split()[1]) for line in listed.splitlines() if "packets" in line]
    walled.nft("delete table inet bystander")
    names = [line.split()[1] for line in listed.splitlines() if "counter" in line]
    found = dict(zip(names, counts, strict=True))
    assert found["tracked"] == 0
    assert found["untracked_in"] >= 2
    assert found["untracked_out"] >= 1


@pytest.mark.parametrize("walled", ["userspace"], indirect=True)
def test_case_142_forged_ipip(walled: Walled) -> None:
    """Where IPIP is in use, a pod's own IPIP packet does not leave either."""
    inner = bytes(IP(src="10.244.1.9", dst=walled.b.pod_ip()) / UDP(dport=PORT) / Raw(b"forged"))

    def forgery() -> None:
        with walled.a.pod.socket(socket.AF_INET, socket.SOCK_RAW, 4) as sock:
            sock.sendto(inner, (walled.b.address, 0))

    refused(walled, "laundered", walled.b.pod, 4, forgery)


@pytest.mark.parametrize("walled", ["kernel"], indirect=True)
def test_strangers(walled: Walled) -> None:
    """On the kernel datapath only peers' packets are taken; who becomes a peer is let in, and out again."""
    router, a = walled.lab.router, walled.a
    to, to6 = (a.address, VXLAN_PORT), (a.address6, VXLAN_PORT)
    packet = forge(walled, "a", source="10.244.9.9")
    refused(walled, "strangers", a.pod, 4, lambda: speak(router, to, packet))
    refused(
        walled, "strangers", a.pod, 6, lambda: speak(router, to6, forge(walled, "a", 6, "fd00:244:0:9::9"))
    )
    walled.daemon.put("10.244.9.0/24", lease_of(a))
    walled.daemon.sync()
    with listen(a.pod, 4) as sock:
        speak(router, to, packet)
        assert sock.recv(100) == b"forged"
    walled.daemon.delete("10.244.9.0/24")
    walled.daemon.sync()
    refused(walled, "strangers", a.pod, 4, lambda: speak(router, to, packet))
    ours = walled.ours()
    walled.nft("delete", "element", "inet", TABLE, "peers4", f"{{ {walled.b.address} }}")
    walled.wait_ours(ours, "the peer is back")


def lease_of(node: Node) -> dict[str, object]:
    """Return a lease that makes the router a peer of a node, by the address it has on that link."""
    data = {"VNI": 1, "VtepMAC": "02:00:00:00:00:09"}
    return {"PublicIP": node.gateway, "BackendType": "vxlan", "BackendData": data}


def fire(place: Namespace, kind: str, to: str, data: bytes, count: int) -> None:
    """Send that many tunnel packets as fast as it goes."""
    family = socket.AF_INET6 if ":" in to else socket.AF_INET
    is_ipip = kind == "ipip"
    with place.socket(family, socket.SOCK_RAW if is_ipip else socket.SOCK_DGRAM, 4 if is_ipip else 0) as sock:
        for _ in range(count):
            sock.sendto(data, (to, 0 if is_ipip else VXLAN_PORT))


@pytest.mark.parametrize("walled", ["userspace"], indirect=True)
@pytest.mark.parametrize("kind", ["vxlan", "vxlan6", "ipip"])
def test_strangers_before_the_forwarder(walled: Walled, kind: str) -> None:
    """Strangers' packets end in the firewall but for the first, which say whose they are; all are counted."""
    a, family = walled.a, 6 if kind == "vxlan6" else 4
    to, source = (a.address6, "fd00:244:0:9::9") if family == 6 else (a.address, "10.244.9.9")
    data = forge(walled, "a", family, source)
    data = data[22:] if kind == "ipip" else data

    def counts() -> tuple[int, int]:
        status = walled.daemon.status()
        return status["guard"]["strangers"], status["rx"]["drops"].get("unknown_vtep", 0)

    before = counts()
    with listen(a.pod, family) as sock:
        fire(walled.lab.router, kind, to, data, FIRED)
        speak(walled.b.pod, (a.pod_ip6 if family == 6 else a.pod_ip(), PORT), b"good")
        assert sock.recv(100) == b"good"
    wait_for(lambda: sum(counts()) - sum(before) == FIRED, f"{FIRED} are counted: {before}", WAIT_S)
    stopped, shown = (now - was for now, was in zip(counts(), before, strict=True))
    assert stopped > 0
    assert shown >= 100  # a part of the burst that passes is enough to see who it is
    status = walled.daemon.status()
    assert status["rx"]["last"]["unknown_vtep"]["address"] == (to[:-1] + "1" if family == 6 else a.gateway)


@pytest.mark.parametrize("walled", ["userspace"], indirect=True)
def test_strangers_of_another_ipip_tunnel(walled: Walled) -> None:
    """IPIP that is not for our pods may be another tunnel's of this host, so the firewall lets it be."""
    packet = bytes(IP(src="10.99.0.2", dst="10.99.0.1") / UDP(dport=PORT) / Raw(b"other"))
    before = walled.guard()
    with walled.a.host.socket(socket.AF_INET, socket.SOCK_RAW, 4) as sock:
        sock.settimeout(WAIT_S)
        fire(walled.lab.router, "ipip", walled.a.address, packet, FIRED)
        assert [sock.recv(200)[20:] for _ in range(100)] == [packet] * 100
    assert walled.guard() == before


@pytest.mark.parametrize("walled", ["userspace"], indirect=True)
def test_a_new_peer_is_no_stranger(walled: Walled) -> None:
    """A lease that comes lets its node in at once, one that goes closes it out, and nobody else notices."""
    a, router = walled.a, walled.lab.router
    packet, to = forge(walled, "a", source="10.244.9.9"), (a.address, VXLAN_PORT)
    ours = walled.ours()
    fire(router, "vxlan", a.address, packet, FIRED)  # nothing is shown any more
    for _ in range(3):
        walled.daemon.put("10.244.9.0/24", lease_of(a))
        walled.daemon.sync()
        assert walled.ours() != ours
        with listen(a.pod, 4) as sock:
            speak(router, to, packet)
            assert sock.recv(100) == b"forged"
        walled.daemon.delete("10.244.9.0/24")
        walled.daemon.sync()
    walled.wait_ours(ours, "the peer has left the set")
    strangers = walled.guard()["strangers"]
    fire(router, "vxlan", a.address, packet, FIRED)
    wait_for(lambda: walled.guard()["strangers"] > strangers, "strangers again", WAIT_S)
    assert "put right" not in walled.daemon.log()  # our own changes are known to us
    walled.nft("flush", "ruleset")
    walled.wait_ours(ours, "all is back")
    assert walled.guard()["strangers"] > strangers  # counting goes on from where it was
    with listen(a.pod, 4) as sock:
        speak(walled.b.pod, (a.pod_ip(), PORT), b"good")
        assert sock.recv(100) == b"good"


@pytest.mark.parametrize("walled", ["userspace"], indirect=True)
def test_without_guard(walled: Walled) -> None:
    """With --guard=false nothing keeps a pod from laundering: so it is the guard that does."""
    walled.restart("--ip-masq", "--guard=false")
    with listen(walled.b.pod, 4) as sock:
        speak(walled.a.pod, (walled.b.address, VXLAN_PORT), forge(walled, "b"))
        assert sock.recv(100) == b"forged"
    assert walled.guard() == {}


SPEED = """
import sys, time
from ipaddress import ip_address
from dataplane import firewall, ruleset
from dataplane.peerset import PeerSets
from dataplane.ruleset import Guard, Ruleset
wanted = Ruleset("overlayd-overlay0", None, Guard((), "under0", (), (8472,)))
peers = [ip_address(first + number) for first in (0x0A000000, 0xFD << 120) for number in range(10_000)]
sets, times = PeerSets(), [time.monotonic()]
firewall.run(ruleset.build(wanted, peers))
times.append(time.monotonic())
one_s = []
for _ in range(5):
    begun_s = time.monotonic()
    sets.delete(wanted.table, peers[:1])
    one_s.append(time.monotonic() - begun_s)
    sets.add(wanted.table, peers[:1])
sets.delete(wanted.table, peers[:1])
times.append(time.monotonic())
sets.delete(wanted.table, peers[2:])
sets.add(wanted.table, peers[3:])
times.append(time.monotonic())
found = ruleset.read_peers(firewall.show("table", "inet", wanted.table))
assert found == {str(peers[1]), *map(str, peers[3:])}
for change in (lambda: sets.delete(wanted.table, peers[:1]), lambda: sets.add("none", peers[:1])):
    try:
        change()
    except firewall.RuntimeFailure:
        continue
    raise AssertionError("it was not refused")
sets.add(wanted.table, peers[:4])  # some of them are there
sets.close()
print(times[1] - times[0], min(one_s), times[3] - times[2])
"""


@pytest.mark.alone
def test_many_peers() -> None:
    """Twenty thousand addresses are told in seconds, one that changes in a blink."""
    place = Namespace(f"e2emany{time.monotonic_ns() % 100000}")
    try:
        done = place.run(sys.executable, "-c", SPEED)
    finally:
        place.close()
    whole_s, one_s, all_s = map(float, done.stdout.split())
    assert whole_s < 4.0
    assert one_s < 0.05
    assert all_s < 2.0
