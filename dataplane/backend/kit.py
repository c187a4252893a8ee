# SPDX-License-Identifier: Apache-2.0
"""What a forwarder works with: whoever opens it changes it, and whoever keeps forwarders hands it over."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from dataplane import native
from dataplane.native import Counters, ForwarderConfig
from dataplane.slots import Fd, Fds

STEP_BYTES = 1 << 20


@dataclass(slots=True)
class Kit:
    """All of it, as it is now."""

    fds: Fds = field(default_factory=dict)  # the FIB among them is the table in force, or about to be
    config: ForwarderConfig | None = None
    config_in_force: ForwarderConfig | None = None
    generation: int = 0  # of the table
    subnets: int = 0  # in it
    counters: Counters | None = None  # that are among the descriptors
    is_due: bool = True  # no forwarder was given it as it is

    @property
    def is_whole(self) -> bool:
        """Whether a forwarder can work with it."""
        return self.config is not None and {Fd.TUN, Fd.COUNTERS, Fd.FIB} <= self.fds.keys()

    def renew_counters(self) -> None:
        """Leave the counters to whoever may still write them, and go on with a copy."""
        old = self.fds[Fd.COUNTERS]
        copy = copy_counters(old)
        if self.counters is not None:
            self.counters.close()
        self.fds[Fd.COUNTERS], self.counters = copy, Counters(copy)
        self.is_due = True
        os.close(old)


def copy_counters(fd: int) -> int:
    """Return new counters that say what these do."""
    with Counters(fd) as counters:
        header = counters.header()
    copy = native.counters_create(header.threads, header.max_peers)
    end = 0
    while True:
        try:
            begin = os.lseek(fd, end, os.SEEK_DATA)
        except OSError:  # nothing but zeros from here on
            return copy
        end = os.lseek(fd, begin, os.SEEK_HOLE)
        for place in range(begin, end, STEP_BYTES):
            os.pwrite(copy, os.pread(fd, min(STEP_BYTES, end - place), place), place)
