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
import subprocess
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from dataplane import native
from dataplane.backend import Settings
from dataplane.backend.device import DeviceRepairs, find_tun
from dataplane.backend.offloads import OF_SOCKETS, Offloads
from dataplane.backend.process import confinement_warnings, reap, spawn, wait_listening
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
from dataplane.config import RunConfig
from dataplane.control import ForwarderClient, StaleEpoch
from dataplane.errors import ControlError, NotRunning, RuntimeFailure
from dataplane.figures import Dataplane
from dataplane.journal import Journal
from dataplane.model import HostPlan, Peer, Table, tier_text
from dataplane.native import Counters, ForwarderConfig, State
from dataplane.netlink import Host
from dataplane.rundir import RunDir
from dataplane.slots import Fd, Fds, role_of, slot_of

log = Journal("backend")

CRASHES_MAX = 3  # within CRASH_WINDOW_S: then slowly, and with an alarm
CRASH_WINDOW_S = 10.0
RETRY_MIN_S = 0.01
REFUSALS_S = 5.0  # between looks at what the kernel refused the forwarder
RETRY_MAX_S = 30.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a backend works: fixed for the life of a control."""

    config: RunConfig
    run_dir: RunDir
    epoch: int


class UserspaceBackend:
    """Opens, keeps and hands over what the forwarder works with, and keeps a forwarder running."""

    def __init__(self, place: Place, host: Host, on_fatal: Callable[[RuntimeFailure], None]) -> None:
        """Work in `place`; `on_fatal` is told when another control has taken over."""
        self._place = place
        self._host = host
        self._holders = Holders(host.port_holder, host.is_tun_held)
        self._on_fatal = on_fatal
        self._lock = asyncio.Lock()
        self._client: ForwarderClient | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._recovery: asyncio.Task[None] | None = None
        self._refusals: asyncio.Task[None] | None = None
        self._state = State.EMPTY
        self._losses: deque[float] = deque(maxlen=CRASHES_MAX)
        self._retry_s = 0.0
        # What we hold. The FIB among the descriptors is the table in force, or about to be.
        self._fds: Fds = {}
        self._keys: dict[int, Key] = {}
        self._source_ports: frozenset[int] = frozenset()
        self._config: ForwarderConfig | None = None
        self._config_in_force: ForwarderConfig | None = None
        self._offloads = Offloads(place.config.disable, os.uname().release)
        self._tier_wanted: int | None = None
        self._counters: Counters | None = None
        self._generation = 0
        self._table: Table | None = None
        self._is_go_due = True
        self._has_made_tun = False
        self._device = DeviceRepairs(host)

    # --- what an earlier control left ---------------------------------------------------------------

    async def adopt(self) -> tuple[Peer, ...]:
        """Take over a living forwarder with all it holds; return the peers of its table."""
        try:
            client = ForwarderClient(self._place.run_dir.forwarder_socket, self._place.epoch)
        except NotRunning:
            return ()
        try:
            state = client.hello().state
            if state == State.EMPTY:
                self._watch(client, state)
                return ()
            config, fds = client.take()
            if state == State.QUIESCED:  # whoever parked it is gone
                client.resume()
            self._generation, table = native.read_fib(fds[Fd.FIB])
        except BaseException:
            client.close()
            raise
        self._fds = fds
        self._config = self._config_in_force = config
        self._keys = wanted_sockets(config)
        for slot in self._keys.keys() & fds.keys():
            mark(slot, fds[slot])  # an earlier version of ours may not have
        self._counters = Counters(fds[Fd.COUNTERS])
        facts = self._place.run_dir.read_facts()
        self._offloads.recall(facts.get("selftest"))
        wanted = facts.get("tier_wanted")
        self._tier_wanted = wanted if isinstance(wanted, int) else None
        self._is_go_due = False
        self._watch(client, State.RUNNING)
        log.info("took over forwarder", pid=client.pid, generation=self._generation)
        return table.peers

    # --- opening ------------------------------------------------------------------------------------

    async def warm(self, settings: Settings, plan: HostPlan) -> None:
        """Be ready but for the underlay sockets: who holds their ports can go on until then."""
        async with self._lock:
            await self._open(settings, {})
            if self._client is None and self._place.config.forwarder == "spawn":
                client = await self._find_forwarder()
                reply = await asyncio.get_running_loop().run_in_executor(None, client.hello)
                self._watch(client, reply.state)
        await self.set_up_host(plan)

    async def set_up_host(self, plan: HostPlan) -> list[str]:
        """Give the TUN its addresses and routes."""
        return [*self._device.take(), *await self._host.apply(plan)]

    async def prepare(self, settings: Settings) -> None:
        """Open TUN, counters and sockets as far as they are missing or depend on what changed."""
        async with self._lock:
            await self._open(settings)

    async def _open(self, settings: Settings, keys: dict[int, Key] | None = None) -> None:
        """Open what is missing; of sockets those of `keys`, or all that are wanted."""
        await asyncio.get_running_loop().run_in_executor(None, self._offloads.prove)
        if self._needs_other_tier():
            await self._stop_forwarder()
            close_all(self._take_queues())
        await self._device.keep_name(self._fds, settings.tun_name)
        opened: Fds = {}
        try:
            config = self._open_tun(settings, opened)
            keys = wanted_sockets(config) if keys is None else keys
            for slot, key in keys.items():
                if slot not in self._fds or self._keys.get(slot) != key:
                    opened[slot] = open_socket(slot, config, settings.underlay.name, self._holders)
            if Fd.COUNTERS not in self._fds:
                opened[Fd.COUNTERS] = native.counters_create(config.threads)
                self._counters = Counters(opened[Fd.COUNTERS])
        except BaseException:
            close_all(opened)
            raise
        self._commit(config, keys, opened)
        trust_paths(self._fds, is_trusting=settings.trusts_paths)

    def _needs_other_tier(self) -> bool:
        # A TUN keeps the flags it was first attached with as long as anybody holds it.
        held = find_tun(self._fds) == self._place.config.tun_name
        return held and self._tier_wanted is not None and self._tier_wanted != self._offloads.of_tun

    def _open_tun(self, settings: Settings, opened: Fds) -> ForwarderConfig:
        counters, of_sockets = self._counters, self._offloads.of_sockets()
        # Counters outlive forwarders, and have room for the threads of the first one.
        room = None if counters is None else counters.header().threads
        config = forwarder_config(self._place.config, settings, self._config, room)
        config = replace(config, tier=config.tier & ~OF_SOCKETS | of_sockets)
        if find_tun(self._fds) is None:
            self._device.note_gone(self._fds, settings.tun_name)
            check_free(settings.tun_name, self._holders)
            is_new = not has_device(settings.tun_name)
            tun = self._offloads.open_tun(settings.tun_name)
            opened[Fd.TUN] = tun.fd
            self._has_made_tun |= is_new
            self._tier_wanted = self._offloads.of_tun
            config = replace(config, tier=tun.tier | of_sockets, vnet_hdr_len=tun.vnet_hdr_len)
        queues = open_queues(settings.tun_name, config.queues, self._offloads, self._fds, opened)
        return replace(config, queues=queues, threads=min(config.threads, queues))

    def _take_queues(self) -> Fds:
        """Let go of all queues of the TUN; they are the caller's to close."""
        return {slot: self._fds.pop(slot) for slot in list(self._fds) if role_of(slot) is Fd.TUN}

    def _commit(self, config: ForwarderConfig, keys: dict[int, Key], opened: Fds) -> None:
        shared = {Fd.COUNTERS, Fd.FIB, *(slot_of(Fd.TUN, index) for index in range(config.queues))}
        stale = {slot: fd for slot, fd in self._fds.items() if slot in opened}
        stale |= {slot: fd for slot, fd in self._fds.items() if slot not in keys and slot not in shared}
        self._is_go_due |= bool(opened or stale) or config != self._config
        self._fds = {slot: fd for slot, fd in self._fds.items() if slot not in stale} | opened
        close_all(stale)
        if opened or stale or not self._source_ports:
            self._source_ports = source_ports(self._fds)
        self._config = config
        self._keys = keys

    # --- putting in force ---------------------------------------------------------------------------

    async def carry(self, table: Table) -> None:
        """Put settings and table in force; a forwarder that is not there yet gets them when it is."""
        if self._refusals is None:
            self._refusals = asyncio.create_task(self._follow_refusals())
        async with self._lock:
            is_new_table = self._adopt_table(table)
            if self._client is None and self._place.config.forwarder == "spawn" and self._recovery is None:
                await self._attach(await self._find_forwarder())
            elif self._client is None:
                self._start_recovery()
            elif self._is_go_due or is_new_table:
                await self._send_to_forwarder(table)

    async def _follow_refusals(self) -> None:
        while True:
            await asyncio.sleep(REFUSALS_S)
            if self._counters is not None:
                self._offloads.tell_refused(self._counters.totals().refused_tier)

    def _adopt_table(self, table: Table) -> bool:
        """Make the table our FIB; False if it says what the one in force says already."""
        if table == self._table:
            return False
        if (
            Fd.FIB in self._fds and self._table is None
        ):  # an earlier control's: it cannot be known but by its bytes
            same = native.fib_create(table, self._generation)
            try:
                is_same = native.fib_equal(same, self._fds[Fd.FIB])
            finally:
                os.close(same)
            if is_same:
                self._table = table
                return False
        fib_fd = native.fib_create(table, self._generation + 1)
        if Fd.FIB in self._fds:
            os.close(self._fds[Fd.FIB])
        self._fds[Fd.FIB] = fib_fd
        self._generation += 1
        self._table = table
        return True

    async def _send_to_forwarder(self, table: Table) -> None:
        try:
            if self._is_go_due:
                await self._go()
            else:
                await self._request(lambda client: client.publish(self._fds[Fd.FIB]))
                log.info("published", generation=self._generation, subnets=len(table.subnets))
        except StaleEpoch:
            raise
        except ControlError as err:
            if self._client is not None and self._client.is_open:
                raise  # it lives and said no
            log.warning("forwarder lost", error=err)
            self._lose()

    async def _go(self) -> None:
        config = self._config
        if config is None:
            raise ControlError("there is nothing to go with yet")
        await self._request(lambda client: client.go(config, self._fds))
        self._is_go_due = False
        self._config_in_force = config
        self._state = State.RUNNING
        why = self._offloads.explain(config.tier)
        log.info(
            "forwarder goes",
            pid=self._pid(),
            tier=tier_text(config.tier),
            generation=self._generation,
            **({"because": "; ".join(f"{name}: {reason}" for name, reason in why.items())} if why else {}),
        )

    def _pid(self) -> int | None:
        return self._client.pid or None if self._client is not None else None

    async def _request(self, call: Callable[[ForwarderClient], None]) -> None:
        client = self._client
        if client is None:
            raise ControlError("there is no forwarder")
        loop = asyncio.get_running_loop()
        # The answer is for the thread that asks, not for the watch.
        loop.remove_reader(client.sock)
        try:
            await loop.run_in_executor(None, call, client)
        finally:
            if client.is_open:
                loop.add_reader(client.sock, self._on_readable, client)

    # --- keeping one running ------------------------------------------------------------------------

    def _watch(self, client: ForwarderClient, state: State) -> None:
        self._client = client
        self._state = state
        asyncio.get_running_loop().add_reader(client.sock, self._on_readable, client)

    def _on_readable(self, client: ForwarderClient) -> None:
        # A forwarder says nothing unasked, so this is its end.
        if client is self._client:
            log.warning("forwarder ended", pid=client.pid)
            self._lose()

    def _lose(self) -> None:
        self._forget_client()
        self._losses.append(time.monotonic())
        self._start_recovery()

    def _start_recovery(self) -> None:
        if self._recovery is None or self._recovery.done():
            self._recovery = asyncio.create_task(self._recover())
            self._recovery.add_done_callback(self._check_recovery)

    def _check_recovery(self, task: asyncio.Task[None]) -> None:
        # A bug there must not leave a node without forwarder and without a word.
        if not task.cancelled() and (err := task.exception()) is not None:
            self._on_fatal(RuntimeFailure(f"cannot keep a forwarder running: {err!r}"))

    def _forget_client(self) -> None:
        if self._client is not None:
            if self._client.is_open:
                asyncio.get_running_loop().remove_reader(self._client.sock)
            self._client.close()
        self._client = None
        self._state = State.EMPTY

    def _is_crash_looping(self) -> bool:
        recent = len(self._losses) == CRASHES_MAX
        return recent and self._losses[-1] - self._losses[0] < CRASH_WINDOW_S

    async def _recover(self) -> None:
        # A dying process may still take a connection: the first failure after a loss says nothing.
        is_first = True
        while self._client is None:
            if self._is_crash_looping():
                self._retry_s = min(max(2 * self._retry_s, 1.0), RETRY_MAX_S)
                log.error("forwarder crashes again and again", retry_in_s=self._retry_s)
                await asyncio.sleep(self._retry_s)
            try:
                # Found without the lock: somebody else's may not come for a long time.
                client = await self._find_forwarder()
                async with self._lock:
                    await self._attach(client)
            except StaleEpoch as err:
                self._on_fatal(err)
                return
            except RuntimeFailure as err:
                if not is_first:
                    log.error("no forwarder", error=err)
                    self._losses.append(time.monotonic())
                await asyncio.sleep(RETRY_MIN_S)
            is_first = False
        if not self._is_crash_looping():
            self._retry_s = 0.0

    async def _find_forwarder(self) -> ForwarderClient:
        run_dir, epoch = self._place.run_dir, self._place.epoch
        try:
            return ForwarderClient(run_dir.forwarder_socket, epoch)
        except NotRunning:
            pass
        reap(self._process)
        if self._place.config.forwarder == "wait":
            log.info("waiting for a forwarder", socket=run_dir.forwarder_socket)
            return await wait_listening(run_dir, epoch, None)
        self._process = spawn(run_dir)
        return await wait_listening(run_dir, epoch, self._process)

    async def _attach(self, client: ForwarderClient) -> None:
        """Give a forwarder what we hold; one that works with it already is left alone."""
        loop = asyncio.get_running_loop()
        try:
            reply = await loop.run_in_executor(None, client.hello)
        except BaseException:
            client.close()
            raise
        self._watch(client, reply.state)
        is_ours = (reply.config, reply.generation) == (self._config, self._generation)
        if reply.state == State.RUNNING and is_ours and not self._is_go_due:
            return  # only the connection was lost
        try:
            await self._go()
        except BaseException:
            self._forget_client()
            raise

    async def _stop_forwarder(self) -> None:
        if self._client is None:
            return
        client = self._client
        asyncio.get_running_loop().remove_reader(client.sock)
        await asyncio.get_running_loop().run_in_executor(None, client.stop)
        self._forget_client()
        if self._process is not None:
            self._process.wait()
            self._process = None

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
        return {} if self._config is None else self._offloads.explain(self._config.tier)

    def describe(self) -> Dataplane:
        """Return what status shows of the forwarder."""
        is_alive = self._client is not None
        state = self._state.name.lower() if is_alive else "none"
        return Dataplane(
            *(self._config_in_force, self._counters, self._pid(), is_alive, state),
            source_ports=self._source_ports,
        )

    def warnings(self) -> tuple[str, ...]:
        """Return what the operator should know."""
        found = buffer_warnings(self._fds) + confinement_warnings(self._client)
        if self._config is not None:
            found += queue_warnings(self._place.config, self._config.queues)
        if self._is_crash_looping() and time.monotonic() - self._losses[-1] < RETRY_MAX_S:
            found.append(
                f"forwarder ended {CRASHES_MAX} times within {CRASH_WINDOW_S:g} s. "
                f"See {self._place.run_dir.forwarder_log}"
            )
        return tuple(found)

    async def undo(self) -> bool:
        """Take back a start that failed."""
        has_spawned = self._process is not None
        if self._client is not None and has_spawned:
            try:
                await self._stop_forwarder()
            except ControlError as err:
                log.warning("forwarder not stopped", error=err)
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        await self.close()
        return self._has_made_tun

    async def close(self) -> None:
        """Let go: the forwarder carries on by itself."""
        for task in (self._recovery, self._refusals):
            if task is not None:
                task.cancel()
        self._forget_client()
        if self._counters is not None:
            self._counters.close()
            self._counters = None
        close_all(self._fds)
