# SPDX-License-Identifier: Apache-2.0
"""The C engine for Python: the only importer of `_native`, and the only module where `Any` may be found.

Numbers and sizes come from the C library, so they cannot drift from csrc/dp.h. Calls are short, but for
serve(), which ends when the forwarder is told to stop. cffi lets go of the interpreter lock during each.
"""

from __future__ import annotations

import mmap
import os
import time
from contextlib import ExitStack
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from dataplane import layout
from dataplane._native import ffi as ffi  # engine.py's, too
from dataplane._native import lib as lib  # message.py's, privilege.py's and renewal.py's, too
from dataplane.errors import KernelError
from dataplane.model import Address, Encap, MacAddress, Offload, Table
from dataplane.slots import BARE_MAX, SLOTS, Fd, role_of, sum_by_role

MAX_PEERS: int = lib.DP_MAX_PEERS
ABI: int = lib.DP_ABI
MESSAGE_BYTES: int = ffi.sizeof("struct dp_msg")
CONFIG_BYTES: int = ffi.sizeof("struct dp_config")
HEAD_BYTES: int = ffi.sizeof("struct dp_counters_header")
THREAD_BYTES: int = ffi.sizeof("struct dp_thread_counters")  # whose heartbeat comes first


class MessageType(IntEnum):
    """What a control message asks for."""

    HELLO = lib.DP_MSG_HELLO
    TAKE = lib.DP_MSG_TAKE
    GO = lib.DP_MSG_GO
    PUBLISH = lib.DP_MSG_PUBLISH
    QUIESCE = lib.DP_MSG_QUIESCE
    RESUME = lib.DP_MSG_RESUME
    INSPECT = lib.DP_MSG_INSPECT
    STOP = lib.DP_MSG_STOP


class State(IntEnum):
    """What a forwarder is doing."""

    EMPTY = lib.DP_STATE_EMPTY
    RUNNING = lib.DP_STATE_RUNNING
    QUIESCED = lib.DP_STATE_QUIESCED


def check(result: int, what: str) -> int:
    """Return what a dp_* function returned, or raise the error it stands for; `what` was tried."""
    if result < 0:
        raise KernelError(what, -result)
    return result


# --- names ------------------------------------------------------------------------------------------


def _read_names(function: Any, count: int) -> tuple[str, ...]:
    return tuple(ffi.string(function(i)).decode() for i in range(count))


DROP_NAMES = _read_names(lib.dp_drop_name, lib.DP_DROP_COUNT)  # by enum dp_drop; [0] is no drop
ENCAP_NAMES = _read_names(lib.dp_encap_name, lib.DP_ENCAP_COUNT)  # by enum dp_encap

for _fd in Fd:
    if getattr(lib, f"DP_FD_{_fd.name}") != _fd:
        raise ImportError(f"{_fd!r} of dataplane/slots.py is not what csrc/dp.h says")
if len(SLOTS) != lib.DP_FD_SLOTS or BARE_MAX != lib.DP_MAX_BARE:
    raise ImportError("dataplane/slots.py counts other slots than csrc/dp.h")
for _offload in Offload:
    if getattr(lib, f"DP_TIER_{_offload.name}") != _offload:
        raise ImportError(f"{_offload!r} of dataplane/model.py is not what csrc/dp.h says")


def socket_tier() -> int:
    """Return which socket offloads the kernel knows: a mask of enum dp_tier."""
    return int(lib.dp_socket_tier())


def selftest(wanted: int) -> dict[Offload, int]:
    """Use offloads once, on scratch devices, 0.5 s at most; return those that fail, with the errno.

    KernelError if nothing can be tried here. One call at a time.
    """
    out = ffi.new("struct dp_selftest *")
    check(lib.dp_selftest(wanted, out), "testing offloads on scratch devices")
    return {offload: -out.errors[bit] for bit, offload in enumerate(Offload) if out.errors[bit]}


# --- values -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ForwarderConfig:
    """What a forwarder needs to know besides its descriptors: struct dp_config."""

    vni: int
    vxlan_port: int
    underlay_ifindex: int
    tun_mtu: int
    tier: int = 0
    vnet_hdr_len: int = 0
    threads: int = 1
    queues: int = 1
    sources: int = 1
    icmp_per_s: int = 0
    icmp_burst: int = 0
    spin_us: int = 0
    underlay4: IPv4Address | None = None
    underlay6: IPv6Address | None = None
    vtep_mac4: MacAddress | None = None
    vtep_mac6: MacAddress | None = None
    encaps: frozenset[Encap] = frozenset()
    bare_port: int = 0
    spoof_observe: bool = False
    reserved_ignore: bool = False
    dscp_inherit: bool = False
    ttl_inherit: bool = False
    outer_ttl: int = 0  # 0: that of the sockets, 64


