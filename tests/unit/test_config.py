# SPDX-License-Identifier: Apache-2.0
"""The flags of `overlayd run`: what each takes, what it refuses and in which words, and who beats whom."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

import pytest

from dataplane import config, flags
from dataplane.config import RunConfig
from dataplane.errors import ConfigError
from dataplane.model import Encap, Offload
from dataplane.options import FLAGS

STORE = "file:///etc/overlayd/peers.json"

VALID = (
    ("store", ["file:///a"], "file:///a"),
    ("public-ip", ["192.0.2.1"], IPv4Address("192.0.2.1")),
    ("public-ipv6", ["2001:db8::1"], IPv6Address("2001:db8::1")),
    ("etcd-endpoints", ["http://a:1", "https://[::1]:2/"], ("http://a:1", "https://[::1]:2")),
    ("etcd-prefix", ["/x/y/"], "/x/y"),
    ("etcd-keyfile", ["/k.pem"], Path("/k.pem")),
    ("etcd-certfile", ["/c.pem"], Path("/c.pem")),
    ("etcd-cafile", ["/ca.pem"], Path("/ca.pem")),
    ("etcd-username", ["overlayd"], "overlayd"),
    ("etcd-password", ["pass,word"], "pass,word"),
    ("iface", ["eth0.100", "192.0.2.1", "FD00::1"], ("eth0.100", "192.0.2.1", "fd00::1")),
    ("iface-regex", ["^eth[0-9]{1,2}$"], ("^eth[0-9]{1,2}$",)),
    ("iface-can-reach", ["192.0.2.9"], IPv4Address("192.0.2.9")),
    ("ip-masq", ["True"], True),
    ("ip-masq-fully-random-disable", ["1"], True),
    ("iptables-resync", ["10"], 10),
    ("iptables-forward-rules", ["false"], False),
    ("ip-blackhole-route", ["t"], True),
    ("guard", ["F"], False),
    ("mss-clamp", ["true"], True),
    ("max-peers", ["131072"], 131072),
    ("withdrawal-share", ["100"], 100),
    ("withdrawal-count", ["131072"], 131072),
    ("withdrawal-window", ["3600"], 3600),
    ("withdrawal-hold", ["0"], 0),
    ("last-state-age", ["8760"], 8760),
    ("path-probes", ["0"], False),
    ("spare", ["false"], False),
    ("healthz-ip", ["::1"], IPv6Address("::1")),
    ("healthz-port", ["8081"], 8081),
    ("metrics-ip", ["::1"], IPv6Address("::1")),
    ("metrics-port", ["9465"], 9465),
    ("dry-run", ["true"], True),
    ("version", ["true"], True),
    ("v", ["1"], 1),
    ("run-dir", ["/run/other"], Path("/run/other")),
    ("state-dir", ["/srv/state"], Path("/srv/state")),
    ("tun-name", ["overlay-123456x"], "overlay-123456x"),
    ("encap", ["ipip", "vxlan", "udp", "ipip"], (Encap.IPIP, Encap.VXLAN, Encap.FLANNEL_UDP)),
    ("encapsulate", ["cross-subnet"], "cross-subnet"),
    (
        "allow-source",
        ["10.9.0.0/16", "fd00::/8", "10.9.0.0/16"],
        (IPv4Network("10.9.0.0/16"), IPv6Network("fd00::/8")),
    ),
    ("spoof", ["observe"], "observe"),
    ("vxlan-reserved", ["ignore"], "ignore"),
    ("dscp", ["inherit"], "inherit"),
    ("outer-ttl", ["255"], 255),
    ("no-route", ["drop"], "drop"),
    ("icmp-rate", ["5"], 5),
    ("disable", ["udp-gso,tun-tso", "mmsg", "mmsg"], (Offload.UDP_GSO, Offload.TUN_TSO, Offload.MMSG)),
    ("spin-us", ["20"], 20),
    ("threads", ["2"], 2),
    ("queues", ["15"], 15),
    ("source-ports", ["3"], 3),
    ("datapath", ["kernel"], "kernel"),
    ("forwarder", ["wait"], "wait"),
    ("replace", ["true"], True),
    ("takeover", ["flannel.1,flannel-v6.1"], ("flannel.1", "flannel-v6.1")),
    ("log-level", ["debug"], "debug"),
    ("log-format", ["json"], "json"),
    ("subnet-file", ["/run/x/subnet.env"], Path("/run/x/subnet.env")),
    ("subnet-lease-renew-margin", ["1439"], 1439),
    ("subnet-lease-ttl", ["30"], 30),
)
MEANINGLESS = {flag.name for flag in FLAGS if not flag.field}
ANYTHING = {flag.name for flag in FLAGS if flag.parse is flags.anything} - {"store"}

STORES = "allowed are sqlite:///path, file:///path, etcd and auto"
NO_STORE = f"is no store; {STORES}"
NO_NAME = "is no interface name; allowed are 1 to 15 characters without / : %"
INVALID = (
    ("store", "/etc/peers.json", f'"/etc/peers.json" {NO_STORE}'),
    ("store", "file://host/path", f'"file://host/path" {NO_STORE}'),
    ("store", "file:///", f'"file:///" {NO_STORE}'),
    ("store", "http://x/", f'"http://x/" {NO_STORE}'),
    ("store", "", f'"" {NO_STORE}'),
    ("store", "file:///a%00b", f'"file:///a%00b" {NO_STORE}'),
    ("store", "etcd://127.0.0.1:2379", f'"etcd://127.0.0.1:2379" {NO_STORE}'),
    ("etcd-endpoints", "127.0.0.1:2379", '"127.0.0.1:2379" is no server, expected for example https://'),
    ("etcd-endpoints", "http://a:x", '"http://a:x" is no server'),
    ("etcd-endpoints", "http://me:pass@a:1", "a URL with a user in it is not allowed"),
    ("etcd-endpoints", "http://a:1/v3", '"http://a:1/v3" is no server'),
    ("etcd-prefix", "coreos.com", '"coreos.com" is no key, expected for example /coreos.com/network'),
    ("etcd-keyfile", "", '"" is no path'),
    ("etcd-certfile", "", '"" is no path'),
    ("etcd-cafile", "", '"" is no path'),
    ("iface-regex", "eth[", '"eth[" is no regular expression: unterminated character set'),
    ("iface-can-reach", "eth0", '"eth0" is no IP address'),
    ("iface-can-reach", "fe80::1%eth0", '"fe80::1%eth0" is no IP address'),
    ("ip-masq", "yes", '"yes": allowed are true, false'),
    ("ip-masq-fully-random-disable", "", '"": allowed are true, false'),
    ("iptables-resync", "0", '"0" is not allowed; allowed are 1 to 3600 seconds'),
    ("iptables-forward-rules", "on", '"on": allowed are true, false'),
    ("ip-blackhole-route", "2", '"2": allowed are true, false'),
    ("guard", "off", '"off": allowed are true, false'),
    ("spare", "one", '"one": allowed are true, false'),
    ("path-probes", "often", '"often": allowed are true, false'),
    ("withdrawal-share", "101", '"101" is not allowed; allowed are 0 to 100 percent'),
    ("withdrawal-count", "0", '"0" is not allowed; allowed are 1 to 131072 peers'),
    ("withdrawal-window", "0", '"0" is not allowed; allowed are 1 to 3600 seconds'),
    ("withdrawal-hold", "30s", '"30s" is not allowed; allowed are 0 to 86400 seconds'),
    ("last-state-age", "-1", '"-1" is not allowed; allowed are 0 to 8760 hours'),
    ("mss-clamp", "1450", '"1450": allowed are true, false'),
    ("max-peers", "0", '"0" is not allowed; allowed are 1 to 131072 leases'),
    ("healthz-ip", "localhost", '"localhost" is no IP address'),
    ("healthz-port", "65536", '"65536" is not allowed; allowed are 0 to 65535'),
    ("metrics-ip", "*", '"*" is no IP address'),
    ("metrics-port", "-1", '"-1" is not allowed; allowed are 0 to 65535'),
    ("dry-run", "maybe", '"maybe": allowed are true, false'),
    ("version", "0.1.0", '"0.1.0": allowed are true, false'),
    ("v", "-1", '"-1" is not allowed; allowed are 0 to 100'),
    ("kube-subnet-mgr", "true", "Kubernetes is not supported yet"),
    ("kube-api-url", "http://x", "Kubernetes is not supported yet"),
    ("kubeconfig-file", "/x", "Kubernetes is not supported yet"),
    ("kube-annotation-prefix", "x", "Kubernetes is not supported yet"),
    ("net-config-path", "/x", "Kubernetes is not supported yet"),
    ("set-node-network-unavailable", "true", "Kubernetes is not supported yet"),
    ("store", "kube", f"kube is not supported yet; {STORES}"),
    ("store", "sqlite://x.db", f'"sqlite://x.db" {NO_STORE}'),
    ("store", "sqlite:///x/", f'"sqlite:///x/" {NO_STORE}'),
    ("public-ip", "node1", '"node1" is no IPv4 address'),
    ("public-ip", "2001:db8::1", '"2001:db8::1" is no IPv4 address'),
    ("public-ip", "127.0.0.1", "127.0.0.1 is a loopback address, expected the unicast address of a node"),
    ("public-ip", "0.0.0.0", "0.0.0.0 is unspecified"),
    ("public-ip", "0.1.2.3", "0.1.2.3 is in 0.0.0.0/8, expected the unicast address of a node"),
    ("public-ipv6", "::ffff:192.0.2.1", "is an IPv4 address written as IPv6"),
    ("public-ipv6", "192.0.2.1", '"192.0.2.1" is no IPv6 address'),
    ("public-ipv6", "ff02::1", "ff02::1 is a multicast address"),
    ("public-ipv6", "2001:db8::1%eth0", "2001:db8::1%eth0 is an address with a zone"),
    ("iface", "", f'"" {NO_NAME}'),
    ("iface", "eth0/1", f'"eth0/1" {NO_NAME}'),
    ("iface", "eth0:1", f'"eth0:1" {NO_NAME}'),
    ("iface", "..", f'".." {NO_NAME}'),
    ("tun-name", "sixteen-letters-", f'"sixteen-letters-" {NO_NAME}'),
    ("tun-name", "overlay%d", f'"overlay%d" {NO_NAME}'),
    ("tun-name", "ü" * 8, NO_NAME),
    ("run-dir", "run", '"run" is no absolute path'),
    ("state-dir", "./state", '"./state" is no absolute path'),
    ("state-dir", "", '"" is no absolute path'),
    ("encap", "vxlna", '"vxlna": allowed are vxlan, ipip, udp, host-gw (did you mean vxlan?)'),
    ("encap", "alloc", '"alloc": allowed are vxlan, ipip, udp, host-gw'),
    ("encapsulate", "allways", '"allways": allowed are always, cross-subnet, never (did you mean always?)'),
    ("allow-source", "10.9.0.0/33", '"10.9.0.0/33" is no network, expected for example 10.9.0.0/16'),
    ("allow-source", "10.9.1.0/16", "10.9.1.0/16 has host bits set; did you mean 10.9.0.0/16?"),
    ("allow-source", "fd00::%eth0/64", '"fd00::%eth0/64" is no network'),
    ("spoof", "enforced", '"enforced": allowed are enforce, observe (did you mean enforce?)'),
    ("vxlan-reserved", "yes", '"yes": allowed are drop, ignore'),
    ("dscp", "copy", '"copy": allowed are pipe, inherit'),
    ("outer-ttl", "0", '"0" is not allowed; allowed are 1 to 255, or inherit'),
    ("outer-ttl", "inherits", '"inherits" is not allowed; allowed are 1 to 255, or inherit (did you mean'),
    ("no-route", "icpm", '"icpm": allowed are icmp, drop (did you mean icmp?)'),
    ("icmp-rate", "0", '"0" is not allowed; allowed are 1 to 100000 errors a second'),
    ("disable", "gso", '"gso": allowed are all, tun-vnet, tun-csum, mmsg, tun-tso, tun-uso, udp-gso'),
    ("disable", "udp-gso,", '"": allowed are all, tun-vnet'),
    ("spin-us", "1001", '"1001" is not allowed; allowed are 0 to 1000 microseconds'),
    ("threads", "0", '"0" is not allowed; allowed are 1 to 15 threads'),
    ("queues", "x", '"x" is not allowed; allowed are 1 to 15 queues'),
    ("source-ports", "17", '"17" is not allowed; allowed are 1 to 16 ports'),
    ("datapath", "ebpf", '"ebpf": allowed are userspace, kernel, auto'),
    ("forwarder", "SPAWN", '"SPAWN": allowed are spawn, wait (did you mean spawn?)'),
    ("replace", "one", '"one": allowed are true, false'),
    ("takeover", "flannel/1", f'"flannel/1" {NO_NAME}'),
    ("log-level", "warn", '"warn": allowed are debug, info, warning, error (did you mean warning?)'),
    ("log-format", "xml", '"xml": allowed are text, json'),
    ("subnet-file", "subnet.env", '"subnet.env" is no absolute path'),
    ("subnet-lease-renew-margin", "0", '"0" is not allowed; allowed are 1 to 1439 minutes'),
    ("subnet-lease-renew-margin", "1440", '"1440" is not allowed'),
    ("subnet-lease-renew-margin", "1h", '"1h" is not allowed'),
    ("subnet-lease-ttl", "1", '"1" is not allowed; allowed are 2 to 31536000 seconds'),
    ("subnet-lease-ttl", "9" * 5000, "is not allowed"),
)


def by_flag(rows: tuple[tuple[str, object, object], ...]) -> list[str]:
    """Name the rows of a table."""
    return [f"{name}={value}" for name, value, _ in rows]


def parse(*pairs: tuple[str, str], **environ: str) -> RunConfig:
    """Parse flags in order, with a store besides if none is among them."""
    given: dict[str, list[str]] = {}
    for name, text in pairs:
        given.setdefault(name, []).append(text)
    return config.parse(given, {"OVERLAYD_STORE": STORE, **environ})


def test_defaults() -> None:
    """Only a store must be told; the rest is as the help says."""
    assert config.parse({"store": [STORE]}, {}) == RunConfig(store=STORE)


def test_every_flag_is_tried() -> None:
    """The tables of this file leave out no flag."""
    names = {flag.name for flag in FLAGS}
    assert {name for name, _, _ in VALID} == names - MEANINGLESS
    assert {name for name, _, _ in INVALID} == names - ANYTHING


@pytest.mark.parametrize(("name", "texts", "value"), VALID, ids=by_flag(VALID))
def test_flag_is_read(name: str, texts: list[str], value: object) -> None:
    """A good value arrives in its field, typed; a repeated one once."""
    flag = next(flag for flag in FLAGS if flag.name == name)
    assert getattr(parse(*((name, text) for text in texts)), flag.field) == value


@pytest.mark.parametrize(("name", "texts", "value"), VALID, ids=by_flag(VALID))
def test_variable_is_read(name: str, texts: list[str], value: object) -> None:
    """The environment says the same, with commas where a flag may be repeated."""
    flag = next(flag for flag in FLAGS if flag.name == name)
    assert getattr(parse(**{flag.variable: ",".join(texts)}), flag.field) == value


@pytest.mark.parametrize(("name", "text", "reason"), INVALID, ids=by_flag(INVALID))
def test_flag_is_refused(name: str, text: str, reason: str) -> None:
    """A bad value is refused in one line that begins with the flag and says what is allowed."""
    with pytest.raises(ConfigError, match=re.escape(reason)) as caught:
        parse((name, text))
    assert str(caught.value).startswith(f"--{name}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "text", "reason"), INVALID, ids=by_flag(INVALID))
def test_variable_is_refused(name: str, text: str, reason: str) -> None:
    """A bad value from the environment is refused under the name of its variable."""
    flag = next(flag for flag in FLAGS if flag.name == name)
    with pytest.raises(ConfigError, match=re.escape(reason)) as caught:
        parse(**{flag.variable: text})
    assert str(caught.value).startswith(f"{flag.variable}: ")


OURS = [flag.name for flag in FLAGS if not flag.is_repeatable and not flag.is_flannels]


@pytest.mark.parametrize("name", OURS)
def test_once_is_allowed(name: str) -> None:
    """A flag of ours that has one value is refused when it is given twice, even with the same value."""
    text = next(texts[0] for known, texts, _ in VALID if known == name)
    with pytest.raises(ConfigError, match=f"^--{name} is given 2 times; once is allowed$"):
        parse((name, text), (name, text))


def test_last_one_counts() -> None:
    """Of flannel's flags the last one counts, as flannel has it."""
    assert parse(("healthz-port", "1"), ("healthz-port", "2")).healthz_port == 2


