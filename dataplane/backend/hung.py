# SPDX-License-Identifier: Apache-2.0
"""A forwarder that hangs: how it is found out, and how it is ended so that it never carries a packet again.

Nobody wakes a forwarder to prove that it lives. It hangs if a worker has packets waiting, makes no round, and
that for a second. Then it is killed, by a descriptor of the process, so that no other can be meant; it is
replaced when it is gone, since two that write the same counters would spoil them.

One that lives in a PID namespace beside ours cannot be killed from here, and may wake up any time. It is
fenced off: its last order is to stop, and waits for it in its socket; it keeps the old counters, of which all
others have a copy from then on; and its names in the run directory go. What it still carries until it has
read the order goes by the table it has: some packets at most, since each is read by only one of the two.
"""

from __future__ import annotations

import asyncio
import os
import select
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path

from dataplane import native
from dataplane.backend import Place
from dataplane.backend.kit import Kit
from dataplane.control import ForwarderClient
from dataplane.errors import ControlError, NotRunning, RuntimeFailure
from dataplane.grip import Grip
from dataplane.journal import Journal
from dataplane.native import ForwarderConfig, MessageType
from dataplane.slots import Fd, role_of
from dataplane.succession import disown

log = Journal("backend")

LOOK_S = 0.5
RENAME_RETRY_S = 1.0
LOOKS_MAX = 2  # more looks that find packets waiting and no round made


class Pulse:
    """Which workers make no progress although packets wait. Pure: whoever looks says what there is."""

    def __init__(self) -> None:
        """Nothing was seen yet."""
        self._seen: dict[int, tuple[int, int]] = {}  # worker: rounds it had made, looks since

    def feel(self, waiting: Collection[int], beats: Sequence[int]) -> bool:
        """Take for which workers packets wait, and how many rounds each has made; tell whether one hangs."""
        before, self._seen = self._seen, {}
        for worker in waiting:
            beat, looks = before.get(worker, (None, 0))
            self._seen[worker] = beats[worker], looks + 1 if beat == beats[worker] else 0
        return any(looks >= LOOKS_MAX for _, looks in self._seen.values())


def worker_of(slot: int, config: ForwarderConfig) -> int | None:
    """Return which worker reads what arrives in a slot (worker.c: add_sources()); None: nobody does."""
    role, index = role_of(slot), slot // len(Fd)
    if role is Fd.TUN:
        return index % config.threads
    if role in (Fd.UDP4, Fd.UDP6, Fd.BARE4):
        return 0 if index == 0 else (index - 1) % config.threads
    return 0 if role is Fd.RAW4 else None


def find_waiting(fds: Mapping[int, int], config: ForwarderConfig) -> set[int]:
    """Return the workers for which packets wait. Costs no more than a look, and takes none."""
    poll = select.poll()
    workers: dict[int, int] = {}
    for slot, fd in fds.items():
        if (worker := worker_of(slot, config)) is not None:
            workers[fd] = worker
            poll.register(fd, select.POLLIN)
    return {workers[fd] for fd, events in poll.poll(0) if events & select.POLLIN}


def read_beats(counters_fd: int, threads: int) -> list[int]:
    """Return how many rounds each worker has made."""
    places = (native.HEAD_BYTES + worker * native.THREAD_BYTES for worker in range(threads))
    return [int.from_bytes(os.pread(counters_fd, 8, place), sys.byteorder) for place in places]


def order_end(path: Path, epoch: int) -> ForwarderClient | None:
    """Leave the order to stop with a forwarder that does not answer; it obeys as soon as it can.

    Return where it will answer then, None if nobody is there after all.
    """
    try:
        client = ForwarderClient(path, epoch)
        client.begin(MessageType.HELLO)
        client.begin(MessageType.STOP)
    except (NotRunning, ControlError):
        return None
    return client


async def arrange(work: Callable[[], None], trouble: str) -> None:
    """Change who has which name in the run directory, however long somebody keeps us from it."""
    while True:
        try:
            await asyncio.to_thread(work)
        except RuntimeFailure as err:
            log.error(trouble, error=err, retry_in_s=RENAME_RETRY_S)
            await asyncio.sleep(RENAME_RETRY_S)
        else:
            return


class Fence:
    """Ends forwarders that hang, or holds off those that cannot be ended."""

    def __init__(self, place: Place, kit: Kit, lock: asyncio.Lock) -> None:
        """Work in `place`; the lock is taken to change the kit."""
        self._place = place
        self._kit = kit
        self._lock = lock
        self._fenced: list[ForwarderClient] = []

    async def end(self, grip: Grip, *, is_spare: bool = False) -> None:
        """See to it that a forwarder never carries a packet again: kill it, or fence it off."""
        is_gone = await asyncio.to_thread(grip.end)
        grip.close()
        if is_gone:
            return
        run_dir = self._place.run_dir
        path = run_dir.spare_socket if is_spare else run_dir.forwarder_socket
        fenced = await asyncio.to_thread(order_end, path, self._place.epoch)
        if fenced is not None:
            self._fenced.append(fenced)
            asyncio.get_running_loop().add_reader(fenced.sock, self._on_obeyed, fenced)
        async with self._lock:
            if Fd.COUNTERS in self._kit.fds:
                self._kit.renew_counters()
        log.error("forwarder cannot be killed from here; it is to end when it wakes up", pid=grip.pid)
        # With its names it would be found again.
        await arrange(partial(disown, run_dir, is_spare=is_spare), "forwarder still has its name")

    def _on_obeyed(self, fenced: ForwarderClient) -> None:
        asyncio.get_running_loop().remove_reader(fenced.sock)
        fenced.close()
        self._fenced.remove(fenced)
        log.info("forwarder that was to end has woken up, and ends")

    def warnings(self) -> list[str]:
        """Return what the operator should know."""
        if not self._fenced:
            return []
        return [
            "a forwarder hangs, was replaced, and cannot be killed from here, as it lives in another PID "
            "namespace. End it: it does nothing any more but keep its memory"
        ]

    def close(self) -> None:
        """Watch them no more; what they were told stays told."""
        for fenced in self._fenced:
            asyncio.get_running_loop().remove_reader(fenced.sock)
            fenced.close()
        self._fenced.clear()
