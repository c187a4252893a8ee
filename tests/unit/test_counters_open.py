# SPDX-License-Identifier: Apache-2.0
"""Counters that somebody else handed over: only whole ones of our version that cannot shrink are mapped."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path

import pytest
from dataplane._native import ffi, lib

from dataplane import native

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
HEADER = ffi.sizeof("struct dp_counters_header")
THREAD, PEER = ffi.sizeof("struct dp_thread_counters"), ffi.sizeof("struct dp_peer_counters")


def counters(threads: int = 1, max_peers: int = 4, **words: int) -> tuple[bytes, int]:
    """Return a header, with words of it changed, and the bytes of counters that are what it says."""
    fd = native.counters_create()
    (magic, abi), rest = struct.unpack("=II", os.pread(fd, 8, 0)), os.pread(fd, HEADER - 16, 16)
    os.close(fd)
    head = struct.pack("=4I", words.get("magic", magic), words.get("abi", abi), threads, max_peers)
    return head + rest, HEADER + threads * (THREAD + max_peers * PEER)


def opened(header: bytes, size: int, seals: int = SEALS) -> str | None:
    """Open a memfd of this size; return the name of the errno, None if it was accepted."""
    fd = os.memfd_create("counters", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, header)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return refusal(fd)


def refusal(fd: int) -> str | None:
    """Open counters and close them and the descriptor; return the name of the errno, None if accepted."""
    out = ffi.new("dp_counters **")
    err = lib.dp_counters_open(fd, 0, out)
    os.close(fd)
    if not err:
        lib.dp_counters_close(out[0])
    return errno.errorcode[-err] if err else None


def test_good_ones_are_accepted() -> None:
    """Any number of workers and peers there can be is accepted, also the largest."""
    assert opened(*counters()) is None
    assert opened(*counters(lib.DP_MAX_THREADS, 1)) is None
    assert opened(*counters(1, lib.DP_MAX_PEERS)) is None


@pytest.mark.parametrize("seals", [0, fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_GROW], ids=["none", "shrink", "grow"])
def test_size_that_can_change_is_refused(seals: int) -> None:
    """Who could cut the file under us could end us."""
    assert opened(*counters(), seals) == "EPERM"


def test_file_that_cannot_be_sealed_is_refused(tmp_path: Path) -> None:
    """A file that has no seals to ask for is not taken for one that has all."""
    header, size = counters()
    (tmp_path / "counters").write_bytes(header + bytes(size - len(header)))
    assert refusal(os.open(tmp_path / "counters", os.O_RDWR)) == "EPERM"


@pytest.mark.parametrize("word", ["magic", "abi"])
def test_other_version_is_refused(word: str) -> None:
    """Counters of another build are told from damaged ones."""
    assert opened(*counters(**{word: 7})) == "EPROTO"


@pytest.mark.parametrize("size", [0, 8, HEADER - 1])
def test_cut_header_is_refused(size: int) -> None:
    """What is shorter than its header is damaged."""
    assert opened(counters()[0], size) == "EBADMSG"


@pytest.mark.parametrize(
    ("threads", "max_peers"), [(0, 4), (lib.DP_MAX_THREADS + 1, 4), (1, lib.DP_MAX_PEERS + 1)]
)
def test_impossible_numbers_are_refused(threads: int, max_peers: int) -> None:
    """Nobody, or more than there can be, is refused also where the size agrees."""
    assert opened(*counters(threads, max_peers)) == "EBADMSG"


@pytest.mark.parametrize("more", [-1, 1])
def test_size_that_contradicts_the_header_is_refused(more: int) -> None:
    """The file is as long as its header says, to the byte."""
    header, size = counters()
    assert opened(header, size + more) == "EBADMSG"
