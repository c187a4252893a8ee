# SPDX-License-Identifier: Apache-2.0
"""`overlayd run`: follows the store and the host, and keeps dataplane and host as they must be.

One worker turns whatever arrives (events of the store, changes of our lease and of the host, retries) into
one pass: reconcile, prepare the backend, set up the host, carry. A pass that fails at start ends the program
with everything as it was; later it is an alarm, and is tried again. Forwarder, TUN and routes stay when the
program ends: only `overlayd down` takes them away.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from dataplane import choose, journal, memory, subnetfile, takeover, traffic
from dataplane.backend import Backend, Place, Settings
from dataplane.backend.switch import Switch
from dataplane.control import Reply, Request, StaleEpoch, serve_requests
from dataplane.endure import RETRY_S, endure
from dataplane.errors import ConfigError, RuntimeFailure, StoreError
from dataplane.health import Health
from dataplane.hearing import Hearing
from dataplane.hearsay import Hearsay
from dataplane.holding import Holding
from dataplane.lease import Lessee
from dataplane.leasing import Leasing
from dataplane.logsetting import LogSetting
from dataplane.model import (
    Action,
    Alarm,
    Event,
    Heard,
    HostPlan,
    Lease,
    Listed,
    NetworkPut,
    PlanHost,
    Publish,
    Rejected,
    Table,
)
from dataplane.netlink import Host
from dataplane.paths import PathWatch
from dataplane.probes import PathProbes
from dataplane.recall import Recall
from dataplane.reconcile import Reconciler
from dataplane.reload import Reload
from dataplane.renewal import REQUESTS, Leave, Renewal
from dataplane.report import Report
from dataplane.settings import find_settings
from dataplane.store import LeaseStore, Store, open_store
from dataplane.traffic import Traffic

log = journal.Journal("daemon")

TOLD = "--datapath"
STORE_RETRY_MIN_S, STORE_RETRY_MAX_S = 0.1, 4.0  # on average: each node has its own moments
STORE_RETRY_GROWTH = 1.25  # so that the next try is never farther away than half of the outage so far
RELEASE_TIMEOUT_S = 10.0
ANSWER_S = 0.2  # for telling who asked for the release, before we end


class HostChanged:
    """Input of the worker: addresses, links or routes of this host may be different."""


class OwnChanged:
    """Input of the worker: our lease, or how sure it is, may be different."""


class PathsChanged:
    """Input of the worker: paths to peers may take something else than before, or not lead there."""


class Retry:
    """Input of the worker: do again what failed."""


class HeldBack:
    """Input of the worker: a change that was held back may be due."""


Input = Event | HostChanged | OwnChanged | PathsChanged | Retry | HeldBack


class Daemon:
    """One `overlayd run`, from its first look at the host to its end."""

    def __init__(self, place: Place, log_setting: LogSetting) -> None:
        """Be the control of a run directory that is locked for us."""
        self._config = config = place.config
        self._run_dir = run_dir = place.run_dir
        self._host = Host()
        self._inputs: asyncio.Queue[Input] = asyncio.Queue()
        self._backend = self._choose_backend(place)
        self._end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._reconciler: Reconciler | None = None
        self._released = asyncio.Event()
        self._leasing: Leasing | None = None  # None: a person wrote down who has which subnet
        self._takeover: takeover.Takeover | None = None
        # What must be.
        self._table: Table | None = None
        self._plan: HostPlan | None = None
        self._applied: HostPlan | None = None  # last time
        self._sure: tuple[Settings, HostPlan] | None = None  # the host is like this, as far as we heard
        self._retry: asyncio.TimerHandle | None = None
        self._held: asyncio.TimerHandle | None = None
        self.is_changing = False  # to another datapath, by an end and a start
        self._traffic = Traffic(config, run_dir.read_facts())
        self._paths = PathWatch(self._backend, lambda: self._inputs.put_nowait(PathsChanged()))
        self._hearsay = Hearsay(self._backend, lambda: self._inputs.put_nowait(PathsChanged()))
        self._hearing = Hearing(self._paths.hear, self._hearsay.hear)
        self._probes = PathProbes(self._backend, self._paths)
        self.report = Report(config, run_dir, self._host, self._backend, self._traffic)
        self.report.peers_said = self._hearsay.state
        self.report.paths = self._paths.known
        self.report.probes = self._probes
        self.report.holding = self._holding = Holding(config)
        self.report.recall = self._recall = Recall(config, lambda: self._inputs.put_nowait(HeldBack()))
        self._health = Health(config, self.report)
        self._log_setting = log_setting
        self._reload: Reload | None = None
        self.renewal = Renewal(config, self._stop)

    def _choose_backend(self, place: Place) -> Backend:
        return Switch(place, self._host, self._fail, lambda: self._inputs.put_nowait(HostChanged()))

    # --- life -------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until told to stop; raises what ended a start."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._stop)
        async with AsyncExitStack() as stack:
            stack.enter_context(subnetfile.claim(self._config.subnet_file))
            await self._health.open()
            stack.push_async_callback(self._health.close)
            store = open_store(self._config)
            stack.push_async_callback(store.close)
            self._reload = Reload(store, self._log_setting, self._health)
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reload.ask)
            stack.push_async_callback(self._host.close)
            stack.push_async_callback(self._let_go)
            stack.callback(self._hearing.close)
            server = await serve_requests(self._run_dir.control_socket, self._answer)
            stack.callback(self._remove_socket, self._run_dir.control_socket.stat().st_ino)
            stack.callback(server.close)

            self._takeover = await takeover.begin(self._config, self._host, self.report.former_tun)
            known_peers = await self._backend.adopt()
            is_warm = known_peers or self._takeover or await self._host.own_vxlan(self._config.tun_name)
            self._holding.begin(self._recall.begin(is_cold=not is_warm))
            facts = await self._host.facts()
            is_leased = isinstance(store, LeaseStore)
            self._reconciler = Reconciler(self._config, facts, known_peers, is_leased=is_leased)
            self.report.reconciler = self._reconciler
            if isinstance(store, LeaseStore):
                self.report.leasing = self._leasing = self._start_leasing(store)
                self._leasing.host_changed(facts)
            await self._work_until_end(store)

    def _start_leasing(self, store: LeaseStore) -> Leasing:
        lessee = Lessee(
            random.SystemRandom().randrange,
            subnetfile.read_previous(self._config.subnet_file),
            float(self._config.lease_ttl_s),
            self._config.renew_margin_min * 60.0,
        )
        return Leasing(self._config, store, lessee, lambda: self._inputs.put_nowait(OwnChanged()))

    async def _work_until_end(self, store: Store) -> None:
        assert self._reload is not None
        reload = self._reload
        parts: list[Callable[[], Awaitable[None]]] = [
            lambda: reload.follow(lambda: self._follow_store(store)),
            lambda: reload.run(lambda: self._inputs.put_nowait(HostChanged())),
            *(self._follow_host, self._work, self._health.run),
            *(self._traffic.run, self._paths.run, self._hearsay.run),
            lambda: self._holding.run(reload.list_anew),
            lambda: self._recall.run(lambda: self.report.store_error is None),
        ]
        if self._config.path_probes:
            parts.append(self._probes.run)
        if self._config.datapath == "userspace" and self._config.datapath_reason != TOLD:
            parts.append(self._follow_kernel)
        if self._leasing is not None:
            parts.append(self._leasing.run)
        tasks = [asyncio.create_task(endure(part, lambda: self.report.is_carrying)) for part in parts]
        try:
            await asyncio.wait([self._end, *tasks], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result
        if not self._end.done():
            raise RuntimeFailure("a part of overlayd ended without saying why")
        self._end.result()

    def _stop(self) -> None:
        if not self._end.done():
            log.info("stopping: forwarder, TUN and routes stay")
            self._health.stopping(is_coming_back=self.renewal.leave is Leave.BECOME)
            self._end.set_result(None)

    def _fail(self, err: RuntimeFailure) -> None:
        if not self._end.done():
            self._end.set_exception(err)

    def _remove_socket(self, inode: int) -> None:
        path = self._run_dir.control_socket
        # One that replaced us has put its own there.
        if path.exists() and path.stat().st_ino == inode:
            path.unlink()

    async def _let_go(self) -> None:
        """Leave a node that works as it is, and of one that never came to work nothing behind."""
        if self.report.is_carrying:
            self._recall.finish()
            await self._backend.close()
            return
        if self._leasing is not None:
            await self._leasing.undo()
        if await self._backend.undo():
            await self._host.remove(self._config.tun_name)
        if self._takeover is not None:
            await self._takeover.undo()
        await self._traffic.undo()

    # --- what arrives -----------------------------------------------------------------------------

    async def _follow_store(self, store: Store) -> None:
        """Queue what the store says. It must be usable at start; later it may fail and come back."""
        pause_s, trouble = STORE_RETRY_MIN_S, journal.Trouble(log, "store lost")
        while True:
            try:
                async for event in store.events():
                    trouble.over()
                    pause_s = STORE_RETRY_MIN_S
                    self.report.store_heard_s = time.monotonic()
                    self.report.store_error = event.reason if isinstance(event, Rejected) else None
                    if not isinstance(event, Heard):
                        self.report.convergence.hear(event, time.monotonic())
                        self._inputs.put_nowait(event)
            except (StoreError, ConfigError, OSError) as err:
                can_wait = self._recall.stands_in(err) or store.is_remote
                if self.report.store_heard_s is None and not can_wait:
                    raise
                trouble.failed(str(err))
                self.report.store_error = str(err)
            await asyncio.sleep(pause_s * random.uniform(0.75, 1.25))
            pause_s = min(STORE_RETRY_GROWTH * pause_s, STORE_RETRY_MAX_S)

    async def _follow_host(self) -> None:
        """Queue that something on this host changed."""
        # Once it watches, look again: something may have changed since the first look.
        asyncio.get_running_loop().call_soon(self._inputs.put_nowait, HostChanged())
        async for _ in self._host.changes():
            self._inputs.put_nowait(HostChanged())

    async def _follow_kernel(self) -> None:
        """End when the datapath that we would rather have can be had for some time."""
        await choose.wait_able(self._host.vxlan_obstacle, asyncio.sleep)
        log.info("the kernel has VXLAN devices by now: changing over")
        self.is_changing = True
        self._stop()
        await asyncio.Future()

    async def _work(self) -> None:
        """Turn all that has arrived into one pass, again and again; what failed half-way is taken again."""
        undone: list[Input] = []
        while True:
            inputs = [*undone, await self._inputs.get()]
            if (wait_s := self.report.pace.pass_wait_s(time.monotonic())) > 0:
                await asyncio.sleep(wait_s)
            while not self._inputs.empty():
                inputs.append(self._inputs.get_nowait())
            self.report.progress.begin(time.monotonic())
            try:
                undone = inputs
                await self._take(inputs)
                undone = []
                events = [item for item in inputs if isinstance(item, Event)]
                self.report.convergence.take(len(events))
                await self._converge()
                self.report.succeed()
                self._note_in_force(events)
                if self.report.unwritten is not None:
                    self._retry_later()
                self.report.revision = self.report.pace.in_force()
                self.report.progress.end()
            except StaleEpoch:
                raise
            except (RuntimeFailure, OSError) as err:
                if not self.report.is_carrying:
                    raise
                self.report.fail(err)
                self._retry_later()
            self._health.look()

    def _note_in_force(self, events: list[Event]) -> None:
        if self.report.is_carrying and self._reconciler is not None:
            self.report.convergence.settle(time.monotonic())
            self._recall.keep(self._reconciler, self._leasing, self._table)
        if self._reload is not None and any(isinstance(event, Listed) for event in events):
            self._reload.note_list()

    def _tell_choices(self) -> None:
        """Log what was chosen, once it works: a start that is refused says why, and nothing else."""
        config = self._config
        log.info("store", url=config.store, chosen_by=config.store_reason)
        log.info("datapath", datapath=config.datapath, chosen_by=config.datapath_reason)

    def _retry_later(self, pause_s: float = RETRY_S) -> None:
        if self._retry is not None:
            self._retry.cancel()
        self._retry = asyncio.get_running_loop().call_later(pause_s, self._inputs.put_nowait, Retry())

    async def _take(self, inputs: list[Input]) -> None:
        """Let the reconciler say what must be done, once for all that has arrived."""
        reconciler, leasing = self._reconciler, self._leasing
        assert reconciler is not None
        # What can fail comes first, before anything was believed.
        has_changed = any(isinstance(item, HostChanged) for item in inputs)
        if has_changed or any(isinstance(item, Retry) for item in inputs):
            self._sure = None
        facts = await self._host.facts() if has_changed else None
        events: list[Event] = []
        actions: list[Action] = []
        for item in inputs:
            if isinstance(item, Listed | NetworkPut):
                self.report.network_problem = item.problem
            if isinstance(item, Event):
                events.append(item)
        self._recall.hear(events)
        if leasing is not None:
            leasing.apply_all(events)
        actions += self._recall.stand_in(reconciler, leasing)
        actions += self._apply_paced(events, reconciler, time.monotonic())
        if facts is not None:
            self._paths.doubt()
            if leasing is not None:
                leasing.host_changed(facts)
            actions += reconciler.host_changed(facts, time.monotonic())
        if leasing is not None and any(isinstance(item, OwnChanged) for item in inputs):
            self._end_if_released(leasing)
            actions += reconciler.own_changed(leasing.own(), leasing.reason(), time.monotonic())
        for action in actions:
            if isinstance(action, Publish):
                self._table = action.table
            elif isinstance(action, PlanHost):
                self._plan = action.plan
            elif isinstance(action, Alarm):
                log.warning(action.text)

    def _apply_paced(self, events: list[Event], reconciler: Reconciler, now: float) -> list[Action]:
        """Let the reconciler have the events that do not come too often, and come again for the others."""
        pace = self.report.pace
        admitted = self._holding.admit(pace.admit(events, now), reconciler)
        actions: list[Action] = [*reconciler.apply_all(admitted, now)]
        if self._held is not None:
            self._held.cancel()
        if (wait_s := pace.wait_s(now)) is not None:
            loop = asyncio.get_running_loop()
            self._held = loop.call_later(wait_s, self._inputs.put_nowait, HeldBack())
        return [*actions, *map(Alarm, pace.news(now))]

    def _end_if_released(self, leasing: Leasing) -> None:
        if leasing.is_released and not self._released.is_set():
            self._recall.forget()
            self._released.set()
            asyncio.get_running_loop().call_later(ANSWER_S, self._stop)

    # --- making it so -----------------------------------------------------------------------------

    async def _converge(self) -> None:
        """Bring backend and host to what must be; what already is like that is not touched."""
        settings, own = find_settings(self._config, self._reconciler, self._plan), self._own()
        if settings is None or own is None or self._plan is None or self._table is None:
            return
        if self._takeover is not None and not self.report.is_carrying:
            self._takeover.check(settings)
        settings, table = await self._paths.fit(settings, self._table)
        await self._traffic.apply(settings, own.key, table)
        self.report.leave_facts(settings)
        async with self._traffic.still:
            await self._make_so(settings, self._plan, table)
        await self._traffic.settle()
        self._probes.follow(settings, self._table, self._plan.addresses)
        await self._traffic.replace_flannel()
        if not self.report.is_carrying:
            self._tell_choices()
            memory.settle()
        self.report.is_carrying = True
        self.report.tell_warnings()
        has_masq, path = self._config.ip_masq, self._config.subnet_file
        if subnetfile.write(path, settings.network, own.key, settings.mtu, has_masq=has_masq):
            log.info("subnet file written", path=self._config.subnet_file)

    async def _make_so(self, settings: Settings, plan: HostPlan, table: Table) -> None:
        if self._reconciler is not None and not self.report.is_carrying:
            self._reconciler.check_rivals(settings.encaps)
        if self._takeover is not None and not self.report.is_carrying:
            await self._backend.warm(settings, plan)
            await self._takeover.finish(settings, plan, table)
        if (settings, plan) != self._sure:
            self._pause_fights(plan)
            await self._backend.prepare(settings)
            self.report.leave_facts(settings)
            await self._set_up_host(plan)
            self._sure = settings, plan
        if self.report.former_tun != self._config.tun_name:
            # First: IPv6 takes no route by way of what another one leads to.
            await self._host.remove(self.report.former_tun)
            await asyncio.to_thread(traffic.end, self.report.former_tun, {})
            self.report.former_tun = self._config.tun_name
        await self._backend.carry(self._hearsay.mark(table))
        self._hearing.heed(settings, self._backend.describe(), table)
        self.report.former_networks = settings.network.networks()

    def _pause_fights(self, plan: HostPlan) -> None:
        """Let be what somebody undoes again and again, until it is its turn."""
        now = time.monotonic()
        self._host.paused = self.report.repairs.paused(now) if plan == self._applied else frozenset()
        if self._host.paused:
            self._retry_later(self.report.repairs.wait_s(now))

    async def _set_up_host(self, plan: HostPlan) -> None:
        changes = await self._backend.set_up_host(plan)
        for change in changes:
            log.info("host changed", change=change)
        if plan == self._applied:
            for alarm in self.report.repairs.note(changes, time.monotonic()):
                log.warning(alarm)
        self._applied = plan

    # --- what is told -----------------------------------------------------------------------------

    async def _answer(self, request: Request) -> Reply:
        if request == {"cmd": "status"}:
            return await self.report.measure()
        if request.get("cmd") == "log":
            return self._log_setting.answer(request)
        if request == {"cmd": "stop"}:
            self._stop()
            return {"stopping": True, "pid": os.getpid()}
        if request == {"cmd": "release"}:
            return await self._release()
        if request == {"cmd": "drop-held"}:
            self._inputs.put_nowait(HeldBack())
            return {"dropped": self._holding.drop()}
        if request.get("cmd") in REQUESTS:
            return await self.renewal.answer(request)
        return {"error": 'allowed as "cmd" are status, log, stop, release, drop-held, replace and upgrade'}

    async def _release(self) -> Reply:
        """Give our lease back, and end when that is done."""
        own = self._own()
        if self._leasing is None or own is None:
            return {"error": "this node has no lease to give back"}
        if self._leasing.rival is not None:
            return {"error": f"the lease of {own.key} is not ours any more: {self._leasing.rival}"}
        self._leasing.release()
        try:
            async with asyncio.timeout(RELEASE_TIMEOUT_S):
                await self._released.wait()
        except TimeoutError:
            why = "; ".join(self._leasing.warnings()) or "the store does not answer"
            return {"error": f"the lease of {own.key} is not given back yet: {why}"}
        return {"released": str(own.key), "pid": os.getpid()}

    def _own(self) -> Lease | None:
        return None if self._reconciler is None else self._reconciler.own
