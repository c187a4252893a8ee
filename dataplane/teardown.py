# SPDX-License-Identifier: Apache-2.0
"""`overlayd down`: removes everything of ours; what is already gone is fine."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from dataplane.control import ForwarderClient, ask, newest_epoch
from dataplane.errors import ControlError, NotRunning, RuntimeFailure
from dataplane.netlink import Host
from dataplane.rundir import Lock, RunDir

STOP_TIMEOUT_S = 10.0
RETRY_S = 0.01


def _stop_control(run_dir: RunDir) -> Lock:
    """End `overlayd run` and become the owner of its directory, so that no other starts meanwhile."""
    try:
        # Asked and not killed: its pid means nothing here if it lives in another container.
        ask(run_dir.path, {"cmd": "stop"})
    except NotRunning:
        pass
    except ControlError as err:
        raise RuntimeFailure(f"{err}. Kill it, then try again") from None
    deadline_s = time.monotonic() + STOP_TIMEOUT_S
    while True:
        try:
            return run_dir.lock()
        except RuntimeFailure:
            if time.monotonic() > deadline_s:
                raise
        time.sleep(RETRY_S)


def _stop_forwarder(run_dir: RunDir) -> None:
    epoch = run_dir.next_epoch(newest_epoch(run_dir))
    try:
        with ForwarderClient(run_dir.forwarder_socket, epoch) as client:
            client.hello()
            client.stop()
    except NotRunning:
        pass


async def _clean_host(tun_name: str) -> None:
    host = Host()
    try:
        await host.remove(tun_name)
    finally:
        await host.close()


def down(run_dir: Path, tun_name: str) -> int:
    """Stop both processes, remove TUN, routes and run directory; return the exit status.

    `tun_name` counts only if no `overlayd run` has left word of another.
    """
    where = RunDir(run_dir)
    if not where.path.exists():
        asyncio.run(_clean_host(tun_name))
        return 0
    where.prepare()
    with _stop_control(where):
        left = where.read_facts().get("tun")
        _stop_forwarder(where)
        asyncio.run(_clean_host(left if isinstance(left, str) else tun_name))
        where.remove()
    return 0
