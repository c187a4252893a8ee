# SPDX-License-Identifier: Apache-2.0
"""The state of the last run: when it stands in for the store, when not, and when it is written."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from dataplane import laststate, recall
from dataplane.config import RunConfig
from dataplane.errors import ConfigError, StoreError
from dataplane.laststate import Clocks, LastState
from dataplane.lease import Identity, Lessee, PutLease
from dataplane.leasing import Leasing
from dataplane.model import Encap, Entry, HostFacts, Interface, Listed, Publish, Table
from dataplane.recall import LastPeers, Recall
from dataplane.reconcile import Reconciler
from tests.leases import FACTS, IP1, LO, NET, address, entry, lease, listed, mac, put

DAY_S = 24 * 3600.0
OWN = entry(replace(lease(1), vni=1), created=1, changed=5, expires_s=math.inf)
PEERS = tuple(entry(lease(number), created=number) for number in range(2, 6))
NAMES = {found.name for found in PEERS}
LOST = StoreError("etcd is out of reach")


class FakeLeasing:
    """A lease that is what it was told to be."""

    def __init__(self) -> None:
        self.told: Entry | None = None

    def recall(self, own: Entry) -> None:
        """Take what was."""
        self.told = own

    def entry(self) -> Entry | None:
        """Return it."""
        return self.told

    def own(self) -> Any:
        """Return it."""
        return None if self.told is None else self.told.lease

    def reason(self) -> str | None:
        """Nothing is wrong with it."""
        return None


class Scene:
    """A recall of a state directory, beside what a daemon has."""

    def __init__(self, directory: Path, **config: Any) -> None:
        """Be a node whose store is etcd."""
        told: dict[str, Any] = {"store": "etcd", "state_dir": directory, **config}
        self.config = RunConfig(**told)
        self.woken = 0
        self.recall = Recall(self.config, self._wake)
        self.leasing = FakeLeasing()
        self.reconciler = Reconciler(self.config, FACTS, is_leased=True)
        self.path = directory / laststate.NAME

    def _wake(self) -> None:
        self.woken += 1

    def write(self, own: Entry = OWN, age_s: float = 60.0, **changes: Any) -> None:
        """Leave a state behind, as the last run does."""
        clocks = Clocks(time.monotonic(), time.time())
        store = laststate.name_store(self.config)
        peers = laststate.write_peers(PEERS, clocks)
        state = LastState(store, clocks.wall_s - age_s, "c1", 7, NET, own, peers)
        laststate.save(self.path, replace(state, **changes), clocks)

    def stand_in(self) -> set[str] | None:
        """Return the peers of the table that the state makes; None if it does not stand in."""
        actions = self.recall.stand_in(self.reconciler, cast(Leasing, self.leasing))
        tables = [action.table for action in actions if isinstance(action, Publish)]
        return {str(peer.addresses[0]) for peer in tables[0].peers} if tables else None

    def follow(self, *events: Any) -> None:
        """Take what the store says, and keep what follows."""
        self.recall.hear(events)
        for action in self.reconciler.apply_all(events, 0.0):
            if isinstance(action, Publish):
                self.table = action.table
        if self.leasing.told is None:
            self.leasing.told = OWN
            for action in self.reconciler.own_changed(OWN.lease, None, 0.0):
                if isinstance(action, Publish):
                    self.table = action.table
        self.keep()

    def keep(self) -> None:
        """Tell what is in force."""
        self.recall.keep(self.reconciler, cast(Leasing, self.leasing), self.table)


def play(scenario: Coroutine[Any, Any, None]) -> None:
    """Run a scenario, which may not hang."""

    async def main() -> None:
        async with asyncio.timeout(20):
            await scenario

    asyncio.run(main())


def started(scene: Scene, *, is_cold: bool = True) -> set[str]:
    """Begin, in a loop of its own; return the leases of the peers of the last run."""
    found: list[LastPeers | None] = []

    async def main() -> None:
        found.append(scene.recall.begin(is_cold=is_cold))

    play(main())
    return set() if found[0] is None else set(found[0].names())


# --- when it stands in --------------------------------------------------------------------------------------


def test_a_store_that_fails(tmp_path: Path) -> None:
    """At a cold start the state is in force as soon as the store has failed: once, until the first list."""
    scene = Scene(tmp_path)
    scene.write()
    assert started(scene) == NAMES
    assert scene.stand_in() is None
    assert scene.recall.note() is None
    assert scene.recall.stands_in(LOST)
    assert scene.recall.stands_in(LOST)
    assert scene.woken == 1
    assert scene.stand_in() == {f"192.0.2.{number}" for number in range(2, 6)}
    assert scene.stand_in() is None
    assert scene.leasing.told is not None
    assert scene.leasing.told.lease == OWN.lease
    note = scene.recall.note()
    assert note is not None
    assert note.startswith("running on the state of 20")
    assert note.endswith("(1 min old), store not reached")
    scene.recall.hear([listed()])
    assert (scene.recall.note(), scene.stand_in()) == (None, None)


def test_a_store_that_is_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a moment of patience as well; but what has run out may be another's, so only a failure counts."""
    monkeypatch.setattr(recall, "PATIENCE_S", 0.0)
    scene = Scene(tmp_path)
    scene.write()
    started(scene)
    assert scene.stand_in() is not None
    late = Scene(tmp_path)
    late.write(replace(OWN, expires_s=time.monotonic() - 1))
    started(late)
    assert late.stand_in() is None
    assert late.recall.stands_in(LOST)
    assert late.stand_in() is not None


