# SPDX-License-Identifier: Apache-2.0
"""The status of a node as plain JSON values: one layout, whoever fills it in.

`overlayd run` fills it in while it lives; when it is dead, `overlayd status` does, from the forwarder's own
memory (control.inspect_status). The keys are documented for users: only add.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dataplane.model import Address, Encap, MacAddress, Offload, Table, tier_text
from dataplane.native import (
    ENCAP_NAMES,
    Counters,
    CountersHeader,
    Direction,
    ForwarderConfig,
    Totals,
    boottime_s,
)
from dataplane.probing import Answers
from dataplane.slots import Fd

Status = dict[str, object]

RECEIVING = (Fd.UDP4, Fd.UDP6, Fd.RAW4, Fd.BARE4)


@dataclass(frozen=True, slots=True)
class PeerRow:
    """A peer as status shows it, without its counters."""

    id: int | None  # None: refused, so not in the table
    subnet: str
    public_ip: Address | None
    vtep_mac: MacAddress | None
    encap: str | None  # None: unreadable, and then `subnet` is the key as the store has it
    refused: str | None = None
    reached: str | None = None  # `direct`, `vxlan`, ...; `none`: by no way; None: refused, or not known
    refused_for: str | None = None  # the kind of reason
    expires_in_s: float | None = None  # negative: the store has not renewed it, and not deleted it
    unreachable: Status | None = None  # who says so, what, and how long ago
    path: Status | None = None  # what its path takes, if that is less than what the underlay interface does
    answers: Answers | None = None  # None: it was not asked
    held_for_s: float | None = None  # since the store had it no more; None: it is not held


@dataclass(frozen=True, slots=True)
class Dataplane:
    """What is known of the forwarder, living or not."""

    config: ForwarderConfig | None = None
    counters: Counters | None = None
    pid: int | None = None
    is_alive: bool = False
    state: str = "none"
    kind: str = "userspace"
    source_ports: frozenset[int] = frozenset()  # that tunnel packets leave by
    spare_pid: int | None = None  # of the forwarder that waits to take its place
    version: str = ""  # of the forwarder; empty: it does not tell
    build: int = 0  # the same
    hand_over: Status | None = None  # how the last one to it, or from it, went


@dataclass(frozen=True, slots=True)
class Node:
    """What only control knows; it leaves the facts behind for when it is dead."""

    ready: bool
    reason: str
    facts: Status  # node, encap, subnet, mtu, tun, underlay, store, offloads_off
    control: Status
    lease: Status | None = None
    parts: Mapping[str, str | None] = field(default_factory=dict)  # what is wrong with each
    convergence: Status = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    rows: tuple[PeerRow, ...] = field(default=())


def count_tun_drops(tun_name: str) -> int | None:
    """Return how many packets the kernel could not queue on the TUN; None if there is no such device."""
    # /proc/net follows the network namespace of who reads it, /sys that of who mounted it.
    for line in Path("/proc/net/dev").read_text(encoding="ascii", errors="replace").splitlines():
        name, _, counts = line.partition(":")
        if name.strip() == tun_name:
            return int(counts.split()[11])
    return None


def list_peers(table: Table) -> tuple[PeerRow, ...]:
    """List the peers of a table as read back from the forwarder."""
    entries = defaultdict(list)
    for entry in table.subnets:
        entries[entry.peer_id].append(entry)
    return tuple(
        PeerRow(
            peer.id,
            "&".join(str(entry.prefix) for entry in entries[peer.id]),
            peer.addresses[0] if peer.addresses else None,
            next((entry.vtep_mac for entry in entries[peer.id]), None),
            next((ENCAP_NAMES[entry.encap] for entry in entries[peer.id]), ENCAP_NAMES[0]),
        )
        for peer in table.peers
    )


def _describe_direction(direction: Direction | None) -> Status:
    if direction is None:
        return {"offered": 0, "forwarded": 0, "bytes": 0, "drops": {}, "last": {}}
    return {
        "offered": direction.offered,
        "forwarded": direction.forwarded,
        "bytes": direction.bytes,
        "drops": direction.drops,
        "last": {
            name: {"address": _text(last.address), "age_s": round(last.age_s, 3)}
            for name, last in direction.last.items()
        },
    }


def _text(value: Address | MacAddress | None) -> str | None:
    return None if value is None else str(value)


def _describe_peer(row: PeerRow, counters: Counters | None) -> Status:
    status: Status = {
        "id": row.id,
        "subnet": row.subnet,
        "public_ip": _text(row.public_ip),
        "vtep_mac": _text(row.vtep_mac),
        "encap": row.encap,
        "reached": row.reached,
        "refused": row.refused,
        "refused_for": row.refused_for,
        "expires_in_s": row.expires_in_s,
        "unreachable": row.unreachable,
        "path": row.path,
        "held_for_s": row.held_for_s,
        "answers": None if row.answers is None else row.answers._asdict(),
    }
    if row.id is None or counters is None:
        return {**status, "tx_packets": 0, "tx_bytes": 0, "rx_packets": 0, "rx_bytes": 0, "drops": {}}
    seen = counters.peer(row.id)
    return {
        **status,
        "tx_packets": seen.tx_packets,
        "tx_bytes": seen.tx_bytes,
        "rx_packets": seen.rx_packets,
        "rx_bytes": seen.rx_bytes,
        "drops": seen.drops,
    }


def name_build(build: int) -> str | None:
    """Return a build as it is shown; None: not known."""
    return f"{build:016x}" if build else None


def _describe_forwarder(dataplane: Dataplane, header: CountersHeader | None, faults: int) -> Status:
    uptime_s = None
    if dataplane.is_alive and header is not None and header.forwarder_s:
        uptime_s = round(boottime_s() - header.forwarder_s, 3)
    return {
        "pid": dataplane.pid,
        "alive": dataplane.is_alive,
        "uptime_s": uptime_s,
        "restarts": 0 if header is None else header.restarts,
        "state": dataplane.state,
        "faults": faults,
        "spare": dataplane.spare_pid,
        "version": dataplane.version or None,
        "build": name_build(dataplane.build),
        "hand_over": dataplane.hand_over,
    }


def _describe_kernel(totals: Totals | None, tun_name: str) -> Status:
    overflow = {fd.name.lower(): 0 for fd in RECEIVING}
    if totals is not None:
        overflow = {fd.name.lower(): totals.queue_drops[fd] for fd in RECEIVING}
    return {"tun_tx_dropped": count_tun_drops(tun_name) or 0, "rxq_overflow": overflow}


def _describe_workers(config: ForwarderConfig) -> Status:
    return {
        "threads": config.threads,
        "queues": config.queues,
        "source_ports": config.sources,
        "spin_us": config.spin_us,
    }


def _describe_offloads(tier: int, refused: int, facts: Mapping[str, object]) -> Status:
    why = facts.get("offloads_off")
    reasons = why if isinstance(why, dict) else {}
    states: Status = {}
    for offload in Offload:
        if offload & refused:
            states[offload.label] = "off: the kernel refused it when it was used"
        elif offload & tier:
            states[offload.label] = "on"
        else:
            states[offload.label] = f"off: {reasons.get(offload.label, 'not known why')}"
    return states


def _find_port(config: ForwarderConfig, facts: Mapping[str, object]) -> int:
    """Return the UDP port of the network's own encapsulation."""
    return config.bare_port if facts.get("encap") == ENCAP_NAMES[Encap.FLANNEL_UDP] else config.vxlan_port


