# SPDX-License-Identifier: Apache-2.0
"""nftables by its command: what is heard of the kernel, and what is said when there is no nft."""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from dataplane import firewall, ruleset
from dataplane.errors import RuntimeFailure
from dataplane.firewall import Firewall, matters
from dataplane.model import Address, Peer
from dataplane.peerset import PeerSets
from dataplane.ruleset import Guard, Json, Ruleset

TABLE = "overlayd-overlay0"
WANTED = Ruleset(TABLE, None, Guard((), "eth0", (), (8472,)))
NEWTABLE, NEWCHAIN, NEWRULE, DELRULE, NEWSETELEM, NEWGEN = 0, 3, 6, 8, 12, 15


def message(number: int, *names: tuple[int, str]) -> tuple[int, bytes]:
    """Return type and body of a message of nf_tables."""
    body = b"\2\0\0\0"
    for kind, name in names:
        text = name.encode() + b"\0"
        body += struct.pack("=HH", 4 + len(text), kind) + text + b"\0" * (-len(text) % 4)
    return 10 << 8 | number, body


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        pytest.param(message(NEWTABLE, (1, TABLE)), True, id="our table"),
        pytest.param(message(DELRULE, (1, TABLE), (2, "output")), True, id="our rule"),
        pytest.param(message(NEWSETELEM, (1, TABLE), (2, "peers4")), True, id="a peer"),
        pytest.param(message(NEWRULE, (1, "nat"), (2, "POSTROUTING")), False, id="another's rule"),
        pytest.param(message(NEWTABLE, (1, f"{TABLE}2")), False, id="a longer name"),
        pytest.param(message(NEWCHAIN, (1, "filter"), (3, "FORWARD")), True, id="policy of FORWARD"),
        pytest.param(message(DELRULE, (1, "filter"), (2, "FORWARD")), True, id="rule of FORWARD"),
        pytest.param(message(DELRULE, (1, "filter"), (2, TABLE)), True, id="our rule there"),
        pytest.param(message(NEWRULE, (1, "filter"), (2, "INPUT")), False, id="rule of INPUT"),
        pytest.param(message(NEWSETELEM, (1, "filter"), (2, "FORWARD")), False, id="a set called so"),
        pytest.param(message(NEWGEN, (1, TABLE)), False, id="generation"),
        pytest.param((1 << 8, message(NEWTABLE, (1, TABLE))[1]), False, id="another subsystem"),
        pytest.param((10 << 8, b"\2\0"), False, id="cut off"),
        pytest.param((10 << 8, b"\2\0\0\0\xff\xff\1\0ov"), False, id="garbled"),
    ],
)
def test_matters(found: tuple[int, bytes], expected: bool) -> None:
    """Only what changes our rules, or FORWARD of iptables, is worth a look."""
    assert matters(*found, TABLE) is expected


