# SPDX-License-Identifier: Apache-2.0
"""Our own lease, and the store, in bad times: packets flow on. Drawing in rig.py, store in leased.py."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.lab import wait_for
from tests.e2e.frames import DUAL, FOUR, US
from tests.e2e.leased import NETWORK, LeasedRig, value
from tests.e2e.rig import ROOT

NEW = "10.244.9.0/24"
NEW_POD, NEW_IP, NEW_MAC = "10.244.9.5", "198.18.0.9", "02:4f:00:00:04:09"
OWN_KEY = f"subnets/{US.subnet.replace('/', '-')}"
TO_DUAL = (str(DUAL.ip), DUAL.mac)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[LeasedRig]:
    """Yield a rig on a small disk of its own, which a test may fill, and a store that it may break."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(disk)], check=True)
    try:
        with LeasedRig(disk / "node") as built:
            yield built
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def own_value(rig: LeasedRig) -> str | None:
    """Return our lease as it stands in the store."""
    found = rig.daemon.find(OWN_KEY)
    return None if found is None else found.value


def test_lost_lease_is_won_back(rig: LeasedRig) -> None:
    """A deleted lease is taken again under the same subnet, by compare-and-swap; packets never stop."""
    rig.daemon.delete(US.subnet)
    wait_for(lambda: own_value(rig) is not None, "our lease is back", 5.0)
    assert f'"PublicIP":"{US.ip}"' in str(own_value(rig))
    rig.daemon.sync()
    rig.daemon.wait_ready()
    assert rig.daemon.status()["subnet"] == US.subnet
    assert rig.route_of(DUAL.pod()) == TO_DUAL


def test_taken_lease_is_never_overwritten(rig: LeasedRig) -> None:
    """If another has our subnet, we say so, are not ready, carry on, and take it back when it is free."""
    rig.daemon.put(US.subnet, value("198.18.0.66", NEW_MAC))
    thief = rig.daemon.find(OWN_KEY)
    rig.daemon.wait_ready("is taken: its lease was rewritten for 198.18.0.66")
    assert rig.route_of(DUAL.pod()) == TO_DUAL
    assert f"our subnet {OWN_KEY[8:]} is taken" in rig.daemon.log()
    rig.daemon.put(NEW, value(NEW_IP, NEW_MAC))
    rig.daemon.sync()
    assert rig.route_of(NEW_POD) == (NEW_IP, NEW_MAC)
    assert rig.daemon.find(OWN_KEY) == thief
    rig.daemon.delete(US.subnet)
    rig.daemon.wait_ready()
    assert f'"PublicIP":"{US.ip}"' in str(own_value(rig))


def test_lease_is_renewed(rig: LeasedRig) -> None:
    """A lease with a short life is renewed again and again before it ends, and status tells when."""
    rig.daemon.stop()
    rig.daemon.delete(US.subnet)
    rig.daemon.flags += ["--subnet-lease-ttl", "2"]
    rig.daemon.start()
    first = rig.daemon.find(OWN_KEY)
    assert first is not None
    assert first.ttl_s is not None
    assert 0 < first.ttl_s <= 2
    wait_for(lambda: _renewals(rig, first.changed) >= 2, "two renewals", 10.0)
    assert rig.daemon.find(OWN_KEY) is not None
    # Not right after a renewal: 0.97 s left are 1.0 s in words.
    wait_for(lambda: rig.daemon.status()["lease"]["renews_in_s"] < 0.9, "some time after a renewal")
    status = rig.daemon.status()
    assert status["ready"]
    assert 0 < status["lease"]["renews_in_s"] <= 1 <= status["lease"]["expires_in_s"] <= 2
    words = re.compile(r"\(lease renews in 0\.\d s, expires in 1\.\d s\)")
    wait_for(lambda: words.search(rig.daemon.say("status")), "it is said some time after a renewal")


def _renewals(rig: LeasedRig, after: int) -> int:
    with rig.daemon.database() as database:
        changes = [change for change in database.changes(after) if change.key == OWN_KEY]
    assert all(change.value is not None for change in changes), "it expired in between"
    return len(changes)


def test_restart_keeps_the_subnet(rig: LeasedRig) -> None:
    """A node that comes back finds its lease by its address; without one, by its subnet.env."""
    rig.daemon.stop()
    rig.daemon.start()
    assert rig.daemon.status()["subnet"] == US.subnet
    rig.daemon.stop()
    rig.daemon.delete(US.subnet)
    rig.daemon.start()
    assert rig.daemon.status()["subnet"] == US.subnet
    assert rig.route_of(DUAL.pod()) == TO_DUAL


