# SPDX-License-Identifier: Apache-2.0
"""The configuration of `overlayd run`, from the command line and the environment, by the table of flags."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from dataplane import flags as read
from dataplane.errors import ConfigError
from dataplane.flags import Given
from dataplane.model import OUTER_TTL, Address, Encap, Network, Offload
from dataplane.options import CHATTY, ETCD, ETCD_ENDPOINTS, FLAGS, STATE_DIR, STORES

EVERYWHERE, HERE = IPv4Address("0.0.0.0"), IPv4Address("127.0.0.1")


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
    dscp: str = "pipe"
    outer_ttl: int | None = OUTER_TTL  # None: that of the inner packet
    encap: tuple[Encap, ...] = ()  # besides the network's own
    encapsulate: str | None = None  # None: the network tells
    disable: tuple[Offload, ...] = ()
    no_route: str = "icmp"
    icmp_rate: int = 1000
    spin_us: int = 50
    threads: int | None = None  # None: by the number of processors, as the next ones
    queues: int | None = None
    source_ports: int | None = None
    datapath: str = "userspace"
    datapath_reason: str = "--datapath"  # what chose it
    forwarder: str = "spawn"
    spare: bool = True
    replace: bool = False  # a control that is there
    takeover: tuple[str, ...] = ()  # flannel's devices
    ip_masq: bool = False
    masq_plain: bool = False  # source ports of masqueraded packets are not drawn at random
    rules_resync_s: int = 5
    forward_rules: bool = True
    blackhole_route: bool = False
    guard: bool = True
    mss_clamp: bool = False
    max_peers: int = 65536
    withdrawal_share: int = 20  # percent
    withdrawal_count: int = 5
    withdrawal_window_s: int = 10
    withdrawal_hold_s: int = 30
    last_state_age_h: int = 168
    path_probes: bool = True
    healthz_ip: Address = EVERYWHERE
    healthz_port: int = 0  # 0: nobody listens
    metrics_ip: Address = HERE
    metrics_port: int = 0
    dry_run: bool = False
    version: bool = False  # asked for, instead of anything else
    log_level: str = "info"
    log_format: str = "text"
    verbosity: int = 0
    exposed: tuple[str, ...] = ()  # what of it others can read or change: warnings

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


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _find_exposed(config: RunConfig, given: Mapping[str, Given]) -> tuple[str, ...]:
    """Return a warning for each way in which others can see or change what etcd is told and tells."""
    found = []
    plain = [url for url in config.etcd_endpoints if url.startswith("http://") and not _is_loopback(url)]
    if plain:
        what = "leases, and read the password" if config.etcd_password else "leases"
        found.append(
            f"etcd: {', '.join(plain)} is not encrypted: who is on the way can change {what}. "
            "Fix: https:// and --etcd-cafile"
        )
    password = given.get("etcd-password")
    if password is not None and password.source.startswith("--"):
        found.append(
            f"{password.source}: whoever may list processes can read it. Fix: OVERLAYD_ETCD_PASSWORD instead"
        )
    return tuple(found)


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
        config = replace(config, exposed=_find_exposed(config, given))
    if config.metrics_port and config.metrics_port == config.healthz_port:
        _check_shared_port(config)
    if config.tun_name in config.iface:
        raise ConfigError(
            f"--iface and --tun-name are both {config.tun_name}; the overlay needs a device of its own"
        )
    return config
