# SPDX-License-Identifier: Apache-2.0
"""Inner packets by name: good ones of every shape, and those that must be refused, with the reason."""

from __future__ import annotations

from tests.oracle import (
    DST4,
    DST6,
    IP4_MF,
    PROTO_DSTOPTS,
    PROTO_FRAGMENT,
    PROTO_HOPOPTS,
    PROTO_NONE,
    PROTO_ROUTING,
    PROTO_TCP,
    PROTO_UDP,
    SRC4,
    SRC6,
    chain6,
    extension6,
    fragment6,
    ip4,
    ip6,
    l4_check,
    tcp,
    udp,
    with_check,
)

DATA = bytes(range(1, 29))


def good_l4(segment: bytes, proto: int, src: str, dst: str) -> bytes:
    """Return a TCP or UDP message with a right checksum."""
    return with_check(segment, proto, l4_check(segment, proto, src, dst))


UDP4 = ip4(good_l4(udp(DATA), PROTO_UDP, SRC4, DST4), PROTO_UDP)
TCP4 = ip4(good_l4(tcp(DATA, options=b"\x01" * 12), PROTO_TCP, SRC4, DST4), PROTO_TCP)
UDP6 = ip6(good_l4(udp(DATA), PROTO_UDP, SRC6, DST6), PROTO_UDP)
TCP6 = ip6(good_l4(tcp(DATA), PROTO_TCP, SRC6, DST6), PROTO_TCP)

GOOD: dict[str, bytes] = {
    "udp4": UDP4,
    "tcp4": TCP4,
    "udp6": UDP6,
    "tcp6": TCP6,
    "header4-only": ip4(),
    "header6-only": ip6(),
    "options4": ip4(DATA, options=b"\x01" * 20),
    "options4-most": ip4(DATA, options=b"\x01" * 40),
    "first-fragment4": ip4(udp(DATA), PROTO_UDP, frag=IP4_MF),
    "later-fragment4": ip4(DATA, PROTO_UDP, frag=100),
    "first-fragment6": ip6(fragment6(PROTO_UDP) + udp(DATA), PROTO_FRAGMENT),
    "later-fragment6": ip6(fragment6(PROTO_UDP, 4) + DATA, PROTO_FRAGMENT),
    "extensions6": chain6((PROTO_HOPOPTS, PROTO_ROUTING, PROTO_DSTOPTS), PROTO_TCP, tcp(DATA)),
    "extension6-longest": ip6(extension6(PROTO_UDP, 248) + udp(DATA), PROTO_DSTOPTS),
    "largest4": ip4(bytes(65515)),
    "largest6": ip6(bytes(65535)),
}


def cut(packet: bytes, length: int) -> bytes:
    """Return the packet cut to a length, its headers as they were."""
    return packet[:length]


# name -> (drop, packet). IPv4, and what is neither.
INVALID4: dict[str, tuple[str, bytes]] = {
    "empty": ("inner_header", b""),
    "version-0": ("inner_version", ip4(DATA, version=0)),
    "version-5": ("inner_version", ip4(DATA, version=5)),
    "version-15": ("inner_version", ip4(DATA, version=15)),
    "ihl-0": ("inner_header", ip4(DATA, ihl=0)),
    "ihl-4": ("inner_header", ip4(DATA, ihl=4)),
    "ihl-beyond-packet": ("inner_header", ip4(DATA[:8], ihl=15)),
    "header-cut": ("inner_header", cut(UDP4, 19)),
    "options-cut": ("inner_header", cut(ip4(options=bytes(40)), 59)),
    "total-below-header": ("inner_length", ip4(DATA, total_len=19)),
    "total-below-options": ("inner_length", ip4(DATA, options=b"\x01" * 4, total_len=23)),
    "total-zero": ("inner_length", ip4(DATA, total_len=0)),
    "total-beyond-packet": ("inner_length", ip4(DATA, total_len=20 + len(DATA) + 1)),
    "total-65535": ("inner_length", ip4(DATA, total_len=65535)),
    "ttl-0": ("inner_ttl", ip4(DATA, ttl=0)),
}

INVALID6: dict[str, tuple[str, bytes]] = {
    "header-cut": ("inner_header", cut(UDP6, 39)),
    "payload-one-too-long": ("inner_length", ip6(DATA, payload_len=len(DATA) + 1)),
    **{
        # With the 40 bytes of the header these wrap in 16 bits: 0xffd8 + 40 = 0.
        f"payload-wraps-{length:04x}": ("inner_length", ip6(DATA, payload_len=length))
        for length in (0xFFD7, 0xFFD8, 0xFFD9, 0xFFF0, 0xFFFF)
    },
    "hop-limit-0": ("inner_ttl", ip6(DATA, hop_limit=0)),
    "extension-missing": ("inner_header", ip6(b"", PROTO_HOPOPTS)),
    "extension-cut": ("inner_header", ip6(extension6(PROTO_NONE)[:7], PROTO_HOPOPTS)),
    "extension-too-long": ("inner_header", ip6(extension6(PROTO_NONE, 24)[:16], PROTO_DSTOPTS)),
    "fragment-header-cut": ("inner_header", ip6(fragment6(PROTO_UDP)[:7], PROTO_FRAGMENT)),
    "extension-in-padding": ("inner_header", ip6(extension6(PROTO_NONE), PROTO_HOPOPTS, payload_len=0)),
    "extension-ends-in-padding": (
        "inner_header",
        ip6(extension6(PROTO_NONE, 16), PROTO_ROUTING, payload_len=8),
    ),
    "endless-chain": ("inner_header", chain6([PROTO_DSTOPTS] * 9, PROTO_UDP, udp(DATA))),
}
