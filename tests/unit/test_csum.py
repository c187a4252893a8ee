# SPDX-License-Identifier: Apache-2.0
"""The internet checksum, against one that adds a word at a time."""

from __future__ import annotations

import random

import pytest

from tests import oracle, probe
from tests.probe import ffi, lib

LENGTH_MAX = 9001
ADDRESSES = [(oracle.SRC4, oracle.DST4), (oracle.SRC6, oracle.DST6), ("255.255.255.255", "255.255.255.255")]


@pytest.mark.parametrize("align", range(8), ids="case_084-align-{}".format)
@pytest.mark.parametrize("kind", ["random", "ones"])
def test_every_length_at_every_alignment(kind: str, align: int) -> None:
    """The sum of each prefix of 0 to 9001 bytes, at each alignment, is that of the naive one."""
    data = random.Random(84).randbytes(LENGTH_MAX) if kind == "random" else b"\xff" * LENGTH_MAX
    buf = ffi.new("uint8_t[]", 64 + LENGTH_MAX)
    address = int(ffi.cast("uintptr_t", buf))
    start = buf + (-address % 8) + align
    assert int(ffi.cast("uintptr_t", start)) % 8 == align
    ffi.memmove(start, data, LENGTH_MAX)
    # The first byte behind what is summed differs from the padding, so taking it in would show.
    got = [probe.fold(lib.csum_add(start, length, 0)) for length in range(LENGTH_MAX + 1)]
    assert got == oracle.ones_sums(data)


def test_naive_prefix_sums_are_the_naive_sum() -> None:
    """The oracle's quick way to all prefixes is its slow way."""
    data = random.Random(1).randbytes(65)
    assert oracle.ones_sums(data) == [oracle.ones_sum(data[:n]) for n in range(66)]


@pytest.mark.parametrize("split", [0, 2, 8, 30, 32, 34, 64, 100])
def test_pieces_sum_to_the_whole(split: int) -> None:
    """A running sum goes on where the last piece ended, with carries kept."""
    data = b"\xff\xfe" * 50
    running = lib.csum_add(data[:split], split, 0)
    assert probe.ones_sum(data[split:], running) == oracle.ones_sum(data)


@pytest.mark.parametrize("running", [0, 1, 2**64 - 1, 2**64 - 2, 2**63, 0xFFFF_0000_FFFF_0000])
@pytest.mark.parametrize("words", [0, 1, 3, 4, 5, 9])
def test_carries_come_around(running: int, words: int) -> None:
    """Additions that overflow 64 bits in any lane lose nothing."""
    data = b"\xff" * 8 * words
    expected = oracle.ones_sum(running.to_bytes(8, "little") + data)
    assert probe.ones_sum(data, running) == expected


@pytest.mark.parametrize("running", [0, 1, 0xFFFF, 0x10000, 0x1FFFE, 0xFFFFFFFF, 2**32, 2**48 - 1, 2**64 - 1])
def test_fold_keeps_the_sum(running: int) -> None:
    """A folded sum is the sum of the four 16-bit words."""
    assert probe.fold(running) == oracle.ones_sum(running.to_bytes(8, "little"))


@pytest.mark.parametrize(("src", "dst"), ADDRESSES, ids=["v4", "v6", "v4-ones"])
@pytest.mark.parametrize("proto", [6, 17, 58, 255])
@pytest.mark.parametrize("length", [0, 8, 255, 256, 1480, 65535])
def test_pseudo_header(src: str, dst: str, proto: int, length: int) -> None:
    """The pseudo-header sum is that of the pseudo-header written out."""
    saddr, daddr = oracle.packed(src), oracle.packed(dst)
    got = probe.fold(lib.csum_pseudo(saddr, daddr, len(saddr), proto, length))
    assert got == oracle.ones_sum(oracle.pseudo_header(saddr, daddr, proto, length))


def test_pseudo_header_of_a_jumbo_length() -> None:
    """IPv6 has 32 bits for the length (RFC 8200 section 8.1), and all of them count."""
    saddr, daddr = oracle.packed(oracle.SRC6), oracle.packed(oracle.DST6)
    got = probe.fold(lib.csum_pseudo(saddr, daddr, 16, 6, 0x12345678))
    assert got == oracle.ones_sum(oracle.pseudo_header(saddr, daddr, 6, 0x12345678))


WORDS = [0x0000, 0x0001, 0x4500, 0x4503, 0x5555, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF]


@pytest.mark.parametrize("old", WORDS, ids=hex)
@pytest.mark.parametrize("now", WORDS, ids=hex)
@pytest.mark.parametrize("rest", [0x0000, 0x0001, 0xBAFE, 0xBAFF, 0xFFFE, 0xFFFF], ids=hex)
def test_update_keeps_a_right_checksum_right(old: int, now: int, rest: int) -> None:
    """After a word changed, the updated checksum makes the whole sum up again (RFC 1624)."""
    words = rest.to_bytes(2, "big")
    check = ffi.new("uint8_t[2]", oracle.checksum(old.to_bytes(2, "big") + words).to_bytes(2, "big"))
    lib.csum_replace16(check, old, now)
    whole = now.to_bytes(2, "big") + words + bytes(check)
    # Without any bit set there is nothing to sum up; 0 and 0xffff are the same number then.
    assert oracle.ones_sum(whole) in ({0xFFFF} if any(whole) else {0})


def test_update_of_every_word_of_a_header() -> None:
    """The update of each TOS byte of a real header gives what a new checksum gives."""
    for old in range(256):
        for now in (0, 1, 2, 3, old ^ 0xFF):
            before = oracle.ip4(b"x", tos=old)
            after = oracle.ip4(b"x", tos=now)
            check = ffi.new("uint8_t[2]", before[10:12])
            lib.csum_replace16(check, int.from_bytes(before[:2], "big"), int.from_bytes(after[:2], "big"))
            assert bytes(check) == after[10:12]
