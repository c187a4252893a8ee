# SPDX-License-Identifier: Apache-2.0
"""flannel's formats: network config, lease values, lease keys, and the MTU that follows from them.

Field names match in any case, as Go's encoding/json does. Errors are ValueError with one line that names
the field and what is allowed; who reads the text knows the file and the line.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TypeVar

from dataplane.model import (
    PLAIN_ENCAPS,
    Encap,
    Lease,
    MacAddress,
    Network,
    NetworkConfig,
    SubnetKey,
    SubnetRange,
)

VNI_MAX = (1 << 24) - 1
DEFAULT_PORT = 8472  # what flannel and the kernel use; not IANA's 4789
UDP_PORT = 8285  # of flannel's type udp
MTU_MIN, MTU_MAX = 576, 65535
KEY_MAX = 100  # characters of a lease's key; the longest possible one has 65

# Bytes of outer headers: IPv4 or IPv6, UDP, VXLAN, Ethernet; IPv4 alone; IPv4 and UDP.
OVERHEAD = {
    (Encap.VXLAN, 4): 50,
    (Encap.VXLAN, 6): 70,
    (Encap.IPIP, 4): 20,
    (Encap.FLANNEL_UDP, 4): 28,
    (Encap.DIRECT, 4): 0,
    (Encap.NONE, 4): 0,
}

# What no pod network may touch: this host, every host, one link, groups.
_SPECIAL4 = tuple(map(IPv4Network, ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4")))
_SPECIAL6 = tuple(map(IPv6Network, ("::/127", "fe80::/10", "ff00::/8")))

BACKENDS = {
    "vxlan": Encap.VXLAN,
    "ipip": Encap.IPIP,
    "udp": Encap.FLANNEL_UDP,
    "host-gw": Encap.DIRECT,
    "alloc": Encap.NONE,
}
BACKEND_NAMES = {encap: name for name, encap in BACKENDS.items()}
# Known to flannel, so worth another answer than "unknown".
OTHER_BACKENDS = ("extension", "ipsec", "tencent-vpc", "wireguard")

_NETWORK_FIELDS = (
    *("Network", "SubnetLen", "SubnetMin", "SubnetMax", "EnableIPv4"),
    *("EnableIPv6", "IPv6Network", "IPv6SubnetLen", "IPv6SubnetMin", "IPv6SubnetMax"),
    *("EnableNFTables", "Backend"),
)
_BACKEND_FIELDS = ("Type", "VNI", "Port", "MTU", "GBP", "Learning", "DirectRouting")
_LEASE_FIELDS = ("PublicIP", "PublicIPv6", "BackendType", "BackendData", "BackendV6Data")
_DATA_FIELDS = ("VNI", "VtepMAC")

_KEY = re.compile(r"(?P<v4>[0-9.]+[-/]\d+)?(?:(?(v4)&)(?P<v6>[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*[-/]\d+))?")


# --- small readers ----------------------------------------------------------------------------------


def suggest(text: str, allowed: Iterable[str]) -> str:
    """Return ` (did you mean X?)` for something close to what is allowed, or nothing."""
    names = {name.lower(): name for name in allowed}
    close = difflib.get_close_matches(text.lower(), names, n=1)
    return f" (did you mean {names[close[0]]}?)" if close else ""


def fold_names(data: object, allowed: tuple[str, ...], where: str, *, strict: bool) -> dict[str, object]:
    """Return the fields of a JSON object under their proper names, whatever the case they came in."""
    if not isinstance(data, Mapping):
        raise ValueError(f"{where}: expected an object, not {describe_type(data)}")
    proper = {name.lower(): name for name in allowed}
    fields: dict[str, object] = {}
    for given, value in data.items():
        name = proper.get(str(given).lower())
        if name is None and strict:
            hint = suggest(str(given), allowed)
            raise ValueError(f'{where}: unknown field "{given}"{hint}; allowed are {", ".join(allowed)}')
        if name is not None and name in fields:
            raise ValueError(f'{where}: "{name}" is given twice')
        if name is not None:
            fields[name] = value
    return fields


def describe_type(value: object) -> str:
    """Name a JSON type for people."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"the boolean {str(value).lower()}"
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, str):
        return "a string"
    return "an array" if isinstance(value, list) else "an object"


