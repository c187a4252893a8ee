# SPDX-License-Identifier: Apache-2.0
"""Two hosts of the lab, overlayd on the first of them.

pod a ─ host a: overlayd        host b: what the test makes of it ─ pod b      (drawn at bench/lab.py)
"""

from __future__ import annotations

import json
import os
from types import TracebackType
from typing import Any, Self

from bench.lab import Lab
from tests.e2e.rig import Daemon
from tests.e2e.stream import Stream


class Staged:
    """The drawing above; who inherits it makes the daemon."""

    daemon: Daemon

    def __init__(self, name: str) -> None:
        """Build hosts and pods."""
        self.lab = Lab(f"e2e{name}{os.getpid() % 100000}", names=("a", "b"))
        self.a, self.b = self.lab.nodes["a"], self.lab.nodes["b"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End overlayd and take all of it down."""
        try:
            self.daemon.close()
        finally:
            self.lab.close()

    def stream(self, family: int = 4) -> Stream:
        """Return a connection from pod b to pod a."""
        return Stream(self.b.pod, self.a.pod, self.a.pod_ip6 if family == 6 else self.a.pod_ip())

    def show(self, *args: str) -> list[dict[str, Any]]:
        """Return what `ip -j ARGS` says on host a."""
        shown: list[dict[str, Any]] = json.loads(self.a.host.run("ip", "-j", *args).stdout or "[]")
        return shown

    def devices(self) -> set[str]:
        """Return the names of the devices of host a."""
        return {link["ifname"] for link in self.show("link")}
