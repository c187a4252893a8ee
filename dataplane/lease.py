# SPDX-License-Identifier: Apache-2.0
"""The life of our own lease: acquire, renew, lose, win back, release. Sans-IO.

A Lessee is told what the store says and who we are, and is asked what to do next. It answers with one
operation at a time, which carries the revision it relies on, and learns what became of it. It never writes
over what it has not seen, and never over what another node holds:

    acquire   the lease that has our public address; else the subnet of the last subnet.env; else a random one
    hold      renewed when `margin_s` is left of its life; rewritten when our address or MAC changed
    lost      deleted or expired: the same subnet is taken again, as soon as nobody else has it
    taken     somebody else holds the subnet now: nothing is written, the operator must decide

What was ours stays ours for the dataplane in all of this: losing a lease is no reason to cut pods off.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address

from dataplane.alloc import Choose, belongs, claims, fits, pick_key
from dataplane.flannel import format_key
from dataplane.known import Known, key_of
from dataplane.model import (
    Address,
    Encap,
    Entry,
    Event,
    Lease,
    LeaseDeleted,
    LeasePut,
    Listed,
    MacAddress,
    Network,
    NetworkConfig,
    NetworkPut,
    SubnetKey,
)

WAITING = "waiting for the store"
TTL_S = 24 * 3600.0  # flannel.md §1.4
MARGIN_S = 3600.0
RETRY_MIN_S, RETRY_MAX_S = 1.0, 60.0
SPREAD = 25  # percent that a pause may be shorter, so that not all nodes come back at once
CONFLICTS_MAX = 100  # in a row; as many nodes were quicker than we


@dataclass(frozen=True, slots=True)
class Identity:
    """What our lease says of us, whatever the subnet."""

    public_ip: IPv4Address | None
    public_ip6: IPv6Address | None
    encap: Encap
    vtep_mac: MacAddress | None = None
    vtep_mac6: MacAddress | None = None
    vni: int | None = None

    def lease(self, key: SubnetKey) -> Lease:
        """Return our lease of a subnet."""
        return Lease(
            *(key, self.public_ip, self.public_ip6, self.encap, self.vtep_mac, self.vtep_mac6, self.vni)
        )

    @property
    def address(self) -> Address | None:
        """The address by which we are known: flannel compares the IPv4 address alone."""
        return self.public_ip or self.public_ip6


@dataclass(frozen=True, slots=True)
class PutLease:
    """Operation: write a lease in place of that of revision `expected`; 0: where none is."""

    lease: Lease
    ttl_s: float | None
    expected: int


@dataclass(frozen=True, slots=True)
class DropLease:
    """Operation: delete a lease of revision `expected`."""

    name: str
    expected: int


Operation = PutLease | DropLease


def find_mine(entries: Iterable[Entry], address: Address | None) -> list[Entry]:
    """Return the leases that have our address, the oldest first."""
    mine = [
        entry
        for entry in entries
        if entry.lease is not None and address is not None and entry.lease.public_ips()[0] == address
    ]
    return sorted(mine, key=lambda entry: (entry.created, entry.name))


class Lessee:
    """Holds, or tries to hold, one lease. `next_operation()` is asked again after whatever it is told."""

    def __init__(
        self,
        choose: Choose,
        previous: SubnetKey | None = None,
        ttl_s: float = TTL_S,
        margin_s: float = MARGIN_S,
    ) -> None:
        """Know nothing yet. `previous` is the subnet of the last run, `choose` our randomness."""
        self._choose = choose
        self._previous = previous
        self._ttl_s = ttl_s
        self._margin_s = min(margin_s, ttl_s / 2)
        self._entries = Known()
        self._store = ""  # identity
        self._heard = 0  # revision: what is newer was written by us, and is still to be heard of
        self._rival: str | None = None
        self._sent: list[Lease] = []  # what may be in the store though we had no answer
        self._network: NetworkConfig | None = None
        self._identity: Identity | None = None
        self._own: Entry | None = None  # as we wrote or found it last
        self._is_recalled = False  # from the last run: it is still to be written by us
        self._is_leaving = False
        self._waiting: str | None = WAITING  # what stands between us and our lease
        self._trouble: str | None = None  # why the store did not do the last operation
        self._retry_s: float | None = None
        self._pause_s = RETRY_MIN_S
        self._conflicts = 0

    # --- what is told ---------------------------------------------------------------------------------

    @property
    def own(self) -> Entry | None:
        """Our lease, or the last one that was ours."""
        return self._own

    @property
    def is_released(self) -> bool:
        """Whether our lease was given back, for good."""
        return self._is_leaving and self._own is None

    @property
    def rival(self) -> str | None:
        """Who has our subnet instead of us; None if nobody does."""
        return self._rival

    @property
    def trouble(self) -> str | None:
        """Why the store did not do what we wanted last; None if it did."""
        return self._trouble

    def known(self, name: str) -> Entry | None:
        """Return what stands in the store under a name, as far as we have heard."""
        return self._entries.get(name)

    def find_own(self, held: frozenset[Address]) -> Lease | None:
        """Return our lease; before we have one, the oldest that has an address of this host, if any."""
        if self._own is not None:
            return self._own.lease
        leases = [entry for entry in self._entries.values() if entry.lease is not None]
        leases.sort(key=lambda entry: (entry.created, entry.name))
        return next(
            (entry.lease for entry in leases if entry.lease and entry.lease.public_ips()[0] in held), None
        )

    def reason(self, now: float) -> str | None:
        """Say why we are not, or not surely, the owner of our subnet; None if we are."""
        if self._waiting is not None:
            return f"{self._waiting}: {self._trouble}" if self._trouble else self._waiting
        if self._own is not None and self._own.expires_s is not None and self._own.expires_s <= now:
            return f"our lease of {self._own.name} has expired, and the store does not renew it"
        return None

    def renews_s(self) -> float | None:
        """Return when our lease is to be renewed; None if it never is."""
        if self._own is None or self._own.expires_s is None:
            return None
        return self._own.expires_s - self._margin_s

    def wake_s(self, now: float) -> float | None:
        """Return when to ask again, even if nothing happens until then."""
        expires_s = None if self._own is None else self._own.expires_s  # then it is to be told
        times = [at for at in (self._retry_s, self.renews_s(), expires_s) if at is not None]
        return min((at for at in times if now < at < math.inf), default=None)

    # --- what arrives -----------------------------------------------------------------------------------

    def recall(self, own: Entry) -> None:
        """Take what our lease was in the last run: it counts as ours. Nothing is written before a list."""
        self._own, self._is_recalled, self._waiting = own, True, None

    def identify(self, identity: Identity | None, problem: str | None = None) -> None:
        """Take who we are; None, and why, if that is not known."""
        self._identity = identity
        if identity is None and self._own is None:
            self._waiting = problem

    def apply(self, event: Event) -> None:
        """Take what the store says."""
        if isinstance(event, Listed):
            self._take_list(event)
        else:
            self._heard = max(self._heard, event.revision)
        if isinstance(event, Listed | NetworkPut):
            # A network config that is gone or broken changes nothing for who has a lease already.
            self._network = event.network or self._network
            if self._network is None:
                self._waiting = event.problem
        elif isinstance(event, LeasePut):
            self._note(event.entry)
        elif isinstance(event, LeaseDeleted):
            known = self._entries.get(event.name)
            if known is not None and known.changed < event.revision:
                self._entries.drop(event.name)

    def _take_list(self, event: Listed) -> None:
        """Take a whole list; what we wrote since it was made stays, unless this is another store."""
        # Revisions that go back are those of an older copy: what we knew of the newer one is not there.
        is_same = event.identity == self._store and event.revision >= self._heard
        newer = [entry for entry in self._entries.values() if is_same and entry.changed > event.revision]
        self._entries = Known((*event.entries, *newer))
        self._store, self._heard = event.identity, event.revision

    def _note(self, entry: Entry) -> None:
        known = self._entries.get(entry.name)
        if known is None or known.changed < entry.changed:
            self._entries.put(entry)

    # --- what became of an operation ----------------------------------------------------------------------

    def written(self, entry: Entry) -> None:
        """Take that our lease stands in the store like this."""
        if entry.changed > self._heard:  # otherwise we have heard of it, and maybe of its end
            self._note(entry)
        self._settle()
        self._sent.clear()
        self._own, self._is_recalled = entry, False

    def dropped(self, name: str) -> None:
        """Take that a lease is deleted."""
        self._entries.drop(name)
        self._settle()
        if self._own is not None and self._own.name == name:
            self._own = None

    def conflicted(self, name: str, found: Iterable[Entry], now: float) -> None:
        """Take that nothing was written, and what stands in the way: maybe nothing any more."""
        others = list(found)
        if name not in [entry.name for entry in others]:
            self._entries.drop(name)
        for entry in others:
            # One of which we have heard may have ended since: then we know it no more.
            if entry.changed > self._heard or self._entries.get(entry.name) is not None:
                self._note(entry)
        if self._own is None:
            self._sent.clear()
        if others and self._previous is not None and name == format_key(self._previous):
            self._previous = None
        self._conflicts += 1
        if self._conflicts > CONFLICTS_MAX:
            self.failed("others are always quicker", now)

    def failed(self, why: str, now: float) -> None:
        """Take that the store could not be used; it is tried again, more and more rarely."""
        self._trouble = why
        self._conflicts = 0
        self._retry_s = now + self._pause_s * (1 - self._choose(SPREAD + 1) / 100)
        self._pause_s = min(self._pause_s * 2, RETRY_MAX_S)

    def _settle(self) -> None:
        self._trouble = self._retry_s = None
        self._pause_s, self._conflicts = RETRY_MIN_S, 0

    # --- what to do ---------------------------------------------------------------------------------------

    def leave(self) -> None:
        """Give the lease back and take none any more."""
        self._is_leaving = True
        self._retry_s = None

    def next_operation(self, now: float) -> Operation | None:
        """Say what the store is to do now; None: nothing, until wake_s() or until something else is told."""
        operation = self._decide(now)
        if self._retry_s is not None and now < self._retry_s:
            return None
        if operation is None:
            self._settle()  # what failed is not needed any more, or was done nevertheless
        if isinstance(operation, PutLease) and operation.lease not in self._sent:
            self._sent.append(operation.lease)
        return operation

    def _decide(self, now: float) -> Operation | None:
        if self._is_leaving:
            return self._release()
        if self._network is None:
            return None
        if self._own is None:
            return None if self._identity is None else self._acquire(self._network, self._identity, now)
        return self._keep(self._own, self._network, self._identity, now)

    def _release(self) -> Operation | None:
        self._waiting = "the lease was given back"
        current = self._current()
        if self._own is None or current is None or current.lease not in (self._own.lease, *self._sent):
            self._own = None
            return None
        return DropLease(current.name, current.changed)

    def _current(self) -> Entry | None:
        return None if self._own is None else self._entries.get(self._own.name)

    def _acquire(self, network: NetworkConfig, identity: Identity, now: float) -> Operation | None:
        self._waiting = "taking a subnet"
        mine = find_mine(self._entries.values(), identity.address)
        for entry in mine:
            # One outside SubnetMin..SubnetMax may be a reservation, and pods may live in it.
            is_whole = entry.lease and len(entry.lease.key.subnets()) == len(network.networks())
            if entry.lease is not None and is_whole and belongs(entry.lease.key, network):
                return self._adopt(entry, identity.lease(entry.lease.key), now)
        if mine:  # of another network or length: nobody can use it
            return DropLease(mine[0].name, mine[0].changed)
        key = self._previous
        if self._sent and fits(self._sent[-1].key, network):
            key = self._sent[-1].key  # it may be ours by now, and two are one too many
        elif key is None or not fits(key, network) or not self._claimed(network).isdisjoint(key.subnets()):
            # Leases of another length have pods too; but they must not keep us from the last free subnet.
            taken = self._claimed(network)
            key = pick_key(taken | self._others(), network, self._choose)
            key = key or pick_key(taken, network, self._choose)
        if key is None:
            nets = " and ".join(map(str, network.networks()))
            self._waiting = f"no subnet of {nets} is free; see overlayd lease ls, or enlarge the network"
            return None
        self._previous = key
        return PutLease(identity.lease(key), self._ttl_s, 0)

    def _adopt(self, entry: Entry, lease: Lease, now: float) -> Operation | None:
        if entry.expires_s is None and entry.lease == lease:  # a reservation that says the same
            self.written(entry)
            return self._decide(now)
        self._previous = lease.key  # if it is over before we have written
        # A reservation stays one: flannel makes a lease of a day of it.
        return PutLease(lease, None if entry.expires_s is None else self._ttl_s, entry.changed)

    def _claimed(self, network: NetworkConfig) -> set[Network]:
        keys = (key_of(entry) for entry in self._entries.values())
        return {subnet for key in keys if key is not None for subnet in claims(key, network)}

    def _others(self) -> set[Network]:
        """Return all subnets of leases that can be read, whatever their length."""
        leases = (entry.lease for entry in self._entries.values() if entry.lease is not None)
        return {subnet for lease in leases for subnet in lease.key.subnets()}

    def _keep(
        self, own: Entry, network: NetworkConfig, identity: Identity | None, now: float
    ) -> Operation | None:
        assert own.lease is not None
        current, key = self._current(), own.lease.key
        # In a network that our pods are not in, or not knowing who we are, we only keep the lease alive.
        wanted = identity.lease(key) if identity and belongs(key, network) else own.lease
        self._rival = self._find_rival(own, wanted, network)
        if self._rival is not None:
            self._waiting = f"our subnet {own.name} is taken: {self._rival}"
            return None
        self._waiting = None
        if not belongs(key, network):
            self._waiting = (
                f"our subnet {own.name} does not fit the network any more; "
                "to take another one, restart overlayd and recreate the pods"
            )
        if current is None:
            self._waiting = f"our lease of {own.name} is lost; taking it back"
            return PutLease(wanted, self._ttl_s, 0)
        if current.lease is None:  # rubbish is no other node's
            self._waiting = f"our lease of {own.name} was overwritten with rubbish; taking it back"
            return PutLease(wanted, self._ttl_s, current.changed)
        if current.expires_s == math.inf:  # somebody else wrote it for us, and nobody tells when it ends
            current = replace(current, expires_s=now if self._is_recalled else now + self._ttl_s)
            self._entries.put(current)
        self._own = current
        due = self.renews_s()
        if current.lease != wanted or (due is not None and due <= now):
            return PutLease(wanted, None if current.expires_s is None else self._ttl_s, current.changed)
        return None

    def _find_rival(self, own: Entry, wanted: Lease, network: NetworkConfig) -> str | None:
        """Say who holds our subnet instead of us; None if nobody does."""
        assert own.lease is not None
        current = self._current()
        # It may say what we wanted to write although we were told that the write had failed.
        holder = None if current is None else current.lease
        if holder is not None and holder not in (own.lease, wanted, *self._sent):
            return f"its lease was rewritten for {holder.public_ips()[0]}; see overlayd lease ls"
        ours = set(own.lease.key.subnets())
        for entry in self._entries.claimants(ours):
            key = key_of(entry)
            if key is None or ours.isdisjoint(claims(key, network)):
                continue
            if entry.lease is None and current is None:
                return f"{entry.title}, which is no lease, is in its way; see overlayd lease rm"
            is_older = current is None or (entry.created, entry.name) < (current.created, current.name)
            if entry.lease is not None and is_older:
                return f"{entry.lease.public_ips()[0]} has it too, by the lease {entry.name}"
        return None
