# SPDX-License-Identifier: Apache-2.0
"""A forwarder that ends slowly keeps the TUN for a moment, and costs no more than one that ends at once."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bench.lab import wait_for
from tests.e2e.pair import START_S, Load, Pair, is_replaced, replace_forwarder
from tests.e2e.rig import Daemon

SYS_PIDFD_GETFD = 438  # since Linux 5.6
SINGLE = "full but tun-tso, tun-uso, udp-gso, udp-gro, tun-gro, tun-ugro"


def queues_of(pid: int) -> list[int]:
    """Return the descriptors of TUN queues that a process has."""
    found = []
    for path in Path(f"/proc/{pid}/fdinfo").iterdir():
        with suppress(FileNotFoundError):
            found += [int(path.name)] if "\niff:" in path.read_text(encoding="utf-8") else []
    return found


@contextmanager
def holding_tun(daemon: Daemon) -> Iterator[None]:
    """Hold the TUN queue of a forwarder for as long as the block lasts, as a dying forwarder does."""
    pid = daemon.status()["forwarder"]["pid"]
    pidfd = os.pidfd_open(pid)
    held = ctypes.CDLL(None, use_errno=True).syscall(SYS_PIDFD_GETFD, pidfd, queues_of(pid)[0], 0)
    os.close(pidfd)
    assert held >= 0, os.strerror(ctypes.get_errno())
    try:
        yield
    finally:
        os.close(held)


def test_one_tier_is_lost_while_the_tun_is_held(tmp_path: Path) -> None:
    """After a crash loop one tier is lost and no more, though the last forwarder is not quite gone yet."""
    with Pair(tmp_path) as pair:
        daemon = pair.daemons["a"]
        for _ in range(2):
            replace_forwarder(daemon)
        with holding_tun(daemon):
            pid = daemon.status()["forwarder"]["pid"]
            os.kill(pid, signal.SIGKILL)
            assert daemon.process is not None
            control = daemon.process.pid
            wait_for(lambda: not queues_of(control), "control to let go of the TUN", START_S)
            for _ in range(2):  # by the last answer it has tried to have it anew
                daemon.status()
        wait_for(lambda: is_replaced(daemon, pid), "another forwarder", START_S)
        for _ in range(2):
            assert daemon.status()["tier"] == SINGLE
            replace_forwarder(daemon)
        assert "no other tier" not in daemon.log_path.read_text()
        with Load(pair) as load:
            pass
        assert load.lost() == 0