def read_int(value: object, where: str, low: int, high: int) -> int:
    """Read an integer within bounds; true and 1.0 are none."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{where}: expected an integer from {low} to {high}, not {describe_type(value)}")
    if not low <= value <= high:
        raise ValueError(f"{where}: {value} is out of range, allowed is {low} to {high}")
    return value


def read_bool(value: object, where: str) -> bool:
    """Read true or false."""
    if not isinstance(value, bool):
        raise ValueError(f"{where}: expected true or false, not {describe_type(value)}")
    return value


def read_text(value: object, where: str) -> str:
    """Read a string."""
    if not isinstance(value, str):
        raise ValueError(f"{where}: expected a string, not {describe_type(value)}")
    return value


def read_net4(text: str, where: str) -> IPv4Network:
    """Read an IPv4 prefix; host bits are cut off, as flannel does."""
    try:
        address, slash, length = text.partition("/")
        if not slash or not length.isascii() or not length.isdigit():
            raise ValueError("no prefix length")
        return IPv4Network((IPv4Address(address), int(length)), strict=False)
    except ValueError:
        raise ValueError(
            f'{where}: "{text}" is no IPv4 network, expected for example 10.244.0.0/16'
        ) from None


def read_net6(text: str, where: str) -> IPv6Network:
    """Read an IPv6 prefix; host bits are cut off, as flannel does."""
    try:
        address, slash, length = text.partition("/")
        if not slash or not length.isascii() or not length.isdigit() or "%" in address:
            raise ValueError("no prefix length, or a zone")
        return IPv6Network((IPv6Address(address), int(length)), strict=False)
    except ValueError:
        raise ValueError(
            f'{where}: "{text}" is no IPv6 network, expected for example fd00:244::/48'
        ) from None


def check_unicast(address: IPv4Address | IPv6Address, where: str) -> None:
    """Refuse addresses that no node can be reached at."""
    kinds = {
        "unspecified": address.is_unspecified,
        "in 0.0.0.0/8": address.version == 4 and address.packed[0] == 0,
        "an IPv4 address written as IPv6": address.version == 6 and address.ipv4_mapped is not None,
        "a loopback address": address.is_loopback,
        "a multicast address": address.is_multicast,
        "the broadcast address": str(address) == "255.255.255.255",
        "a link-local address": address.is_link_local,
        "an address with a zone": "%" in str(address),
    }
    for kind, applies in kinds.items():
        if applies:
            raise ValueError(f"{where}: {address} is {kind}, expected the unicast address of a node")


def read_mac(value: object, where: str) -> MacAddress:
    """Read the MAC address of a VTEP: unicast and not zero."""
    text = read_text(value, where)
    if not re.fullmatch(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}", text):
        raise ValueError(f'{where}: "{text}" is no MAC address, expected for example 02:00:5e:10:00:01')
    octets = bytes.fromhex(text.replace(":", ""))
    if octets[0] & 1 or not any(octets):
        raise ValueError(f"{where}: {text} is no unicast MAC address")
    return MacAddress(octets)


# --- network config (flannel.md 1.2) -----------------------------------------------------------------


def read_encap(value: object, where: str) -> Encap:
    """Read a backend type."""
    text = read_text(value, where)
    encap = BACKENDS.get(text.lower())
    if encap is not None:
        return encap
    allowed = ", ".join(BACKENDS)
    if text.lower() in OTHER_BACKENDS:
        raise ValueError(f'{where} "{text}" is not supported yet: allowed are {allowed}')
    raise ValueError(f'{where} "{text}": allowed are {allowed}{suggest(text, BACKENDS)}')


def parse_network(data: object, where: str = "network", *, strict: bool = True) -> NetworkConfig:
    """Read flannel's network config. `strict` refuses unknown fields, for files that people write."""
    fields = fold_names(data, _NETWORK_FIELDS, where, strict=strict)
    has_v4 = read_bool(fields.get("EnableIPv4", True), f"{where}.EnableIPv4")
    has_v6 = read_bool(fields.get("EnableIPv6", False), f"{where}.EnableIPv6")
    if not has_v4 and not has_v6:
        raise ValueError(f"{where}: EnableIPv4 and EnableIPv6 are both false")
    read_bool(fields.get("EnableNFTables", False), f"{where}.EnableNFTables")
    network = network6 = None
    subnets = subnets6 = None
    if has_v4:
        if "Network" not in fields:
            raise ValueError(f'{where}: "Network" is missing, expected for example "10.244.0.0/16"')
        network = read_net4(read_text(fields["Network"], f"{where}.Network"), f"{where}.Network")
        if not 8 <= network.prefixlen <= 28:
            raise ValueError(f"{where}.Network: {network} has an unusable length, allowed is /8 to /28")
        _check_ordinary(network, f"{where}.Network")
        subnets = _read_range(fields, where, network)
    if has_v6:
        if "IPv6Network" not in fields:
            raise ValueError(f'{where}: "IPv6Network" is missing, expected for example "fd00:244::/48"')
        name = f"{where}.IPv6Network"
        network6 = read_net6(read_text(fields["IPv6Network"], name), name)
        if not 16 <= network6.prefixlen <= 124:
            raise ValueError(f"{name}: {network6} has an unusable length, allowed is /16 to /124")
        _check_ordinary(network6, name)
        subnets6 = _read_range(fields, where, network6)
    if "Backend" not in fields:
        raise ValueError(f'{where}: "Backend" is missing, expected for example {{"Type": "vxlan"}}')
    config = _parse_backend(fields["Backend"], f"{where}.Backend", has_v6=has_v6, strict=strict)
    return replace(config, network=network, network6=network6, subnets=subnets, subnets6=subnets6)


