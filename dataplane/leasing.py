# SPDX-License-Identifier: Apache-2.0
"""Keeps this node's lease: does in the store what the Lessee wants, and tells it what became of that."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable

from dataplane import journal, vtep
from dataplane.config import RunConfig
from dataplane.errors import RuntimeFailure
from dataplane.flannel import format_key
from dataplane.lease import WAITING, Lessee, Operation, PutLease
from dataplane.model import (
    Encap,
    Entry,
    Event,
    HostFacts,
    Lease,
    Listed,
    MacAddress,
    NetworkConfig,
    NetworkPut,
)
from dataplane.moving import Mover
from dataplane.store import LeaseStore
from dataplane.store.keyvalue import Conflict
from dataplane.store.registry import read_entry
from dataplane.underlay import find_identity

log = journal.Journal("lease")


class Leasing:
    """One node's lease in one store. For one event loop."""

    def __init__(
        self, config: RunConfig, store: LeaseStore, lessee: Lessee, on_change: Callable[[], None]
    ) -> None:
        """Do nothing yet; `on_change` is called when own() or reason() may say something else."""
        self._config = config
        self._store = store
        self._lessee = lessee
        self._on_change = on_change
        self._told: tuple[Lease | None, str | None, bool] = (None, None, False)
        self._network: NetworkConfig | None = None
        self._facts = HostFacts()
        self._macs: tuple[MacAddress, MacAddress] | None = None  # for IPv4 and for IPv6 pods
        self._mover = Mover()
        self._iface: str | None = None  # that had the address of our lease last
        self._wake = asyncio.Event()
        self._refusals = journal.Trouble(log, "store refuses")
        self._has_taken = False  # a subnet that was free before
        self._adopted: Entry | None = None  # the lease that stood where we wrote ours first

    # --- what is told -----------------------------------------------------------------------------

    def own(self) -> Lease | None:
        """Return our lease, or the last one that was ours."""
        entry = self._lessee.own
        return None if entry is None else entry.lease

    def entry(self) -> Entry | None:
        """Return the same as it stands in the store."""
        return self._lessee.own

    def reason(self) -> str | None:
        """Say why our lease is not certain; None if it is."""
        return self._lessee.reason(time.monotonic())

    def warnings(self) -> tuple[str, ...]:
        """Return what the operator should know although the node is ready."""
        trouble = self._lessee.trouble
        return () if trouble is None else (f"the lease is not renewed: {trouble}",)

    def describe(self) -> dict[str, object] | None:
        """Return what status shows of our lease."""
        entry, now = self._lessee.own, time.monotonic()
        if entry is None:
            return None
        renews_s = self._lessee.renews_s()
        return {
            "key": entry.name,
            "revision": entry.changed,
            "expires_in_s": entry.left_s(now),
            "renews_in_s": None if renews_s is None else round(renews_s - now, 3),
        }

    @property
    def rival(self) -> str | None:
        """Who has our subnet instead of us; None if nobody does."""
        return self._lessee.rival

    @property
    def is_released(self) -> bool:
        """Whether the lease was given back."""
        return self._lessee.is_released

    # --- what arrives -----------------------------------------------------------------------------

    def apply_all(self, events: Iterable[Event]) -> None:
        """Take what the store says, in order."""
        for event in events:
            self._lessee.apply(event)
            if isinstance(event, Listed | NetworkPut) and event.network is not None:
                self._network = event.network
                self._identify()
        self._wake.set()

    def recall(self, own: Entry) -> None:
        """Take what our lease was in the last run."""
        self._lessee.recall(own)

    def host_changed(self, facts: HostFacts) -> None:
        """Take new facts of the host."""
        self._facts = facts
        self._identify()
        self._wake.set()

    def release(self) -> None:
        """Give the lease back, and take none any more."""
        self._lessee.leave()
        self._wake.set()

    def _identify(self) -> None:
        if self._network is None or not self._facts.interfaces:
            return
        if self._macs is None and self._network.encap is Encap.VXLAN:
            state_dir = self._config.state_dir
            self._macs = vtep.load(state_dir), vtep.load6(state_dir)
        held, own = self._facts.held(), self.own()
        holder = None if own is None else self._facts.holder(own.public_ips()[0])
        self._iface = self._iface if holder is None else holder.name
        current = self._lessee.find_own(held)
        found = find_identity(self._config, self._facts, self._network, self._macs, current, self._iface)
        if isinstance(found, str):
            self._mover.forget()
            self._lessee.identify(None, found)
        else:
            self._lessee.identify(self._mover.judge(found, own, held, time.monotonic()))

    # --- what is done -----------------------------------------------------------------------------

    async def run(self) -> None:
        """Do what the Lessee wants, for ever; the store may fail and come back."""
        while True:
            now = time.monotonic()
            if self._mover.due_s is not None and self._mover.due_s <= now:
                self._identify()
            operation = self._lessee.next_operation(now)
            if operation is not None:
                await self._do(operation)
            self._tell(is_settled=operation is None)
            if operation is None:
                await self._pause(self._lessee.wake_s(now), self._mover.due_s)

    async def undo(self) -> None:
        """Take back a start that failed: the store says of our subnet what it said before, if anything.

        Whoever it was that had the lease with our address may be at work still: flannel, or another daemon.
        """
        entry, before = self._lessee.own, self._adopted
        if entry is None:
            return
        try:
            if self._has_taken:
                await self._store.delete(entry.name, entry.changed)
            elif before is not None and before.lease is not None and before.lease != entry.lease:
                ttl_s = None if before.expires_s is None else float(self._config.lease_ttl_s)
                await self._store.put(before.lease, ttl_s, entry.changed)
                log.warning("the lease says again what it said before", lease=entry.name)
        except RuntimeFailure as err:
            log.warning("the lease stays", lease=entry.name, error=err)

    def _tell(self, *, is_settled: bool) -> None:
        said = (self.own(), reason := self.reason(), self.is_released)
        if said == self._told:
            return
        if is_settled and reason not in (None, WAITING):
            log.warning("no sure lease", reason=reason)
        if is_settled or reason is None:
            self._told = said
            self._on_change()

    async def _pause(self, *ends_s: float | None) -> None:
        until_s = min((end_s for end_s in ends_s if end_s is not None), default=None)
        timeout_s = None if until_s is None else max(0.0, until_s - time.monotonic())
        try:
            # Not wait_for(): that of Python 3.11 may swallow a cancellation.
            async with asyncio.timeout(timeout_s):
                await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.clear()

    def _log_written(self, before: Entry | None, entry: Entry) -> None:
        was = None if before is None or before.lease is None else before.lease.public_ips()
        now = () if entry.lease is None else entry.lease.public_ips()
        moved = {} if was in (None, now) else {"moved_to": " ".join(map(str, now))}
        done = "leased" if before is None else "lease renewed"
        log.info(done, lease=entry.name, revision=entry.changed, **moved)

    async def _do(self, operation: Operation) -> None:
        name = format_key(operation.lease.key) if isinstance(operation, PutLease) else operation.name
        try:
            if isinstance(operation, PutLease):
                before = self._lessee.own
                if before is None and operation.expected:
                    self._adopted = self._lessee.known(name)
                entry = await self._store.put(operation.lease, operation.ttl_s, operation.expected)
                self._lessee.written(entry)
                self._has_taken |= before is None and operation.expected == 0
                self._log_written(before, entry)
            else:
                await self._store.delete(operation.name, operation.expected)
                self._lessee.dropped(operation.name)
                log.info("lease deleted", lease=name)
            self._refusals.over()
        except Conflict as conflict:
            now = time.monotonic()
            found = [read_entry(record, now) for record in conflict.found]
            self._lessee.conflicted(name, found, now)
            log.debug("another was quicker", lease=name)
        except RuntimeFailure as err:
            self._lessee.failed(str(err), time.monotonic())
            self._refusals.failed(str(err), lease=name)