FLANNELS = [row for row in VALID if row[0] in {flag.name for flag in FLAGS if flag.is_flannels}]


@pytest.mark.parametrize(("name", "texts", "value"), FLANNELS, ids=by_flag(tuple(FLANNELS)))
def test_flannels_variable_is_read(name: str, texts: list[str], value: object) -> None:
    """FLANNELD_ and the name means the same; our variable beats it, and an empty one is none."""
    flag = next(flag for flag in FLAGS if flag.name == name)
    assert getattr(parse(**{flag.flannel_variable: ",".join(texts)}), flag.field) == value
    other = {flag.variable: ",".join(texts), flag.flannel_variable: "\0"}
    assert getattr(parse(**other), flag.field) == value
    assert parse(**{flag.flannel_variable: ""}) == RunConfig(store=STORE)


def test_flannels_verbosity() -> None:
    """From --v 2 on everything is logged, unless --log-level says otherwise."""
    assert parse(("v", "1")).log_level == "info"
    assert parse(("v", "2")).log_level == "debug"
    assert parse(("v", "2"), ("log-level", "error")).log_level == "error"


def test_metrics_beside_probes() -> None:
    """One port for both is one address for both, and said to be: metrics are not served where probes are."""
    with pytest.raises(ConfigError, match=r"^--metrics-port and --healthz-port are both 8081, and"):
        parse(("healthz-port", "8081"), ("metrics-port", "8081"))
    both = ("healthz-port", "8081"), ("metrics-port", "8081"), ("metrics-ip", "0.0.0.0")
    assert parse(*both).metrics_ip == parse(*both).healthz_ip
    assert str(parse(("metrics-port", "8081")).metrics_ip) == "127.0.0.1"


