# SPDX-License-Identifier: Apache-2.0
"""The rules that are wanted, as values: what depends on what."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_address

import pytest

from dataplane import ruleset
from dataplane.ruleset import Guard, Json, Masquerade, Ruleset

NET, OWN = IPv4Network("10.244.0.0/16"), IPv4Network("10.244.1.0/24")
NET6, OWN6 = IPv6Network("fd00:244::/48"), IPv6Network("fd00:244:0:1::/64")
MASQUERADE = Masquerade((NET,), (OWN,), (8472,))
ADDRESSES = (ip_address("192.0.2.1"), ip_address("2001:db8::1"))
GUARD = Guard((NET,), "eth0", ADDRESSES, (8472,))
BOTH = Ruleset("overlayd-overlay0", MASQUERADE, GUARD)
PEERS = [ip_address("192.0.2.7"), ip_address("2001:db8::7"), ip_address("192.0.2.6")]


def rules(wanted: Ruleset, chain: str) -> list[str]:
    """Return the rules of a chain of ours, as text."""
    found = [command["add"]["rule"] for command in ruleset.build(wanted) if "rule" in command.get("add", {})]
    return [json.dumps(rule["expr"]) for rule in found if rule["chain"] == chain]


@pytest.mark.parametrize(
    ("taken", "wanted"),
    [
        pytest.param((), (1024, 65535), id="none"),
        pytest.param((8472,), (8473, 65535), id="one"),
        pytest.param((8472, 8285), (8473, 65535), id="two"),
        pytest.param((60000, 8472), (8473, 59999), id="the middle"),
        pytest.param((65535,), (1024, 65534), id="last"),
        pytest.param((1024,), (1025, 65535), id="first"),
        pytest.param((500,), (1024, 65535), id="privileged"),
    ],
)
def test_free_ports(taken: tuple[int, ...], wanted: tuple[int, int]) -> None:
    """Masqueraded packets get ports of the longest range in which no tunnel has one."""
    assert ruleset.free_ports(taken) == wanted


def test_replaces_at_once() -> None:
    """A table is made, removed and made again in one transaction, whether it was there or not."""
    table = {"table": {"family": "inet", "name": "overlayd-overlay0"}}
    assert ruleset.build(BOTH)[:3] == [{"add": table}, {"delete": table}, {"add": table}]


def test_nothing_more_than_wanted() -> None:
    """Without masquerading there is no chain of type nat, which would have every connection tracked."""
    chains = [
        c["add"]["chain"]
        for c in ruleset.build(replace(BOTH, masquerade=None))
        if "chain" in c.get("add", {})
    ]
    assert {chain["type"] for chain in chains} == {"filter"}
    table = {"table": {"family": "inet", "name": "t"}}
    assert ruleset.build(Ruleset("t", None, None)) == [{"add": table}, {"delete": table}]


def test_random_ports() -> None:
    """Ports are drawn at random unless somebody wants them plain."""
    assert all("fully-random" in rule for rule in rules(BOTH, "nat") if '"masquerade"' in rule)
    plain = replace(BOTH, masquerade=replace(MASQUERADE, is_random=False))
    assert not any("fully-random" in rule for rule in rules(plain, "nat"))


def test_ports_of_no_tunnel() -> None:
    """Where nothing is tunnelled, no port is kept free."""
    assert not any(
        '"port"' in rule for rule in rules(replace(BOTH, masquerade=replace(MASQUERADE, ports=())), "nat")
    )
    assert any('"range": [8473, 65535]' in rule for rule in rules(BOTH, "nat"))


def test_both_families() -> None:
    """Each network has its own rules, with the subnet and the multicast addresses of its version."""
    both = Masquerade((NET, NET6), (OWN, OWN6), (8472,))
    found = rules(replace(BOTH, masquerade=both), "nat")
    four, six = rules(BOTH, "nat"), [rule for rule in found if '"ip6"' in rule]
    assert found == four + six
    assert len(six) == len(four) - 1  # the mark is looked at once
    assert any('"ff00::"' in rule for rule in six)


@pytest.mark.parametrize("chain", ["prerouting", "input", "forward", "output"])
def test_ipip_and_ports(chain: str) -> None:
    """Every encapsulation that is in use is guarded, and no other."""
    one, more = rules(BOTH, chain), replace(GUARD, ports=(8472, 8285), has_ipip=True)
    assert not any("l4proto" in rule for rule in one)
    found = rules(replace(BOTH, guard=more), chain)
    assert sum("l4proto" in rule for rule in found) * 2 == len(one)  # of IPv4 alone
    assert sum('{"set": [8285, 8472]}' in rule for rule in found) == len(one)


def test_kernel_datapath() -> None:
    """Where the kernel carries, only packets of our VNI count, and only those of peers come in."""
    wanted = replace(BOTH, guard=replace(GUARD, vni=7))
    for chain in ("prerouting", "input", "forward", "output"):
        assert all(
            '"offset": 96, "len": 24}}, "op": "==", "right": 7' in rule for rule in rules(wanted, chain)
        )
    for chain in ("prerouting", "input"):
        assert sum("@peers4" in rule for rule in rules(wanted, chain)) == 1
        assert sum("@peers6" in rule for rule in rules(wanted, chain)) == 1
        assert not any("limit" in rule for rule in rules(wanted, chain))


def test_counting_goes_on() -> None:
    """A table that is made anew counts on from what the one before had counted."""
    commands = [
        command["add"]["counter"]
        for command in ruleset.build(BOTH, (), {"strangers": 7})
        if "counter" in command.get("add", {})
    ]
    assert {counter["name"]: counter["packets"] for counter in commands} == {"laundered": 0, "strangers": 7}


def test_strangers() -> None:
    """Beside our forwarder a stranger's packet ends before it is tracked, but for some, if it is for us."""
    found = rules(BOTH, "prerouting")
    strangers = [rule for rule in found if "@peers" in rule]
    assert len(strangers) == len(ADDRESSES)
    for address, rule in zip(ADDRESSES, strangers, strict=True):
        assert f'"right": "{address}"' in rule
        assert f"@peers{address.version}" in rule
        assert '"limit": {"rate": 100' in rule
        untracked = next(i for i, other in enumerate(found) if "notrack" in other and str(address) in other)
        assert found.index(rule) < untracked
    assert not any("@peers" in rule for rule in rules(BOTH, "input"))
    assert BOTH.has_peers
    assert not replace(BOTH, guard=None).has_peers


