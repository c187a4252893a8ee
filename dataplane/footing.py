# SPDX-License-Identifier: Apache-2.0
"""What a process stands on: how many files it may open, and which signals end it."""

from __future__ import annotations

import resource
import signal

from dataplane.errors import RuntimeFailure

FILES_MIN = 512  # every queue and source port there can be, twice, and what libraries want
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
