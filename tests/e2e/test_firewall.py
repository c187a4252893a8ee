# SPDX-License-Identifier: Apache-2.0
"""Our firewall rules on a live node: who keeps them, what they leave alone, when they go.

The topology is drawn at the head of walled.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from bench.lab import wait_for
from tests.e2e.rig import START_S
from tests.e2e.test_masquerade import put_flannels
from tests.e2e.walled import PORT, TABLE, WAIT_S, Walled, listen, speak

BYSTANDER = """
table inet bystander {
	chain forward {
		type filter hook forward priority filter
		ip saddr 203.0.113.0/24 drop
	}
}
"""
FLANNELS_NFT = """
table ip flannel-ipv4 {
	chain postrtg { type nat hook postrouting priority srcnat; }
}
table ip6 flannel-ipv6 {
	chain postrtg { type nat hook postrouting priority srcnat; }
}
"""
SHOWN = (
    ("nft", "list", "table", "inet", "bystander"),
    ("iptables-nft-save",),
    ("ip6tables-nft-save",),
    ("iptables-legacy-save",),
    ("ip6tables-legacy-save",),
)


@pytest.fixture(scope="module")
def walled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walled]:
    """Yield the drawing; somebody else has rules on host a, too."""
    built = Walled(tmp_path_factory.mktemp("walled"), "--ip-masq", "--iptables-resync=1")
    try:
        built.load(BYSTANDER)
        for tool in ("iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"):
            built.a.host.run(tool, "-t", "nat", "-N", "BYSTANDER")
            built.a.host.run(tool, "-t", "nat", "-A", "POSTROUTING", "-o", "nowhere", "-j", "BYSTANDER")
            built.a.host.run(tool, "-A", "FORWARD", "-i", "nowhere", "-j", "DROP")
        yield built
    finally:
        built.close()


def others(walled: Walled) -> str:
    """Return all rules of others on host a."""
    lines = "".join(walled.a.host.run(*command).stdout for command in SHOWN).splitlines()
    return "\n".join(line.partition("[")[0] for line in lines if not line.startswith("#"))


def crosses(walled: Walled) -> bool:
    """Tell whether a datagram gets from pod a to pod b, in both families."""
    for family, address in ((4, walled.b.pod_ip()), (6, walled.b.pod_ip6)):
        with listen(walled.b.pod, family) as sock:
            sock.settimeout(0.5)
            speak(walled.a.pod, (address, PORT), b"over")
            try:
                sock.recv(100)
            except TimeoutError:
                return False
    return True


MEDDLING = {
    "rule": f"flush chain inet {TABLE} output",
    "order": f"insert rule inet {TABLE} nat accept",
    "everything": "flush ruleset",
}


def test_what_is_changed_is_put_right(walled: Walled) -> None:
    """Whatever somebody changes of our rules is as it was within the interval, and nothing else is done."""
    ours, before, kept = walled.ours(), others(walled), walled.nft("-s", "list", "ruleset")
    for name, change in MEDDLING.items():
        walled.nft(change)
        assert walled.ours() != ours, name
        walled.wait_ours(ours, f"rules are back: {name}")
        if name != "everything":
            assert others(walled) == before
    told = "firewall rules put right"
    wait_for(
        lambda: walled.daemon.log().count(told) == len(MEDDLING),
        lambda: f"told: {walled.daemon.log()}",
        WAIT_S,
    )
    assert crosses(walled)
    walled.load(kept.replace(f"table inet {TABLE} {{", "table inet copy {"))
    walled.nft("delete table inet copy")
    assert others(walled) == before


def test_forward_that_drops(walled: Walled) -> None:
    """Where FORWARD of iptables drops by policy, packets of pods pass all the same, until `down`."""
    host = walled.a.host
    before = others(walled)
    for tool in ("iptables-nft", "ip6tables-nft"):
        host.run(tool, "-P", "FORWARD", "DROP")
    wait_for(
        lambda: others(walled).count(f"-j {TABLE}") == 2, lambda: f"accepted: {walled.daemon.log()}", WAIT_S
    )
    assert crosses(walled)
    host.run("iptables-nft", "-D", "FORWARD", "-j", TABLE, "-m", "comment", "--comment", "overlayd forward")
    wait_for(
        lambda: others(walled).count(f"-j {TABLE}") == 2,
        lambda: f"accepted anew: {walled.daemon.log()}",
        WAIT_S,
    )
    assert crosses(walled)
    walled.restart("--iptables-forward-rules=false")
    assert TABLE not in others(walled)
    assert not crosses(walled)
    for tool in ("iptables-nft", "ip6tables-nft"):
        host.run(tool, "-P", "FORWARD", "ACCEPT")
    assert others(walled) == before


def test_ends(walled: Walled) -> None:
    """Rules and reserved ports stay when `run` ends; `down` removes them, and nobody else's."""
    host = walled.a.host
    before = others(walled)
    assert TABLE not in before
    host.run("sysctl", "-qw", "net.ipv4.ip_local_reserved_ports=8470-8471,9000")
    walled.restart("--ip-masq", "--iptables-forward-rules=false")
    reserved = ("sysctl", "-n", "net.ipv4.ip_local_reserved_ports")
    assert host.run(*reserved).stdout.strip() == "8470-8472,9000"
    ours = walled.ours()
    walled.daemon.stop()
    assert walled.ours() == ours != []
    assert walled.daemon.say("down") == ""
    assert walled.ours() == []
    assert others(walled) == before
    assert host.run(*reserved).stdout.strip() == "8470-8471,9000"
    walled.start(walled.datapath)


