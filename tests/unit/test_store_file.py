# SPDX-License-Identifier: Apache-2.0
"""The file store: what a peers file may say, on which line it is wrong, and which edits are noticed."""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import AsyncIterator, Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from pathlib import Path

import pytest

from dataplane.config import RunConfig
from dataplane.errors import ConfigError, StoreError
from dataplane.model import Encap, Event, Lease, Listed, MacAddress, Rejected, SubnetKey
from dataplane.store import LeaseStore, open_store
from dataplane.store.file import FILE_MAX, FileStore, parse_peers
from tests.leases import NET as NETWORK
from tests.leases import listed

GOOD = """{
  "network": {
    "Network": "10.244.0.0/16",
    "Backend": {"Type": "vxlan", "VNI": 1}
  },
  "leases": {
    "10.244.1.0/24": {
      "PublicIP": "192.0.2.1", "BackendType": "vxlan",
      "BackendData": {"VNI": 1, "VtepMAC": "02:00:00:00:00:01"}
    },
    "10.244.2.0/24": {
      "PublicIP": "192.0.2.2", "BackendType": "ipip"
    }
  }
}
"""
MAC = MacAddress(bytes.fromhex("020000000001"))
LEASES = (
    Lease(SubnetKey(IPv4Network("10.244.1.0/24")), IPv4Address("192.0.2.1"), None, Encap.VXLAN, MAC, vni=1),
    Lease(SubnetKey(IPv4Network("10.244.2.0/24")), IPv4Address("192.0.2.2"), None, Encap.IPIP),
)
OTHER = GOOD.replace("192.0.2.2", "192.0.2.3")
BROKEN = GOOD.replace('"ipip"', '"ipip",')


# --- parse_peers() --------------------------------------------------------------------------------------


def test_good_file() -> None:
    """A good file is read whole."""
    assert parse_peers(GOOD) == (NETWORK, LEASES)


def test_no_leases() -> None:
    """A network without leases is a cluster without nodes."""
    assert parse_peers('{"network": {"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}}') == (
        NETWORK,
        (),
    )