def _check_ordinary(network: Network, where: str) -> None:
    special: Iterable[Network] = _SPECIAL4 if network.version == 4 else _SPECIAL6
    if any(map(network.overlaps, special)):
        raise ValueError(f"{where}: {network} holds loopback, link-local, multicast or unspecified addresses")


def _read_range(fields: Mapping[str, object], where: str, network: IPv4Network | IPv6Network) -> SubnetRange:
    """Read SubnetLen, SubnetMin and SubnetMax by flannel's rules; 0 or none means flannel's default."""
    prefix, longest, usual = ("", 30, 24) if network.version == 4 else ("IPv6", 126, 64)
    shortest = network.prefixlen + 2
    name = f"{where}.{prefix}SubnetLen"
    length = read_int(fields.get(f"{prefix}SubnetLen", 0), name, 0, longest) or max(usual, shortest)
    if length < shortest:
        raise ValueError(
            f"{name}: {length} leaves no four subnets in {network}; allowed is {shortest} to {longest}"
        )
    step = 1 << network.max_prefixlen - length
    # flannel leaves the first subnet out, unless it is asked for.
    ends = [int(network.network_address) + step, int(network.broadcast_address) + 1 - step]
    for i, end in enumerate((f"{prefix}SubnetMin", f"{prefix}SubnetMax")):
        if fields.get(end) is not None:
            text = read_text(fields[end], f"{where}.{end}")
            ends[i] = _read_bound(text, f"{where}.{end}", network, length)
    if ends[0] > ends[1]:
        raise ValueError(f"{where}.{prefix}SubnetMin is above {prefix}SubnetMax")
    return SubnetRange(length, *ends)


def _read_bound(text: str, where: str, network: IPv4Network | IPv6Network, length: int) -> int:
    try:
        if "%" in text:  # IPv6Network() takes zones
            raise ValueError("a zone")
        address = type(network)(f"{text}/{network.max_prefixlen}").network_address
    except ValueError:
        raise ValueError(f'{where}: "{text}" is no IPv{network.version} address') from None
    if address not in network:
        raise ValueError(f"{where}: {address} is outside the network {network}")
    if int(address) & ((1 << network.max_prefixlen - length) - 1):
        raise ValueError(f"{where}: {address} is not where a /{length} begins")
    return int(address)


def _parse_backend(data: object, where: str, *, has_v6: bool, strict: bool) -> NetworkConfig:
    fields = fold_names(data, _BACKEND_FIELDS, where, strict=strict)
    short = where.rpartition(".")[2]
    if "Type" not in fields:
        raise ValueError(f'{where}: "Type" is missing; allowed are {", ".join(BACKENDS)}')
    encap = read_encap(fields["Type"], f"{short}.Type")
    for name in ("GBP", "Learning"):
        if read_bool(fields.get(name, False), f"{where}.{name}"):
            raise ValueError(f"{where}.{name}: true is not supported yet")
    if encap in PLAIN_ENCAPS and has_v6:
        name = BACKEND_NAMES[encap]
        raise ValueError(f"{where}.Type: {name} carries IPv4 only; use vxlan for an IPv6Network")
    usual_port = UDP_PORT if encap is Encap.FLANNEL_UDP else DEFAULT_PORT
    mtu = read_int(fields.get("MTU", 0), f"{where}.MTU", 0, MTU_MAX)
    if 0 < mtu < MTU_MIN:
        raise ValueError(f"{where}.MTU: {mtu} is too small, allowed is {MTU_MIN} to {MTU_MAX}, or 0")
    return NetworkConfig(
        network=None,
        network6=None,
        encap=encap,
        vni=read_int(fields.get("VNI", 1), f"{where}.VNI", 0, VNI_MAX),
        port=read_int(fields.get("Port", 0), f"{where}.Port", 0, 65535) or usual_port,
        underlay_mtu=mtu or None,
        has_direct_routing=read_bool(fields.get("DirectRouting", False), f"{where}.DirectRouting"),
    )


