# SPDX-License-Identifier: Apache-2.0
"""The userspace backend: broker of descriptors for the forwarder process.

Control opens, keeps a duplicate of every descriptor and hands them over in one message. So each of the two
processes may die: a new forwarder gets the duplicates from us, a new control gets them from the forwarder.
What the forwarder already works with is never opened or sent a second time, so that a takeover is silent.

All methods run on the event loop; requests to the forwarder block a thread of the executor, one at a time.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import replace

from dataplane import native, succession
from dataplane.backend import Place, Settings, legacy
from dataplane.backend.device import DeviceRepairs, find_tun
from dataplane.backend.keeper import Keeper
from dataplane.backend.kit import Kit
from dataplane.backend.legacy import Legacy
from dataplane.backend.offloads import OF_SOCKETS, Offloads
from dataplane.backend.sockets import (
    Holders,
    Key,
    buffer_warnings,
    check_free,
    close_all,
    has_device,
    mark,
    open_socket,
    source_ports,
    trust_paths,
    wanted_sockets,
)
from dataplane.backend.spread import open_queues, queue_warnings
from dataplane.backend.wanted import forwarder_config
from dataplane.errors import NotRunning, RuntimeFailure
from dataplane.figures import Dataplane
from dataplane.journal import Journal
from dataplane.message import LAYOUTS
from dataplane.model import HostPlan, Peer, Table
from dataplane.native import Counters, ForwarderConfig, State
from dataplane.netlink import Host
from dataplane.notify import Notifier
from dataplane.slots import Fd, Fds, role_of, slot_of

log = Journal("backend")

LET_GO_S, LET_GO_PAUSE_S = 1.0, 0.01  # for a process to end
REFUSALS_S = 5.0  # between looks at what the kernel refused the forwarder


def _leave_strange(layouts: tuple[int, int], fds: Fds) -> None:
    """Let go of a table and of counters that are laid out as we do not know it."""
    for role, theirs, ours in zip((Fd.FIB, Fd.COUNTERS), layouts, LAYOUTS, strict=True):
        if theirs != ours:
            log.warning("left by another version, begun anew", what=role.name.lower())
            os.close(fds.pop(role))


class UserspaceBackend:
    """Opens, keeps and hands over what the forwarder works with, and keeps a forwarder running."""

    def __init__(self, place: Place, host: Host, on_fatal: Callable[[RuntimeFailure], None]) -> None:
        """Work in `place`; `on_fatal` is told when another control has taken over."""
        self._place = place
        self._host = host
        self._holders = Holders(host.port_holder, host.is_tun_held)
        self._refusals: asyncio.Task[None] | None = None
        self._kit = Kit()  # what we hold
        self._keys: dict[int, Key] = {}
        self._source_ports: frozenset[int] = frozenset()
        self._offloads = Offloads(place.config.disable, os.uname().release)
        self._keeper = Keeper(place, self._kit, self._offloads.explain, self._lower, on_fatal)
        self._tier_wanted: int | None = None
        self._table: Table | None = None
        self._has_made_tun = False
        self._device = DeviceRepairs(host)
        self._legacy = Legacy(Notifier(os.environ))
        self._settings: Settings | None = None  # of the last prepare()

    # --- what an earlier control left ---------------------------------------------------------------

    async def adopt(self) -> tuple[Peer, ...]:
        """Take over a living forwarder with all it holds; return the peers of its table."""
        try:
            client = succession.connect(self._place.run_dir, self._place.epoch)
        except NotRunning:
            return self._inherit()
        try:
            reply = await self._keeper.greet(client)
            if reply is None:
                return self._inherit()
            if reply.state == State.EMPTY and self._place.kept:
                client.close()
                return self._inherit()
            if reply.state == State.EMPTY:
                self._keeper.watch(client, reply.state)
                return ()
            self._legacy.forget(self._place.kept)  # who lives has it all
            config, fds = client.take()
            if reply.state == State.QUIESCED:  # whoever parked it is gone
                client.resume()
            _leave_strange(client.said.layouts, fds)
            peers = self._take_over(config, fds)
            self._kit.generation = client.said.generation
        except BaseException:
            client.close()
            raise
        self._kit.config_in_force = config
        self._kit.is_due = False
        self._keeper.watch(client, State.RUNNING)
        log.info("took over forwarder", pid=client.pid, generation=self._kit.generation)
        return peers

    def _inherit(self) -> tuple[Peer, ...]:
        """Go on with what a service manager kept of a node whose processes are all gone, if it did."""
        kept = self._place.kept
        if not kept:
            return ()
        self._legacy.forget(kept)  # it is left anew when it works
        try:
            config, fds = legacy.read(kept)
            if find_tun(fds) != self._place.config.tun_name:
                raise RuntimeFailure(f"the device that was kept is not {self._place.config.tun_name}")
            peers = self._take_over(config, fds)
        except RuntimeFailure as err:
            log.warning("nothing inherited", because=err)
            return ()
        for name in [name for name, fd in kept.items() if fd in fds.values()]:
            del kept[name]
        self._keeper.begin()
        log.info("inherited device, sockets, table and counters", generation=self._kit.generation)
        return peers

    def _take_over(self, config: ForwarderConfig, fds: Fds) -> tuple[Peer, ...]:
        """Have what an earlier control had; return the peers of its table."""
        generation, table = native.read_fib(fds[Fd.FIB]) if Fd.FIB in fds else (0, Table((), ()))
        keys = wanted_sockets(config)
        for slot in keys.keys() & fds.keys():
            mark(slot, fds[slot])  # an earlier version of ours may not have
        if Fd.COUNTERS in fds:
            self._kit.counters = Counters(fds[Fd.COUNTERS])
        self._kit.generation, self._kit.fds, self._kit.config = generation, fds, config
        self._keys = keys
        facts = self._place.run_dir.read_facts()
        self._offloads.recall(facts.get("selftest"))
        wanted = facts.get("tier_wanted")
        self._tier_wanted = wanted if isinstance(wanted, int) else None
        return table.peers

    # --- opening ------------------------------------------------------------------------------------

    async def warm(self, settings: Settings, plan: HostPlan) -> None:
        """Be ready but for the underlay sockets: who holds their ports can go on until then."""
        async with self._keeper.lock:
            await self._open(settings, {})
            await self._keeper.meet()
        await self.set_up_host(plan)

    async def set_up_host(self, plan: HostPlan) -> list[str]:
        """Give the TUN its addresses and routes."""
        return [*self._device.take(), *await self._host.apply(plan)]

    async def prepare(self, settings: Settings) -> None:
        """Open TUN, counters and sockets as far as they are missing or depend on what changed."""
        async with self._keeper.lock:
            await self._open(settings)
            self._settings = settings

    async def _lower(self) -> bool:
        """Have the next lower tier of offloads; return whether there is one."""
        async with self._keeper.lock:
            if self._settings is None or not self._offloads.lower():
                return False
            try:
                await self._open_when_let_go(self._settings)
            except RuntimeFailure as err:
                log.error("no other tier", error=err)
                return False
            # The next control is to know that this is not what it would rather have.
            run_dir = self._place.run_dir
            known = {"tier_wanted": self._tier_wanted, "offloads_off": self.offloads_off}
            try:
                run_dir.write_facts({**run_dir.read_facts(), **known})
            except RuntimeFailure as err:
                log.warning("the next control is not told of the lower tier", error=err)
            return True

    async def _open_when_let_go(self, settings: Settings) -> None:
        """Open what is missing; the forwarder that has just ended may hold the TUN a moment longer."""
        deadline_s = time.monotonic() + LET_GO_S
        while True:
            try:
                return await self._open(settings)
            except RuntimeFailure:
                if time.monotonic() > deadline_s:
                    raise
            await asyncio.sleep(LET_GO_PAUSE_S)

    async def _open(self, settings: Settings, keys: dict[int, Key] | None = None) -> None:
        """Open what is missing; of sockets those of `keys`, or all that are wanted."""
        await asyncio.to_thread(self._offloads.prove)
        if self._needs_other_tier():
            await self._keeper.stop()
            close_all(self._take_queues())
        await self._device.keep_name(self._kit.fds, settings.tun_name)
        opened: Fds = {}
        try:
            config = self._open_tun(settings, opened)
            keys = wanted_sockets(config) if keys is None else keys
            for slot, key in keys.items():
                if slot not in self._kit.fds or self._keys.get(slot) != key:
                    opened[slot] = open_socket(slot, config, settings.underlay.name, self._holders)
            if Fd.COUNTERS not in self._kit.fds:
                opened[Fd.COUNTERS] = native.counters_create(config.threads)
                self._kit.counters = Counters(opened[Fd.COUNTERS])
        except BaseException:
            close_all(opened)
            raise
        self._commit(config, keys, opened)
        trust_paths(self._kit.fds, is_trusting=settings.trusts_paths)

    def _needs_other_tier(self) -> bool:
        # A TUN keeps the flags it was first attached with as long as anybody holds it.
        held = find_tun(self._kit.fds) == self._place.config.tun_name
        return held and self._tier_wanted is not None and self._tier_wanted != self._offloads.of_tun

    def _open_tun(self, settings: Settings, opened: Fds) -> ForwarderConfig:
        counters, of_sockets = self._kit.counters, self._offloads.of_sockets()
        # Counters outlive forwarders, and have room for the threads of the first one.
        room = None if counters is None else counters.header().threads
        config = forwarder_config(self._place.config, settings, self._kit.config, room)
        config = replace(config, tier=config.tier & ~OF_SOCKETS | of_sockets)
        if find_tun(self._kit.fds) is None:
            self._device.note_gone(self._kit.fds, settings.tun_name)
            check_free(settings.tun_name, self._holders)
            is_new = not has_device(settings.tun_name)
            tun = self._offloads.open_tun(settings.tun_name)
            opened[Fd.TUN] = tun.fd
            self._has_made_tun |= is_new
            self._tier_wanted = self._offloads.of_tun
            config = replace(config, tier=tun.tier | of_sockets, vnet_hdr_len=tun.vnet_hdr_len)
        queues = open_queues(settings.tun_name, config.queues, self._offloads, self._kit.fds, opened)
        return replace(config, queues=queues, threads=min(config.threads, queues))

    def _take_queues(self) -> Fds:
        """Let go of all queues of the TUN; they are the caller's to close."""
        queues = [slot for slot in self._kit.fds if role_of(slot) is Fd.TUN]
        self._legacy.drop(queues)
        return {slot: self._kit.fds.pop(slot) for slot in queues}

    def _commit(self, config: ForwarderConfig, keys: dict[int, Key], opened: Fds) -> None:
        shared = {Fd.COUNTERS, Fd.FIB, *(slot_of(Fd.TUN, index) for index in range(config.queues))}
        stale = {slot: fd for slot, fd in self._kit.fds.items() if slot in opened}
        stale |= {slot: fd for slot, fd in self._kit.fds.items() if slot not in keys and slot not in shared}
        self._kit.is_due |= bool(opened or stale) or config != self._kit.config
        self._kit.fds = {slot: fd for slot, fd in self._kit.fds.items() if slot not in stale} | opened
        self._legacy.drop(stale)
        close_all(stale)
        if opened or stale or not self._source_ports:
            self._source_ports = source_ports(self._kit.fds)
        self._kit.config = config
        self._keys = keys

    # --- putting in force ---------------------------------------------------------------------------

    async def carry(self, table: Table) -> None:
        """Put settings and table in force; a forwarder that is not there yet gets them when it is."""
        if self._refusals is None:
            self._refusals = asyncio.create_task(self._follow_refusals())
        async with self._keeper.lock:
            await self._keeper.give(is_new_table=self._adopt_table(table))
            await self._leave()

    async def _follow_refusals(self) -> None:
        while True:
            await asyncio.sleep(REFUSALS_S)
            if self._kit.counters is not None:
                self._offloads.tell_refused(self._kit.counters.totals().refused_tier)
            async with self._keeper.lock:
                await self._leave()

    async def _leave(self) -> None:
        """See that all survives us and the forwarder, if there is somebody who keeps it. Holds the lock."""
        await asyncio.to_thread(self._legacy.leave, self._kit)

    def _adopt_table(self, table: Table) -> bool:
        """Make the table our FIB; False if it says what the one in force says already."""
        if table == self._table:
            return False
        if (
            Fd.FIB in self._kit.fds and self._table is None
        ):  # an earlier control's: it cannot be known but by its bytes
            same = native.fib_create(table, self._kit.generation)
            try:
                is_same = native.fib_equal(same, self._kit.fds[Fd.FIB])
            finally:
                os.close(same)
            if is_same:
                self._table = table
                return False
        fib_fd = native.fib_create(table, self._kit.generation + 1)
        if Fd.FIB in self._kit.fds:
            os.close(self._kit.fds[Fd.FIB])
        self._kit.fds[Fd.FIB] = fib_fd
        self._kit.generation += 1
        self._kit.subnets = len(table.subnets)
        self._table = table
        return True

    # --- for the daemon -----------------------------------------------------------------------------

    @property
    def tier_wanted(self) -> int | None:
        """The rungs that were allowed when the TUN was opened; the next control wants to know."""
        return self._tier_wanted

    @property
    def selftest(self) -> dict[str, object]:
        """What the self-test of offloads found; the next control wants to know."""
        return self._offloads.remember()

    @property
    def offloads_off(self) -> dict[str, str]:
        """Which offloads are not used, and why."""
        return {} if self._kit.config is None else self._offloads.explain(self._kit.config.tier)

    def describe(self) -> Dataplane:
        """Return what status shows of the forwarder."""
        keeper = self._keeper
        return Dataplane(
            *(self._kit.config_in_force, self._kit.counters, keeper.pid, keeper.is_alive, keeper.state),
            source_ports=self._source_ports,
            spare_pid=keeper.spare_pid,
            version="" if keeper.said is None else keeper.said.version,
            build=0 if keeper.said is None else keeper.said.build,
            hand_over=keeper.relay.told,
        )

    def warnings(self) -> tuple[str, ...]:
        """Return what the operator should know."""
        found = buffer_warnings(self._kit.fds) + self._keeper.warnings() + self._offloads.warnings()
        if self._kit.config is not None:
            found += queue_warnings(self._place.config, self._kit.config.queues)
        return tuple(found)

    async def undo(self) -> bool:
        """Take back a start that failed."""
        await self._keeper.undo()
        self._legacy.drop_all()
        await self.close()
        return self._has_made_tun

    async def close(self) -> None:
        """Let go: the forwarder carries on by itself."""
        if self._refusals is not None:
            self._refusals.cancel()
        self._keeper.close()
        if self._kit.counters is not None:
            self._kit.counters.close()
            self._kit.counters = None
        close_all(self._kit.fds)
