# SPDX-License-Identifier: Apache-2.0
"""The table: what is built is what is looked up, and nothing damaged is ever opened."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import struct
from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path

import pytest

from tests.oracle import packed
from tests.probe import Fib, Prefix, Spec, Subnet, ffi, fib_create, lib

SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
MAX_PEERS = lib.DP_MAX_PEERS
SECTIONS = 1 + 4 * 2 * 5  # subnets; first addresses, answers, nodes and buckets of each table
ROOTS = 4 * 8 + 16 * SECTIONS  # where the entries for lookups to begin with lie in a snapshot
SEARCHED, NODE = 1 << 31, 3 << 30  # an entry says: search ranges, or go on in a node
SPEC = Spec(
    peers=[(3, "192.0.2.3", "2001:db8::3"), (4, "192.0.2.4", None), (MAX_PEERS - 1, None, "2001:db8::5")],
    subnets=[
        Subnet(ip_network("10.244.3.0/24"), 3, "192.0.2.3", mtu=1400),
        Subnet(ip_network("10.244.4.0/24"), 4, "192.0.2.4"),
        Subnet(ip_network("10.244.4.128/25"), 3, "192.0.2.3"),
        Subnet(ip_network("fd00:3::/64"), 3, "2001:db8::3"),
        Subnet(ip_network("fd00:5::/64"), MAX_PEERS - 1, "2001:db8::5"),
        Subnet(ip_network("10.9.0.0/16"), 4, "192.0.2.4"),
    ],
    own=[ip_network("10.244.1.0/24"), ip_network("fd00:1::/64")],
    sources=[ip_network("10.244.1.0/24"), ip_network("192.0.2.1/32"), ip_network("fd00:1::/64")],
    allowed=[ip_network("172.16.0.0/12"), ip_network("fd77::/16")],
    generation=2**63 + 5,
)


@pytest.fixture
def fds() -> Iterator[list[int]]:
    """Yield a list whose descriptors are closed in the end."""
    opened: list[int] = []
    yield opened
    for fd in opened:
        os.close(fd)


@pytest.fixture
def snapshot(fds: list[int]) -> bytes:
    """Return the bytes of a good snapshot."""
    fds.append(fib_create(SPEC))
    return os.pread(fds[-1], 1 << 20, 0)


def memfd(data: bytes, seals: int = SEALS) -> int:
    """Put bytes into a sealed memfd, as somebody with bad intentions could."""
    fd = os.memfd_create("snapshot", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, data)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def refusal(fd: int) -> str | None:
    """Open a snapshot; return the name of the errno, None if it was accepted."""
    try:
        with Fib(fd):
            return None
    except OSError as error:
        return errno.errorcode[error.errno or 0]


# --- lookups ------------------------------------------------------------------------------------------


@pytest.fixture
def fib(fds: list[int]) -> Iterator[Fib]:
    """Yield the table of SPEC."""
    fds.append(fib_create(SPEC))
    with Fib(fds[-1]) as opened:
        yield opened


@pytest.mark.parametrize(
    ("address", "index"),
    [
        ("10.244.3.0", 0),
        ("10.244.3.255", 0),
        ("10.244.4.127", 1),
        ("10.244.4.128", 2),
        ("fd00:3::1", 3),
        ("fd00:5::ffff:ffff:ffff:ffff", 4),
        ("10.244.2.255", None),
        ("10.244.5.0", None),
        ("10.244.1.5", None),
        ("192.0.2.3", None),
        ("fd00:4::1", None),
        ("::10.244.3.1", None),
        ("0.0.0.0", None),
        ("255.255.255.255", None),
        ("::", None),
        ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", None),
    ],
)
def test_destination_has_the_longest_subnet(fib: Fib, address: str, index: int | None) -> None:
    """An inner destination finds the entry of the longest subnet that holds it, or none."""
    assert fib.subnet(packed(address)) == index


@pytest.mark.parametrize(
    ("address", "peer"),
    [
        ("192.0.2.3", 3),
        ("192.0.2.4", 4),
        ("2001:db8::3", 3),
        ("2001:db8::5", MAX_PEERS - 1),
        ("192.0.2.2", None),
        ("192.0.2.5", None),
        ("0.0.0.0", None),
        ("2001:db8::4", None),
        ("::192.0.2.3", None),
        ("::ffff:192.0.2.3", None),
    ],
)
def test_outer_source_is_one_peer(fib: Fib, address: str, peer: int | None) -> None:
    """An underlay address belongs to exactly the peer that has it, in its own family."""
    assert fib.peer(packed(address)) == peer


@pytest.mark.parametrize(
    ("address", "lists"),
    [
        ("10.244.1.5", {"own", "sources"}),
        ("fd00:1::5", {"own", "sources"}),
        ("192.0.2.1", {"sources"}),
        ("172.16.0.1", {"sources", "allowed"}),
        ("172.31.255.255", {"sources", "allowed"}),
        ("fd77:1::", {"sources", "allowed"}),
        ("10.244.2.1", set()),
        ("192.0.2.0", set()),
        ("172.32.0.0", set()),
        ("fd00:2::1", set()),
    ],
)
def test_lists_hold_what_they_were_given(fib: Fib, address: str, lists: set[str]) -> None:
    """Own subnets, valid sources and --allow-source are three lists; the second includes the third."""
    assert fib.lists(packed(address)) == lists


def test_generation_is_kept(fib: Fib) -> None:
    """All 64 bits of the generation come back."""
    assert fib.generation == SPEC.generation


def test_empty_table_answers_nothing(fds: list[int]) -> None:
    """A node without peers has a table in which nothing is found."""
    fds.append(fib_create(Spec()))
    with Fib(fds[0]) as fib:
        for address in ("10.0.0.1", "::1"):
            assert (fib.subnet(packed(address)), fib.peer(packed(address))) == (None, None)
            assert fib.lists(packed(address)) == set()


def test_default_prefixes(fds: list[int]) -> None:
    """0.0.0.0/0 and ::/0 are prefixes like any other."""
    everything: list[Prefix] = [ip_network("0.0.0.0/0"), ip_network("::/0")]
    fds.append(fib_create(Spec(allowed=everything)))
    with Fib(fds[0]) as fib:
        for address in ("0.0.0.0", "255.255.255.255", "::", "2001:db8::1"):
            assert fib.lists(packed(address)) == {"sources", "allowed"}


def test_same_prefix_in_sources_and_allowed(fds: list[int]) -> None:
    """--allow-source may repeat what is valid anyway."""
    net = ip_network("10.244.1.0/24")
    fds.append(fib_create(Spec(own=[net], sources=[net], allowed=[net])))
    with Fib(fds[0]) as fib:
        assert fib.lists(packed("10.244.1.1")) == {"own", "sources", "allowed"}
        assert fib.lists(packed("10.244.2.1")) == set()


def test_large_table_finds_every_subnet(fds: list[int]) -> None:
    """Each of 5000 subnets is found at both its ends, and each peer at its address."""
    count = 5000
    subnets = [
        Subnet(IPv4Network((0x0A000000 + (i << 8), 24)), i, str(ip_address(0xC6120000 + i)))
        for i in range(count)
    ]
    subnets += [Subnet(IPv6Network((0xFD << 120 | i << 64, 64)), i, "2001:db8::1") for i in range(count)]
    peers = [
        (i, str(ip_address(0xC6120000 + i)), str(ip_address(0x20010DB8 << 96 | i))) for i in range(count)
    ]
    order = random.Random(5).sample(range(count), count)
    fds.append(fib_create(Spec(peers=[peers[i] for i in order], subnets=subnets)))
    with Fib(fds[0]) as fib:
        for index, subnet in enumerate(subnets):
            assert fib.subnet(subnet.prefix[0].packed) == fib.subnet(subnet.prefix[-1].packed) == index
        for peer_id, addr4, addr6 in peers:
            assert fib.peer(packed(addr4)) == fib.peer(packed(addr6)) == peer_id
        assert fib.subnet((0x0A000000 + (count << 8)).to_bytes(4, "big")) is None


def test_subnets_side_by_side_are_answered_at_once(fds: list[int]) -> None:
    """Where a network is divided evenly each subnet has a bucket, which says the answer itself."""
    subnets = [Subnet(IPv4Network((0x0A000000 + (i << 8), 24)), i) for i in range(1000)]
    fds.append(fib_create(Spec(subnets=[*subnets, Subnet(ip_network("192.168.7.0/24"), 7)])))
    data = os.pread(fds[0], 1 << 20, 0)
    offset, count = struct.unpack_from("=QQ", data, _section(31))
    entries = struct.unpack_from(f"={count}I", data, offset)
    assert set(range(1, 1001)) <= set(entries)
    assert sum(entry >= SEARCHED for entry in entries) <= 4  # around the one that is far away
    assert count < 1100


@pytest.mark.parametrize(("count", "most"), [(0, 2048), (10, 8192), (1000, 200 << 10)])
def test_table_takes_little_room(fds: list[int], count: int, most: int) -> None:
    """A snapshot grows with what is in it: subnets far from each other, which need the most."""
    dice = random.Random(7)
    peers = [(i, str(ip_address(dice.getrandbits(32))), None) for i in range(count)]
    subnets = [Subnet(IPv4Network((dice.getrandbits(24) << 8, 24)), i) for i in range(count)]
    fds.append(fib_create(Spec(peers=peers, subnets=subnets)))
    assert os.fstat(fds[0]).st_size <= most


# --- building -----------------------------------------------------------------------------------------


def _spec(**fields: object) -> object:
    return ffi.new("struct dp_table_spec *", fields)


@pytest.mark.parametrize(
    ("family", "address", "length"),
    [
        (4, "0a000001", 24),
        (4, "0a000001", 31),
        (4, "80000000", 0),
        (4, "0a000000", 33),
        (4, "00000000", 33),
        (4, "0a000000", 128),
        (4, "0a000000", 255),
        (6, "fd" + "00" * 14 + "01", 127),
        (6, "fd" + "00" * 15, 7),
        (6, "fd" + "00" * 15, 0),
        (6, "fd" + "00" * 15, 129),
        (6, "00" * 16, 129),
        (0, "00" * 4, 0),
        (5, "0a000000", 8),
        (255, "0a000000", 8),
    ],
)
@pytest.mark.parametrize("where", ["own", "sources", "allowed", "subnets"])
def test_impossible_prefix_is_refused(where: str, family: int, address: str, length: int) -> None:
    """Host bits, lengths beyond the family's and unknown families make no table."""
    prefix = {"addr": {"family": family, "bytes": bytes.fromhex(address)}, "len": length}
    if where == "subnets":
        array = ffi.new("struct dp_subnet[]", [{"prefix": prefix, "vtep": {"family": 4}}])
    else:
        array = ffi.new("struct dp_prefix[]", [prefix])
    assert lib.dp_fib_create(_spec(**{where: array, f"{where}_count": 1})) == -errno.EINVAL