@pytest.fixture
def no_nft(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Let there be no nft but what a test puts here."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(firewall, "SBIN", str(tmp_path))
    return tmp_path


def fake(directory: Path, complaint: str) -> None:
    """Put an nft there that only complains."""
    path = directory / "nft"
    path.write_text(f"#!/bin/sh\necho '{complaint}' >&2\nexit 1\n", encoding="ascii")
    path.chmod(0o755)


def test_no_nft(no_nft: Path) -> None:
    """Without nft it is said what to install; there is nothing to remove then."""
    with pytest.raises(RuntimeFailure, match=r"nft is not installed here .*apt-get install nftables"):
        firewall.run(ruleset.build(WANTED))
    firewall.remove(TABLE)


def test_not_permitted(no_nft: Path) -> None:
    """Without the right it is said which one is needed."""
    fake(no_nft, "netlink: Error: cache initialization failed: Operation not permitted")
    with pytest.raises(RuntimeFailure, match="CAP_NET_ADMIN"):
        firewall.show("chains")


def test_other_trouble(no_nft: Path) -> None:
    """What else nft says is passed on in one line; a kernel without nftables has no rules."""
    fake(no_nft, "Error: syntax error\n1 | x")
    with pytest.raises(RuntimeFailure, match=r"^nft -j list chains: Error: syntax error$"):
        firewall.show("chains")
    fake(no_nft, "netlink: Error: cache initialization failed: Protocol not supported")
    assert firewall.show("chains") is None


def test_cannot_be_run(no_nft: Path) -> None:
    """A program that is there and cannot be started is trouble like any other, in one line."""
    (no_nft / "nft").write_bytes(b"\x7fELF")
    (no_nft / "nft").chmod(0o755)
    with pytest.raises(RuntimeFailure, match=r"^cannot run nft: Exec format error$"):
        firewall.show("chains")


def test_counters_that_are_not_read_are_told(
    no_nft: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Who asks for counters that cannot be read gets the last ones; why, and when it is over, is logged."""

    async def work() -> None:
        wall = Firewall(0.01)
        monkeypatch.setattr(Firewall, "_replace", lambda *_: None)
        await wall.put(WANTED)
        wall._wanted = WANTED
        fake(no_nft, "netlink: Error: Operation not permitted")
        for _ in range(2):
            assert await wall.count() == {"laundered": 0, "strangers": 0}
        monkeypatch.setattr(
            firewall, "show", lambda *what: [{"counter": {"name": "laundered", "packets": 3}}]
        )
        assert await wall.count() == {"laundered": 3}

    with caplog.at_level(logging.INFO, logger="overlayd"):
        asyncio.run(work())
    begun, over = caplog.records
    assert begun.getMessage() == "counters of the firewall are not read"
    assert "CAP_NET_ADMIN" in vars(begun)["fields"]["error"]
    assert over.getMessage() == "counters of the firewall are not read: over"


def test_is_tried_again(no_nft: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be put in force is put there later, and until then it is known why not."""

    async def work() -> None:
        wall = Firewall(0.01)
        await wall.put(WANTED)
        assert "not installed" in str(wall.trouble)
        assert await wall.count() == {}
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        monkeypatch.setattr(Firewall, "_replace", lambda *_: loop.call_soon_threadsafe(done.set))
        monkeypatch.setattr(firewall, "show", lambda *what: None)
        task = asyncio.create_task(wall.run())
        async with asyncio.timeout(5):
            await done.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(work())


class Sets(PeerSets):
    """Sets that only remember what they were told, and fail when they are to."""

    def __init__(self) -> None:
        """Hold nothing."""
        super().__init__()
        self.held: set[str] = set()
        self.is_broken = False

    def _change(self, number: int, table: str, addresses: Iterable[Address]) -> None:
        if self.is_broken:
            raise RuntimeFailure("broken")
        names = set(map(str, addresses))
        self.held = self.held | names if number == NEWSETELEM else self.held - names


def peer(number: int, *addresses: str) -> Peer:
    """Return a peer with these addresses."""
    return Peer(number, tuple(map(ip_address, addresses)))


def test_peers_come_first_and_leave_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer is let in before the forwarder knows it, and out after; one that comes back meanwhile stays."""
    built: list[set[str]] = []
    monkeypatch.setattr(firewall, "run", lambda commands: None)
    monkeypatch.setattr(firewall, "show", lambda *what: [])

    def build(wanted: Ruleset, peers: Iterable[Address], counted: object) -> list[Json]:
        built.append(set(map(str, peers)))
        return []

    monkeypatch.setattr(ruleset, "build", build)
    one, two, moved, back = (
        peer(0, "192.0.2.1"),
        peer(1, "192.0.2.2"),
        peer(0, "192.0.2.3"),
        peer(5, "192.0.2.1"),
    )

    async def work() -> None:
        wall = Firewall(0.01)
        sets = wall._sets = Sets()
        await wall.put(WANTED, (one,))
        await wall.settle()
        assert (built, sets.held) == ([{"192.0.2.1"}], set())  # by the rules themselves
        sets.held = {"192.0.2.1"}
        await wall.put(WANTED, (moved, two))
        assert sets.held == {"192.0.2.1", "192.0.2.2", "192.0.2.3"}
        await wall.put(WANTED, (moved, back))
        assert sets.held == {"192.0.2.1", "192.0.2.2", "192.0.2.3"}
        await wall.settle()
        assert sets.held == {"192.0.2.1", "192.0.2.3"}
        await wall.put(replace(WANTED, forward=(ip_network("10.0.0.0/8"),)), (two,))
        assert built[-1] == {"192.0.2.1", "192.0.2.2", "192.0.2.3"}  # the forwarder takes all of them still
        await wall.put(replace(WANTED, guard=None))
        await wall.settle()
        assert wall._peers == set()

    asyncio.run(work())


@pytest.mark.parametrize("were", ["", "a", "abcd", "abxcd", "bcd", "dcba"])
@pytest.mark.parametrize("are", ["", "a", "abcd", "aycd", "cd", "abcdabcd"])
def test_what_differs_of_two_tables(were: str, are: str) -> None:
    """Without what both begin and end with, two tables differ by what they differed by."""
    known = {letter: peer(number) for number, letter in enumerate("abcdxy")}
    one, other = (tuple(known[letter] for letter in text) for text in (were, are))
    gone, come = firewall._differ(one, other)
    assert not gone or not come or (gone[0] is not come[0] and gone[-1] is not come[-1])
    for some, rest, whole in ((gone, come, one), (come, gone, other)):
        assert set(one) ^ set(other) <= set(some) | set(rest)
        assert " ".join(str(p.id) for p in some) in " ".join(str(p.id) for p in whole)


def test_peers_in_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nft fails, peers go into the sets that may be in force, and what is told is why it fails."""

    def fail(*_: object) -> None:
        raise RuntimeFailure("nft is gone")

    async def work() -> None:
        wall = Firewall(0.01)
        sets = wall._sets = Sets()
        monkeypatch.setattr(Firewall, "_replace", fail)
        await wall.put(WANTED, (peer(0, "192.0.2.1"),))
        await wall.put(WANTED, (peer(0, "192.0.2.1"), peer(1, "192.0.2.2")))
        assert "192.0.2.2" in sets.held
        sets.is_broken = True
        await wall.put(WANTED, (peer(2, "192.0.2.3"),))
        assert wall.trouble == "nft is gone"
        wall.trouble = None
        await wall.settle()
        assert wall.trouble == "broken"

    asyncio.run(work())


def test_own_changes_are_no_news() -> None:
    """What we tell the sets ourselves is known; the same from somebody else, and all else, is looked at."""
    sets = PeerSets()
    element = message(NEWSETELEM)[0]
    assert not sets.has_told(element, 0)  # of whom it is not said
    sets._port = 77
    assert sets.has_told(element, 77)
    assert not sets.has_told(element, 78)
    assert not sets.has_told(message(NEWRULE)[0], 77)


def test_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """While somebody keeps it still no nft runs: neither for a look, nor to count; then both are done."""
    ran: list[str] = []

    async def work() -> None:
        wall, looked = Firewall(0.01), asyncio.Event()
        loop = asyncio.get_running_loop()
        counter = {"counter": {"name": "laundered", "packets": 3}}
        monkeypatch.setattr(firewall, "show", lambda *what: [counter])
        monkeypatch.setattr(Firewall, "_replace", lambda *_: None)
        await wall.put(WANTED)
        wall._wanted = WANTED

        def put_right(*_: object) -> None:
            ran.append("look")
            loop.call_soon_threadsafe(looked.set)

        monkeypatch.setattr(Firewall, "_put_right", put_right)
        wall._changed.set()
        task = asyncio.create_task(wall.run())
        async with wall.lock, asyncio.timeout(5):
            assert await wall.count() == {"laundered": 0, "strangers": 0}
            while wall._changed.is_set():  # until run() wants to look
                await asyncio.get_running_loop().run_in_executor(None, int)
            assert ran == []
        async with asyncio.timeout(5):
            await looked.wait()
        async with wall.lock:
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert await wall.count() == {"laundered": 3}

    asyncio.run(work())
    assert ran == ["look"]
