# SPDX-License-Identifier: Apache-2.0
"""The pure C units from Python: bytes in, named drops and values out. The C side is csrc/probe.h.

PROBE=tests._probe_address in the environment takes the build with sanitizers instead of the plain one.
"""

from __future__ import annotations

import importlib
import os
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import Any, Final, NamedTuple, Self

from tests import oracle

try:
    _probe = importlib.import_module(os.environ.get("PROBE", "tests._probe"))
except ImportError as error:  # pragma: no cover
    raise ImportError("the probe is not built. Fix: make build") from error

ffi: Any = _probe.ffi
lib: Any = _probe.lib

HEADROOM: Final = 128
ICMP_MAX: Final = 1280
NO_PEER: Final = 0xFFFFFFFF
NEEDS_CSUM: Final = 1
GSO_NONE, GSO_TCP4, GSO_TCP6, GSO_UDP_L4, GSO_ECN = 0, 1, 4, 5, 0x80

Prefix = IPv4Network | IPv6Network

_DROPS: Final = {
    value: name.removeprefix("DP_DROP_").lower()
    for value, name in ffi.typeof("enum dp_drop").elements.items()
}


def drop_name(value: int) -> str:
    """Return the name of an enum dp_drop; "none" for a packet that is not dropped."""
    return str(_DROPS[value])


# --- views --------------------------------------------------------------------------------------------


class View:
    """A struct pkt over a buffer of its own, which is exactly as long as headroom and packet."""

    def __init__(self, data: bytes, headroom: int = HEADROOM) -> None:
        self.buf = (
            ffi.new("uint8_t[]", headroom + len(data)) if headroom + len(data) else ffi.new("uint8_t[1]")
        )
        ffi.memmove(self.buf + headroom, data, len(data))
        size = headroom + len(data)
        self.pkt = ffi.new(
            "struct probe_pkt *", {"buf": self.buf, "cap": size, "off": headroom, "len": len(data)}
        )

    def __bytes__(self) -> bytes:
        return bytes(ffi.buffer(self.buf + self.pkt.off, self.pkt.len))

    @property
    def place(self) -> tuple[int, int]:
        """Offset and length of the packet in its buffer."""
        return self.pkt.off, self.pkt.len


# --- checksum -----------------------------------------------------------------------------------------


def fold(running: int) -> int:
    """Return a folded sum as a big-endian number; C keeps it in memory order."""
    return int.from_bytes(int(lib.csum_fold(running)).to_bytes(2, "little"), "big")


def ones_sum(data: bytes, running: int = 0) -> int:
    """csum_add() and csum_fold()."""
    return fold(lib.csum_add(data, len(data), running))


# --- parse --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Flow:
    """struct flow, with the predicates that C computes from it."""

    family: int
    proto: int
    tos: int
    ttl: int
    is_fragment: bool
    is_later_fragment: bool
    is_martian: bool
    is_multicast: bool
    l3len: int
    total_len: int
    src: str
    dst: str
    hash: int


def parse(data: bytes) -> tuple[str, Flow | None]:
    """parse_inner(): the drop, and the flow if there is none."""
    view = View(data)
    out = ffi.new("struct probe_flow *")
    drop = drop_name(lib.probe_parse_inner(view.pkt, out))
    if drop != "none":
        return drop, None
    addr_len = 4 if out.family == 4 else 16
    flow = Flow(
        family=out.family,
        proto=out.proto,
        tos=out.tos,
        ttl=out.ttl,
        is_fragment=bool(out.is_fragment),
        is_later_fragment=bool(out.is_later_fragment),
        is_martian=bool(out.is_martian),
        is_multicast=bool(out.is_multicast),
        l3len=out.l3len,
        total_len=out.total_len,
        src=oracle.shown(bytes(out.src)[:addr_len]),
        dst=oracle.shown(bytes(out.dst)[:addr_len]),
        hash=out.hash,
    )
    return drop, flow


def flow_of(data: bytes) -> Flow:
    """parse_inner() of a packet that must be valid."""
    drop, flow = parse(data)
    assert flow is not None, drop
    return flow


# --- encap --------------------------------------------------------------------------------------------


