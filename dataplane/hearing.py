# SPDX-License-Identifier: Apache-2.0
"""Says what our tunnel packets look like to who listens for ICMP errors, whenever that changes."""

from __future__ import annotations

from dataplane.backend import Settings
from dataplane.figures import Dataplane
from dataplane.icmp import Tunnels
from dataplane.icmpsocket import Hear, IcmpListener
from dataplane.model import Encap, Table
from dataplane.traffic import find_ports


class Hearing:
    """One listener for all that want to hear."""

    def __init__(self, *hearers: Hear) -> None:
        """Hear nothing yet."""
        self._listener = IcmpListener(*hearers)

    def heed(self, settings: Settings, dataplane: Dataplane, table: Table) -> None:
        """Take how packets leave by now, and to whom."""
        tunnels = Tunnels(
            settings.underlay.index,
            frozenset(ip for ip in (settings.underlay4, settings.underlay6) if ip is not None),
            dataplane.source_ports,
            frozenset(find_ports(settings)),
            has_ipip=Encap.IPIP in settings.encaps,
        )
        self._listener.heed(tunnels, table)

    def close(self) -> None:
        """Hear nothing more."""
        self._listener.close()