@pytest.mark.parametrize("peer_id", [MAX_PEERS, MAX_PEERS + 1, 2**32 - 1])
def test_peer_id_out_of_range_is_refused(peer_id: int) -> None:
    """There are counters for DP_MAX_PEERS peers, and no more."""
    assert fib_create(Spec(peers=[(peer_id, "192.0.2.3", None)])) == -errno.EINVAL


@pytest.mark.parametrize(
    "wrong",
    [{"peer_id": MAX_PEERS}, {"encap": lib.DP_ENCAP_COUNT}, {"vtep": {"family": 0}}, {"vtep": {"family": 5}}],
    ids=str,
)
def test_impossible_subnet_entry_is_refused(wrong: dict[str, object]) -> None:
    """What the forwarder would refuse is not published in the first place."""
    prefix = {"addr": {"family": 4, "bytes": bytes([10, 0, 0, 0])}, "len": 8}
    good = {"prefix": prefix, "vtep": {"family": 4}}
    array = ffi.new("struct dp_subnet[]", [good | wrong])
    assert lib.dp_fib_create(_spec(subnets=array, subnets_count=1)) == -errno.EINVAL


def test_snapshot_is_sealed(snapshot: bytes, fds: list[int]) -> None:
    """Nobody can change a table that is in force: neither its bytes nor its size, nor the seals."""
    assert fcntl.fcntl(fds[0], fcntl.F_GET_SEALS) & SEALS == SEALS
    with pytest.raises(PermissionError):
        os.pwrite(fds[0], b"x", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(fds[0], 0)
    assert not os.get_inheritable(fds[0])
    assert len(snapshot) == os.fstat(fds[0]).st_size


# --- opening ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["F_SEAL_SEAL", "F_SEAL_SHRINK", "F_SEAL_GROW", "F_SEAL_WRITE"])
def test_snapshot_without_a_seal_is_refused(snapshot: bytes, fds: list[int], missing: str) -> None:
    """What was checked once must stay true, so each seal is needed."""
    fds.append(memfd(snapshot, SEALS & ~getattr(fcntl, missing)))
    assert refusal(fds[-1]) == "EPERM"


def test_copy_of_a_snapshot_is_accepted(snapshot: bytes, fds: list[int]) -> None:
    """The bytes say it all; the tests below damage copies."""
    fds.append(memfd(snapshot))
    assert refusal(fds[-1]) is None


def test_file_that_cannot_be_sealed_is_refused(snapshot: bytes, tmp_path: Path) -> None:
    """A good snapshot in an ordinary file could be cut short under a reader."""
    path = tmp_path / "snapshot"
    path.write_bytes(snapshot)
    with path.open("rb") as file:
        assert refusal(file.fileno()) == "EPERM"


def test_what_is_no_file_is_refused(fds: list[int]) -> None:
    """Descriptors of other kinds are an error, not a crash."""
    fds += os.pipe2(os.O_CLOEXEC)
    fds.append(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
    fds.append(os.open("/", os.O_RDONLY | os.O_CLOEXEC))
    assert {refusal(fd) for fd in fds} == {"EPERM"}


@pytest.mark.parametrize("offset", [0, 8], ids=["magic", "abi"])
def test_other_version_is_refused(snapshot: bytes, fds: list[int], offset: int) -> None:
    """A snapshot of another build is told from a damaged one."""
    fds.append(memfd(snapshot[:offset] + b"\xaa" + snapshot[offset + 1 :]))
    assert refusal(fds[-1]) == "EPROTO"


def test_snapshot_of_another_length_is_refused(snapshot: bytes, fds: list[int]) -> None:
    """Cut at any word, or with anything behind it, it is damaged."""
    for length in [*range(0, len(snapshot), 8), len(snapshot) - 1, len(snapshot) + 1, len(snapshot) + 4096]:
        fd = memfd(snapshot.ljust(length, b"\0")[:length])
        fds.append(fd)
        assert refusal(fd) == "EBADMSG", length


def test_flipped_bit_never_leads_outside(snapshot: bytes, fds: list[int]) -> None:
    """Whichever bit of the header is wrong, the table is refused, or every answer lies inside it."""
    probes = [packed(address) for address in ("0.0.0.0", "10.244.3.1", "255.255.255.255", "::", "fd00:3::1")]
    header_len = ROOTS + 4 * 10
    accepted = 0
    for bit in range(128, header_len * 8):  # behind magic and version
        data = bytearray(snapshot)
        data[bit // 8] ^= 1 << bit % 8
        fd = memfd(bytes(data))
        try:
            if refusal(fd) == "EBADMSG":
                continue
            accepted += 1
            with Fib(fd) as fib:
                found = [fib.subnet(address) for address in probes]
            assert all(index is None or index < len(SPEC.subnets) for index in found)
        finally:
            os.close(fd)
    # The 64 bits of the generation, and few else: sections and roots may lead to what makes sense, too.
    assert 64 <= accepted < 300


def _section(index: int) -> int:
    """Return where a section lies in the header: subnets; starts, values, nodes and index, each [2][5]."""
    return 32 + 16 * index


@pytest.mark.parametrize("index", range(SECTIONS))
@pytest.mark.parametrize("value", [2**64 - 1, 2**63, 2**60, 2**32, 2**32 - 1, 1 << 20], ids=hex)
@pytest.mark.parametrize("field", [0, 8], ids=["offset", "count"])
def test_section_outside_is_refused(
    snapshot: bytes, fds: list[int], index: int, value: int, field: int
) -> None:
    """A section that claims to lie or end outside is refused, also where its size would wrap."""
    at = _section(index) + field
    fds.append(memfd(snapshot[:at] + struct.pack("=Q", value) + snapshot[at + 8 :]))
    assert refusal(fds[-1]) == "EBADMSG"


@pytest.mark.parametrize("index", range(SECTIONS))
def test_misaligned_section_is_refused(snapshot: bytes, fds: list[int], index: int) -> None:
    """Arrays are read through pointers of their type, so they must be aligned."""
    at = _section(index)
    (offset,) = struct.unpack_from("=Q", snapshot, at)
    fds.append(memfd(snapshot[:at] + struct.pack("=Q", offset + 8) + snapshot[at + 8 :]))
    assert refusal(fds[-1]) == "EBADMSG"


@pytest.mark.parametrize("index", range(1, 21))
def test_ranges_and_answers_of_different_number_are_refused(
    snapshot: bytes, fds: list[int], index: int
) -> None:
    """Each range has one answer, and each table at least one range."""
    at = _section(index) + 8
    (count,) = struct.unpack_from("=Q", snapshot, at)
    for other in (0, count + 1, *([count - 1] if count > 1 else [])):
        fds.append(memfd(snapshot[:at] + struct.pack("=Q", other) + snapshot[at + 8 :]))
        assert refusal(fds[-1]) == "EBADMSG"


def _at_section(snapshot: bytes, index: int) -> int:
    """Return where the content of a section lies."""
    return int(struct.unpack_from("=Q", snapshot, _section(index))[0])


@pytest.mark.parametrize("is_v6", [0, 1], ids=["v4", "v6"])
@pytest.mark.parametrize("table", range(5), ids=["dst", "vtep", "own", "src", "allow"])
def test_damaged_ranges_are_refused(snapshot: bytes, fds: list[int], table: int, is_v6: int) -> None:
    """Ranges begin at 0 and ascend, and answers stay within what there is."""
    size = 16 if is_v6 else 4
    starts = _at_section(snapshot, 1 + 5 * is_v6 + table)
    values = _at_section(snapshot, 11 + 5 * is_v6 + table)
    limit = {0: len(SPEC.subnets), 1: MAX_PEERS}.get(table, 1)
    damages = [
        (starts, b"\x01"),  # does not begin at 0
        (starts + size, bytes(size)),  # not ascending
        (values + 4, struct.pack("=I", limit + 1)),
        (values, struct.pack("=I", 2**32 - 1)),
    ]
    for at, damage in damages:
        fds.append(memfd(snapshot[:at] + damage + snapshot[at + len(damage) :]))
        assert refusal(fds[-1]) == "EBADMSG"


def _index_damages(snapshot: bytes) -> dict[str, tuple[int, int]]:
    """Return what can be wrong with the index of IPv4 subnets: where, and the word that is wrong."""
    node, bucket = _at_section(snapshot, 21), _at_section(snapshot, 31)
    ranges, nodes, buckets = (
        struct.unpack_from("=Q", snapshot, _section(index) + 8)[0] for index in (1, 21, 31)
    )
    assert nodes == 1
    assert buckets > 1
    return {
        "root is no answer": (ROOTS, len(SPEC.subnets) + 1),
        "root is no range": (ROOTS, SEARCHED | ranges - 4),
        "root is no node": (ROOTS, NODE | nodes),
        "node begins elsewhere": (node + 16, 1),
        "node is too long": (node + 20, buckets),
        "node is too short": (node + 20, buckets - 2),
        "node is longest": (node + 20, 2**32 - 1),
        "bucket is too large": (node + 24, 32),
        "bucket is no answer": (bucket, len(SPEC.subnets) + 1),
        "bucket is no range": (bucket + 4 * (buckets - 1), SEARCHED | ranges - 4),
        "bucket is far from any range": (bucket, SEARCHED | 2**30 - 1),
        "bucket leads in a circle": (bucket, NODE),
        "bucket is no node": (bucket, NODE | nodes),
        "bucket is far from any node": (bucket, 2**32 - 1),
    }


def test_damaged_index_is_refused(snapshot: bytes, fds: list[int]) -> None:
    """Wherever the index leads is inside of the table, and each lookup comes to an end."""
    for what, (at, word) in _index_damages(snapshot).items():
        fds.append(memfd(snapshot[:at] + struct.pack("=I", word) + snapshot[at + 4 :]))
        assert refusal(fds[-1]) == "EBADMSG", what


def test_last_ranges_may_be_searched(snapshot: bytes, fds: list[int]) -> None:
    """A search of the last ranges that can be searched is inside of the table."""
    (ranges,) = struct.unpack_from("=Q", snapshot, _section(1) + 8)
    fds.append(memfd(snapshot[:ROOTS] + struct.pack("=I", SEARCHED | ranges - 5) + snapshot[ROOTS + 4 :]))
    assert refusal(fds[-1]) is None


SUBNET_LEN = 52


@pytest.mark.parametrize(
    ("what", "damage"),
    [
        ("peer_id", struct.pack("=I", MAX_PEERS)),
        ("encap", b"\x05"),
        ("encap", b"\xff"),
        ("vtep", b"\x00"),
        ("vtep", b"\x05"),
    ],
)
@pytest.mark.parametrize("which", [0, 4])
def test_damaged_subnet_entry_is_refused(
    snapshot: bytes, fds: list[int], which: int, what: str, damage: bytes
) -> None:
    """Ids index the counters, encapsulations a mask, families an address: all must be in range."""
    offsets = dict(ffi.typeof("struct dp_subnet").fields)
    at = _at_section(snapshot, 0) + which * SUBNET_LEN + offsets[what].offset
    fds.append(memfd(snapshot[:at] + damage + snapshot[at + len(damage) :]))
    assert refusal(fds[-1]) == "EBADMSG"
