# SPDX-License-Identifier: Apache-2.0
"""The configuration of `overlayd run`: one table of flags, read from the command line and the environment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path
from typing import Any

from dataplane.errors import ConfigError
from dataplane.flannel import BACKENDS, check_unicast, suggest
from dataplane.model import Encap, Network

ENV_PREFIX = "OVERLAYD_"
NAME_MAX = 15  # IFNAMSIZ without its final NUL


@dataclass(frozen=True, slots=True)
class RunConfig:
    """What `overlayd run` was told."""

    store: str
    public_ip: IPv4Address | None = None  # None: the lease tells
    public_ip6: IPv6Address | None = None
    iface: str | None = None  # None: the one that holds the public address
    run_dir: Path = Path("/run/overlayd")
    state_dir: Path = Path("/var/lib/overlayd")
    tun_name: str = "overlay0"
    allow_source: tuple[Network, ...] = ()
    spoof: str = "enforce"
    vxlan_reserved: str = "drop"
    encap: tuple[Encap, ...] = ()  # besides the network's own
    tier: str = "auto"
    no_route: str = "icmp"
    forwarder: str = "spawn"
    log_level: str = "info"
    log_format: str = "text"


# --- what a value may be: each parser raises ValueError with what is wrong and what is allowed ------------


def _store(text: str) -> str:
    scheme, sep, path = text.partition("://")
    if sep and scheme in ("etcd", "kube", "sqlite"):
        raise ValueError(f"{scheme} is not supported yet; allowed is file:///path")
    if not sep or scheme != "file" or not path.startswith("/") or path == "/" or "%00" in path:
        raise ValueError(f'"{text}" is no store; allowed is file:///path')
    return text


def _public_ip(text: str) -> IPv4Address:
    try:
        address = IPv4Address(text)
    except ValueError:
        raise ValueError(f'"{text}" is no IPv4 address') from None
    check_unicast(address, "address")
    return address


def _public_ip6(text: str) -> IPv6Address:
    try:
        address = IPv6Address(text)
    except ValueError:
        raise ValueError(f'"{text}" is no IPv6 address') from None
    check_unicast(address, "address")
    return address


def _device(text: str) -> str:
    is_name = 0 < len(text.encode()) <= NAME_MAX and not set(text) & set("/ \t\n:%") and text.isprintable()
    if not is_name or text in (".", ".."):
        raise ValueError(
            f'"{text}" is no interface name; allowed are 1 to {NAME_MAX} characters without / : %'
        )
    return text


def _directory(text: str) -> Path:
    if not text.startswith("/") or "\0" in text:
        raise ValueError(f'"{text}" is no absolute path')
    return Path(text)


def _prefix(text: str) -> Network:
    no_network = f'"{text}" is no network, expected for example 10.9.0.0/16'
    if "%" in text:  # ip_network() takes zones
        raise ValueError(no_network)
    try:
        return ip_network(text)
    except ValueError:
        pass
    try:
        meant = ip_network(text, strict=False)
    except ValueError:
        raise ValueError(no_network) from None
    raise ValueError(f"{text} has host bits set; did you mean {meant}?")


def _encap(text: str) -> Encap:
    if text not in BACKENDS:
        raise ValueError(f'"{text}": allowed are {", ".join(BACKENDS)}{suggest(text, BACKENDS)}')
    return BACKENDS[text]


def _one_of(*allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in allowed:
            raise ValueError(f'"{text}": allowed are {", ".join(allowed)}{suggest(text, allowed)}')
        return text

    return parse


# --- the flags ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag: `--name METAVAR`, or OVERLAYD_NAME in the environment."""

    name: str
    field: str  # of RunConfig
    metavar: str
    help: str
    parse: Callable[[str], Any]
    is_repeatable: bool = False
    is_required: bool = False

    @property
    def variable(self) -> str:
        """The environment variable of the same meaning; a repeatable flag takes a comma list there."""
        return ENV_PREFIX + self.name.upper().replace("-", "_")


