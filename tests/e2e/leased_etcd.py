# SPDX-License-Identifier: Apache-2.0
"""The rig of leased.py on a real etcd, which runs in the namespace of the node."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from dataplane.store.keyvalue import Record
from tests.e2e.leased import LeasedDaemon
from tests.etcd import Etcd, Seat
from tests.gateway import Gateway


class EtcdLeasedDaemon(LeasedDaemon):
    """An `overlayd run` on an etcd of its own, to which the test writes past all that is ours."""

    etcd_flags: Sequence[str] = ()

    @cached_property
    def etcd(self) -> Etcd:
        """Start it when it is first asked for; close() ends it."""
        etcd = Etcd(self.directory / "etcd", flags=self.etcd_flags, seat=Seat(within=self.namespace))
        etcd.members[0].wait_listening()
        return etcd

    @cached_property
    def gateway(self) -> Gateway:
        """How the test writes to it."""
        return self.etcd.members[0].gateway()

    def store_flags(self) -> list[str]:
        """Return the flags that name the store."""
        return ["--store", "etcd", "--etcd-endpoints", ",".join(self.etcd.urls)]

    def records(self) -> list[Record]:
        """Return all that stands in the store."""
        return self.gateway.records()

    def store_revision(self) -> int:
        """Return the revision of the store."""
        return self.gateway.revision()

    def write(self, key: str, text: str, ttl_s: float | None = None) -> None:
        """Write a key, over whatever is there."""
        self.gateway.put(key, text, ttl_s)

    def smuggle(self, name: str, lease: dict[str, Any]) -> None:
        """Write a lease past all checks: etcd has none."""
        self.gateway.put(f"subnets/{name}", json.dumps(lease))

    def erase(self, key: str) -> None:
        """Delete a key."""
        self.gateway.delete(key)

    def close(self) -> None:
        """End everything and take all of it down."""
        try:
            super().close()
        finally:
            self.gateway.close()
            self.etcd.close()
