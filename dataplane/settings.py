# SPDX-License-Identifier: Apache-2.0
"""What a backend is to work with, put together from what the reconciler has found out."""

from __future__ import annotations

from dataplane import vtep
from dataplane.backend import Settings
from dataplane.config import RunConfig
from dataplane.model import Encap, HostPlan
from dataplane.reconcile import Reconciler


def find_settings(config: RunConfig, reconciler: Reconciler | None, plan: HostPlan | None) -> Settings | None:
    """Return the settings; None as long as something is missing."""
    assert reconciler is not None
    own, network, underlay = reconciler.own, reconciler.network, reconciler.underlay
    if own is None or network is None or underlay is None or plan is None:
        return None
    encaps = frozenset({network.encap, *config.encap})
    mac = mac6 = own.vtep_mac or own.vtep_mac6
    if mac is None and Encap.VXLAN in encaps:
        mac, mac6 = vtep.load(config.state_dir), vtep.load6(config.state_dir)
    return Settings(
        network=network,
        encaps=encaps,
        tun_name=plan.tun_name,
        mtu=plan.mtu,
        underlay=underlay,
        underlay4=own.public_ip,
        underlay6=own.public_ip6,
        vtep_mac4=own.vtep_mac or mac,
        vtep_mac6=own.vtep_mac6 or mac6,
    )
