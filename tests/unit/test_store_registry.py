# SPDX-License-Identifier: Apache-2.0
"""Leases in a key-value store: what is read of what anybody wrote there, and that no change is lost."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from dataplane.errors import StoreError
from dataplane.flannel import lease_value
from dataplane.model import Entry, Event, Heard, Lease, LeaseDeleted, LeasePut, Listed, NetworkPut
from dataplane.store.keyvalue import Compacted, Conflict, Record
from dataplane.store.registry import NO_NETWORK, Registry
from dataplane.store.sqlite import SqliteKeyValue
from tests.keys import Keys
from tests.leases import NET, dual, lease

ROOT = Path(__file__).parents[2]
CONFIG = '{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}'
NOW = 1000.0  # CLOCK_MONOTONIC, all the time
PROBLEM_MAX = 301  # characters
Told = Event | Heard


def run(scenario: Callable[[Keys, Registry], Awaitable[None]]) -> None:
    """Run a scenario on a registry in a store that has the network."""

    async def main() -> None:
        keys = Keys()
        keys.write("config", CONFIG)
        await asyncio.wait_for(scenario(keys, Registry(keys, lambda: NOW)), 10)

    asyncio.run(main())


def name(n: int) -> str:
    """Return the name of the lease of node n."""
    return f"10.244.{n}.0-24"


def write(keys: Keys, n: int, ttl_s: float | None = None) -> LeasePut:
    """Write the lease of node n; return the event that this must be."""
    return event_of(keys.write(f"subnets/{name(n)}", lease_value(lease(n)), ttl_s), lease_of(n))


def lease_of(n: int) -> Lease:
    """Return the lease of node n as it comes back from a store, where its VNI stands."""
    return replace(lease(n), vni=1)


def event_of(record: Record, lease: Lease) -> LeasePut:
    """Return the event that a change must be."""
    return LeasePut(record.changed, entry_of(record, lease))


def entry_of(record: Record, lease: Lease) -> Entry:
    """Return what must be made of a record."""
    expires_s = None if record.ttl_s is None else NOW + record.ttl_s
    key = record.key.removeprefix("subnets/")
    return Entry(key, lease, None, record.created, record.changed, expires_s)


async def quiet(events: AsyncIterator[Told]) -> bool:
    """Return whether nothing more comes; ends the events."""
    task = asyncio.ensure_future(anext(events))
    done, _ = await asyncio.wait({task}, timeout=0.02)
    task.cancel()
    await asyncio.wait({task})
    return not done


# --- a list, then changes ---------------------------------------------------------------------------------


def test_list_then_changes() -> None:
    """First comes all there is, then each change of the network and of leases, and nothing else."""

    async def scenario(keys: Keys, registry: Registry) -> None:
        first = write(keys, 1, 60).entry
        events = registry.events()
        told = await anext(events)
        assert isinstance(told, Listed)
        assert (told, told.read_s) == (Listed(2, NET, (first,)), NOW)
        expected: list[Told] = [write(keys, 2), write(keys, 1, 90)]
        keys.write("other", "x")
        keys.write("subnets", "x")
        keys.write(f"subnets/{name(2)}", None)
        expected.append(LeaseDeleted(7, name(2)))
        keys.write("config", CONFIG.replace("}}", ',"VNI":7}}'))
        expected.append(NetworkPut(8, replace(NET, vni=7)))
        assert [await anext(events) for _ in range(4)] == expected
        assert await quiet(events)
        assert (keys.lists, keys.watches) == (1, [2])

    run(scenario)


def test_network_comes_and_goes() -> None:
    """A network that is absent or invalid is told with the reason, and each mending of it is told too."""

    async def scenario(keys: Keys, registry: Registry) -> None:
        keys.write("config", None)
        events = registry.events()
        assert await anext(events) == Listed(2, None, (), NO_NETWORK)
        keys.write("config", '{"Network": "10.244.0.0/16"}')
        reason = 'network: "Backend" is missing, expected for example {"Type": "vxlan"}'
        assert await anext(events) == NetworkPut(3, None, f"the network in the store is unusable: {reason}")
        keys.write("config", CONFIG)
        assert await anext(events) == NetworkPut(4, NET)
        keys.write("config", None)
        assert await anext(events) == NetworkPut(5, None, NO_NETWORK)
        keys.write("config", "x" * 1_000_000)
        listed = await Registry(keys).read()
        assert listed.network is None
        assert 0 < len(str(listed.problem)) <= PROBLEM_MAX
        assert isinstance(await anext(events), NetworkPut)

    run(scenario)


def test_commands() -> None:
    """What is written through the registry reads back, and Conflict says what is there instead."""

    async def scenario(keys: Keys, registry: Registry) -> None:
        assert await registry.read_config() == (CONFIG, 1)
        await registry.put_config("{}", 1)
        assert await registry.read_config() == ("{}", 2)
        keys.write("config", None)
        assert await registry.read_config() == (None, 0)
        entry = await registry.put(dual(1), 60, 0)
        assert entry.lease is not None
        assert lease_value(entry.lease) == lease_value(dual(1))
        assert (entry.name, entry.created, entry.changed) == ("10.244.1.0-24&fd00:244:0:1::-64", 4, 4)
        assert entry.expires_s == NOW + 60
        assert (await registry.read()).entries == (entry,)
        with pytest.raises(Conflict) as caught:
            await registry.put(dual(1), 60, 0)
        assert [record.changed for record in caught.value.found] == [4]
        with pytest.raises(Conflict):
            await registry.delete(entry.name, 3)
        assert await registry.delete(entry.name, 4) == 5
        await registry.close()
        with pytest.raises(StoreError, match="down"):
            await registry.read()

    run(scenario)


# --- outages ----------------------------------------------------------------------------------------------


def test_resumes_where_it_was() -> None:
    """After each failure of the store the changes go on, without a second list and without a repetition."""

    async def scenario(keys: Keys, registry: Registry) -> None:
        keys.fail(is_down=True)
        for _ in range(3):
            with pytest.raises(StoreError, match="down"):
                await anext(registry.events())
        keys.fail(is_down=False)
        assert isinstance(await anext(registry.events()), Listed)
        for n in range(1, 4):
            events = registry.events()
            expected = write(keys, n)
            keys.write("other", "x")  # counts, though it is told to nobody
            assert await anext(events) == Heard(keys.last)
            assert await anext(events) == expected
            assert await quiet(events)
            keys.fail(is_down=True)
            for _ in range(3):
                with pytest.raises(StoreError, match="down"):
                    await anext(registry.events())
            keys.fail(is_down=False)
        assert keys.lists == 1
        assert keys.watches == [1, 3, 5]

    run(scenario)


def test_case_107_deleted_during_an_outage() -> None:
    """Leases that went while the store was away are told as gone when it is back, and without a list."""

    async def scenario(keys: Keys, registry: Registry) -> None:
        for n in (1, 2, 3):
            write(keys, n)
        events = registry.events()
        assert isinstance(await anext(events), Listed)
        keys.fail(is_down=True)
        with pytest.raises(StoreError, match="down"):
            await anext(events)
        keys.write(f"subnets/{name(1)}", None)
        keys.write(f"subnets/{name(3)}", None)
        back = write(keys, 3)
        keys.fail(is_down=False)
        events = registry.events()
        told = [await anext(events) for _ in range(4)]
        assert told == [Heard(7), LeaseDeleted(5, name(1)), LeaseDeleted(6, name(3)), back]
        assert await quiet(events)
        assert keys.lists == 1

    run(scenario)


@pytest.mark.parametrize("is_live", [False, True], ids=["while away", "while watched"])
def test_case_108_compaction_during_an_outage(*, is_live: bool) -> None:
    """When the changes are not kept any more, one full list tells all, and then each real change is told."""

    async def scenario(keys: Keys, registry: Registry) -> None:
        write(keys, 1)
        write(keys, 2)
        events = registry.events()
        assert isinstance(await anext(events), Listed)
        last = write(keys, 3)
        assert await anext(events) == last
        if not is_live:
            keys.fail(is_down=True)
            with pytest.raises(StoreError, match="down"):
                await anext(events)
            events = registry.events()
        keys.write(f"subnets/{name(1)}", None)
        entries = [last.entry, write(keys, 2).entry, write(keys, 4).entry]
        keys.kept_after = keys.last
        keys.fail(is_down=False)
        if not is_live:
            assert await anext(events) == Heard(7)
        assert await anext(events) == Listed(7, NET, tuple(entries))
        expected = [write(keys, 1), write(keys, 4)]
        assert [await anext(events), await anext(events)] == expected
        assert await quiet(events)
        assert keys.lists == 2

    run(scenario)


def test_case_108_useless_lists() -> None:
    """A store that does not keep even what follows a list is asked for one list per call, and no more."""

    async def scenario(keys: Keys, registry: Registry) -> None:
        keys.kept_after = 1000
        for n in range(1, 4):
            events = registry.events()
            assert await anext(events) == Listed(1, NET, ())
            with pytest.raises(Compacted):
                await anext(events)
            assert keys.lists == n
        keys.kept_after = 0
        events = registry.events()
        assert await anext(events) == Listed(1, NET, ())
        expected = write(keys, 1)
        assert await anext(events) == expected

    run(scenario)


WRITER = """
import random, sys
from pathlib import Path
from dataplane.store.database import Database
db, rng, changed = Database(Path(sys.argv[1])), random.Random(109), dict()
for n in range(1, int(sys.argv[2]) + 1):
    key = f"subnets/10.244.{rng.randrange(200)}.0-24"
    value = f'{{"PublicIP":"192.0.{n // 250}.{n % 250 + 1}","BackendType":"vxlan"}}'
    changed[key] = db.put(key, value, None, changed.get(key, 0)).changed
