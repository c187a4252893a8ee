# SPDX-License-Identifier: Apache-2.0
"""The only door to packet bytes: it opens inside the packet and nowhere else."""

from __future__ import annotations

import pytest

from tests.probe import View, ffi, lib

MAX32 = 2**32 - 1


@pytest.mark.parametrize(
    ("cap", "off", "length", "expected"),
    [
        (64, 0, 64, (0, 64)),
        (64, 16, 48, (16, 48)),
        (64, 64, 0, (64, 0)),
        (0, 0, 0, (0, 0)),
        (64, 16, 49, (0, 0)),
        (64, 65, 0, (0, 0)),
        (64, 16, MAX32, (0, 0)),
        (64, MAX32, 2, (0, 0)),
        (64, MAX32, MAX32, (0, 0)),
    ],
)
def test_view_never_leaves_its_buffer(cap: int, off: int, length: int, expected: tuple[int, int]) -> None:
    """A view that would not fit is empty, also where offset and length together wrap."""
    buf = ffi.new("uint8_t[64]")
    out = ffi.new("struct probe_pkt *")
    lib.probe_pkt_init(out, buf, cap, off, length)
    assert (out.buf, out.cap, out.off, out.len) == (buf, cap, *expected)


def test_at_reaches_exactly_the_bytes_of_the_packet() -> None:
    """Every offset and length either lies inside and points there, or gives NULL."""
    view = View(b"0123456789", headroom=7)
    for off in [*range(13), MAX32 - 1, MAX32]:
        for length in [*range(13), MAX32 - 1, MAX32]:
            got = lib.probe_pkt_at(view.pkt, off, length)
            assert got == (view.buf + 7 + off if off + length <= 10 else ffi.NULL)


@pytest.mark.parametrize("length", range(12))
def test_pull_moves_or_leaves_everything(length: int) -> None:
    """What is taken off the front is returned; a packet that is shorter does not change."""
    view = View(b"0123456789", headroom=7)
    taken = lib.probe_pkt_pull(view.pkt, length)
    if length <= 10:
        assert taken == view.buf + 7
        assert view.place == (7 + length, 10 - length)
    else:
        assert taken == ffi.NULL
        assert view.place == (7, 10)


def test_pull_of_more_than_there_is_at_the_top_of_the_range() -> None:
    """A length that would wrap takes nothing."""
    view = View(b"0123456789", headroom=7)
    assert lib.probe_pkt_pull(view.pkt, MAX32) == ffi.NULL
    assert view.place == (7, 10)


@pytest.mark.parametrize("length", [*range(10), MAX32])
def test_push_takes_headroom_only(length: int) -> None:
    """A packet grows to the front as far as its buffer begins, and no further."""
    view = View(b"0123456789", headroom=7)
    first = lib.probe_pkt_push(view.pkt, length)
    if length <= 7:
        assert first == view.buf + 7 - length
        assert view.place == (7 - length, 10 + length)
    else:
        assert first == ffi.NULL
        assert view.place == (7, 10)


@pytest.mark.parametrize("length", [0, 1, 9, 10, 11, MAX32])
def test_trim_only_shortens(length: int) -> None:
    """A packet can be cut, not stretched."""
    view = View(b"0123456789", headroom=7)
    assert lib.probe_pkt_trim(view.pkt, length) == (length <= 10)
    assert view.place == (7, min(length, 10))


def test_pull_then_push_is_where_it_was() -> None:
    """Taking a header off and putting one on as long meets the same bytes."""
    view = View(b"0123456789", headroom=0)
    taken = lib.probe_pkt_pull(view.pkt, 4)
    assert lib.probe_pkt_push(view.pkt, 4) == taken
    assert bytes(view) == b"0123456789"


@pytest.mark.parametrize("align", range(8))
def test_numbers_are_in_network_order_at_any_alignment(align: int) -> None:
    """Loads and stores are big-endian and touch their own bytes only."""
    buf = ffi.new("uint8_t[24]")
    ffi.memmove(buf + align, bytes(range(0xF1, 0xF9)), 8)
    assert lib.probe_load(buf + align, 2) == 0xF1F2
    assert lib.probe_load(buf + align, 4) == 0xF1F2F3F4
    assert lib.probe_load(buf + align, 8) == 0xF1F2F3F4F5F6F7F8
    lib.probe_store(buf + align, 2, 0xA1A2)
    assert bytes(buf)[align : align + 8] == bytes.fromhex("a1a2f3f4f5f6f7f8")
    lib.probe_store(buf + align, 4, 0xB1B2B3B4)
    assert bytes(buf) == bytes(align) + bytes.fromhex("b1b2b3b4f5f6f7f8") + bytes(16 - align)
