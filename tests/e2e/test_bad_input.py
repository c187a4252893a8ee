# SPDX-License-Identifier: Apache-2.0
"""Whatever the user gets wrong is answered by one line that names it and what is allowed; nothing changes.

host namespace: under0 192.0.2.1 ─── veth ─── far0, same namespace; overlayd run ends with 1 or 2
and the usual rig (drawn in rig.py), whose running overlayd is given the same broken peers files
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from bench.lab import Namespace, wait_for
from tests.e2e import frames, warm
from tests.e2e.frames import DUAL, US, from_peer, inner4, vxlan
from tests.e2e.hoststate import look
from tests.e2e.rig import START_S, Daemon, Rig

FLAGS = ("--public-ip", str(US.ip))


@pytest.fixture(scope="module")
def host() -> Iterator[Namespace]:
    """Yield a host with an underlay interface; at the end of all cases nothing of it has changed."""
    with closing(Namespace(f"e2ebad{os.getpid() % 100000}")) as space:
        space.run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
        space.ip("link set lo up\nlink add under0 type veth peer name far0\nlink set far0 up\n")
        space.ip(f"link set under0 up\naddr add {US.ip}/24 dev under0\n")
        before = look(space)
        yield space
        assert look(space) == before


class Refusal:
    """What `overlayd run` said when it refused to start."""

    def __init__(self, daemon: Daemon, command: list[str], environment: dict[str, str] | None = None) -> None:
        """Run it to its end."""
        self.daemon = daemon
        result = warm.run(daemon.namespace, command, START_S, environment)
        self.code, self.line, self.output = result.returncode, result.stderr, result.stdout

    def expect(self, code: int, *parts: str) -> None:
        """Assert exit status, exactly one line that has all the parts, and nothing left behind."""
        assert self.line.startswith("overlayd: "), self.line
        assert self.line.count("\n") == 1, self.line
        assert "Traceback" not in self.line
        for part in parts:
            assert part in self.line
        assert self.code == code, self.line
        assert self.output == ""
        assert not self.daemon.run_dir.exists()
        assert not (self.daemon.directory / "state").exists()


@pytest.fixture
def daemon(host: Namespace, tmp_path: Path) -> Daemon:
    """Return a daemon that is not started, with good peers and flags."""
    return Daemon(host, tmp_path / "node", frames.peers_file((DUAL,)), FLAGS)


# --- flags ------------------------------------------------------------------------------------------

# flags -> what the line must name
BAD_FLAGS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "unknown": (("--nonsense", "1"), ("--nonsense",)),
    "abbreviated": (("--public-i", "192.0.2.1"), ("--public-i",)),
    "stray-word": (("nonsense",), ("nonsense",)),
    "missing-value": (("--iface",), ("--iface",)),
    "given-twice": (("--tun-name", "a0", "--tun-name", "b0"), ("--tun-name", "once")),
    "public-ip-text": (("--public-ip", "host"), ("--public-ip", "host", "IPv4")),
    "public-ip-v6": (("--public-ip", "fd00::1"), ("--public-ip", "fd00::1", "IPv4")),
    "public-ip-range": (("--public-ip", "192.0.2.256"), ("--public-ip", "192.0.2.256")),
    "public-ip-prefix": (("--public-ip", "192.0.2.1/24"), ("--public-ip", "192.0.2.1/24")),
    "public-ip-zero": (("--public-ip", "0.0.0.0"), ("--public-ip", "unicast")),
    "public-ip-loopback": (("--public-ip", "127.0.0.1"), ("--public-ip", "unicast")),
    "public-ip-multicast": (("--public-ip", "224.0.0.1"), ("--public-ip", "unicast")),
    "public-ip-broadcast": (("--public-ip", "255.255.255.255"), ("--public-ip", "unicast")),
    "public-ipv6-text": (("--public-ipv6", "host"), ("--public-ipv6", "host", "IPv6")),
    "public-ipv6-v4": (("--public-ipv6", "192.0.2.1"), ("--public-ipv6", "IPv6")),
    "public-ipv6-multicast": (("--public-ipv6", "ff02::1"), ("--public-ipv6", "unicast")),
    "public-ipv6-link-local": (("--public-ipv6", "fe80::1"), ("--public-ipv6", "unicast")),
    "iface-long": (("--iface", "a" * 16), ("--iface", "15")),
    "iface-slash": (("--iface", "../x"), ("--iface", "../x")),
    "iface-empty": (("--iface", ""), ("--iface",)),
    "tun-name-long": (("--tun-name", "a" * 16), ("--tun-name", "15")),
    "tun-name-space": (("--tun-name", "a b"), ("--tun-name", "a b")),
    "tun-name-is-iface": (("--iface", "x0", "--tun-name", "x0"), ("--iface", "--tun-name", "x0")),
    "run-dir-relative": (("--state-dir", "state"), ("--state-dir", "absolute")),
    "allow-source-text": (("--allow-source", "all"), ("--allow-source", "all", "network")),
    "allow-source-host-bits": (("--allow-source", "10.9.0.1/16"), ("--allow-source", "10.9.0.0/16")),
    "allow-source-length": (("--allow-source", "10.9.0.0/33"), ("--allow-source", "10.9.0.0/33")),
    "spoof": (("--spoof", "obsrve"), ("--spoof", "enforce, observe", "did you mean observe")),
    "vxlan-reserved": (("--vxlan-reserved", "pass"), ("--vxlan-reserved", "drop, ignore")),
    "no-route": (("--no-route", "reject"), ("--no-route", "icmp, drop")),
    "icmp-rate": (("--icmp-rate", "many"), ("--icmp-rate", "many", "1 to 100000")),
    "encap": (("--encap", "ipipp"), ("--encap", "vxlan, ipip", "did you mean ipip")),
    "disable": (("--disable", "gso"), ("--disable", "all, tun-vnet, tun-csum", "udp-gso")),
    "forwarder": (("--forwarder", "no"), ("--forwarder", "spawn, wait")),
    "log-level": (("--log-level", "inf"), ("--log-level", "debug, info", "did you mean info")),
    "log-format": (("--log-format", "xml"), ("--log-format", "text, json")),
}


@pytest.mark.parametrize("name", BAD_FLAGS)
def test_bad_flag_is_refused(daemon: Daemon, name: str) -> None:
    """A wrong flag: one line with flag, value and what is allowed; status 2; nothing made."""
    flags, parts = BAD_FLAGS[name]
    daemon.flags = list(flags)
    Refusal(daemon, daemon.run_command()).expect(2, *parts)


BAD_STORES = {
    "text": "peers.json",
    "relative": "file://peers.json",
    "root": "file:///",
    "empty": "",
    "http": "http://192.0.2.1/peers.json",
    "etcd": "etcd://192.0.2.1:2379",
    "kube": "kube://",
    "sqlite": "sqlite://x.db",
}


@pytest.mark.parametrize("name", BAD_STORES)
def test_bad_store_url_is_refused(daemon: Daemon, name: str) -> None:
    """A store URL of another kind: one line that says which kind is allowed; status 2."""
    command = daemon.run_command()
    command[command.index("--store") + 1] = BAD_STORES[name]
    Refusal(daemon, command).expect(2, "--store", "file:///path")


@pytest.mark.parametrize("flag", ["--kube-subnet-mgr", "-kube-api-url=http://192.0.2.1"])
def test_kubernetes_is_refused(daemon: Daemon, flag: str) -> None:
    """A flag of flannel's that asks for Kubernetes is refused by name: status 2."""
    name = flag.partition("=")[0].lstrip("-")
    Refusal(daemon, [*daemon.run_command(), flag]).expect(2, f"--{name}", "not supported yet")


