# SPDX-License-Identifier: Apache-2.0
"""The door to the C engine: what goes through it comes back the same, and errors say what was tried."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane import native
from dataplane.engine import Engine
from dataplane.errors import ControlError, KernelError
from dataplane.message import BYTES_MAX, BYTES_MIN, TEXT_MAX, Message
from dataplane.model import Address, Encap, MacAddress, Peer, SubnetEntry, Table, tier_text
from dataplane.slots import Fd

MAC = MacAddress(bytes.fromhex("02aabbccddee"))
CONFIG = native.ForwarderConfig(
    vni=0xFFFFFF,
    vxlan_port=8472,
    underlay_ifindex=7,
    tun_mtu=1450,
    tier=7,
    vnet_hdr_len=12,
    icmp_per_s=1000,
    icmp_burst=50,
    underlay4=IPv4Address("192.0.2.1"),
    underlay6=IPv6Address("2001:db8::1"),
    vtep_mac4=MAC,
    vtep_mac6=MacAddress(bytes.fromhex("02aabbccddef")),
    encaps=frozenset({Encap.VXLAN, Encap.IPIP, Encap.FLANNEL_UDP}),
    bare_port=8285,
    spoof_observe=True,
    reserved_ignore=True,
    dscp_inherit=True,
    ttl_inherit=True,
    outer_ttl=255,
)
TABLE = Table(
    peers=(
        Peer(3, (IPv4Address("192.0.2.3"), IPv6Address("2001:db8::3"))),
        Peer(4, (IPv4Address("192.0.2.4"),)),
    ),
    subnets=(
        SubnetEntry(IPv4Network("10.244.3.0/24"), 3, Encap.VXLAN, IPv4Address("192.0.2.3"), MAC, 1400),
        SubnetEntry(
            *(IPv4Network("10.244.4.0/24"), 4, Encap.IPIP, IPv4Address("192.0.2.4"), None),
            is_unreachable=True,
        ),
        SubnetEntry(IPv6Network("fd00:3::/64"), 3, Encap.VXLAN, IPv6Address("2001:db8::3"), MAC),
    ),
    own=(IPv4Network("10.244.1.0/24"),),
    sources=(IPv4Network("10.244.1.0/24"), IPv4Network("192.0.2.1/32")),
)


@pytest.fixture
def fds() -> Iterator[list[int]]:
    """Yield a list whose descriptors are closed in the end."""
    opened: list[int] = []
    yield opened
    for fd in opened:
        os.close(fd)


# --- table ------------------------------------------------------------------------------------------


def test_fib_reads_back_what_was_built(fds: list[int]) -> None:
    """Peers and subnets of a snapshot are those of the table, with its generation."""
    fds.append(native.fib_create(TABLE, 42))
    generation, table = native.read_fib(fds[0])
    assert generation == 42
    assert set(table.peers) == set(TABLE.peers)
    assert set(table.subnets) == set(TABLE.subnets)


def test_fib_reads_back_an_empty_table(fds: list[int]) -> None:
    """A node without peers has a table, too."""
    fds.append(native.fib_create(Table(), 1))
    assert native.read_fib(fds[0]) == (1, Table())


def test_fib_is_equal_only_with_the_same_content(fds: list[int]) -> None:
    """Order does not matter; every part that the forwarder looks at does."""
    fds.append(native.fib_create(TABLE, 1))
    shuffled = Table(
        TABLE.peers[::-1], TABLE.subnets[::-1], TABLE.own[::-1], TABLE.sources[::-1], TABLE.allowed
    )
    others = [
        (shuffled, 1, True),
        (TABLE, 2, False),
        (Table(TABLE.peers, TABLE.subnets, TABLE.own), 1, False),
        (Table(TABLE.peers, TABLE.subnets, TABLE.own, TABLE.sources, TABLE.own), 1, False),
        (Table(TABLE.peers, TABLE.subnets[:2], TABLE.own, TABLE.sources), 1, False),
    ]
    for table, generation, is_same in others:
        fds.append(native.fib_create(table, generation))
        assert native.fib_equal(fds[0], fds[-1]) is is_same


def test_fib_of_10000_peers_is_built_quickly(fds: list[int]) -> None:
    """A full table is packed in well under the time in which anybody would notice."""
    peers, subnets = [], []
    for i in range(10_000):
        vtep = IPv4Address(0xC6120000 + i)
        peers.append(Peer(i, (vtep,)))
        subnets.append(SubnetEntry(IPv4Network((0x0A000000 + (i << 8), 24)), i, Encap.VXLAN, vtep, MAC))
    table = Table(tuple(peers), tuple(subnets))
    took_s = []
    for generation in range(3):
        start_s = time.thread_time()
        fds.append(native.fib_create(table, generation))
        took_s.append(time.thread_time() - start_s)
    # 30 ms on the slowest machine seen; the bound leaves room for a busier one.
    assert min(took_s) < 0.1
    assert len(native.read_fib(fds[-1])[1].peers) == 10_000


def test_fib_refuses_a_peer_id_out_of_range() -> None:
    """The C side's refusal arrives as one line that names what was tried."""
    with pytest.raises(KernelError, match="building the table") as caught:
        native.fib_create(Table(peers=(Peer(native.MAX_PEERS, (IPv4Address("192.0.2.9"),)),)), 1)
    assert "\n" not in str(caught.value)


