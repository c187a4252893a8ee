# SPDX-License-Identifier: Apache-2.0
"""What overlayd wants of nftables, in the JSON that nft takes. Pure; firewall.py puts it in force.

One table of family inet is ours. What flannel's rules do is done in `nat`; `mss` is clamp.py's; the others
are the guard, which keeps pods from laundering: sending tunnel packets of their own making, which other nodes
would take for ours. A tunnel packet

    prerouting   that comes by the underlay, for us, is dropped unless it is from a peer, else not tracked
    input        is dropped unless it came by the underlay, and, where the kernel carries, from a peer
    forward      is dropped unless it came by the underlay; what goes to a pod is the pod's business
    output       is dropped if a socket sent it that is not ours; others are not tracked

Our forwarder refuses strangers by itself, and says who they are; but each costs it a system call and a copy.
So it gets the first of them and then a few a second, and the rest ends here, where it costs least.

Our sockets have MARK. Packets of the kernel's tunnel devices have it too: `postrouting` gives it to what
enters such a device from a socket of this host, since the outer packet counts as of that socket.

An accept in a table of our own cannot help where another table drops. So where the FORWARD chain of iptables
drops by policy, as Docker sets it up, packets of pods are accepted there, as flannel does: by a chain of ours
and a jump to it, the only things of ours in another's table.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Network, IPv6Network
from itertools import pairwise
from typing import Any

from dataplane import clamp
from dataplane.model import Address, Network

Json = dict[str, Any]

FAMILY = "inet"
MARK = 0x2000  # one bit: of packet marks Kubernetes uses 0x4000 and 0x8000, Calico and Cilium others
KUBE_MARK = 0x4000  # kube-proxy masquerades these itself
MULTICAST: dict[int, Network] = {4: IPv4Network("224.0.0.0/4"), 6: IPv6Network("ff00::/8")}
PROTOCOLS = {4: "ip", 6: "ip6"}
IPIP = 4  # protocol number
VNI_OFFSET, VNI_BITS = 96, 24  # in the UDP datagram, in bits
PORT_MIN, PORT_MAX = 1024, 65535  # of masqueraded packets
TUNNEL_KINDS = ("vxlan", "ipip")  # of the kernel's devices
CHAINS = {  # type, hook, priority
    "nat": ("nat", "postrouting", 100),
    "prerouting": ("filter", "prerouting", -300),
    "input": ("filter", "input", 0),
    "forward": ("filter", "forward", 0),
    "output": ("filter", "output", -300),
    "postrouting": ("filter", "postrouting", 300),
    "postrtg": ("nat", "postrouting", 100),  # flannel's name of ours
    clamp.CHAIN: clamp.HOOK,
}
LAUNDERED, STRANGERS = "laundered", "strangers"
# Strangers' packets that our forwarder gets; it says whose the last one was.
SHOWN: dict[str, Any] = {"limit": {"rate": 100, "burst": 1000, "per": "second", "inv": True}}
COUNTERS = (LAUNDERED, STRANGERS)
NOTHING: Mapping[str, int] = {}
FORWARD = "FORWARD"  # the chain of iptables
FLANNEL_TABLES = (("ip", "flannel-ipv4"), ("ip6", "flannel-ipv6"))
FLANNEL_FORWARD = "FLANNEL-FWD"
FLANNEL_CHAINS = (("nat", "FLANNEL-POSTRTG"), ("filter", FLANNEL_FORWARD))


@dataclass(frozen=True, slots=True)
class Masquerade:
    """What leaves the overlay gets an address of this node, and so does what enters it from outside."""

    networks: tuple[Network, ...]
    subnets: tuple[Network, ...]  # ours; each of a network of its version
    ports: tuple[int, ...]  # UDP, of tunnels: answers to them would be taken for tunnel packets
    is_random: bool = True  # source ports are drawn at random


@dataclass(frozen=True, slots=True)
class Guard:
    """Which packets are tunnel packets, and where they may come from."""

    networks: tuple[Network, ...]
    underlay: str  # interface
    addresses: tuple[Address, ...]  # ours, of the underlay
    ports: tuple[int, ...]  # UDP, of our encapsulations
    has_ipip: bool = False
    vni: int | None = None  # where the kernel carries: other networks may use the port too


@dataclass(frozen=True, slots=True)
class Ruleset:
    """All that is wanted; the peers come by themselves, since they change often."""

    table: str
    masquerade: Masquerade | None
    guard: Guard | None
    forward: tuple[Network, ...] = ()  # accepted in FORWARD
    clamped: tuple[str, ...] = ()  # devices, by which the MSS of connections is made to fit

    @property
    def has_table(self) -> bool:
        """Whether anything is wanted in a table of our own."""
        return self.masquerade is not None or self.guard is not None or bool(self.clamped)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is wanted at all."""
        return not self.has_table and not self.forward

    @property
    def has_peers(self) -> bool:
        """Whether strangers are refused here."""
        return self.guard is not None