def network_value(network: NetworkConfig) -> dict[str, object]:
    """Return the network config as parse_network() reads it, with all defaults written out."""
    fields: dict[str, object] = {"EnableIPv4": network.network is not None}
    fields["EnableIPv6"] = network.network6 is not None
    for prefix, net, subnets in (
        ("", network.network, network.subnets),
        ("IPv6", network.network6, network.subnets6),
    ):
        if net is None:
            continue
        fields[f"{prefix}Network"] = str(net)
        if subnets is not None:
            kind = type(net.network_address)
            fields[f"{prefix}SubnetLen"] = subnets.length
            fields[f"{prefix}SubnetMin"] = str(kind(subnets.first))
            fields[f"{prefix}SubnetMax"] = str(kind(subnets.last))
    backend = {"Type": BACKEND_NAMES[network.encap], "VNI": network.vni, "Port": network.port}
    backend |= {"MTU": network.underlay_mtu or 0, "DirectRouting": network.has_direct_routing}
    return {**fields, "Backend": backend}


# --- leases (flannel.md 1.1, 1.3) --------------------------------------------------------------------


def parse_key(text: str) -> SubnetKey:
    """Read what a lease is keyed by: `10.244.1.0/24`, flannel's `10.244.1.0-24`, either with `&` and IPv6."""
    match = _KEY.fullmatch(text) if len(text) <= KEY_MAX else None
    if not match or not (match["v4"] or match["v6"]):
        example = "10.244.1.0/24 or 10.244.1.0/24&fd00:244:1::/64"
        raise ValueError(f'"{text[:KEY_MAX]}" is no subnet, expected for example {example}')
    v4, v6 = (part and part.replace("-", "/") for part in (match["v4"], match["v6"]))
    try:
        return SubnetKey(IPv4Network(v4) if v4 else None, IPv6Network(v6) if v6 else None)
    except ValueError as err:
        raise ValueError(f'"{text}" is no subnet: {err}') from None


def format_key(key: SubnetKey) -> str:
    """Return the key as flannel writes it in etcd: `10.244.1.0-24`, `…&fd00:244:1::-64`."""
    return str(key).replace("/", "-")


def _parse_data(data: object, where: str, *, strict: bool) -> tuple[int | None, MacAddress | None]:
    if data is None:
        return None, None
    fields = fold_names(data, _DATA_FIELDS, where, strict=strict)
    vni = read_int(fields["VNI"], f"{where}.VNI", 0, VNI_MAX) if "VNI" in fields else None
    mac = read_mac(fields["VtepMAC"], f"{where}.VtepMAC") if "VtepMAC" in fields else None
    return vni, mac


Ip = TypeVar("Ip", IPv4Address, IPv6Address)
Net = TypeVar("Net", IPv4Network, IPv6Network)


def _parse_ip(fields: Mapping[str, object], name: str, where: str, kind: type[Ip]) -> Ip | None:
    value = fields.get(name)
    if value is None or value == "0.0.0.0":  # flannel's way to say "none"
        return None
    text = read_text(value, f"{where}.{name}")
    try:
        address = kind(text)
    except ValueError:
        version = "IPv4" if kind is IPv4Address else "IPv6"
        raise ValueError(f'{where}.{name}: "{text}" is no {version} address') from None
    check_unicast(address, f"{where}.{name}")
    return address