BAD_ENVIRONMENT: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "unknown": ({"OVERLAYD_NONSENSE": "1"}, ("OVERLAYD_NONSENSE",)),
    "misspelt": ({"OVERLAYD_TUN_NAMES": "x"}, ("OVERLAYD_TUN_NAMES", "did you mean OVERLAYD_TUN_NAME")),
    "bad-choice": ({"OVERLAYD_SPOOF": "maybe"}, ("OVERLAYD_SPOOF", "enforce, observe")),
    "bad-address": ({"OVERLAYD_PUBLIC_IPV6": "x"}, ("OVERLAYD_PUBLIC_IPV6", "IPv6")),
    "bad-in-list": ({"OVERLAYD_ALLOW_SOURCE": "10.9.0.0/16,x"}, ("OVERLAYD_ALLOW_SOURCE", '"x"')),
}


@pytest.mark.parametrize("name", BAD_ENVIRONMENT)
def test_bad_environment_is_refused(daemon: Daemon, name: str) -> None:
    """A wrong OVERLAYD_ variable is named like a wrong flag; status 2."""
    environment, parts = BAD_ENVIRONMENT[name]
    Refusal(daemon, daemon.run_command(), environment).expect(2, *parts)


@pytest.mark.parametrize(
    "command", [["nonsense"], [], ["status", "--nonsense"], ["peers", "x"], ["down", "--all"]]
)
def test_bad_command_is_refused(daemon: Daemon, command: list[str]) -> None:
    """An unknown command, none at all, or one with unknown arguments: one line; status 2."""
    full = daemon.command("status")
    Refusal(daemon, [*full[: full.index("status")], *command]).expect(2, *command[-1:])


