# SPDX-License-Identifier: Apache-2.0
"""`overlayd network` and `overlayd lease`: what the operator reads and writes in the lease store.

Each command reads, checks, and writes what relies on the revision it has read; a store that changed in
between is read again. Each returns what there is to print, as text for people or as JSON.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from dataplane import flannel, laststate
from dataplane.alloc import belongs
from dataplane.config import RunConfig
from dataplane.control import ask
from dataplane.errors import ConfigError, NotRunning, RuntimeFailure
from dataplane.lease import find_mine
from dataplane.model import Encap, Entry, Lease, Listed, NetworkConfig
from dataplane.rundir import RunDir
from dataplane.status import columns, span
from dataplane.store import LeaseStore, open_store
from dataplane.store.keyvalue import Conflict
from dataplane.store.registry import NO_NETWORK, parse_config, read_network

TRIES = 10  # how often a store may change under a command
RELEASE_TIMEOUT_S = 15.0

Json = dict[str, object]
Result = TypeVar("Result")


def _use(
    place: RunConfig, work: Callable[[LeaseStore], Awaitable[Result]], *, may_create: bool = False
) -> Result:
    """Do something with the store that a URL names; again, when somebody wrote in between."""

    async def run() -> Result:
        store = open_store(place, may_create=may_create)
        if not isinstance(store, LeaseStore):
            raise ConfigError(f"{place.store} is a file for people to edit; overlayd takes it up by itself")
        try:
            for _ in range(TRIES):
                try:
                    return await work(store)
                except Conflict:
                    continue
            raise RuntimeFailure(f"{place.store} changes all the time; nothing was written")
        finally:
            await store.close()

    return asyncio.run(run())


# --- network --------------------------------------------------------------------------------------------


def network_get(place: RunConfig, *, as_json: bool) -> str:
    """Return the network config as it stands in the store."""
    text, revision = _use(place, lambda store: store.read_config())
    if text is None:
        raise RuntimeFailure(NO_NETWORK)
    config, problem = read_network(text)
    if config is None:
        raise RuntimeFailure(f"{problem}; it says {text[:200]}")
    if not as_json:
        return text
    return json.dumps({"config": json.loads(text), "revision": revision}, indent=2)


def _find_cuts(old: NetworkConfig, new: NetworkConfig, listed: Listed) -> list[str]:
    """Say what a new network config would cut off on nodes that work."""
    cuts = []
    pairs = (
        ("Network", old.network, new.network),
        ("IPv6Network", old.network6, new.network6),
        ("Backend.Type", flannel.BACKEND_NAMES[old.encap], flannel.BACKEND_NAMES[new.encap]),
        ("VNI", old.vni, new.vni),
        ("Port", old.port, new.port),
    )
    changed = [(name, was, will) for name, was, will in pairs if was != will]
    cuts += [
        f"{name} is added" if was is None else f"{name} {was} becomes {will}" for name, was, will in changed
    ]
    leases = [entry.lease for entry in listed.entries if entry.lease is not None]
    homeless = [str(lease.key) for lease in leases if not belongs(lease.key, new) and belongs(lease.key, old)]
    if homeless:
        more = f" and {len(homeless) - 3} more" if len(homeless) > 3 else ""
        cuts.append(f"the leases {', '.join(homeless[:3])}{more} do not fit")
    return cuts


def network_set(place: RunConfig, text: str, *, is_forced: bool) -> str:
    """Write the network config; one that cuts a live network only if it is forced."""
    config, stored = parse_config(text)

    async def work(store: LeaseStore) -> str:
        before, revision = await store.read_config()
        listed = await store.read()
        cuts = _find_cuts(listed.network, config, listed) if listed.network and listed.entries else []
        if cuts and not is_forced:
            raise ConfigError(
                f"the network is in use (leases: {len(listed.entries)}), and this cuts it: "
                f"{'; '.join(cuts)}. To do it nevertheless: --force"
            )
        if stored != before:
            await store.put_config(stored, revision)
        return "nothing to change" if stored == before else f"set: {stored}"

    return _use(place, work, may_create=True)


# --- leases ---------------------------------------------------------------------------------------------


def _describe(entry: Entry, now: float) -> Json:
    lease = entry.lease
    return {
        "key": entry.name,
        "public_ip": None if lease is None or lease.public_ip is None else str(lease.public_ip),
        "public_ipv6": None if lease is None or lease.public_ip6 is None else str(lease.public_ip6),
        "backend": None if lease is None else flannel.BACKEND_NAMES[lease.encap],
        "vtep_mac": None if lease is None or lease.vtep_mac is None else str(lease.vtep_mac),
        "created": entry.created,
        "changed": entry.changed,
        "expires_in_s": entry.left_s(now),
        "problem": entry.problem,
    }


def _line(entry: Entry, now: float) -> tuple[str, ...]:
    left_s = entry.left_s(now)
    life = (
        "never"
        if entry.expires_s is None
        else "some time"
        if left_s is None
        else f"in {span(max(0.0, left_s))}"
    )
    lease = entry.lease
    if lease is None:
        return entry.title, "-", "-", "-", life, str(entry.changed), f"unusable: {entry.problem}"
    mac = lease.vtep_mac or lease.vtep_mac6 or "-"
    node = "&".join(map(str, lease.public_ips()))
    return entry.name, node, flannel.BACKEND_NAMES[lease.encap], str(mac), life, str(entry.changed), ""


def lease_ls(place: RunConfig, *, as_json: bool) -> str:
    """List the leases, in the order of their keys."""
    listed = _use(place, lambda store: store.read())
    now = time.monotonic()
    entries = sorted(listed.entries, key=lambda entry: _order(entry))
    if as_json:
        return json.dumps(
            {"revision": listed.revision, "leases": [_describe(e, now) for e in entries]}, indent=2
        )
    head = ("KEY", "PUBLIC IP", "BACKEND", "VTEP MAC", "EXPIRES", "REVISION", "")
    return columns([head, *(_line(entry, now) for entry in entries)], numbers=(5,))


def _order(entry: Entry) -> tuple[int, int, str]:
    subnets = () if entry.lease is None else entry.lease.key.subnets()
    return (subnets[0].version, int(subnets[0].network_address), "") if subnets else (99, 0, entry.name)


@dataclass(frozen=True, slots=True)
class Wish:
    """A lease that the operator writes by hand, as on the command line."""

    key: str
    public_ip: str | None
    public_ip6: str | None
    backend: str | None  # None: the network's
    vtep_mac: str | None
    ttl_s: float | None  # None: it never expires


def _read_wish(wish: Wish, network: NetworkConfig) -> Lease:
    """Check a wish as if it stood in the store already."""
    value: Json = {"BackendType": wish.backend or flannel.BACKEND_NAMES[network.encap]}
    if wish.public_ip is not None:
        value["PublicIP"] = wish.public_ip
    if wish.public_ip6 is not None:
        value["PublicIPv6"] = wish.public_ip6
    try:
        key = flannel.parse_key(wish.key)
        if flannel.read_encap(value["BackendType"], "--backend") is Encap.VXLAN:
            if wish.vtep_mac is None:
                raise ValueError("--vtep-mac is missing: vxlan needs the MAC address of the node's VTEP")
            data = {"VNI": network.vni, "VtepMAC": wish.vtep_mac}
            value |= {"BackendData": data} if key.subnet is not None else {}
            value |= {"BackendV6Data": data} if key.subnet6 is not None else {}
        elif wish.vtep_mac is not None:
            raise ValueError(f"--vtep-mac: {value['BackendType']} has none")
        lease = flannel.parse_lease(key, value)
        if not belongs(key, network):
            lengths = " and ".join(f"/{part.length}" for part in (network.subnets, network.subnets6) if part)
            nets = " and ".join(map(str, network.networks()))
            raise ValueError(f"{key} is no {lengths} of the network {nets}")
        inside = next((ip for ip in lease.public_ips() if network.holds(ip)), None)
        if inside is not None:
            raise ValueError(
                f"{inside} lies inside the overlay network; expected the node's underlay address"
            )
    except ValueError as err:
        raise ConfigError(str(err)) from None
    return lease


def _find_expected(lease: Lease, listed: Listed, *, is_forced: bool) -> int:
    """Return which revision a hand-written lease takes the place of; refuse to rob another node."""
    name = flannel.format_key(lease.key)
    for entry in find_mine(listed.entries, lease.public_ips()[0]):
        if entry.name != name:
            raise ConfigError(
                f"{lease.public_ips()[0]} has the lease {entry.name} already; lease rm that first"
            )
    for entry in listed.entries:
        shares = entry.lease and not set(entry.lease.key.subnets()).isdisjoint(lease.key.subnets())
        if shares and entry.name != name:
            raise ConfigError(f"{entry.name} is leased already; lease rm that first")
    current = next((entry for entry in listed.entries if entry.name == name), None)
    if current is None:
        return 0
    is_same = current.lease is not None and current.lease.public_ips() == lease.public_ips()
    if not is_same and not is_forced:
        holder = "nobody" if current.lease is None else str(current.lease.public_ips()[0])
        raise ConfigError(f"{name} is leased to {holder}; to take it away: --force")
    return current.changed


def lease_put(place: RunConfig, wish: Wish, *, is_forced: bool, as_json: bool) -> str:
    """Write a lease for a node that does not do so itself."""

    async def work(store: LeaseStore) -> Entry:
        listed = await store.read()
        if listed.network is None:
            raise RuntimeFailure(str(listed.problem))
        lease = _read_wish(wish, listed.network)
        expected = _find_expected(lease, listed, is_forced=is_forced)
        return await store.put(lease, wish.ttl_s, expected)

    entry, now = _use(place, work), time.monotonic()
    if as_json:
        return json.dumps(_describe(entry, now), indent=2)
    return f"{entry.name} is leased to {wish.public_ip or wish.public_ip6}, revision {entry.changed}"


def lease_rm(place: RunConfig, key: str, *, as_json: bool) -> str:
    """Delete a lease, whoever has it; a node that runs takes it again."""

    async def work(store: LeaseStore) -> tuple[str, int]:
        listed = await store.read()
        names = {entry.name: entry for entry in listed.entries}
        name = key if key in names else key.replace("/", "-")
        if name not in names:
            raise RuntimeFailure(f"there is no lease {key}; see overlayd lease ls")
        return name, await store.delete(name, names[name].changed)

    name, revision = _use(place, work)
    return json.dumps({"key": name, "revision": revision}) if as_json else f"{name} is free"


def lease_release(run_dir: Path, place: RunConfig, *, as_json: bool) -> str:
    """Give back the lease of this node, which leaves; `overlayd run` ends, if it runs."""
    try:
        answer = ask(run_dir, {"cmd": "release"}, RELEASE_TIMEOUT_S)
    except NotRunning:
        released = _release_left(run_dir, place)
    else:
        if "error" in answer:
            raise RuntimeFailure(str(answer["error"]))
        released = str(answer["released"])
    text = f"{released} is free. The forwarder still runs; to end it too: overlayd down"
    return json.dumps({"released": released}) if as_json else text


def _release_left(run_dir: Path, place: RunConfig) -> str:
    """Delete the lease that an `overlayd run` which is gone has left, and that is still ours."""
    facts = RunDir(run_dir).read_facts()
    subnet, store, underlay = (facts.get(name) for name in ("subnet", "store", "underlay"))
    if not (isinstance(subnet, str) and isinstance(store, dict) and isinstance(underlay, dict)):
        raise NotRunning(f"no overlayd run answers in {run_dir}, and none left word of a lease there")
    name = flannel.format_key(flannel.parse_key(subnet))

    async def work(registry: LeaseStore) -> None:
        entry = next((entry for entry in (await registry.read()).entries if entry.name == name), None)
        held = [] if entry is None or entry.lease is None else [str(ip) for ip in entry.lease.public_ips()]
        if entry is None or underlay["address"] not in held:
            raise RuntimeFailure(f"the lease {name} is not ours any more; see overlayd lease ls")
        await registry.delete(name, entry.changed)

    _use(replace(place, store=str(store["url"])), work)
    laststate.forget(place.state_dir / laststate.NAME)
    return subnet
