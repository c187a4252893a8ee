# SPDX-License-Identifier: Apache-2.0
"""The last state in a file: what is written is read; what is damaged or hostile is refused as a whole."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest

from dataplane import flannel, laststate
from dataplane.config import RunConfig
from dataplane.errors import RuntimeFailure
from dataplane.flannel import format_key
from dataplane.laststate import (
    FORMAT,
    MAGIC,
    Clocks,
    LastState,
    StoreName,
    format_state,
    load,
    name_store,
    parse_state,
    read_peers,
    save,
    write_peers,
)
from dataplane.model import Encap, Entry, Lease, MacAddress, SubnetKey
from tests.crash import DIED, write_up_to
from tests.leases import dual, entry, lease, only6

NETWORK = flannel.parse_network(
    {
        "Network": "10.244.0.0/16",
        "SubnetMin": "10.244.1.0",
        "EnableIPv6": True,
        "IPv6Network": "fd00:244::/48",
        "Backend": {"Type": "vxlan", "VNI": 7, "Port": 4789, "MTU": 1400, "DirectRouting": True},
    }
)
CLOCKS = Clocks(1000.0, 1.8e9)
LATER = Clocks(50.0, 1.8e9 + 600)  # after a reboot
STORE = StoreName(("http://192.0.2.10:2379", "http://192.0.2.11:2379"), "/coreos.com/network")
PEERS = (
    entry(replace(lease(2), vni=7), created=3, changed=9, expires_s=1300.0),
    entry(dual(3), created=4, changed=4),
    entry(replace(only6(4), vni=7), created=5, changed=5, expires_s=math.inf),
    entry(lease(5, Encap.IPIP), expires_s=900.0),
    entry(lease(6, Encap.FLANNEL_UDP), created=7),
    entry(lease(7, Encap.DIRECT), created=8),
)
ROWS = write_peers(PEERS, CLOCKS)
STATE = LastState(
    STORE, CLOCKS.wall_s, "cdf8", 12, NETWORK, entry(lease(1), created=1, changed=11, expires_s=4600.0), ROWS
)
TEXT = format_state(STATE, CLOCKS)


def test_what_is_written_is_read() -> None:
    """All of it, with ends of leases by the clock of who reads: after 600 s what had 300 s is over."""
    assert parse_state(TEXT.encode(), CLOCKS) == STATE
    assert read_peers(STATE, CLOCKS) == PEERS
    assert read_peers(STATE, CLOCKS, {PEERS[3].name}) == (PEERS[3],)
    assert STATE.names() == {found.name for found in PEERS}
    found = parse_state(TEXT.encode(), LATER)
    peers = read_peers(found, LATER)
    assert [left.left_s(LATER.monotonic_s) for left in peers] == [-300, None, None, -700, None, None]
    assert found.own.left_s(LATER.monotonic_s) == 3000
    assert [left.expires_s for left in peers[1:3]] == [None, math.inf]
    assert replace(found, own=STATE.own) == STATE


@pytest.mark.parametrize(
    "fields",
    [
        {"Network": "10.0.0.0/8", "SubnetLen": 26, "SubnetMax": "10.9.0.0", "Backend": {"Type": "ipip"}},
        {"Network": "10.1.0.0/16", "Backend": {"Type": "udp"}},
        {"Network": "10.1.0.0/16", "Backend": {"Type": "host-gw"}},
        {"Network": "10.1.0.0/16", "Backend": {"Type": "alloc"}},
        {
            "EnableIPv4": False,
            "EnableIPv6": True,
            "IPv6Network": "fd00::/56",
            "IPv6SubnetMin": "fd00:0:0:7::",
            "Backend": {"Type": "vxlan", "VNI": 0},
        },
    ],
    ids=["ipip", "udp", "host-gw", "alloc", "IPv6"],
)
def test_any_network_is_read_as_it_was(fields: dict[str, Any]) -> None:
    """A network config that is written out and read again is the same."""
    network = flannel.parse_network(fields)
    assert flannel.parse_network(json.loads(json.dumps(flannel.network_value(network)))) == network


# --- damage -----------------------------------------------------------------------------------------------


def is_read(raw: bytes) -> bool:
    """Return whether a file is taken; if it is, then for what was written."""
    try:
        found = parse_state(raw, CLOCKS)
    except ValueError:
        return False
    assert found == STATE
    return True


def test_case_131_cut_off_anywhere() -> None:
    """A file that ends too early, wherever, is no state; nor is one that goes on."""
    raw = TEXT.encode()
    assert [end for end in range(len(raw)) if is_read(raw[:end])] == []
    assert is_read(raw)
    assert not is_read(raw + b"\n")


def test_case_131_any_byte_changed() -> None:
    """A file with any byte changed in any bit, or zeroed, is no state."""
    raw = bytearray(TEXT.encode())
    for at, byte in enumerate(raw):
        for other in {byte ^ 1 << bit for bit in range(8)} | {0, 0xFF}:
            raw[at] = other
            assert other == byte or not is_read(bytes(raw)), at
        raw[at] = byte
    assert is_read(bytes(raw))


def test_case_131_half_new_half_old() -> None:
    """The beginning of one state and the end of another, wherever they meet, are no third one."""
    other = replace(STATE, revision=13, own=replace(STATE.own, changed=13))
    old, new = TEXT.encode(), format_state(other, CLOCKS).encode()
    for at in range(1, len(new)):
        mixed = new[:at] + old[at:]
        assert mixed in (old, new) or not is_read(mixed)


def test_case_131_crash_in_the_middle_of_a_write(tmp_path: Path) -> None:
    """Wherever writing breaks off, the file is the old state or the new one."""
    path = tmp_path / "state" / "last-state"
    other = replace(STATE, revision=13)
    size = len(format_state(other, CLOCKS))
    for cut in (*range(0, size, 149), size - 1, size):
        save(path, STATE, CLOCKS)
        code = write_up_to(cut, lambda: save(path, other, CLOCKS))
        assert code == (0 if cut == size else DIED)
        assert load(path, CLOCKS) == (other if cut == size else STATE)


# --- hostile ----------------------------------------------------------------------------------------------


def sealed(text: str, version: object = FORMAT) -> bytes:
    """Return a file whose checksum is right."""
    return f"{MAGIC} {version} {hashlib.sha256(text.encode()).hexdigest()}\n{text}".encode()


def changed(**fields: object) -> bytes:
    """Return the file with some fields changed, or taken away, by who can compute checksums."""
    body = json.loads(TEXT.partition("\n")[2]) | fields
    return sealed(json.dumps({name: value for name, value in body.items() if value is not ...}))


OWN = json.loads(TEXT.partition("\n")[2])["own"]
HOSTILE = {
    "nothing": (b"", "no state"),
    "other file": (b"FLANNEL_MTU=1450\n", "no state"),
    "another format": (sealed("{}", 2), "another format"),
    "no JSON": (sealed("{"), "no JSON"),
    "deep": (sealed("[" * 100_000), "no JSON"),
    "digits": (sealed("1" * 5000), "no JSON"),
    "no object": (sealed("[]"), "expected an object"),
    "unknown": (changed(more=1), 'unknown field "more"'),
    "missing": (changed(own=...), '"own" is missing'),
    "network": (changed(network={"Network": "0.0.0.0/0"}), "unusable length"),
    "no own": (changed(own=None), "a lease is none"),
    "own elsewhere": (changed(own=["10.9.1.0-24", *OWN[1:]]), "not of its network"),
    "peers": (changed(peers={}), "expected a list"),
    "peer": (changed(peers=[["10.244.2.0-24"]]), "a lease is none"),
    "name": (changed(peers=[["x\ny", *OWN[1:]]]), "is no subnet"),
    "nameless": (changed(peers=[[[], *OWN[1:]]]), "a lease is none"),
    "twice": (changed(peers=[OWN]), "twice"),
    "loopback": (
        changed(peers=[["10.244.2.0-24", OWN[1].replace("192.0.2.1", "127.0.0.1"), 1, 1, None]]),
        "lo",
    ),
    "revision": (changed(revision=-1), "out of range"),
    "true": (changed(revision=True), "expected an integer"),
    "created": (changed(peers=[["10.244.2.0-24", OWN[1], 1.5, 1, None]]), "expected an integer"),
    "end": (changed(peers=[["10.244.2.0-24", OWN[1], 1, 1, "soon"]]), "a time is none"),
    "endless": (changed(own=[*OWN[:4], 1e300]), "a time is none"),
    "written": (changed(written=None), "a time is none"),
    "written true": (changed(written=True), "a time is none"),
    "written before": (changed(written=-1), "a time is none"),
    "written never": (changed(written=math.nan), "a time is none"),
    "store": (changed(store="etcd"), "expected places"),
    "no store": (changed(store=None), "expected places"),
    "store of three": (changed(store=[[], "", ""]), "expected places"),
    "places": (changed(store=["x", ""]), "expected places"),
    "place": (changed(store=[[1], ""]), "expected a string"),
    "identity": (changed(identity=[]), "expected a string"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_contents(name: str) -> None:
    """Whoever can write the file gets nothing in that a store could not say, and no traceback."""
    raw, why = HOSTILE[name]
    with pytest.raises(ValueError, match=why) as caught:
        read_peers(parse_state(raw, CLOCKS), CLOCKS)
    assert "\n" not in str(caught.value)


def test_odd_files(tmp_path: Path) -> None:
    """Links, folders, files that others may write to and damaged ones are refused by name; none is none."""
    path = tmp_path / "last-state"
    assert load(path, CLOCKS) is None
    save(path, STATE, CLOCKS)
    assert path.stat().st_mode & 0o777 == 0o600
    link = tmp_path / "link"
    link.symlink_to(path)
    for bad in (link, tmp_path):
        with pytest.raises(RuntimeFailure, match=str(bad)):
            load(bad, CLOCKS)
    path.chmod(0o620)
    with pytest.raises(RuntimeFailure, match="can be written to by others"):
        load(path, CLOCKS)
    path.chmod(0o600)
    os.truncate(path, 100)
    with pytest.raises(RuntimeFailure, match=f"^{path}: it is "):
        load(path, CLOCKS)


def test_somebody_elses_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that belongs to another user, or is larger than any state, is refused; then ours is read."""
    path = tmp_path / "last-state"
    save(path, STATE, CLOCKS)
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
        with pytest.raises(RuntimeFailure, match="can be written to by others"):
            load(path, CLOCKS)
    with monkeypatch.context() as patch:
        patch.setattr(laststate, "BYTES_MAX", path.stat().st_size - 1)
        with pytest.raises(RuntimeFailure, match="is larger than"):
            load(path, CLOCKS)
    monkeypatch.setattr(laststate, "BYTES_MAX", path.stat().st_size)
    assert load(path, CLOCKS) == STATE