def table_name(tun_name: str) -> str:
    """Return the name of our table: several daemons may share a host."""
    return f"overlayd-{tun_name}"


# --- expressions ------------------------------------------------------------------------------------------


def _match(left: object, op: str, right: object) -> Json:
    return {"match": {"left": left, "op": op, "right": right}}


def _meta(key: str) -> Json:
    return {"meta": {"key": key}}


def _payload(protocol: str, field: str) -> Json:
    return {"payload": {"protocol": protocol, "field": field}}


def _masked(mask: int) -> Json:
    return {"&": [_meta("mark"), mask]}


def _address(field: str, op: str, net: Network) -> Json:
    """Match saddr or daddr against a network."""
    prefix = {"prefix": {"addr": str(net.network_address), "len": net.prefixlen}}
    return _match(_payload(PROTOCOLS[net.version], field), op, prefix)


def _counted_drop(name: str) -> list[Json]:
    return [{"counter": name}, {"drop": None}]


ACCEPT: Json = {"accept": None}
RETURN: Json = {"return": None}
NOTRACK: Json = {"notrack": None}
IPIP_KIND = [_match(_meta("nfproto"), "==", "ipv4"), _match(_meta("l4proto"), "==", IPIP)]
# Destination of what IPIP carries, behind an outer header without options: nft 1.0.6 cannot list it as "th".
INNER: Json = {"payload": {"base": "nh", "offset": 288, "len": 32}}
# Of a packet of the kernel's own making there is no socket, and then nothing matches.
HAS_SOCKET = _match(_meta("skuid"), ">=", 0)


def _tunnels(guard: Guard, version: int) -> list[list[Json]]:
    """Return what matches tunnel packets of an IP version, each kind by itself."""
    family = _match(_meta("nfproto"), "==", f"ipv{version}")
    kinds = []
    if guard.ports:
        ports: object = guard.ports[0] if len(guard.ports) == 1 else {"set": sorted(guard.ports)}
        kind = [family, _match(_payload("udp", "dport"), "==", ports)]
        if guard.vni is not None:
            vni = {"payload": {"base": "th", "offset": VNI_OFFSET, "len": VNI_BITS}}
            kind.append(_match(vni, "==", guard.vni))
        kinds.append(kind)
    if guard.has_ipip and version == 4:
        kinds.append(IPIP_KIND)
    return kinds


def _narrow(kind: list[Json], guard: Guard) -> list[list[Json]]:
    """Return what matches the tunnel packets that nobody but us takes: protocol 4 may be others', too."""
    if kind != IPIP_KIND:
        return [kind]
    nets = (net for net in guard.networks if net.version == 4)
    return [[*kind, _match({"&": [INNER, int(net.netmask)]}, "==", int(net.network_address))] for net in nets]


def free_ports(taken: Iterable[int]) -> tuple[int, int]:
    """Return the first and last port of the longest range without those that are taken."""
    edges = [PORT_MIN - 1, *sorted(port for port in set(taken) if port >= PORT_MIN), PORT_MAX + 1]
    low, high = max(pairwise(edges), key=lambda pair: pair[1] - pair[0])
    return low + 1, high - 1


