# SPDX-License-Identifier: Apache-2.0
"""Masquerading has the effect of flannel's: who is seen by the receiver, in a table, by both kinds of rules.

The topology is drawn at the head of walled.py. A datagram is sent by each row; what the receiver sees as its
source is compared with what it sees where flannel's own iptables rules do the work.
"""

from __future__ import annotations

import shlex
import socket
import sys
from collections.abc import Iterator

import pytest

from bench.lab import Namespace, wait_for
from tests.e2e.walled import GROUPS, PORT, TABLE, WAIT_S, Walled, listen, speak

OUTSIDE = {4: "192.0.2.5", 6: "2001:db8:2::1"}  # the router's, on the far side of host a
MARKED, ALSO_MARKED, UNMARKED = 7001, 7002, 7003  # ports whose packets are marked on host a
MARKS = """
table inet bystander {
	chain marks {
		type filter hook prerouting priority mangle
		udp dport 7001 meta mark set 0x4000
		udp dport 7002 meta mark set 0x4001
		udp dport 7003 meta mark set 0x8000
	}
}
"""
FLANNELS = """
-t nat -N FLANNEL-POSTRTG
-t nat -A POSTROUTING {masq} -j FLANNEL-POSTRTG
-t nat -A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 {masq} -j RETURN
-t nat -A FLANNEL-POSTRTG -s {own} -d {net} {masq} -j RETURN
-t nat -A FLANNEL-POSTRTG -s {net} -d {own} {masq} -j RETURN
-t nat -A FLANNEL-POSTRTG ! -s {net} -d {own} {masq} -j RETURN
-t nat -A FLANNEL-POSTRTG -s {net} ! -d {multicast} {masq} -j MASQUERADE --random-fully
-t nat -A FLANNEL-POSTRTG ! -s {net} -d {net} {masq} -j MASQUERADE --random-fully
-N FLANNEL-FWD
-A FORWARD {forward} -j FLANNEL-FWD
-A FLANNEL-FWD -s {net} {forward} -j ACCEPT
-A FLANNEL-FWD -d {net} {forward} -j ACCEPT
"""
COMMENTS = {
    "masq": '-m comment --comment "flanneld masq"',
    "forward": '-m comment --comment "flanneld forward"',
}
NETS = {
    4: {"own": "10.244.1.0/24", "net": "10.244.0.0/16", "multicast": "224.0.0.0/4"},
    6: {"own": "fd00:244:0:1::/64", "net": "fd00:244::/48", "multicast": "ff00::/8"},
}


def put_flannels(host: Namespace, tools: dict[int, str] | None = None) -> None:
    """Put flannel's rules in force, in flannel's order."""
    for family, tool in (tools or {4: "iptables-nft", 6: "ip6tables-nft"}).items():
        for line in FLANNELS.format(**COMMENTS, **NETS[family]).strip().splitlines():
            host.run(tool, *shlex.split(line))


@pytest.fixture(scope="module")
def walled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walled]:
    """Yield the drawing, with ways from outside to both pods by way of host a, and packets that get marks."""
    built = Walled(tmp_path_factory.mktemp("walled"), "--ip-masq")
    try:
        router, a = built.lab.router, built.a
        router.ip(
            f"route add {NETS[4]['net']} via {a.address}\nroute add {NETS[6]['net']} via {a.address6}\n"
        )
        built.load(MARKS)
        yield built
    finally:
        built.close()


def names(walled: Walled, family: int) -> dict[str, str]:
    """Return who has which address."""
    a, b, gateway = walled.a, walled.b, {4: "10.244.1.1", 6: "fd00:244:0:1::1"}
    overlay = {4: "10.244.1.0", 6: "fd00:244:0:1::"}
    outside = {4: a.gateway, 6: "2001:db8:1::1"}
    return {
        (a.pod_ip6 if family == 6 else a.pod_ip()): "pod a",
        (b.pod_ip6 if family == 6 else b.pod_ip()): "pod b",
        (a.address6 if family == 6 else a.address): "host a",
        (b.address6 if family == 6 else b.address): "host b",
        gateway[family]: "bridge a",
        overlay[family]: "overlay a",
        outside[family]: "outside",
        OUTSIDE[family]: "far outside",
    }


def rows(walled: Walled) -> dict[str, tuple[Namespace, str, Namespace, str, int]]:
    """Return who sends from what (or whatever the kernel takes) to whom: name -> (from, as, to, at, port)."""
    a, b, router = walled.a, walled.b, walled.lab.router
    return {
        "pod to pod elsewhere": (a.pod, "", b.pod, "pod b", PORT),
        "pod from elsewhere": (b.pod, "", a.pod, "pod a", PORT),
        "pod to outside": (a.pod, "", router, "far outside", PORT),
        "pod to another node": (a.pod, "", b.host, "host b", PORT),
        "pod to its node": (a.pod, "", a.host, "host a", PORT),
        "outside to pod": (router, "", a.pod, "pod a", PORT),
        "outside to pod elsewhere": (router, "", b.pod, "pod b", PORT),
        "host to pod": (a.host, "", a.pod, "pod a", PORT),
        "host to pod elsewhere": (a.host, "", b.pod, "pod b", PORT),
        "host's own address to pod elsewhere": (a.host, "host a", b.pod, "pod b", PORT),
        "host to outside": (a.host, "", router, "far outside", PORT),
        "host as the overlay to outside": (a.host, "overlay a", router, "far outside", PORT),
        "mark of kube-proxy": (a.pod, "", router, "far outside", MARKED),
        "that mark and another": (a.pod, "", router, "far outside", ALSO_MARKED),
        "another mark": (a.pod, "", router, "far outside", UNMARKED),
    }


