# SPDX-License-Identifier: Apache-2.0
"""The fuzz targets in Python: texts of others are values, or the named error, and never anything else.

guided.py runs them. A mutation puts words of the format in place of others, since hardly any change of a
letter leaves a text that is accepted.
"""

from __future__ import annotations

import copy
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from dataplane import cni, flannel
from dataplane.errors import ConfigError, OverlaydError, StoreError
from dataplane.known import Known, key_of
from dataplane.model import LeaseDeleted, LeasePut, NetworkPut
from dataplane.store import registry
from dataplane.store.file import parse_peers
from dataplane.store.keyvalue import Record
from dataplane.store.registry import CONFIG, PROBLEM_MAX, SUBNETS

NETWORK = {
    "Network": "10.244.0.0/16",
    "SubnetLen": 24,
    "SubnetMin": "10.244.1.0",
    "SubnetMax": "10.244.250.0",
    "EnableIPv6": True,
    "IPv6Network": "fd00:244::/48",
    "Backend": {"Type": "vxlan", "VNI": 1, "Port": 8472, "DirectRouting": False, "MTU": 1400},
}
SHORT = '{"Network":"10.1.0.0/16"}'
LEASE = {
    "PublicIP": "192.0.2.7",
    "PublicIPv6": "2001:db8::7",
    "BackendType": "vxlan",
    "BackendData": {"VNI": 1, "VtepMAC": "02:4f:00:00:04:07"},
    "BackendV6Data": {"VNI": 1, "VtepMAC": "02:4f:00:00:06:07"},
}
KEY = "10.244.7.0-24&fd00:244:0:7::-64"
ENV = (
    "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.7.1/24\nFLANNEL_IPV6_NETWORK=fd00:244::/48\n"
    "FLANNEL_IPV6_SUBNET=fd00:244:0:7::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
)
TOLD_EVERY = 1000
WORDS = re.compile(r'"(?:[^"\\]|\\.)*"|[\w.:/&-]+|\s+|.', re.DOTALL)
PARTS = re.compile(r"\d+|[A-Za-z_]+|.", re.DOTALL)
VALUES = ["0", "1", "-1", "24", "28", "32", "64", "128", "4096", "65535", "4294967296", "1e9", "null", "true"]
VALUES += ["false", "[]", "{}", '""', '"\\ud800"', '"10.244.8.0"', '"0.0.0.0"', '"255.255.255.255"']
VALUES += ['"::ffff:1.2.3.4"', '"ff:ff:ff:ff:ff:ff"']
COMMON = [*VALUES, "\0", "\n", "ä", "192.0.2.8", "fd00:244:0:8::/64"]


def is_line(text: str) -> bool:
    """Is a reason one line that can be shown anywhere?"""
    return text.isprintable() and bool(text) and bool(text.encode())


def refuse(err: Exception, *, begins: str = "", is_right: bool = True) -> bool:
    """Return False for a refusal, which must say why; to people in one line."""
    assert str(err)
    assert str(err).startswith(begins), err
    assert is_line(str(err)) or not isinstance(err, OverlaydError), err
    assert is_right
    return False


# --- what must hold -----------------------------------------------------------------------------------


def check_lease(text: str) -> bool:
    """A lease value is a lease that comes back the same, or a reason; others are known as before."""
    good = registry.read_entry(Record(SUBNETS + "10.244.9.0-24", json.dumps(LEASE), 1, 1), 0.0)
    known = Known([good])
    for name in (KEY, "10.244.7.0-24", "fd00:244:0:7::-64"):
        entry = registry.read_entry(Record(SUBNETS + name, text, 2, 3, 60.0), 5.0)
        assert (entry.lease is None) == bool(entry.problem)
        known.put(entry)
        assert known.get(good.name) == good
        if entry.lease is None:
            assert entry.problem
            assert is_line(entry.problem)
            assert len(entry.problem) <= PROBLEM_MAX + 1
            continue
        assert (entry.created, entry.changed, entry.expires_s) == (2, 3, 65.0)
        value = flannel.lease_value(entry.lease)
        again = registry.read_entry(Record(SUBNETS + name, value, 2, 3, 60.0), 5.0)
        assert again.problem or again.lease
        assert again.lease is None or flannel.lease_value(again.lease) == value
        return True
    return False