FLAGS = (
    Flag("store", "store", "URL", "where leases come from: file:///path", _store, is_required=True),
    Flag("public-ip", "public_ip", "ADDRESS", "our IPv4 underlay address", _public_ip),
    Flag("public-ipv6", "public_ip6", "ADDRESS", "our IPv6 underlay address", _public_ip6),
    Flag("iface", "iface", "NAME", "underlay interface (default: the one with the public address)", _device),
    Flag("run-dir", "run_dir", "PATH", "sockets and lock (default: /run/overlayd)", _directory),
    Flag("state-dir", "state_dir", "PATH", "survives a reboot (default: /var/lib/overlayd)", _directory),
    Flag("tun-name", "tun_name", "NAME", "the overlay device (default: overlay0)", _device),
    Flag("encap", "encap", "vxlan|ipip", "accept and send this encapsulation too; repeatable", _encap, True),
    Flag("allow-source", "allow_source", "CIDR", "accept these inner sources too; repeatable", _prefix, True),
    Flag(
        *("spoof", "spoof", "enforce|observe"),
        "drop forged sources, or only count them (default: enforce)",
        _one_of("enforce", "observe"),
    ),
    Flag(
        *("vxlan-reserved", "vxlan_reserved", "drop|ignore"),
        "packets with reserved VXLAN bits (default: drop)",
        _one_of("drop", "ignore"),
    ),
    Flag(
        *("no-route", "no_route", "icmp|drop"),
        "answer packets that no peer takes, or not (default: icmp)",
        _one_of("icmp", "drop"),
    ),
    Flag(
        *("tier", "tier", "auto|tun-csum|tun-vnet|tun-plain"),
        "highest rung of TUN offload to try (default: auto)",
        _one_of("auto", "tun-csum", "tun-vnet", "tun-plain"),
    ),
    Flag(
        *("forwarder", "forwarder", "spawn|wait"),
        "start a forwarder, or wait for one that somebody else runs (default: spawn)",
        _one_of("spawn", "wait"),
    ),
    Flag(
        *("log-level", "log_level", "debug|info|warning|error"),
        "least severe event to log (default: info)",
        _one_of("debug", "info", "warning", "error"),
    ),
    Flag(*("log-format", "log_format", "text|json"), "(default: text)", _one_of("text", "json")),
)


def _read_environment(environ: Mapping[str, str]) -> dict[str, list[str]]:
    known = {flag.variable: flag for flag in FLAGS}
    given: dict[str, list[str]] = {}
    for variable, text in environ.items():
        if not variable.startswith(ENV_PREFIX):
            continue
        flag = known.get(variable)
        if flag is None:
            raise ConfigError(f"environment variable {variable} is unknown{suggest(variable, known)}")
        given[flag.name] = text.split(",") if flag.is_repeatable else [text]
    return given


def _parse(flag: Flag, texts: Sequence[str], source: str) -> object:
    try:
        values = tuple(flag.parse(text) for text in texts)
    except ValueError as err:
        raise ConfigError(f"{source}: {err}") from None
    if flag.is_repeatable:
        return tuple(dict.fromkeys(values))
    if len(values) > 1:
        raise ConfigError(f"{source} is given {len(values)} times; once is allowed")
    return values[0]


def parse(given: Mapping[str, Sequence[str]], environ: Mapping[str, str]) -> RunConfig:
    """Read flags (name -> texts, in order) and environment; a flag beats its variable."""
    from_environment = _read_environment(environ)
    fields: dict[str, Any] = {}
    for flag in FLAGS:
        if given.get(flag.name):
            fields[flag.field] = _parse(flag, given[flag.name], f"--{flag.name}")
        elif flag.name in from_environment:
            fields[flag.field] = _parse(flag, from_environment[flag.name], flag.variable)
        elif flag.is_required:
            raise ConfigError(f"--{flag.name} is missing; expected {flag.help}")
    config = RunConfig(**fields)
    if config.iface == config.tun_name:
        raise ConfigError(
            f"--iface and --tun-name are both {config.iface}; the overlay needs a device of its own"
        )
    return config