"""


@pytest.mark.parametrize("puts", [4000, pytest.param(10_000, marks=pytest.mark.soak)])
def test_case_109_no_event_is_lost(tmp_path: Path, puts: int) -> None:
    """However often a watch is torn down, all that another process writes is told, in order and once."""
    path, rng = tmp_path / "store.db", random.Random(109)
    leases: dict[str, Lease | None] = {}
    told: list[int] = []
    kinds: list[str] = []

    async def follow(registry: Registry, count: int) -> None:
        async with aclosing(cast(AsyncGenerator[Told, None], registry.events())) as events:
            while count and (not told or told[-1] < puts):
                event = await anext(events)
                assert isinstance(event, LeasePut | Heard if told else Listed)
                if isinstance(event, LeasePut):
                    leases[event.entry.name] = event.entry.lease
                if not isinstance(event, Heard):
                    told.append(event.revision)
                count -= 1

    async def scenario() -> None:
        registry = Registry(SqliteKeyValue(path))
        await follow(registry, 1)
        command = [sys.executable, "-c", WRITER, str(path), str(puts)]
        writer = await asyncio.create_subprocess_exec(*command, cwd=ROOT)
        async with asyncio.timeout(120):
            while told[-1] < puts:
                is_whole = rng.random() < 0.5
                task = asyncio.create_task(follow(registry, rng.randrange(1, 100) if is_whole else puts))
                await asyncio.wait({task}, timeout=None if is_whole else rng.uniform(0, 0.02))
                kinds.append("cancelled" if task.cancel() else "left")
                (result,) = await asyncio.gather(task, return_exceptions=True)
                assert result is None or isinstance(result, asyncio.CancelledError), result
            assert await writer.wait() == 0
        listed = await registry.read()
        assert {entry.name: entry.lease for entry in listed.entries} == leases
        await registry.close()

    asyncio.run(scenario())
    assert told == list(range(puts + 1))
    assert None not in leases.values()
    assert min(kinds.count("left"), kinds.count("cancelled")) >= 10


# --- what anybody may have written ------------------------------------------------------------------------


GOOD: dict[str, object] = {
    "PublicIP": "192.0.2.9",
    "BackendType": "vxlan",
    "BackendData": {"VNI": 1, "VtepMAC": "02:00:00:00:00:09"},
}


def value(**changes: object) -> str:
    """Return a lease value with some fields changed, or left out where they are `...`."""
    return json.dumps({name: value for name, value in {**GOOD, **changes}.items() if value is not ...})


def with_vni(text: str) -> str:
    """Return a lease value with this for a VNI, whether JSON or not."""
    return value(BackendData={"VNI": "?"}).replace('"?"', text)


VALUES = {
    "empty": "",
    "no JSON": "{",
    "byte order mark": f"\ufeff{value()}",
    "null": "null",
    "an array": f"[{value()}]",
    "1 MiB": f"{value()}{' ' * (1 << 20)}",
    "nearly too long": value(PublicIP="1" * 60_000),
    "address a number": value(PublicIP=3221226000),
    "fullwidth digits": value(PublicIP="\uff11.2.3.4"),
    "emoji": value(PublicIP="\U0001f600" * 5000),
    "half a character": value(PublicIP="\ud83d"),
    "lines and escapes": value(PublicIP="1\n\x1b[2J\u202e\u2028\0"),
    "type missing": value(BackendType=...),
    "type ipsec": value(BackendType="ipsec"),
    "type unknown": value(BackendType="vxlan" * 9999),
    "VNI a string": with_vni('"1"'),
    "VNI a fraction": with_vni("1.0"),
    "VNI NaN": with_vni("NaN"),
    "VNI of 4300 digits": with_vni("9" * 4300),
    "VNI of 60 000 digits": with_vni("9" * 60_000),
    "nested arrays": "[" * 60_000,
    "nested objects": '{"BackendData":' * 4000,
    "a field twice": value(backendtype="vxlan"),
}
NAMES = {
    "empty": "",
    "host bits": "10.244.9.1-24",
    "long": "9" * 100_000,
    "lines and escapes": "10.244.9.0-24\n\x1b[2J",
    "other digits": "10.244.9.0-\u0662\u0664",
}
MALFORMED = [
    *(pytest.param(name(9), value, id=f"value, {what}") for what, value in VALUES.items()),
    *(pytest.param(name, value(), id=f"name, {what}") for what, name in NAMES.items()),
]


@pytest.mark.parametrize(("key", "text"), MALFORMED)
def test_case_112_malformed(key: str, text: str) -> None:
    """What is no lease is told as such, listed or changed, with a short reason; the one beside it is read."""

    async def scenario(keys: Keys, registry: Registry) -> None:
        record = keys.write(f"subnets/{key}", text)
        good = write(keys, 1).entry
        events = registry.events()
        listed = await anext(events)
        assert isinstance(listed, Listed)
        bad, beside = listed.entries
        assert beside == good
        assert bad == Entry(key, None, bad.problem, record.created, record.changed)
        assert bad.problem is not None
        assert 0 < len(bad.problem) <= PROBLEM_MAX
        assert bad.problem.isprintable()
        keys.write(f"subnets/{key}", text)
        expected = write(keys, 1)
        assert await anext(events) == LeasePut(4, replace(bad, changed=4))
        assert await anext(events) == expected

    run(scenario)


@pytest.mark.parametrize("fold", [str.lower, str.upper, str.swapcase], ids=["lower", "upper", "swapped"])
def test_case_113_names_in_any_case(fold: Callable[[str], str]) -> None:
    """Names of fields match in any case, and fields that nobody knows are nothing, as in Go's JSON."""

    def refold(data: object) -> object:
        if not isinstance(data, dict):
            return data
        return {"x-new": [{"Type": None}], **{fold(name): refold(value) for name, value in data.items()}}

    async def scenario(keys: Keys, registry: Registry) -> None:
        keys.write("config", json.dumps(refold(json.loads(CONFIG))))
        text = json.dumps(refold(json.loads(lease_value(lease(1)))))
        record = keys.write(f"subnets/{name(1)}", text)
        events = registry.events()
        assert await anext(events) == Listed(3, NET, (entry_of(record, lease_of(1)),))
        changed = keys.write(f"subnets/{name(1)}", text)
        assert await anext(events) == event_of(changed, lease_of(1))

    run(scenario)


def test_lease_that_nobody_could_read_is_not_written() -> None:
    """A lease that we could not read ourselves is refused with the reason, and the store stays as it was."""

    async def scenario(keys: Keys, registry: Registry) -> None:
        before = keys.last
        with pytest.raises(StoreError, match=r"the lease of 10\.244\.1\.0/24 is not written: nobody could"):
            await registry.put(replace(lease(1), public_ip=None), 60, 0)
        assert keys.last == before

    run(scenario)
