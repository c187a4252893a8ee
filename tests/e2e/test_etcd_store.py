# SPDX-License-Identifier: Apache-2.0
"""The etcd store against real servers: what it writes, what it is told, and what it does when they fail."""

from __future__ import annotations

import asyncio
import math
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
import uvloop
from aetcd import rpc

from bench.lab import wait_for
from dataplane.config import EtcdConfig
from dataplane.errors import StoreError
from dataplane.store.etcd import EtcdKeyValue
from dataplane.store.etcd_client import CALL_S, EtcdClient, Line, Metadata
from dataplane.store.keyvalue import Compacted, Conflict, Record
from tests.etcd import Etcd, free_port

ROOT = "/coreos.com/network"
KEY, OTHER = "subnets/10.244.1.0-24", "subnets/10.244.2.0-24"
NOTICE_S = 5.0
QUICKLY = ("--command-timeout=500ms", "--dial-timeout=500ms")  # of etcdctl, which waits 5 s for each server
Result = TypeVar("Result")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    """Yield an etcd of one member, shared by the tests that do it no harm."""
    with Etcd(tmp_path_factory.mktemp("etcd")) as built:
        yield built


@pytest.fixture
def etcd(cluster: Etcd) -> Etcd:
    """Return it without any keys and leases."""
    cluster.clear()
    return cluster


def leases(etcd: Etcd) -> int:
    """Return how many etcd leases there are."""
    return len(etcd.leases())


def use(config: EtcdConfig, work: Callable[[EtcdKeyValue], Awaitable[Result]]) -> Result:
    """Do something with a store, on the loop that control runs on."""

    async def run() -> Result:
        keys = EtcdKeyValue(config)
        try:
            return await work(keys)
        finally:
            await keys.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run())


def of(etcd: Etcd, **more: object) -> EtcdConfig:
    """Return a configuration for these servers."""
    return replace(EtcdConfig(endpoints=etcd.urls), **more)  # type: ignore[arg-type]


async def take(changes: AsyncIterator[Record], count: int) -> list[Record]:
    """Return the next changes."""
    async with asyncio.timeout(NOTICE_S):
        return [await anext(changes) for _ in range(count)]


# --- what is written ------------------------------------------------------------------------------------


def test_put_and_delete(etcd: Etcd) -> None:
    """A key with a time to live hangs on an etcd lease of that life; when it goes, the lease goes too."""

    async def work(keys: EtcdKeyValue) -> None:
        made = await keys.put(KEY, "one", 86400, 0)
        assert made.created == made.changed
        assert made.ttl_s == pytest.approx(86400, abs=2)
        assert etcd.get(f"{ROOT}/{KEY}") == "one"
        assert leases(etcd) == 1
        renewed = await keys.put(KEY, "two", 86400, made.changed)
        assert (renewed.created, renewed.changed > made.changed) == (made.created, True)
        assert leases(etcd) == 1, "the lease that was replaced is revoked"
        found = await keys.snapshot()
        assert [replace(record, ttl_s=0) for record in found.records] == [replace(renewed, ttl_s=0)]
        assert found.records[0].ttl_s == pytest.approx(86400, abs=2)
        await keys.delete(KEY, renewed.changed)
        assert leases(etcd) == 0
        assert (await keys.snapshot()).records == ()

    use(of(etcd), work)


def test_reservation(etcd: Etcd) -> None:
    """A key without a time to live has no etcd lease, and says so; one of another's has some time."""
    etcd.put(f"{ROOT}/{OTHER}", "reserved")
    lease = etcd.ctl("lease", "grant", "100").split()[1]
    etcd.ctl("put", "--lease", lease, f"{ROOT}/subnets/10.244.3.0-24", "leased")

    async def work(keys: EtcdKeyValue) -> None:
        made = await keys.put(KEY, "forever", None, 0)
        assert made.ttl_s is None
        found = {record.key: record.ttl_s for record in (await keys.snapshot()).records}
        assert found == {KEY: None, OTHER: None, "subnets/10.244.3.0-24": math.inf}
        assert leases(etcd) == 1

    use(of(etcd), work)


