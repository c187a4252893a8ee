# SPDX-License-Identifier: Apache-2.0
"""What the underlay says of peers, for a while: the soft state of a tunnel (RFC 2003 section 5). Sans-IO.

An ICMP error that quotes one of our tunnel packets says that a peer cannot be reached. That is a belief and
no more: anybody may have sent it, and it may be over in a moment. So packets for the peer are still sent,
their senders are told as well, the belief ends after 30 s unless it is said again, and at once when the peer
is heard: who forges errors about a peer that talks to us gains nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from dataplane.icmp import IPIP, IcmpError, Trouble
from dataplane.model import SubnetEntry, Table

HOLD_S = 30.0  # as Linux (IPTUNNEL_ERR_TIMEO)

# RFC 2003 section 4: what becomes host unreachable for the sender of the inner packet. The others must not be
# told of, or are about the size of packets.
RELAYED = frozenset(
    {
        Trouble.NET_UNREACHABLE,
        Trouble.HOST_UNREACHABLE,
        Trouble.PROTOCOL_UNREACHABLE,
        Trouble.PROHIBITED,
        Trouble.TIME_EXCEEDED,
    }
)

Received = Callable[[int], int]  # how many packets came from a peer so far


def is_relayed(error: IcmpError) -> bool:
    """Return whether an error means that the peer cannot be reached.

    "Port unreachable" is about the ports of UDP, so the peer has no VXLAN; to IPIP it means nothing, and
    kernels with an IPIP device say it even of packets that somebody took.
    """
    if error.trouble is Trouble.PORT_UNREACHABLE:
        return error.protocol != IPIP
    return error.trouble in RELAYED


@dataclass(frozen=True, slots=True)
class Said:
    """What was said of a peer last, and when."""

    error: IcmpError
    time_s: float
    received: int  # packets that had come from it when it was said first


def describe_said(said: Said, now: float) -> dict[str, object]:
    """Return what status shows of a peer of which something is said."""
    error = said.error
    return {"by": str(error.router), "says": error.trouble.value, "age_s": round(now - said.time_s, 3)}


class SoftState:
    """Which peers are said to be unreachable, by id."""

    def __init__(self) -> None:
        """Believe nothing."""
        self._said: dict[int, Said] = {}
        self._believed: frozenset[int] = frozenset()

    def hear(self, peer_id: int, error: IcmpError, received: Received, now: float) -> None:
        """Take an error about one of our packets to a peer; look() then decides what to think of it."""
        if is_relayed(error):
            former = self._said.get(peer_id)
            self._said[peer_id] = Said(error, now, received(peer_id) if former is None else former.received)

    def look(self, received: Received, now: float) -> bool:
        """Forget what is old, or refuted by packets that came since; True if other peers are believed now."""
        self._said = {
            peer_id: said
            for peer_id, said in self._said.items()
            if now - said.time_s < HOLD_S and received(peer_id) <= said.received
        }
        before, self._believed = self._believed, frozenset(self._said)
        return before != self._believed

    def mark(self, table: Table) -> Table:
        """Return the table with what is believed of its peers."""
        if not self._believed:
            return table
        return replace(table, subnets=tuple(map(self._mark_entry, table.subnets)))

    def _mark_entry(self, entry: SubnetEntry) -> SubnetEntry:
        return replace(entry, is_unreachable=True) if entry.peer_id in self._believed else entry

    def said(self, peer_id: int | None) -> Said | None:
        """Return what is believed of a peer; None: nothing."""
        return self._said.get(peer_id) if peer_id is not None and peer_id in self._believed else None

    @property
    def is_idle(self) -> bool:
        """Whether look() has nothing to find out."""
        return not self._said  # of those, some are believed