def test_killed_watcher(rig: LeasedRig) -> None:
    """Killed at any moment among changes and started again, a node comes to what the store says."""
    for turn in range(10):
        assert rig.daemon.process is not None
        rig.daemon.put("10.244.20.0/24", value("198.18.0.20", f"02:4f:00:00:20:{turn:02x}"))
        rig.daemon.process.kill()
        rig.daemon.process.wait()
        if turn % 2:
            rig.daemon.delete(NEW)
        else:
            rig.daemon.put(NEW, value(NEW_IP, f"02:4f:00:00:09:{turn:02x}"))
        rig.daemon.start()
        rig.daemon.sync()
        peers = {subnet: peer["vtep_mac"] for subnet, peer in rig.daemon.peers().items()}
        always = {node.subnet: node.mac for node in (DUAL, FOUR)}
        always["10.244.20.0/24"] = f"02:4f:00:00:20:{turn:02x}"
        assert peers == always | ({} if turn % 2 else {NEW: f"02:4f:00:00:09:{turn:02x}"})
        assert rig.route_of("10.244.20.5") == ("198.18.0.20", f"02:4f:00:00:20:{turn:02x}")


def test_release(rig: LeasedRig) -> None:
    """`lease release` gives the lease back and ends control; the forwarder carries on until `down`."""
    assert f"{US.subnet} is free" in rig.daemon.say("lease", "release")
    assert own_value(rig) is None
    assert rig.daemon.process is not None
    assert rig.daemon.process.wait(10) == 0
    rig.daemon.process = None
    assert rig.daemon.forwarder_pid() != 0
    assert "not ours any more" in rig.daemon.say("lease", "release")


def test_release_when_control_is_dead(rig: LeasedRig) -> None:
    """The lease of a node whose control is gone can be given back too."""
    rig.daemon.stop()
    assert f"{US.subnet} is free" in rig.daemon.say("lease", "release")
    assert own_value(rig) is None


def test_default_store(rig: LeasedRig) -> None:
    """Without --store the leases are in the state directory, and the log says why."""
    path = rig.daemon.directory / "state" / "store.db"
    rig.daemon.stop()
    for old in rig.daemon.directory.glob("store.db*"):
        old.rename(path.with_name(old.name))
    command = rig.daemon.run_command()
    at = command.index("--store")
    with rig.daemon.log_path.open("ab") as log:
        rig.daemon.process = subprocess.Popen(
            [*command[:at], *command[at + 2 :]], stdout=log, stderr=log, cwd=ROOT
        )
    rig.daemon.wait_ready()
    assert rig.daemon.status()["store"]["url"] == f"sqlite://{path}"
    assert 'chosen_by="auto: neither etcd nor Kubernetes is asked for"' in rig.daemon.log()


# --- the store fails -----------------------------------------------------------------------------------


def fill(rig: LeasedRig) -> None:
    """Fill the disk."""
    path = rig.daemon.directory / "ballast"
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as err:
            if err.errno != errno.ENOSPC:
                raise


def hide(rig: LeasedRig) -> None:
    """Take the store away, its log included."""
    away = rig.daemon.directory / "away"
    away.mkdir()
    for path in rig.daemon.directory.glob("store.db*"):
        path.rename(away / path.name)


def bring_back(rig: LeasedRig) -> None:
    """Undo hide()."""
    for path in (rig.daemon.directory / "away").iterdir():
        path.rename(rig.daemon.directory / path.name)


def damage(rig: LeasedRig) -> None:
    """Write rubbish over the store, keeping a copy."""
    hide(rig)
    rig.daemon.store_path.write_bytes(os.urandom(8192))


def undamage(rig: LeasedRig) -> None:
    """Put the copy back."""
    for path in rig.daemon.directory.glob("store.db*"):
        path.unlink()
    bring_back(rig)