def config(*, vni: int = oracle.VNI, reserved_ignore: bool = False, dscp_inherit: bool = False) -> Any:
    """Return a struct dp_config of the host that the oracle's packets are for."""
    made = ffi.new(
        "struct dp_config *", {"vni": vni, "reserved_ignore": reserved_ignore, "dscp_inherit": dscp_inherit}
    )
    ffi.memmove(made.vtep_mac4, oracle.OUR_MAC4, 6)
    ffi.memmove(made.vtep_mac6, oracle.OUR_MAC6, 6)
    return made


def vxlan_pull(
    payload: bytes, *, vni: int = oracle.VNI, reserved_ignore: bool = False
) -> tuple[str, int, bytes]:
    """encap_vxlan_pull(): the drop, the family that the ethertype promises, and the inner packet."""
    view = View(payload)
    family = ffi.new("uint8_t *")
    settings = config(vni=vni, reserved_ignore=reserved_ignore)
    drop = drop_name(lib.probe_encap_vxlan_pull(view.pkt, settings, family))
    return drop, family[0], bytes(view)


def vxlan_push(inner: bytes, family: int, vni: int, headroom: int = HEADROOM) -> bytes | None:
    """encap_vxlan_push() to the oracle's MACs; None without the headroom."""
    view = View(inner, headroom)
    dst = oracle.OUR_MAC4 if family == 4 else oracle.OUR_MAC6
    is_done = lib.probe_encap_vxlan_push(view.pkt, family, vni, dst, oracle.PEER_MAC)
    return bytes(view) if is_done else None


def ip4_pull(data: bytes) -> tuple[str, int, bytes]:
    """encap_ip4_pull(): the drop, the outer TOS byte and the inner packet."""
    view = View(data)
    out = ffi.new("struct probe_outer *")
    drop = drop_name(lib.probe_encap_ip4_pull(view.pkt, out))
    if drop == "none":
        assert (bytes(out.src), bytes(out.dst)) == (data[12:16], data[16:20])
    return drop, out.tos, bytes(view)


def check_ipip(inner: bytes) -> str:
    """parse_inner() and encap_check_ipip()."""
    view = View(inner)
    return drop_name(lib.probe_encap_check_ipip(view.pkt))


def decap_ecn(inner: bytes, outer_tos: int) -> tuple[str, bytes]:
    """parse_inner() and encap_decap_ecn(): the drop, and the packet afterwards."""
    view = View(inner)
    drop = drop_name(lib.probe_encap_decap_ecn(view.pkt, outer_tos))
    return drop, bytes(view)


def decap_vxlan(payload: bytes) -> tuple[str, bytes]:
    """All that a VXLAN payload goes through before its addresses are looked at, as in rx.c."""
    drop, family, inner = vxlan_pull(payload)
    if drop != "none":
        return drop, b""
    drop, flow = parse(inner)
    if flow is None:
        return drop, b""
    return ("none", inner[: flow.total_len]) if flow.family == family else ("inner_version", b"")


def decap_ipip(data: bytes) -> tuple[str, bytes]:
    """All that a packet from a raw socket goes through before its addresses are looked at, as in rx.c."""
    drop, _, inner = ip4_pull(data)
    if drop == "none":
        drop = check_ipip(inner)
    return (drop, inner[: flow_of(inner).total_len]) if drop == "none" else (drop, b"")


def decap_bare(payload: bytes) -> tuple[str, bytes]:
    """All that a bare packet in UDP goes through before its addresses are looked at, as in rx.c."""
    drop = drop_name(lib.probe_encap_check_bare(View(payload).pkt))
    if drop != "none":
        return drop, b""
    drop, flow = parse(payload)
    if flow is None:
        return drop, b""
    return ("none", payload[: flow.total_len]) if flow.family == 4 else ("inner_version", b"")


# --- offload and ICMP ---------------------------------------------------------------------------------


class Vnet(NamedTuple):
    """struct virtio_net_hdr_v1."""

    flags: int = 0
    gso_type: int = GSO_NONE
    hdr_len: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0
    num_buffers: int = 0


_VNET = struct.Struct("=BBHHHHH")


def complete(data: bytes, vnet: Vnet) -> tuple[str, bytes]:
    """parse_inner() and offload_complete(): the drop, and the packet afterwards."""
    view = View(data)
    drop = drop_name(lib.probe_offload_complete(view.pkt, _VNET.pack(*vnet)))
    return drop, bytes(view)