def check_network(text: str) -> bool:
    """A network config is a value that is stored as what it is, or one line that says why not."""
    lax, problem = registry.read_network(text)
    assert (lax is None) == bool(problem)
    assert problem is None or is_line(problem)
    try:
        network, stored = registry.parse_config(text)
    except ConfigError as err:
        return refuse(err)
    assert lax == network
    assert registry.parse_config(stored) == (network, stored)
    return True


def check_peers(text: str) -> bool:
    """A peers file is a network and its leases, each within it, or one line that says where it is wrong."""
    try:
        network, leases = parse_peers(text)
    except (ConfigError, StoreError) as err:
        return refuse(err, begins="peers.json")
    subnets = [lease.key.subnet for lease in leases if lease.key.subnet is not None]
    assert all(network.network is not None and subnet.subnet_of(network.network) for subnet in subnets)
    assert not any(one.overlaps(two) for at, one in enumerate(subnets) for two in subnets[:at])
    return True


def check_key(text: str) -> bool:
    """A key of the store is a lease's, the network's, or nobody's; who reads it writes the same again."""
    record = Record(text, None, 1, 2)
    event = registry.read_change(record, 0.0)
    assert event is None or isinstance(event, LeaseDeleted | NetworkPut)
    assert (event is None) == (text != CONFIG and not text.startswith(SUBNETS))
    put = registry.read_change(Record(text, json.dumps(LEASE), 1, 2), 0.0)
    entry = put.entry if isinstance(put, LeasePut) else None
    assert entry is None or (entry.lease is None) == bool(entry.problem)
    assert entry is None or entry.problem is None or is_line(entry.problem)
    if entry is not None:
        key_of(entry)
    name = text.removeprefix(SUBNETS)
    try:
        key = flannel.parse_key(name)
    except ValueError as err:
        return refuse(err, is_right=entry is None or entry.lease is None)
    assert flannel.parse_key(flannel.format_key(key)) == flannel.parse_key(str(key)) == key
    return True


def check_env(text: str) -> bool:
    """A subnet.env makes a network for pods, or a line says why not; reading our own never fails."""
    flannel.parse_subnet_env(text)
    try:
        env = cni.parse_subnet_env(text)
    except ValueError as err:
        return refuse(err)
    conf = cni.format_conf(cni.build(env, cni.Wish()))
    assert cni.is_ours(conf)
    assert len(env.subnets) <= 2
    return True


# --- inputs -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Target:
    """What is fed with texts: whether one was accepted; how good ones look; words besides those in them."""

    check: Callable[[str], bool]
    good: tuple[str, ...]
    words: tuple[str, ...] = ()
    is_json: bool = True

    def words_of(self, text: str) -> list[str]:
        """Cut a text where the format does; without JSON there is more than one word in an address."""
        return (WORDS if self.is_json else PARTS).findall(text)


def peers_text() -> str:
    """Return a good peers file."""
    leases = {KEY: LEASE, "10.244.8.0/24": {"PublicIP": "192.0.2.8", "BackendType": "ipip"}}
    return json.dumps({"network": NETWORK, "leases": leases}, indent=1)


TARGETS = {
    "lease_json": Target(
        check_lease,
        (json.dumps(LEASE), '{"PublicIP":"192.0.2.9"}', '{"PublicIP":"192.0.2.9","BackendType":"host-gw"}'),
        ('"ipip"', '"udp"', '"host-gw"', '"alloc"', '"publicip"', '"VtepMAC"', '"Extra"'),
    ),
    "network_json": Target(
        check_network,
        (
            json.dumps(NETWORK),
            '{"Network":"10.1.0.0/16"}',
            '{"Network":"10.1.0.0/16","Backend":{"Type":"udp"}}',
        ),
        ('"ipip"', '"udp"', '"host-gw"', '"Learning"', '"GBP"', '"EnableIPv4"', '"IPv6SubnetLen"', '"Extra"'),
    ),
    "peers_json": Target(
        check_peers, (peers_text(), '{"network":{"Network":"10.1.0.0/16"}}'), ('"10.244.9.0/24"',)
    ),
    "store_keys": Target(
        check_key,
        (SUBNETS + KEY, SUBNETS + "10.244.7.0-24", SUBNETS + "fd00:244:0:7::-64", CONFIG, "10.244.7.0/24"),
        ("&", "-", "/", "::", "01", "10.244.7.1", "subnets/subnets/"),
        is_json=False,
    ),
    "subnet_env": Target(
        check_env,
        (ENV, ENV.replace("true", "false"), "FLANNEL_SUBNET=10.1.2.1/24\n"),
        ("FLANNEL_", "=", ","),
        is_json=False,
    ),
}


