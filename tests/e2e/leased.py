# SPDX-License-Identifier: Apache-2.0
"""The rig of rig.py on the sqlite store: the test writes to it as another process of the machine would."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from bench.lab import wait_for
from dataplane.errors import NotRunning
from dataplane.store.database import Database
from dataplane.store.keyvalue import Record
from tests.e2e import frames, warm
from tests.e2e.frames import DUAL, FOUR, US
from tests.e2e.rig import OVERLAYD, Daemon, Rig

FLAGS = ("--public-ip", str(US.ip))
NETWORK: dict[str, Any] = {
    "Network": frames.NETWORK,
    "Backend": {"Type": "vxlan", "VNI": frames.VNI, "Port": frames.PORT},
}


def value(ip: str | None, mac: str, **more: object) -> dict[str, object]:
    """Return a lease in flannel's JSON."""
    data = {"VNI": frames.VNI, "VtepMAC": mac}
    return {"PublicIP": ip, "PublicIPv6": None, "BackendType": "vxlan", "BackendData": data, **more}


LEASES = {node.subnet: value(node.ip, node.mac) for node in (US, DUAL, FOUR)}


class LeasedDaemon(Daemon):
    """An `overlayd run` on a store of its own, with a VTEP MAC that the test knows."""

    @property
    def store_path(self) -> Path:
        """The file of the store."""
        return self.directory / "store.db"

    def write_peers(self, peers: dict[str, Any] | str) -> None:
        """Fill a new store: with leases that never expire."""
        assert isinstance(peers, dict)
        state = self.directory / "state"
        state.mkdir()
        (state / "vtep-mac").write_text(f"{US.mac}\n", encoding="ascii")
        self.put_config(peers["network"])
        for subnet, lease in peers["leases"].items():
            self.put(subnet, lease)

    def store_flags(self) -> list[str]:
        """Return the flags that name the store."""
        return ["--store", f"sqlite://{self.store_path}"]

    def run_command(self) -> list[str]:
        """Return the command line of `overlayd run`."""
        command = super().run_command()
        place = command.index("--store")
        return [*command[:place], *self.store_flags(), *command[place + 2 :]]

    @contextmanager
    def database(self) -> Iterator[Database]:
        """Open the store, as another process would."""
        database = Database(self.store_path)
        try:
            yield database
        finally:
            database.close()

    def records(self) -> list[Record]:
        """Return all that stands in the store."""
        with self.database() as database:
            return list(database.snapshot().records)

    def store_revision(self) -> int:
        """Return the revision of the store."""
        with self.database() as database:
            return database.snapshot().revision

    def find(self, key: str) -> Record | None:
        """Return a key as it stands in the store."""
        return next((found for found in self.records() if found.key == key), None)

    def write(self, key: str, text: str, ttl_s: float | None = None) -> None:
        """Write a key, over whatever is there."""
        found = self.find(key)
        with self.database() as database:
            database.put(key, text, ttl_s, 0 if found is None else found.changed)

    def erase(self, key: str) -> None:
        """Delete a key."""
        found = self.find(key)
        assert found is not None
        with self.database() as database:
            database.delete(key, found.changed)

    def put_config(self, network: dict[str, Any] | str) -> None:
        """Write the network config."""
        self.write("config", network if isinstance(network, str) else json.dumps(network))

    def put(self, subnet: str, lease: dict[str, Any] | str, ttl_s: float | None = None) -> None:
        """Write a lease, over whatever is there; a key that contains a dash is taken as it is."""
        name = subnet if "-" in subnet else subnet.replace("/", "-")
        self.put_raw(name, lease if isinstance(lease, str) else json.dumps(lease), ttl_s)

    def put_raw(self, name: str, text: str, ttl_s: float | None = None) -> None:
        """Write anything under any name among the leases."""
        self.write(f"subnets/{name}", text, ttl_s)

    def smuggle(self, name: str, lease: dict[str, Any]) -> None:
        """Write a lease past all checks, as nobody should be able to."""
        db = sqlite3.connect(self.store_path, isolation_level=None)
        try:
            db.execute("BEGIN IMMEDIATE")
            db.execute("UPDATE state SET revision = revision + 1")
            (revision,) = db.execute("SELECT revision FROM state").fetchone()
            row = (f"subnets/{name}", json.dumps(lease), revision)
            db.execute("INSERT INTO entry VALUES (?1, ?2, ?3, ?3, NULL)", row)
            db.execute("INSERT INTO change VALUES (?3, ?1, ?2, ?3, NULL)", row)
            db.execute("COMMIT")
        finally:
            db.close()
        os.utime(self.store_path)

    def sync(self) -> None:
        """Wait until all that stands in the store is in force."""
        revision = self.store_revision()
        wait_for(
            lambda: (self.status()["store"]["revision"] or 0) >= revision,
            f"revision {revision} in force",
            5.0,
        )

    def delete(self, subnet: str) -> None:
        """Delete a lease."""
        self.erase(f"subnets/{subnet if '-' in subnet else subnet.replace('/', '-')}")

    def peers(self) -> dict[str, dict[str, Any]]:
        """Return the peers that status lists, by subnet, once what it lists is in force."""
        return {peer["subnet"]: peer for peer in self.settled_status()["peers"]}

    def say(self, *args: str) -> str:
        """Return what an overlayd command prints that is given the run directory."""
        return self._say(self.command(*args))

    def say_to_store(self, *args: str) -> str:
        """Return what an overlayd command prints that is given the store."""
        return self._say(self.namespace.command(*OVERLAYD, *args, *self.store_flags()))

    def _say(self, command: list[str]) -> str:
        done = warm.run(self.namespace, command, 20.0)
        return done.stdout + done.stderr

    def start_from_nothing(self) -> float:
        """Take everything down, then start; return how long it took to be ready, in seconds."""
        self.stop()
        assert self.say("down") == ""
        if self._counters is not None:
            self._counters[0].close()
            os.close(self._counters[1])
            self._counters = None
        started_s = time.monotonic()
        self.start()
        return time.monotonic() - started_s

    def wait_ready(self, reason: str | None = None) -> None:
        """Wait until the node is ready; or until it is not, for a reason that has these words."""

        def is_so() -> bool:
            try:
                status = self.status()
            except NotRunning:
                return False
            return bool(status["ready"]) if reason is None else reason in str(status["reason"])

        wait_for(is_so, lambda: f"ready: {reason or 'yes'}: {self.log()[-2000:]}", 10.0)