def test_fib_refuses_what_is_no_snapshot(fds: list[int]) -> None:
    """A file that is not sealed is not read."""
    fds.append(os.memfd_create("junk"))
    os.ftruncate(fds[0], 4096)
    with pytest.raises(KernelError):
        native.read_fib(fds[0])


addresses4 = st.builds(IPv4Address, st.integers(1, 2**32 - 1))
addresses6 = st.builds(IPv6Address, st.integers(1, 2**128 - 1))


@given(st.lists(st.tuples(addresses4, st.none() | addresses6), max_size=20, unique_by=lambda pair: pair[0]))
def test_fib_keeps_every_address(pairs: list[tuple[IPv4Address, IPv6Address | None]]) -> None:
    """Any address of a peer comes back bit for bit."""
    used: set[Address] = set()
    peers = []
    for i, (addr4, addr6) in enumerate(pairs):
        found: tuple[Address, ...] = (addr4,)
        if addr6 is not None and addr6 not in used:
            found = (addr4, addr6)
        used.update(found)
        peers.append(Peer(i, found))
    fd = native.fib_create(Table(peers=tuple(peers)), 1)
    try:
        assert set(native.read_fib(fd)[1].peers) == set(peers)
    finally:
        os.close(fd)


# --- counters ---------------------------------------------------------------------------------------


def test_counters_begin_at_nothing(fds: list[int]) -> None:
    """New counters say 0 for everything, for as many peers as there are ids."""
    fds.append(native.counters_create())
    with native.Counters(fds[0]) as counters:
        totals = counters.totals()
        assert (totals.tx.offered, totals.rx.offered, totals.tx.drops, totals.rx.last) == (0, 0, {}, {})
        assert set(totals.queue_drops) == set(Fd)
        assert counters.peer(native.MAX_PEERS - 1) == native.PeerCounters(0, 0, 0, 0, {})
        header = counters.header()
        assert (header.threads, header.max_peers, header.restarts) == (1, native.MAX_PEERS, 0)
        assert 0 <= native.boottime_s() - header.start_s < 60


def test_counters_refuse_a_peer_id_out_of_range(fds: list[int]) -> None:
    """There is no peer beyond the room that was made."""
    fds.append(native.counters_create(1, 8))
    with native.Counters(fds[0]) as counters, pytest.raises(KernelError, match="peer 8"):
        counters.peer(8)


def test_counters_cannot_be_read_when_closed(fds: list[int]) -> None:
    """A closed view says so instead of reading memory that is gone; closing twice is fine."""
    fds.append(native.counters_create())
    counters = native.Counters(fds[0])
    counters.close()
    counters.close()
    with pytest.raises(ValueError, match="closed"):
        counters.totals()