def mutate_words(target: Target, text: str, dice: Random) -> str:
    """Put words of the format in place of others, or numbers in place of numbers."""
    words = target.words_of(text)
    spare = [*COMMON, *target.words, *target.words_of(dice.choice(target.good))]
    for _ in range(dice.choice((1, 1, 1, 2, 4))):
        numbers = [at for at, word in enumerate(words) if word.isdecimal()]
        if numbers and dice.random() < 0.8:
            words[dice.choice(numbers)] = str(nearby(dice))
            continue
        at = dice.randrange(len(words) + 1)
        replaced = dice.choice((0, 1, 1, 1, 2))
        words[at : at + replaced] = [dice.choice(spare)] if dice.random() < 0.8 else []
    return "".join(words)


def nearby(dice: Random) -> int:
    """Return a number, mostly one that an address may hold."""
    return dice.choice((dice.randrange(10), dice.randrange(256), dice.choice((24, 32, 64, 1450, 1 << 17))))


def vary(value: object, dice: Random) -> object:
    """Return another value of the same type, close to it where there are numbers."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return nearby(dice)
    if isinstance(value, str):
        numbers = list(re.finditer(r"\d+", value))
        if numbers:
            found = dice.choice(numbers)
            return f"{value[: found.start()]}{nearby(dice)}{value[found.end() :]}"
    return value


def places(value: object) -> Iterator[tuple[dict[str, Any] | list[Any], Any]]:
    """Yield where every value of a document stands: what holds it, and its name or number there."""
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from places(value[key])


def mutate_json(target: Target, text: str, dice: Random) -> str:
    """Vary values, put others in their place, and leave some out; it stays JSON."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = json.loads(dice.choice(target.good))
    spare = [json.loads(word) for word in VALUES]
    spare += [holder[key] for text in target.good for holder, key in places(json.loads(text))]
    for _ in range(dice.choice((0, 0, 1, 1, 1, 2))):
        found = list(places(document))
        if not found:
            break
        holder, key = dice.choice(found)
        if isinstance(holder, dict) and dice.random() < 0.3:
            value = holder.pop(key)
            if dice.random() < 0.3:
                holder[dice.choice(target.words).strip('"') + dice.choice(("", "", "x"))] = value
        else:
            is_close = dice.random() < 0.8
            holder[key] = vary(holder[key], dice) if is_close else copy.deepcopy(dice.choice(spare))
    return json.dumps(document, indent=dice.choice((None, None, 1)), ensure_ascii=dice.random() < 0.5)


def mutate(target: Target, text: str, dice: Random) -> str:
    """Change a text, or a good one in its place: most that is kept was refused."""
    if dice.random() < 0.85:
        text = dice.choice(target.good)
    if target.is_json and dice.random() < 0.9:
        return mutate_json(target, text, dice)
    return mutate_words(target, text, dice)


class Counted:
    """Calls the check of a target, and counts what it accepts."""

    def __init__(self, target: Target) -> None:
        """Begin with nothing counted."""
        self._target = target
        self.inputs = self.accepted = 0

    def __call__(self, data: bytes) -> None:
        """Run one input; tell run.py from time to time, since nothing of ours runs at the end."""
        self.inputs += 1
        self.accepted += self._target.check(data.decode("utf-8", "replace"))
        if self.inputs % TOLD_EVERY == 0 or not self.inputs & (self.inputs - 1):
            print(f"accepted: {self.accepted} of {self.inputs}", file=sys.stderr, flush=True)


def mutations(target: str, count: int) -> Iterator[str]:
    """Yield mutations of good texts, always the same ones."""
    dice = Random(1)
    for _ in range(count):
        yield mutate(TARGETS[target], dice.choice(TARGETS[target].good), dice)


def seeds(target: str) -> Iterator[bytes]:
    """Yield what a target begins with."""
    for text in (*TARGETS[target].good, *mutations(target, 20)):
        yield text.encode("utf-8", "replace")


def write(target: str, directory: Path) -> int:
    """Write the seeds of a target into a directory; return how many there are."""
    directory.mkdir(parents=True, exist_ok=True)
    count = 0
    for count, seed in enumerate(seeds(target), 1):
        (directory / f"seed-{count:03}").write_bytes(seed)
    return count