def test_password_is_not_shown() -> None:
    """However a configuration is printed, the password is not in it."""
    assert "hunter2" not in repr(parse(("etcd-password", "hunter2")))


def test_case_146_password_in_a_url_is_not_told() -> None:
    """An endpoint with a password in it is refused by words that do not repeat it."""
    with pytest.raises(ConfigError, match="--etcd-username and --etcd-password") as refused:
        parse(("etcd-endpoints", "https://me:hunter2@192.0.2.10:2379"))
    assert "hunter2" not in str(refused.value)


PLAIN = "https://192.0.2.10:2379,http://192.0.2.11:2379,http://[2001:db8::1]:2379"
USER = (("store", "etcd"), ("etcd-username", "me"))


@pytest.mark.parametrize(
    ("pairs", "environ", "warnings"),
    [
        ([], {}, []),
        ([("etcd-endpoints", "http://localhost:2379,http://127.0.0.5:2379,http://[::1]:2379")], {}, []),
        ([("etcd-endpoints", "https://etcd.example:2379")], {}, []),
        (
            [("etcd-endpoints", PLAIN)],
            {},
            ["2.0.2.11:2379, http://.2001:db8::1.:2379 is not encrypted: .* change leases[.] Fix"],
        ),
        ([("etcd-endpoints", "http://localhost.example:2379")], {}, ["is not encrypted"]),
        ([("etcd-password", "hunter2")], {}, ["--etcd-password: whoever .* OVERLAYD_ETCD_PASSWORD instead"]),
        ([], {"OVERLAYD_ETCD_PASSWORD": "hunter2"}, []),
        (
            [("etcd-endpoints", "http://etcd.example:2379")],
            {"OVERLAYD_ETCD_PASSWORD": "hunter2"},
            ["change leases, and read the password"],
        ),
    ],
)
def test_case_146_what_others_can_read_is_told(
    pairs: list[tuple[str, str]], environ: dict[str, str], warnings: list[str]
) -> None:
    """Servers of other hosts without TLS, and a password that every process can see, are warned of, once."""
    found = parse(*USER, *pairs, **environ).exposed
    assert len(found) == len(warnings)
    for text, expected in zip(found, warnings, strict=True):
        assert re.search(expected, text), text
        assert "hunter2" not in text
        assert "https://192.0.2.10" not in text


