# SPDX-License-Identifier: Apache-2.0
"""`overlayd network` and `overlayd lease`: what the operator reads and writes, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from dataplane import cli
from dataplane.store.database import Database

NETWORK = '{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}'
A = ("10.244.3.0/24", "--public-ip", "192.0.2.3", "--vtep-mac", "02:00:00:00:00:03")
B = ("10.244.4.0/24", "--public-ip", "192.0.2.4", "--vtep-mac", "02:00:00:00:00:04")


class Operator:
    """Types commands on one store."""

    def __init__(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Name the store."""
        self.path = path
        self._capsys = capsys

    def __call__(self, *words: str) -> str:
        """Return what a command prints, which must go well."""
        code, out, err = self.try_to(*words)
        assert (code, err) == (0, "")
        return out.rstrip("\n")

    def try_to(self, *words: str) -> tuple[int, str, str]:
        """Return exit status, output and error of a command."""
        code = cli.main([*words, "--store", f"sqlite://{self.path}"])
        found = self._capsys.readouterr()
        return code, found.out, found.err

    def refused(self, code: int, text: str, *words: str) -> None:
        """Check that a command is refused in one line, and that nothing was written."""
        before = self.content()
        done = self.try_to(*words)
        assert done[:2] == (code, "")
        assert done[2].startswith("overlayd: ")
        assert text in done[2]
        assert done[2].count("\n") == 1
        assert self.content() == before

    def content(self) -> object:
        """Return all that is in the store."""
        if not self.path.exists():
            return None
        database = Database(self.path)
        try:
            return database.snapshot()
        finally:
            database.close()


@pytest.fixture
def operator(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Operator:
    """Return somebody at the keyboard, without a store yet."""
    for name in [name for name in os.environ if name.startswith(("OVERLAYD_", "FLANNELD_"))]:
        monkeypatch.delenv(name)
    return Operator(tmp_path / "store.db", capsys)


@pytest.fixture
def network(operator: Operator) -> Operator:
    """Return somebody who has set the network."""
    assert operator("network", "set", NETWORK) == f"set: {NETWORK}"
    return operator


def test_nothing_is_made_by_looking(operator: Operator) -> None:
    """Only `network set` makes a store; who only looks is told that there is none."""
    for words in (("network", "get"), ("lease", "ls"), ("lease", "put", *A), ("lease", "rm", "x")):
        operator.refused(1, "store.db", *words)
    assert not operator.path.exists()


def test_network_set_and_get(network: Operator) -> None:
    """What was set is got, as it is written and with its revision; the same again changes nothing."""
    assert network("network", "get") == NETWORK
    assert json.loads(network("network", "get", "--json")) == {"config": json.loads(NETWORK), "revision": 1}
    before = network.content()
    assert network("network", "set", json.dumps(json.loads(NETWORK), indent=4)) == "nothing to change"
    assert network.content() == before


def test_network_from_standard_input(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dash reads the config from standard input."""
    read, write = os.pipe()
    os.write(write, NETWORK.encode())
    os.close(write)
    with os.fdopen(read) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        assert operator("network", "set", "-") == f"set: {NETWORK}"


@pytest.mark.parametrize(
    ("config", "text"),
    [
        pytest.param("{", "no valid JSON", id="no JSON"),
        pytest.param("[]", "expected an object", id="no object"),
        pytest.param('{"Netwrok":"10.244.0.0/16"}', "(did you mean Network?)", id="unknown field"),
        pytest.param('{"Network":"10.244.0.0/16"}', '"Backend" is missing', id="no backend"),
        pytest.param(NETWORK.replace("vxlan", "ipsec"), "not supported yet", id="backend"),
    ],
)
def test_bad_network(operator: Operator, config: str, text: str) -> None:
    """A wrong config is refused with what is allowed, and makes no store."""
    operator.refused(2, text, "network", "set", config)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        pytest.param(NETWORK.replace("10.244", "10.245"), "Network 10.244.0.0/16 becomes", id="Network"),
        pytest.param(NETWORK.replace('"vxlan"', '"vxlan","VNI":2'), "VNI 1 becomes 2", id="VNI"),
        pytest.param(NETWORK.replace('"vxlan"', '"vxlan","Port":4789'), "Port 8472 becomes 4789", id="Port"),
        pytest.param(NETWORK.replace("vxlan", "ipip"), "Backend.Type vxlan becomes ipip", id="Type"),
        pytest.param(
            NETWORK.replace("{", '{"SubnetLen":26,', 1), "the leases 10.244.3.0/24 do not fit", id="SubnetLen"
        ),
    ],
)
def test_cut_needs_force(network: Operator, config: str, text: str) -> None:
    """A change that cuts a network in which leases live is refused without --force, and done with it."""
    network("lease", "put", *A)
    network.refused(2, text, "network", "set", config)
    assert network("network", "set", config, "--force").startswith("set: ")
    assert network("network", "get") == config


def test_harmless_change(network: Operator) -> None:
    """What cuts nobody off needs no force; nor does any change of a network without leases."""
    empty = NETWORK.replace("10.244", "10.245")
    network("network", "set", empty)
    network("network", "set", NETWORK)
    network("lease", "put", *A)
    network("network", "set", NETWORK.replace('"vxlan"', '"vxlan","MTU":1400'))


def test_leases_come_and_go(network: Operator) -> None:
    """A lease is put, listed, replaced by its own node, and removed; JSON says the same."""
    assert network("lease", "put", *A) == "10.244.3.0-24 is leased to 192.0.2.3, revision 2"
    put = json.loads(network("lease", "put", *B, "--ttl", "3600", "--json"))
    assert (put["key"], put["public_ip"], put["changed"]) == ("10.244.4.0-24", "192.0.2.4", 3)
    assert 3590 < put["expires_in_s"] <= 3600
    lines = network("lease", "ls").splitlines()
    assert [line.split()[0] for line in lines] == ["KEY", "10.244.3.0-24", "10.244.4.0-24"]
    assert ("never" in lines[1], "in 59 min" in lines[2]) == (True, True)
    network("lease", "put", *A[:-1], "02:00:00:00:00:33")
    listed = json.loads(network("lease", "ls", "--json"))
    assert listed["revision"] == 4
    assert [lease["vtep_mac"] for lease in listed["leases"]] == ["02:00:00:00:00:33", "02:00:00:00:00:04"]
    assert network("lease", "rm", "10.244.3.0/24") == "10.244.3.0-24 is free"
    removed = json.loads(network("lease", "rm", "10.244.4.0-24", "--json"))
    assert removed == {"key": "10.244.4.0-24", "revision": 6}
    assert json.loads(network("lease", "ls", "--json"))["leases"] == []


def test_ipip_and_dual_stack_leases(operator: Operator) -> None:
    """A lease has what its backend and its families need."""
    operator(
        *("network", "set"),
        '{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:244::/48","Backend":{"Type":"vxlan"}}',
    )
    key = "10.244.3.0/24&fd00:244:0:3::/64"
    operator("lease", "put", key, *A[1:], "--public-ipv6", "2001:db8::3")
    found = operator.content()
    assert '"BackendV6Data":{"VNI":1,"VtepMAC":"02:00:00:00:00:03"}' in str(found)
    assert '"PublicIPv6":"2001:db8::3"' in str(found)
    operator.refused(2, "is no /24 and /64 of the network", "lease", "put", "10.245.0.0/24", *A[1:])


def test_udp_lease(network: Operator) -> None:
    """A lease of flannel's udp is written as flannel does, without a type, and listed by its name."""
    network("lease", "put", "10.244.5.0/24", "--public-ip", "192.0.2.5", "--backend", "udp")
    assert '{"PublicIP":"192.0.2.5","PublicIPv6":null}' in str(network.content())
    assert json.loads(network("lease", "ls", "--json"))["leases"][0]["backend"] == "udp"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        pytest.param((*A[:3],), "--vtep-mac is missing", id="no MAC"),
        pytest.param((A[0], *A[3:]), '"PublicIP" is missing', id="no address"),
        pytest.param((*A[:-1], "03:00:00:00:00:03"), "no unicast MAC", id="multicast MAC"),
        pytest.param(("10.244.3.0", *A[1:]), '"10.244.3.0" is no subnet', id="no length"),
        pytest.param(("10.244.3.1/24", *A[1:]), "has host bits set", id="host bits"),
        pytest.param(("10.245.3.0/24", *A[1:]), "is no /24 of the network 10.244.0.0/16", id="outside"),
        pytest.param(("10.244.3.0/25", *A[1:]), "is no /24 of the network", id="length"),
        pytest.param((A[0], "--public-ip", "10.244.9.9", *A[3:]), "lies inside the overlay", id="overlay"),
        pytest.param((A[0], "--public-ip", "127.0.0.1", *A[3:]), "loopback", id="loopback"),
        pytest.param((*A, "--backend", "vxlna"), "(did you mean vxlan?)", id="backend"),
        pytest.param((*A, "--backend", "ipip"), "--vtep-mac: ipip has none", id="MAC for ipip"),
        pytest.param((*A, "--backend", "udp"), "--vtep-mac: udp has none", id="MAC for udp"),
        pytest.param((B[0], *A[1:]), "192.0.2.3 has the lease 10.244.3.0-24 already", id="second lease"),
        pytest.param((A[0], *B[1:]), "10.244.3.0-24 is leased to 192.0.2.3; to take it", id="of another"),
    ],
)
def test_bad_lease(network: Operator, words: tuple[str, ...], text: str) -> None:
    """A lease that could not be a peer, or that robs another node, is not written."""
    if "already" in text or "to take it" in text:
        network("lease", "put", *A)
    network.refused(2, text, "lease", "put", *words)


