# SPDX-License-Identifier: Apache-2.0
"""The configuration of `overlayd run`: one table of flags, read from the command line and the environment."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dataplane.errors import ConfigError
from dataplane.flannel import BACKENDS, check_unicast, suggest
from dataplane.model import ALL_OFFLOADS, OFFLOADS, Encap, Network, Offload

ENV_PREFIX = "OVERLAYD_"
FLANNEL_PREFIX = "FLANNELD_"
STATE_DIR = "/var/lib/overlayd"
STORES = "sqlite:///path, file:///path and auto"
QUEUES_MAX, SOURCES_MAX = 15, 16
NAME_MAX = 15  # IFNAMSIZ without its final NUL


@dataclass(frozen=True, slots=True)
class RunConfig:
    """What `overlayd run` was told."""

    store: str
    store_reason: str = "--store"  # what chose it
    public_ip: IPv4Address | None = None  # None: the lease tells
    public_ip6: IPv6Address | None = None
    iface: str | None = None  # None: the one that holds the public address
    run_dir: Path = Path("/run/overlayd")
    state_dir: Path = Path(STATE_DIR)
    subnet_file: Path = Path("/run/flannel/subnet.env")
    lease_ttl_s: int = 86400
    renew_margin_min: int = 60
    tun_name: str = "overlay0"
    allow_source: tuple[Network, ...] = ()
    spoof: str = "enforce"
    vxlan_reserved: str = "drop"
    encap: tuple[Encap, ...] = ()  # besides the network's own
    disable: tuple[Offload, ...] = ()
    no_route: str = "icmp"
    spin_us: int = 50
    threads: int | None = None  # None: by the number of processors, as the next ones
    queues: int | None = None
    source_ports: int | None = None
    forwarder: str = "spawn"
    log_level: str = "info"
    log_format: str = "text"


# --- what a value may be: each parser raises ValueError with what is wrong and what is allowed ------------


def _store(text: str) -> str:
    scheme, sep, path = text.partition("://")
    if scheme in ("etcd", "kube"):
        raise ValueError(f"{scheme} is not supported yet; allowed are {STORES}")
    if text == "auto":
        return text
    is_known = sep and scheme in ("file", "sqlite")
    if not is_known or not path.startswith("/") or path.endswith("/") or "%00" in path or "\0" in path:
        raise ValueError(f'"{text}" is no store; allowed are {STORES}')
    return text


def _number(low: int, high: int, unit: str) -> Callable[[str], int]:
    def parse(text: str) -> int:
        is_number = text.isascii() and text.isdigit() and len(text) <= 12
        if not is_number or not low <= int(text) <= high:
            raise ValueError(f'"{text[:20]}" is not allowed; allowed are {low} to {high} {unit}')
        return int(text)

    return parse


def _anything(text: str) -> str:
    return text


def _switch(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0", "t", "f"):
        raise ValueError(f'"{text}": allowed are true, false')
    return text.lower() in ("true", "1", "t")


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


def _offload(text: str) -> Offload:
    allowed = {"all": ALL_OFFLOADS, **OFFLOADS}
    if text not in allowed:
        raise ValueError(f'"{text}": allowed are {", ".join(allowed)}{suggest(text, allowed)}')
    return allowed[text]


def _one_of(*allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in allowed:
            raise ValueError(f'"{text}": allowed are {", ".join(allowed)}{suggest(text, allowed)}')
        return text

    return parse


# --- the flags ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag: `--name METAVAR`, or OVERLAYD_NAME in the environment. Repeatable ones take comma lists."""

    name: str
    field: str  # of RunConfig
    metavar: str
    help: str
    parse: Callable[[str], Any]
    is_repeatable: bool = False
    selects: str | None = None  # the store that --store auto takes when this is given; field is "" then
    is_switch: bool = False  # may stand without a value: true

    @property
    def variable(self) -> str:
        """The environment variable of the same meaning."""
        return ENV_PREFIX + self.name.upper().replace("-", "_")


def _etcd(name: str, metavar: str) -> Flag:
    return Flag(name, "", metavar, "take etcd (not supported yet)", _anything, selects="etcd")


