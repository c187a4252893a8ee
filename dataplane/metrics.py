# SPDX-License-Identifier: Apache-2.0
"""The status of a node in Prometheus' text format: the same figures as `overlayd status --json`.

Imported only where /metrics is served: prometheus_client takes longer to import than all of `status`.
docs/operations.md lists every metric, and a test holds it to that.
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from dataplane import VERSION
from dataplane.gate import KINDS
from dataplane.native import DROP_NAMES

KIND = CONTENT_TYPE_LATEST
Status = Mapping[str, Any]
Labels = Mapping[str, str]
Samples = Sequence[tuple[Labels, float | None]]  # None: not known, so not shown
DIRECTIONS = ("tx", "rx")


def _gauge(name: str, text: str, *samples: tuple[Labels, float | None]) -> Metric:
    return _fill(GaugeMetricFamily(f"overlayd_{name}", text), samples)


def _counter(name: str, text: str, samples: Samples) -> Metric:
    return _fill(CounterMetricFamily(f"overlayd_{name}", text), samples, "_total")


def _fill(family: Metric, samples: Samples, suffix: str = "") -> Metric:
    for labels, value in samples:
        if value is not None:
            family.add_sample(family.name + suffix, dict(labels), value)
    return family


def _node(status: Status) -> Iterator[Metric]:
    build = {"version": VERSION, "python": platform.python_version()}
    yield _gauge("build_info", "Which overlayd this is; 1", (build, 1))
    kind = {name: str(status[name] or "") for name in ("datapath", "encap", "tier")}
    yield _gauge("datapath_info", "What carries the packets, and how; 1", (kind, 1))
    offloads = status["offloads"] or {}
    yield _gauge(
        *("offload_in_use", "Whether an offload is used"),
        *(({"offload": name}, state == "on") for name, state in offloads.items()),
    )
    yield _gauge("ready", "Whether pods on this node can talk", ({}, status["ready"]))
    yield _gauge(
        *("part_ready", "Whether a part of what that needs is as it must be"),
        *(({"part": name}, problem is None) for name, problem in status["parts"].items()),
    )
    yield _gauge("warnings", "How many warnings overlayd status shows", ({}, len(status["warnings"])))
    yield _gauge("mtu_bytes", "MTU of the overlay device", ({}, status["mtu"]))
    forwarder = status["forwarder"]
    yield _gauge("forwarder_up", "Whether there is a forwarder", ({}, forwarder["alive"]))
    yield _gauge("forwarder_spare", "Whether another one waits", ({}, forwarder["spare"] is not None))
    yield _gauge("forwarder_uptime_seconds", "How long it has run", ({}, forwarder["uptime_s"]))
    yield _counter("forwarder_restarts", "Forwarders that were replaced", [({}, forwarder["restarts"])])
    yield _counter("forwarder_faults", "Its system calls that failed", [({}, forwarder["faults"])])


def _store(status: Status) -> Iterator[Metric]:
    store, lease = status["store"] or {}, status["lease"] or {}
    age_s = store.get("age_s")
    is_connected = age_s is not None and store.get("error") is None
    yield _gauge("store_connected", "Whether the store is followed", ({}, is_connected))
    yield _gauge("store_age_seconds", "When it last said something", ({}, age_s))
    yield _gauge("store_revision", "Revision of it that is in force", ({}, store.get("revision")))
    yield _gauge(
        "lease_expires_in_seconds", "How long our lease lasts unless renewed", ({}, lease.get("expires_in_s"))
    )
    yield _gauge("lease_renews_in_seconds", "When it is to be renewed", ({}, lease.get("renews_in_s")))


def _packets(status: Status) -> Iterator[Metric]:
    ways = {name: status[name] for name in DIRECTIONS}
    for name, key, text in (
        ("packets_offered", "offered", "Packets that reached the forwarder"),
        ("packets_forwarded", "forwarded", "Packets that it passed on"),
        ("bytes_forwarded", "bytes", "Their bytes, without outer headers"),
    ):
        yield _counter(name, text, [({"direction": way}, found[key]) for way, found in ways.items()])
    yield _counter(
        *("packets_dropped", "Packets that it refused, by reason"),
        [
            ({"direction": way, "reason": reason}, found["drops"].get(reason, 0))
            for way, found in ways.items()
            for reason in DROP_NAMES[1:]
        ],
    )
    yield _counter(
        "spoof_observed", "Forged packets let pass by --spoof observe", [({}, status["spoof_observed"])]
    )
    yield _counter(
        *("icmp_errors", "ICMP errors to pods: written, or one too many for --icmp-rate"),
        [({"result": result}, count) for result, count in status["icmp"].items()],
    )
    yield _counter(
        *("guard_dropped", "Tunnel packets that the firewall dropped, by reason"),
        [({"reason": reason}, count) for reason, count in status["guard"].items()],
    )
    queues = {"tun": status["kernel"]["tun_tx_dropped"], **status["kernel"]["rxq_overflow"]}
    yield _counter(
        *("kernel_dropped", "Packets that the kernel dropped before the forwarder saw them"),
        [({"queue": name}, count) for name, count in queues.items()],
    )


def _by_id(peers: Sequence[Status]) -> dict[int, list[Status]]:
    """Group rows by peer: a node with several subnets has one set of counters."""
    found: dict[int, list[Status]] = {}
    for peer in peers:
        if peer["id"] is not None:
            found.setdefault(peer["id"], []).append(peer)
    return found


def _peers(status: Status) -> Iterator[Metric]:
    peers: Sequence[Status] = status["peers"]
    states = {
        "known": len(peers),
        "refused": sum(peer["refused"] is not None for peer in peers),
        "stale": sum((peer["expires_in_s"] or 0.0) < 0 for peer in peers),
        "unreachable": sum(peer["unreachable"] is not None for peer in peers),
        "held": sum(peer["held_for_s"] is not None for peer in peers),
    }
    yield _gauge(
        *(
            "peers",
            "Leases of other nodes: known are all, refused are no peers, stale have expired, held have left",
        ),
        *(({"state": name}, count) for name, count in states.items()),
    )
    kinds = Counter(peer["refused_for"] for peer in peers)
    yield _gauge(
        *("peers_refused", "Leases of other nodes that are no peers, by kind of reason"),
        *(({"reason": kind}, kinds[kind]) for kind in KINDS),
    )
    rows = [
        ({"subnet": ",".join(row["subnet"] for row in group), "public_ip": str(group[0]["public_ip"])}, group)
        for group in _by_id(peers).values()
    ]
    for name, key, text in (
        ("peer_packets", "packets", "Packets forwarded to and from a peer"),
        ("peer_bytes", "bytes", "Their bytes, without outer headers"),
    ):
        yield _counter(
            *(name, text),
            [
                ({**labels, "direction": way}, group[0][f"{way}_{key}"])
                for labels, group in rows
                for way in DIRECTIONS
            ],
        )
    yield _counter(
        *("peer_packets_dropped", "Packets to or from a peer that were refused, by reason"),
        [
            ({**labels, "reason": reason}, count)
            for labels, group in rows
            for reason, count in group[0]["drops"].items()
        ],
    )
    yield _gauge(
        *("peer_path_mtu_bytes", "What the path to a peer takes, where that is less than the interface does"),
        *(({**labels, "source": path["source"]}, path["mtu"]) for labels, path in _paths(rows)),
    )


def _paths(rows: Sequence[tuple[Labels, list[Status]]]) -> Iterator[tuple[Labels, Status]]:
    return ((labels, row["path"]) for labels, group in rows for row in group[:1] if row.get("path"))


def _convergence(status: Status) -> Iterator[Metric]:
    family = HistogramMetricFamily(
        "overlayd_convergence_seconds",
        "From hearing of a change in the store until it is in force",
        labels=["change"],
    )
    for change, found in status["convergence"].items():
        buckets = [*found["within_s"].items(), ("+Inf", found["count"])]
        family.add_metric([change], buckets, found["sum_s"])
    yield family


class _Once:
    """What a registry asks when it is read."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """Yield every metric."""
        for part in (_node, _store, _packets, _peers, _convergence):
            yield from part(self._status)


def render(status: Status) -> bytes:
    """Return the page for a status as figures.describe() lays it out."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Once(status))
    ProcessCollector(registry=registry)
    return generate_latest(registry)
