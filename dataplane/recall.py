# SPDX-License-Identifier: Apache-2.0
"""The state of the last run: written while the store is followed, and a stand-in for it at a cold start.

A start without a forwarder that carries on (after a reboot, say) would carry nothing until the store has
answered. So what is in force is kept in a file, and a start puts it in force if the store cannot be reached,
or takes its time. Nothing of it is ever written to the store: what is ours there is found out from the first
list.

Where something carries packets already, a forwarder that lives, devices of the kernel, flannel, its table is
newer than any file. Then the file only tells whom the first list should name (withdrawal.py).
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime

from dataplane import laststate
from dataplane.config import RunConfig
from dataplane.errors import ConfigError, OverlaydError, RuntimeFailure
from dataplane.flannel import format_key
from dataplane.journal import Journal, Trouble
from dataplane.laststate import Clocks, LastState
from dataplane.leasing import Leasing
from dataplane.model import Action, Entry, Event, Listed, NetworkConfig, Table
from dataplane.reconcile import Reconciler
from dataplane.status import span

PATIENCE_S = 0.2  # for the store, before its stand-in is taken
WRITE_S = 1.0  # after a change: so many changes are one write
REST = 50  # times as long as it took to write, nothing is written
REST_MAX_S = 60.0
RETRY_S = 3.0  # after one that failed, at least
AGAIN_S = 24 * 3600.0  # nothing changed, but it is still so

log = Journal("recall")


@dataclass(frozen=True, slots=True)
class _InForce:
    """What is to be written when it is another than that."""

    network: NetworkConfig
    own: Entry
    table: Table

    def is_same(self, other: _InForce | None) -> bool:
        """Return whether nothing changed; parts of tables that did not are the same objects."""
        return (
            other is not None
            and (self.network, self.own) == (other.network, other.own)
            and self.table.peers is other.table.peers
            and self.table.subnets is other.table.subnets
        )


@dataclass(frozen=True, slots=True)
class LastPeers:
    """The peers of the last run: withdrawal.Before."""

    state: LastState
    clocks: Clocks

    def names(self) -> frozenset[str]:
        """Return what their leases are called."""
        return self.state.names()

    def read(self, names: set[str]) -> dict[str, Entry]:
        """Return some of the leases; none if one of them is not fit to be."""
        try:
            return {entry.name: entry for entry in laststate.read_peers(self.state, self.clocks, names)}
        except ValueError as err:
            log.warning("the last state is not used", because=err)
            return {}


class Recall:
    """The file of one daemon, and whether what is in it is in force."""

    def __init__(self, config: RunConfig, wake: Callable[[], None]) -> None:
        """Know nothing; `wake` is called when it may be time to stand in."""
        self._path = config.state_dir / laststate.NAME
        self._age_max_s = config.last_state_age_h * 3600.0
        self._told = {ip for ip in (config.public_ip, config.public_ip6) if ip is not None}
        self._store = laststate.name_store(config)
        self._wake = wake
        self._state: LastState | None = None
        self._begun = _look_at_clocks()
        self._has_failed = False  # the store
        self._is_in_force = False
        # What the store said last of itself.
        self._identity: str | None = None  # None: nothing yet
        self._revision = 0
        # What is to be written, and what was.
        self._now: _InForce | None = None
        self._written: _InForce | None = None
        self._peers: Callable[[], dict[str, Entry]] = dict
        self._changed = asyncio.Event()
        self._writing = threading.Lock()  # held while the file is written
        self._trouble = Trouble(log, "the last state is not written")
        self._problem: str | None = None  # why it is not

    # --- a start ------------------------------------------------------------------------------------

    def begin(self, *, is_cold: bool) -> LastPeers | None:
        """Read the file; return the peers of the last run. It stands in for the store at a cold start."""
        clocks = _look_at_clocks()
        found = self._read(clocks)
        if found is None:
            return None
        if is_cold:
            self._state, self._begun = found, clocks
            asyncio.get_running_loop().call_later(PATIENCE_S, self._wake)
        return LastPeers(found, clocks)

    def _read(self, clocks: Clocks) -> LastState | None:
        if self._age_max_s == 0:
            return None
        try:
            found = laststate.load(self._path, clocks)
        except RuntimeFailure as err:
            log.warning("the last state is not used", because=err)
            return None
        if found is None:
            return None
        age_s = clocks.wall_s - found.written_s
        why = None
        if not found.store.is_same(self._store):
            why = f"it is of another store, {found.store}"
        elif age_s > self._age_max_s:
            why = f"it is {span(age_s)} old; see --last-state-age"
        if why is not None:
            log.warning("the last state is not used", because=why)
        return found if why is None else None

    def stands_in(self, err: OverlaydError | OSError) -> bool:
        """Take that the store failed; return whether the start may go on. Not if somebody wrote nonsense."""
        if self._state is None or isinstance(err, ConfigError):
            return False
        if not self._has_failed:
            self._has_failed = True
            self._wake()
        return True

    def stand_in(self, reconciler: Reconciler, leasing: Leasing | None) -> list[Action]:
        """Put the state in force if that is needed; once, and not before."""
        state, now = self._state, time.monotonic()
        if state is None or self._is_in_force or not self._is_due(state, now):
            return []
        assert state.own.lease is not None
        ours = state.own.lease.public_ips()
        # Another node's, of which this one has the files? Or is the address still to come?
        if not reconciler.has_address(ours[0]) or (self._told and self._told.isdisjoint(ours)):
            return []
        try:
            peers = laststate.read_peers(state, self._begun)
        except ValueError as err:
            log.warning("the last state is not used", because=err)
            self._state = None
            return []
        self._is_in_force = True
        log.warning("the store is not reached yet", running_on=_describe(state))
        actions = reconciler.apply(Listed(state.revision, state.network, (state.own, *peers)), now)
        if leasing is not None:
            leasing.recall(state.own)
            actions += reconciler.own_changed(leasing.own(), leasing.reason(), now)
        return actions

    def _is_due(self, state: LastState, now: float) -> bool:
        # What has run out may be another's by now: a store that is only slow is waited for.
        is_over = state.own.expires_s is not None and state.own.expires_s <= now
        return self._has_failed or (not is_over and now >= self._begun.monotonic_s + PATIENCE_S)

    def note(self) -> str | None:
        """Say what we run on if it is not the store."""
        if not self._is_in_force or self._state is None:
            return None
        return f"running on {_describe(self._state)}, store not reached"

    def warnings(self) -> tuple[str, ...]:
        """Return what keeps a start without the store from what we know now."""
        return () if self._problem is None else (f"the last state is not written: {self._problem}",)

    def hear(self, events: Iterable[Event]) -> None:
        """Take what the store says: from its first list on nothing is recalled any more."""
        for event in events:
            if isinstance(event, Listed):
                self._identity = event.identity
                self._state, self._is_in_force = None, False
            self._revision = event.revision

    # --- from then on -------------------------------------------------------------------------------

    def keep(self, reconciler: Reconciler, leasing: Leasing | None, table: Table | None) -> None:
        """Take what is in force, to be written before long if it is new and comes from the store."""
        network, own = reconciler.network, reconciler.own
        if network is None or own is None or table is None:
            return
        entry = Entry(format_key(own.key), own) if leasing is None else leasing.entry()
        if entry is None or entry.lease is None:
            return
        self._now, self._peers = _InForce(network, entry, table), reconciler.in_force
        if not self._now.is_same(self._written):
            self._changed.set()

    async def run(self, is_followed: Callable[[], bool]) -> None:
        """Write what changed, for ever, in at most 2 % of the time; once a day if nothing does."""
        rest_s = 0.0
        while True:
            try:
                async with asyncio.timeout(AGAIN_S):
                    await self._changed.wait()
            except TimeoutError:
                if not is_followed():
                    continue
            await asyncio.sleep(max(WRITE_S, rest_s))
            self._changed.clear()
            begun_s = time.monotonic()
            if (state := self._collect()) is None:
                continue
            is_written = await self._save(*state)
            rest_s = REST * (time.monotonic() - begun_s)
            rest_s = min(rest_s if is_written else max(rest_s, RETRY_S), REST_MAX_S)

    async def _save(self, state: LastState, clocks: Clocks) -> bool:
        try:
            await asyncio.to_thread(self._write, state, clocks)
        except RuntimeFailure as err:
            self._problem = str(err)
            self._trouble.failed(self._problem)
            self._written = None
            self._changed.set()
            return False
        self._problem = None
        self._trouble.over()
        return True

    def finish(self) -> None:
        """Write what is not written yet."""
        if self._now is None or self._now.is_same(self._written):
            return
        try:
            if (state := self._collect()) is not None:
                self._write(*state)
        except RuntimeFailure as err:
            self._trouble.failed(str(err))

    def forget(self) -> None:
        """Remove the file, and write none: our lease was given back."""
        self._age_max_s = 0
        laststate.forget(self._path)

    def _write(self, state: LastState, clocks: Clocks) -> None:
        # A write that is under way goes on in its thread when run() is cancelled.
        with self._writing:
            laststate.save(self._path, state, clocks)
            if self._age_max_s == 0:  # forgotten meanwhile
                laststate.forget(self._path)

    def _collect(self) -> tuple[LastState, Clocks] | None:
        now = self._now
        if now is None or self._identity is None or self._age_max_s == 0:
            return None
        self._written = now
        clocks = _look_at_clocks()
        peers = laststate.write_peers(self._peers().values(), clocks)
        state = LastState(
            *(self._store, clocks.wall_s, self._identity, self._revision, now.network, now.own, peers)
        )
        return state, clocks


def foretell(config: RunConfig) -> str | None:
    """Say on what a cold start would run while the store is away; None: on nothing."""
    found = Recall(config, lambda: None)._read(_look_at_clocks())
    return None if found is None else _describe(found)


def _describe(state: LastState) -> str:
    written = datetime.fromtimestamp(state.written_s).astimezone()
    age_s = max(0.0, _look_at_clocks().wall_s - state.written_s)
    return f"the state of {written:%Y-%m-%d %H:%M:%S} ({span(age_s)} old)"


def _look_at_clocks() -> Clocks:
    return Clocks(time.monotonic(), time.time())
