# SPDX-License-Identifier: Apache-2.0
"""Processes that do nothing but lease race for the subnets of a store: `python -m tests.e2e.allocators`.

python -m tests.e2e.allocators DIRECTORY RACES prints a line of JSON for each race: what was told, what the
store has, and how many stood still meanwhile. Each racer is forked, with nothing but the store to share;
some are stopped at any moment, and go on when the others are done.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import select
import signal
import sys
import time
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

from dataplane.lease import Lessee
from dataplane.leasing import Leasing
from dataplane.model import Heard, HostFacts, Interface
from dataplane.store.database import Database
from dataplane.store.registry import Registry
from dataplane.store.sqlite import SqliteKeyValue
from tests.leases import CONFIG

RACERS, STOPPED = 50, 5
FIRST_MS = 150  # in which a racer is stopped
STILL_S = 1.0  # at most: one that is stopped may hold the store's lock
RACE_S = 60  # after which a racer is out
NETWORK = (
    '{"Network":"10.244.0.0/16","SubnetMin":"10.244.1.0","SubnetMax":"10.244.50.0",'
    '"Backend":{"Type":"vxlan"}}'
)


async def lease(path: Path, ip: str, seed: int) -> str:
    """Follow the store until a subnet is ours; return it."""
    store, changed = Registry(SqliteKeyValue(path)), asyncio.Event()
    config = replace(CONFIG, state_dir=path.parent / ip)
    leasing = Leasing(
        config, store, Lessee(random.Random(seed).randrange, None, 86400.0, 3600.0), changed.set
    )
    leasing.host_changed(HostFacts((Interface("eth0", 2, 1500, (IPv4Address(ip),)),), ("eth0",)))

    async def follow() -> None:
        async for event in store.events():
            if not isinstance(event, Heard):
                leasing.apply_all([event])

    tasks = [asyncio.create_task(part) for part in (follow(), leasing.run())]
    while leasing.own() is None or leasing.reason() is not None:
        changed.clear()
        await changed.wait()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await store.close()
    own = leasing.own()
    assert own is not None
    return str(own.key)


def start(path: Path, number: int, gun: tuple[int, int], told: int, seed: int) -> int:
    """Fork a racer, which waits for the other end of `gun` to be closed; return its pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.close(gun[1])
        os.read(gun[0], 1)
        signal.alarm(RACE_S)
        subnet = asyncio.run(lease(path, f"198.18.0.{number}", seed))
        os.write(told, f"198.18.0.{number} {subnet}\n".encode())
        os._exit(0)
    finally:
        os._exit(1)


def stop_some(rng: random.Random, pids: list[int]) -> list[int]:
    """Stop some racers, at random moments; return those that had not ended."""
    begun_s, stopped = time.monotonic(), []
    for delay_ms, pid in zip(
        sorted(rng.choices(range(FIRST_MS), k=STOPPED)), rng.sample(pids, STOPPED), strict=True
    ):
        select.select([], [], [], max(0.0, begun_s + delay_ms / 1000 - time.monotonic()))
        os.kill(pid, signal.SIGSTOP)
        if os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT).si_code == os.CLD_STOPPED:  # type: ignore[union-attr]
            stopped.append(pid)
    return stopped


def race(directory: Path, rng: random.Random) -> dict[str, object]:
    """Run one race on a new store; return what came of it."""
    directory.mkdir()
    path = directory / "store.db"
    database = Database(path)
    database.put("config", NETWORK, None, 0)
    database.close()
    gun, told = os.pipe(), os.pipe()
    pids = [start(path, number, gun, told[1], rng.randrange(1 << 30)) for number in range(1, RACERS + 1)]
    for fd in (*gun, told[1]):
        os.close(fd)
    stopped = stop_some(rng, pids)
    until_s = time.monotonic() + STILL_S
    others = set(pids) - set(stopped)
    while others and time.monotonic() < until_s:
        others = {pid for pid in others if os.waitpid(pid, os.WNOHANG)[0] == 0}
        select.select([], [], [], 0.005)
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)
    for pid in (*others, *stopped):
        os.waitpid(pid, 0)
    with os.fdopen(told[0], encoding="ascii") as lines:
        return {"told": dict(line.split() for line in lines), "kept": read(path), "stopped": len(stopped)}


def read(path: Path) -> dict[str, str]:
    """Return which subnet each address has in the store."""
    database = Database(path)
    records = [record for record in database.snapshot().records if record.key != "config"]
    database.close()
    return {
        json.loads(record.value or "{}")["PublicIP"]: record.key.removeprefix("subnets/").replace("-", "/")
        for record in records
    }


def main() -> None:
    """Run the races."""
    directory, rng = Path(sys.argv[1]), random.Random(121)
    for turn in range(int(sys.argv[2])):
        print(json.dumps(race(directory / str(turn), rng)), flush=True)


if __name__ == "__main__":
    main()
