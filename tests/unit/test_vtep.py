# SPDX-License-Identifier: Apache-2.0
"""The VTEP MAC address: chosen once, kept, and never one that could not be."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane import vtep
from dataplane.errors import RuntimeFailure
from dataplane.model import MacAddress


@given(st.binary(min_size=6, max_size=6))
def test_chosen_address_is_local_and_unicast(randomness: bytes) -> None:
    """Whatever the dice say, the address is no vendor's and no group's, and can be read back."""
    mac = vtep.choose(randomness)
    assert mac.octets[0] & 0b11 == 0b10
    assert mac.octets[1:] == randomness[1:]
    assert vtep.parse(f"{mac}\n") == mac


def test_address_is_kept(tmp_path: Path) -> None:
    """The address survives restarts, and two nodes have different ones."""
    first = vtep.load(tmp_path / "a" / "state")
    assert vtep.load(tmp_path / "a" / "state") == first
    assert vtep.load(tmp_path / "b") != first


def test_addresses_that_were_taken_over(tmp_path: Path) -> None:
    """Both families have one address, until another one is kept for IPv6 pods."""
    first, other = MacAddress(bytes.fromhex("020000000001")), MacAddress(bytes.fromhex("020000000006"))
    vtep.keep(tmp_path / "state", 4, first)
    assert (vtep.load(tmp_path / "state"), vtep.load6(tmp_path / "state")) == (first, first)
    vtep.keep(tmp_path / "state", 6, other)
    assert (vtep.load(tmp_path / "state"), vtep.load6(tmp_path / "state")) == (first, other)


@pytest.mark.parametrize(
    "text", ["", "garbage", "02:00:00:00:00", "03:00:00:00:00:01", "00:00:00:00:00:00", "2:0:0:0:0:1", "\xff"]
)
def test_damaged_file_is_not_replaced(tmp_path: Path, text: str) -> None:
    """Peers know the old address: a damaged file is an error with the next step, not a new choice."""
    (tmp_path / "vtep-mac").write_text(text, encoding="latin-1")
    with pytest.raises(RuntimeFailure, match="Fix: remove it"):
        vtep.load(tmp_path)
    assert (tmp_path / "vtep-mac").read_text(encoding="latin-1") == text


def test_state_directory_that_cannot_be_made(tmp_path: Path) -> None:
    """A file in the way is one line of error."""
    (tmp_path / "file").touch()
    with pytest.raises(RuntimeFailure, match="vtep-mac: Not a directory"):
        vtep.load(tmp_path / "file")