# --- rules ------------------------------------------------------------------------------------------------


def _masquerade_rules(wanted: Masquerade) -> Iterator[list[Json]]:
    """Yield flannel's rules in flannel's order; the third and fourth of its list are one here."""
    flags: Json = {"flags": "fully-random"} if wanted.is_random else {}
    verdicts: list[list[Json]] = [[{"masquerade": flags or None}]]
    if wanted.ports:
        udp = _match(_meta("l4proto"), "==", "udp")
        ports = list(free_ports(wanted.ports))
        verdicts.insert(0, [udp, {"masquerade": {"port": {"range": ports}, **flags}}])
    subnets = {net.version: net for net in wanted.subnets}
    yield [_match(_masked(KUBE_MARK), "==", KUBE_MARK), RETURN]
    for net in wanted.networks:
        if net.version in subnets:
            own = subnets[net.version]
            yield [_address("saddr", "==", own), _address("daddr", "==", net), RETURN]
            yield [_address("daddr", "==", own), RETURN]
        for verdict in verdicts:
            multicast = MULTICAST[net.version]
            yield [_address("saddr", "==", net), _address("daddr", "!=", multicast), *verdict]
            yield [_address("saddr", "!=", net), _address("daddr", "==", net), *verdict]


def _guard_rules(guard: Guard) -> Iterator[tuple[str, list[Json]]]:
    """Yield chain and expressions of each rule of the guard."""
    by_underlay, not_by_underlay = (_match(_meta("iifname"), op, guard.underlay) for op in ("==", "!="))
    unmarked = _match(_masked(MARK), "==", 0)
    for version, protocol in PROTOCOLS.items():
        to_no_pod = [_address("daddr", "!=", net) for net in guard.networks if net.version == version]
        source, target = _payload(protocol, "saddr"), _payload(protocol, "daddr")
        ours = [str(address) for address in guard.addresses if address.version == version]
        is_stranger = _match(source, "!=", f"@{peers_set(version)}")
        unshown = [] if guard.vni is not None else [SHOWN]
        for kind in _tunnels(guard, version):
            for address in ours:
                for_us = [by_underlay, _match(target, "==", address)]
                for only in _narrow(kind, guard):
                    strange = [*only, *for_us, is_stranger, *unshown]
                    yield "prerouting", [*strange, *_counted_drop(STRANGERS)]
                yield "prerouting", [*kind, *for_us, NOTRACK]
            yield "input", [*kind, not_by_underlay, *_counted_drop(LAUNDERED)]
            if guard.vni is not None:  # a device of the kernel takes what is for any address of this host
                yield "input", [*kind, is_stranger, *_counted_drop(STRANGERS)]
            yield "forward", [*kind, not_by_underlay, *to_no_pod, *_counted_drop(LAUNDERED)]
            yield "output", [*kind, *to_no_pod, HAS_SOCKET, unmarked, *_counted_drop(LAUNDERED)]
            yield "output", [*kind, *to_no_pod, NOTRACK]
    tag = {"mangle": {"key": _meta("mark"), "value": {"|": [_meta("mark"), MARK]}}}
    for name in TUNNEL_KINDS:
        yield "postrouting", [HAS_SOCKET, _match(_meta("oifkind"), "==", name), tag]


def _rules(wanted: Ruleset) -> Iterator[tuple[str, list[Json]]]:
    """Yield chain and expressions of each rule in our table."""
    if wanted.masquerade is not None:
        for expr in _masquerade_rules(wanted.masquerade):
            yield "nat", expr
    if wanted.guard is not None:
        yield from _guard_rules(wanted.guard)
    yield from clamp.rules(wanted.clamped)