def test_case_121_lost_race(etcd: Etcd) -> None:
    """Who expected something else learns what is there; nothing is written, and no etcd lease is left."""

    async def work(keys: EtcdKeyValue) -> None:
        made = await keys.put(KEY, "one", None, 0)
        for expected in (0, made.changed + 7):
            with pytest.raises(Conflict) as caught:
                await keys.put(KEY, "two", 60, expected)
            assert caught.value.found == (made,)
        with pytest.raises(Conflict) as caught:
            await keys.put(OTHER, "two", 60, made.changed)
        assert caught.value.found == ()
        with pytest.raises(Conflict) as caught:
            await keys.delete(KEY, made.changed + 1)
        assert caught.value.found == (made,)
        assert leases(etcd) == 0
        assert etcd.get(f"{ROOT}/{KEY}") == "one"

    use(of(etcd), work)


@pytest.mark.parametrize(
    "name",
    ["10.244.1.0-24&fd00:1::-64", "10.244.0.0-23", "10.244.1.128-25"],
    ids=["dual", "around", "inside"],
)
def test_shared_subnet(etcd: Etcd, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new lease that claims a part of an older one is taken back at once, even if that goes meanwhile."""

    async def work(keys: EtcdKeyValue) -> None:
        made = await keys.put(KEY, "one", None, 0)
        with pytest.raises(Conflict) as caught:
            await keys.put(f"subnets/{name}", "two", 60, 0)
        assert caught.value.found == (made,)
        assert (await keys.snapshot()).records == (made,)
        assert leases(etcd) == 0
        snapshot = keys.snapshot
        monkeypatch.setattr(keys, "snapshot", lambda: (etcd.ctl("del", f"{ROOT}/{KEY}"), snapshot())[1])
        with pytest.raises(Conflict) as caught:
            await keys.put(f"subnets/{name}", "two", 60, 0)
        assert (caught.value.found, leases(etcd)) == ((), 0)

    use(of(etcd), work)


def test_lease_that_others_hang_on(etcd: Etcd) -> None:
    """An etcd lease on which somebody hung more than our key is left to its end."""

    async def work(keys: EtcdKeyValue) -> None:
        made = await keys.put(KEY, "one", 60, 0)
        lease = etcd.ctl("lease", "list").split()[-1]
        etcd.ctl("put", "--lease", lease, "/elsewhere", "x")
        await keys.put(KEY, "two", 60, made.changed)
        assert leases(etcd) == 2
        assert etcd.get("/elsewhere") == "x"

    use(of(etcd), work)


def test_other_prefixes_are_nothing_to_us(etcd: Etcd) -> None:
    """Keys outside the prefix are neither listed nor told; what is no text under it is passed over."""
    etcd.put("/coreos.com/network2/subnets/10.244.9.0-24", "x")
    etcd.put("/coreos.com/networ", "x")
    etcd.put(f"{ROOT}/{KEY}", "one")

    async def work(keys: EtcdKeyValue) -> None:
        found = await keys.snapshot()
        assert [record.key for record in found.records] == [KEY]
        async with aclosing(keys.watch(found.revision)) as changes:
            first = asyncio.ensure_future(anext(changes))
            etcd.put("/coreos.com/network2/config", "x")
            etcd.put(f"{ROOT}/{OTHER}", "two")
            async with asyncio.timeout(NOTICE_S):
                assert (await first).key == OTHER

    use(of(etcd), work)


# --- what is told ---------------------------------------------------------------------------------------


def test_changes_are_told_in_order(etcd: Etcd) -> None:
    """A watch goes on right after a revision: every change of every key, in order, once."""

    async def work(keys: EtcdKeyValue) -> None:
        start = (await keys.snapshot()).revision
        one = await keys.put(KEY, "one", None, 0)
        two = await keys.put(OTHER, "two", None, 0)
        async with aclosing(keys.watch(start)) as changes:
            assert await take(changes, 2) == [one, two]
            gone = await keys.delete(KEY, one.changed)
            assert await take(changes, 1) == [Record(KEY, None, 0, gone)]
            again = await keys.put(KEY, "again", None, 0)
            assert await take(changes, 1) == [again]
        async with aclosing(keys.watch(one.changed)) as changes:
            assert [record.changed for record in await take(changes, 3)] == [two.changed, gone, again.changed]

    use(of(etcd), work)


def test_end_of_a_lease_is_told(etcd: Etcd) -> None:
    """A lease that nobody renews ends by etcd's clock, and everybody who watches hears of it."""

    async def work(keys: EtcdKeyValue) -> None:
        made = await keys.put(KEY, "one", 1, 0)
        async with aclosing(keys.watch(made.changed)) as changes:
            (end,) = await take(changes, 1)
        assert (end.key, end.value) == (KEY, None)

    use(of(etcd), work)


def test_compaction(etcd: Etcd) -> None:
    """Changes that etcd has forgotten are an error of their own: list anew."""

    async def work(keys: EtcdKeyValue) -> None:
        made = await keys.put(KEY, "one", None, 0)
        for turn in range(3):
            made = await keys.put(KEY, str(turn), None, made.changed)
        etcd.ctl("compact", str(made.changed))
        with pytest.raises(Compacted):
            await take(keys.watch(made.changed - 3), 1)

    use(of(etcd), work)


def test_older_copy(etcd: Etcd) -> None:
    """A cluster that does not have our revision yet is an older copy, and does not keep us waiting for it."""

    async def work(keys: EtcdKeyValue) -> None:
        with pytest.raises(Compacted):
            await take(keys.watch(10_000_000), 1)

    use(of(etcd), work)


# --- when servers fail ----------------------------------------------------------------------------------


def test_first_server_is_not_there(etcd: Etcd) -> None:
    """The next endpoint is taken when one refuses, for reading and for all that follows."""
    nobody = f"http://127.0.0.1:{free_port()}"

    async def work(keys: EtcdKeyValue) -> None:
        await keys.snapshot()
        made = await keys.put(KEY, "one", None, 0)
        async with aclosing(keys.watch(made.changed - 1)) as changes:
            assert await take(changes, 1) == [made]

    use(of(etcd, endpoints=(nobody, *etcd.urls)), work)


def test_no_server_is_there() -> None:
    """Where nobody listens, one line names each server and what is wrong with it."""
    urls = tuple(f"http://127.0.0.1:{free_port()}" for _ in range(2))
    with pytest.raises(StoreError) as caught:
        use(EtcdConfig(endpoints=urls), EtcdKeyValue.snapshot)
    assert str(caught.value) == "; ".join(f"etcd {url} cannot be reached: connection refused" for url in urls)


def test_restart(tmp_path: Path) -> None:
    """A watch ends with the server, goes on where it was when that is back, and misses nothing."""
    with Etcd(tmp_path / "etcd") as etcd:

        async def work(keys: EtcdKeyValue) -> None:
            made = await keys.put(KEY, "one", None, 0)
            async with aclosing(keys.watch(made.changed - 1)) as changes:
                assert await take(changes, 1) == [made]
                etcd.members[0].stop()
                with pytest.raises(StoreError, match="etcd http"):
                    await take(changes, 1)
            etcd.members[0].start()
            etcd.wait_healthy()
            etcd.put(f"{ROOT}/{KEY}", "two")
            etcd.put(f"{ROOT}/{KEY}", "three")
            async with aclosing(keys.watch(made.changed)) as changes:
                assert [record.value for record in await take(changes, 2)] == ["two", "three"]

        use(of(etcd), work)


@asynccontextmanager
async def frozen_watch(etcd: Etcd, keys: EtcdKeyValue) -> AsyncIterator[tuple[Record, AsyncIterator[Record]]]:
    """Watch a key that is written, and freeze the server; yield what was written, and the watch."""
    made = await keys.put(KEY, "one", None, 0)
    async with aclosing(keys.watch(made.changed - 1)) as changes:
        assert await take(changes, 1) == [made]
        etcd.members[0].signal(signal.SIGSTOP)
        yield made, changes


def test_server_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is frozen is given up, for the next one, by calls and by watches alike."""
    monkeypatch.setattr("dataplane.store.etcd_client.CALL_S", 0.5)
    monkeypatch.setattr("dataplane.store.etcd.CALL_S", 0.5)
    monkeypatch.setattr("dataplane.store.etcd.FIRST_S", 0.5)
    monkeypatch.setattr("dataplane.store.etcd.QUIET_S", 0.2)
    with Etcd(tmp_path / "etcd") as etcd:

        async def work(keys: EtcdKeyValue) -> None:
            async with frozen_watch(etcd, keys) as (made, changes):
                with pytest.raises(StoreError, match="does not answer within"):
                    await take(changes, 1)
            with pytest.raises(StoreError, match="does not begin to watch within"):
                await take(keys.watch(made.changed), 1)
            etcd.members[0].signal(signal.SIGCONT)
            etcd.wait_healthy()
            await keys.snapshot()
            etcd.members[0].signal(signal.SIGSTOP)
            begun_s = time.monotonic()
            with pytest.raises(StoreError, match="does not answer within"):
                await keys.snapshot()
            assert time.monotonic() - begun_s < NOTICE_S
            etcd.members[0].signal(signal.SIGCONT)
            etcd.wait_healthy()
            await keys.snapshot()

        use(of(etcd), work)


@pytest.mark.parametrize(
    "call_s", [pytest.param(0.5, id="soon"), pytest.param(CALL_S, id="as it is", marks=pytest.mark.soak)]
)
def test_first_server_hangs(
    etcd: Etcd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call_s: float
) -> None:
    """A first endpoint that is frozen costs a list, a watch or a lease one deadline; the next one does."""
    for name in ("etcd_client.CALL_S", "etcd.CALL_S", "etcd.FIRST_S"):
        monkeypatch.setattr(f"dataplane.store.{name}", call_s)

    async def within(work: Awaitable[Result]) -> Result:
        """Wait for something that the frozen server may hold up once, and does."""
        begun_s = time.monotonic()
        try:
            async with asyncio.timeout(NOTICE_S + call_s):
                return await work
        finally:
            assert time.monotonic() - begun_s >= call_s * 0.9, "it was not asked"

    async def look(keys: EtcdKeyValue) -> None:
        assert [record.key for record in (await within(keys.snapshot())).records] == [OTHER]

    async def lease(keys: EtcdKeyValue) -> None:
        made = await within(keys.put(KEY, "one", 60, 0))
        assert (etcd.get(f"{ROOT}/{KEY}"), made.value) == ("one", "one")

    async def watch(keys: EtcdKeyValue) -> None:
        with pytest.raises(StoreError, match="does not begin to watch within"):
            await within(anext(keys.watch(start)))
        assert [record.key for record in await take(keys.watch(start), 1)] == [OTHER]

    with Etcd(tmp_path / "frozen") as frozen:
        frozen.members[0].signal(signal.SIGSTOP)
        start = use(of(etcd), EtcdKeyValue.revision)
        etcd.put(f"{ROOT}/{OTHER}", "x")
        for work in (look, watch, lease):
            use(of(etcd, endpoints=(*frozen.urls, *etcd.urls)), work)


def test_connection_that_another_call_gives_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who shares a connection that another call gives up is told of a failure: its task is not cancelled."""
    monkeypatch.setattr("dataplane.store.etcd.CALL_S", 0.5)
    with Etcd(tmp_path / "etcd") as etcd:

        async def watch(keys: EtcdKeyValue) -> None:
            async with frozen_watch(etcd, keys) as (_, changes):
                waiting = asyncio.create_task(take(changes, 1))
                with pytest.raises(StoreError, match="does not answer within"):
                    await keys.revision()
                with pytest.raises(StoreError, match="another call gave its connection up"):
                    await waiting

        async def ask(_: EtcdKeyValue) -> None:
            client, begun = EtcdClient(of(etcd)), asyncio.Event()

            def call(line: Line, _: Metadata) -> Awaitable[object]:
                begun.set()
                reply: Awaitable[object] = line.kv.Range(rpc.RangeRequest(key=b"x"), timeout=NOTICE_S)
                return reply

            waiting = asyncio.create_task(client.ask(call, is_safe=True))
            await begun.wait()
            await client.drop(client.line())
            with pytest.raises(StoreError, match="another call gave its connection up"):
                await waiting
            begun.clear()
            waiting = asyncio.create_task(client.ask(call, is_safe=True))
            await begun.wait()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await client.close()

        use(of(etcd), watch)
        use(of(etcd), ask)


def test_another_history(etcd: Etcd) -> None:
    """A cluster that is not the one we knew, or an older copy of it, is listed anew and not followed."""

    async def work(keys: EtcdKeyValue) -> None:
        made = await keys.put(KEY, "one", None, 0)
        await keys.snapshot()
        term, keys._term = keys._term, keys._term + 1
        with pytest.raises(Compacted, match="older copy"):
            await take(keys.watch(made.changed - 1), 1)
        keys._term, keys._cluster = term, keys._cluster ^ 1
        with pytest.raises(Compacted, match="another etcd cluster"):
            await take(keys.watch(made.changed - 1), 1)
        await keys.snapshot()
        assert await take(keys.watch(made.changed - 1), 1) == [made]

    use(of(etcd), work)


def test_calls_do_not_grow_with_leases(etcd: Etcd) -> None:
    """A list is one range read, and nobody asks for the time of each lease, however many there are."""

    def calls() -> list[str]:
        command = ["curl", "-s", f"{etcd.urls[0]}/metrics"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        wanted = ("Range", "LeaseTimeToLive", "LeaseLeases")
        lines = (line for line in done.stdout.splitlines() if line.startswith("grpc_server_started_total"))
        return [line for line in lines if any(f'grpc_method="{name}"' in line for name in wanted)]

    def count(lines: list[str], method: str) -> float:
        return sum(float(line.split()[-1]) for line in lines if f'"{method}"' in line)

    gateway = etcd.members[0].gateway()
    try:
        for number in range(40):
            gateway.put(f"subnets/10.244.{number}.0-24", "x", 600)
    finally:
        gateway.close()
    before = calls()

    async def work(keys: EtcdKeyValue) -> None:
        assert len((await keys.snapshot()).records) == 40

    use(of(etcd), work)
    after = calls()
    assert count(after, "Range") - count(before, "Range") == 1
    assert count(after, "LeaseTimeToLive") == count(before, "LeaseTimeToLive")


def test_leader_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a cluster of three, the loss of any one member costs nothing; that of two is said to be one."""
    monkeypatch.setattr("dataplane.store.etcd.CALL_S", 0.5)
    with Etcd(tmp_path / "etcd", 3) as etcd:

        async def work(keys: EtcdKeyValue) -> None:
            made = await keys.put(KEY, "0", None, 0)
            for turn in range(3):
                etcd.members[turn].stop()
                made = await eventually(keys, str(turn), made)
                etcd.members[turn].start()
                wait_for(
                    lambda: etcd.run(*QUICKLY, "endpoint", "health").returncode == 0, "three members", 20
                )
            etcd.members[0].stop()
            etcd.members[1].stop()
            with pytest.raises(StoreError):
                await keys.revision()
            etcd.members[0].start()
            await eventually(keys, "back", made)

        async def eventually(keys: EtcdKeyValue, value: str, made: Record) -> Record:
            """Write until it is written: a write that failed may have been done."""
            async with asyncio.timeout(20):
                while True:
                    try:
                        return await keys.put(KEY, value, None, made.changed)
                    except Conflict as conflict:
                        made = conflict.found[0]
                        if made.value == value:
                            return made
                    except StoreError:
                        etcd.run(*QUICKLY, "endpoint", "health")  # which takes its time, too

        use(of(etcd), work)
