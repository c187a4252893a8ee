# SPDX-License-Identifier: Apache-2.0
"""/metrics: the figures of the status, by names that the documents list, at a bounded price."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from dataplane import figures, metrics
from dataplane.convergence import Convergence
from dataplane.figures import Dataplane, Node, PeerRow
from dataplane.model import LeaseDeleted, Offload
from dataplane.native import Counters, ForwarderConfig, counters_create

ROOT = Path(__file__).resolve().parents[2]
Values = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def node(rows: tuple[PeerRow, ...] = (), **changes: Any) -> Node:
    """Return what control knows of a node that works."""
    convergence = Convergence()
    convergence.hear(LeaseDeleted(1, "x"), 1.0)
    convergence.take(1)
    convergence.settle(1.2)
    store = {"url": "etcd", "revision": 7, "age_s": 1.5, "error": None}
    fields: dict[str, Any] = {
        "ready": True,
        "reason": "ok",
        "facts": {
            "store": store,
            "tun": "overlay0",
            "encap": "vxlan",
            "mtu": 1450,
            "guard": {"laundered": 2},
        },
        "control": {"pid": 1, "uptime_s": 2.0},
        "lease": {"expires_in_s": 3600.0, "renews_in_s": 1800.0},
        "parts": {"store": None, "lease": None, "host": None, "forwarder": None},
        "convergence": convergence.describe(),
        "rows": rows,
    }
    return Node(**(fields | changes))


def read(page: bytes) -> Values:
    """Return every sample of a page."""
    values: Values = {}
    for family in text_string_to_metric_families(page.decode()):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in values, f"{key} is there twice"
            values[key] = sample.value
    return values


def render(found: Node, dataplane: Dataplane | None = None) -> Values:
    """Return every sample that is served of a node."""
    return read(metrics.render(figures.describe(found, dataplane or Dataplane())))


def get(values: Values, name: str, **labels: str) -> float | None:
    """Return a sample."""
    return values.get((f"overlayd_{name}", tuple(sorted(labels.items()))))


def peer(n: int, **changes: Any) -> PeerRow:
    """Return a peer; each has an id and a subnet of its own."""
    ip = figures_address(n)
    fields = {"id": n, "subnet": f"10.{n >> 8}.{n & 255}.0/24", "public_ip": ip, "vtep_mac": None}
    return PeerRow(**(fields | {"encap": "vxlan"} | changes))


def figures_address(n: int) -> Any:
    """Return an underlay address for each number."""
    from ipaddress import IPv4Address

    return IPv4Address(0xC6120000 + n)


REFUSED = peer(0, id=None, subnet="10.1.1.0/24", refused="spoof", refused_for="subnet", encap="vxlan")
UNREADABLE = PeerRow(None, 'x"\n\\y', None, None, None, "no key", refused_for="unreadable")
STALE = peer(3, expires_in_s=-5.0)


def test_values_of_a_node() -> None:
    """What the status says arrives under its name and labels."""
    said = {"by": "192.0.2.9", "says": "host unreachable", "age_s": 1.0}
    rows = (peer(1, unreachable=said), peer(2, expires_in_s=9.0), STALE, REFUSED, UNREADABLE)
    values = render(node(rows, warnings=("a", "b")))
    assert get(values, "ready") == 1
    assert get(values, "warnings") == 2
    states = ("known", "refused", "stale", "unreachable")
    assert [get(values, "peers", state=state) for state in states] == [5, 2, 1, 1]
    assert [get(values, "icmp_errors_total", result=result) for result in ("sent", "limited")] == [0, 0]
    assert [get(values, "peers_refused", reason=kind) for kind in ("subnet", "unreadable", "count")] == [
        1,
        1,
        0,
    ]
    assert get(values, "store_connected") == 1
    assert get(values, "store_age_seconds") == 1.5
    assert get(values, "store_revision") == 7
    assert get(values, "lease_expires_in_seconds") == 3600
    assert get(values, "lease_renews_in_seconds") == 1800
    assert get(values, "mtu_bytes") == 1450
    assert get(values, "guard_dropped_total", reason="laundered") == 2
    assert get(values, "convergence_seconds_count", change="lease_gone") == 1
    assert get(values, "convergence_seconds_bucket", change="lease_gone", le="0.1") == 0
    assert get(values, "convergence_seconds_bucket", change="lease_gone", le="0.25") == 1
    assert get(values, "packets_dropped_total", direction="rx", reason="spoofed") == 0
    assert (
        get(values, "peer_packets_total", subnet="10.0.1.0/24", public_ip="198.18.0.1", direction="tx") == 0
    )
    assert not [labels for _, labels in values if ("subnet", "10.1.1.0/24") in labels]


def test_path_mtu() -> None:
    """A path that takes less has a series, with who says so; the others have none."""
    narrow = peer(2, path={"mtu": 1300, "source": "icmp", "expires_in_s": 9.0})
    values = render(node((peer(1), narrow, peer(2, subnet="10.9.9.0/24", path=narrow.path))))
    found = {labels: value for (name, labels), value in values.items() if "path_mtu" in name}
    labels = {"public_ip": "198.18.0.2", "source": "icmp", "subnet": "10.0.2.0/24,10.9.9.0/24"}
    assert found == {tuple(sorted(labels.items())): 1300}


def test_not_ready() -> None:
    """What is not ready, not connected or not known is told or left out, never made up."""
    store = {"url": "etcd", "revision": None, "age_s": 9.0, "error": "down"}
    parts = {"store": None, "lease": "lost", "host": None, "forwarder": "no forwarder"}
    values = render(node(ready=False, facts={"store": store}, lease=None, parts=parts))
    assert get(values, "ready") == 0
    assert get(values, "store_connected") == 0
    assert get(values, "store_revision") is None
    assert get(values, "lease_expires_in_seconds") is None
    assert get(values, "forwarder_up") == 0
    assert get(values, "forwarder_uptime_seconds") is None
    assert [get(values, "part_ready", part=part) for part in parts] == [1, 0, 1, 0]
    reserved = render(node(lease={"expires_in_s": None, "renews_in_s": None}))
    assert get(reserved, "lease_expires_in_seconds") is None
    assert get(reserved, "ready") == 1


def test_node_with_two_subnets_is_counted_once() -> None:
    """Peers share an id if they are one node: then there is one set of counters, and one of series."""
    rows = (peer(1), peer(1, subnet="10.9.9.0/24"))
    values = render(node(rows))
    both = {"subnet": "10.0.1.0/24,10.9.9.0/24", "public_ip": "198.18.0.1"}
    assert get(values, "peer_bytes_total", **both, direction="rx") == 0
    assert get(values, "peers", state="known") == 2


def living(fd: int) -> Dataplane:
    """Return a forwarder that has counters."""
    return Dataplane(ForwarderConfig(1, 8472, 2, 1450, tier=int(Offload.MMSG)), Counters(fd), 1, True)


def test_thousand_peers_in_bounded_time() -> None:
    """Figures of 1000 peers take 0.2 s of a processor at most, and their page 1 s: both hold the loop up."""
    found = node(tuple(peer(n) for n in range(1000)))
    dataplane = living(counters_create())
    took_s, wrote_s, page = [], [], b""
    for _ in range(3):
        begun = time.process_time()
        status = figures.describe(found, dataplane)
        took_s.append(time.process_time() - begun)
        begun = time.process_time()
        page = metrics.render(status)
        wrote_s.append(time.process_time() - begun)
    assert min(took_s) < 0.2
    assert min(wrote_s) < 1.0
    values = read(page)
    assert sum(name == "overlayd_peer_packets_total" for name, _ in values) == 2000
    assert get(values, "offload_in_use", offload="mmsg") == 1
    assert get(values, "offload_in_use", offload="udp-gso") == 0


def documented() -> dict[str, set[str]]:
    """Return the table of docs/operations.md: metrics with their labels."""
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    table = text.partition("\n## Metrics\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| .+ \|$", table, re.MULTILINE)
    return {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in rows}


def test_documents_list_what_is_served() -> None:
    """The table of metrics names each that is served, with its labels, and no other."""
    fd = counters_create()
    status = figures.describe(node((peer(1),)), living(fd))
    peers: Any = status["peers"]
    peers[0] |= {"drops": {"spoofed": 3}, "path": {"mtu": 1300, "source": "icmp"}}
    served: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(metrics.render(status).decode()):
        if family.name.startswith("overlayd_"):
            suffix = "_total" if family.type == "counter" else ""
            labels = {label for sample in family.samples for label in sample.labels} - {"le"}
            served[family.name + suffix] = labels
    assert documented() == served
