# SPDX-License-Identifier: Apache-2.0
"""The configuration of `overlayd run`: one table of flags, read from the command line and the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dataplane import flags as read
from dataplane.errors import ConfigError
from dataplane.flags import Flag, Given
from dataplane.model import ENCAPSULATE, OFFLOADS, Address, Encap, Network, Offload

STATE_DIR = "/var/lib/overlayd"
STORES = "sqlite:///path, file:///path, etcd and auto"
QUEUES_MAX, SOURCES_MAX = 15, 16
EVERYWHERE, HERE = IPv4Address("0.0.0.0"), IPv4Address("127.0.0.1")
CHATTY = 2  # flannel's --v from which on it tells what is for developers
ETCD_ENDPOINTS = ("http://127.0.0.1:4001", "http://127.0.0.1:2379")


@dataclass(frozen=True, slots=True)
class EtcdConfig:
    """Where etcd is, and as whom we speak to it."""

    endpoints: tuple[str, ...] = ETCD_ENDPOINTS
    prefix: str = "/coreos.com/network"
    keyfile: Path | None = None
    certfile: Path | None = None
    cafile: Path | None = None
    username: str = ""
    password: str = field(default="", repr=False)  # never shown


@dataclass(frozen=True, slots=True)
class RunConfig:
    """What `overlayd run` was told."""

    store: str
    store_reason: str = "--store"  # what chose it
    etcd_endpoints: tuple[str, ...] = ETCD_ENDPOINTS
    etcd_prefix: str = "/coreos.com/network"
    etcd_keyfile: Path | None = None
    etcd_certfile: Path | None = None
    etcd_cafile: Path | None = None
    etcd_username: str = ""
    etcd_password: str = field(default="", repr=False)  # never shown
    public_ip: IPv4Address | None = None  # None: the lease tells
    public_ip6: IPv6Address | None = None
    iface: tuple[str, ...] = ()  # names or addresses, the first that is there; none: what has our address
    iface_regex: tuple[str, ...] = ()
    iface_can_reach: Address | None = None
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
    encapsulate: str | None = None  # None: the network tells
    disable: tuple[Offload, ...] = ()
    no_route: str = "icmp"
    spin_us: int = 50
    threads: int | None = None  # None: by the number of processors, as the next ones
    queues: int | None = None
    source_ports: int | None = None
    datapath: str = "userspace"
    datapath_reason: str = "--datapath"  # what chose it
    forwarder: str = "spawn"
    takeover: tuple[str, ...] = ()  # flannel's devices
    ip_masq: bool = False
    masq_plain: bool = False  # source ports of masqueraded packets are not drawn at random
    rules_resync_s: int = 5
    forward_rules: bool = True
    blackhole_route: bool = False
    guard: bool = True
    healthz_ip: Address = EVERYWHERE
    healthz_port: int = 0  # 0: nobody listens
    metrics_ip: Address = HERE
    metrics_port: int = 0
    dry_run: bool = False
    version: bool = False  # asked for, instead of anything else
    log_level: str = "info"
    log_format: str = "text"
    verbosity: int = 0

    @property
    def etcd(self) -> EtcdConfig:
        """What was told of etcd."""
        return EtcdConfig(
            self.etcd_endpoints,
            self.etcd_prefix,
            self.etcd_keyfile,
            self.etcd_certfile,
            self.etcd_cafile,
            self.etcd_username,
            self.etcd_password,
        )


KUBE = "Kubernetes"

FLAGS = (
    Flag("store", "store", "URL", f"where leases are kept: {STORES} (default: auto)", read.anything),
    Flag(
        *("etcd-endpoints", "etcd_endpoints", "URL"),
        f"etcd servers; repeatable (default: {','.join(ETCD_ENDPOINTS)})",
        read.url,
        is_repeatable=True,
        is_flannels=True,
    ),
    Flag(
        *("etcd-prefix", "etcd_prefix", "KEY", "where flannel's keys are (default: /coreos.com/network)"),
        read.key_prefix,
        is_flannels=True,
    ),
    Flag(
        *("etcd-keyfile", "etcd_keyfile", "PATH", "key of our TLS certificate"),
        read.file,
        is_flannels=True,
    ),
    Flag(
        *("etcd-certfile", "etcd_certfile", "PATH", "our TLS certificate"),
        read.file,
        is_flannels=True,
    ),
    Flag(
        *("etcd-cafile", "etcd_cafile", "PATH", "certificates of those who vouch for the servers"),
        read.file,
        is_flannels=True,
    ),
    Flag(
        *("etcd-username", "etcd_username", "NAME", "user of etcd"),
        read.anything,
        is_flannels=True,
    ),
    Flag(
        *("etcd-password", "etcd_password", "TEXT", "password of that user; better in the environment"),
        read.anything,
        is_flannels=True,
    ),
    Flag(
        *("public-ip", "public_ip", "ADDRESS", "our IPv4 underlay address"),
        read.public_ip,
        is_flannels=True,
    ),
    Flag(
        *("public-ipv6", "public_ip6", "ADDRESS", "our IPv6 underlay address"),
        read.public_ip6,
        is_flannels=True,
    ),
    Flag(
        *("iface", "iface", "NAME|ADDRESS"),
        "underlay interface; repeatable, the first that is there (default: the one with our address)",
        read.device_or_address,
        is_repeatable=True,
        is_flannels=True,
    ),
    Flag(
        *("iface-regex", "iface_regex", "PATTERN"),
        "the interface of which an address matches, or else the name; repeatable, after --iface",
        read.pattern,
        is_repeatable=True,
        has_commas=True,
        is_flannels=True,
    ),
    Flag(
        *("iface-can-reach", "iface_can_reach", "ADDRESS"),
        "the interface by which packets to that address leave, after --iface-regex",
        read.any_address,
        is_flannels=True,
    ),
    Flag("run-dir", "run_dir", "PATH", "sockets and lock (default: /run/overlayd)", read.directory),
    Flag("state-dir", "state_dir", "PATH", f"survives a reboot (default: {STATE_DIR})", read.directory),
    Flag(
        *("subnet-file", "subnet_file", "PATH"),
        "tells CNI plugins our subnet (default: /run/flannel/subnet.env)",
        read.directory,
        is_flannels=True,
    ),
    Flag(
        *("subnet-lease-renew-margin", "renew_margin_min", "MINUTES"),
        "renew the lease when this much of it is left, 1 to 1439 (default: 60)",
        read.number(1, 1439, "minutes"),
        is_flannels=True,
    ),
    Flag(
        *("subnet-lease-ttl", "lease_ttl_s", "SECONDS"),
        "how long our lease lasts without renewal, 2 to 31536000 (default: 86400)",
        read.number(2, 31_536_000, "seconds"),
    ),
    Flag("tun-name", "tun_name", "NAME", "the overlay device (default: overlay0)", read.device),
    Flag(
        *("encap", "encap", "vxlan|ipip|udp|host-gw", "take peers of this type too; repeatable"),
        read.encap,
        is_repeatable=True,
    ),
    Flag(
        *("encapsulate", "encapsulate", "|".join(ENCAPSULATE)),
        "which peers get encapsulated packets: all, those that are not on our link, or none "
        "(default: as the network's DirectRouting says)",
        read.one_of(*ENCAPSULATE),
    ),
    Flag(
        *("allow-source", "allow_source", "CIDR", "accept these inner sources too; repeatable"),
        read.prefix,
        is_repeatable=True,
    ),
    Flag(
        *("spoof", "spoof", "enforce|observe"),
        "drop forged sources, or only count them (default: enforce)",
        read.one_of("enforce", "observe"),
    ),
    Flag(
        *("vxlan-reserved", "vxlan_reserved", "drop|ignore"),
        "packets with reserved VXLAN bits (default: drop)",
        read.one_of("drop", "ignore"),
    ),
    Flag(
        *("no-route", "no_route", "icmp|drop"),
        "answer packets that no peer takes, or not (default: icmp)",
        read.one_of("icmp", "drop"),
    ),
    Flag(
        *("disable", "disable", "OFFLOAD"),
        f"do without it; repeatable: all, {', '.join(OFFLOADS)}",
        read.offload,
        is_repeatable=True,
    ),
    Flag(
        *("spin-us", "spin_us", "MICROSECONDS"),
        "look for packets that long before sleeping, where it pays (default: 50; 0: never)",
        read.number(0, 1000, "microseconds"),
    ),
    Flag(
        *("threads", "threads", "COUNT"),
        f"carry packets, 1 to {QUEUES_MAX} (default: half of the processors, 1 to 8)",
        read.number(1, QUEUES_MAX, "threads"),
    ),
    Flag(
        *("queues", "queues", "COUNT"),
        f"keep flows apart, 1 to {QUEUES_MAX}, at least one per thread (default: 4)",
        read.number(1, QUEUES_MAX, "queues"),
    ),
    Flag(
        *("source-ports", "source_ports", "COUNT"),
        f"spread flows over that many, 1 to {SOURCES_MAX} (default: 4 on up to 2 processors, else 16)",
        read.number(1, SOURCES_MAX, "ports"),
    ),
    Flag(
        *("datapath", "datapath", "userspace|kernel|auto"),
        "what carries the packets: our forwarder, VXLAN devices of the kernel, or those if it has any "
        "(default: userspace)",
        read.one_of("userspace", "kernel", "auto"),
    ),
    Flag(
        *("forwarder", "forwarder", "spawn|wait"),
        "start a forwarder, or wait for one that somebody else runs (default: spawn)",
        read.one_of("spawn", "wait"),
    ),
    Flag(
        *("takeover", "takeover", "NAME"),
        "take over from this device of flannel's, with its MAC address; repeatable (flannel.1)",
        read.device,
        is_repeatable=True,
    ),
    Flag(
        *("ip-masq", "ip_masq", "true|false", "masquerade what leaves the overlay network (default: false)"),
        read.switch,
        is_switch=True,
        is_flannels=True,
    ),
    Flag(
        *("ip-masq-fully-random-disable", "masq_plain", "true|false"),
        "masquerade without drawing source ports at random (default: false)",
        read.switch,
        is_switch=True,
        is_flannels=True,
    ),
    Flag(
        *("iptables-resync", "rules_resync_s", "SECONDS"),
        "look whether our firewall rules are still there, 1 to 3600 (default: 5)",
        read.number(1, 3600, "seconds"),
        is_flannels=True,
    ),
    Flag(
        *("iptables-forward-rules", "forward_rules", "true|false"),
        "let the firewall forward packets of pods (default: true)",
        read.switch,
        is_switch=True,
        is_flannels=True,
    ),
    Flag(
        *("ip-blackhole-route", "blackhole_route", "true|false"),
        "drop packets to addresses of our subnet that no pod has (default: false)",
        read.switch,
        is_switch=True,
        is_flannels=True,
    ),
    Flag(
        *("guard", "guard", "true|false"),
        "have the firewall drop tunnel packets that are not ours (default: true)",
        read.switch,
        is_switch=True,
    ),
    Flag(
        *("healthz-ip", "healthz_ip", "ADDRESS", "where /healthz and /readyz are served (default: 0.0.0.0)"),
        read.any_address,
        is_flannels=True,
    ),
    Flag(
        *("healthz-port", "healthz_port", "PORT", "port of it, 0 to 65535 (default: 0, nobody listens)"),
        read.number(0, 65535, ""),
        is_flannels=True,
    ),
    Flag(
        *("metrics-ip", "metrics_ip", "ADDRESS", "where /metrics is served (default: 127.0.0.1)"),
        read.any_address,
    ),
    Flag(
        *("metrics-port", "metrics_port", "PORT", "port of it, 0 to 65535 (default: 0, nobody listens)"),
        read.number(0, 65535, ""),
    ),
    Flag(
        *("dry-run", "dry_run", "true|false", "print what would be done, and do nothing (default: false)"),
        read.switch,
        is_switch=True,
    ),
    Flag(
        *(
            "version",
            "version",
            "true|false",
            "print the version on standard error (default: false)",
        ),
        read.switch,
        is_switch=True,
        is_flannels=True,
    ),
    Flag(
        *("log-level", "log_level", "debug|info|warning|error"),
        "least severe event to log (default: info)",
        read.one_of("debug", "info", "warning", "error"),
    ),
    Flag(*("log-format", "log_format", "text|json"), "(default: text)", read.one_of("text", "json")),
    Flag(
        *("v", "verbosity", "NUMBER", f"flannel's: from {CHATTY} on --log-level debug (default: 0)"),
        read.number(0, 100, ""),
        is_flannels=True,
    ),
    Flag(*("vmodule", "", "TEXT", "flannel's; means nothing here"), read.anything, is_flannels=True),
    Flag(*("log_backtrace_at", "", "TEXT", "flannel's; means nothing here"), read.anything, is_flannels=True),
    Flag(
        *("kube-subnet-mgr", "", "false", "take Kubernetes (not supported yet)"),
        read.not_yet(KUBE, "false"),
        is_switch=True,
        is_flannels=True,
    ),
    *(
        Flag(name, "", metavar, "of Kubernetes (not supported yet)", read.not_yet(KUBE), is_flannels=True)
        for name, metavar in (
            ("kube-api-url", "URL"),
            ("kubeconfig-file", "PATH"),
            ("kube-annotation-prefix", "TEXT"),
            ("net-config-path", "PATH"),
            ("set-node-network-unavailable", "true|false"),
        )
    ),
)
ETCD = tuple(flag.name for flag in FLAGS if flag.name.startswith("etcd-"))


# --- what they mean together -----------------------------------------------------------------------------


def sqlite_url(state_dir: Path) -> str:
    """Return the URL of the embedded store in a state directory."""
    return f"sqlite://{quote(os.fsencode(state_dir / 'store.db'))}"


def choose_store(given: Mapping[str, Given], state_dir: Path) -> tuple[str, str]:
    """Return what --store auto stands for, and why: etcd if any flag of it is given, else sqlite."""
    source = next((given[name].source for name in ETCD if name in given), None)
    if source is not None:
        return "etcd", f"auto: {source} is given"
    return sqlite_url(state_dir), "auto: neither etcd nor Kubernetes is asked for"


def _check_store(text: str, source: str) -> None:
    scheme, sep, path = text.partition("://")
    if scheme == "kube":
        raise ConfigError(f"{source}: kube is not supported yet; allowed are {STORES}")
    if text in ("auto", "etcd"):
        return
    is_known = sep and scheme in ("file", "sqlite")
    if not is_known or not path.startswith("/") or path.endswith("/") or "%00" in path or "\0" in path:
        raise ConfigError(f'{source}: "{text}" is no store; allowed are {STORES}')


def _check_etcd(config: RunConfig) -> None:
    if (config.etcd_keyfile is None) != (config.etcd_certfile is None):
        raise ConfigError("--etcd-keyfile and --etcd-certfile belong together: give both or neither")
    plain = next((url for url in config.etcd_endpoints if url.startswith("http://")), None)
    if plain is not None and (config.etcd_cafile or config.etcd_certfile):
        raise ConfigError(
            f"--etcd-endpoints: {plain} is not encrypted, and there are TLS files; write https://"
        )
    if config.etcd_password and not config.etcd_username:
        raise ConfigError("--etcd-password is given without --etcd-username")


def _check_shared_port(config: RunConfig) -> None:
    if config.metrics_ip != config.healthz_ip:
        raise ConfigError(
            f"--metrics-port and --healthz-port are both {config.metrics_port}, and their addresses differ; "
            "choose another port, or give --metrics-ip and --healthz-ip the same address"
        )


def parse(words: Mapping[str, Sequence[str]], environ: Mapping[str, str]) -> RunConfig:
    """Read flags (name -> texts, in order) and environment; a flag beats its variable, ours flannel's."""
    given = read.read_given(FLAGS, words, environ)
    fields: dict[str, Any] = {"store": "auto"}
    for flag in FLAGS:
        if flag.name in given:
            value = read.parse_given(flag, given[flag.name])
            if flag.field:
                fields[flag.field] = value
    if "store" in given:
        _check_store(fields["store"], given["store"].source)
    if fields["store"] == "auto":
        state_dir = fields.get("state_dir", Path(STATE_DIR))
        fields["store"], fields["store_reason"] = choose_store(given, state_dir)
    if fields.get("verbosity", 0) >= CHATTY:
        fields.setdefault("log_level", "debug")
    config = RunConfig(**fields)
    if config.version:
        return config
    if config.store == "etcd":
        _check_etcd(config)
    if config.metrics_port and config.metrics_port == config.healthz_port:
        _check_shared_port(config)
    if config.tun_name in config.iface:
        raise ConfigError(
            f"--iface and --tun-name are both {config.tun_name}; the overlay needs a device of its own"
        )
    return config
