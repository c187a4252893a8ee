# SPDX-License-Identifier: Apache-2.0
"""Many peers leave the store at once, or a start does without it: drawing in rig.py, store in leased.py."""

from __future__ import annotations

import json

import pytest

from bench.lab import wait_for
from tests.e2e import frames
from tests.e2e.frames import DUAL, US
from tests.e2e.leased import LeasedDaemon, LeasedRig, shared_rig, value
from tests.e2e.pair import forget_counters

COUNT, HOLD_S, LONG_S = 8, 6, 600
SUBNETS = [f"10.244.{10 + number}.0/24" for number in range(COUNT)]
ALWAYS = {DUAL.subnet, "10.244.3.0/24"}


def lease(number: int) -> dict[str, object]:
    """Return the lease of one of the many."""
    return value(f"198.18.0.{10 + number}", f"02:4f:00:00:10:{number:02x}")


def way(number: int) -> tuple[str, str]:
    """Return where packets for its pods go."""
    return f"198.18.0.{10 + number}", f"02:4f:00:00:10:{number:02x}"


def shorten(rig: LeasedRig) -> None:
    """Let the node not hold for long."""
    rig.daemon.stop()
    rig.daemon.flags += ["--withdrawal-hold", str(HOLD_S)]
    rig.daemon.start()


rig = shared_rig(prepare=shorten)


@pytest.fixture
def daemon(rig: LeasedRig) -> LeasedDaemon:
    """Return its daemon, with ten peers."""
    for number, subnet in enumerate(SUBNETS):
        rig.daemon.put(subnet, lease(number))
    wait_for(lambda: set(rig.daemon.peers()) == {*SUBNETS, *ALWAYS}, "ten peers")
    return rig.daemon


def held(daemon: LeasedDaemon) -> set[str]:
    """Return the subnets that are held."""
    return {subnet for subnet, peer in daemon.peers().items() if peer["held_for_s"] is not None}


def hold_for(daemon: LeasedDaemon, hold_s: int) -> None:
    """Let the node hold for that long."""
    if daemon.flags[-1] != str(hold_s):
        daemon.stop()
        daemon.flags[-1] = str(hold_s)
        daemon.start()


def withdraw(daemon: LeasedDaemon) -> None:
    """Let the store lose the many, and wait until that is known."""
    for subnet in SUBNETS:
        daemon.delete(subnet)
    wait_for(lambda: held(daemon) == set(SUBNETS), "they are held")


def no_peer(rig: LeasedRig) -> None:
    """See that packets for the many have nowhere to go, and that others have."""
    before = rig.daemon.settled()
    rig.wire.take()
    rig.pod.send(rig.to_pod_side(frames.inner4(US.pod(), "10.244.10.5")))
    after = rig.daemon.settled(tx=before.tx.offered + 1)
    assert after.tx.drops.get("no_peer", 0) == before.tx.drops.get("no_peer", 0) + 1
    assert rig.route_of(DUAL.pod()) == (str(DUAL.ip), DUAL.mac)


def test_held_until_the_store_says_it_twice(rig: LeasedRig, daemon: LeasedDaemon) -> None:
    """Peers that vanish together go on working, marked and told, until a second list lacks them too."""
    hold_for(daemon, HOLD_S)
    withdraw(daemon)
    for number in (0, COUNT - 1):
        assert rig.route_of(f"10.244.{10 + number}.5") == way(number)
    status = daemon.status()
    assert status["ready"]
    assert [line for line in status["warnings"] if f"{COUNT} peers left the store at once" in line]
    assert daemon.say("peers").count("held: it left the store with others") == COUNT
    assert "too many peers left the store at once: they are held" in daemon.log()
    wait_for(lambda: set(daemon.peers()) == ALWAYS, "a second list releases them", 4 * HOLD_S)
    assert "held peers are released released=" in daemon.log()
    assert not [line for line in daemon.status()["warnings"] if "left the store" in line]
    no_peer(rig)


def test_a_restart_does_not_forget(rig: LeasedRig, daemon: LeasedDaemon) -> None:
    """What the store lost while control was away is held as well, and a lease that is put again is not."""
    daemon.stop()
    for subnet in SUBNETS:
        daemon.delete(subnet)
    daemon.flags[-1] = str(LONG_S)
    daemon.start()
    wait_for(lambda: held(daemon) == set(SUBNETS), "they are held")
    assert rig.route_of("10.244.10.5") == way(0)
    moved = value("198.18.0.99", "02:4f:00:00:10:99")
    daemon.put(SUBNETS[0], moved)
    daemon.sync()
    assert held(daemon) == set(SUBNETS[1:])
    assert rig.route_of("10.244.10.5") == ("198.18.0.99", "02:4f:00:00:10:99")
    assert daemon.say("peers", "--drop-held") == f"dropped {COUNT - 1} held peers\n"
    wait_for(lambda: set(daemon.peers()) == {*ALWAYS, SUBNETS[0]}, "the others are gone")
    assert rig.route_of("10.244.10.5") == ("198.18.0.99", "02:4f:00:00:10:99")


@pytest.mark.alone
def test_the_operator_drops_them(rig: LeasedRig, daemon: LeasedDaemon) -> None:
    """`peers --drop-held` lets them go at once; those that came back stay."""
    hold_for(daemon, LONG_S)
    withdraw(daemon)
    daemon.put(SUBNETS[1], lease(1))
    daemon.sync()
    assert json.loads(daemon.say("peers", "--drop-held", "--json")) == {"dropped": COUNT - 1}
    wait_for(lambda: set(daemon.peers()) == {*ALWAYS, SUBNETS[1]}, "the others are gone", 1.0)
    assert daemon.say("peers", "--drop-held") == "dropped 0 held peers\n"
    no_peer(rig)


def test_cold_start_on_a_damaged_store(rig: LeasedRig, daemon: LeasedDaemon) -> None:
    """A sqlite store that cannot be read at a cold start is done without, until it can; nothing vanishes."""
    daemon.sync()
    daemon.stop()
    assert daemon.say("down") == ""
    forget_counters(daemon)
    good = {path: path.read_bytes() for path in daemon.directory.glob("store.db*")}
    daemon.store_path.write_bytes(bytes(8192))
    daemon.start()
    rig.watch_overlay()
    assert daemon.status()["reason"].startswith("running on the state of ")
    assert "no sqlite database" in str(daemon.status()["store"]["error"])
    assert set(daemon.peers()) == {*SUBNETS, *ALWAYS}
    assert rig.route_of("10.244.10.5") == way(0)
    for path, raw in good.items():
        path.write_bytes(raw)
    wait_for(lambda: daemon.status()["reason"] == "ok", "the store is followed", 20.0)
    assert set(daemon.peers()) == {*SUBNETS, *ALWAYS}
    assert held(daemon) == set()
    assert rig.route_of("10.244.10.5") == way(0)