def _add_chain(family: str, table: str, name: str) -> Json:
    kind, hook, priority = CHAINS[name]
    chain = {"family": family, "table": table, "name": name, "type": kind, "hook": hook, "prio": priority}
    return {"add": {"chain": {**chain, "policy": "accept"}}}


def _add_rule(family: str, table: str, chain: str, expr: list[Json], comment: str = "") -> Json:
    rule: Json = {"family": family, "table": table, "chain": chain, "expr": expr}
    return {"add": {"rule": {**rule, "comment": comment} if comment else rule}}


def remove_table(family: str, name: str) -> list[Json]:
    """Return the commands that remove a table, whether it is there or not."""
    table = {"table": {"family": family, "name": name}}
    return [{"add": table}, {"delete": table}]


def build(wanted: Ruleset, peers: Iterable[Address] = (), counted: Mapping[str, int] = NOTHING) -> list[Json]:
    """Return the commands that put our table in force, in place of the one there may be.

    Counters go on from what was `counted`.
    """
    own = {"family": FAMILY, "table": wanted.table}
    commands = remove_table(FAMILY, wanted.table)
    if not wanted.has_table:
        return commands
    commands.append({"add": {"table": {"family": FAMILY, "name": wanted.table}}})
    if wanted.guard is not None:
        for name in COUNTERS:
            packets = counted.get(name, 0)
            commands.append({"add": {"counter": {**own, "name": name, "packets": packets, "bytes": 0}}})
    if wanted.has_peers:
        for version in PROTOCOLS:
            named = {**own, "name": peers_set(version), "type": f"ipv{version}_addr"}
            commands.append({"add": {"set": named}})
        commands += add_peers(wanted.table, peers)
    rules = list(_rules(wanted))
    chains = dict.fromkeys(chain for chain, _ in rules)
    commands += [_add_chain(FAMILY, wanted.table, chain) for chain in chains]
    return commands + [_add_rule(FAMILY, wanted.table, chain, expr) for chain, expr in rules]


# --- peers ------------------------------------------------------------------------------------------------


def peers_set(version: int) -> str:
    """Return the name of the set of peers' underlay addresses."""
    return f"peers{version}"


def add_peers(table: str, peers: Iterable[Address]) -> list[Json]:
    """Return the commands that add peers to the sets of a new table."""
    own = {"family": FAMILY, "table": table}
    commands = []
    by_version: dict[int, list[str]] = {version: [] for version in PROTOCOLS}
    for address in peers:
        by_version[address.version].append(str(address))
    for version, texts in by_version.items():
        if texts:
            commands.append({"add": {"element": {**own, "name": peers_set(version), "elem": sorted(texts)}}})
    return commands


# --- what nft lists ---------------------------------------------------------------------------------------

VOLATILE = {"handle", "packets", "bytes", "elem"}


def strip(listing: Iterable[Json]) -> list[Json]:
    """Return a list of a table without what differs from time to time, and without the elements of sets."""
    return [
        {kind: {key: value for key, value in body.items() if key not in VOLATILE}}
        for found in listing
        for kind, body in found.items()
        if kind != "metainfo"
    ]


def read_counters(listing: Iterable[Json]) -> dict[str, int]:
    """Return how many packets each of our counters has counted."""
    counters = (found["counter"] for found in listing if "counter" in found)
    return {counter["name"]: counter["packets"] for counter in counters}


def read_peers(listing: Iterable[Json]) -> set[str]:
    """Return the peers that stand in our sets, as texts."""
    sets = (found["set"] for found in listing if "set" in found)
    return {str(element) for found in sets for element in found.get("elem", ())}


def has_chain(chains: Iterable[Json], family: str, table: str, name: str) -> bool:
    """Return whether there is a chain."""
    place = {"family": family, "table": table, "name": name}
    return any(place.items() <= found["chain"].items() for found in chains if "chain" in found)


def dropping(chains: Iterable[Json]) -> list[str]:
    """Return the families in which FORWARD of iptables drops by policy."""
    gate = {"table": "filter", "name": FORWARD, "hook": "forward", "policy": "drop"}
    found = [chain["chain"] for chain in chains if "chain" in chain]
    return [chain["family"] for chain in found if gate.items() <= chain.items()]


