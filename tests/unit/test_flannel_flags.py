# SPDX-License-Identifier: Apache-2.0
"""Every flag of flanneld, in every way in which flanneld takes it: one row a flag."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import pytest

from dataplane import cli, config, options
from dataplane.errors import ConfigError

ENDPOINTS = ("http://127.0.0.1:4001", "http://127.0.0.1:2379")


@dataclass(frozen=True, slots=True)
class Row:
    """A flag: its default, a value and another, each as it is written and as it arrives."""

    name: str
    field: str
    default: object
    text: str
    value: object
    other: str
    other_value: object
    besides: tuple[str, ...] = ()  # what must be told with it
    is_repeatable: bool = False


IP, IP6 = IPv4Address, IPv6Address
TLS = ("--etcd-endpoints", "https://a:1")
ROWS = (
    Row(
        *("etcd-endpoints", "etcd_endpoints", ENDPOINTS, "http://a:1", ("http://a:1",)),
        *("http://b:1", ("http://b:1",)),
        is_repeatable=True,
    ),
    Row("etcd-prefix", "etcd_prefix", "/coreos.com/network", "/a", "/a", "/b", "/b"),
    Row(
        *("etcd-keyfile", "etcd_keyfile", None, "/a", Path("/a"), "/b", Path("/b")),
        (*TLS, "--etcd-certfile", "/c"),
    ),
    Row(
        *("etcd-certfile", "etcd_certfile", None, "/a", Path("/a"), "/b", Path("/b")),
        (*TLS, "--etcd-keyfile", "/k"),
    ),
    Row("etcd-cafile", "etcd_cafile", None, "/a", Path("/a"), "/b", Path("/b"), TLS),
    Row("etcd-username", "etcd_username", "", "a", "a", "b", "b"),
    Row("etcd-password", "etcd_password", "", "a", "a", "b", "b", ("--etcd-username", "u")),
    Row("iface", "iface", (), "eth0", ("eth0",), "192.0.2.1", ("192.0.2.1",), is_repeatable=True),
    Row("iface-regex", "iface_regex", (), "a,b", ("a,b",), "^c", ("^c",), is_repeatable=True),
    Row(
        *("iface-can-reach", "iface_can_reach", None, "192.0.2.1", IP("192.0.2.1")),
        *("2001:db8::1", IP6("2001:db8::1")),
    ),
    Row("subnet-file", "subnet_file", Path("/run/flannel/subnet.env"), "/a", Path("/a"), "/b", Path("/b")),
    Row("public-ip", "public_ip", None, "192.0.2.1", IP("192.0.2.1"), "192.0.2.2", IP("192.0.2.2")),
    Row(
        *("public-ipv6", "public_ip6", None, "2001:db8::1", IP6("2001:db8::1")),
        *("2001:db8::2", IP6("2001:db8::2")),
    ),
    Row("subnet-lease-renew-margin", "renew_margin_min", 60, "1", 1, "1439", 1439),
    Row("ip-masq", "ip_masq", False, "true", True, "false", False),
    Row("ip-masq-fully-random-disable", "masq_plain", False, "true", True, "false", False),
    Row("version", "version", False, "true", True, "false", False),
    Row("healthz-ip", "healthz_ip", IP("0.0.0.0"), "127.0.0.1", IP("127.0.0.1"), "::1", IP6("::1")),
    Row("healthz-port", "healthz_port", 0, "8081", 8081, "8082", 8082),
    Row("iptables-resync", "rules_resync_s", 5, "7", 7, "9", 9),
    Row("iptables-forward-rules", "forward_rules", True, "true", True, "false", False),
    Row("ip-blackhole-route", "blackhole_route", False, "true", True, "false", False),
    Row("v", "verbosity", 0, "1", 1, "3", 3),
    Row("vmodule", "", None, "a=1", None, "b=2", None),
    Row("log_backtrace_at", "", None, "a.go:1", None, "b.go:2", None),
)
KUBE = {
    "kube-subnet-mgr": "true",
    "kube-api-url": "http://a",
    "kubeconfig-file": "/a",
    "kube-annotation-prefix": "a",
    "net-config-path": "/a",
    "set-node-network-unavailable": "true",
}
rows = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
switches = pytest.mark.parametrize(
    "row", [row for row in ROWS if isinstance(row.default, bool)], ids=lambda row: row.name
)


def read(row: Row, words: Sequence[str], **environ: str) -> Any:
    """Return what arrives of a command line and an environment."""
    args = cli._parse(["run", *row.besides, *words])
    found = config.parse(args.given, environ)
    return getattr(found, row.field) if row.field else None


def test_every_flag_has_a_row() -> None:
    """All flags of flanneld are here, and no other."""
    names = {flag.name for flag in options.FLAGS if flag.is_flannels}
    assert {row.name for row in ROWS} | set(KUBE) == names


@rows
def test_default(row: Row) -> None:
    """A flag that is not given is as flanneld has it."""
    found = cli._parse(["run"])
    assert row.default == (getattr(config.parse(found.given, {}), row.field) if row.field else None)


@pytest.mark.parametrize("form", ["--{} {}", "-{} {}", "--{}={}", "-{}={}"])
@rows
def test_forms(row: Row, form: str) -> None:
    """One dash or two, with a space or an equals sign: it is the same flag; a switch wants the sign."""
    if isinstance(row.default, bool) and " " in form:
        form = form.replace(" {}", "")
        assert read(row, [form.format(row.name)]) is True
        return
    for text, value in ((row.text, row.value), (row.other, row.other_value)):
        assert read(row, form.format(row.name, text).split(" ")) == value


@switches
def test_switched_off(row: Row) -> None:
    """A switch can be said to be off, in all the words that flanneld knows."""
    for text in ("false", "0", "f", "F", "False", "FALSE"):
        assert read(row, [f"--{row.name}={text}"]) is False
    for text in ("true", "1", "t", "T", "True", "TRUE"):
        assert read(row, [f"-{row.name}={text}"]) is True


@rows
def test_repeated(row: Row) -> None:
    """Of several values the last one counts; what can be repeated takes all, in order."""
    words = [f"--{row.name}={row.text}", f"-{row.name}={row.other}"]
    if row.is_repeatable:
        assert read(row, words) == (*_values(row.value), *_values(row.other_value))
    else:
        assert read(row, words) == row.other_value


def _values(value: object) -> tuple[object, ...]:
    assert isinstance(value, tuple)
    return value


@rows
def test_variable(row: Row) -> None:
    """FLANNELD_ and the name in capitals means the same; a flag beats it; an empty one is none."""
    variable = "FLANNELD_" + row.name.upper().replace("-", "_")
    assert read(row, [], **{variable: row.other}) == row.other_value
    assert read(row, [f"--{row.name}={row.text}"], **{variable: row.other}) == row.value
    if not row.besides:
        assert read(row, [], **{variable: ""}) == row.default


@pytest.mark.parametrize("form", ["--{}={}", "-{}={}", "FLANNELD_"])
@pytest.mark.parametrize(("name", "text"), KUBE.items(), ids=KUBE)
def test_kubernetes(name: str, text: str, form: str) -> None:
    """What asks for Kubernetes is refused, wherever it is said, and never passed over."""
    environ, words = {}, []
    if form == "FLANNELD_":
        environ = {form + name.upper().replace("-", "_"): text}
    else:
        words = [form.format(name, text)]
    args = cli._parse(["run", *words])
    with pytest.raises(ConfigError, match=r": Kubernetes is not supported yet$") as caught:
        config.parse(args.given, environ)
    assert caught.value.exit_code == 2


def test_kubernetes_not_wanted() -> None:
    """Who says that Kubernetes is not asked for gets what he asked for."""
    args = cli._parse(["run", "-kube-subnet-mgr=false"])
    assert config.parse(args.given, {}) == config.parse({}, {})
