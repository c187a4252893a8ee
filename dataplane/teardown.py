# SPDX-License-Identifier: Apache-2.0
"""`overlayd down`: removes everything of ours; what is already gone is fine."""

from __future__ import annotations

import asyncio
from pathlib import Path

from dataplane import handover, renewal, traffic
from dataplane.control import connect_in_use, newest_epoch, stop_forwarders
from dataplane.errors import NotRunning, RuntimeFailure
from dataplane.handover import HandOver
from dataplane.netlink import Host
from dataplane.rundir import RunDir


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
    with renewal.follow(where, "stop"):  # so that no other starts meanwhile
        plans = asyncio.run(_plan(where, name, hand_over))  # once the table does not change any more
        asyncio.run(_take_down(where, name, plans))
        traffic.end(name, facts, is_handed_over=bool(hand_over))
        where.remove()
    return 0
