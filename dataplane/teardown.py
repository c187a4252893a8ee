# SPDX-License-Identifier: Apache-2.0
"""`overlayd down`: removes everything of ours; what is already gone is fine."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from dataplane import handover, traffic
from dataplane.control import ask, connect_in_use, newest_epoch, stop_forwarders
from dataplane.errors import ControlError, NotRunning, RuntimeFailure
from dataplane.handover import HandOver
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


async def _plan(run_dir: RunDir, tun_name: str, names: tuple[str, ...]) -> list[HandOver]:
    """Return the kernel devices that are to carry on; raises while nothing is changed."""
    if not names:
        return []
    try:
        client = connect_in_use(run_dir)
    except NotRunning:
        raise RuntimeFailure("there is nothing to hand over: no forwarder is running") from None
    host = Host()
    try:
        return handover.read(client, names, tun_name, await host.facts())
    finally:
        client.close()
        await host.close()


async def _take_down(run_dir: RunDir, tun_name: str, plans: list[HandOver]) -> None:
    """End the forwarder and remove our part of the host; kernel devices carry on, if there are to be any."""
    host = Host()
    try:
        await handover.prepare(host, plans)
        stop_forwarders(run_dir, run_dir.next_epoch(newest_epoch(run_dir)))
        await host.remove(
            tun_name, run_dir.read_networks()
        )  # first: IPv6 takes no route by way of what another one leads to
        await handover.finish(host, plans)
    finally:
        await host.close()


async def _clean_host(tun_name: str) -> None:
    host = Host()
    try:
        await host.remove(tun_name)
    finally:
        await host.close()


def down(run_dir: Path, tun_name: str, hand_over: tuple[str, ...] = ()) -> int:
    """Stop both processes, remove TUN, routes and run directory; return the exit status.

    `tun_name` counts only if no `overlayd run` has left word of another. `hand_over` names kernel VXLAN
    devices that are to carry on, for IPv4 and for IPv6 pods.
    """
    where = RunDir(run_dir)
    if not where.path.exists():
        if hand_over:
            raise NotRunning(f"there is nothing to hand over: overlayd is not running in {run_dir}")
        asyncio.run(_clean_host(tun_name))
        traffic.end(tun_name, {})
        return 0
    where.prepare()
    facts = where.read_facts()
    left = facts.get("tun")
    name = left if isinstance(left, str) else tun_name
    asyncio.run(_plan(where, name, hand_over))  # before anything ends
    with _stop_control(where):
        plans = asyncio.run(_plan(where, name, hand_over))  # once the table does not change any more
        asyncio.run(_take_down(where, name, plans))
        traffic.end(name, facts, is_handed_over=bool(hand_over))
        where.remove()
    return 0