def test_flag_beats_variable() -> None:
    """A flag replaces what the environment says, whole, even where that is wrong."""
    result = parse(
        ("no-route", "drop"),
        ("encap", "ipip"),
        OVERLAYD_NO_ROUTE="nonsense",
        OVERLAYD_ENCAP="vxlan",
        OVERLAYD_SPOOF="observe",
    )
    assert (result.no_route, result.encap, result.spoof) == ("drop", (Encap.IPIP,), "observe")


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        pytest.param(
            "OVERLAYD_STOER",
            "environment variable OVERLAYD_STOER is unknown (did you mean OVERLAYD_STORE?)",
            id="typing error",
        ),
        pytest.param("OVERLAYD_QQQQQQQQQQQQQQ", "OVERLAYD_QQQQQQQQQQQQQQ is unknown", id="like nothing"),
        pytest.param("OVERLAYD_", "environment variable OVERLAYD_ is unknown", id="only the prefix"),
    ],
)
def test_unknown_variable(variable: str, text: str) -> None:
    """A variable with our prefix that means nothing is refused."""
    with pytest.raises(ConfigError, match=re.escape(text)):
        parse(**{variable: "x"})


def test_other_variables_are_passed_over() -> None:
    """Variables without our prefix are nothing to us."""
    assert parse(PATH="/bin", OVERLAY="x") == RunConfig(store=STORE)