Kind = TypeVar("Kind", bound=LeasedDaemon)


class LeasedRig(Rig):
    """The rig with IPv4 alone, two peers, and everything in the store."""

    daemon: LeasedDaemon

    def __init__(self, directory: Path, kind: type[LeasedDaemon] = LeasedDaemon, **more: Any) -> None:
        """Build it and start the daemon; `kind` says on which store."""
        peers = {"network": NETWORK, "leases": LEASES}
        super().__init__(directory, peers, FLAGS, kind=kind, **more)

    def route_of(self, pod: str) -> tuple[str, str]:
        """Let our pod send to another; return outer destination and inner destination MAC of what leaves."""
        frame = self.sent(frames.inner4(US.pod(), pod))
        return ".".join(map(str, frame[30:34])), frame[50:56].hex(":")


# --- fixtures that a file of tests takes by name: rig = shared_rig(...) ---------------------------


def shared_rig(
    kind: type[LeasedDaemon] = LeasedDaemon, prepare: Callable[[LeasedRig], None] | None = None
) -> Callable[[pytest.TempPathFactory], Iterator[LeasedRig]]:
    """Return the fixture that yields one rig to all tests of a file; what is to be other is made so first."""

    @pytest.fixture(scope="module")
    def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LeasedRig]:
        with LeasedRig(tmp_path_factory.mktemp("leased") / "node", kind) as built:
            if prepare is not None:
                prepare(built)
            yield built

    return rig


def its_daemon(kind: type[Kind]) -> Callable[[LeasedRig], Kind]:
    """Return the fixture that returns the daemon of a file's rig."""

    @pytest.fixture
    def daemon(rig: LeasedRig) -> Kind:
        assert isinstance(rig.daemon, kind)
        return rig.daemon

    return daemon