FAULTS = {
    "missing": (hide, bring_back, "No such file"),
    "damaged": (damage, undamage, "no sqlite database"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_store_fails_and_comes_back(rig: LeasedRig, name: str) -> None:
    """A store that breaks is told of in one line; packets flow on, and its return needs no restart."""
    fault, repair, words = FAULTS[name]
    fault(rig)
    wait_for(lambda: words in str(rig.daemon.status()["store"]["error"]), f"{words} is told", 10.0)
    assert f"!  store: store {rig.daemon.store_path}: " in rig.daemon.say("status")
    assert rig.daemon.status()["ready"]
    assert rig.route_of(DUAL.pod()) == TO_DUAL
    repair(rig)
    wait_for(lambda: rig.daemon.status()["store"]["error"] is None, "the store is followed again", 20.0)
    rig.daemon.put(NEW, value(NEW_IP, NEW_MAC))
    rig.daemon.sync()
    assert rig.route_of(NEW_POD) == (NEW_IP, NEW_MAC)


def test_new_store_in_place_of_the_old(rig: LeasedRig) -> None:
    """When the store is lost and `network set` makes another, the node takes its subnet again by itself."""
    hide(rig)
    assert "set: " in rig.daemon.say_to_store("network", "set", json.dumps(NETWORK))
    wait_for(lambda: own_value(rig) is not None, "our lease is in the new store", 20.0)
    rig.daemon.put(NEW, value(NEW_IP, NEW_MAC))
    rig.daemon.wait_ready()
    wait_for(lambda: set(rig.daemon.peers()) == {NEW}, "the new store is followed")
    rig.daemon.sync()
    assert rig.daemon.status()["subnet"] == US.subnet
    assert rig.route_of(NEW_POD) == (NEW_IP, NEW_MAC)


def test_full_disk(rig: LeasedRig) -> None:
    """On a full disk nothing can be renewed, which status tells; the dataplane and other peers stay."""
    rig.daemon.stop()
    rig.daemon.delete(US.subnet)
    rig.daemon.flags += ["--subnet-lease-ttl", "4"]
    rig.daemon.start()
    fill(rig)
    wait_for(
        lambda: "the disk is full" in str(rig.daemon.status()["warnings"]), "the full disk is told", 10.0
    )
    assert rig.route_of(DUAL.pod()) == TO_DUAL
    (rig.daemon.directory / "ballast").unlink()
    wait_for(lambda: not rig.daemon.status()["warnings"], "it recovers", 20.0)
    rig.daemon.wait_ready()


def test_locked_store(rig: LeasedRig) -> None:
    """While another process holds the write lock, packets flow and changes are followed afterwards."""
    holder = sqlite3.connect(rig.daemon.store_path, isolation_level=None)
    try:
        holder.execute("BEGIN IMMEDIATE")
        assert rig.route_of(DUAL.pod()) == TO_DUAL
        assert rig.daemon.status()["ready"]
    finally:
        holder.close()
    rig.daemon.put(NEW, value(NEW_IP, NEW_MAC))
    rig.daemon.sync()
    assert rig.route_of(NEW_POD) == (NEW_IP, NEW_MAC)


def test_read_only_store(rig: LeasedRig, tmp_path: Path) -> None:
    """A store that cannot be written to is refused at start in one line that says what to do."""
    rig.daemon.stop()
    read_only = tmp_path / "read-only"
    shutil.copytree(rig.daemon.directory, read_only, ignore=shutil.ignore_patterns("*.sock", "run"))
    subprocess.run(["mount", "--bind", str(read_only), str(read_only)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(read_only)], check=True)
        store = f"sqlite://{read_only}/store.db"
        said = subprocess.run(
            [*rig.daemon.command("lease", "rm", US.subnet)[:-2], "--store", store],
            capture_output=True,
            text=True,
        )
        assert (said.returncode, said.stdout) == (1, "")
        assert re.fullmatch(
            r"overlayd: store \S+store\.db: (read-only|cannot be opened); .*write.*\n", said.stderr
        )
    finally:
        subprocess.run(["umount", str(read_only)], check=True)


def test_stale_peer(rig: LeasedRig) -> None:
    """A lease that is over while the store is silent stays in force, and `peers` marks it stale."""
    rig.daemon.put(NEW, value(NEW_IP, NEW_MAC), ttl_s=2.0)
    rig.daemon.sync()
    hide(rig)
    wait_for(lambda: "stale: expired" in rig.daemon.say("peers"), "the peer is stale", 10.0)
    assert rig.route_of(NEW_POD) == (NEW_IP, NEW_MAC)
    bring_back(rig)
    wait_for(lambda: NEW not in rig.daemon.peers(), "it is gone when the store says so", 20.0)


def test_writer_killed_before_the_bell(rig: LeasedRig) -> None:
    """A change whose writer died before it woke the watchers is seen within the second look."""
    script = (
        "import os, sys; from pathlib import Path; from dataplane.store.database import Database\n"
        "os.utime = lambda *_: os.kill(os.getpid(), 9)\n"
        "Database(Path(sys.argv[1])).put('subnets/10.244.9.0-24', sys.argv[2], None, 0)"
    )
    lease = f'{{"PublicIP":"{NEW_IP}","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{NEW_MAC}"}}}}'
    command = [*rig.daemon.command()[:-4], "-c", script, str(rig.daemon.store_path), lease]
    died = subprocess.run(command, capture_output=True, text=True)
    started_s = time.monotonic()
    assert died.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL), died.stderr
    wait_for(lambda: NEW in rig.daemon.peers(), "the change is seen", 5.0)
    assert time.monotonic() - started_s < 2.0
