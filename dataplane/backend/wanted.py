# SPDX-License-Identifier: Apache-2.0
"""What a forwarder is told besides its descriptors: from our flags and the settings of the node."""

from __future__ import annotations

from dataplane.backend import Settings
from dataplane.backend.spread import find_spread
from dataplane.config import RunConfig
from dataplane.flannel import find_port
from dataplane.model import OUTER_TTL, Encap
from dataplane.native import ForwarderConfig

# ICMP errors at once, as part of those of a second: with 1000/s that is the kernel's own limit for a host,
# a burst of 50 (icmp_msgs_per_sec).
ICMP_BURST_PARTS = 20


def forwarder_config(
    run: RunConfig, settings: Settings, old: ForwarderConfig | None, room: int | None
) -> ForwarderConfig:
    """Return what is wanted; tier and virtio header are as before, and counters have `room`."""
    spread = find_spread(run)
    return ForwarderConfig(
        vni=settings.network.vni,
        vxlan_port=find_port(settings.network, Encap.VXLAN),
        bare_port=find_port(settings.network, Encap.FLANNEL_UDP),
        underlay_ifindex=settings.underlay.index,
        tun_mtu=settings.mtu,
        tier=0 if old is None else old.tier,
        vnet_hdr_len=0 if old is None else old.vnet_hdr_len,
        icmp_per_s=run.icmp_rate if run.no_route == "icmp" else 0,
        icmp_burst=max(1, run.icmp_rate // ICMP_BURST_PARTS),
        threads=spread.threads if room is None else min(spread.threads, room),
        queues=spread.queues,
        sources=spread.sources,
        spin_us=run.spin_us,
        underlay4=settings.underlay4,
        underlay6=settings.underlay6,
        vtep_mac4=settings.vtep_mac4,
        vtep_mac6=settings.vtep_mac6,
        encaps=settings.encaps,
        spoof_observe=run.spoof == "observe",
        reserved_ignore=run.vxlan_reserved == "ignore",
        dscp_inherit=run.dscp == "inherit",
        ttl_inherit=run.outer_ttl is None,
        outer_ttl=0 if run.outer_ttl in (None, OUTER_TTL) else run.outer_ttl,  # the sockets' need not be said
    )
