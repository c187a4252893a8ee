# SPDX-License-Identifier: Apache-2.0
"""What `overlayd status` and `overlayd peers` show people; pure functions of the values of figures.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dataplane.errors import one_line

Status = Mapping[str, Any]

EXIT_READY, EXIT_NOT_READY = 0, 1
_SHOWN_LAST = 3  # drop reasons whose last offender is named, most frequent first


def exit_code(status: Status) -> int:
    """Return the exit status of `overlayd status`."""
    return EXIT_READY if status["ready"] else EXIT_NOT_READY


def span(seconds: float | None) -> str:
    """Shorten a time span: `0.1 s`, `42 s`, `4 min`, `3h07`, `3d04h`."""
    if seconds is None:
        return "?"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{int(seconds)} s"
    minutes = int(seconds // 60)
    if minutes < 60:
        return f"{minutes} min"
    hours = minutes // 60
    if hours < 24:
        return f"{hours}h{minutes % 60:02}"
    return f"{hours // 24}d{hours % 24:02}h"


def _why(offloads: Status) -> str:
    # Those that another one is missing for say nothing new.
    reasons = [state.removeprefix("off: ") for state in offloads.values() if state != "on"]
    told = dict.fromkeys(reason for reason in reasons if not reason.startswith("needs "))
    return f" ({'; '.join(told)})" if told else ""


def _head(status: Status) -> str:
    ready = "READY" if status["ready"] else f"NOT READY ({status['reason']})"
    parts = [f"{status['node'] or 'this node'} {ready}"]
    datapath = status.get("datapath", "userspace")
    if status["encap"]:
        # Known once there is a forwarder that was told.
        has_vni = status["encap"] == "vxlan" and status["vni"] is not None
        has_port = status["encap"] in ("vxlan", "flannel-udp") and status["port"] is not None
        wire = f" vni {status['vni']}" if has_vni else ""
        wire += f" port {status['port']}" if has_port else ""
        parts[0] += f"  {datapath} {status['encap']}{wire}"
        reason = str(status.get("datapath_reason"))
        if reason.startswith("auto"):
            parts[0] += f" ({reason})"
    if status["tier"]:
        parts.append(f"tier {status['tier']}{_why(status['offloads'] or {})}")
    forwarder, control, store = status["forwarder"], status["control"], status["store"] or {}
    if datapath == "userspace":
        parts.append(f"forwarder {span(forwarder['uptime_s']) if forwarder['alive'] else 'dead'}")
    if forwarder["restarts"]:
        parts[-1] += f" ({forwarder['restarts']} restarts)"
    if forwarder.get("spare") is not None:
        parts[-1] += ", spare waits"
    parts.append("control dead" if control["pid"] is None else f"control {span(control['uptime_s'])}")
    if store.get("revision") is not None:
        scheme = str(store.get("url")).partition(":")[0]
        parts.append(f"store {scheme} rev {store['revision']}, {span(store.get('age_s'))} ago")
    return " · ".join(parts)


def _lease(lease: Status | None) -> str:
    if lease is None:
        return ""
    expires_in_s, renews_in_s = lease["expires_in_s"], lease["renews_in_s"]
    if expires_in_s is None:
        return " (reserved)"
    if expires_in_s < 0:
        return f" (lease expired {span(-expires_in_s)} ago)"
    if renews_in_s < 0:
        return f" (lease to be renewed, expires in {span(expires_in_s)})"
    return f" (lease renews in {span(renews_in_s)}, expires in {span(expires_in_s)})"


def _network(status: Status) -> str:
    parts = []
    if status["subnet"]:
        parts.append(f"subnet {status['subnet']}{_lease(status.get('lease'))}")
    underlay = status["underlay"]
    if underlay:
        parts.append(
            f"{underlay['iface']} {underlay['address']} mtu {underlay['mtu']} → pods {status['mtu']}"
        )
    peers: Sequence[Status] = status["peers"]
    refused = sum(1 for peer in peers if peer.get("refused"))
    parts.append(f"peers {len(peers) - refused}/{len(peers)}")
    parts.append(f"refused {refused}")
    return " · ".join(parts)


def _drops(way: Status, preposition: str) -> str:
    texts = []
    for rank, (name, count) in enumerate(sorted(way["drops"].items(), key=lambda drop: -drop[1])):
        last = way["last"].get(name)
        text = f"{name} {count}"
        if last and rank < _SHOWN_LAST:
            who = f"{preposition} {last['address']}, " if last["address"] else ""
            text += f" (last {who}{span(last['age_s'])} ago)"
        texts.append(text)
    return ", ".join(texts)


def _direction(status: Status, name: str, preposition: str) -> str:
    way = status[name]
    dropped = sum(way["drops"].values())
    text = f"{name} {way['offered']} = {way['forwarded']} forwarded"
    if not dropped:
        return text + " + 0"
    return f"{text} + {dropped}: {_drops(way, preposition)}"


def _kernel(status: Status) -> list[str]:
    kernel = status["kernel"]
    lines = []
    if kernel["tun_tx_dropped"]:
        lines.append(
            f"!  TUN queue was full: the kernel dropped {kernel['tun_tx_dropped']} packets before we saw them"
        )
    for name, count in kernel["rxq_overflow"].items():
        if count:
            lines.append(
                f"!  {name} socket buffer was full: the kernel dropped {count} packets before we saw them"
            )
    return lines


GUARDED = {
    "laundered": "neither from the underlay nor from us",
    "strangers": "from nodes that are no peers",
}


def status_text(status: Status) -> str:
    """Return what `overlayd status` prints, without the final newline."""
    lines = [
        _head(status),
        _network(status),
        " · ".join((_direction(status, "tx", "to"), _direction(status, "rx", "from"))),
        *_kernel(status),
    ]
    icmp = status.get("icmp") or {}
    if icmp.get("sent"):
        limited = f", {icmp['limited']} more were too many (--icmp-rate)" if icmp["limited"] else ""
        lines.append(f"{icmp['sent']} ICMP errors to pods{limited}")
    if status.get("spoof_observed"):
        lines.append(f"!  {status['spoof_observed']} forged packets let pass (--spoof observe)")
    for name, count in (status.get("guard") or {}).items():
        if count:
            lines.append(f"!  the firewall dropped {count} tunnel packets: {GUARDED[name]} ({name})")
    warnings = list(status["warnings"])
    if status["store"] and status["store"].get("error"):
        warnings.insert(0, f"store: {status['store']['error']}")
    # Control warns of the store too: once is enough.
    lines += [f"!  {warning}" for warning in dict.fromkeys(warnings)]
    return "\n".join(map(one_line, lines))


def columns(rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """Lay out rows in columns; those of `numbers` go to the right."""
    rows = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if i in numbers else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _remark(peer: Status) -> str:
    if peer.get("refused"):
        return f"refused: {peer['refused']}"
    remarks = [f"{name} {count}" for name, count in peer["drops"].items()]
    if said := peer.get("unreachable"):
        remarks.insert(0, f"unreachable, as {said['by']} said {span(said['age_s'])} ago: {said['says']}")
    expires_in_s = peer.get("expires_in_s")
    if expires_in_s is not None and expires_in_s < 0:
        remarks.insert(0, f"stale: expired {span(-expires_in_s)} ago")
    if (held_for_s := peer.get("held_for_s")) is not None:
        remarks.insert(0, f"held: it left the store with others {span(held_for_s)} ago")
    if path := peer.get("path"):
        remarks.insert(0, f"path MTU {path['mtu']} ({path['source']})")
    answers = peer.get("answers")
    if answers is not None and answers["age_s"] is None:
        remarks.append("no answer yet")
    return ", ".join(remarks) or "-"


def _row(peer: Status) -> tuple[str, ...]:
    return (
        "-" if peer["id"] is None else str(peer["id"]),
        str(peer["subnet"]),
        str(peer["public_ip"] or "-"),
        str(peer["vtep_mac"] or "-"),
        str(peer.get("reached") or peer["encap"] or "-"),
        str(peer["tx_packets"]),
        str(peer["rx_packets"]),
        _remark(peer),
    )


def _own_row(status: Status) -> tuple[str, ...]:
    address = (status["underlay"] or {}).get("address")
    return ("-", str(status["subnet"]), str(address or "-"), "-", str(status["encap"]), "-", "-", "our own")


def peers_text(status: Status, *, has_all: bool = False) -> str:
    """Return what `overlayd peers` prints: a table, one line a peer.

    Leases that cannot even be read, and our own, are shown with `has_all` alone.
    """
    rows: list[tuple[str, ...]] = [("ID", "SUBNET", "PUBLIC IP", "VTEP MAC", "ENCAP", "TX", "RX", "DROPS")]
    if has_all and status["subnet"]:
        rows.append(_own_row(status))
    shown = [peer for peer in status["peers"] if has_all or peer["encap"]]
    hidden = len(status["peers"]) - len(shown)
    text = columns([*rows, *map(_row, shown)], numbers=(0, 5, 6))
    return f"{text}\n{hidden} unreadable: overlayd peers --all" if hidden else text