def test_cleans_up_after_flannel(walled: Walled) -> None:
    """On a take-over flannel's rules go, of both kinds of iptables and of nftables, and nobody else's."""
    before = others(walled)
    legacy = {4: "iptables-legacy", 6: "ip6tables-legacy"}
    put_flannels(walled.a.host)
    put_flannels(walled.a.host, legacy)
    walled.load(FLANNELS_NFT)
    wait_for(lambda: "FLANNEL-FWD" in others(walled), "flannel's rules are there")
    walled.restart("--ip-masq", "--iptables-forward-rules=false", "--takeover", "flannel.1")
    assert others(walled) == before
    assert "flannel" not in walled.nft("list", "ruleset")
    assert walled.ours() != []


def test_way_back(walled: Walled) -> None:
    """Handed over, the node masquerades and forwards as before, by rules that flannel calls its own."""
    before = others(walled)
    for tool in ("iptables-nft", "ip6tables-nft"):
        walled.a.host.run(tool, "-P", "FORWARD", "DROP")
    walled.restart("--ip-masq")
    ours = [item["rule"]["expr"] for item in walled.ours() if item.get("rule", {}).get("chain") == "nat"]
    names = ("--hand-over", "flannel.1", "--hand-over", "flannel-v6.1")
    assert walled.daemon.say("down", *names) == ""
    assert walled.daemon.process is not None
    assert walled.daemon.process.wait(START_S) == 0
    assert walled.ours() == []
    listed = json.loads(walled.nft("-j", "list", "ruleset"))["nftables"]
    rules = [item["rule"] for item in listed if item.get("rule", {}).get("chain") == "postrtg"]
    assert {(rule["family"], rule["table"]) for rule in rules} == {
        ("ip", "flannel-ipv4"),
        ("ip6", "flannel-ipv6"),
    }
    assert {str(rule["expr"]) for rule in rules} == set(map(str, ours))
    assert others(walled).count("-j FLANNEL-FWD") == 2
    assert TABLE not in others(walled)
    assert crosses(walled)
    for tool in ("iptables-nft", "ip6tables-nft"):
        walled.a.host.run(tool, "-P", "FORWARD", "ACCEPT")
    walled.more = ("--ip-masq", "--takeover", "flannel.1,flannel-v6.1")
    walled.start(walled.datapath)
    assert others(walled) == before
    assert "flannel" not in walled.nft("list", "ruleset")


def test_blackhole(walled: Walled) -> None:
    """What is for no pod ends here instead of going into the overlay again, and pods are still reached."""
    host, to_pod = walled.a.host, ("ip", "route", "get", walled.a.pod_ip())
    shown = ("route", "show", "type", "blackhole", "proto", "111")
    walled.restart("--ip-blackhole-route")
    assert [route["dst"] for route in walled.show(*shown)] == [walled.a.subnet()]
    assert [route["dst"] for route in walled.show("-6", *shown)] == ["fd00:244:0:1::/64"]
    assert "dev cni0" in host.run(*to_pod).stdout
    host.ip("route flush type blackhole\n")
    wait_for(lambda: walled.show(*shown), lambda: f"the route is back: {walled.daemon.log()}", WAIT_S)
    host.ip(f"route del {walled.a.subnet()} dev cni0\n")
    assert host.run(*to_pod, check=False).returncode != 0
    walled.restart()
    assert "dev overlay0" in host.run(*to_pod).stdout
    assert walled.show(*shown) == walled.show("-6", *shown) == []
    host.ip(f"route add {walled.a.subnet()} dev cni0 proto kernel scope link src 10.244.1.1\n")