WANTED = {
    "pod to pod elsewhere": "pod a",
    "pod from elsewhere": "pod b",
    "pod to outside": "host a",
    "pod to another node": "host a",
    "pod to its node": "pod a",
    "outside to pod": "outside",
    "outside to pod elsewhere": "overlay a",
    "host to pod": "bridge a",
    "host to pod elsewhere": "overlay a",
    "host's own address to pod elsewhere": "overlay a",
    "host to outside": "host a",
    "host as the overlay to outside": "host a",
    "mark of kube-proxy": "pod a",
    "that mark and another": "pod a",
    "another mark": "host a",
    "multicast as the overlay": "overlay a",
}


def hear(sock: socket.socket, name: str, who: dict[str, str]) -> str:
    """Return who has sent what is received."""
    try:
        data, (address, *_) = sock.recvfrom(100)
    except TimeoutError:
        return "nobody"
    assert data == name.encode()
    return who.get(address, str(address))


def observe(walled: Walled, family: int) -> dict[str, str]:
    """Send a datagram for each row; return whom its receiver sees as the sender."""
    who = names(walled, family)
    where = {name: address for address, name in who.items()}
    seen = {}
    for name, (sender, source, receiver, target, port) in rows(walled).items():
        with listen(receiver, family, port) as sock:
            speak(sender, (where[target], port), name.encode(), (where.get(source, ""), 0))
            seen[name] = hear(sock, name, who)
    return {**seen, "multicast as the overlay": observe_multicast(walled, family, where["overlay a"], who)}


def observe_multicast(walled: Walled, family: int, source: str, who: dict[str, str]) -> str:
    """Send to a group from an address of the overlay; return whom the router sees as the sender."""
    router, host, group = walled.lab.router, walled.a.host, GROUPS[family]
    inside = int(router.run("cat", "/sys/class/net/ra/ifindex").stdout)
    outside = int(host.run("cat", "/sys/class/net/under0/ifindex").stdout)
    with listen(router, family) as sock, host.socket(sock.family, socket.SOCK_DGRAM) as speaker:
        speaker.bind((source, 0))
        if family == 6:
            member = socket.inet_pton(socket.AF_INET6, group) + inside.to_bytes(4, "little")
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, member)
            speaker.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, outside)
        else:
            member = socket.inet_aton(group) + bytes(4) + inside.to_bytes(4, "little")
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
            index = bytes(8) + outside.to_bytes(4, "little")
            speaker.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, index)
        speaker.sendto(b"all", (group, PORT))
        return hear(sock, "all", who)


AGAIN = """
import sys
from ipaddress import ip_network
from dataplane import firewall, ruleset
nets, subnets = ([ip_network(word) for word in words.split(",")] for words in sys.argv[1:])
for count in range(40):
    masquerade = ruleset.Masquerade(tuple(nets), tuple(subnets), (8472,), is_random=bool(count % 2))
    firewall.run(ruleset.build(ruleset.Ruleset("overlayd-overlay0", masquerade, None)))
"""


def test_replaced_in_one_step(walled: Walled) -> None:
    """While rules are replaced again and again, no packet of a pod leaves with the pod's address."""
    command = (
        sys.executable,
        "-c",
        AGAIN,
        *(",".join(NETS[f][name] for f in (4, 6)) for name in ("net", "own")),
    )
    seen, process = set(), walled.a.host.spawn(*command)
    try:
        with listen(walled.lab.router, 4) as sock:
            while process.poll() is None:
                speak(walled.a.pod, (OUTSIDE[4], PORT), b"out")
                seen.add(sock.recvfrom(100)[1][0])
        assert process.wait() == 0
    finally:
        process.kill()
        process.wait()
    assert seen == {walled.a.address}


def test_table_is_flannels(walled: Walled) -> None:
    """Every receiver sees the same sender by our rules as by flannel's iptables rules, in both families."""
    assert "FLANNEL_IPMASQ=true\n" in walled.daemon.subnet_file.read_text()
    ours = {family: observe(walled, family) for family in (4, 6)}
    walled.restart("--guard=false", "--iptables-forward-rules=false")
    assert walled.ours() == []
    put_flannels(walled.a.host)
    try:
        flannels = {family: observe(walled, family) for family in (4, 6)}
    finally:
        for tool in ("iptables-nft", "ip6tables-nft"):
            walled.a.host.run(tool, "-t", "nat", "-F")
            walled.a.host.run(tool, "-F")
    assert ours == {4: WANTED, 6: WANTED}
    assert flannels == ours


def test_follows_the_network(walled: Walled) -> None:
    """When the network becomes larger, the rules are those of the new one."""
    walled.restart("--ip-masq")
    config = {"Network": "10.244.0.0/15", "EnableIPv6": True, "IPv6Network": NETS[6]["net"]}
    walled.daemon.put_config({**config, "Backend": {"Type": "vxlan"}})
    wait_for(lambda: "10.244.0.0/15" in walled.nft("list", "table", "inet", TABLE), "the new network", WAIT_S)
    assert "10.244.0.0/16" not in walled.nft("list", "table", "inet", TABLE)
    told = "FLANNEL_NETWORK=10.244.0.0/15\n"
    wait_for(lambda: told in walled.daemon.subnet_file.read_text(), "subnet.env", WAIT_S)
