# SPDX-License-Identifier: Apache-2.0
"""What keeps processors awake in the bench takes nothing from those that it is to be fair to."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from bench import cgroup
from bench.lab import wait_for
from tests.e2e.priced import spent_s


@contextlib.contextmanager
def burning() -> Iterator[int]:
    """Start a loop on the first CPU, in a session of its own, and return its pid."""
    cpu = min(os.sched_getaffinity(0))
    loop = f"import os\nos.sched_setaffinity(0, [{cpu}])\nwhile True: pass"
    process = subprocess.Popen([sys.executable, "-c", loop], start_new_session=True)
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


def test_leftovers_are_what_nobody_wants() -> None:
    """Beside a loop of another session, one that is to have leftovers gets less than a tenth of its time."""
    parent = cgroup.cpu_controller()
    if parent is None:
        pytest.skip("there is no CPU controller to be had")
    with burning() as modest:
        wait_for(lambda: spent_s(modest) > 0.1, "the one to run while alone", 60)
        with cgroup.leftovers(parent, [modest]), burning() as other:
            wait_for(lambda: spent_s(other) > 0.1, "the other to run", 60)
            before_s = spent_s(modest), spent_s(other)
            wait_for(lambda: spent_s(other) - before_s[1] > 0.5, "the other to run on", 60)
            assert spent_s(modest) - before_s[0] < 0.05
        ran_s = spent_s(modest)
        wait_for(lambda: spent_s(modest) > ran_s + 0.1, "the one to run again", 60)