# --- the peers file ---------------------------------------------------------------------------------

Edit = Callable[[dict[str, Any]], None]
LEASE = DUAL.key


def put(*path: str, value: object) -> Edit:
    """Return an edit that sets one field."""

    def edit(data: dict[str, Any]) -> None:
        for name in path[:-1]:
            data = data[name]
        data[path[-1]] = value

    return edit


def cut(*path: str) -> Edit:
    """Return an edit that removes one field."""

    def edit(data: dict[str, Any]) -> None:
        for name in path[:-1]:
            data = data[name]
        del data[path[-1]]

    return edit


def lease(**fields: object) -> Edit:
    """Return an edit that changes fields of the peer's lease."""
    return lambda data: data["leases"][LEASE].update(fields)


def another(key: str, **fields: object) -> Edit:
    """Return an edit that adds a lease."""
    value = {"PublicIP": "192.0.2.9", "BackendType": "vxlan", "BackendData": {"VtepMAC": "02:00:00:00:00:09"}}
    return lambda data: data["leases"].update({key: {**value, **fields}})


NET, BACK = ("network",), ("network", "Backend")

# edit -> what the line must name
BAD_FIELDS: dict[str, tuple[Edit, tuple[str, ...]]] = {
    "top-unknown": (put("lease", value={}), ("lease", "leases")),
    "network-missing": (cut(*NET), ("network",)),
    "network-text": (put(*NET, value="10.244.0.0/16"), ("network", "object")),
    "network-field-unknown": (put(*NET, "Netwrok", value=1), ("Netwrok", "did you mean")),
    "network-cidr-missing": (cut(*NET, "Network"), ("Network", "missing")),
    "network-cidr-number": (put(*NET, "Network", value=10), ("Network", "string")),
    "network-cidr-text": (put(*NET, "Network", value="everything"), ("Network", "everything")),
    "network-cidr-v6": (put(*NET, "Network", value="fd00::/48"), ("Network", "fd00::/48")),
    "network-cidr-length": (put(*NET, "Network", value="10.244.0.0/33"), ("Network", "10.244.0.0/33")),
    "network-cidr-whole": (put(*NET, "Network", value="0.0.0.0/0"), ("Network", "/8 to /28")),
    "enable-ipv6-text": (put(*NET, "EnableIPv6", value="yes"), ("EnableIPv6", "true or false")),
    "ipv6-missing": (cut(*NET, "IPv6Network"), ("IPv6Network", "missing")),
    "ipv6-v4": (put(*NET, "IPv6Network", value="10.0.0.0/8"), ("IPv6Network", "10.0.0.0/8")),
    "backend-missing": (cut(*BACK), ("Backend", "missing")),
    "backend-text": (put(*BACK, value="vxlan"), ("Backend", "object")),
    "backend-unknown-field": (put(*BACK, "Vnii", value=1), ("Vnii", "did you mean")),
    "type-missing": (cut(*BACK, "Type"), ("Type", "vxlan, ipip")),
    "type-misspelt": (
        put(*BACK, "Type", value="vxlna"),
        ('Backend.Type "vxlna"', "vxlan, ipip", "did you mean vxlan"),
    ),
    "type-flannels": (put(*BACK, "Type", value="wireguard"), ("wireguard", "vxlan, ipip")),
    "type-number": (put(*BACK, "Type", value=1), ("Type", "string")),
    "vni-text": (put(*BACK, "VNI", value="1"), ("VNI", "integer")),
    "vni-float": (put(*BACK, "VNI", value=1.5), ("VNI", "integer")),
    "vni-bool": (put(*BACK, "VNI", value=True), ("VNI", "integer")),
    "vni-negative": (put(*BACK, "VNI", value=-1), ("VNI", "16777215")),
    "vni-large": (put(*BACK, "VNI", value=1 << 24), ("VNI", "16777215")),
    "port-large": (put(*BACK, "Port", value=65536), ("Port", "65535")),
    "port-text": (put(*BACK, "Port", value="8472"), ("Port", "integer")),
    "mtu-small": (put(*BACK, "MTU", value=100), ("MTU", "576")),
    "mtu-large": (put(*BACK, "MTU", value=70000), ("MTU", "65535")),
    "gbp": (put(*BACK, "GBP", value=True), ("GBP", "not supported")),
    "direct-routing": (put(*BACK, "DirectRouting", value="yes"), ("DirectRouting", "true or false")),
    "leases-array": (put("leases", value=[]), ("leases", "object")),
    "lease-text": (put("leases", LEASE, value="x"), ("object",)),
    "lease-unknown-field": (lease(PublicIp4="x"), ("PublicIp4",)),
    "key-text": (another("node-b"), ("node-b", "subnet")),
    "key-host-bits": (another("10.244.9.1/24"), ("10.244.9.1/24", "host bits")),
    "key-without-length": (another("10.244.9.0"), ("10.244.9.0", "subnet")),
    "subnet-outside": (another("10.245.9.0/24"), ("10.245.9.0/24", "10.244.0.0/16")),
    "subnet-whole-network": (another("10.244.0.0/16"), ("10.244.0.0/16",)),
    "subnet-default-route": (another("0.0.0.0/0"), ("0.0.0.0/0",)),
    "subnet-overlaps": (another("10.244.2.128/25"), ("10.244.2.128/25", "overlap")),
    "subnet-overlaps-ours": (another("10.244.1.0/28"), ("10.244.1.0/28", "overlap")),
    "public-ip-missing": (lease(PublicIP=None, PublicIPv6=None), ("PublicIP",)),
    "public-ip-number": (lease(PublicIP=3221225986), ("PublicIP", "string")),
    "public-ip-text": (lease(PublicIP="node-b"), ("PublicIP", "node-b")),
    "public-ip-loopback": (lease(PublicIP="127.0.0.1"), ("PublicIP", "127.0.0.1")),
    "public-ip-multicast": (lease(PublicIP="224.0.0.9"), ("PublicIP", "224.0.0.9")),
    "public-ip-in-overlay": (lease(PublicIP="10.244.9.9"), ("PublicIP", "10.244.9.9")),
    "public-ip-twice": (another("10.244.9.0/24", PublicIP=DUAL.ip), (str(DUAL.ip), "also")),
    "public-ipv6-v4": (lease(PublicIPv6="192.0.2.2"), ("PublicIPv6", "192.0.2.2")),
    "type-missing-in-lease": (lambda data: data["leases"][LEASE].pop("BackendType"), ("BackendType",)),
    "type-unknown-in-lease": (lease(BackendType="gre"), ("BackendType", "gre", "vxlan, ipip")),
    "data-text": (lease(BackendData="x"), ("BackendData", "object")),
    "mac-text": (lease(BackendData={"VNI": 1, "VtepMAC": "nonsense"}), ("VtepMAC", "nonsense")),
    "mac-short": (lease(BackendData={"VNI": 1, "VtepMAC": "02:00:00:00:01"}), ("VtepMAC", "02:00:00:00:01")),
    "mac-multicast": (lease(BackendData={"VNI": 1, "VtepMAC": "03:00:00:00:00:01"}), ("VtepMAC", "unicast")),
    "mac-zero": (lease(BackendData={"VNI": 1, "VtepMAC": "00:00:00:00:00:00"}), ("VtepMAC", "unicast")),
    "vni-differs": (lease(BackendData={"VNI": 2, "VtepMAC": DUAL.mac}), ("VNI", "2")),
    "vni-text-in-lease": (lease(BackendData={"VNI": "1", "VtepMAC": DUAL.mac}), ("VNI", "integer")),
}