_SWITCHES = ("spoof_observe", "reserved_ignore", "dscp_inherit", "ttl_inherit")
_NUMBERS = (
    *("vni", "vxlan_port", "bare_port", "underlay_ifindex", "tun_mtu", "tier", "vnet_hdr_len"),
    *("threads", "queues", "sources", "icmp_per_s", "icmp_burst", "spin_us", "outer_ttl"),
)


def _fill_addr(out: Any, address: Address | None) -> None:
    if address is not None:
        out.family = address.version
        ffi.memmove(out.bytes, address.packed, len(address.packed))


def fill_config(out: Any, config: ForwarderConfig) -> None:
    """Write a struct dp_config."""
    for name in _NUMBERS + _SWITCHES:
        setattr(out, name, getattr(config, name))
    _fill_addr(out.underlay4, config.underlay4)
    _fill_addr(out.underlay6, config.underlay6)
    if config.vtep_mac4 is not None:
        ffi.memmove(out.vtep_mac4, config.vtep_mac4.octets, 6)
    if config.vtep_mac6 is not None:
        ffi.memmove(out.vtep_mac6, config.vtep_mac6.octets, 6)
    out.encaps = sum(1 << encap for encap in config.encaps)


def pack_config(config: ForwarderConfig) -> bytes:
    """Return the struct dp_config as it travels between processes."""
    out = ffi.new("struct dp_config *")
    fill_config(out, config)
    return bytes(ffi.buffer(out))


def unpack_config(data: bytes) -> ForwarderConfig:
    """Read a struct dp_config of CONFIG_BYTES."""
    cdata = ffi.from_buffer("struct dp_config *", data)
    numbers: dict[str, Any] = {name: getattr(cdata, name) for name in _NUMBERS}
    switches = {name: bool(getattr(cdata, name)) for name in _SWITCHES}
    underlay4 = layout.read_addr(cdata.underlay4.family, bytes(cdata.underlay4.bytes))
    underlay6 = layout.read_addr(cdata.underlay6.family, bytes(cdata.underlay6.bytes))
    return ForwarderConfig(
        **numbers,
        **switches,
        underlay4=underlay4 if isinstance(underlay4, IPv4Address) else None,
        underlay6=underlay6 if isinstance(underlay6, IPv6Address) else None,
        vtep_mac4=layout.read_mac(bytes(cdata.vtep_mac4)),
        vtep_mac6=layout.read_mac(bytes(cdata.vtep_mac6)),
        encaps=frozenset(encap for encap in Encap if cdata.encaps & (1 << encap)),
    )


# --- table ------------------------------------------------------------------------------------------

for _layout, _name in ((layout.PEER, "dp_peer"), (layout.SUBNET, "dp_subnet"), (layout.PREFIX, "dp_prefix")):
    if _layout.size != ffi.sizeof(f"struct {_name}"):
        raise ImportError(f"struct {_name} of csrc/dp.h is not what dataplane/layout.py packs")

_PEERS = layout.Records(layout.pack_peer, layout.PEER.size)
_SUBNETS = layout.Records(layout.pack_subnet, layout.SUBNET.size)


def fib_create(table: Table, generation: int) -> int:
    """Build a sealed snapshot of the table; the caller owns the descriptor.

    Equal tables give equal bytes whatever the order of their parts, see fib_equal().
    """
    parts = {
        "peers": ("dp_peer", _PEERS.update(table.peers)),
        "subnets": ("dp_subnet", _SUBNETS.update(table.subnets)),
        "own": ("dp_prefix", layout.pack_prefixes(table.own)),
        "sources": ("dp_prefix", layout.pack_prefixes(table.sources)),
        "allowed": ("dp_prefix", layout.pack_prefixes(table.allowed)),
    }
    spec = ffi.new("struct dp_table_spec *", {"generation": generation})
    with ExitStack() as lent:  # not for longer, or the next table finds them locked
        for name, (ctype, data) in parts.items():
            array = lent.enter_context(ffi.from_buffer(f"struct {ctype}[]", data))
            setattr(spec, name, array)
            setattr(spec, f"{name}_count", len(array))
        return check(lib.dp_fib_create(spec), f"building the table of {len(table.subnets)} subnets")


