# SPDX-License-Identifier: Apache-2.0
"""The forwarder's workers in this process, without a forwarder: for benches, tests and embedders."""

from __future__ import annotations

from collections.abc import Mapping

from dataplane.native import ForwarderConfig, check, ffi, fill_config, lib
from dataplane.slots import SLOTS


class Engine:
    """The forwarder's workers as threads of this process: for benches, tests and embedders."""

    def __init__(self, config: ForwarderConfig, fds: Mapping[int, int]) -> None:
        """Prepare workers for these descriptors, which stay the caller's."""
        cconfig = ffi.new("struct dp_config *")
        fill_config(cconfig, config)
        cfds = ffi.new("int[]", [fds.get(slot, -1) for slot in SLOTS])
        out = ffi.new("dp_engine **")
        check(lib.dp_engine_create(cconfig, cfds, out), "creating the engine")
        self._engine = out[0]

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _alive(self) -> object:
        if self._engine == ffi.NULL:
            raise ValueError("engine is closed")
        return self._engine

    def start(self) -> None:
        """Let the workers run."""
        check(lib.dp_engine_start(self._alive()), "starting the engine")

    def publish(self, fib_fd: int) -> None:
        """Put a table of fib_create() in force."""
        check(lib.dp_engine_publish(self._alive(), fib_fd), "publishing a table")

    def quiesce(self) -> None:
        """Park the workers; returns when no packet is in flight."""
        check(lib.dp_engine_quiesce(self._alive()), "parking the workers")

    def resume(self) -> None:
        """Let parked workers go on."""
        check(lib.dp_engine_resume(self._alive()), "resuming the workers")

    def close(self) -> None:
        """Stop the workers and free everything. May be called again."""
        if self._engine != ffi.NULL:
            lib.dp_engine_destroy(self._engine)
            self._engine = ffi.NULL
