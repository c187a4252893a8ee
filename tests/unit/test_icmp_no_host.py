# SPDX-License-Identifier: Apache-2.0
"""ICMP errors about hosts that cannot be reached, and what must never be answered."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import ICMPv6DestUnreach, IPv6

from tests import inner
from tests.inner import GOOD
from tests.probe import no_host, no_route, too_big
from tests.supers import segment
from tests.unit.test_icmp import SILENT

DATA = bytes(1400)


def test_ipv4() -> None:
    """Host unreachable is 3/1 (RFC 2003 section 4), and otherwise what net unreachable is."""
    error, other = IP(no_host(inner.UDP4)), IP(no_route(inner.UDP4))
    assert (error[ICMP].type, error[ICMP].code) == (3, 1)
    assert bytes(error)[:20] == bytes(other)[:20]
    assert bytes(error)[24:] == bytes(other)[24:]
    again = error.copy()
    del again[ICMP].chksum
    assert bytes(again) == bytes(error)


def test_ipv6() -> None:
    """Address unreachable is 1/3 (RFC 4443 section 3.1), and otherwise what no route is."""
    error, other = IPv6(no_host(inner.UDP6)), IPv6(no_route(inner.UDP6))
    assert (error[ICMPv6DestUnreach].type, error[ICMPv6DestUnreach].code) == (1, 3)
    assert bytes(error)[:40] == bytes(other)[:40]
    assert bytes(error)[44:] == bytes(other)[44:]
    again = error.copy()
    del again[ICMPv6DestUnreach].cksum
    assert bytes(again) == bytes(error)


@pytest.mark.parametrize("name", SILENT, ids="case_099-{}".format)
def test_what_must_not_be_answered(name: str) -> None:
    """Errors, later fragments, groups, senders that cannot be: no kind of error is sent about them."""
    assert no_host(SILENT[name]) == too_big(SILENT[name], 1300) == b""


@pytest.mark.parametrize("name", [name for name in GOOD if "later" not in name])
def test_everything_else_is_answered(name: str) -> None:
    """Every other good packet is answered as long as one that has no route."""
    assert len(no_host(GOOD[name])) == len(no_route(GOOD[name])) > 0


@pytest.mark.parametrize("mtu", [0, 68, 575, 576, 577])
def test_case_099_ipv4_is_never_told_of_less_than_576(mtu: int) -> None:
    """No host need take less than 576 bytes, so nobody is told to send less: the kernel's limit, too."""
    error = too_big(segment(DATA), mtu)
    assert (error == b"") == (mtu < 576)


def test_case_099_without_df() -> None:
    """Who did not set DF is not told of sizes, and is told of hosts."""
    packet = segment(DATA, frag=0)
    assert too_big(packet, 1300) == b""
    assert no_host(packet)
