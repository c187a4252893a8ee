# SPDX-License-Identifier: Apache-2.0
"""What lies behind the end of a snapshot is never part of it, however sound it looks."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import struct
from ipaddress import ip_network

import pytest

from tests.probe import Fib, Spec, Subnet, ffi, fib_create, lib

SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
SIZE_AT, SECTIONS_AT = 16, 32  # in the header: bytes of the snapshot; offset and count of each section
ROOTS_AT, SEARCHED = (
    SECTIONS_AT + 16 * 41,
    1 << 31,
)  # where lookups begin; an entry that says: search from 0 on
# Bytes of an element: subnets; first addresses of each table, IPv4 and IPv6; their answers.
ELEMENTS = [ffi.sizeof("struct dp_subnet"), *[4] * 5, *[16] * 5, *[4] * 10]
SPEC = Spec(
    peers=[(3, "192.0.2.3", "2001:db8::3")], subnets=[Subnet(ip_network("10.244.3.0/24"), 3, "192.0.2.3")]
)


def moved_behind(index: int) -> bytes:
    """Return a snapshot one section of which was moved to its end."""
    fd = fib_create(SPEC)
    data = os.pread(fd, 1 << 20, 0)
    os.close(fd)
    at = SECTIONS_AT + 16 * index
    offset, count = struct.unpack_from("=QQ", data, at)
    section = data[offset : offset + ELEMENTS[index] * count]
    data += bytes(-len(data) % 16)
    return data[:at] + struct.pack("=Q", len(data)) + data[at + 8 :] + section


def is_accepted(data: bytes, size: int) -> bool:
    """Open a file that is, and says it is, of this size; the rest of the bytes lies behind its end."""
    data = data[:SIZE_AT] + struct.pack("=Q", size) + data[SIZE_AT + 8 :]
    fd = os.memfd_create("snapshot", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.write(fd, data)
        with mmap.mmap(fd, len(data)) as mapped:
            os.ftruncate(fd, size)  # which makes the rest zeros
            mapped[:] = data
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
        with Fib(fd):
            return True
    except OSError as err:
        if err.errno != errno.EBADMSG:
            raise
        return False
    finally:
        os.close(fd)


@pytest.mark.parametrize("index", range(len(ELEMENTS)))
def test_section_ends_within_the_file(index: int) -> None:
    """A section may reach the last byte of the file, and no byte of it may lie behind."""
    data = moved_behind(index)
    assert len(data) < mmap.PAGESIZE
    assert is_accepted(data, len(data))
    assert not is_accepted(data, len(data) - 1)


@pytest.mark.parametrize("ranges", range(6))
def test_too_few_ranges_are_not_searched(ranges: int) -> None:
    """A search looks at four ranges behind the one it begins with: where there are none, none begins."""
    fd = fib_create(SPEC)
    data = bytearray(os.pread(fd, 1 << 20, 0))
    os.close(fd)
    for section in (3, 13):  # first addresses and answers of our own IPv4 subnets, of which there are none
        struct.pack_into("=Q", data, SECTIONS_AT + 16 * section + 8, ranges)
    struct.pack_into("=I", data, ROOTS_AT + 4 * 2, SEARCHED)
    assert is_accepted(bytes(data), len(data)) == (ranges == 5)


def test_more_prefixes_than_can_be_told_apart() -> None:
    """A table too long for its index is refused before a single prefix of it is read."""
    spec = ffi.new("struct dp_table_spec *", {"own_count": 1 << 27})  # and there is none
    assert lib.dp_fib_create(spec) == -errno.EINVAL


@pytest.mark.parametrize("field", ["addr4", "addr6"])
def test_peer_at_an_impossible_address(field: str) -> None:
    """An underlay address of no family that there is makes no table."""
    peers = ffi.new("struct dp_peer[1]", [{"id": 3, field: {"family": 5}}])
    spec = ffi.new("struct dp_table_spec *", {"peers": peers, "peers_count": 1})
    assert lib.dp_fib_create(spec) == -errno.EINVAL


def test_node_that_is_endless() -> None:
    """A node of 2^32 buckets, which counts as none, is refused though the next one has them all."""
    nets = [ip_network(f"10.244.{n}.0/24") for n in range(64)]
    fd = fib_create(Spec(peers=SPEC.peers, subnets=[Subnet(net, 3, "192.0.2.3") for net in nets]))
    data = os.pread(fd, 1 << 20, 0)
    os.close(fd)
    at = SECTIONS_AT + 16 * 21  # nodes of the IPv4 subnets
    offset, count = struct.unpack_from("=QQ", data, at)
    assert count == 1
    node, end = data[offset : offset + 32], len(data)
    endless = node[:20] + struct.pack("=I", 2**32 - 1) + node[24:]
    assert end % 16 == 0
    assert is_accepted(data[:at] + struct.pack("=QQ", end, 1) + data[at + 16 :] + node, end + 32)
    assert not is_accepted(
        data[:at] + struct.pack("=QQ", end, 2) + data[at + 16 :] + endless + node, end + 64
    )
