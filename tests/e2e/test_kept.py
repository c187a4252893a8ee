# SPDX-License-Identifier: Apache-2.0
"""All processes of a node are killed, and a service manager has kept what they worked with; see pair.py.

The service manager is the test: it takes descriptors as systemd does, and hands them to the next control.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.lab import Namespace, wait_for
from tests.e2e.pair import BATCH_MAX, NODES, START_S, Pair, kill, peers_file
from tests.e2e.rig import ROOT, Daemon
from tests.e2e.stamped import Stream
from tests.e2e.test_forwarder_killed import host_of, is_gone, wait_spare

PORT, RATE_PPS = 9997, 200  # the queue of the TUN holds the stream for twenty seconds
MESSAGE_MAX, FDS_MAX = 4096, 8
# Puts what it is given where it belongs, says whose it is, and becomes the program.
HAND_DOWN = """
import fcntl, os, sys
count = int(sys.argv[1])
safe = [fcntl.fcntl(int(text), fcntl.F_DUPFD, 1000) for text in sys.argv[2 : 2 + count]]
for text in sys.argv[2 : 2 + count]:
    os.close(int(text))
for number, fd in enumerate(safe):
    os.dup2(fd, 3 + number)
    os.close(fd)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execvp(sys.argv[2 + count], sys.argv[2 + count :])
"""


class Keeper:
    """A service manager with a store for descriptors."""

    def __init__(self, host: Namespace) -> None:
        """Listen at an abstract address, which is one of a network namespace."""
        self.told = f"@{host.name}-keeper"
        self._sock = host.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(f"\0{self.told[1:]}")
        self._sock.settimeout(0.1)
        self._is_over = threading.Event()
        self.kept: list[tuple[str, int]] = []
        self._thread = threading.Thread(target=self._hear, daemon=True)
        self._thread.start()

    def _hear(self) -> None:
        while not self._is_over.is_set():
            try:
                data, fds, _, _ = socket.recv_fds(self._sock, MESSAGE_MAX, FDS_MAX)
            except TimeoutError:
                continue
            said = dict(line.split("=", 1) for line in data.decode().split("\n"))
            if said.get("FDSTORE") == "1" and said.get("FDPOLL") == "0":
                self.kept.append((said["FDNAME"], fds.pop()))
            if said.get("FDSTOREREMOVE") == "1":
                for entry in [entry for entry in self.kept if entry[0] == said["FDNAME"]]:
                    self.kept.remove(entry)
                    os.close(entry[1])
            for fd in fds:  # of a barrier
                os.close(fd)

    def names(self) -> list[str]:
        """Return under which names something is kept."""
        return sorted(name for name, _ in self.kept)

    def close(self) -> None:
        """Let go of everything."""
        self._is_over.set()
        self._thread.join()
        self._sock.close()
        for _, fd in self.kept:
            os.close(fd)


class KeptDaemon(Daemon):
    """An `overlayd run` under that service manager."""

    keeper: Keeper | None = None

    def launch(self) -> None:
        """Start it with all that is kept."""
        if self.keeper is None:
            self.keeper = Keeper(self.namespace)
        names = [name for name, _ in self.keeper.kept]
        numbers = [fd for _, fd in self.keeper.kept]
        words = [sys.executable, "-c", HAND_DOWN, str(len(numbers)), *map(str, numbers)]
        told = {"NOTIFY_SOCKET": self.keeper.told}
        if names:
            told |= {"LISTEN_FDS": str(len(names)), "LISTEN_FDNAMES": ":".join(names)}
        command = self.run_command()
        place = len(self.namespace.command())
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*command[:place], *words, *command[place:]],
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env=os.environ | told,
                pass_fds=numbers,
            )

    def close(self) -> None:
        """End everything."""
        if self.keeper is not None:
            self.keeper.close()
        super().close()


class KeptPair(Pair):
    """A pair of those."""

    def make_daemon(self, name: str, directory: Path, flags: list[str]) -> Daemon:
        """Return the daemon of a host, not started yet."""
        return KeptDaemon(self.spaces[name], directory, peers_file(), flags)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Yield the pair; at the end both must have accounted for every packet."""
    with KeptPair(tmp_path_factory.mktemp("kept")) as built:
        yield built


def held_by(pid: int) -> int:
    """Return how many queues of a TUN a process holds."""
    links = Path(f"/proc/{pid}/fd").iterdir()
    return sum(str(link.readlink()) == "/dev/net/tun" for link in links)


def test_what_was_kept_carries_on(pair: Pair) -> None:
    """With control, forwarder and spare dead at once no more is lost than what they had in hand."""
    daemon, space = pair.daemons["a"], pair.spaces["a"]
    assert isinstance(daemon, KeptDaemon)
    keeper = daemon.keeper
    assert keeper is not None
    before, hosts = wait_spare(daemon), host_of(space)
    sender, receiver = (f"{NODES[name][1]}.0" for name in NODES)
    wait_for(lambda: "overlayd-config" in keeper.names(), "the kept descriptors", START_S)
    assert len(keeper.kept) == len(set(keeper.names()))
    with Stream(space, pair.spaces["b"], sender, receiver, PORT, RATE_PPS) as flow:
        kill(daemon)
        for pid in (before["pid"], before["spare"]):
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: is_gone(before["pid"]) and is_gone(before["spare"]), "their end", START_S)
        assert "LOWER_UP" in json.loads(space.run("ip", "-j", "link", "show", "overlay0").stdout)[0]["flags"]
        daemon.start()
        flow.flow_on(100)
    lost = sum(count for _, count in flow.gaps())
    waited_ms = max(came - sent for _, sent, came in flow.came) / 1e6
    print(f"{lost} lost, longest wait {waited_ms:.0f} ms, load {os.getloadavg()[0]:.1f}")
    assert lost <= BATCH_MAX
    assert daemon.status()["forwarder"]["restarts"] == before["restarts"] + 1
    assert "inherited device, sockets, table and counters" in daemon.log()
    assert host_of(space) == hosts
    totals = daemon.settled(tx=flow.sent - lost)  # the counters are the same ones
    assert totals.tx.drops.get("restart", 0) >= lost
    # Each queue is held by control, by the forwarder and by whoever keeps it, and by nobody twice.
    assert daemon.process is not None
    queues = held_by(daemon.process.pid)
    assert queues == held_by(daemon.status()["forwarder"]["pid"])
    wait_for(lambda: len(set(keeper.names())) == len(keeper.kept) > queues, "what is kept now", START_S)


def test_what_control_gives_up_is_kept_no_more(pair: Pair) -> None:
    """Queues that are opened anew, in another tier, are held by nobody else, or they would not be others."""
    daemon = pair.daemons["a"]
    assert isinstance(daemon, KeptDaemon)
    keeper = daemon.keeper
    assert keeper is not None
    wait_for(lambda: "overlayd-config" in keeper.names(), "the kept descriptors", START_S)
    names = sorted(keeper.names())
    daemon.stop()
    daemon.flags += ["--disable", "all"]
    daemon.start()
    assert daemon.status()["tier"] == "plain"
    wait_for(lambda: sorted(keeper.names()) == names, "the queues of that tier", START_S)
    sender, receiver = (f"{NODES[name][1]}.0" for name in NODES)
    with Stream(pair.spaces["a"], pair.spaces["b"], sender, receiver, PORT, RATE_PPS) as flow:
        pass
    assert flow.gaps() == []