def parse_lease(key: SubnetKey, data: object, where: str = "lease", *, strict: bool = True) -> Lease:
    """Read flannel's lease value. `strict` refuses unknown fields, for files that people write."""
    fields = fold_names(data, _LEASE_FIELDS, where, strict=strict)
    # flannel's udp says nothing of itself; where that is not enabled, the gate refuses the lease.
    says_nothing = not strict and fields.keys().isdisjoint(_LEASE_FIELDS[2:])
    if "BackendType" not in fields and not says_nothing:
        raise ValueError(f'{where}: "BackendType" is missing; allowed are {", ".join(BACKENDS)}')
    public_ip = _parse_ip(fields, "PublicIP", where, IPv4Address)
    public_ip6 = _parse_ip(fields, "PublicIPv6", where, IPv6Address)
    if public_ip is None and public_ip6 is None:
        raise ValueError(f'{where}: "PublicIP" is missing, expected the underlay address of the node')
    encap = read_encap(fields.get("BackendType", "udp"), f"{where}.BackendType")
    vni, mac = _parse_data(fields.get("BackendData"), f"{where}.BackendData", strict=strict)
    vni6, mac6 = _parse_data(fields.get("BackendV6Data"), f"{where}.BackendV6Data", strict=strict)
    if vni is not None and vni6 is not None and vni != vni6:
        raise ValueError(f"{where}: BackendData has VNI {vni}, BackendV6Data {vni6}; they must be equal")
    is_plain = encap in PLAIN_ENCAPS and not says_nothing  # that may be alloc, which carries nothing at all
    if is_plain and (public_ip is None or key.subnet is None or key.subnet6 is not None):
        name = BACKEND_NAMES[encap]
        raise ValueError(f'{where}: {name} carries IPv4 over IPv4: it needs a "PublicIP" and one IPv4 subnet')
    return Lease(key, public_ip, public_ip6, encap, mac, mac6, vni if vni is not None else vni6)


def lease_value(lease: Lease) -> str:
    """Return the lease value as flannel writes it, byte for byte."""
    value: dict[str, object] = {
        "PublicIP": str(lease.public_ip or "0.0.0.0"),  # null is refused by flannel
        "PublicIPv6": None if lease.public_ip6 is None else str(lease.public_ip6),
    }
    if lease.encap is not Encap.FLANNEL_UDP:
        value["BackendType"] = BACKEND_NAMES[lease.encap]
    for name, mac in (("BackendData", lease.vtep_mac), ("BackendV6Data", lease.vtep_mac6)):
        if mac is not None:
            value[name] = {"VNI": 1 if lease.vni is None else lease.vni, "VtepMAC": str(mac)}
    return json.dumps(value, separators=(",", ":"))


# --- subnet.env (flannel.md 3) ----------------------------------------------------------------------------


def _gateway(subnet: Network) -> str:
    return f"{subnet.network_address + 1}/{subnet.prefixlen}"


def format_subnet_env(network: NetworkConfig, key: SubnetKey, mtu: int, *, has_masq: bool) -> str:
    """Return subnet.env as flannel writes it, byte for byte; `mtu` in bytes, for pods."""
    lines = []
    if network.network is not None and key.subnet is not None:
        lines += [f"FLANNEL_NETWORK={network.network}", f"FLANNEL_SUBNET={_gateway(key.subnet)}"]
    if network.network6 is not None and key.subnet6 is not None:
        lines += [
            f"FLANNEL_IPV6_NETWORK={network.network6}",
            f"FLANNEL_IPV6_SUBNET={_gateway(key.subnet6)}",
        ]
    lines += [f"FLANNEL_MTU={mtu}", f"FLANNEL_IPMASQ={str(has_masq).lower()}"]
    return "".join(f"{line}\n" for line in lines)


def parse_subnet_env(text: str) -> SubnetKey | None:
    """Return the subnet that an earlier subnet.env names; None if it names none that can be read."""
    fields = dict(line.partition("=")[::2] for line in text.splitlines())
    subnet = _read_one(fields.get("FLANNEL_SUBNET", ""), read_net4)
    subnet6 = _read_one(fields.get("FLANNEL_IPV6_SUBNET", ""), read_net6)
    return SubnetKey(subnet, subnet6) if subnet is not None or subnet6 is not None else None


def _read_one(text: str, read: Callable[[str, str], Net]) -> Net | None:
    """Return the one network of a list; as flannel: what cannot be read is not there, and of two none is."""
    found = []
    for part in text.split(","):
        with contextlib.suppress(ValueError):
            found.append(read(part, "subnet"))
    return found[0] if len(found) == 1 else None


# --- what follows from the network ------------------------------------------------------------------------


def find_port(network: NetworkConfig, encap: Encap) -> int:
    """Return the UDP port of an encapsulation; `Port` is that of the network's own type."""
    if (encap is Encap.FLANNEL_UDP) == (network.encap is Encap.FLANNEL_UDP):
        return network.port
    return UDP_PORT if encap is Encap.FLANNEL_UDP else DEFAULT_PORT


def overlay_mtu(encap: Encap, underlay_mtu: int, *, is_underlay6: bool) -> int:
    """Return the largest inner packet, in bytes, that fits one frame of the underlay."""
    return underlay_mtu - OVERHEAD[encap, 6 if is_underlay6 and encap is Encap.VXLAN else 4]
