# SPDX-License-Identifier: Apache-2.0
"""`overlayd run` from lock to exit status: one daemon after the other, as renewal.py says."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress

import uvloop

from dataplane import choose, footing, journal, memory, native, privilege, renewal
from dataplane.backend import Place
from dataplane.backend.offloads import Offloads
from dataplane.config import RunConfig
from dataplane.control import ForwarderClient, newest_epoch
from dataplane.daemon import Daemon
from dataplane.errors import KernelError, NotRunning
from dataplane.logsetting import LogSetting
from dataplane.netlink import Host
from dataplane.notify import take_kept
from dataplane.privilege import Capability
from dataplane.renewal import Leave
from dataplane.rundir import Lock, RunDir

# For devices, routes, firewall and marks; for raw and bound sockets. Children change the firewall.
CHILDREN = frozenset({Capability.NET_ADMIN, Capability.NET_RAW})
KEPT = CHILDREN | {Capability.NET_BIND_SERVICE}  # a port below 1024 may be told


async def _main(config: RunConfig, run_dir: RunDir, epoch: int, kept: dict[str, int]) -> Leave:
    """Be control until another one follows that this process is not, or becomes only later."""
    log_setting = LogSetting(config, run_dir)
    log_setting.forget()
    while True:
        memory.start()
        daemon = Daemon(Place(await _choose(config), run_dir, epoch, kept), log_setting)
        try:
            await daemon.run()
        finally:
            memory.end()
            if not daemon.report.is_carrying:
                remove_unused(run_dir)
        if daemon.is_changing:
            continue
        if daemon.renewal.leave is not Leave.BECOME:
            return daemon.renewal.leave
        renewal.become_installed()


async def _choose(config: RunConfig) -> RunConfig:
    """Return the configuration with the datapath that can be had."""
    host = Host()
    try:
        obstacle = await host.vxlan_obstacle() if config.datapath == "auto" else None
    finally:
        await host.close()
    return choose.choose(config, obstacle)


def remove_unused(run_dir: RunDir) -> None:
    """Remove the run directory of a start that failed, unless a forwarder lives in it."""
    for path in (run_dir.forwarder_socket, run_dir.spare_socket):
        with suppress(NotRunning):
            ForwarderClient(path).close()
            return
    run_dir.remove()


def _give_up(config: RunConfig, *, is_first: bool) -> None:
    """Keep the capabilities that are needed all the time, after what takes more than those."""
    if config.datapath != "kernel":
        if is_first:  # otherwise it is known what the last control found
            Offloads(config.disable, os.uname().release).prove()
        with suppress(KernelError):  # told when it is needed
            native.tun_prepare_steering()
    privilege.keep(KEPT, CHILDREN)


def run(config: RunConfig) -> int:
    """Be the control of this node until SIGTERM or SIGINT; return the exit status."""
    kept = take_kept(os.environ)
    journal.set_up(config.log_level, config.log_format)
    footing.stand("overlayd run")
    footing.let_forwarders_first()
    privilege.hide_memory()  # a password may be in there
    run_dir = RunDir(config.run_dir)
    run_dir.prepare()
    renewal.take_steering()
    lock: Lock | None = renewal.follow(run_dir) if config.replace else run_dir.lock()
    is_first = True
    while lock is not None:
        with lock:
            newest = newest_epoch(run_dir)
            epoch = run_dir.next_epoch(newest)
            if is_first:
                _give_up(config, is_first=newest == 0)
            is_first = False
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                leave = runner.run(_main(config, run_dir, epoch, kept))
        lock = renewal.stand_by(run_dir) if leave is Leave.STAND_BY else None
    return 0