# --- which store ------------------------------------------------------------------------------------------


def test_which_store() -> None:
    """The same file or URL; of etcd one endpoint in common, and the same prefix."""
    etcd = RunConfig(store="etcd", etcd_endpoints=("https://a:1", "https://b:1"))
    moved = replace(etcd, etcd_endpoints=("https://b:1", "https://c:1"))
    assert name_store(etcd).is_same(name_store(moved))
    assert not name_store(etcd).is_same(name_store(replace(etcd, etcd_endpoints=("https://c:1",))))
    assert not name_store(etcd).is_same(name_store(replace(etcd, etcd_prefix="/other")))
    assert not name_store(etcd).is_same(name_store(RunConfig(store="file:///x")))
    assert name_store(RunConfig(store="file:///x")).is_same(name_store(RunConfig(store="file:///x")))
    assert "https://a:1,https://b:1/coreos.com/network" in str(name_store(etcd))


@pytest.mark.soak
def test_many_peers(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """10 000 peers take a few megabytes, and less than a second each way."""
    peers = tuple(
        Entry(
            format_key(key := SubnetKey(IPv4Network((0x0A000000 + 16 * n, 28)))),
            Lease(
                *(key, IPv4Address(0xC6120000 + n), None, Encap.VXLAN),
                vtep_mac=MacAddress(n.to_bytes(6, "big")[:-1] + b"\2"),
                vni=7,
            ),
            created=n,
            changed=n,
        )
        for n in range(1, 10_001)
    )
    network = replace(NETWORK, network=IPv4Network("10.0.0.0/8"))
    many = replace(STATE, network=network)
    begun_s = time.process_time()
    save(tmp_path / "many", replace(many, peers=write_peers(peers, CLOCKS)), CLOCKS)
    saved_s = time.process_time()
    found = load(tmp_path / "many", CLOCKS)
    assert found is not None
    loaded_s = time.process_time()
    assert read_peers(found, CLOCKS) == peers
    read_s = time.process_time()
    with capsys.disabled():
        print(
            f" {(tmp_path / 'many').stat().st_size} bytes, written in {saved_s - begun_s:.2f} s, "
            f"read in {loaded_s - saved_s:.2f} s, its leases in {read_s - loaded_s:.2f} s"
        )
    assert (tmp_path / "many").stat().st_size < 4 << 20
    assert read_s - begun_s < 3.0