def describe(data: bytes, mtu: int = 1450) -> tuple[int, Vnet]:
    """offload_describe() of a valid packet: wire packets it stands for, and its virtio header."""
    view = View(data)
    out = ffi.new("uint8_t[12]", b"\xee" * 12)
    units = lib.probe_offload_describe(view.pkt, mtu, out)
    assert bytes(view) == data
    return units, Vnet(*_VNET.unpack(bytes(out)))


def split(data: bytes, vnet: Vnet) -> tuple[str, list[bytes]]:
    """parse_inner(), split_plan() and all segments: the drop, and the packets that it is cut into."""
    view, most = View(data), len(data) + 1
    cap = len(data) * 200 + 1
    out, lens = ffi.new(f"uint8_t[{cap}]"), ffi.new(f"uint32_t[{most}]")
    count = lib.probe_split(view.pkt, _VNET.pack(*vnet), out, cap, lens, most)
    assert count != -1000, "no room"
    return ("none", _pieces(out, lens, count)) if count >= 0 else (drop_name(-count), [])


def merge(
    packets: Sequence[bytes],
    peers: Sequence[int] | None = None,
    *,
    has_udp: bool = True,
    is_run: bool = False,
) -> list[tuple[Vnet, bytes]]:
    """What is written to the TUN of packets that came together, in order: virtio header and packet.

    With `is_run` they are the datagrams of one message, and merge_follow() is asked first.
    """
    data = b"".join(packets)
    # A buffer of its own, so that the sanitizer sees every byte too far.
    buf, out = (
        ffi.new(f"uint8_t[{len(data) or 1}]", data),
        ffi.new(f"uint8_t[{len(data) + 12 * len(packets) + 1}]"),
    )
    lens = ffi.new("uint32_t[]", [len(packet) for packet in packets] or [0])
    senders = ffi.new("uint32_t[]", list(peers or [1] * len(packets)) or [0])
    out_lens = ffi.new(f"uint32_t[{len(packets) or 1}]")
    probe = lib.probe_merge_run if is_run else lib.probe_merge if has_udp else lib.probe_merge_tcp
    count = probe(buf, lens, senders, len(packets), out, out_lens)
    written = _pieces(out, out_lens, count)
    return [(Vnet(*_VNET.unpack(piece[:12])), piece[12:]) for piece in written]


def _pieces(out: Any, lens: Any, count: int) -> list[bytes]:
    data, pieces, at = bytes(ffi.buffer(out)), [], 0
    for i in range(count):
        pieces.append(data[at : at + lens[i]])
        at += lens[i]
    return pieces


def no_route(data: bytes) -> bytes:
    """icmp_no_route(): the error, empty if none may be sent."""
    view = View(data)
    out = ffi.new(f"uint8_t[{ICMP_MAX}]")
    length = lib.probe_icmp_no_route(out, view.pkt)
    return bytes(ffi.buffer(out, length))


def no_host(data: bytes) -> bytes:
    """icmp_no_host(): the error, empty if none may be sent."""
    view = View(data)
    out = ffi.new(f"uint8_t[{ICMP_MAX}]")
    length = lib.probe_icmp_no_host(out, view.pkt)
    return bytes(ffi.buffer(out, length))


def too_big(data: bytes, mtu: int) -> bytes:
    """icmp_too_big(): the error, empty if none may be sent."""
    view = View(data)
    out = ffi.new(f"uint8_t[{ICMP_MAX}]")
    length = lib.probe_icmp_too_big(out, view.pkt, mtu)
    return bytes(ffi.buffer(out, length))


# --- tables -------------------------------------------------------------------------------------------


def addr_fields(packed: bytes) -> dict[str, Any]:
    """Return the fields of a struct dp_addr."""
    return {"family": 4 if len(packed) == 4 else 6, "bytes": packed}


def prefix_fields(prefix: Prefix) -> dict[str, Any]:
    """Return the fields of a struct dp_prefix."""
    return {"addr": addr_fields(prefix.network_address.packed), "len": prefix.prefixlen}


_PREFIX = struct.Struct("=B16sB")