def test_strangers_of_protocol_4() -> None:
    """Other tunnels of this host may be IPIP, so of a stranger's packets only those for our network end."""
    found = rules(replace(BOTH, guard=replace(GUARD, has_ipip=True, networks=(NET, NET6))), "prerouting")
    strangers = [rule for rule in found if "@peers4" in rule and "l4proto" in rule]
    assert len(strangers) == 1
    assert '4294901760]}, "op": "==", "right": 183762944' in strangers[0]  # 10.244.0.0/16


def test_peers() -> None:
    """Peers go into the set of their version, with one command a set."""
    assert ruleset.add_peers("t", PEERS) == [
        {
            "add": {
                "element": {
                    "family": "inet",
                    "table": "t",
                    "name": "peers4",
                    "elem": ["192.0.2.6", "192.0.2.7"],
                }
            }
        },
        {"add": {"element": {"family": "inet", "table": "t", "name": "peers6", "elem": ["2001:db8::7"]}}},
    ]
    assert ruleset.add_peers("t", []) == []


def listed(*rules: Json) -> list[Json]:
    """Return rules of table filter as nft lists them."""
    place = {"family": "ip", "table": "filter"}
    return [{"rule": {**place, "handle": handle, **rule}} for handle, rule in enumerate(rules, 3)]


