# SPDX-License-Identifier: Apache-2.0
"""Keeps a forwarder running: finds or starts one, gives it what there is to work with, replaces it.

All methods run on the event loop; requests to the forwarder block a thread of the executor, one at a time.
"""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from dataplane.backend import Place
from dataplane.backend.process import confinement_warnings, reap, spawn, wait_listening
from dataplane.control import ForwarderClient, StaleEpoch
from dataplane.errors import ControlError, NotRunning, RuntimeFailure
from dataplane.journal import Journal, Trouble
from dataplane.model import tier_text
from dataplane.native import ForwarderConfig, State
from dataplane.slots import Fd, Fds

log = Journal("backend")

CRASHES_MAX = 3  # within CRASH_WINDOW_S: then slowly, and with an alarm
CRASH_WINDOW_S = 10.0
RETRY_MIN_S, ATTACH_RETRY_MAX_S = 0.01, 0.5
RETRY_MAX_S = 30.0


@dataclass(slots=True)
class Kit:
    """What a forwarder works with. Whoever opens it changes it; the keeper hands it over."""

    fds: Fds = field(default_factory=dict)  # the FIB among them is the table in force, or about to be
    config: ForwarderConfig | None = None
    config_in_force: ForwarderConfig | None = None
    generation: int = 0  # of the table
    subnets: int = 0  # in it
    is_due: bool = True  # no forwarder was given it as it is


class Keeper:
    """The forwarder of this node, and what is done when there is none."""

    def __init__(
        self,
        place: Place,
        kit: Kit,
        explain: Callable[[int], dict[str, str]],
        on_fatal: Callable[[RuntimeFailure], None],
    ) -> None:
        """Work in `place`; `explain` says why a tier lacks something, `on_fatal` that another took over."""
        self._place = place
        self._kit = kit
        self._explain = explain
        self._on_fatal = on_fatal
        self.lock = asyncio.Lock()  # held by whoever changes the kit, or gives it to somebody
        self._client: ForwarderClient | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._recovery: asyncio.Task[None] | None = None
        self._state = State.EMPTY
        self._losses: deque[float] = deque(maxlen=CRASHES_MAX)
        self._lost_pid: int | None = None  # whom we lost last
        self._troubles = Trouble(log, "no forwarder")
        self._retry_s = 0.0

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

    def warnings(self) -> list[str]:
        """Return what the operator should know."""
        found = confinement_warnings(self._client)
        if self._is_crash_looping() and time.monotonic() - self._losses[-1] < RETRY_MAX_S:
            found.append(
                f"forwarder ended {CRASHES_MAX} times within {CRASH_WINDOW_S:g} s. "
                f"See {self._place.run_dir.forwarder_log}"
            )
        return found

    # --- giving it what it works with ----------------------------------------------------------------

    async def meet(self) -> None:
        """Have a forwarder, which is given nothing yet; one that somebody else starts is not waited for."""
        if self._client is None and self._place.config.forwarder == "spawn":
            client = await self._find()
            reply = await asyncio.get_running_loop().run_in_executor(None, client.hello)
            self.watch(client, reply.state)

    async def give(self, *, is_new_table: bool) -> None:
        """Give the forwarder what it has not yet; one that is not there yet gets all when it is."""
        if self._client is None and self._place.config.forwarder == "spawn" and self._recovery is None:
            await self._attach(await self._find())
        elif self._client is None:
            self._start_recovery()
        elif self._kit.is_due or is_new_table:
            await self._send()

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

    # --- keeping one running -------------------------------------------------------------------------

    def watch(self, client: ForwarderClient, state: State) -> None:
        """Have this forwarder from now on."""
        self._client = client
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
        is_first, retry_s = True, RETRY_MIN_S
        while self._client is None:
            if self._is_crash_looping():
                self._retry_s = min(max(2 * self._retry_s, 1.0), RETRY_MAX_S)
                log.error("forwarder crashes again and again", retry_in_s=self._retry_s)
                await asyncio.sleep(self._retry_s)
            client = None
            try:
                # Found without the lock: somebody else's may not come for a long time.
                client = await self._find()
                async with self.lock:
                    await self._attach(client)
                if client.pid == self._lost_pid:  # it lives: the connection alone was lost
                    self._losses.pop()
                    self._lost_pid = None
            except StaleEpoch as err:
                self._on_fatal(err)
                return
            except RuntimeFailure as err:
                if not is_first:
                    self._troubles.failed(str(err))
                    if client is None or client.pid != self._lost_pid:
                        self._losses.append(time.monotonic())
                await asyncio.sleep(retry_s)
                retry_s = min(2 * retry_s, ATTACH_RETRY_MAX_S)
            is_first = False
        self._troubles.over()
        if not self._is_crash_looping():
            self._retry_s = 0.0

    async def _find(self) -> ForwarderClient:
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
        self.watch(client, reply.state)
        is_ours = (reply.config, reply.generation) == (self._kit.config, self._kit.generation)
        if reply.state == State.RUNNING and is_ours and not self._kit.is_due:
            return  # only the connection was lost
        try:
            await self._go()
        except BaseException:
            self._forget_client()
            raise

    # --- ending --------------------------------------------------------------------------------------

    async def stop(self) -> None:
        """End the forwarder, if there is one."""
        if self._client is None:
            return
        client = self._client
        asyncio.get_running_loop().remove_reader(client.sock)
        await asyncio.get_running_loop().run_in_executor(None, client.stop)
        self._forget_client()
        if self._process is not None:
            self._process.wait()
            self._process = None

    async def undo(self) -> None:
        """End what we started."""
        if self._client is not None and self._process is not None:
            try:
                await self.stop()
            except ControlError as err:
                log.warning("forwarder not stopped", error=err)
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        """Let go: the forwarder carries on by itself."""
        if self._recovery is not None:
            self._recovery.cancel()
        self._forget_client()
