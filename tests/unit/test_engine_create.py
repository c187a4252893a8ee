# SPDX-License-Identifier: Apache-2.0
"""What an engine refuses to begin with, piece by piece: everything here comes from another process."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from dataplane._native import ffi, lib

from dataplane import native
from dataplane.model import Table
from dataplane.native import ForwarderConfig
from dataplane.slots import BARE_MAX, SLOTS, Fd, slot_of

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ForwarderConfig(
    vni=1, vxlan_port=8472, underlay_ifindex=1, tun_mtu=1450, threads=2, queues=2, sources=2
)
SEVERAL = {Fd.TUN: 2, Fd.UDP4: 3, Fd.UDP6: 3, Fd.UDP4_TX: 2, Fd.UDP6_TX: 2, Fd.BARE4: 3}
WRONG: Mapping[str, tuple[object, ...]] = {
    "threads": (0, 3),
    "queues": (1, lib.DP_MAX_QUEUES + 1),
    "sources": (0, lib.DP_MAX_SOURCES + 1),
    "vni": (1 << 24,),
    "tun_mtu": (67, 65536),
    "vnet_hdr_len": (1, 9, 11, 13),
}


@contextmanager
def open_all() -> Iterator[dict[int, int]]:
    """Yield all descriptors of an engine with two workers; a pipe stands for the device and the sockets."""
    read_end, write_end = os.pipe2(os.O_NONBLOCK)
    shared = {slot_of(role, i): read_end for role, count in SEVERAL.items() for i in range(count)}
    counters, fib = native.counters_create(threads=2, max_peers=4), native.fib_create(Table((), ()), 1)
    yield {**shared, Fd.COUNTERS: counters, Fd.FIB: fib}
    for fd in (read_end, write_end, counters, fib):
        os.close(fd)


@pytest.fixture(scope="module")
def fds() -> Iterator[dict[int, int]]:
    """Yield the descriptors."""
    with open_all() as opened:
        yield opened


def create(config: ForwarderConfig, fds: Mapping[int, int], publish: int | None = None) -> str | None:
    """Make an engine, maybe give it another table, and end it; return the errno if there is one."""
    packed, out = ffi.from_buffer("struct dp_config *", native.pack_config(config)), ffi.new("dp_engine **")
    behind = [fds[Fd.TUN]] * len(Fd)  # which nobody looks at
    err = lib.dp_engine_create(packed, [fds.get(slot, -1) for slot in SLOTS] + behind, out)
    if not err:
        if publish is not None:
            err = lib.dp_engine_publish(out[0], publish)
        lib.dp_engine_destroy(out[0])
    return errno.errorcode[-err] if err else None


def test_engine_is_made_of_what_it_needs(fds: dict[int, int]) -> None:
    """With all descriptors it begins, and so it does with none of a role that it can do without."""
    assert create(CONFIG, fds) is None
    needed = (Fd.TUN, Fd.COUNTERS, Fd.FIB, slot_of(Fd.TUN, 1))
    assert create(CONFIG, {slot: fds[slot] for slot in needed}) is None


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in WRONG.items() for value in values]
)
def test_number_out_of_range(fds: dict[int, int], field: str, value: Any) -> None:
    """A number that nothing can work with is refused, though all else is right, and there in plenty."""
    plenty = dict.fromkeys(SLOTS, fds[Fd.TUN]) | {slot_of(Fd.BARE4, BARE_MAX): -1} | fds
    assert create(CONFIG, plenty) is None
    assert create(replace(CONFIG, **{field: value}), plenty) == "EINVAL"


@pytest.mark.parametrize("slot", [Fd.TUN, Fd.COUNTERS, Fd.FIB])
def test_missing_descriptor(fds: dict[int, int], slot: int) -> None:
    """Device, counters and table have to be there."""
    assert create(CONFIG, {**fds, slot: -1}) == "EINVAL"


@pytest.mark.parametrize("role", SEVERAL)
def test_all_of_a_role_or_none(fds: dict[int, int], role: Fd) -> None:
    """Of a role that there are several of, each has to be there."""
    assert create(CONFIG, {**fds, slot_of(role, SEVERAL[role] - 1): -1}) == "EINVAL"


def test_more_sockets_than_are_served(fds: dict[int, int]) -> None:
    """A socket for bare packets beyond those that workers look at is refused."""
    assert create(CONFIG, {**fds, slot_of(Fd.BARE4, BARE_MAX): fds[Fd.TUN]}) == "EINVAL"


def test_descriptor_of_something_else(fds: dict[int, int]) -> None:
    """A descriptor that is not open, or of another thing than it is said to be, is refused."""
    assert create(CONFIG, {**fds, Fd.RAW4: 1 << 30}) == "EBADF"
    assert create(CONFIG, {**fds, Fd.COUNTERS: fds[Fd.TUN]}) == "EPERM"
    assert create(CONFIG, {**fds, Fd.FIB: fds[Fd.COUNTERS]}) == "EPERM"
    few = native.counters_create(threads=1)
    assert create(CONFIG, {**fds, Fd.COUNTERS: few}) == "EINVAL"
    os.close(few)


def test_published_table_is_looked_at(fds: dict[int, int]) -> None:
    """What is published has to be a table; one that is none leaves the engine with its own."""
    assert create(CONFIG, fds, publish=fds[Fd.FIB]) is None
    assert create(CONFIG, fds, publish=fds[Fd.COUNTERS]) == "EPERM"


def starve() -> None:
    """Be a process that has no room for the stack of a thread, and say what became of an engine there."""
    with open_all() as opened:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 20), resource.RLIM_INFINITY))
        print(create(CONFIG, opened))


def test_workers_that_cannot_begin() -> None:
    """Where workers cannot be started there is no engine, and the reason is told."""
    command = [sys.executable, "-c", "from tests.unit.test_engine_create import starve; starve()"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() in ("EAGAIN", "ENOMEM")


@pytest.mark.parametrize(
    ("threads", "max_peers"),
    [(0, 1), (lib.DP_MAX_THREADS + 1, 1), (1, 0), (1, lib.DP_MAX_PEERS + 1)],
)
def test_counters_of_impossible_size(threads: int, max_peers: int) -> None:
    """Counters for nobody, or for more than there can be, are refused."""
    assert lib.dp_counters_create(threads, max_peers) == -errno.EINVAL
