# SPDX-License-Identifier: Apache-2.0
"""Which rules a node needs, by its flags and its network, and what `down` learns of them."""

from __future__ import annotations

import asyncio
import errno
import json
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from dataplane import firewall, sysctls, traffic
from dataplane.backend import Settings
from dataplane.config import RunConfig
from dataplane.errors import KernelError, RuntimeFailure
from dataplane.model import Encap, Interface, NetworkConfig, SubnetKey, Table
from dataplane.ruleset import Guard, Masquerade
from dataplane.traffic import Traffic

NET, OWN = IPv4Network("10.244.0.0/16"), IPv4Network("10.244.1.0/24")
KEY = SubnetKey(OWN)
CONFIG = RunConfig("sqlite:///x")
NETWORK = NetworkConfig(NET, None, Encap.VXLAN, vni=7)
SETTINGS = Settings(
    network=NETWORK,
    encaps=frozenset({Encap.VXLAN}),
    tun_name="overlay0",
    mtu=1450,
    underlay=Interface("eth0", 2, 1500),
    underlay4=IPv4Address("192.0.2.1"),
    underlay6=None,
    vtep_mac4=None,
    vtep_mac6=None,
)
GUARD = Guard((NET,), "eth0", (IPv4Address("192.0.2.1"),), (8472,))
MASQUERADE = Masquerade((NET,), (OWN,), (8472,))


def test_plan() -> None:
    """By default packets of pods are forwarded and tunnels guarded; each flag says what it says."""
    plan = traffic.plan(CONFIG, SETTINGS, KEY)
    assert (plan.table, plan.masquerade, plan.guard, plan.forward) == (
        "overlayd-overlay0",
        None,
        GUARD,
        (NET,),
    )
    assert traffic.plan(replace(CONFIG, ip_masq=True), SETTINGS, KEY).masquerade == MASQUERADE
    plain = replace(CONFIG, ip_masq=True, masq_plain=True)
    assert traffic.plan(plain, SETTINGS, KEY).masquerade == replace(MASQUERADE, is_random=False)
    assert traffic.plan(replace(CONFIG, guard=False), SETTINGS, KEY).guard is None
    assert traffic.plan(replace(CONFIG, forward_rules=False), SETTINGS, KEY).forward == ()
    assert traffic.plan(replace(CONFIG, tun_name="pods"), SETTINGS, KEY).table == "overlayd-pods"


def test_encapsulations() -> None:
    """Every encapsulation in use is guarded; on the kernel datapath packets of our VNI alone."""
    direct = replace(SETTINGS, network=replace(NETWORK, encap=Encap.DIRECT), encaps=frozenset({Encap.DIRECT}))
    assert traffic.plan(CONFIG, direct, KEY).guard is None
    more = replace(SETTINGS, encaps=frozenset({Encap.VXLAN, Encap.IPIP, Encap.FLANNEL_UDP}))
    assert traffic.plan(CONFIG, more, KEY).guard == replace(GUARD, ports=(8472, 8285), has_ipip=True)
    assert traffic.plan(replace(CONFIG, datapath="kernel"), SETTINGS, KEY).guard == replace(GUARD, vni=7)


@pytest.fixture
def no_nft(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let there be no nft, and no ports to reserve."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(firewall, "SBIN", str(tmp_path))
    monkeypatch.setattr(sysctls, "_sysctl", lambda name: tmp_path / name)


@pytest.mark.usefixtures("no_nft")
def test_without_nft() -> None:
    """Without nft a node works and warns, unless it is to masquerade or clamp: then it does not start."""

    async def work() -> None:
        node = Traffic(CONFIG, {})
        await node.apply(SETTINGS, KEY, Table())
        (warning,) = node.warnings()
        assert "nft is not installed here" in warning
        with pytest.raises(RuntimeFailure, match="--ip-masq cannot be had: nft is not installed here"):
            await Traffic(replace(CONFIG, ip_masq=True), {}).apply(SETTINGS, KEY, Table())
        with pytest.raises(RuntimeFailure, match="--mss-clamp cannot be had: nft is not installed here"):
            await Traffic(replace(CONFIG, mss_clamp=True), {}).apply(SETTINGS, KEY, Table())

    asyncio.run(work())


@pytest.mark.usefixtures("no_nft")
def test_nothing_wanted() -> None:
    """A node that wants no rules misses no nft."""
    nothing = Traffic(replace(CONFIG, guard=False, forward_rules=False), {})
    asyncio.run(nothing.apply(SETTINGS, KEY, Table()))
    assert nothing.warnings() == []


@pytest.mark.usefixtures("no_nft")
def test_settings_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where ports cannot be reserved a node works, and warns."""

    def refuse(wanted: dict[str, str], changes: object) -> list[str]:
        raise KernelError(f"setting {next(iter(wanted))}", errno.EROFS)

    monkeypatch.setattr(sysctls, "read_sysctl", lambda name: "")
    monkeypatch.setattr(sysctls, "set_sysctls", refuse)
    node = Traffic(replace(CONFIG, guard=False, forward_rules=False), {})
    asyncio.run(node.apply(SETTINGS, KEY, Table()))
    (warning,) = node.warnings()
    assert "given the ports of tunnels: setting net/ipv4/ip_local_reserved_ports: Read-only" in warning
    assert node.facts()["reserved_ports"] == []


@pytest.mark.usefixtures("no_nft")
def test_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left behind in JSON is what `down` needs to remove rules, or to hand masquerading over."""
    seen: list[object] = []
    monkeypatch.setattr(firewall.Firewall, "_replace", lambda self, wanted: None)
    monkeypatch.setattr(firewall, "remove", lambda table: seen.append(table))
    monkeypatch.setattr(firewall, "hand_over", lambda *args: seen.append(args))
    node = Traffic(replace(CONFIG, ip_masq=True), {"reserved_ports": "nonsense", "masquerade": 7})
    asyncio.run(node.apply(SETTINGS, KEY, Table()))
    facts = json.loads(json.dumps(node.facts()))
    traffic.end("overlay0", facts)
    traffic.end("overlay0", facts, is_handed_over=True)
    traffic.end("overlay0", {"masquerade": None}, is_handed_over=True)
    table = "overlayd-overlay0"
    assert seen == [table, (table, MASQUERADE), (table, None)]