def test_somebody_wrote_nonsense(tmp_path: Path) -> None:
    """What people have to put right ends a start, whatever was there before."""
    scene = Scene(tmp_path)
    scene.write()
    started(scene)
    assert not scene.recall.stands_in(ConfigError("peers.json line 3: …"))
    assert scene.stand_in() is None


def test_a_forwarder_that_lives_knows_better(tmp_path: Path) -> None:
    """Where one carries on the state is only there to be compared with the first list."""
    scene = Scene(tmp_path)
    scene.write()
    assert len(started(scene, is_cold=False)) == len(PEERS)
    assert not scene.recall.stands_in(LOST)
    assert scene.stand_in() is None


@pytest.mark.parametrize(
    ("config", "changes", "why"),
    [
        pytest.param({"etcd_prefix": "/other"}, {}, "it is of another store", id="prefix"),
        pytest.param({"etcd_endpoints": ("http://x:1",)}, {}, "it is of another store", id="endpoints"),
        pytest.param({"store": "file:///x"}, {}, "it is of another store", id="kind"),
        pytest.param({}, {"age_s": 8 * DAY_S}, "it is 8d00h old", id="old"),
        pytest.param({"last_state_age_h": 1}, {"age_s": 3700.0}, "it is 1h01 old", id="told"),
        pytest.param({"last_state_age_h": 0}, {}, None, id="never"),
    ],
)
def test_what_is_not_used(
    config: dict[str, Any],
    changes: dict[str, Any],
    why: str | None,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A state of another store, or one that is too old, is not used, for a reason."""
    Scene(tmp_path).write(**changes)
    scene = Scene(tmp_path, **config)
    assert started(scene) == set()
    assert not scene.recall.stands_in(LOST)
    assert scene.stand_in() is None
    because = [str(record.__dict__["fields"]["because"]) for record in caplog.records]
    assert len(because) == (why is not None)
    assert not because or because[0].startswith(str(why))


def test_a_dry_run_tells(tmp_path: Path) -> None:
    """What a start without its store would run on can be said beforehand; nothing is touched."""
    scene = Scene(tmp_path)
    assert recall.foretell(scene.config) is None
    scene.write()
    assert str(recall.foretell(scene.config)).endswith("(1 min old)")
    assert recall.foretell(replace(scene.config, etcd_prefix="/other")) is None


def test_a_clock_that_was_reset_is_no_age(tmp_path: Path) -> None:
    """A machine whose clock begins anew with each boot starts from its state all the same."""
    scene = Scene(tmp_path)
    scene.write(age_s=-10 * 365 * DAY_S)
    assert len(started(scene)) == len(PEERS)


def test_a_damaged_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What cannot be read is as if it were not there, with a word in the log."""
    scene = Scene(tmp_path)
    scene.path.write_text("rubbish")
    scene.path.chmod(0o600)
    assert started(scene) == set()
    assert "no state of overlayd" in str(caplog.records[0].__dict__["fields"]["because"])


def test_one_bad_lease(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A lease in it that is none, whatever the checksum says, spoils the state when it is needed."""
    clocks = Clocks(time.monotonic(), time.time())
    good = laststate.write_peers(PEERS, clocks)
    scene = Scene(tmp_path)
    scene.write(peers=(*good, ["10.244.9.0-24", "{}", 1, 1, None]))
    started(scene)
    assert scene.recall.stands_in(LOST)
    assert scene.stand_in() is None
    assert scene.stand_in() is None
    assert [str(record.__dict__["fields"]["because"])[:14] for record in caplog.records] == ["10.244.9.0-24:"]
    found = LastPeers(LastState(laststate.name_store(scene.config), 0, "", 1, NET, OWN, good), clocks)
    assert found.read({PEERS[1].name}) == {PEERS[1].name: PEERS[1]}
    assert LastPeers(replace(found.state, peers=([*good[0][:1], 1, 1, 1, None],)), clocks).read(NAMES) == {}


def test_the_state_of_another_node(tmp_path: Path) -> None:
    """Who has the files of another node, but not its address, waits for the store; or for the address."""
    scene = Scene(tmp_path)
    scene.write()
    scene.reconciler.host_changed(HostFacts((LO, Interface("eth0", 2, 1500, (address(9),)))), 0.0)
    started(scene)
    assert scene.recall.stands_in(LOST)
    assert scene.stand_in() is None
    assert scene.leasing.told is None
    scene.reconciler.host_changed(FACTS, 0.0)
    assert scene.stand_in() is not None
    told = Scene(tmp_path, public_ip=address(9))
    started(told)
    assert told.recall.stands_in(LOST)
    assert told.stand_in() is None


# --- our lease ---------------------------------------------------------------------------------------------


def recalled() -> Lessee:
    """Return a lessee that had subnet 1 in its last run."""
    found = Lessee(lambda n: 0, None, 100.0, 30.0)
    found.recall(OWN)
    assert found.next_operation(0.0) is None
    found.identify(Identity(IP1, None, Encap.VXLAN, mac(1), None, 1))
    assert found.next_operation(0.0) is None
    assert found.reason(0.0) is None
    return found


def test_nothing_is_written_before_a_list() -> None:
    """What was ours is ours for the dataplane, and nothing for the store; when it is over, that is told."""
    found = Lessee(lambda n: 0)
    found.recall(replace(OWN, expires_s=10.0))
    assert found.own is not None
    assert found.next_operation(9.0) is None
    assert found.reason(9.0) is None
    assert found.reason(10.0) == "our lease of 10.244.1.0-24 has expired, and the store does not renew it"


def test_still_ours() -> None:
    """A lease that stands there as it was is renewed at once, by its revision, and then at its time."""
    found = recalled()
    found.apply(Listed(9, NET, (replace(OWN, changed=8),)))
    assert found.next_operation(0.0) == PutLease(cast(Any, OWN.lease), 100.0, 8)
    found.written(replace(OWN, changed=10, expires_s=100.0))
    assert found.next_operation(69.0) is None
    assert found.next_operation(70.0) == PutLease(cast(Any, OWN.lease), 100.0, 10)


def test_lost_meanwhile() -> None:
    """A lease that is gone is taken again under the same subnet, if nobody has it."""
    found = recalled()
    found.apply(Listed(9, NET, PEERS))
    assert found.next_operation(0.0) == PutLease(cast(Any, OWN.lease), 100.0, 0)
    assert "taking it back" in str(found.reason(0.0))


def test_taken_meanwhile() -> None:
    """What another node has by now is never written over, and said."""
    found = recalled()
    found.apply(Listed(9, NET, (entry(replace(lease(1), public_ip=address(66)), changed=8),)))
    assert found.next_operation(0.0) is None
    assert "is taken: its lease was rewritten for 192.0.2.66" in str(found.reason(0.0))


# --- when it is written -----------------------------------------------------------------------------------


def test_written_when_something_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes that come together are one write; while nothing changes there is none."""
    monkeypatch.setattr(recall, "WRITE_S", 0.05)
    scene = Scene(tmp_path)

    async def until(revision: int) -> LastState:
        while True:
            found = laststate.load(scene.path, Clocks(time.monotonic(), time.time()))
            if found is not None and found.revision >= revision:
                return found
            await asyncio.to_thread(lambda: None)

    async def scenario() -> None:
        writer = asyncio.create_task(scene.recall.run(lambda: True))
        scene.follow(listed(*(found.lease for found in (OWN, *PEERS) if found.lease), revision=7))
        first = await until(7)
        assert first.names() == NAMES
        assert (first.identity, first.own.name) == ("", OWN.name)
        inode = scene.path.stat().st_ino
        for _ in range(20):
            scene.keep()
            await asyncio.to_thread(lambda: None)
        scene.follow(put(8, cast(Any, PEERS[0].lease)))  # renewed
        assert not scene.recall._changed.is_set()
        assert scene.path.stat().st_ino == inode
        scene.follow(put(9, lease(9)))
        scene.follow(put(10, lease(10)))
        found = await until(9)
        assert found.revision == 10
        assert len(found.peers) == len(PEERS) + 2
        writer.cancel()

    play(scenario())


def test_nothing_is_written_of_what_stands_in(tmp_path: Path) -> None:
    """What was recalled is not written as if the store had said it: the file stays what it was."""
    scene = Scene(tmp_path)
    scene.write()
    before = scene.path.read_bytes()
    started(scene)
    assert scene.recall.stands_in(LOST)
    assert scene.stand_in() is not None
    scene.table = Table()
    scene.keep()
    scene.recall.finish()
    assert scene.path.read_bytes() == before


def test_an_end_writes_what_is_left(tmp_path: Path) -> None:
    """Who ends does not wait for the next write; a lease that was given back leaves no file."""
    scene = Scene(tmp_path)
    scene.follow(listed(*(found.lease for found in (OWN, *PEERS) if found.lease), revision=7))
    scene.recall.finish()
    assert len(started(Scene(tmp_path))) == len(PEERS)
    scene.recall.forget()
    scene.follow(put(9, lease(9)))
    scene.recall.finish()
    assert not scene.path.exists()


class SlowDisk:
    """Takes the first write for as long as it is told, and knows what was written when."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Take the place of the disk."""
        self.begun, self.go = threading.Event(), threading.Event()
        self.said: list[str] = []
        self._save = laststate.save
        monkeypatch.setattr(laststate, "save", self.save)
        monkeypatch.setattr(recall, "WRITE_S", 0.0)

    async def begin(self, scene: Scene) -> asyncio.Task[None]:
        """Return what writes, once it is in the middle of the first write."""
        writer = asyncio.create_task(scene.recall.run(lambda: True))
        scene.follow(listed(*(found.lease for found in (OWN, *PEERS) if found.lease), revision=7))
        await asyncio.to_thread(self.begun.wait, 20)
        return writer

    def save(self, *args: Any) -> None:
        """Write."""
        self.said.append("begin")
        self.begun.set()
        self.go.wait(20)
        self._save(*args)
        self.said.append("end")


def test_an_end_waits_for_a_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left to write at an end does not go into a file that is being written: the last one counts."""
    disk, scene = SlowDisk(monkeypatch), Scene(tmp_path)

    async def scenario() -> None:
        writer = await disk.begin(scene)
        writer.cancel()
        scene.follow(put(9, lease(9)))
        timer = threading.Timer(0.2, disk.go.set)
        timer.start()
        scene.recall.finish()
        timer.join()

    play(scenario())
    assert disk.said == ["begin", "end"] * 2
    assert len(started(Scene(tmp_path))) == len(PEERS) + 1


def test_a_write_that_ends_late_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease that is given back while the file is being written leaves none, too."""
    disk, scene = SlowDisk(monkeypatch), Scene(tmp_path)

    async def scenario() -> None:
        writer = await disk.begin(scene)
        scene.recall.forget()
        disk.go.set()
        writer.cancel()

    play(scenario())
    assert disk.said == ["begin", "end"]
    assert not scene.path.exists()


def test_a_full_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What cannot be written is told, and nothing else suffers."""
    (tmp_path / "file").touch()
    scene = Scene(tmp_path / "file" / "state")
    scene.follow(listed(*(found.lease for found in (OWN, *PEERS) if found.lease), revision=7))
    scene.recall.finish()
    assert [record.getMessage() for record in caplog.records] == ["the last state is not written"]
