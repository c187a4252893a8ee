# SPDX-License-Identifier: Apache-2.0
"""Echo requests of exact sizes, and which answers count."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import ICMPv6EchoReply

from dataplane.echo import ICMP as HEADER
from dataplane.echo import pattern, read_answer, write_request
from dataplane.probing import Probe

NODE = ip_address("192.0.2.2")
TARGETS = {4: ip_address("10.244.2.0"), 6: ip_address("fd00:244:0:2::")}
IP_BYTES = {4: 20, 6: 40}
TOKENS = st.integers(0, (1 << 64) - 1)


def answer(version: int, data: bytes) -> bytes:
    """Return an answer with these data as the kernel hands it over: that of IPv4 with its IP header."""
    if version == 6:
        return bytes(ICMPv6EchoReply(id=1, seq=2, data=data))
    return bytes(IP(src="10.244.2.0", dst="10.244.1.0") / ICMP(type=0) / data)


@given(st.sampled_from([4, 6]), st.integers(1200, 9000), TOKENS)
def test_request(version: int, size: int, token: int) -> None:
    """A request makes a packet of the size asked for, carries its token, and has a right checksum."""
    message = write_request(Probe(NODE, TARGETS[version], size, token))
    assert len(message) + IP_BYTES[version] == size
    assert message[8:16] == token.to_bytes(8, "big")
    if version == 4:
        seen = ICMP(message)
        wanted, seen.chksum = seen.chksum, None
        assert (ICMP(bytes(seen)).chksum, seen.type) == (wanted, 8)
    else:
        assert message[0] == 128


@given(st.sampled_from([4, 6]), st.integers(1200, 9000), TOKENS)
def test_answer(version: int, size: int, token: int) -> None:
    """What a peer sends back tells token and size of what it got."""
    message = write_request(Probe(NODE, TARGETS[version], size, token))
    assert read_answer(version, answer(version, message[HEADER.size :])) == (token, size)


@pytest.mark.parametrize("version", [4, 6])
def test_no_answers(version: int) -> None:
    """What is cut, changed, no answer at all, or somebody else's ping, is none."""
    good = answer(version, pattern(77, 1400))
    assert read_answer(version, good) == (77, 1400 + 8 + IP_BYTES[version])
    start = len(good) - 1400
    others = [b"", b"\x45", good[:start], good[: start + 7], answer(version, bytes(range(56)))]
    others += [good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :] for at in (start, start + 8, len(good) - 1)]
    others.append(good[: start - 8] + bytes([8 if version == 4 else 128]) + good[start - 7 :])
    assert [read_answer(version, other) for other in others] == [None] * len(others)


def test_header_with_options() -> None:
    """An IPv4 header may be longer than most are."""
    packet = IP(src="10.244.2.0", dst="10.244.1.0", options=b"\x01" * 8) / ICMP(type=0) / pattern(5, 64)
    assert read_answer(4, bytes(packet)) == (5, 64 + 28)