def test_forward_of_iptables() -> None:
    """Packets of pods are accepted there once, and again only when that is gone."""
    wanted = replace(BOTH, forward=(NET, NET6))
    commands = ruleset.open_forward(wanted, "ip", [])
    added = [command["add"]["rule"] for command in commands if "rule" in command.get("add", {})]
    assert [rule["chain"] for rule in added] == ["overlayd-overlay0", "overlayd-overlay0", "FORWARD"]
    assert ruleset.open_forward(wanted, "ip", listed(*added)) == []
    assert ruleset.open_forward(wanted, "ip", listed(*added[:2])) == commands
    assert ruleset.open_forward(wanted, "ip", listed(added[1], added[2])) == commands[:-1]
    assert ruleset.open_forward(BOTH, "ip", []) == []


def test_who_drops() -> None:
    """Only a FORWARD chain that drops by policy needs us."""
    chain = {"family": "ip6", "table": "filter", "name": "FORWARD", "hook": "forward", "policy": "drop"}
    assert ruleset.dropping([{"metainfo": {}}, {"chain": chain}]) == ["ip6"]
    for change in ({"policy": "accept"}, {"table": "other"}, {"name": "DOCKER"}):
        assert ruleset.dropping([{"chain": {**chain, **change}}]) == []


def test_removes_a_chain() -> None:
    """What leads to a chain is removed by its handle, then the chain; other rules of that table stay."""
    jump = {"chain": "POSTROUTING", "expr": [{"counter": {}}, {"jump": {"target": "FLANNEL-POSTRTG"}}]}
    other = {"chain": "POSTROUTING", "expr": [{"jump": {"target": "KUBE-POSTROUTING"}}]}
    commands = ruleset.remove_chain("ip", "filter", "FLANNEL-POSTRTG", listed(other, jump))
    chain = {"chain": {"family": "ip", "table": "filter", "name": "FLANNEL-POSTRTG"}}
    rule = {"family": "ip", "table": "filter", "chain": "POSTROUTING", "handle": 4}
    assert commands == [{"delete": {"rule": rule}}, {"flush": chain}, {"delete": chain}]


def test_removes_a_chain_of_old() -> None:
    """The same by iptables-restore, from what iptables-save says."""
    saved = """*nat
:POSTROUTING ACCEPT [0:0]
:FLANNEL-POSTRTG - [0:0]
-A POSTROUTING -s 10.0.0.0/8 -j MASQUERADE
-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -s 10.244.0.0/16 -j RETURN
COMMIT
"""
    assert ruleset.legacy_removal(saved, "nat", "FLANNEL-POSTRTG").splitlines() == [
        "*nat",
        '-D POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG',
        "-F FLANNEL-POSTRTG",
        "-X FLANNEL-POSTRTG",
        "COMMIT",
    ]
    assert ruleset.legacy_removal(saved, "nat", "FLANNEL") == ""


def test_flannels_tables() -> None:
    """What is left to flannel are tables of its names, and masquerades as ours did."""
    commands = ruleset.flannels(MASQUERADE)
    added = [command["add"]["rule"] for command in commands if "rule" in command.get("add", {})]
    assert {(rule["family"], rule["table"]) for rule in added} == {("ip", "flannel-ipv4")}
    texts = [json.dumps(rule["expr"]) for rule in added if rule["chain"] == "postrtg"]
    assert texts == rules(BOTH, "nat")


def test_what_nft_lists() -> None:
    """Handles, counts and elements do not count when lists are compared; they are read by themselves."""
    table = {"table": {"family": "inet", "name": "t", "handle": 7}}
    counter = {"counter": {"name": "laundered", "table": "t", "packets": 3, "bytes": 99, "handle": 9}}
    peers = {"set": {"name": "peers4", "handle": 3, "elem": ["192.0.2.6"]}}
    found: list[Json] = [{"metainfo": {"version": "1"}}, table, counter, peers]
    assert ruleset.strip(found) == [
        {"table": {"family": "inet", "name": "t"}},
        {"counter": {"name": "laundered", "table": "t"}},
        {"set": {"name": "peers4"}},
    ]
    assert ruleset.read_counters(found) == {"laundered": 3}
    assert ruleset.read_peers(found) == {"192.0.2.6"}