def test_both_families_and_flannel_keys() -> None:
    """flannel's keys and dual-stack leases are taken too."""
    lease = {"PublicIP": "192.0.2.1", "PublicIPv6": "2001:db8::1", "BackendType": "vxlan"}
    network = {"Network": "10.244.0.0/16", "EnableIPv6": True, "IPv6Network": "fd00:244::/48"}
    text = json.dumps(
        {
            "Network": {**network, "Backend": {"Type": "vxlan"}},
            "Leases": {"10.244.1.0-24&fd00:244:0:1::-64": lease},
        }
    )
    parsed, leases = parse_peers(text)
    assert parsed.network6 == IPv6Network("fd00:244::/48")
    assert [str(found.key) for found in leases] == ["10.244.1.0/24&fd00:244:0:1::/64"]


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        pytest.param(
            '"ipip"', '"ipip",', "line 13: no valid JSON: Expecting property name", id="syntax: comma"
        ),
        pytest.param(GOOD, "", "line 1: no valid JSON: Expecting value (column 1)", id="empty"),
        pytest.param("  }\n}\n", "", "line 14: no valid JSON", id="cut off"),
        pytest.param(GOOD, "[" * 100_000, "nested too deeply", id="nested"),
        pytest.param(GOOD, "[]", "file: expected an object, not an array", id="array"),
        pytest.param(GOOD, "{}", 'file: "network" is missing', id="no network"),
        pytest.param(
            '"10.244.2.0/24"', '"10.244.1.0/24"', 'line 11: "10.244.1.0/24" is given twice', id="same key"
        ),
        pytest.param('"VNI": 1}\n', '"VNI": 1, "VNI": 1}\n', 'line 4: "VNI" is given twice', id="same field"),
        pytest.param(
            '"BackendType": "ipip"',
            '"BackendType": "ipip",\n"PublicIP": "192.0.2.9"',
            'line 13: "PublicIP" is given twice',
            id="same field, other leases have it too",
        ),
        pytest.param(
            '"10.244.2.0/24"',
            '"10.244.1.0-24"',
            "line 11: 10.244.1.0-24 overlaps 10.244.1.0/24",
            id="same subnet, written otherwise",
        ),
        pytest.param(
            '"leases"',
            '"peers"',
            'line 6: file: unknown field "peers"; allowed are network, leases',
            id="unknown field",
        ),
        pytest.param(
            '"Network": ',
            '"Netwrok": ',
            'line 3: network: unknown field "Netwrok" (did you mean Network?)',
            id="unknown field in network",
        ),
        pytest.param(
            '"Type": "vxlan"', '"Type": "vxlna"', 'line 4: Backend.Type "vxlna": allowed are', id="Type"
        ),
        pytest.param(
            '"10.244.0.0/16"',
            '"10.244.0.0"',
            'line 3: network.Network: "10.244.0.0" is no IPv4 network',
            id="network",
        ),
        pytest.param(
            '"VNI": 1}\n', '"VNI": -1}\n', "line 4: network.Backend.VNI: -1 is out of range", id="VNI"
        ),
        pytest.param(
            '"PublicIP": "192.0.2.2", ',
            "",
            'line 11: 10.244.2.0/24: "PublicIP" is missing',
            id="no PublicIP",
        ),
        pytest.param(
            '"ipip"',
            '"ipip", "Weight": 1',
            'line 12: 10.244.2.0/24: unknown field "Weight"',
            id="unknown field in a lease",
        ),
        pytest.param(
            '"10.244.2.0/24"',
            '"10.244.2.9/24"',
            'line 11: "10.244.2.9/24" is no subnet: 10.244.2.9/24 has host bits set',
            id="host bits",
        ),
        pytest.param(
            '"10.244.2.0/24"',
            '"10.244.2.0/24\\n\\u001b"',
            r'"10.244.2.0/24\n\x1b" is no subnet',
            id="control characters",
        ),
        pytest.param('"10.244.2.0/24"', '"node2"', 'line 11: "node2" is no subnet', id="no subnet"),
        pytest.param(
            '"10.244.2.0/24"',
            '"10.245.2.0/24"',
            "line 11: 10.245.2.0/24 is outside the network 10.244.0.0/16",
            id="outside the network",
        ),
        pytest.param(
            '"10.244.2.0/24"',
            '"10.244.0.0/16"',
            "line 11: 10.244.0.0/16 is the whole network; a subnet is a part of it",
            id="the whole network",
        ),
        pytest.param(
            '"10.244.1.0/24"',
            '"10.244.1.0/24&fd00::/64"',
            "line 7: fd00::/64: the network has no IPv6",
            id="no IPv6",
        ),
        pytest.param(
            '"10.244.2.0/24"',
            '"10.244.0.0/22"',
            "line 7: 10.244.1.0/24 overlaps 10.244.0.0/22",
            id="overlap",
        ),
        pytest.param(
            '"10.244.2.0/24"',
            '"10.244.1.128-25"',
            "line 11: 10.244.1.128-25 overlaps 10.244.1.0/24",
            id="overlap, in flannel's form",
        ),
        pytest.param(
            '"192.0.2.2"',
            '"192.0.2.1"',
            "line 12: PublicIP 192.0.2.1 is also that of 10.244.1.0/24",
            id="same PublicIP",
        ),
        pytest.param(
            '"192.0.2.2"',
            '"10.244.9.1"',
            "line 12: PublicIP 10.244.9.1 lies inside the overlay network 10.244.0.0/16",
            id="PublicIP in the overlay",
        ),
        pytest.param(
            '{"VNI": 1, "VtepMAC"',
            '{"VNI": 2, "VtepMAC"',
            "line 9: BackendData.VNI 2 is not the network's VNI 1",
            id="other VNI",
        ),
        pytest.param(
            '"Type": "vxlan"', '"type": "vxlna"', 'line 4: Backend.Type "vxlna": allowed', id="lower case"
        ),
        pytest.param(
            '"VNI": 1}\n',
            '"V\\u004eI": "1"}\n',
            "line 4: network.Backend.VNI: expected an",
            id="escaped name",
        ),
        pytest.param(
            '"192.0.2.2"',
            '"192.0.2.2", "PublicIPv6": 7',
            "line 12: 10.244.2.0/24.PublicIPv6",
            id="in a lease",
        ),
        pytest.param('"VNI": 1}\n', f'"VNI": {"9" * 5000}}}\n', "number of more digits", id="digits"),
        pytest.param('"ipip"\n', '"ipip\n', "line 12: no valid JSON: Invalid control character", id="quote"),
    ],
)
def test_bad_file(old: str, new: str, text: str) -> None:
    """A damaged or wrong file is refused in one line that names the file, the line and what is wrong."""
    assert GOOD.count(old) == 1
    is_damaged = any(words in text for words in ("no valid JSON", "nested", "digits"))
    kind = StoreError if is_damaged else ConfigError
    with pytest.raises(kind, match=re.escape(text)) as caught:
        parse_peers(GOOD.replace(old, new), "peers.json")
    assert str(caught.value).startswith("peers.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("leases", ["[]", "null", '"x"'])
def test_leases_are_an_object(leases: str) -> None:
    """Leases are keyed by subnet."""
    text = GOOD[: GOOD.index('"leases"')] + f'"leases": {leases}}}'
    with pytest.raises(ConfigError, match=r"^peers\.json line 6: leases: expected an object, not "):
        parse_peers(text)


# --- open_store() ---------------------------------------------------------------------------------------


def test_open_store(tmp_path: Path) -> None:
    """A store is opened by its URL, before anything is read; its subnets are assigned already."""
    store = open_store(RunConfig(store=f"file://{tmp_path}/none%20such.json"))
    assert isinstance(store, FileStore)
    assert not isinstance(store, LeaseStore)
    with pytest.raises(StoreError, match="No such file"):
        asyncio.run(first_of(store))


@pytest.mark.parametrize("url", ["http:///x", "file://host/x", "peers.json", "file:peers.json"])
def test_open_store_refuses(url: str) -> None:
    """Only sqlite:///path and file:///path name a store."""
    with pytest.raises(
        ConfigError, match=re.escape(f'store "{url}": allowed are sqlite:///path and file:///path')
    ):
        open_store(RunConfig(store=url))


# --- FileStore ------------------------------------------------------------------------------------------


async def first_of(store: FileStore) -> Event:
    """Return the first event."""
    try:
        return await anext(store.events())
    finally:
        await store.close()


async def soon(events: AsyncIterator[Event]) -> Event:
    """Return the next event, which must come."""
    return await asyncio.wait_for(anext(events), 10)


def content(revision: int, text: str = GOOD) -> Listed:
    """Return what a file with this text says."""
    network, leases = parse_peers(text)
    return listed(*leases, network=network, revision=revision)


def rename(path: Path, text: str) -> None:
    """Replace a file as editors do."""
    new = path.with_name(".peers.json.swp")
    new.write_text(text)
    new.rename(path)


def write(path: Path, text: str) -> None:
    """Write a file in place."""
    path.write_text(text)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of a good peers file."""
    path = tmp_path / "peers.json"
    path.write_text(GOOD)
    return path


EDITS = pytest.mark.parametrize("edit", [pytest.param(write, id="write"), pytest.param(rename, id="rename")])


def test_first_event(path: Path) -> None:
    """The first event is the whole list, which says when it was read."""
    begun_s = time.monotonic()
    first = asyncio.run(first_of(FileStore(path)))
    assert isinstance(first, Listed)
    assert first == listed(*LEASES, network=NETWORK)
    assert first.read_s is not None
    assert begun_s <= first.read_s <= time.monotonic()


def test_byte_order_mark(path: Path) -> None:
    """Some editors write a byte order mark; it says nothing."""
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert asyncio.run(first_of(FileStore(path))) == listed(*LEASES, network=NETWORK)


@EDITS
def test_edit(path: Path, edit: Callable[[Path, str], None]) -> None:
    """Each edit yields the whole list under the next revision, however the file was written."""

    async def scenario() -> None:
        store = FileStore(path)
        events = store.events()
        assert await soon(events) == content(1)
        for revision, text in ((2, OTHER), (3, GOOD)):
            edit(path, text)
            assert await soon(events) == content(revision, text)
        await store.close()

    asyncio.run(scenario())


@EDITS
@pytest.mark.parametrize(
    ("mended", "revision"), [pytest.param(GOOD, 1, id="as before"), pytest.param(OTHER, 2, id="otherwise")]
)
def test_broken_edit(path: Path, edit: Callable[[Path, str], None], mended: str, revision: int) -> None:
    """A broken edit is refused with its line; mending it yields a list, also when it says what it said."""

    async def scenario() -> None:
        store = FileStore(path)
        events = store.events()
        await soon(events)
        edit(path, BROKEN)
        rejected = await soon(events)
        assert isinstance(rejected, Rejected)
        assert rejected.revision == 1
        assert rejected.reason.startswith("peers.json line 13: no valid JSON")
        edit(path, mended)
        assert await soon(events) == content(revision, mended)
        await store.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "remove",
    [
        pytest.param(Path.unlink, id="delete"),
        pytest.param(lambda path: path.rename(path.with_suffix(".old")), id="rename away"),
    ],
)
def test_deletion(path: Path, remove: Callable[[Path], object]) -> None:
    """A file that goes is refused as an edit is: the cluster is not gone with it."""

    async def scenario() -> None:
        store = FileStore(path)
        events = store.events()
        await soon(events)
        remove(path)
        assert await soon(events) == Rejected(1, f"cannot read {path}: No such file or directory")
        write(path, GOOD)
        assert await soon(events) == content(1)
        await store.close()

    asyncio.run(scenario())


def test_other_files(path: Path) -> None:
    """What happens to other files, or changes nothing in what ours says, is no event."""

    async def scenario() -> None:
        store = FileStore(path)
        events = store.events()
        await soon(events)
        other = path.with_name("other.json")
        write(other, BROKEN)
        rename(other, GOOD)
        other.unlink()
        path.with_name("dir").mkdir()
        write(path, GOOD + "\n")
        path.touch()
        write(path, OTHER)  # the first event there is
        assert await soon(events) == content(2, OTHER)
        await store.close()

    asyncio.run(scenario())


def test_events_again(path: Path) -> None:
    """Reading from the beginning yields the list again, under a revision that has grown."""

    async def scenario() -> None:
        store = FileStore(path)
        assert await soon(store.events()) == content(1)
        events = store.events()
        assert await soon(events) == content(2)
        write(path, OTHER)
        assert await soon(events) == content(3, OTHER)
        await store.close()
        await store.close()

    asyncio.run(scenario())


def test_recovers_from_a_bad_start(path: Path) -> None:
    """After an error at the start the same store can be read again, once the file is mended."""

    async def scenario() -> None:
        store = FileStore(path)
        write(path, BROKEN)
        with pytest.raises(StoreError, match="line 13"):
            await soon(store.events())
        write(path, GOOD)
        assert await soon(store.events()) == content(1)
        await store.close()

    asyncio.run(scenario())


def make_missing(path: Path) -> None:
    """Leave nothing."""
    path.unlink()


def make_missing_directory(path: Path) -> None:
    """Leave not even the directory."""
    path.unlink()
    path.parent.rmdir()


def make_unreadable(path: Path) -> None:
    """Leave a link to itself, which even root cannot read."""
    path.unlink()
    path.symlink_to(path)


def make_directory(path: Path) -> None:
    """Leave a directory of that name."""
    path.unlink()
    path.mkdir()


def make_fifo(path: Path) -> None:
    """Leave a pipe of that name, which nobody writes to."""
    path.unlink()
    os.mkfifo(path)


def make_too_large(path: Path) -> None:
    """Leave a file of one byte too many, with holes."""
    os.truncate(path, FILE_MAX + 1)


def make_latin1(path: Path) -> None:
    """Leave a file in another encoding."""
    path.write_bytes(GOOD.encode().replace(b'"leases"', b'"l\xe9ases"'))


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        pytest.param(make_missing, "cannot read {path}: No such file or directory", id="missing"),
        pytest.param(
            make_missing_directory, "cannot read {path}: No such file or directory", id="no directory"
        ),
        pytest.param(
            make_unreadable, "cannot read {path}: Too many levels of symbolic links", id="unreadable"
        ),
        pytest.param(make_directory, "{path} is no regular file", id="directory"),
        pytest.param(make_fifo, "{path} is no regular file", id="pipe"),
        pytest.param(make_too_large, "{path} is larger than 16 MiB", id="too large"),
        pytest.param(make_latin1, "peers.json line 6: no valid UTF-8", id="not UTF-8"),
    ],
)
def test_bad_start(path: Path, spoil: Callable[[Path], None], text: str) -> None:
    """A file that cannot be used at the start is an error that says which and why, and holds nothing up."""
    spoil(path)
    expected = text.format(path=path, parent=path.parent)
    with pytest.raises(StoreError, match=f"^{re.escape(expected)}$"):
        asyncio.run(asyncio.wait_for(first_of(FileStore(path)), 10))
