# SPDX-License-Identifier: Apache-2.0
"""Reconciliation: from what the store says and what the host is to what must be. Sans-IO.

`apply()` and `host_changed()` take an event, or facts, and the time, and return actions: values that say
what must be, whole, not how to get there. What must be already is not said again.

Which leases become peers is the business of peers.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_network

from dataplane import rivals
from dataplane.alloc import belongs
from dataplane.config import RunConfig
from dataplane.flannel import overlay_mtu
from dataplane.gate import Scene
from dataplane.model import (
    Action,
    Address,
    Alarm,
    Encap,
    Entry,
    Event,
    HostFacts,
    HostPlan,
    Interface,
    Lease,
    LeaseDeleted,
    LeasePut,
    Listed,
    Network,
    NetworkConfig,
    NetworkPut,
    Peer,
    PlanHost,
    Publish,
    Rejected,
    Table,
    can_be_node,
)
from dataplane.pace import Bucket
from dataplane.pathmtu import MTU_MIN
from dataplane.peers import Peers, PeerView
from dataplane.reach import find_broadcasts, find_reach
from dataplane.underlay import find_told

NO_DIRECT = "host-gw needs node addresses that routes can lead to:"
NO_HOLDER = "no interface of this host has"
ALARMS_MAX = 10  # refused leases that one pass tells of
ALARMS_BURST, ALARMS_PER_S = 100, 1.0  # that all passes do
MORE_S = 10.0  # between two words of how many more there are


def _host_prefix(address: Address) -> Network:
    return ip_network((address, address.max_prefixlen))


class Reconciler:
    """Knows the leases and the host; says what must be."""

    def __init__(
        self,
        config: RunConfig,
        facts: HostFacts,
        known_peers: Iterable[Peer] = (),
        *,
        is_leased: bool = False,
    ) -> None:
        """Begin with no leases; `known_peers` are those of the table in force, whose ids stay theirs.

        Our own lease is the one in the store that has an address of this host; with `is_leased`, the one
        that own_changed() tells of.
        """
        self._config = config
        self._facts = facts
        self._peers = Peers(known_peers, config.max_peers)
        self._is_leased = is_leased
        self._own_problem: str | None = "waiting for the store"
        self._published: Table | None = None
        self._planned: HostPlan | None = None
        self._alarm: str | None = None
        self.network: NetworkConfig | None = None
        self.own: Lease | None = None
        self.revision: int | None = None
        self.reason: str | None = "waiting for the store"  # None: everything is as it must be
        self._is_own_sure = False
        self._alarms, self._mores = Bucket(ALARMS_BURST, ALARMS_PER_S), Bucket(1, 1 / MORE_S)
        self._untold = 0  # refused leases

    # --- what is told ---------------------------------------------------------------------------------

    @property
    def reason_part(self) -> str:
        """What the reason is about: store, lease or host."""
        if self.network is None:
            return "store"
        return "host" if self._is_own_sure else "lease"

    def peers(self) -> tuple[PeerView, ...]:
        """Return the leases of all other nodes."""
        return self._peers.views()

    def find(self, name: str) -> Entry | None:
        """Return a lease if it is that of a peer in force."""
        return self._peers.find(name)

    def in_force(self) -> dict[str, Entry]:
        """Return the leases that are those of peers in force, by name."""
        return self._peers.in_force()

    def has_address(self, address: Address) -> bool:
        """Return whether an interface of this host has an address."""
        return self._facts.holder(address) is not None

    @property
    def underlay(self) -> Interface | None:
        """The interface that holds our public address; with --iface, that one or none."""
        if self.own is None:
            return None
        told = find_told(self._config, self._facts, self.network)
        if isinstance(told, str):
            return None
        links = (self._facts.holder(ip, told.name if told else None) for ip in self.own.public_ips())
        return next((link for link in links if link is not None), None)

    # --- what arrives -----------------------------------------------------------------------------------

    def apply(self, event: Event, now: float) -> list[Action]:
        """Take an event of the store; return what must be done."""
        return self.apply_all([event], now)

    def apply_all(self, events: Iterable[Event], now: float) -> list[Action]:
        """Take events of the store, in order; return what must be done after the last."""
        actions: list[Action] = []
        for event in events:
            if isinstance(event, Rejected):
                actions.append(Alarm(event.reason))
            else:
                self._note(event)
        return [*actions, *self._reconcile(now)] if self.revision is not None else actions

    def _note(self, event: Listed | NetworkPut | LeasePut | LeaseDeleted) -> None:
        self.revision = event.revision
        if isinstance(event, Listed):
            self._peers.replace(event.entries)
        elif isinstance(event, LeasePut):
            self._peers.put(event.entry)
        elif isinstance(event, LeaseDeleted):
            self._peers.remove(event.name)
        if isinstance(event, Listed | NetworkPut):
            self._take_network(event)

    def own_changed(self, own: Lease | None, problem: str | None, now: float) -> list[Action]:
        """Take what lease is ours, and why that is not certain; a lease that was ours stays in force."""
        self.own = own or self.own
        self._own_problem = problem
        return self._reconcile(now)

    def host_changed(self, facts: HostFacts, now: float) -> list[Action]:
        """Take new facts of the host; return what must be done."""
        self._facts = facts
        return self._reconcile(now)

    # --- what must be -------------------------------------------------------------------------------------

    def _take_network(self, event: Listed | NetworkPut) -> None:
        """Take the network over, unless it is none, or one in which our pods could not stay."""
        network = event.network
        if network is None:
            self.reason = event.problem if self.network is None else self.reason
        elif self.own is None or not self._is_leased or belongs(self.own.key, network):
            self.network = network

    def _reconcile(self, now: float) -> list[Action]:
        if self._is_leased and self.own is None:
            self.reason = self._own_problem
            return []
        if self.network is None:
            return []
        own, self.reason = (self.own, self._own_problem) if self._is_leased else self._find_own()
        self._is_own_sure = self.reason is None
        if own is None:
            # What was in force stays; a node without a lease has no reason to cut its pods off.
            return self._raise_alarm(self.reason)
        self.own = own
        if self.underlay is None:
            self.reason = self._no_underlay(own)
            return self._raise_alarm(self.reason)
        if self.network.encap is Encap.DIRECT and (ip := self._find_foreign(own, self.underlay)):
            self.reason = f"{NO_DIRECT} {self.underlay.name} does not have the address {ip} of our lease"
            return self._raise_alarm(self.reason)
        plan = self._plan(self.network, own, self.underlay)
        least = max(MTU_MIN[net.version] for net in self.network.networks())
        if plan.mtu < least:
            self.reason = (
                f"pods would get an MTU of {plan.mtu}, at least {least} is needed; raise that of the underlay"
            )
            return self._raise_alarm(self.reason)
        actions = self._judge_peers(own, now)
        missing = next((ip for ip in own.public_ips() if self._facts.holder(ip) is None), None)
        if missing is None:
            self._alarm = None
        else:
            self.reason = self.reason or f"{NO_HOLDER} the address {missing}"
            actions += self._raise_alarm(self.reason)
        if plan != self._planned:
            self._planned = plan
            actions.append(PlanHost(plan))
        table = self._table(own)
        if table != self._published:
            self._published = table
            actions.append(Publish(table))
        return actions

    def warnings(self) -> tuple[str, ...]:
        """Return what the operator should know although the node is ready."""
        encaps = set() if self.network is None else {self.network.encap, *self._config.encap}
        found = [*rivals.warnings(self._facts, encaps)]
        told = None if self.network is None else self.network.underlay_mtu
        link = self.underlay
        if told is not None and link is not None and told > link.mtu:
            found.append(
                f"Backend.MTU is {told}, interface {link.name} has {link.mtu}: larger packets are lost"
            )
        if waiting := self._peers.count_waiting():
            found.append(
                f"{waiting} leases are refused: {self._config.max_peers} count, the --max-peers allowed"
            )
        return tuple(found)

    def check_rivals(self, encaps: frozenset[Encap]) -> None:
        """Raise if the kernel would carry packets past us."""
        rivals.check(self._facts, encaps)

    def _no_underlay(self, own: Lease) -> str:
        told = find_told(self._config, self._facts, self.network)
        if isinstance(told, str):
            return told
        holder = NO_HOLDER if told is None else f"interface {told.name} does not have"
        return f"{holder} the address {own.public_ips()[0]}"

    def _find_foreign(self, own: Lease, underlay: Interface) -> Address | None:
        """Return an address of our lease that other nodes cannot route to, as it is not the underlay's."""
        return next((ip for ip in own.public_ips() if ip not in underlay.addresses), None)

    def _raise_alarm(self, text: str | None) -> list[Action]:
        if text is None or text == self._alarm:
            return []
        self._alarm = text
        return [Alarm(text)]

    def _find_own(self) -> tuple[Lease | None, str | None]:
        """Find our lease by our public address, or say why there is none."""
        told = [ip for ip in (self._config.public_ip, self._config.public_ip6) if ip is not None]
        held = [ip for link in self._facts.interfaces for ip in link.addresses]
        ours = set(told or held)
        matches = self._peers.leases_at(ours)
        if len(matches) == 1:
            return matches[0], None
        if matches:
            keys = ", ".join(str(lease.key) for lease in matches)
            return None, f"leases {keys} all have an address of this host; choose one with --public-ip"
        shown = ", ".join(
            str(ip) for ip in sorted(ours, key=lambda ip: (ip.version, int(ip))) if can_be_node(ip)
        )
        return None, f"no lease has a PublicIP of this host ({shown or 'none'}); add one, or give --public-ip"

    def _judge_peers(self, own: Lease, now: float) -> list[Action]:
        """Decide which leases become peers; return an alarm for each that is newly refused."""
        news = self._peers.judge(self._scene(own), now)
        told = [view for view in news[:ALARMS_MAX] if self._alarms.take("", now)]
        alarms = [Alarm(f"lease {view.entry.title} refused: {view.refused}") for view in told]
        self._untold += len(news) - len(told)
        if self._untold and self._mores.take("", now):
            alarms.append(Alarm(f"{self._untold} more leases refused; see overlayd peers --all"))
            self._untold = 0
        return list(alarms)

    def _scene(self, own: Lease) -> Scene:
        assert self.network is not None
        links = (link for link in self._facts.interfaces if link.name != self._config.tun_name)
        held = (ip for link in links for ip in link.addresses)
        # Link-local addresses come and go with every pod, and no lease can collide with one.
        near = frozenset(ip for ip in held if can_be_node(ip) or self.network.holds(ip))
        encaps = frozenset({self.network.encap, *self._config.encap})
        underlay = self.underlay
        assert underlay is not None
        reach = find_reach(self._config.encapsulate, self._facts, underlay, self.network, encaps)
        broadcasts = find_broadcasts(self._facts, underlay)
        return Scene(self.network, own, near, encaps, self._is_leased, reach, broadcasts)

    def _plan(self, network: NetworkConfig, own: Lease, underlay: Interface) -> HostPlan:
        return HostPlan(
            tun_name=self._config.tun_name,
            mtu=self._mtu(network, own, underlay),
            addresses=tuple(subnet.network_address for subnet in own.key.subnets()),
            # Nothing of the network is to lead anywhere with alloc.
            networks=network.networks() if network.encap is not Encap.NONE else (),
            blackholes=own.key.subnets() if self._config.blackhole_route else (),
        )

    def _mtu(self, network: NetworkConfig, own: Lease, underlay: Interface) -> int:
        """Return the largest packet that fits through every enabled encapsulation."""
        underlay_mtu = network.underlay_mtu or underlay.mtu
        return min(
            overlay_mtu(encap, underlay_mtu, is_underlay6=own.public_ip6 is not None)
            for encap in {network.encap, *self._config.encap}
        )

    def _table(self, own: Lease) -> Table:
        addresses = sorted(
            {ip for link in self._facts.interfaces for ip in link.addresses if _can_be_source(ip)},
            key=lambda ip: (ip.version, int(ip)),
        )
        return Table(
            peers=self._peers.peers(),
            subnets=self._peers.subnets(),
            own=own.key.subnets(),
            sources=tuple(dict.fromkeys((*own.key.subnets(), *map(_host_prefix, addresses)))),
            allowed=self._config.allow_source,
        )


def _can_be_source(ip: Address) -> bool:
    return not (ip.is_loopback or ip.is_link_local or ip.is_multicast or ip.is_unspecified)