FLAGS = (
    Flag(
        *("store", "store", "URL", f"where leases are kept: {STORES} (default: auto)"),
        _store,
    ),
    Flag("public-ip", "public_ip", "ADDRESS", "our IPv4 underlay address", _public_ip),
    Flag("public-ipv6", "public_ip6", "ADDRESS", "our IPv6 underlay address", _public_ip6),
    Flag("iface", "iface", "NAME", "underlay interface (default: the one with the public address)", _device),
    Flag("run-dir", "run_dir", "PATH", "sockets and lock (default: /run/overlayd)", _directory),
    Flag("state-dir", "state_dir", "PATH", f"survives a reboot (default: {STATE_DIR})", _directory),
    Flag(
        *("subnet-file", "subnet_file", "PATH"),
        "tells CNI plugins our subnet (default: /run/flannel/subnet.env)",
        _directory,
    ),
    Flag(
        *("subnet-lease-renew-margin", "renew_margin_min", "MINUTES"),
        "renew the lease when this much of it is left, 1 to 1439 (default: 60)",
        _number(1, 1439, "minutes"),
    ),
    Flag(
        *("subnet-lease-ttl", "lease_ttl_s", "SECONDS"),
        "how long our lease lasts without renewal, 2 to 31536000 (default: 86400)",
        _number(2, 31_536_000, "seconds"),
    ),
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
        *("disable", "disable", "OFFLOAD"),
        f"do without it; repeatable: all, {', '.join(OFFLOADS)}",
        _offload,
        True,
    ),
    Flag(
        *("spin-us", "spin_us", "MICROSECONDS"),
        "look for packets that long before sleeping, where it pays (default: 50; 0: never)",
        _number(0, 1000, "microseconds"),
    ),
    Flag(
        *("threads", "threads", "COUNT"),
        f"carry packets, 1 to {QUEUES_MAX} (default: half of the processors, 1 to 8)",
        _number(1, QUEUES_MAX, "threads"),
    ),
    Flag(
        *("queues", "queues", "COUNT"),
        f"keep flows apart, 1 to {QUEUES_MAX}, at least one per thread (default: 4)",
        _number(1, QUEUES_MAX, "queues"),
    ),
    Flag(
        *("source-ports", "source_ports", "COUNT"),
        f"spread flows over that many, 1 to {SOURCES_MAX} (default: 4 on up to 2 processors, else 16)",
        _number(1, SOURCES_MAX, "ports"),
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
    # flannel's, by which --store auto chooses
    _etcd("etcd-endpoints", "URLS"),
    _etcd("etcd-prefix", "KEY"),
    _etcd("etcd-keyfile", "PATH"),
    _etcd("etcd-certfile", "PATH"),
    _etcd("etcd-cafile", "PATH"),
    _etcd("etcd-username", "NAME"),
    _etcd("etcd-password", "TEXT"),
    Flag(
        *("kube-subnet-mgr", "", "true|false", "take Kubernetes (not supported yet)"),
        _switch,
        selects="kube",
        is_switch=True,
    ),
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
        given[flag.name] = [text]
    return given


def _parse(flag: Flag, texts: Sequence[str], source: str) -> object:
    if flag.is_repeatable:
        texts = [part for text in texts for part in text.split(",")]
    try:
        values = tuple(flag.parse(text) for text in texts)
    except ValueError as err:
        raise ConfigError(f"{source}: {err}") from None
    if flag.is_repeatable:
        return tuple(dict.fromkeys(values))
    if len(values) > 1:
        raise ConfigError(f"{source} is given {len(values)} times; once is allowed")
    return values[0]


def _find_selector(given: Mapping[str, object], environ: Mapping[str, str], store: str) -> str | None:
    """Return what asks for a store: a flag, its variable, or flannel's variable of that name."""
    for flag in FLAGS:
        if flag.selects != store:
            continue
        variable = FLANNEL_PREFIX + flag.variable.removeprefix(ENV_PREFIX)
        if flag.name in given:
            value, source = given[flag.name], f"--{flag.name}"
        elif variable in environ:
            value, source = _parse(flag, [environ[variable]], variable), variable
        else:
            continue
        if value is not False:
            return source
    return None


def sqlite_url(state_dir: Path) -> str:
    """Return the URL of the embedded store in a state directory."""
    return f"sqlite://{quote(os.fsencode(state_dir / 'store.db'))}"


def choose_store(given: Mapping[str, object], environ: Mapping[str, str], state_dir: Path) -> tuple[str, str]:
    """Return what --store auto stands for, and why: kube flag, then any etcd flag, then sqlite."""
    for store in ("kube", "etcd"):
        source = _find_selector(given, environ, store)
        if source is not None:
            raise ConfigError(f"{source} asks for {store}, which is not supported yet; allowed are {STORES}")
    return sqlite_url(state_dir), "auto: neither etcd nor Kubernetes is asked for"


def parse(given: Mapping[str, Sequence[str]], environ: Mapping[str, str]) -> RunConfig:
    """Read flags (name -> texts, in order) and environment; a flag beats its variable."""
    from_environment = _read_environment(environ)
    fields: dict[str, Any] = {"store": "auto"}
    selectors: dict[str, object] = {}
    for flag in FLAGS:
        if given.get(flag.name):
            value = _parse(flag, given[flag.name], f"--{flag.name}")
        elif flag.name in from_environment:
            value = _parse(flag, from_environment[flag.name], flag.variable)
        else:
            continue
        if flag.selects is None:
            fields[flag.field] = value
        else:
            selectors[flag.name] = value
    if fields["store"] == "auto":
        state_dir = fields.get("state_dir", Path(STATE_DIR))
        fields["store"], fields["store_reason"] = choose_store(selectors, environ, state_dir)
    config = RunConfig(**fields)
    if config.iface == config.tun_name:
        raise ConfigError(
            f"--iface and --tun-name are both {config.iface}; the overlay needs a device of its own"
        )
    return config
