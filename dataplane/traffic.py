# SPDX-License-Identifier: Apache-2.0
"""Traffic management: which firewall rules and reserved ports a node needs, from the start to the end.

The guard is wanted always, and where nftables cannot be had its absence is a warning. Masquerading and the
clamp are wanted if somebody says so, and then there is no node without.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from ipaddress import ip_network

from dataplane import firewall, ruleset
from dataplane.backend import Settings
from dataplane.config import RunConfig
from dataplane.errors import KernelError, RuntimeFailure
from dataplane.firewall import Firewall
from dataplane.flannel import find_port
from dataplane.journal import Journal
from dataplane.model import BARE_ENCAPS, Encap, SubnetKey, Table
from dataplane.ruleset import Guard, Masquerade, Ruleset
from dataplane.sysctls import check_bridges, reserve_ports
from dataplane.vxlan import device_name

log = Journal("traffic")

UDP_ENCAPS = (Encap.VXLAN, Encap.FLANNEL_UDP)


def find_ports(settings: Settings) -> tuple[int, ...]:
    """Return the UDP ports of the encapsulations in use."""
    return tuple(find_port(settings.network, encap) for encap in UDP_ENCAPS if encap in settings.encaps)


def find_devices(config: RunConfig, settings: Settings) -> tuple[str, ...]:
    """Return the overlay devices there are."""
    if settings.encaps <= BARE_ENCAPS:
        return ()
    if config.datapath != "kernel":
        return (settings.tun_name,)
    vni = settings.network.vni
    return tuple(device_name(settings.tun_name, vni, net.version) for net in settings.network.networks())


def plan(config: RunConfig, settings: Settings, key: SubnetKey) -> Ruleset:
    """Return the rules that a node needs."""
    networks, ports = settings.network.networks(), find_ports(settings)
    masquerade = Masquerade(networks, key.subnets(), ports, is_random=not config.masq_plain)
    guard = Guard(
        networks,
        settings.underlay.name,
        tuple(ip for ip in (settings.underlay4, settings.underlay6) if ip is not None),
        ports,
        has_ipip=Encap.IPIP in settings.encaps,
        vni=settings.network.vni if config.datapath == "kernel" else None,
    )
    return Ruleset(
        ruleset.table_name(config.tun_name),
        masquerade if config.ip_masq else None,
        guard if config.guard and (guard.ports or guard.has_ipip) else None,
        networks if config.forward_rules else (),
        find_devices(config, settings) if config.mss_clamp else (),
    )


class Traffic:
    """Keeps rules and ports of one node as they must be."""

    def __init__(self, config: RunConfig, facts: Mapping[str, object]) -> None:
        """Know from the facts that the last run left which ports are ours."""
        self._config = config
        self._firewall = Firewall(config.rules_resync_s)
        self._wanted: Ruleset | None = None
        self._is_clean = False  # of flannel's rules
        self._ports = self._had = read_ports(facts)
        self._ports_trouble: str | None = None

    @property
    def still(self) -> asyncio.Lock:
        """To be held while devices and ports are closed and opened: see Firewall.lock."""
        return self._firewall.lock

    async def apply(self, settings: Settings, key: SubnetKey, table: Table) -> None:
        """Have the rules and ports that a node needs; raises if it cannot have what was asked for."""
        wanted = plan(self._config, settings, key)
        self._wanted = wanted
        await self._firewall.put(wanted, table.peers)
        asked = {"--ip-masq": wanted.masquerade is not None, "--mss-clamp": bool(wanted.clamped)}
        for flag, is_wanted in asked.items():
            if is_wanted and self._firewall.trouble is not None:
                raise RuntimeFailure(f"{flag} cannot be had: {self._firewall.trouble}")
        self._reserve(set(find_ports(settings)))

    async def settle(self) -> None:
        """Take that the table of the last apply() is in force."""
        await self._firewall.settle()

    def _reserve(self, ports: set[int]) -> None:
        """Reserve ports; where settings cannot be written, as in some containers, that is a warning."""
        try:
            self._ports, self._ports_trouble = reserve_ports(ports, self._ports), None
        except KernelError as err:
            self._ports_trouble = str(err)

    async def replace_flannel(self) -> None:
        """Remove flannel's rules where we have taken over from it; ours are in force."""
        if not self._config.takeover or self._is_clean or self._firewall.trouble is not None:
            return
        try:
            removed = await asyncio.to_thread(firewall.clean_flannel)
        except RuntimeFailure as err:
            log.error("flannel's rules are not removed", error=err)
            return
        self._is_clean = True
        if removed:
            log.info("flannel's rules removed", rules=", ".join(removed))
        if removed and not self._config.ip_masq:
            log.warning("flannel may have masqueraded here, and nobody does now: give --ip-masq to go on so")

    async def run(self) -> None:
        """Put right what somebody changes."""
        await self._firewall.run()

    async def undo(self) -> None:
        """Take back a start that failed."""
        self._reserve(self._had)
        await self._firewall.undo()

    # --- for others

    def facts(self) -> dict[str, object]:
        """Return what `down` must know."""
        masquerade = None if self._wanted is None else self._wanted.masquerade
        return {
            "reserved_ports": sorted(self._ports),
            "masquerade": None
            if masquerade is None
            else {
                "networks": list(map(str, masquerade.networks)),
                "subnets": list(map(str, masquerade.subnets)),
                "ports": list(masquerade.ports),
                "is_random": masquerade.is_random,
            },
        }

    def warnings(self) -> list[str]:
        """Return what the operator should know."""
        wanted, trouble = self._wanted, self._firewall.trouble
        warnings = []
        if trouble is not None:
            warnings.append(
                f"no firewall rules, so nothing keeps pods from forging tunnel packets: {trouble}"
            )
        if self._ports_trouble is not None:
            warnings.append(f"other programs may be given the ports of tunnels: {self._ports_trouble}")
        if wanted is not None and wanted.masquerade is not None:
            has_ipv6 = any(net.version == 6 for net in wanted.masquerade.networks)
            warnings += check_bridges(has_ipv6=has_ipv6)
        return warnings

    async def count(self) -> dict[str, int]:
        """Return how many packets the guard has dropped, by reason."""
        return await self._firewall.count()


# --- the end ------------------------------------------------------------------------------------------------


def read_ports(facts: Mapping[str, object]) -> set[int]:
    """Return the ports that are reserved by us, as the facts of a run have it."""
    ports = facts.get("reserved_ports")
    return {port for port in ports if isinstance(port, int)} if isinstance(ports, list) else set()


def _read_masquerade(facts: Mapping[str, object]) -> Masquerade | None:
    found = facts.get("masquerade")
    if not isinstance(found, dict):
        return None
    networks, subnets = (tuple(map(ip_network, found[name])) for name in ("networks", "subnets"))
    return Masquerade(networks, subnets, tuple(found["ports"]), is_random=bool(found["is_random"]))


def end(tun_name: str, facts: Mapping[str, object], *, is_handed_over: bool = False) -> None:
    """Remove our rules and reserved ports; handed over, rules of flannel's do what ours did."""
    if is_handed_over:
        firewall.hand_over(ruleset.table_name(tun_name), _read_masquerade(facts))
    else:
        firewall.remove(ruleset.table_name(tun_name))
    reserve_ports(set(), read_ports(facts))
