# SPDX-License-Identifier: Apache-2.0
"""What is given to a forwarder, a spare and a successor, and what is not; clients and spares are fake."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import pytest

from dataplane import native
from dataplane.backend import Place, keeper, relay
from dataplane.backend.keeper import Keeper
from dataplane.backend.kit import Kit
from dataplane.backend.process import Children
from dataplane.backend.relay import Levers, Relay
from dataplane.backend.reserve import Reserve, Spare
from dataplane.config import RunConfig
from dataplane.control import ForwarderClient
from dataplane.errors import ControlError, RuntimeFailure
from dataplane.grip import Grip
from dataplane.native import MessageType, State
from dataplane.rundir import RunDir
from dataplane.slots import Fd
from tests.unit.test_control import CONFIG


class FakeClient:
    """A forwarder at the other end of a socket that does what it is told, or refuses."""

    made: ClassVar[list[FakeClient]] = []

    def __init__(self, state: State = State.EMPTY, *, refuses: bool = False, is_ours: bool = True) -> None:
        self.made.append(self)
        self.sock, self._far = socket.socketpair()
        self.pid = 0
        self.is_confined = True
        self.is_of_our_build = is_ours
        self.said = SimpleNamespace(version="9", build=9)
        self.told: list[str] = []
        self.state = state
        self.config: object = CONFIG
        self.generation = 3
        self._refuses = refuses
        self.hangs_up = False

    @property
    def is_open(self) -> bool:
        """Whether requests may still be made."""
        return self.sock.fileno() >= 0

    def close(self) -> None:
        """Hang up."""
        self.sock.close()
        self._far.close()

    def end(self) -> None:
        """Be gone."""
        self._far.close()

    def _take(self, what: str) -> None:
        self.told.append(what)
        if self.hangs_up:
            self.close()
        if self._refuses:
            raise ControlError(f"forwarder refused {what}")

    def hello(self) -> Any:
        """Say what it does."""
        self.told.append("hello")
        return SimpleNamespace(state=self.state, config=self.config, generation=self.generation)

    def go(self, *_: object) -> None:
        """Be given all."""
        self._take("go")

    def publish(self, _: int) -> None:
        """Be given a table."""
        self._take("publish")

    def begin(self, kind: MessageType, *_: object) -> None:
        """Be told without being asked for an answer."""
        self._take(f"begin {kind.name}")

    def stop(self) -> None:
        """End."""
        self._take("stop")
        self.close()


def client_of(fake: FakeClient) -> ForwarderClient:
    """Return it as what it stands for."""
    return cast(ForwarderClient, fake)


@pytest.fixture(autouse=True)
def ends() -> Iterator[None]:
    """Close all connections afterwards."""
    yield
    while FakeClient.made:
        FakeClient.made.pop().close()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Return where somebody else starts the forwarders."""
    run_dir = RunDir(tmp_path / "run")
    run_dir.prepare()
    return Place(RunConfig(store="file:///x", forwarder="wait"), run_dir, 1)


@pytest.fixture
def kit() -> Iterator[Kit]:
    """Yield what a forwarder works with."""
    fds = {Fd.TUN: os.memfd_create("tun"), Fd.COUNTERS: native.counters_create(1)}
    fds[Fd.FIB] = os.memfd_create("fib")
    made = Kit(fds={int(slot): fd for slot, fd in fds.items()}, config=CONFIG, generation=3, is_due=False)
    yield made
    for fd in fds.values():
        os.close(fd)


def play(place: Place, kit: Kit, scenario: Callable[[Keeper], Awaitable[None]]) -> None:
    """Run a scenario with a keeper."""

    async def lower() -> bool:
        return False

    async def main() -> None:
        made = Keeper(place, kit, lambda _: {}, lower, lambda err: pytest.fail(str(err)))
        try:
            async with asyncio.timeout(20):
                await scenario(made)
        finally:
            made.close()

    asyncio.run(main())


# --- the one in use -------------------------------------------------------------------------------------


