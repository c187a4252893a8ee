# SPDX-License-Identifier: Apache-2.0
"""A daemon of which another build can be installed while it runs, and a connection that must live on."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.lab import Namespace
from tests.e2e.rig import ROOT, Daemon

UPGRADE_S = 150.0


class Installed(Daemon):
    """An `overlayd run` of whatever the link `installed` leads to at the time when it is started."""

    def __init__(
        self, namespace: Namespace, directory: Path, peers: dict[str, Any], flags: Sequence[str]
    ) -> None:
        """Have this tree installed."""
        super().__init__(namespace, directory, peers, flags)
        self.link = directory / "installed"
        self.install(ROOT)

    def install(self, tree: Path) -> None:
        """Let the link lead elsewhere."""
        draft = self.link.with_suffix(".new")
        draft.symlink_to(tree)
        draft.replace(self.link)

    def environment(self) -> dict[str, str]:
        """Return what makes a program take the package from there."""
        return {**os.environ, "PYTHONPATH": str(self.link)}

    def begin(self, command: list[str], log: str = "log") -> subprocess.Popen[bytes]:
        """Start a program of what is installed; it writes into a file of ours."""
        with (self.directory / log).open("ab") as out:
            return subprocess.Popen(command, stdout=out, stderr=out, cwd="/", env=self.environment())

    def launch(self) -> None:
        """Start it."""
        self.process = self.begin(self.run_command())

    def say(self, *args: str) -> subprocess.CompletedProcess[str]:
        """Run a command of what is installed to its end."""
        return subprocess.run(
            *(self.command(*args),),
            cwd="/",
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=UPGRADE_S,
        )

    def upgrade(self) -> dict[str, Any]:
        """Run `overlayd upgrade`; return what it says happened."""
        done = self.say("upgrade", "--json")
        assert (done.returncode, done.stderr) == (0, ""), f"{done.stderr}{self.log()[-3000:]}"
        found: dict[str, Any] = json.loads(done.stdout)
        return found


class Transfer:
    """A TCP connection from one place to another that carries bytes as long as the block lasts."""

    CHUNK = 16 << 10
    PAUSE_S = 0.002

    def __init__(self, source: Namespace, target: Namespace, ips: tuple[str, str], port: int) -> None:
        """Connect."""
        listener = target.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.bind((ips[1], port))
        listener.listen(1)
        self._out = source.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._out.settimeout(20)
        self._out.bind((ips[0], 0))
        self._out.connect((ips[1], port))
        self._in, _ = listener.accept()
        self._in.settimeout(20)
        listener.close()
        self._is_over = threading.Event()
        self.digests = [hashlib.sha256(), hashlib.sha256()]  # of what was sent, and what came
        self.received = 0
        self.errors: list[OSError] = []

    def __enter__(self) -> Transfer:
        self._threads = [threading.Thread(target=self._send), threading.Thread(target=self._receive)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()
        self._out.close()
        self._in.close()

    def _send(self) -> None:
        number = 0
        try:
            while not self._is_over.is_set():
                chunk = hashlib.shake_128(number.to_bytes(8, "big")).digest(self.CHUNK)
                self._out.sendall(chunk)
                self.digests[0].update(chunk)
                number += 1
                self._is_over.wait(self.PAUSE_S)
            self._out.shutdown(socket.SHUT_WR)
        except OSError as err:
            self.errors.append(err)

    def _receive(self) -> None:
        try:
            while chunk := self._in.recv(1 << 20):
                self.digests[1].update(chunk)
                self.received += len(chunk)
        except OSError as err:
            self.errors.append(err)

    def check(self) -> None:
        """After the block: all that was sent came, and nothing ended the connection."""
        assert self.errors == []
        assert self.received > 0
        assert self.digests[0].digest() == self.digests[1].digest()
