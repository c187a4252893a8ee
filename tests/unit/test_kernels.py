# SPDX-License-Identifier: Apache-2.0
"""Releases whose offloads are broken do without them, and say so."""

from __future__ import annotations

import pytest

from dataplane.backend.offloads import Offloads
from dataplane.kernels import known_bad
from dataplane.model import ALL_OFFLOADS, Offload


@pytest.mark.parametrize(
    ("release", "off"),
    [
        *(
            ("6.6.43", None),
            ("6.6.44", Offload.TUN_GRO),
            ("6.6.45-0-virt", Offload.TUN_GRO),
            ("6.6.46", None),
        ),
        *(("6.18.44-fc-v595", None), ("6.19.14", None), ("7.0.0-rc1", Offload.UDP_GSO)),
        *(("7.1", Offload.UDP_GSO), ("7.1.4", Offload.UDP_GSO), ("7.1.5", None), ("7.10.0", None)),
        *(("", None), ("next-20261123", None)),
    ],
)
def test_ranges(release: str, off: Offload | None) -> None:
    """Exactly the releases of a range are meant, whatever a distribution appends to their number."""
    assert set(known_bad(release)) == ({off} if off else set())


def test_what_is_broken_is_off_with_all_that_needs_it() -> None:
    """A broken offload is off, and those that need it; the others are on; the reason names the release."""
    offloads = Offloads((), "6.6.44-generic")
    assert offloads.of_tun & (Offload.TUN_GRO | Offload.TUN_UGRO) == 0
    assert offloads.of_tun & Offload.TUN_TSO
    why = offloads.explain(int(ALL_OFFLOADS & ~(Offload.TUN_GRO | Offload.TUN_UGRO)))
    assert why == {
        "tun-gro": "Linux 6.6.44 refuses good super-packets on a TUN",
        "tun-ugro": "needs tun-gro",
    }


def test_runs_are_off_where_they_are_damaged() -> None:
    """Sockets make no runs on a release that damages them, and do on the next one."""
    assert not Offloads((), "7.1.4").of_sockets() & Offload.UDP_GSO
    assert Offloads((), "7.1.5").of_sockets() & Offload.UDP_GSO


def test_a_switch_is_the_first_reason() -> None:
    """Of what is both switched off and broken, status says that it is switched off."""
    offloads = Offloads((Offload.UDP_GSO,), "7.0.1")
    assert offloads.explain(int(ALL_OFFLOADS & ~Offload.UDP_GSO)) == {"udp-gso": "--disable"}
