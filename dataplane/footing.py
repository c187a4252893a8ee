# SPDX-License-Identifier: Apache-2.0
"""What a process stands on: files it may open, signals that end it, and who the processors serve first."""

from __future__ import annotations

import os
import resource
import signal
import time
from contextlib import suppress
from pathlib import Path

from dataplane.errors import KernelError, RuntimeFailure
from dataplane.native import check, lib

FILES_MIN = 512  # every queue and source port there can be, twice, and what libraries want
NICE = -5  # of a forwarder: three times the weight of others
SLICE_NS = 100_000  # the least that the kernel takes
TRIES, TRY_AGAIN_S = 3, 0.1  # the kernel lets one session of a machine change its weight at a time
# What would end a process by default, and that somebody may send to all of ours, or that comes of a terminal.
STRAYS = (
    *(signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGPIPE, signal.SIGALRM, signal.SIGVTALRM),
    *(signal.SIGPROF, signal.SIGIO, signal.SIGPWR),
)


def stand(who: str) -> None:
    """Ignore stray signals, and open as many files as we may; RuntimeFailure if those are too few."""
    for number in STRAYS:
        signal.signal(number, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard not in (soft, resource.RLIM_INFINITY):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    if 0 <= soft < FILES_MIN:
        raise RuntimeFailure(
            f"{who} may open {soft} files, and needs {FILES_MIN}. Fix: ulimit -n 1024, or LimitNOFILE=1024"
        )


def let_forwarders_first() -> None:
    """Let those that we start be served before others, though they have no privilege: favour().

    Without privilege ourselves they are served as all are.
    """
    if resource.getrlimit(resource.RLIMIT_NICE)[0] < 20 - NICE:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NICE, (20 - NICE, 20 - NICE))


def favour() -> None:
    """Be served before others as far as we may: among the threads of a session, and our session among others.

    And for less time at once, which takes no privilege: then the kernel lets us run sooner when a packet
    comes, and others when we look for the next one.

    The kernel gives each session the same share of the processors, however many threads it has (autogroups):
    on a busy machine, a forwarder that starts its own session has no more than a shell.
    """
    with suppress(KernelError):
        check(lib.dp_shorten_slice(SLICE_NS), "shortening our slice")
    with suppress(OSError):
        if os.getpriority(os.PRIO_PROCESS, 0) > NICE:
            os.setpriority(os.PRIO_PROCESS, 0, NICE)
    if os.getsid(0) != os.getpid():
        return  # who started us shares it
    for _ in range(TRIES):
        try:
            Path("/proc/self/autogroup").write_text(str(NICE), encoding="ascii")
        except BlockingIOError:
            time.sleep(TRY_AGAIN_S)
        except OSError:
            return  # there are none, or we may not
        else:
            return
