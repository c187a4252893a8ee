# SPDX-License-Identifier: Apache-2.0
"""ICMP errors that we receive: what is read of them, what is believed, and that nothing else is.

The encoder is scapy's.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6PacketTooBig,
    ICMPv6ParamProblem,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrFragment,
)
from scapy.packet import Packet, Raw

from dataplane.icmp import IcmpError, Trouble, Tunnels, is_ours, parse4, parse6

US, PEER, ROUTER = "192.0.2.1", "192.0.2.2", "198.51.100.9"
US6, PEER6, ROUTER6 = "2001:db8::1", "2001:db8::2", "2001:db8:f::9"
PORT = 8472
SENT = IP(src=US, dst=PEER, flags="DF") / UDP(sport=49152, dport=PORT) / Raw(bytes(30))
SENT6 = IPv6(src=US6, dst=PEER6) / UDP(sport=49153, dport=PORT) / Raw(bytes(30))
SENT_IPIP = IP(src=US, dst=PEER, flags="DF") / IP(src="10.244.1.2", dst="10.244.2.2") / UDP() / Raw(bytes(9))
TUNNELS = Tunnels(
    2,
    frozenset({ip_address(US), ip_address(US6)}),
    source_ports=frozenset({49152, 49153}),
    ports=frozenset({PORT}),
    has_ipip=True,
)
PEERS = {ip_address(PEER), ip_address(PEER6)}


def error4(kind: int, code: int, quoted: Packet = SENT, *, behind: int = 8, **fields: int) -> bytes:
    """Return an ICMP error as a raw socket gets it, which quotes so many bytes behind the IP header."""
    quote = bytes(quoted)[: quoted[IP].ihl * 4 + behind if quoted[IP].ihl else 20 + behind]
    return bytes(IP(src=ROUTER, dst=US) / ICMP(type=kind, code=code, **fields) / Raw(quote))


def error6(message: Any, quoted: Packet = SENT6) -> bytes:
    """Return an ICMPv6 error as a raw socket gets it: without its IPv6 header."""
    return bytes(IPv6(src=ROUTER6, dst=US6) / message / Raw(bytes(quoted)))[40:]


def read6(data: bytes) -> IcmpError | None:
    """Parse what the router of these tests sent."""
    return parse6(data, IPv6Address(ROUTER6))


NET, HOST, PROHIBITED = Trouble.NET_UNREACHABLE, Trouble.HOST_UNREACHABLE, Trouble.PROHIBITED
KINDS4 = [
    *((3, code, NET) for code in (0, 6, 11)),
    *((3, code, HOST) for code in (1, 7, 8, 12)),
    *((3, code, PROHIBITED) for code in (9, 10, 13, 14, 15)),
    *((3, 2, Trouble.PROTOCOL_UNREACHABLE), (3, 3, Trouble.PORT_UNREACHABLE), (3, 4, Trouble.TOO_BIG)),
    *((3, 5, Trouble.SOURCE_ROUTE), (11, 0, Trouble.TIME_EXCEEDED), (11, 1, Trouble.REASSEMBLY)),
    *((12, 0, Trouble.PARAMETER), (12, 2, Trouble.PARAMETER)),
]
KINDS6 = [
    *((ICMPv6DestUnreach(code=code), NET) for code in (0, 2, 6)),
    *((ICMPv6DestUnreach(code=code), PROHIBITED) for code in (1, 5)),
    *((ICMPv6DestUnreach(code=3), HOST), (ICMPv6DestUnreach(code=4), Trouble.PORT_UNREACHABLE)),
    *((ICMPv6TimeExceeded(code=0), Trouble.TIME_EXCEEDED), (ICMPv6TimeExceeded(code=1), Trouble.REASSEMBLY)),
    *((ICMPv6ParamProblem(code=0), Trouble.PARAMETER), (ICMPv6PacketTooBig(mtu=1400), Trouble.TOO_BIG)),
    (ICMPv6ParamProblem(code=1), Trouble.PROTOCOL_UNREACHABLE),
]


@pytest.mark.parametrize(("kind", "code", "trouble"), KINDS4)
def test_kinds_of_icmp(kind: int, code: int, trouble: Trouble) -> None:
    """Every type and code of an ICMP error has its meaning, and what it quotes is told."""
    found = parse4(error4(kind, code))
    addresses = (IPv4Address(ROUTER), IPv4Address(US), IPv4Address(PEER))
    assert found == IcmpError(trouble, *addresses, 17, 49152, PORT)
    assert is_ours(found, TUNNELS, PEERS)


@pytest.mark.parametrize(("message", "trouble"), KINDS6)
def test_kinds_of_icmp6(message: Packet, trouble: Trouble) -> None:
    """Every type and code of an ICMPv6 error has its meaning, the same as in ICMP."""
    found = read6(error6(message))
    addresses = (IPv6Address(ROUTER6), IPv6Address(US6), IPv6Address(PEER6))
    mtu = 1400 if trouble is Trouble.TOO_BIG else 0
    assert found == IcmpError(trouble, *addresses, 17, 49153, PORT, mtu)
    assert is_ours(found, TUNNELS, PEERS)


@pytest.mark.parametrize("mtu", [0, 68, 1300, 0xFFFF])
def test_mtu_of_too_big(mtu: int) -> None:
    """The MTU is told as it is written: what to think of it is for others to say."""
    found = parse4(error4(3, 4, nexthopmtu=mtu))
    assert found is not None
    assert found.mtu == mtu
    other = parse4(error4(3, 1, nexthopmtu=mtu))
    assert other is not None
    assert other.mtu == 0, "only this kind of error has one"


def test_ipip_is_quoted() -> None:
    """An error about an IPIP packet has no ports, and is believed where we send IPIP."""
    found = parse4(error4(3, 2, SENT_IPIP, behind=28))
    assert found is not None
    assert (found.trouble, found.protocol, found.port) == (Trouble.PROTOCOL_UNREACHABLE, 4, 0)
    assert is_ours(found, TUNNELS, PEERS)
    assert not is_ours(found, Tunnels(2, TUNNELS.addresses, TUNNELS.source_ports, TUNNELS.ports), PEERS)


def test_options_are_skipped() -> None:
    """IP options before the ICMP header and in the quote move what stands behind them."""
    quoted = IP(src=US, dst=PEER, ihl=7, options=[b"\x01" * 8]) / UDP(sport=49152, dport=PORT) / Raw(bytes(4))
    packet = IP(src=ROUTER, dst=US, ihl=6, options=[b"\x01" * 4]) / ICMP(type=3, code=1)
    found = parse4(bytes(packet / Raw(bytes(quoted))))
    assert found is not None
    assert (found.source_port, found.port) == (49152, PORT)


def quote(**fields: Any) -> Packet:
    """Return a tunnel packet of which something differs."""
    ip = {name: value for name, value in fields.items() if name not in ("sport", "dport")}
    udp = {"sport": 49152, "dport": PORT} | {k: v for k, v in fields.items() if k in ("sport", "dport")}
    return IP(**{"src": US, "dst": PEER} | ip) / UDP(**udp) / Raw(bytes(30))


@pytest.mark.parametrize(
    "quoted",
    [
        pytest.param(quote(src="192.0.2.7"), id="source is not ours"),
        pytest.param(quote(dst="192.0.2.7"), id="destination is no peer"),
        pytest.param(quote(sport=49154), id="source port is not ours"),
        pytest.param(quote(dport=4789), id="destination port is none of tunnels"),
        pytest.param(quote(src=PEER, dst=US), id="other direction"),
    ],
)
def test_quotes_that_are_not_believed(quoted: Packet) -> None:
    """An error about a packet that we cannot have sent is read, and not believed."""
    found = parse4(error4(3, 1, quoted))
    assert found is not None
    assert not is_ours(found, TUNNELS, PEERS)


BROKEN4 = {
    "empty": b"",
    "echo": bytes(IP(src=ROUTER, dst=US) / ICMP(type=8) / Raw(bytes(SENT))),
    "redirect": error4(5, 1),
    "source quench": error4(4, 0),
    "unknown code": error4(3, 16),
    "unknown code of exceeded": error4(11, 2),
    "other protocol": bytes(IP(src=ROUTER, dst=US, proto=17) / Raw(error4(3, 1)[20:])),
    "version 6": b"\x65" + error4(3, 1)[1:],
    "header too short": b"\x44\x00\x00\x34" + error4(3, 1)[4:16] + error4(3, 1)[20:],
    "cut": error4(3, 1)[:-1],
    "padded": error4(3, 1) + b"\0",
    "checksum": error4(3, 1)[:22] + b"\xff\xfe" + error4(3, 1)[24:],
    "no quote": bytes(IP(src=ROUTER, dst=US) / ICMP(type=3, code=1)),
    "7 bytes behind the quoted header": error4(3, 1, behind=7),
    "quoted header cut": error4(3, 1, behind=-1),
    "quoted version": error4(3, 1, quote(version=5)),
    "quoted header length 4": error4(3, 1, quote(ihl=4)),
    "quoted TCP": error4(3, 1, quote(proto=6)),
    "quoted later fragment": error4(3, 1, quote(frag=1)),
}


@pytest.mark.parametrize("data", BROKEN4.values(), ids=BROKEN4)
def test_broken_icmp(data: bytes) -> None:
    """What is no whole ICMP error about a tunnel packet is nothing."""
    assert parse4(data) is None


BROKEN6 = {
    "empty": b"",
    "unknown code": error6(ICMPv6DestUnreach(code=7)),
    "too big with a code": error6(ICMPv6PacketTooBig(code=1)),
    "cut quote": error6(ICMPv6DestUnreach(code=3))[:55],
    "quoted IPv4": error6(ICMPv6DestUnreach(code=3), SENT / Raw(bytes(40))),
    "quoted version": error6(ICMPv6DestUnreach(code=3))[:8] + b"\x45" + error6(ICMPv6DestUnreach(code=3))[9:],
    "quoted extension header": error6(
        ICMPv6DestUnreach(code=3), IPv6(src=US6, dst=PEER6) / IPv6ExtHdrFragment() / UDP() / Raw(bytes(9))
    ),
    "echo": bytes([128, 0]) + error6(ICMPv6DestUnreach(code=3))[2:],
}


@pytest.mark.parametrize("data", BROKEN6.values(), ids=BROKEN6)
def test_broken_icmp6(data: bytes) -> None:
    """What is no whole ICMPv6 error about a tunnel packet is nothing."""
    assert read6(data) is None


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    """No bytes whatever make the parsers fail, and hardly any mean something."""
    assert parse4(data) is None
    found = read6(data)
    assert found is None or found.protocol == 17


@given(st.integers(0, len(error4(3, 1)) * 8 - 1))
def test_one_bit_flipped(bit: int) -> None:
    """One wrong bit behind the IP header spoils the checksum, and with it the error."""
    whole = error4(3, 1)
    data = bytearray(whole)
    data[bit // 8] ^= 1 << bit % 8
    found = parse4(bytes(data))
    if bit >= 160:
        assert found is None
    elif found is not None:
        assert (found.source, found.peer) == (IPv4Address(US), IPv4Address(PEER))


@given(st.integers(0, len(error4(3, 1)) - 1), st.integers(0, 200))
def test_cut_anywhere(length: int, length6: int) -> None:
    """An error that was cut anywhere is nothing; of ICMPv6, if its end was needed."""
    assert parse4(error4(3, 1)[:length]) is None
    whole = error6(ICMPv6DestUnreach(code=3))
    assert (read6(whole[:length6]) is None) == (length6 < 56)
