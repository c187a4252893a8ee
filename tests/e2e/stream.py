# SPDX-License-Identifier: Apache-2.0
"""A TCP connection between two namespaces, talked over all the time: does it live, how long was it still?"""

from __future__ import annotations

import os
import socket
import threading
import time
from types import TracebackType
from typing import Self

from bench.lab import Namespace, wait_for

TIMEOUT_S = 20.0
PIECE = 32 << 10
PAUSE_S = 0.005  # between rounds: more than enough rounds, and hardly any processor time


class Stream:
    """One socket that sends random bytes and gets them back, again and again, until it is closed."""

    def __init__(self, sender: Namespace, receiver: Namespace, address: str) -> None:
        """Connect to `address`, which the receiver has, and start talking."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with receiver.socket(family, socket.SOCK_STREAM) as listener:
            listener.bind((address, 0))
            listener.listen(1)
            self._near = sender.socket(family, socket.SOCK_STREAM)
            self._near.settimeout(TIMEOUT_S)
            self._near.connect(listener.getsockname())
            self._far, _ = listener.accept()
        self._far.settimeout(TIMEOUT_S)
        self._is_ending = threading.Event()
        self._trouble: str | None = None
        self._rounds = 0
        self._longest_s = 0.0
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._echo, self._talk)]
        for thread in self._threads:
            thread.start()

    def _echo(self) -> None:
        try:
            while data := self._far.recv(PIECE):
                self._far.sendall(data)
        except OSError as err:
            self._trouble = self._trouble or f"the far end: {err}"

    def _talk(self) -> None:
        try:
            while not self._is_ending.wait(PAUSE_S):
                self._talk_once()
        except OSError as err:
            self._trouble = self._trouble or f"the near end: {err}"

    def _talk_once(self) -> None:
        sent, back = os.urandom(PIECE), bytearray()
        begun_s = time.monotonic()
        self._near.sendall(sent)
        while len(back) < PIECE:
            back += self._near.recv(PIECE - len(back))
        if bytes(back) != sent:
            self._trouble = "other bytes came back than were sent"
        self._longest_s = max(self._longest_s, time.monotonic() - begun_s)
        self._rounds += 1

    def longest_s(self) -> float:
        """Return how long a round took at most since the last call; another round must pass first."""
        rounds = self._rounds
        wait_for(
            lambda: self._trouble or self._rounds > rounds + 1,
            f"the connection is alive ({self._trouble})",
            TIMEOUT_S,
        )
        assert self._trouble is None, self._trouble
        longest, self._longest_s = self._longest_s, 0.0
        return longest

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._is_ending.set()
        self._threads[1].join(TIMEOUT_S)
        self._near.close()
        self._threads[0].join(TIMEOUT_S)
        self._far.close()