def edited(edit: Edit) -> str:
    """Return a good peers file after an edit, one field a line."""
    data = copy.deepcopy(frames.peers_file((DUAL,)))
    edit(data)
    return json.dumps(data, indent=1)


@pytest.mark.parametrize("name", BAD_FIELDS)
def test_bad_field_is_refused_at_start(daemon: Daemon, name: str) -> None:
    """A wrong field in the peers file: one line that says where and what is allowed; status 2."""
    edit, parts = BAD_FIELDS[name]
    daemon.write_peers(edited(edit))
    Refusal(daemon, daemon.run_command()).expect(2, "peers.json", *parts)


# what the file holds -> what the line must name
CORRUPT: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "empty": (b"", ("line 1",)),
    "text": (b"hello\n", ("line 1", "JSON")),
    "cut-short": (b'{"network": {\n "Network": "10.244.0.0/16",\n', ("line 3", "JSON")),
    "trailing-comma": (b'{\n"network": {},\n}', ("line 3", "JSON")),
    "no-utf8": (b'{\n"network": "\xff"}', ("line 2", "UTF-8")),
    "array": (b"[]", ("object",)),
    "null": (b"null", ("object",)),
    "given-twice": (
        b'{"network": {"Network": "10.244.0.0/16",\n"Network": "10.9.0.0/16"}}',
        ("Network", "twice"),
    ),
    "deep": (b"[" * 100_000, ("nested",)),
    "nul-bytes": (b"\0" * 4096, ("line 1",)),
}