# --- messages ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [CONFIG, native.ForwarderConfig(0, 0, 0, 0)], ids=["full", "empty"])
def test_message_survives_the_wire(config: native.ForwarderConfig) -> None:
    """Packed and unpacked, a message is the same in every field."""
    message = Message(
        native.MessageType.GO,
        epoch=2**63,
        seq=2**32 - 1,
        error=-5,
        fd_mask=0x1FF,
        state=native.State.QUIESCED,
        generation=2**64 - 1,
        pid=4711,
        config=config,
        text="no such thing",
    )
    assert len(message.pack()) == native.MESSAGE_BYTES
    assert Message.unpack(message.pack()) == message


def test_message_text_is_cut_to_its_room() -> None:
    """A text that does not fit ends early and still ends with a NUL."""
    unpacked = Message.unpack(Message(native.MessageType.GO, text="x" * 500).pack())
    assert set(unpacked.text) == {"x"}
    assert len(unpacked.text) < TEXT_MAX


@pytest.mark.parametrize("size", [0, 1, BYTES_MIN - 1, BYTES_MAX + 1])
def test_message_of_another_size_is_refused(size: int) -> None:
    """Only what can be one whole message of a version next to ours is read."""
    with pytest.raises(ControlError, match=f"of {size} bytes"):
        Message.unpack(bytes(size))


@pytest.mark.parametrize(("offset", "what"), [(0, "version"), (4, "version"), (6, "sense"), (64, "sense")])
def test_message_of_another_version_is_refused(offset: int, what: str) -> None:
    """Magic, version, type and state must be ones we know."""
    data = bytearray(Message(native.MessageType.HELLO).pack())
    data[offset] ^= 0xFF
    with pytest.raises(ControlError, match=what):
        Message.unpack(bytes(data))


# --- names, devices, the engine ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tier", "text"),
    [
        *((511, "full"), (0, "plain"), (511 - 16, "full but tun-uso")),
        (4 + 64, "full but tun-vnet, tun-csum, tun-tso, tun-uso, udp-gso, tun-gro, tun-ugro"),
    ],
)
def test_tier_has_a_name(tier: int, text: str) -> None:
    """Every mask of offloads has the name that the documentation gives it."""
    assert tier_text(tier) == text


def test_names_are_unique_and_plain() -> None:
    """Drop reasons and encapsulations can be used as keys, and agree with the model."""
    assert len(set(native.DROP_NAMES)) == len(native.DROP_NAMES)
    assert all(name.replace("_", "").isalpha() for name in native.DROP_NAMES)
    assert [name.replace("-", "_").upper() for name in native.ENCAP_NAMES] == [encap.name for encap in Encap]


def test_tun_name_that_is_too_long_is_refused() -> None:
    """A name the kernel could not hold raises, and nothing is opened."""
    with pytest.raises(KernelError, match="TUN device aaaaaaaaaaaaaaaa: Invalid argument"):
        native.tun_open("a" * 16, 0)


def test_underlay_refuses_a_role_that_is_no_socket() -> None:
    """Only the sockets of the underlay are opened."""
    with pytest.raises(KernelError, match="tun socket on lo"):
        native.underlay_open(Fd.TUN, CONFIG, "lo", 4096)


def test_engine_refuses_missing_descriptors() -> None:
    """An engine without TUN, counters and table is not made."""
    with pytest.raises(KernelError, match="creating the engine"):
        Engine(CONFIG, {})


def test_engine_runs_and_ends(fds: list[int]) -> None:
    """An engine starts, takes a table, parks, resumes and closes; its counters tell the table in force."""
    fds.append(native.counters_create(1, 16))
    fds.append(native.fib_create(TABLE, 5))
    fds.extend(os.pipe2(os.O_NONBLOCK))  # a pipe that stays empty stands for the device
    given_fds: dict[int, int] = {Fd.COUNTERS: fds[0], Fd.FIB: fds[1], Fd.TUN: fds[2]}
    with Engine(CONFIG, given_fds) as engine, native.Counters(fds[0]) as counters:
        engine.start()
        assert (counters.header().generation, counters.header().forwarder_pid) == (5, os.getpid())
        fds.append(native.fib_create(TABLE, 6))
        engine.publish(fds[-1])
        assert counters.header().generation == 6
        engine.quiesce()
        engine.resume()
    engine.close()
    with pytest.raises(ValueError, match="closed"):
        engine.start()