def test_who_refuses_a_table_is_not_lost(place: Place, kit: Kit) -> None:
    """A forwarder that lives and says no goes on as it was, and whoever asked hears why."""
    fake = FakeClient(State.RUNNING, refuses=True)

    async def scenario(made: Keeper) -> None:
        assert not made.is_alive
        made.watch(client_of(fake), State.RUNNING)
        with pytest.raises(ControlError, match="refused publish"):
            await made.give(is_new_table=True)
        assert made.is_alive
        assert fake.is_open

    play(place, kit, scenario)


def test_who_is_gone_is_lost(place: Place, kit: Kit) -> None:
    """A forwarder whose connection is closed when it refuses is one no more, and that is no error."""
    fake = FakeClient(State.RUNNING, refuses=True)

    async def scenario(made: Keeper) -> None:
        made.watch(client_of(fake), State.RUNNING)
        fake.hangs_up = True
        await made.give(is_new_table=True)
        assert not made.is_alive

    play(place, kit, scenario)


@pytest.mark.parametrize("is_due", [False, True])
@pytest.mark.parametrize("state", [State.RUNNING, State.QUIESCED])
@pytest.mark.parametrize("generation", [3, 4])
def test_who_works_with_it_already(
    place: Place, kit: Kit, state: State, generation: int, is_due: bool
) -> None:
    """A forwarder that runs with all as it is was only out of touch; any other is given all."""
    fake = FakeClient(state)
    fake.generation = generation
    kit.is_due = is_due

    async def scenario(made: Keeper) -> None:
        await made._attach(client_of(fake))
        is_up_to_date = state == State.RUNNING and generation == 3 and not is_due
        assert fake.told == ["hello"] + ["go"] * (not is_up_to_date)
        assert made.is_alive

    play(place, kit, scenario)


def test_nothing_to_go_with(place: Place, kit: Kit) -> None:
    """Before there is a config nobody is told to go; without a forwarder nobody is told anything."""
    fake = FakeClient()
    kit.config, kit.is_due = None, True

    async def scenario(made: Keeper) -> None:
        with pytest.raises(ControlError, match="there is no forwarder"):
            await made._request(lambda client: client.quiesce())
        made.watch(client_of(fake), State.EMPTY)
        with pytest.raises(ControlError, match="nothing to go with"):
            await made.give(is_new_table=True)
        assert fake.told == []
        made._forget_client()
        await made.stop()

    play(place, kit, scenario)


def test_who_does_not_stop_is_watched_on(place: Place, kit: Kit) -> None:
    """A forwarder that refuses to end is ours as before: when it does end, that is noticed."""
    fake = FakeClient(State.RUNNING, refuses=True)

    async def scenario(made: Keeper) -> None:
        made.watch(client_of(fake), State.RUNNING)
        with pytest.raises(ControlError, match="refused stop"):
            await made.stop()
        assert made.is_alive
        fake.end()
        while made.is_alive:
            await asyncio.to_thread(lambda: None)

    play(place, kit, scenario)


@pytest.mark.parametrize("forwarder", ["wait", "spawn"])
def test_who_starts_it(place: Place, kit: Kit, monkeypatch: pytest.MonkeyPatch, forwarder: str) -> None:
    """Where somebody else starts forwarders control starts none, and waits for as long as it takes."""
    told: list[object] = []

    async def wait_listening(_: RunDir, __: int, process: object) -> ForwarderClient:
        told.append(process)
        return client_of(FakeClient())

    monkeypatch.setattr(keeper, "wait_listening", wait_listening)
    monkeypatch.setattr(Children, "spawn", lambda *_: "started")
    config = RunConfig(store="file:///x", forwarder=cast(Any, forwarder))

    async def scenario(made: Keeper) -> None:
        await made._find()
        assert told == [None if forwarder == "wait" else "started"]

    play(Place(config, place.run_dir, 1), kit, scenario)


@pytest.mark.parametrize("has_ended", [True, False])
def test_connection_that_is_lost(
    place: Place, kit: Kit, monkeypatch: pytest.MonkeyPatch, has_ended: bool
) -> None:
    """A spare goes as soon as the lock shows that the one before has ended; while it lives, it is sought."""
    locks = iter([False, has_ended, False])
    recovered: list[object] = []
    monkeypatch.setattr(keeper, "GONE_PAUSES_S", (0.0,) * 3)
    monkeypatch.setattr(keeper, "is_free", lambda _: next(locks))

    async def recover(promotion: object) -> None:
        recovered.append(promotion)

    async def scenario(made: Keeper) -> None:
        monkeypatch.setattr(made, "_succeed", lambda: "promotion")
        monkeypatch.setattr(made, "_recover", recover)
        await made._recover_if_gone()
        assert recovered == ["promotion" if has_ended else None]
        assert len(list(locks)) == has_ended

    play(place, kit, scenario)


