# SPDX-License-Identifier: Apache-2.0
"""A node whose store refuses it, or whose clock is set: drawing in rig.py, etcd in the namespace of the node.

The clock is that of `overlayd run` alone: wall_clock.c, which is preloaded, says what is set and what is not.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path

import pytest

from bench.lab import wait_for
from dataplane import control
from dataplane.config import EtcdConfig
from dataplane.errors import StoreError
from dataplane.store.etcd import EtcdKeyValue
from tests.e2e.frames import DUAL, US
from tests.e2e.leased import LeasedDaemon, LeasedRig, its_daemon, shared_rig, value
from tests.e2e.leased_etcd import EtcdLeasedDaemon
from tests.e2e.test_etcd_store import use
from tests.etcd import Etcd
from tests.gateway import Gateway

NEW, NEW_IP, NEW_MAC = "10.244.9.0/24", "198.18.0.9", "02:4f:00:00:04:09"
ROOT_KEY = "/coreos.com/network/"
QUOTA = 8 << 20
FILLING = "x" * (1 << 20)
USER, PASSWORD = "node", "correct horse"
BACK_S = 20.0
DAY_S = 86400
SOURCE = Path(__file__).with_name("wall_clock.c")


class SetClock(LeasedDaemon):
    """A daemon whose wall clock the test can set."""

    def environment(self) -> dict[str, str]:
        """Return the environment with the clock in it."""
        library = self.directory / "wall_clock.so"
        if not library.exists():
            command = ["gcc", "-std=gnu11", "-O2", "-shared", "-fPIC", "-o", str(library), str(SOURCE)]
            subprocess.run(command, check=True)
        self.set_clock(0)
        return {**os.environ, "LD_PRELOAD": str(library), "WALL_CLOCK": str(self.clock_path)}

    @property
    def clock_path(self) -> Path:
        """The file that says how much the clock is off."""
        return self.directory / "clock"

    def set_clock(self, off_s: int) -> None:
        """Set the clock forward or back."""
        fd = os.open(self.clock_path, os.O_CREAT | os.O_WRONLY, 0o600)
        os.pwrite(fd, off_s.to_bytes(8, sys.byteorder, signed=True), 0)
        os.close(fd)

    def now_s(self) -> float:
        """Return what the daemon takes the time to be: by what it logs when it is asked to log more."""
        said = len(self.log())
        for level in ("debug", "info"):
            control.ask(self.run_dir, {"cmd": "log", "level": level})
        wait_for(lambda: "\n" in self.log()[said:], "it logs something", BACK_S)
        return datetime.fromisoformat(self.log()[said:].split(maxsplit=1)[0]).timestamp()


class EtcdDaemon(SetClock, EtcdLeasedDaemon):
    """The same on an etcd that is soon full."""

    etcd_flags = ("--quota-backend-bytes", str(QUOTA))

    def store_flags(self) -> list[str]:
        """Return the flags that name the store, and a user, whom it may know or not."""
        return [*super().store_flags(), "--etcd-username", USER, "--etcd-password", PASSWORD]


rig = shared_rig(EtcdDaemon)
daemon = its_daemon(EtcdDaemon)


@contextmanager
def full(etcd: Etcd) -> Iterator[None]:
    """Let an etcd be full meanwhile."""
    member = etcd.members[0]
    with closing(Gateway(member.connect, member.url.partition("//")[2], "/filling/")) as filling:
        with pytest.raises(AssertionError, match="database space exceeded"):
            fill(filling)
        try:
            yield
        finally:
            filling.clear()
            filling.compact()
            etcd.ctl("defrag")
            etcd.ctl("alarm", "disarm")


def fill(filling: Gateway) -> None:
    """Write more than an etcd takes."""
    for turn in range(2 * QUOTA // len(FILLING)):
        filling.put(str(turn), FILLING)


def test_case_123_no_space(rig: LeasedRig, daemon: EtcdDaemon) -> None:
    """etcd is full and the lease is lost: packets flow, changes are seen, it is tried again and won."""
    daemon.put(NEW, value(NEW_IP, NEW_MAC))
    daemon.sync()
    said = len(daemon.log())
    with full(daemon.etcd):
        daemon.delete(US.subnet)
        daemon.wait_ready("database space exceeded")
        assert rig.route_of(DUAL.pod()) == (str(DUAL.ip), DUAL.mac)
        daemon.delete(NEW)
        wait_for(lambda: NEW not in daemon.peers(), "the end is seen", BACK_S)
    daemon.wait_ready()
    assert daemon.status()["subnet"] == US.subnet
    assert daemon.log()[said:].count("database space exceeded") <= 2
    assert "store lost" not in daemon.log()[said:]


def test_case_123_lease_lives_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """etcd is full: a lease that is as it is to be is kept alive; what would change it is refused."""
    key, reserved, ttl_s = "subnets/10.244.77.0-24", "subnets/10.244.78.0-24", 60.0

    def left_s(lease: str) -> int:
        return int(re.findall(r"remaining\((\d+)s\)", etcd.ctl("lease", "timetolive", lease))[0])

    async def refuse(keys: EtcdKeyValue, *puts: tuple[str, str, int]) -> None:
        for name, text, expected in puts:
            with pytest.raises(StoreError, match="is full"):
                await keys.put(name, text, ttl_s, expected)

    async def work(keys: EtcdKeyValue) -> None:
        made, other = await keys.put(key, "one", ttl_s, 0), await keys.put(reserved, "one", None, 0)
        (lease,) = etcd.leases()
        with full(etcd):
            wait_for(lambda: left_s(lease) < ttl_s - 4, "some of its life is over", BACK_S)
            kept = await keys.put(key, "one", ttl_s, made.changed)
            assert (kept.created, kept.changed, kept.value) == (made.created, made.changed, "one")
            assert kept.ttl_s == pytest.approx(ttl_s, abs=1)
            assert left_s(lease) >= ttl_s - 3
            await refuse(keys, (key, "two", made.changed), (key, "one", made.changed - 1))
            await refuse(keys, (reserved, "one", other.changed))  # it has no end that could be put off
            with monkeypatch.context() as patch:
                patch.setattr("dataplane.store.etcd._keep_alive", gone)
                await refuse(keys, (key, "one", made.changed))
            await keys.delete(key, made.changed)
            await refuse(keys, (key, "one", made.changed))
        await keys.put(key, "two", ttl_s, 0)

    async def gone(*_: object) -> int:
        return 0

    with Etcd(tmp_path / "etcd", flags=EtcdDaemon.etcd_flags) as etcd:
        use(EtcdConfig(endpoints=etcd.urls), work)


@pytest.fixture
def guarded(daemon: EtcdDaemon) -> Iterator[EtcdDaemon]:
    """Yield the daemon when its etcd has begun to know users; afterwards it knows none again."""
    etcd = daemon.etcd
    etcd.ctl("role", "add", "flannel")
    etcd.ctl("role", "grant-permission", "flannel", "readwrite", ROOT_KEY, "--prefix=true")
    for user, role in ((USER, "flannel"), ("root", "root")):
        etcd.ctl("user", "add", f"{user}:{PASSWORD}")
        etcd.ctl("user", "grant-role", user, role)
    etcd.ctl("auth", "enable")
    etcd.control_flags = ["--user", f"root:{PASSWORD}"]
    try:
        yield daemon
    finally:
        etcd.ctl("auth", "disable")
        etcd.control_flags = []


def test_case_123_role_revoked(rig: LeasedRig, guarded: EtcdDaemon) -> None:
    """The role is revoked live and the lease is lost: packets flow, it says what to grant, then is ready."""
    etcd, own = guarded.etcd, f"{ROOT_KEY}subnets/{US.subnet.replace('/', '-')}"
    said = len(guarded.log())
    etcd.ctl("del", own)
    wait_for(lambda: etcd.get(own), "it is taken back", BACK_S)
    guarded.wait_ready()
    etcd.ctl("role", "revoke-permission", "flannel", ROOT_KEY, "--prefix=true")
    etcd.ctl("del", own)
    guarded.wait_ready(f"user {USER} may not do that; grant readwrite on {ROOT_KEY} as a prefix")
    assert rig.route_of(DUAL.pod()) == (str(DUAL.ip), DUAL.mac)
    etcd.ctl("role", "grant-permission", "flannel", "readwrite", ROOT_KEY, "--prefix=true")
    guarded.wait_ready()
    assert guarded.status()["subnet"] == US.subnet
    assert etcd.get(own)
    assert "store lost" not in guarded.log()[said:]
    assert PASSWORD not in guarded.log()


# --- the clock ------------------------------------------------------------------------------------------


def step_clock(rig: LeasedRig, daemon: SetClock) -> None:
    """Set the clock a day forward, two back and one forward; nothing may come of it."""
    daemon.put(NEW, value(NEW_IP, NEW_MAC), DAY_S / 2)
    daemon.delete(US.subnet)  # a reservation, in whose place a lease of a day comes
    wait_for(lambda: daemon.find(f"subnets/{US.subnet.replace('/', '-')}"), "it is taken back", BACK_S)
    daemon.wait_ready()
    daemon.sync()
    said, before, revision = len(daemon.log()), daemon.status(), daemon.store_revision()
    began_s = daemon.now_s()
    for off_s in (DAY_S, -DAY_S, 0):
        daemon.set_clock(off_s)
        assert daemon.now_s() - began_s == pytest.approx(off_s, abs=600)
        daemon.put("10.244.10.0/24", value("198.18.0.10", "02:4f:00:00:04:10"))
        daemon.sync()
        daemon.delete("10.244.10.0/24")
        daemon.sync()
        after = daemon.status()
        assert (after["ready"], after["warnings"]) == (True, before["warnings"])
        assert after["lease"]["expires_in_s"] == pytest.approx(before["lease"]["expires_in_s"], abs=600)
        assert after["lease"]["renews_in_s"] == pytest.approx(before["lease"]["renews_in_s"], abs=600)
        assert {peer["subnet"] for peer in after["peers"]} == {peer["subnet"] for peer in before["peers"]}
        assert rig.route_of(DUAL.pod()) == (str(DUAL.ip), DUAL.mac)
        revision += 2
        assert daemon.store_revision() == revision, "somebody but us has written"
    daemon.delete(NEW)
    daemon.sync()
    assert not re.search("renewed|expired|stale", daemon.log()[said:])


def test_case_124_clock_is_set(rig: LeasedRig, daemon: EtcdDaemon) -> None:
    """The clock of a node is set by a day, either way: no lease ends or is renewed; changes are seen."""
    step_clock(rig, daemon)


@pytest.mark.soak
def test_case_124_clock_is_set_sqlite(tmp_path: Path) -> None:
    """The same on the sqlite store, whose leases the daemons of the machine judge themselves."""
    with LeasedRig(tmp_path / "node", SetClock, name="s") as rig:
        assert isinstance(rig.daemon, SetClock)
        step_clock(rig, rig.daemon)