def fib_equal(fd: int, other: int) -> bool:
    """Tell whether two snapshots are the same, byte for byte (so of the same generation, too)."""
    size = os.fstat(fd).st_size
    if size != os.fstat(other).st_size:
        return False
    with (
        mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ) as one,
        mmap.mmap(other, size, mmap.MAP_SHARED, mmap.PROT_READ) as two,
        memoryview(one) as left,
        memoryview(two) as right,
    ):
        return left == right


def read_fib(fd: int) -> tuple[int, Table]:
    """Return generation, peers and subnets of a snapshot; what is valid on this host is not read back."""
    out = ffi.new("dp_fib **")
    check(lib.dp_fib_open(fd, out), "reading the forwarder's table")
    fib = out[0]
    try:
        raw = []
        for function, ctype in ((lib.dp_fib_peers, "dp_peer"), (lib.dp_fib_subnets, "dp_subnet")):
            count = function(fib, ffi.new(f"struct {ctype}[1]"), 0)
            array = ffi.new(f"struct {ctype}[]", count)
            function(fib, array, count)
            raw.append(bytes(ffi.buffer(array)))
        generation: int = lib.dp_fib_generation(fib)
    finally:
        lib.dp_fib_close(fib)
    return generation, Table(layout.unpack_peers(raw[0]), layout.unpack_subnets(raw[1]))


# --- counters ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LastDrop:
    """The latest packet dropped for a reason: its inner destination (tx) or outer source (rx)."""

    address: Address | None
    age_s: float


@dataclass(frozen=True, slots=True)
class Direction:
    """What became of the packets of one direction; unit: wire packets. Reasons not met are left out."""

    offered: int
    forwarded: int
    bytes: int
    drops: dict[str, int]
    last: dict[str, LastDrop]


@dataclass(frozen=True, slots=True)
class Totals:
    """The counters of all workers added up."""

    tx: Direction
    rx: Direction
    heartbeat: int
    wakeups: int
    icmp_sent: int
    icmp_limited: int
    observed: int
    supers: int
    refused_tier: int  # mask of Offload
    faults: int
    queue_drops: dict[Fd, int]


@dataclass(frozen=True, slots=True)
class PeerCounters:
    """The counters of one peer; drops of both directions."""

    tx_packets: int
    tx_bytes: int
    rx_packets: int
    rx_bytes: int
    drops: dict[str, int]


@dataclass(frozen=True, slots=True)
class CountersHeader:
    """Who writes the counters, since when. Times are seconds of CLOCK_BOOTTIME."""

    threads: int
    max_peers: int
    start_s: float
    forwarder_s: float
    forwarder_pid: int
    restarts: int
    generation: int
    turn: int