def test_take_a_lease_by_force(network: Operator) -> None:
    """With --force a subnet goes to another node."""
    network("lease", "put", *A)
    assert "192.0.2.4" in network("lease", "put", A[0], *B[1:], "--force")


def test_rubbish_is_listed_and_removed(network: Operator) -> None:
    """What stands among the leases and is none is shown with the reason, and can be removed by its key."""
    database = Database(network.path)
    database.put("subnets/node-b", "{}", None, 0)
    database.close()
    (line,) = network("lease", "ls").splitlines()[1:]
    assert line.startswith("node-b ")
    assert 'unusable: "node-b" is no subnet' in line
    assert "is no subnet" in json.loads(network("lease", "ls", "--json"))["leases"][0]["problem"]
    network.refused(1, "there is no lease node-c; see overlayd lease ls", "lease", "rm", "node-c")
    assert network("lease", "rm", "node-b") == "node-b is free"


def test_unusable_network(network: Operator) -> None:
    """A network config that somebody broke is told with what it says; leases cannot be put meanwhile."""
    database = Database(network.path)
    database.put("config", "{", None, 1)
    database.close()
    network.refused(1, "the network in the store is unusable: no valid JSON", "network", "get")
    network.refused(1, "the network in the store is unusable", "lease", "put", *A)
    assert network("network", "set", NETWORK) == f"set: {NETWORK}"


def test_release_without_a_node(operator: Operator, tmp_path: Path) -> None:
    """Where no node ever ran there is nothing to give back: exit status 3."""
    code = cli.main(["lease", "release", "--run-dir", str(tmp_path / "run")])
    assert code == 3