def describe(node: Node, dataplane: Dataplane) -> Status:
    """Put everything together, in the order in which people read it."""
    config, counters, facts = dataplane.config, dataplane.counters, node.facts
    totals = None if counters is None else counters.totals()
    header = None if counters is None else counters.header()
    refused = 0 if totals is None else totals.refused_tier
    rows: Iterable[PeerRow] = node.rows
    return {
        "ready": node.ready,
        "reason": node.reason,
        "parts": dict(node.parts),
        "node": facts.get("node"),
        "tier": None if config is None else tier_text(config.tier & ~refused),
        "offloads": None if config is None else _describe_offloads(config.tier, refused, facts),
        "workers": None if config is None else _describe_workers(config),
        "encap": facts.get("encap"),
        "datapath": dataplane.kind,
        "datapath_reason": facts.get("datapath_reason"),
        "vni": facts.get("vni") if config is None else config.vni,
        "port": facts.get("port") if config is None else _find_port(config, facts),
        "subnet": facts.get("subnet"),
        "lease": node.lease,
        "mtu": facts.get("mtu") if config is None else config.tun_mtu,
        "tun": facts.get("tun"),
        "underlay": facts.get("underlay"),
        "store": facts.get("store"),
        "forwarder": _describe_forwarder(dataplane, header, 0 if totals is None else totals.faults),
        "control": node.control,
        "convergence": node.convergence,
        "tx": _describe_direction(None if totals is None else totals.tx),
        "rx": _describe_direction(None if totals is None else totals.rx),
        "spoof_observed": 0 if totals is None else totals.observed,
        "icmp": {
            "sent": 0 if totals is None else totals.icmp_sent,
            "limited": 0 if totals is None else totals.icmp_limited,
        },
        "kernel": _describe_kernel(totals, str(facts.get("tun"))),
        "guard": facts.get("guard", {}),
        "warnings": list(node.warnings),
        "peers": [_describe_peer(row, counters) for row in rows],
    }
