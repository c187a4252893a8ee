# SPDX-License-Identifier: Apache-2.0
"""Kernel settings of this network namespace: those of our device are set, the others are looked at."""

from __future__ import annotations

from pathlib import Path

from dataplane.errors import KernelError


def _sysctl(name: str) -> Path:
    return Path("/proc/sys") / name


def read_sysctl(name: str) -> str | None:
    """Return a kernel setting of this network namespace; None if there is none of that name."""
    try:
        return _sysctl(name).read_text(encoding="ascii").strip()
    except OSError:
        return None


def device_sysctls(tun_name: str, *, has_ipv6: bool) -> dict[str, str]:
    """Return the settings our device needs: it answers no router, invents no address, checks loosely."""
    ipv4, ipv6 = f"net/ipv4/conf/{tun_name}", f"net/ipv6/conf/{tun_name}"
    return {
        f"{ipv4}/rp_filter": "2",
        f"{ipv6}/accept_ra": "0",
        f"{ipv6}/addr_gen_mode": "1",
        f"{ipv6}/disable_ipv6": "0" if has_ipv6 else "1",
    }


def set_sysctls(wanted: dict[str, str]) -> list[str]:
    """Write the settings that differ; return which those were. Without IPv6 there is nothing to set."""
    changed = []
    for name, value in wanted.items():
        if read_sysctl(name) in (None, value):
            continue
        try:
            _sysctl(name).write_text(value, encoding="ascii")
        except OSError as err:
            raise KernelError(f"setting {name.replace('/', '.')} to {value}", err.errno or 0) from None
        changed.append(f"{name.replace('/', '.')} = {value}")
    return changed


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
