# SPDX-License-Identifier: Apache-2.0
"""Kernel settings of this network namespace: those of our device are set, the others are looked at."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from dataplane import devconf
from dataplane.errors import KernelError
from dataplane.repairs import Changes


@lru_cache(64)  # of a new one all parts would go into Python's table of names, which each pass made larger
def _sysctl(name: str) -> Path:
    return Path("/proc/sys") / name


def read_sysctl(name: str) -> str | None:
    """Return a kernel setting of this network namespace; None if there is none of that name."""
    try:
        return _sysctl(name).read_text(encoding="ascii").strip()
    except OSError:
        return None


def is_read_only() -> bool:
    """Tell whether no setting can be written here: so it is in containers that are not privileged."""
    return bool(os.statvfs("/proc/sys").f_flag & os.ST_RDONLY)


def device_sysctls(tun_name: str, *, has_ipv6: bool) -> dict[str, str]:
    """Return the settings our device needs: it answers no router, invents no address, checks loosely.

    Where settings are read-only, only those that there is another way for: without an address of its link a
    device is sent no advertisements of routers, and no packet of its own leaves by IPv6.
    """
    ipv4, ipv6 = f"net/ipv4/conf/{tun_name}", f"net/ipv6/conf/{tun_name}"
    wanted = {
        f"{ipv4}/rp_filter": "2",
        f"{ipv6}/accept_ra": "0",
        f"{ipv6}/addr_gen_mode": "1",
        f"{ipv6}/disable_ipv6": "0" if has_ipv6 else "1",
    }
    return {name: value for name, value in wanted.items() if not is_read_only() or _has_netlink(name)}


def _has_netlink(name: str) -> bool:
    return "/conf/" in name and name.rpartition("/")[2] in devconf.NAMES


def _write(name: str, value: str) -> None:
    if _has_netlink(name) and is_read_only():
        devconf.put(name.split("/")[3], name.rpartition("/")[2], int(value))
    else:
        _sysctl(name).write_text(value, encoding="ascii")


def set_sysctls(wanted: dict[str, str], changes: Changes) -> None:
    """Write the settings that differ, as far as they may be. Without IPv6 there is nothing to set."""
    for name, value in wanted.items():
        if read_sysctl(name) in (None, value) or not changes.may(f"{name.replace('/', '.')} = {value}"):
            continue
        try:
            _write(name, value)
        except OSError as err:
            raise KernelError(f"setting {name.replace('/', '.')} to {value}", err.errno or 0) from None


def check_sysctls(*, has_ipv6: bool) -> list[str]:
    """Return a warning for each setting of the whole host that costs packets; none is ours to change."""
    warnings = []
    wanted = {"net/ipv4/ip_forward": "1"}
    if has_ipv6:
        wanted["net/ipv6/conf/all/forwarding"] = "1"
    for name, value in wanted.items():
        found = read_sysctl(name)
        if found != value:
            dotted = name.replace("/", ".")
            warnings.append(
                f"{dotted} is {found}: packets of pods are not forwarded. Fix: sysctl -w {dotted}={value}"
            )
    # A strict net.ipv4.conf.all.rp_filter is none of them: the greater of it and our device's 2 holds.
    return warnings


# --- ports that nobody gets who asks for any ----------------------------------------------------------------

RESERVED = "net/ipv4/ip_local_reserved_ports"


def _parse_ports(text: str) -> set[int]:
    """Read `8080,9000-9010`, as the kernel writes it."""
    ports: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        ports.update(range(int(first), int(last or first) + 1))
    return ports


def _format_ports(ports: set[int]) -> str:
    edges = sorted(port for port in ports if port - 1 not in ports)
    ends = sorted(port for port in ports if port + 1 not in ports)
    return ",".join(f"{first}-{last}" for first, last in zip(edges, ends, strict=True))


def reserve_ports(wanted: set[int], ours: set[int]) -> set[int]:
    """Reserve ports, and of `ours`, which we have reserved before, no others; return which are ours now."""
    text = read_sysctl(RESERVED)
    if text is None:
        return set()
    reserved = _parse_ports(text)
    kept = reserved - (ours - wanted)
    result = kept | wanted
    if result != reserved:
        # An empty text would be no write at all.
        set_sysctls({RESERVED: _format_ports(result) or "\n"}, Changes())
    return wanted - (kept - ours)


# --- bridges ------------------------------------------------------------------------------------------------


def check_bridges(*, has_ipv6: bool, sys: Path = Path("/sys"), proc: Path = Path("/proc/sys")) -> list[str]:
    """Return a warning if packets between pods on one bridge go past the firewall, as flannel does."""
    if not any(sys.glob("class/net/*/bridge")):
        return []
    families = ("iptables", "ip6tables") if has_ipv6 else ("iptables",)
    missing = [name for name in families if not (proc / f"net/bridge/bridge-nf-call-{name}").exists()]
    return [
        f"there is no net.bridge.bridge-nf-call-{name}: what pods on one bridge send each other by way of a "
        "service passes no firewall rules. Fix: modprobe br_netfilter"
        for name in missing[:1]
    ]