class Lpm:
    """A table that lpm_build() made."""

    def __init__(self, bits: int, prefixes: Iterable[tuple[int, int, int]]) -> None:
        """Take (first address, length, value) of each prefix."""
        entries = list(prefixes)
        self.bits = bits
        self.family = 4 if bits == 32 else 6
        size = bits // 8
        rows = (_PREFIX.pack(self.family, address.to_bytes(size, "big"), n) for address, n, _ in entries)
        array = ffi.from_buffer("struct dp_prefix[]", b"".join(rows))
        values = ffi.new("uint32_t[]", [value for _, _, value in entries])
        built = lib.probe_lpm_build(array, values, len(entries), self.family)
        self._lpm = ffi.gc(built, lib.probe_lpm_free)

    def lookup(self, addresses: Sequence[int]) -> list[int]:
        """Return the answer for each address."""
        answers = ffi.new("uint32_t[]", len(addresses))
        lib.probe_lpm_lookup(self._lpm, oracle.wire(addresses, self.bits), len(addresses), answers)
        return list(answers)

    def is_valid(self, value_max: int) -> bool:
        """lpm_is_valid()."""
        return bool(lib.probe_lpm_is_valid(self._lpm, value_max))


@dataclass(frozen=True, slots=True)
class Subnet:
    """A struct dp_subnet; the encapsulation is VXLAN."""

    prefix: Prefix
    peer_id: int
    vtep: str = oracle.OUTER_SRC
    mtu: int = 0


@dataclass(frozen=True, slots=True)
class Spec:
    """A struct dp_table_spec. Peers are (id, IPv4 address or None, IPv6 address or None)."""

    peers: Sequence[tuple[int, str | None, str | None]] = ()
    subnets: Sequence[Subnet] = ()
    own: Sequence[Prefix] = ()
    sources: Sequence[Prefix] = ()
    allowed: Sequence[Prefix] = ()
    generation: int = 1


def fib_create(spec: Spec) -> int:
    """dp_fib_create(): a descriptor, or -errno."""
    arrays: dict[str, Any] = {
        "peers": ffi.new("struct dp_peer[]", len(spec.peers)),
        "subnets": ffi.new("struct dp_subnet[]", len(spec.subnets)),
    }
    for row, (peer_id, addr4, addr6) in zip(arrays["peers"], spec.peers, strict=True):
        row.id = peer_id
        if addr4 is not None:
            row.addr4 = addr_fields(oracle.packed(addr4))
        if addr6 is not None:
            row.addr6 = addr_fields(oracle.packed(addr6))
    for row, subnet in zip(arrays["subnets"], spec.subnets, strict=True):
        row.prefix = prefix_fields(subnet.prefix)
        row.encap = lib.DP_ENCAP_VXLAN
        row.vtep = addr_fields(oracle.packed(subnet.vtep))
        row.peer_id = subnet.peer_id
        row.mtu = subnet.mtu
    for name in ("own", "sources", "allowed"):
        arrays[name] = ffi.new(
            "struct dp_prefix[]", [prefix_fields(prefix) for prefix in getattr(spec, name)]
        )
    fields = {"generation": spec.generation, **arrays}
    fields |= {f"{name}_count": len(array) for name, array in arrays.items()}
    return int(lib.dp_fib_create(ffi.new("struct dp_table_spec *", fields)))


class Fib:
    """A snapshot that dp_fib_open() accepted."""

    def __init__(self, fd: int) -> None:
        """Map it; raises OSError with the errno of a refusal."""
        out = ffi.new("dp_fib **")
        err = lib.dp_fib_open(fd, out)
        if err:
            raise OSError(-err, os.strerror(-err))
        self._fib = out[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        lib.dp_fib_close(self._fib)

    @property
    def generation(self) -> int:
        """Which table it is."""
        return int(lib.dp_fib_generation(self._fib))

    def subnet(self, packed: bytes) -> int | None:
        """fib_subnet(): the index of the entry in the spec."""
        index = int(lib.probe_fib_subnet(self._fib, 4 if len(packed) == 4 else 6, packed))
        return None if index < 0 else index

    def peer(self, packed: bytes) -> int | None:
        """fib_peer(): the peer id."""
        peer_id = int(lib.probe_fib_peer(self._fib, 4 if len(packed) == 4 else 6, packed))
        return None if peer_id == NO_PEER else peer_id

    def lists(self, packed: bytes) -> set[str]:
        """fib_holds(): which of the plain lists hold an address."""
        bits = int(lib.probe_fib_lists(self._fib, 4 if len(packed) == 4 else 6, packed))
        return {name for bit, name in enumerate(("own", "sources", "allowed")) if bits >> bit & 1}
