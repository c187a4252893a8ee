# SPDX-License-Identifier: Apache-2.0
"""The internet checksum, on whatever Hypothesis thinks of, against one that adds a word at a time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests import oracle
from tests.probe import ffi, fold, lib, ones_sum

data = st.binary(max_size=300) | st.integers(0, 300).map(lambda n: b"\xff" * n)
words = st.integers(0, 0xFFFF)


@given(data, st.integers(0, 2**64 - 1))
def test_sum_is_the_naive_sum(data: bytes, running: int) -> None:
    """Any bytes on top of any running sum give what the naive sum gives."""
    assert ones_sum(data, running) == oracle.ones_sum(running.to_bytes(8, "little") + data)


@given(st.lists(data.map(lambda piece: piece[: len(piece) // 2 * 2]), max_size=6), data)
def test_pieces_sum_to_the_whole(pieces: list[bytes], last: bytes) -> None:
    """However data of even length is cut, the sum of all of it is the same."""
    running = 0
    for piece in [*pieces, last]:
        running = lib.csum_add(piece, len(piece), running)
    assert fold(running) == oracle.ones_sum(b"".join(pieces) + last)


@given(data)
def test_data_with_its_checksum_sums_up(data: bytes) -> None:
    """What a receiver adds up is 0xffff."""
    data += bytes(len(data) % 2)
    assert ones_sum(data + (ones_sum(data) ^ 0xFFFF).to_bytes(2, "big")) == 0xFFFF


@given(words, words, st.binary(min_size=2, max_size=40).filter(any))
def test_update_is_as_good_as_a_new_sum(old: int, now: int, rest: bytes) -> None:
    """After any word of a header with a right checksum changed, the updated checksum is right."""
    check = ffi.new("uint8_t[2]", oracle.checksum(old.to_bytes(2, "big") + rest).to_bytes(2, "big"))
    lib.csum_replace16(check, old, now)
    assert oracle.ones_sum(now.to_bytes(2, "big") + rest + bytes(len(rest) % 2) + bytes(check)) == 0xFFFF


addresses = st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16)


@given(addresses, st.integers(0, 255), st.integers(0, 65535))
def test_pseudo_header_is_the_one_written_out(src: bytes, proto: int, length: int) -> None:
    """Addresses, protocol and length all count, each in its place."""
    dst = bytes(reversed(src))
    got = fold(lib.csum_pseudo(src, dst, len(src), proto, length))
    assert got == oracle.ones_sum(oracle.pseudo_header(src, dst, proto, length))