def test_pulse_of_who_works_alone(place: Place, kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's pulse is felt who was told nothing yet, who is parked, or whose kit is being changed."""
    looked: list[int] = []
    waits = asyncio.Event()

    def read_beats(*_: int) -> list[int]:
        looked.append(1)
        waits.set()
        return [5]

    async def turns(task: asyncio.Task[None]) -> None:
        for _ in range(20):
            await asyncio.to_thread(int)
        assert not task.done()

    monkeypatch.setattr(keeper, "LOOK_S", 1e-6)
    monkeypatch.setattr(keeper, "find_waiting", lambda *_: set())
    monkeypatch.setattr(keeper, "read_beats", read_beats)

    async def scenario(made: Keeper) -> None:
        made.watch(client_of(FakeClient(State.RUNNING)), State.RUNNING)
        task = asyncio.create_task(made._feel_pulse())
        await turns(task)
        kit.config_in_force, made._state = CONFIG, State.QUIESCED
        await turns(task)
        made._state = State.RUNNING
        async with made.lock:
            await turns(task)
        fib = kit.fds.pop(Fd.FIB)
        await turns(task)
        assert looked == []
        kit.fds[Fd.FIB] = fib
        await waits.wait()
        task.cancel()

    play(place, kit, scenario)


# --- the spare ------------------------------------------------------------------------------------------


def spare_of(fake: FakeClient) -> Spare:
    """Return a spare that waits."""
    return Spare(client_of(fake), Grip(0, fake.sock))


@pytest.mark.parametrize("missing", ["spare", "config", "table", None])
def test_spare_is_told_to_go(place: Place, kit: Kit, missing: str | None) -> None:
    """A spare goes with a whole kit; with less it is let go of, and is told nothing."""
    fake = FakeClient()
    fib = kit.fds[Fd.FIB]

    async def scenario(made: Keeper) -> None:
        cast(Any, made._reserve).take = lambda: None if missing == "spare" else spare_of(fake)
        if missing == "config":
            kit.config = None
        if missing == "table":
            del kit.fds[Fd.FIB]
        kit.is_due = True
        promotion = made._promote()
        kit.fds[Fd.FIB] = fib
        assert (promotion is not None, kit.is_due) == (missing is None, missing is not None)
        assert fake.told == ["begin GO"] * (missing is None)
        assert fake.is_open == (missing in (None, "spare"))

    play(place, kit, scenario)


def test_spare_that_does_something_else(place: Place) -> None:
    """A spare that waits is taken; one that works already, or that was parked, is none."""
    reserve = Reserve(place, Children())
    waits, works, parked = FakeClient(), FakeClient(State.RUNNING), FakeClient(State.QUIESCED)
    asyncio.run(reserve._greet(client_of(waits)))
    assert (waits.is_open, waits.told) == (True, ["hello"])
    for fake in (works, parked):
        with pytest.raises(ControlError, match=f"is {fake.state.name.lower()}"):
            asyncio.run(reserve._greet(client_of(fake)))
        assert not fake.is_open
    assert (works.told, parked.told) == (["hello"], ["hello", "stop"])


@pytest.mark.parametrize(
    ("found", "forwarder", "why"),
    [
        ([], "wait", "no forwarder of our build waits"),
        ([False], "wait", "no forwarder of our build waits"),
        ([False, False], "spawn", "what is installed by now is not what control runs"),
        ([True], "wait", None),
        ([False, True], "spawn", None),
    ],
    ids=["nobody", "other", "others", "ours", "ours_at_last"],
)
def test_spare_of_our_build(
    place: Place, monkeypatch: pytest.MonkeyPatch, found: list[bool], forwarder: str, why: str | None
) -> None:
    """One of our build is taken; one of another is told to end, and if the next is no other, that is said."""
    fakes = [FakeClient(is_ours=is_ours) for is_ours in found]
    left = iter(fakes)

    async def connect(_: Reserve) -> Spare | None:
        fake = next(left, None)
        return None if fake is None else spare_of(fake)

    async def meet(_: Reserve) -> ForwarderClient:
        return client_of(next(left))

    monkeypatch.setattr(Reserve, "_try_to_connect", connect)
    monkeypatch.setattr(Reserve, "_meet", meet)
    config = RunConfig(store="file:///x", forwarder=cast(Any, forwarder))
    reserve = Reserve(Place(config, place.run_dir, 1), Children())
    if why is None:
        assert asyncio.run(reserve.take_ours()).client is client_of(fakes[-1])
    else:
        with pytest.raises(RuntimeFailure, match=why):
            asyncio.run(reserve.take_ours())
    assert [fake.is_open for fake in fakes] == found


def test_spare_of_another_build_that_does_not_end(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that refuses to end is let go of all the same."""
    fake = FakeClient(refuses=True, is_ours=False)

    async def connect(_: Reserve) -> Spare:
        return spare_of(fake)

    monkeypatch.setattr(Reserve, "_try_to_connect", connect)
    with pytest.raises(ControlError, match="refused stop"):
        asyncio.run(Reserve(place, Children()).take_ours())
    assert not fake.is_open


# --- the successor --------------------------------------------------------------------------------------


class FakeReserve:
    """Counts who wants a successor, and has none."""

    def __init__(self) -> None:
        self.asked = 0

    async def take_ours(self) -> Spare:
        """Have none."""
        self.asked += 1
        raise RuntimeFailure("no forwarder of our build waits")


def relay_of(kit: Kit, reserve: FakeReserve) -> Relay:
    """Return what hands over."""
    return Relay(kit, cast(Reserve, reserve), asyncio.Lock(), cast(Levers, None))


@pytest.mark.parametrize(
    ("is_ours", "missing", "asked"),
    [(True, None, 0), (False, "config", 0), (False, "table", 0), (False, None, 1)],
    ids=["ours", "no_config", "no_table", "other"],
)
def test_who_is_replaced(kit: Kit, is_ours: bool, missing: str | None, asked: int) -> None:
    """A forwarder of another build is to be replaced, once there is what with, and one retry is enough."""
    fake, reserve = FakeClient(State.RUNNING, is_ours=is_ours), FakeReserve()
    fib = kit.fds[Fd.FIB]
    if missing == "config":
        kit.config = None
    if missing == "table":
        del kit.fds[Fd.FIB]

    async def main() -> None:
        relay = relay_of(kit, reserve)
        assert relay.warnings(None) == relay.warnings(client_of(fake)) == []
        for _ in range(2):
            await relay.run(client_of(fake))
            assert reserve.asked == asked
        said = [] if not asked else ["the forwarder is of another build, 9 build 0000000000000009: "]
        assert [warning[: len(said[0])] for warning in relay.warnings(client_of(fake))] == said
        fake.is_of_our_build = True
        assert relay.warnings(client_of(fake)) == relay.warnings(None) == []
        relay.close()

    asyncio.run(main())
    kit.fds[Fd.FIB] = fib


@pytest.mark.parametrize(
    ("is_open", "tries", "why"),
    [(False, 1, "it hangs; and then: it is gone"), (True, 3, "it hangs; and the one before does not resume")],
)
def test_old_one_that_does_not_resume(is_open: bool, tries: int, why: str) -> None:
    """Who is gone is not told to resume again, and that is said; who lives and refuses is, thrice."""
    fake, told = FakeClient(State.QUIESCED), []

    def resume(turn: int) -> None:
        told.append(turn)
        if not is_open:
            fake.close()
        raise ControlError("it is gone")

    fake.resume = resume  # type: ignore[attr-defined]
    counters: Any = SimpleNamespace(header=lambda: SimpleNamespace(turn=8))
    with pytest.raises(ControlError) as caught:
        relay._take_back(client_of(fake), counters, ControlError("it hangs"))
    assert str(caught.value) == why
    assert told == [8] * tries
    assert not fake.is_open
