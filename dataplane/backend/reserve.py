# SPDX-License-Identifier: Apache-2.0
"""Keeps a spare: a forwarder that waits, started in no hurry, connected to, and given nothing.

All methods run on the event loop.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from dataplane.backend import Place
from dataplane.backend.process import Children, reap, wait_listening
from dataplane.control import ForwarderClient, StaleEpoch
from dataplane.errors import ControlError, NotRunning, RuntimeFailure
from dataplane.grip import Grip
from dataplane.journal import Journal
from dataplane.native import State

log = Journal("backend")

PAUSE_S = 0.2  # first the one in use has its processor
PAUSE_MAX_S = 30.0  # while spares cannot be had, or end
LIFE_MIN_S = 10.0  # of one whose end is no sign that the next one ends as well


@dataclass(frozen=True, slots=True)
class Spare:
    """A forwarder that waits, or did."""

    client: ForwarderClient
    grip: Grip

    def close(self) -> None:
        """Let go of it."""
        self.client.close()
        self.grip.close()


class Reserve:
    """The spare of this node, from when one is wanted."""

    def __init__(self, place: Place, children: Children) -> None:
        """Keep it in `place`; nothing is done before want()."""
        self._place = place
        self._children = children
        self._spare: Spare | None = None
        self._task: asyncio.Task[None] | None = None
        self._pause_s = PAUSE_S
        self._came_s = 0.0

    @property
    def pid(self) -> int | None:
        """Its pid, 0 if that cannot be seen; None if there is none."""
        return None if self._spare is None else self._spare.client.pid

    def want(self) -> None:
        """Have one from now on: a forwarder works, under its own name."""
        if self._place.config.spare and self._spare is None and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._bring())

    def take(self) -> Spare | None:
        """Hand over the spare, if there is one; the next one is brought after want()."""
        spare = self._let_go()
        self._pause_s = PAUSE_S
        return spare

    async def take_ours(self) -> Spare:
        """Hand over a spare of our build; RuntimeFailure if none can be had.

        One of another build is told to end: whoever supervises it starts one of what is installed by now.
        """
        spare = self.take() or await self._try_to_connect()
        if spare is not None and not spare.client.is_of_our_build:
            try:
                await self._end(spare.client)
                # Gone, not only hung up: until then it lets the next ones connect, and hangs up on them.
                await asyncio.to_thread(spare.grip.end)
            finally:
                spare.close()
            spare = None
        if spare is None and self._place.config.forwarder == "spawn":
            client = await self._meet()
            spare = Spare(client, Grip(client.pid, client.sock))
        if spare is None:
            raise RuntimeFailure("no forwarder of our build waits: start one beside it")
        if not spare.client.is_of_our_build:
            spare.close()
            raise RuntimeFailure("what is installed by now is not what control runs: overlayd upgrade")
        return spare

    async def _try_to_connect(self) -> Spare | None:
        try:
            client = ForwarderClient(self._place.run_dir.spare_socket, self._place.epoch)
        except NotRunning:
            return None
        await self._greet(client)
        return Spare(client, Grip(client.pid, client.sock))

    async def _end(self, client: ForwarderClient) -> None:
        await asyncio.to_thread(client.stop)
        await self.bury(client.pid)

    async def bury(self, pid: int) -> None:
        """Take note of the end of a forwarder that has hung up, if this process started it."""
        self._children.wait(pid)
        await asyncio.to_thread(reap, pid)

    def close(self) -> None:
        """Let go of it; it waits on, for the next control."""
        if (spare := self._let_go()) is not None:
            spare.close()

    def _let_go(self) -> Spare | None:
        spare, self._spare = self._spare, None
        if spare is not None:
            asyncio.get_running_loop().remove_reader(spare.client.sock)
        if self._task is not None:
            self._task.cancel()
            self._task = None
        return spare

    async def _bring(self) -> None:
        while self._spare is None:
            await asyncio.sleep(self._pause_s)
            try:
                client = await self._meet()
            except StaleEpoch:
                return  # the keeper will hear of it
            except RuntimeFailure as err:
                self._pause_s = min(2 * self._pause_s, PAUSE_MAX_S)
                log.warning("no spare forwarder", error=err, retry_in_s=self._pause_s)
                continue
            spare = self._spare = Spare(client, Grip(client.pid, client.sock))
            self._came_s = time.monotonic()
            asyncio.get_running_loop().add_reader(client.sock, self._on_end, spare)
            log.info("spare forwarder waits", pid=client.pid)

    async def _meet(self) -> ForwarderClient:
        """Connect to a spare; start one if there is none, and if that is ours to do."""
        run_dir, epoch = self._place.run_dir, self._place.epoch
        try:
            client = ForwarderClient(run_dir.spare_socket, epoch)
        except NotRunning:
            is_ours = self._place.config.forwarder == "spawn"
            process = self._children.spawn(run_dir) if is_ours else None
            client = await wait_listening(run_dir, epoch, process, is_spare=True)
        await self._greet(client)
        return client

    async def _greet(self, client: ForwarderClient) -> None:
        """Say HELLO, and find it waiting."""
        try:
            reply = await asyncio.to_thread(client.hello)
            if reply.state == State.QUIESCED:  # one that was to go, and did so too late
                await self._end(client)
            if reply.state != State.EMPTY:
                raise ControlError(f"spare forwarder (pid {client.pid}) is {reply.state.name.lower()}")
        except BaseException:
            client.close()
            raise

    def _on_end(self, spare: Spare) -> None:
        # A spare says nothing unasked, so this is its end.
        asyncio.get_running_loop().remove_reader(spare.client.sock)
        spare.close()
        if spare is self._spare:
            log.warning("spare forwarder ended", pid=spare.client.pid)
            self._spare = None
            is_young = time.monotonic() - self._came_s < LIFE_MIN_S
            self._pause_s = min(2 * self._pause_s, PAUSE_MAX_S) if is_young else PAUSE_S
            self.want()