@pytest.mark.parametrize("given", [{}, {"store": ["auto"]}], ids=["no flag", "--store auto"])
def test_store_auto_is_sqlite(given: dict[str, list[str]]) -> None:
    """Where nothing asks for etcd or Kubernetes, the store is a sqlite file in the state directory."""
    found = config.parse({**given, "state-dir": ["/srv/a b"]}, {"PATH": "/bin"})
    assert found.store == "sqlite:///srv/a%20b/store.db"
    assert found.store_reason == "auto: neither etcd nor Kubernetes is asked for"


@pytest.mark.parametrize(
    ("given", "environ", "source"),
    [
        pytest.param({"etcd-prefix": ["/x"]}, {}, "--etcd-prefix", id="flag"),
        pytest.param({}, {"FLANNELD_ETCD_USERNAME": "x"}, "FLANNELD_ETCD_USERNAME", id="flannel's variable"),
        pytest.param({}, {"OVERLAYD_ETCD_PREFIX": "/x"}, "OVERLAYD_ETCD_PREFIX", id="our variable"),
    ],
)
def test_store_auto_is_etcd(given: dict[str, list[str]], environ: dict[str, str], source: str) -> None:
    """Whatever is said of etcd asks for it."""
    found = config.parse(given, environ)
    assert (found.store, found.store_reason) == ("etcd", f"auto: {source} is given")


