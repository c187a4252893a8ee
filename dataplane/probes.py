# SPDX-License-Identifier: Apache-2.0
"""Probes paths while the node runs: looks who is sent much, asks them, and tells what is found.

The kernel's counters are not to be had by peer, so on the kernel datapath nothing is probed.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from math import inf

from dataplane import step
from dataplane.backend import Backend, Settings
from dataplane.echo import Echo
from dataplane.journal import Journal, Trouble
from dataplane.model import Address, Table
from dataplane.pathmtu import PROBE, PathMtu
from dataplane.paths import PathWatch
from dataplane.probing import Answers, Loads, Path, Probe, Prober, limit, list_paths

log = Journal("probes")

LOOK_S, REST_S = 0.5, 1.0  # between looks at who is sent much, and while nobody is sent anything
MUCH = 1.5  # packets of the largest size, lately
WAKE_MIN_S = 0.01


class PathProbes:
    """Keeps a prober in step with the node, and carries out what it says."""

    def __init__(self, backend: Backend, paths: PathWatch) -> None:
        """Learn from a backend who is sent much; tell `paths` what is found."""
        self._backend = backend
        self._watch = paths
        paths.on_word = self._note_word
        self._prober = Prober(random.SystemRandom().randrange)
        self._loads = Loads(0.0)
        self._sent: Counter[int] = Counter()  # bytes by peer, since the last look
        self._forwarded = 0  # packets, when last looked at
        self._settings: Settings | None = None
        self._sources: Sequence[Address] = ()
        self._table = Table()
        self._paths: dict[int, list[Path]] | None = None  # by peer; None: to be listed
        self._ids: dict[Address, int] = {}
        self._echo: Echo | None = None
        self._trouble = Trouble(log, "paths are not probed")
        self._wake = asyncio.Event()

    # --- for the daemon -------------------------------------------------------------------------------

    def follow(self, settings: Settings, table: Table, sources: Sequence[Address]) -> None:
        """Take what is in force now, and our addresses in the overlay."""
        before = self._settings
        if before is None or (before.tun_name, self._sources) != (settings.tun_name, sources):
            self._close()
        if before is None or (before.mtu, before.encaps) != (settings.mtu, settings.encaps):
            self._loads, self._paths = Loads(MUCH * settings.mtu), None
            self._forget()
        if table is not self._table:
            self._paths = None
        self._settings, self._table, self._sources = settings, table, sources

    def _forget(self) -> None:
        """Begin anew: a trial of sizes that our own device does not take by now would blame the path."""
        self._prober.keep(())
        for peer, _ in list(self._watch.known):
            self._watch.forget(peer, PROBE)

    def answers(self, peers: Iterable[Address], now: float) -> Answers | None:
        """Return how a node with these underlay addresses answers; None if it was never asked."""
        found = [answers for peer in peers if (answers := self._prober.answers(peer, now)) is not None]
        return min(found, key=lambda answers: inf if answers.age_s is None else answers.age_s, default=None)

    async def run(self) -> None:
        """Probe for ever."""
        look_s = 0.0
        try:
            while True:
                now = time.monotonic()
                if now >= look_s:
                    look_s = now + step.pause_s(LOOK_S if self._look(now) else REST_S)
                for probe in self._prober.due(now):
                    self._send(probe)
                self._tell()
                wait_s = min(look_s, self._prober.wake_s(now)) - now
                self._wake.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(max(wait_s, WAKE_MIN_S)):
                        await self._wake.wait()
        finally:
            self._close()

    # --- who is sent much -----------------------------------------------------------------------------

    def _look(self, now: float) -> bool:
        """Look who is sent much; return whether anybody was sent anything."""
        counters, settings = self._backend.describe().counters, self._settings
        if counters is None or settings is None:
            return False
        forwarded = counters.totals().tx.forwarded
        if forwarded == self._forwarded:
            self._loads.rest()
            return False
        self._forwarded = forwarded
        own, self._sent = self._sent, Counter()
        paths = self._list_paths(settings)
        tx, rx = counters.peer_bytes(max(paths, default=-1) + 1)
        for peer_id, is_silent in self._loads.note(tx, rx, own):
            for path in paths.get(peer_id, ()):
                path = limit(path, settings.mtu, self._watch.known.told(path.peer))
                self._prober.note_traffic(path, now, is_silent=is_silent)
        return True

    def _note_word(self, peer: Address) -> None:
        if self._settings is not None:
            told = self._watch.known.told(peer)
            self._prober.note_word(peer, self._settings.mtu, told, time.monotonic())
            self._wake.set()

    def _list_paths(self, settings: Settings) -> dict[int, list[Path]]:
        if self._paths is None:
            self._paths = list_paths(self._table, settings.encaps, settings.mtu)
            self._ids = {path.peer: peer_id for peer_id, paths in self._paths.items() for path in paths}
            self._prober.keep(self._ids)
        return self._paths

    # --- asking ---------------------------------------------------------------------------------------

    def _send(self, probe: Probe) -> None:
        try:
            try:
                self._ask(probe)
            except OSError:  # the device may have been made anew
                self._close()
                self._ask(probe)
        except OSError as err:
            self._close()
            self._trouble.failed(err.strerror or str(err))
            return
        self._trouble.over()
        self._sent[self._ids.get(probe.peer, -1)] += probe.size

    def _ask(self, probe: Probe) -> None:
        if self._echo is None:
            self._open()
        assert self._echo is not None
        self._echo.send(probe)

    def _open(self) -> None:
        assert self._settings is not None
        self._echo = Echo(self._settings.tun_name, self._sources)
        for sock in self._echo.sockets():
            asyncio.get_running_loop().add_reader(sock, self._receive)

    def _receive(self) -> None:
        if self._echo is not None:
            now = time.monotonic()
            for token, size in self._echo.receive():
                self._prober.answered(token, size, now)
                self._wake.set()

    def _close(self) -> None:
        if self._echo is not None:
            for sock in self._echo.sockets():
                asyncio.get_running_loop().remove_reader(sock)
            self._echo.close()
        self._echo = None

    def _tell(self) -> None:
        for path, mtu in self._prober.take_found():
            if mtu is None:
                self._watch.forget(path.peer, PROBE)
            else:
                self._watch.learn(path.peer, PathMtu(mtu + path.overhead, PROBE))
