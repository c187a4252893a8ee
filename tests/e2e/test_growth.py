# SPDX-License-Identifier: Apache-2.0
"""Control does not grow with what happens again and again: lost watches, scrapes, changes of the host.

far0 ─── veth ─── under0 192.0.2.1  host namespace: overlayd run, whose pages are fetched

The watch is that of our etcd client, in this process, on a real etcd of the loopback device.
"""

from __future__ import annotations

import ctypes
import gc
from contextlib import closing
from pathlib import Path

import pytest
import uvloop

from dataplane.config import EtcdConfig
from dataplane.errors import StoreError
from dataplane.store.etcd import EtcdKeyValue
from dataplane.store.etcd_client import Line
from tests.e2e.frames import US
from tests.e2e.leased import LEASES, NETWORK
from tests.e2e.rig import Daemon
from tests.e2e.test_watched import METRICS, PROBES, Page, lone_host
from tests.etcd import Etcd
from tests.gateway import Gateway
from tests.soak.gauge import read_process

WARM_UP, RESTARTS = 2, 8
RESTART_BYTES = 20_000  # that may stay of each: a watch that is not let go is 55 000
HEAP_BYTES = 64 << 20
SCRAPES = 150  # of each page
GROWN_KIB = 4096.0  # by which control may grow meanwhile: 8600 where nobody looks for garbage


class Heap(ctypes.Structure):
    """What mallinfo2() of glibc says."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "free_blocks", "fast_blocks", "maps", "mapped_bytes", "most_bytes"),
            *("fast_bytes", "used_bytes", "free_bytes", "top_bytes"),
        )
    ]


def count_heaps(pid: int) -> int:
    """Return how many heaps a process has beside its first: glibc puts each at a multiple of 64 MiB."""
    starts, ends = set(), set()
    for line in Path(f"/proc/{pid}/maps").read_text(encoding="ascii").splitlines():
        bounds, access = line.split()[:2]
        start, _, end = bounds.partition("-")
        if access == "rw-p":
            starts.add(int(start, 16))
        elif access == "---p":
            ends.add(int(end, 16))
    return sum(start % HEAP_BYTES == 0 and start + HEAP_BYTES in ends for start in starts)


def used_bytes() -> int:
    """Return what this process has of malloc() and not given back."""
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = Heap
    used: int = libc.mallinfo2().used_bytes
    return used


async def watch_and_end(etcd: Etcd, keys: EtcdKeyValue, after: int) -> None:
    """End etcd under a watch that stands: it has told something."""
    async for _ in keys.watch(after):
        etcd.members[0].stop()


async def lose_watches(etcd: Etcd, keys: EtcdKeyValue, gateway: Gateway, times: int) -> None:
    """End etcd under a watch, and start it again, so many times."""
    for _ in range(times):
        after = gateway.put("config", "{}") - 1
        with pytest.raises(StoreError):
            await watch_and_end(etcd, keys, after)
        etcd.members[0].start()
        etcd.members[0].wait_listening()


async def measure_loss(etcd: Etcd) -> tuple[int, int]:
    """Return by how many bytes lost watches let us grow, and how many connections we still know."""
    keys = EtcdKeyValue(EtcdConfig(endpoints=etcd.urls))
    with closing(etcd.members[0].gateway()) as gateway:
        await lose_watches(etcd, keys, gateway, WARM_UP)
        gc.collect()
        before = used_bytes()
        await lose_watches(etcd, keys, gateway, RESTARTS)
        grown = used_bytes() - before
    known = sum(isinstance(found, Line) for found in gc.get_objects())
    await keys.close()
    return grown, known


def test_lost_watches(tmp_path: Path) -> None:
    """A watch that is lost goes, with its connection and its memory, without anybody looking for garbage."""
    gc.disable()
    try:
        with Etcd(tmp_path / "etcd") as etcd:
            grown, known = uvloop.run(measure_loss(etcd))
    finally:
        gc.enable()
    assert known == 0
    assert grown < RESTARTS * RESTART_BYTES


def test_scrapes_and_changes(tmp_path: Path) -> None:
    """Control does not grow with pages that are fetched and changes of the host that it looks at."""
    with lone_host("growth") as host:
        flags = ("--healthz-port", str(PROBES), "--metrics-port", str(METRICS), "--public-ip", str(US.ip))
        daemon = Daemon(host, tmp_path / "node", {"network": NETWORK, "leases": LEASES}, flags)
        with closing(daemon):
            daemon.start()
            assert daemon.process is not None
            pid = daemon.process.pid
            pages = [(Page(host, METRICS), "/metrics"), (Page(host, PROBES), "/readyz")]

            def grow(times: int) -> float:
                for turn in range(times):
                    for page, path in pages:
                        assert page.get(path)[0] == 200
                    if turn % 5 == 0:
                        host.ip("addr add 198.18.0.1/32 dev lo\naddr del 198.18.0.1/32 dev lo\n")
                return read_process(pid)["rss_kib"]

            first = grow(SCRAPES // 5)
            last = grow(SCRAPES)
            heaps = count_heaps(pid)
    assert heaps == 0
    assert last - first < GROWN_KIB
