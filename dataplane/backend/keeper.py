# SPDX-License-Identifier: Apache-2.0
"""Keeps a forwarder running: finds or starts one, gives it what there is to work with, replaces it.

The spare that takes its place is told so in the very callback that hears of the end: packets wait meanwhile.
All else, its new names and the next spare, has time.

All methods run on the event loop; requests to the forwarder block a thread of the executor, one at a time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from dataplane import step
from dataplane.backend import Place
from dataplane.backend.crashes import CRASH_WINDOW_S, CRASHES_MAX, Crashes
from dataplane.backend.hung import LOOK_S, Fence, Pulse, arrange, find_waiting, read_beats
from dataplane.backend.kit import Kit
from dataplane.backend.process import Children, confinement_warnings, wait_listening
from dataplane.backend.relay import Levers, Relay
from dataplane.backend.reserve import Reserve, Spare
from dataplane.control import FORWARDER_TIMEOUT_S, ForwarderClient, Silent, StaleEpoch
from dataplane.errors import ControlError, NotRunning, RuntimeFailure
from dataplane.grip import Grip
from dataplane.journal import Journal, Trouble
from dataplane.message import Message
from dataplane.model import tier_text
from dataplane.native import ForwarderConfig, MessageType, State
from dataplane.seats import is_free
from dataplane.slots import Fd
from dataplane.succession import put_in_use

log = Journal("backend")

RETRY_MIN_S, ATTACH_RETRY_MAX_S = 0.01, 0.5
GO_TIMEOUT_S = 1.0  # of a spare
GONE_PAUSES_S = (0.001, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064)


@dataclass(frozen=True, slots=True)
class Promotion:
    """A spare that was told to go, and with what."""

    spare: Spare
    config: ForwarderConfig
    generation: int


class Keeper:
    """The forwarder of this node, and what is done when there is none."""

    def __init__(
        self,
        place: Place,
        kit: Kit,
        explain: Callable[[int], dict[str, str]],
        lower: Callable[[], Awaitable[bool]],
        on_fatal: Callable[[RuntimeFailure], None],
    ) -> None:
        """Work in `place`.

        `explain` says why a tier lacks something; `lower` puts a lower one into the kit, if there is any;
        `on_fatal` is told that another control took over.
        """
        self._place = place
        self._kit = kit
        self._explain = explain
        self._lower = lower
        self._on_fatal = on_fatal
        self.lock = asyncio.Lock()  # held by whoever changes the kit, or gives it to somebody
        self._fence = Fence(place, kit, self.lock)
        self._client: ForwarderClient | None = None
        self._grip: Grip | None = None  # on its process
        self._pulse: asyncio.Task[None] | None = None
        self._children = Children()
        self._reserve = Reserve(place, self._children)
        self._recovery: asyncio.Task[None] | None = None
        levers = Levers(self._request, self._change_to, self._put_in_use, self._lose, on_fatal)
        self.relay = Relay(kit, self._reserve, self.lock, levers)
        self._state = State.EMPTY
        self._crashes = Crashes()
        self._lost_pid: int | None = None  # who was lost last, and lives
        self._troubles = Trouble(log, "no forwarder")

    # --- what there is -------------------------------------------------------------------------------

    @property
    def is_alive(self) -> bool:
        """Whether there is a forwarder."""
        return self._client is not None

    @property
    def state(self) -> str:
        """What it is doing, in a word."""
        return self._state.name.lower() if self.is_alive else "none"

    @property
    def pid(self) -> int | None:
        """Its pid, if that can be seen."""
        return self._client.pid or None if self._client is not None else None

    @property
    def said(self) -> Message | None:
        """What it last said of itself."""
        return None if self._client is None else self._client.said

    @property
    def spare_pid(self) -> int | None:
        """Of the one that waits; None if there is none."""
        return self._reserve.pid

    def warnings(self) -> list[str]:
        """Return what the operator should know."""
        found = confinement_warnings(self._client) + self.relay.warnings(self._client)
        if self._crashes.is_alarm(time.monotonic()):
            found.append(
                f"forwarder ended {CRASHES_MAX} times within {CRASH_WINDOW_S:g} s. "
                f"See {self._place.run_dir.forwarder_log}"
            )
        return found + self._fence.warnings()

    # --- giving it what it works with ----------------------------------------------------------------

    async def meet(self) -> None:
        """Have a forwarder, which is given nothing yet; one that somebody else starts is not waited for."""
        if self._client is None and self._place.config.forwarder == "spawn":
            client = await self._find()
            reply = await asyncio.to_thread(client.hello)
            self.watch(client, reply.state)

    async def give(self, *, is_new_table: bool) -> None:
        """Give the forwarder what it has not yet; one that is not there yet gets all when it is."""
        if self._client is not None and self._state != State.EMPTY:
            await self.relay.run(self._client)
        if self._client is None and self._place.config.forwarder == "spawn" and self._recovery is None:
            await self._attach(await self._find())
        elif self._client is None:
            self._start_recovery()
        elif self._kit.is_due or is_new_table:
            await self._send()
        if self._client is not None and (self._recovery is None or self._recovery.done()):
            self._reserve.want()
        if self._pulse is None:
            self._pulse = asyncio.create_task(self._feel_pulse())

    def begin(self) -> None:
        """Find a forwarder for a kit that is whole, in the background."""
        self._start_recovery()

    async def _send(self) -> None:
        try:
            if self._kit.is_due:
                await self._go()
            else:
                fib = self._kit.fds[Fd.FIB]
                await self._request(lambda client: client.publish(fib))
                log.info("published", generation=self._kit.generation, subnets=self._kit.subnets)
        except StaleEpoch:
            raise
        except Silent as err:
            self._replace(str(err))
        except ControlError as err:
            if self._client is not None and self._client.is_open:
                raise  # it lives and said no
            log.warning("forwarder lost", error=err)
            self._lose()

    async def _go(self) -> None:
        config = self._kit.config
        if config is None:
            raise ControlError("there is nothing to go with yet")
        await self._request(lambda client: client.go(config, self._kit.fds))
        self._kit.is_due = False
        self._note_going(config)

    def _note_going(self, config: ForwarderConfig) -> None:
        self._kit.config_in_force = config
        self._state = State.RUNNING
        why = self._explain(config.tier)
        log.info(
            "forwarder goes",
            pid=self.pid,
            tier=tier_text(config.tier),
            generation=self._kit.generation,
            **({"because": "; ".join(f"{name}: {reason}" for name, reason in why.items())} if why else {}),
        )

    def _change_to(self, client: ForwarderClient, config: ForwarderConfig) -> None:
        """Have another forwarder, which goes with the kit; the one before has nothing to do any more."""
        self._forget_client()
        self.watch(client, State.RUNNING)
        self._kit.is_due = False
        self._note_going(config)

    async def _request(self, call: Callable[[ForwarderClient], None]) -> None:
        client = self._client
        if client is None:
            raise ControlError("there is no forwarder")
        loop = asyncio.get_running_loop()
        # The answer is for the thread that asks, not for the watch.
        loop.remove_reader(client.sock)
        try:
            await asyncio.to_thread(call, client)
        finally:
            if client.is_open:
                loop.add_reader(client.sock, self._on_readable, client)

    # --- keeping one running -------------------------------------------------------------------------

    def watch(self, client: ForwarderClient, state: State) -> None:
        """Have this forwarder from now on."""
        self._client = client
        self._grip = Grip(client.pid, client.sock)
        self._state = state
        asyncio.get_running_loop().add_reader(client.sock, self._on_readable, client)

    def _on_readable(self, client: ForwarderClient) -> None:
        # A forwarder says nothing unasked, so this is its end.
        if client is self._client:
            log.warning("forwarder ended", pid=client.pid)
            self._lose()

    def _lose(self) -> None:
        self._lost_pid = self.pid
        self._forget_client()
        if is_free(self._place.run_dir.forwarder_lock):
            self._start_recovery(self._succeed())
        elif self._recovery is None or self._recovery.done():
            self._begin_recovery(self._recover_if_gone())

    async def _recover_if_gone(self) -> None:
        """Find out whether a forwarder ended or its connection alone; its lock may go a moment later."""
        promotion = None
        for pause_s in GONE_PAUSES_S:
            await asyncio.sleep(pause_s)
            if is_free(self._place.run_dir.forwarder_lock):
                promotion = self._succeed()
                break
        await self._recover(promotion)

    def _succeed(self) -> Promotion | None:
        """Take that a forwarder has ended; let the spare go, unless they end again and again as they are."""
        self._lost_pid = None
        self._crashes.note(time.monotonic())
        return None if self._crashes.is_looping else self._promote()

    def _promote(self) -> Promotion | None:
        """Tell the spare to go, at once: nothing else counts until it does."""
        kit, spare = self._kit, self._reserve.take()
        if spare is None:
            return None
        try:
            if kit.config is None or not kit.is_whole:
                raise ControlError("there is nothing to go with yet")
            spare.client.begin(MessageType.GO, kit.config, kit.fds)
        except ControlError as err:
            log.warning("spare forwarder not used", error=err)
            spare.close()
            return None
        kit.is_due = False
        return Promotion(spare, kit.config, kit.generation)

    def _start_recovery(self, promotion: Promotion | None = None) -> None:
        if self._recovery is None or self._recovery.done():
            self._begin_recovery(self._recover(promotion))

    def _begin_recovery(self, recovery: Coroutine[None, None, None]) -> None:
        if self._recovery is not None:
            self._recovery.cancel()  # of one that hangs by now, and does not have its new name yet
        self._recovery = asyncio.create_task(recovery)
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
        if self._grip is not None:
            self._grip.close()
        self._client = self._grip = None
        self._state = State.EMPTY

    async def _recover(self, promotion: Promotion | None) -> None:
        try:
            if self._crashes.is_looping and await self._lower():
                self._crashes.begin_anew()
                promotion = self._promote()
            if promotion is not None:
                await self._finish(promotion)
            await self._find_another()
        except StaleEpoch as err:
            self._on_fatal(err)
            return
        self._crashes.work_again()
        self._children.reap()
        self._reserve.want()

    async def _finish(self, promotion: Promotion) -> None:
        """See that a spare goes, with all that there is by now, and under the name of the one in use."""
        try:
            async with self.lock:
                await self._await_going(promotion)
        except StaleEpoch:
            raise
        except ControlError as err:
            log.error("spare forwarder does not go", error=err)
            self._forget_client()
            promotion.spare.client.close()
            self._kit.is_due = True
            await self._fence.end(promotion.spare.grip, is_spare=True)  # or it might go yet
        else:
            promotion.spare.grip.close()
            await self._put_in_use()

    async def _await_going(self, promotion: Promotion) -> None:
        client, kit = promotion.spare.client, self._kit
        client.sock.settimeout(GO_TIMEOUT_S)
        await asyncio.to_thread(client.finish, MessageType.GO)
        client.sock.settimeout(FORWARDER_TIMEOUT_S)
        self.watch(client, State.RUNNING)
        self._note_going(promotion.config)
        if kit.is_due or kit.generation != promotion.generation:
            await self._go()

    async def _put_in_use(self) -> None:
        """Give the spare its new name, however late: it works without."""
        work = partial(put_in_use, self._place.run_dir, self._place.epoch)
        await arrange(work, "forwarder still has the name of the spare")

    async def _find_another(self) -> None:
        # A dying process may still take a connection: the first failure after a loss says nothing.
        is_first, retry_s = True, RETRY_MIN_S
        while self._client is None:
            if self._crashes.is_looping:
                pause_s = self._crashes.next_pause_s()
                log.error("forwarder crashes again and again", retry_in_s=pause_s)
                await asyncio.sleep(pause_s)
            client = None
            try:
                # Found without the lock: somebody else's may not come for a long time.
                client = await self._find()
                await self._try(client)
            except StaleEpoch:
                raise
            except RuntimeFailure as err:
                if not is_first:
                    self._troubles.failed(str(err))
                    if client is None or client.pid != self._lost_pid:
                        self._crashes.note(time.monotonic())
                await asyncio.sleep(retry_s)
                retry_s = min(2 * retry_s, ATTACH_RETRY_MAX_S)
            is_first = False
        self._troubles.over()

    async def _try(self, client: ForwarderClient) -> None:
        """Give all to a forwarder that was found; one that hangs is ended."""
        grip = Grip(client.pid, client.sock)
        try:
            async with self.lock:
                await self._attach(client)
        except Silent as err:
            log.error("forwarder hangs", because=err)
            await self._fence.end(grip)
        finally:
            grip.close()

    async def greet(self, client: ForwarderClient) -> Message | None:
        """Say HELLO to the forwarder of an earlier control; one that hangs is ended, and None returned."""
        grip = Grip(client.pid, client.sock)
        try:
            return await asyncio.to_thread(client.hello)
        except Silent as err:
            log.error("forwarder hangs: what it has is lost", because=err)
            await self._fence.end(grip)
            return None
        finally:
            grip.close()

    async def _find(self) -> ForwarderClient:
        run_dir, epoch = self._place.run_dir, self._place.epoch
        with suppress(NotRunning):
            return ForwarderClient(run_dir.forwarder_socket, epoch)
        with suppress(NotRunning):
            client = ForwarderClient(run_dir.spare_socket, epoch)
            self._reserve.close()  # it is no spare any more
            await self._put_in_use()
            return client
        if self._place.config.forwarder == "wait":
            log.info("waiting for a forwarder", socket=run_dir.forwarder_socket)
            return await wait_listening(run_dir, epoch, None)
        return await wait_listening(run_dir, epoch, self._children.spawn(run_dir))

    async def _attach(self, client: ForwarderClient) -> None:
        """Give a forwarder what we hold; one that works with it already is left alone."""
        try:
            reply = await asyncio.to_thread(client.hello)
        except BaseException:
            client.close()
            raise
        self.watch(client, reply.state)
        is_ours = (reply.config, reply.generation) == (self._kit.config, self._kit.generation)
        if reply.state == State.RUNNING and is_ours and not self._kit.is_due:
            return  # only the connection was lost
        try:
            await self._go()
        except BaseException:
            self._forget_client()
            raise

    # --- one that hangs ------------------------------------------------------------------------------

    async def _feel_pulse(self) -> None:
        pulse, kit = Pulse(), self._kit
        while True:
            await asyncio.sleep(step.pause_s(LOOK_S))
            config = kit.config_in_force
            is_working = self._state == State.RUNNING and kit.is_whole and not self.lock.locked()
            if config is None or not is_working:
                pulse = Pulse()
                continue
            beats = read_beats(kit.fds[Fd.COUNTERS], config.threads)
            if pulse.feel(find_waiting(kit.fds, config), beats):
                self._replace("packets wait, and it carries none")
                pulse = Pulse()

    def _replace(self, why: str) -> None:
        """Go on without a forwarder that is there and does not work."""
        log.error("forwarder hangs", pid=self.pid, because=why)
        grip, self._grip = self._grip, None
        self._forget_client()
        if grip is not None:
            self._begin_recovery(self._recover_from(grip))

    async def _recover_from(self, hung: Grip) -> None:
        await self._fence.end(hung)
        await self._recover(self._succeed())

    # --- ending --------------------------------------------------------------------------------------

    async def stop(self) -> None:
        """End the forwarder, if there is one."""
        if self._client is None:
            return
        client = self._client
        await self._request(lambda client: client.stop())
        if self._grip is not None:
            # Gone, not only hung up: until then it lets the next one connect, and hangs up on it.
            await asyncio.to_thread(self._grip.end)
        self._forget_client()
        self._children.wait(client.pid)

    async def undo(self) -> None:
        """End what we started."""
        if self._client is not None and self._children.has(self._client.pid):
            try:
                await self.stop()
            except ControlError as err:
                log.warning("forwarder not stopped", error=err)
        self._children.kill()

    def close(self) -> None:
        """Let go: the forwarder carries on by itself."""
        self.relay.close()
        for task in (self._recovery, self._pulse):
            if task is not None:
                task.cancel()
        self._reserve.close()
        self._fence.close()
        self._forget_client()