@pytest.mark.parametrize(
    ("pairs", "reason"),
    [
        pytest.param(
            [("etcd-keyfile", "/k")], "--etcd-keyfile and --etcd-certfile belong together", id="key"
        ),
        pytest.param(
            [("etcd-certfile", "/c")], "--etcd-keyfile and --etcd-certfile belong", id="certificate"
        ),
        pytest.param([("etcd-cafile", "/c")], "http://127.0.0.1:4001 is not encrypted", id="plain"),
        pytest.param([("etcd-password", "x")], "--etcd-password is given without", id="nobody"),
    ],
)
def test_etcd_flags_that_contradict(pairs: list[tuple[str, str]], reason: str) -> None:
    """What cannot be meant together is refused before anybody is asked."""
    with pytest.raises(ConfigError, match=re.escape(reason)):
        config.parse({name: [text] for name, text in pairs}, {})


def test_store_told_beats_flannels_flags() -> None:
    """Who names a store gets it, whatever flannel's flags say; and a switch that is off asks for nothing."""
    assert parse(("etcd-endpoints", "http://x"), ("store", "sqlite:///s.db")).store == "sqlite:///s.db"
    found = config.parse({"kube-subnet-mgr": ["false"]}, {})
    assert found.store == "sqlite:///var/lib/overlayd/store.db"


@pytest.mark.parametrize(
    ("pairs", "name"),
    [
        pytest.param([("iface", "eth0"), ("tun-name", "eth0")], "eth0", id="both told"),
        pytest.param([("iface", "overlay0")], "overlay0", id="the default TUN"),
    ],
)
def test_overlay_on_itself(pairs: list[tuple[str, str]], name: str) -> None:
    """The overlay cannot be its own underlay."""
    with pytest.raises(ConfigError, match=f"^--iface and --tun-name are both {name}; "):
        parse(*pairs)