SOUND = {"array", "null", "given-twice"}  # JSON, but not what it should hold


@pytest.mark.parametrize("name", CORRUPT)
def test_corrupt_file_is_refused_at_start(daemon: Daemon, name: str) -> None:
    """A peers file that is damaged: one line with the place; status 1, or 2 if it is JSON; nothing made."""
    content, parts = CORRUPT[name]
    daemon.peers_path.write_bytes(content)
    Refusal(daemon, daemon.run_command()).expect(2 if name in SOUND else 1, "peers.json", *parts)


def test_unreadable_file_is_refused(daemon: Daemon) -> None:
    """A peers file that is not there, or none at all: one line with the path; status 1."""
    daemon.peers_path.unlink()
    Refusal(daemon, daemon.run_command()).expect(1, str(daemon.peers_path), "No such file")
    daemon.peers_path.mkdir()
    Refusal(daemon, daemon.run_command()).expect(1, str(daemon.peers_path))
    daemon.peers_path.rmdir()
    os.mkfifo(daemon.peers_path)
    Refusal(daemon, daemon.run_command()).expect(1, str(daemon.peers_path))


def test_unwritable_run_dir(daemon: Daemon) -> None:
    """A run directory that cannot be made: one line with the path; status 1."""
    daemon.run_dir = daemon.peers_path / "run"
    Refusal(daemon, daemon.run_command()).expect(1, str(daemon.run_dir))


# --- a broken edit of a running node ----------------------------------------------------------------


def refuse_edit(rig: Rig, content: bytes) -> str:
    """Replace the peers file by a broken one; check and mend all, return what status said."""
    before, generation = rig.daemon.status(), rig.daemon.counters.header().generation
    rig.daemon.peers_path.write_bytes(content)
    wait_for(lambda: rig.daemon.status()["store"]["error"], "the edit is refused")
    after = rig.daemon.status()
    assert after["store"]["revision"] == before["store"]["revision"]
    assert after["ready"] is True
    inner = from_peer(DUAL)
    rig.accepted(vxlan(inner), inner)
    rig.sent(inner4(US.pod(), DUAL.pod()))
    rig.daemon.write_peers(frames.peers_file())
    wait_for(lambda: not rig.daemon.status()["store"]["error"], "the file is mended")
    assert rig.daemon.counters.header().generation == generation
    return str(after["store"]["error"])


@pytest.mark.parametrize("name", BAD_FIELDS)
def test_bad_edit_of_a_field_is_refused(rig: Rig, name: str) -> None:
    """A wrong field in an edit is named in status with its place; what was in force stays in force."""
    edit, parts = BAD_FIELDS[name]
    error = refuse_edit(rig, edited(edit).encode())
    assert [part for part in ("peers.json", *parts) if part not in error] == []


@pytest.mark.parametrize("name", CORRUPT)
def test_corrupt_edit_is_refused(rig: Rig, name: str) -> None:
    """A file that is no JSON any more is named in status with its line; what was in force stays in force."""
    content, parts = CORRUPT[name]
    error = refuse_edit(rig, content)
    assert [part for part in ("peers.json", *parts) if part not in error] == []


def test_missing_file_is_told(rig: Rig) -> None:
    """A file that goes away is told; what was in force stays in force."""
    rig.daemon.peers_path.unlink()
    wait_for(lambda: rig.daemon.status()["store"]["error"], "the loss is told")
    assert str(rig.daemon.peers_path) in rig.daemon.status()["store"]["error"]
    inner = from_peer(DUAL)
    rig.accepted(vxlan(inner), inner)
    rig.daemon.write_peers(frames.peers_file())
    wait_for(lambda: not rig.daemon.status()["store"]["error"], "the file is back")