def _jumps(rules: Iterable[Json], chain: str) -> Iterator[Json]:
    """Yield the rules that lead into a chain."""
    to_it = ({"jump": {"target": chain}}, {"goto": {"target": chain}})
    for found in rules:
        if "rule" in found and any(expr in to_it for expr in found["rule"]["expr"]):
            yield found["rule"]


def _accepts(wanted: Ruleset, family: str) -> list[list[Json]]:
    nets = [net for net in wanted.forward if PROTOCOLS[net.version] == family]
    return [[_address(field, "==", net), ACCEPT] for net in nets for field in ("saddr", "daddr")]


def open_forward(wanted: Ruleset, family: str, rules: Iterable[Json]) -> list[Json]:
    """Return the commands that have packets of pods accepted in FORWARD; none if they are already.

    `rules` are those of table filter.
    """
    rules, name = list(rules), wanted.table
    accepts = _accepts(wanted, family)
    found = [rule["rule"]["expr"] for rule in rules if rule.get("rule", {}).get("chain") == name]
    is_led_in = any(rule["chain"] == FORWARD for rule in _jumps(rules, name))
    if not accepts or (found == accepts and is_led_in):
        return []
    chain = {"chain": {"family": family, "table": "filter", "name": name}}
    commands: list[Json] = [{"add": chain}, {"flush": chain}]
    commands += [_add_rule(family, "filter", name, expr) for expr in accepts]
    if not is_led_in:
        jump: list[Json] = [{"jump": {"target": name}}]
        commands.append(_add_rule(family, "filter", FORWARD, jump, "overlayd forward"))
    return commands


def remove_chain(family: str, table: str, name: str, rules: Iterable[Json]) -> list[Json]:
    """Return the commands that remove a chain and what leads there; `rules` are those of its table."""
    chain = {"chain": {"family": family, "table": table, "name": name}}
    commands: list[Json] = [
        {"delete": {"rule": {key: rule[key] for key in ("family", "table", "chain", "handle")}}}
        for rule in _jumps(rules, name)
    ]
    return [*commands, {"flush": chain}, {"delete": chain}]


def rename_chain(family: str, table: str, name: str, new: str) -> Json:
    """Return the command that gives a chain another name; what leads there still does."""
    return {"rename": {"chain": {"family": family, "table": table, "name": name, "newname": new}}}


def legacy_removal(saved: str, table: str, name: str) -> str:
    """Return for iptables-restore what removes a chain; "" if iptables-save has not printed it."""
    lines = saved.splitlines()
    if not any(line.startswith(f":{name} ") for line in lines):
        return ""
    jumps = [line for line in lines if line.startswith("-A ") and line.split()[-2:] == ["-j", name]]
    removed = [f"-D {line.removeprefix('-A ')}" for line in jumps]
    return "\n".join([f"*{table}", *removed, f"-F {name}", f"-X {name}", "COMMIT", ""])


# --- flannel's --------------------------------------------------------------------------------------------


def flannels(masquerade: Masquerade) -> list[Json]:
    """Return the commands that leave masquerading to flannel, in the tables that it calls its own."""
    commands: list[Json] = []
    for family, table in FLANNEL_TABLES:
        nets = tuple(net for net in masquerade.networks if PROTOCOLS[net.version] == family)
        if not nets:
            continue
        commands += [*remove_table(family, table), {"add": {"table": {"family": family, "name": table}}}]
        commands += [_add_chain(family, table, "postrtg"), _add_chain(family, table, "forward")]
        only = replace(masquerade, networks=nets)
        commands += [_add_rule(family, table, "postrtg", expr) for expr in _masquerade_rules(only)]
        for net in nets:
            for field in ("saddr", "daddr"):
                commands.append(_add_rule(family, table, "forward", [_address(field, "==", net), ACCEPT]))
    return commands