def boottime_s() -> float:
    """Return the clock that the counters' times are of."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _read_drops(counts: Any) -> dict[str, int]:
    return {DROP_NAMES[i]: counts[i] for i in range(1, lib.DP_DROP_COUNT) if counts[i]}


def counters_create(threads: int = 1, max_peers: int = MAX_PEERS) -> int:
    """Make a memfd of zeroed counters; the caller owns it. Room that is not used costs no memory."""
    return check(lib.dp_counters_create(threads, max_peers), "creating the counters")


class Counters:
    """A reader's view of a counters memfd. The descriptor stays the caller's."""

    def __init__(self, fd: int) -> None:
        """Map the counters."""
        out = ffi.new("dp_counters **")
        check(lib.dp_counters_open(fd, 0, out), "reading the forwarder's counters")
        self._counters = out[0]

    def __enter__(self) -> Counters:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmap. May be called again."""
        lib.dp_counters_close(self._counters)
        self._counters = ffi.NULL

    def _mapped(self) -> Any:
        if self._counters == ffi.NULL:
            raise ValueError("counters are closed")
        return self._counters

    def header(self) -> CountersHeader:
        """Return who writes the counters."""
        out = ffi.new("struct dp_counters_header *")
        lib.dp_counters_header(self._mapped(), out)
        return CountersHeader(
            out.threads,
            out.max_peers,
            out.start_ns / 1e9,
            out.forwarder_ns / 1e9,
            out.forwarder_pid,
            out.restarts,
            out.generation,
            out.turn,
        )

    def totals(self) -> Totals:
        """Add up the workers. While packets flow, a batch may be offered and not yet forwarded."""
        out = ffi.new("struct dp_thread_counters *")
        lib.dp_counters_total(self._mapped(), out)
        now_s = boottime_s()
        return Totals(
            tx=_read_direction(out, lib.DP_TX, now_s),
            rx=_read_direction(out, lib.DP_RX, now_s),
            heartbeat=out.heartbeat,
            wakeups=out.wakeups,
            icmp_sent=out.icmp_sent,
            icmp_limited=out.icmp_limited,
            observed=out.observed,
            supers=out.supers,
            refused_tier=out.refused_tier,
            faults=out.faults,
            queue_drops=sum_by_role(out.queue_drops),
        )

    def peer(self, peer_id: int) -> PeerCounters:
        """Add up the workers for one peer."""
        out = ffi.new("struct dp_peer_counters *")
        check(lib.dp_counters_peer(self._mapped(), peer_id, out), f"counters of peer {peer_id}")
        tx, rx = lib.DP_TX, lib.DP_RX
        return PeerCounters(
            out.packets[tx], out.bytes[tx], out.packets[rx], out.bytes[rx], _read_drops(out.drops)
        )

    def peer_bytes(self, count: int) -> tuple[list[int], list[int]]:
        """Return the bytes that went to, and those that came from, each peer with an id below `count`."""
        tx, rx = ffi.new("uint64_t[]", count), ffi.new("uint64_t[]", count)
        lib.dp_counters_bytes(self._mapped(), count, tx, rx)
        return ffi.unpack(tx, count), ffi.unpack(rx, count)


def _read_direction(out: Any, way: int, now_s: float) -> Direction:
    last = {}
    for i in range(1, lib.DP_DROP_COUNT):
        seen = out.last[way][i]
        if seen.time_ns:
            address = layout.read_addr(seen.family, bytes(ffi.buffer(seen.words)))
            last[DROP_NAMES[i]] = LastDrop(address, max(0.0, now_s - seen.time_ns / 1e9))
    drops = _read_drops(out.drops[way])
    return Direction(out.offered[way], out.forwarded[way], out.bytes[way], drops, last)


# --- devices and sockets ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TunHandle:
    """An open TUN device and the offloads it has."""

    fd: int
    tier: int
    vnet_hdr_len: int


def tun_open(name: str, tier_mask: int) -> TunHandle:
    """Open a queue of a TUN device, made if it is not there, with what the kernel can of the mask."""
    tier = ffi.new("uint32_t *")
    vnet_hdr_len = ffi.new("uint32_t *")
    fd = check(lib.dp_tun_open(name.encode(), tier_mask, tier, vnet_hdr_len), f"opening TUN device {name}")
    return TunHandle(fd, tier[0], vnet_hdr_len[0])


def tun_prepare_steering() -> None:
    """Do what of tun_steer() takes CAP_BPF, once for all devices; KernelError if we may not, or cannot."""
    check(lib.dp_tun_prepare_steering(), "loading the program that keeps flows to their queues")


def tun_steer(fd: int) -> None:
    """Let each flow keep to one queue of a TUN device; KernelError if we may not, or the kernel cannot."""
    check(lib.dp_tun_steer(fd), "keeping flows to the queues of the TUN device")


def underlay_open(slot: int, config: ForwarderConfig, device: str, buffer_bytes: int) -> tuple[int, int]:
    """Open the socket of a slot on an underlay interface; return it and the buffer size granted."""
    cconfig = ffi.new("struct dp_config *")
    fill_config(cconfig, config)
    granted = ffi.new("int *")
    result = lib.dp_underlay_open(slot, cconfig, device.encode(), buffer_bytes, granted)
    return check(result, f"opening the {role_of(slot).name.lower()} socket on {device}"), granted[0]


# --- the forwarder process --------------------------------------------------------------------------


def serve(listen_fd: int, version: str, *, is_confined: bool) -> int:
    """Be a forwarder until a STOP: C from here on, Python is not entered meanwhile. Return 0 or -errno."""
    return int(lib.dp_serve(listen_fd, is_confined, version.encode()))
