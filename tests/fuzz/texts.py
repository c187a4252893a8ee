# SPDX-License-Identifier: Apache-2.0
"""The fuzz targets in Python: texts of others are values, or the named error, and never anything else.

guided.py runs them by coverage, blind.py many times as fast without; rewrite.py makes what they are fed with.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random

from dataplane import cni, flannel
from dataplane.errors import ConfigError, OverlaydError, StoreError
from dataplane.known import Known, key_of
from dataplane.model import LeaseDeleted, LeasePut, NetworkPut
from dataplane.store import registry
from dataplane.store.file import parse_peers
from dataplane.store.keyvalue import Record
from dataplane.store.registry import CONFIG, PROBLEM_MAX, SUBNETS
from tests.fuzz.rewrite import Rewriter

NETWORK = {
    "Network": "10.244.0.0/16",
    "SubnetLen": 24,
    "SubnetMin": "10.244.1.0",
    "SubnetMax": "10.244.250.0",
    "EnableIPv6": True,
    "IPv6Network": "fd00:244::/48",
    "Backend": {"Type": "vxlan", "VNI": 1, "Port": 8472, "DirectRouting": False, "MTU": 1400},
}
LEASE = {
    "PublicIP": "192.0.2.7",
    "PublicIPv6": "2001:db8::7",
    "BackendType": "vxlan",
    "BackendData": {"VNI": 1, "VtepMAC": "02:4f:00:00:04:07"},
    "BackendV6Data": {"VNI": 1, "VtepMAC": "02:4f:00:00:06:07"},
}
KEY = "10.244.7.0-24&fd00:244:0:7::-64"
SHORT_PEERS = (
    '{"network":{"Network":"10.1.0.0/16","Backend":{"Type":"ipip"}},'
    '"leases":{"10.1.7.0/24":{"PublicIP":"192.0.2.7","BackendType":"ipip"}}}'
)
NAMES = (KEY, "10.244.7.0-24", "fd00:244:0:7::-64")
GOOD = json.dumps(LEASE)
NEIGHBOUR = registry.read_entry(Record(SUBNETS + "10.244.9.0-24", GOOD, 1, 1), 0.0)
ENV = (
    "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.7.1/24\nFLANNEL_IPV6_NETWORK=fd00:244::/48\n"
    "FLANNEL_IPV6_SUBNET=fd00:244:0:7::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
)
TOLD_EVERY = 1000


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
    name = NAMES[len(text) % len(NAMES)]
    entry = registry.read_entry(Record(SUBNETS + name, text, 2, 3, 60.0), 5.0)
    known = Known([NEIGHBOUR, entry])
    assert known.get(NEIGHBOUR.name) is NEIGHBOUR
    assert (entry.lease is None) == bool(entry.problem)
    if entry.lease is None:
        assert entry.problem
        assert is_line(entry.problem)
        assert len(entry.problem) <= PROBLEM_MAX + 1
        return False
    assert (entry.created, entry.changed, entry.expires_s) == (2, 3, 65.0)
    value = flannel.lease_value(entry.lease)
    again = registry.read_entry(Record(SUBNETS + name, value, 2, 3, 60.0), 5.0)
    assert again.problem or again.lease
    assert again.lease is None or flannel.lease_value(again.lease) == value
    return True


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
    put = registry.read_change(Record(text, GOOD, 1, 2), 0.0)
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


@dataclass(frozen=True)
class Target:
    """What is fed with texts: whether one was accepted; how good ones look; words besides those in them."""

    check: Callable[[str], bool]
    good: tuple[str, ...]
    words: tuple[str, ...] = ()
    is_json: bool = True

    @cached_property
    def rewriter(self) -> Rewriter:
        """Returns what mutates them."""
        return Rewriter(self.good, self.words, is_json=self.is_json)


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
            '{"Network":"10.1.0.0/16","SubnetLen":26,"Backend":{"Type":"vxlan"}}',
            '{"Network":"10.1.0.0/16","Backend":{"Type":"udp"}}',
        ),
        ('"ipip"', '"udp"', '"host-gw"', '"Learning"', '"GBP"', '"EnableIPv4"', '"IPv6SubnetLen"', '"Extra"'),
    ),
    "peers_json": Target(
        check_peers,
        (peers_text(), SHORT_PEERS, '{"network":{"Network":"10.1.0.0/16","Backend":{"Type":"alloc"}}}'),
        ('"10.244.9.0/24"',),
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


def mutate(target: Target, text: str, dice: Random) -> str:
    """Change a text, or a good one in its place."""
    return target.rewriter.rewrite(text, dice)


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
