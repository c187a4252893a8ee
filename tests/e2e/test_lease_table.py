# SPDX-License-Identifier: Apache-2.0
"""What a store says becomes the table, and only what may: drawing in rig.py, stores in leased*.py.

Every row is put into both stores: what one of them refuses the other refuses, for the same reason.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator

import pytest

from bench.figures import figure
from bench.lab import stopped, wait_for
from dataplane.control import ForwarderClient
from dataplane.model import Entry
from dataplane.pace import BURST, PER_S
from tests.e2e import frames
from tests.e2e.frames import DUAL, FOUR, US
from tests.e2e.leased import LEASES, NETWORK, LeasedDaemon, LeasedRig, value
from tests.e2e.leased_etcd import EtcdLeasedDaemon

NEW = "10.244.9.0/24"
NEW_POD = "10.244.9.5"
NEW_IP, NEW_MAC = "198.18.0.9", "02:4f:00:00:04:09"
OTHER_IP, OTHER_MAC = "198.18.0.10", "02:4f:00:00:04:0a"
SOON_S = 1.0
KEPT = {f"subnets/{subnet.replace('/', '-')}" for subnet in LEASES}
TO_DUAL = (str(DUAL.ip), DUAL.mac)
STORES: dict[str, type[LeasedDaemon]] = {"sqlite": LeasedDaemon, "etcd": EtcdLeasedDaemon}


@pytest.fixture(scope="module", params=list(STORES.values()), ids=list(STORES))
def rig(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[LeasedRig]:
    """Yield a rig on a store, shared by the tests of this file."""
    with LeasedRig(tmp_path_factory.mktemp("leased") / "node", request.param) as built:
        yield built


@pytest.fixture(autouse=True)
def restore(rig: LeasedRig) -> Iterator[None]:
    """Leave the store as it was found."""
    yield
    for record in rig.daemon.records():
        if record.key != "config" and record.key not in KEPT:
            rig.daemon.erase(record.key)
    for subnet, lease in LEASES.items():
        found = rig.daemon.find(f"subnets/{subnet.replace('/', '-')}")
        if found is None or json.loads(found.value or "") != lease:
            rig.daemon.put(subnet, lease)
    rig.daemon.put_config(NETWORK)
    rig.daemon.sync()
    rig.daemon.wait_ready()
    assert set(rig.daemon.peers()) == {DUAL.subnet, FOUR.subnet}


def test_our_lease_is_held(rig: LeasedRig) -> None:
    """A reservation under our address is ours: it stays one, and status tells so."""
    status = rig.daemon.status()
    assert status["subnet"] == US.subnet
    assert status["lease"]["key"] == US.subnet.replace("/", "-")
    assert status["lease"]["expires_in_s"] is None
    assert "(reserved)" in rig.daemon.say("status")
    assert rig.daemon.subnet_file.read_text() == (
        "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"
    )


@pytest.mark.alone
@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        pytest.param(value(NEW_IP, OTHER_MAC), (NEW_IP, OTHER_MAC), id="MAC"),
        pytest.param(value(OTHER_IP, NEW_MAC), (OTHER_IP, NEW_MAC), id="PublicIP"),
    ],
)
def test_case_106_changed_value(
    rig: LeasedRig, changed: dict[str, object], expected: tuple[str, str]
) -> None:
    """A peer's new address or MAC, with the subnet it had, is used within a second."""
    rig.daemon.put(NEW, value(NEW_IP, NEW_MAC))
    rig.daemon.sync()
    assert rig.route_of(NEW_POD) == (NEW_IP, NEW_MAC)
    started_s = time.monotonic()
    rig.daemon.put(NEW, changed)
    rig.daemon.sync()
    assert rig.route_of(NEW_POD) == expected
    assert time.monotonic() - started_s < SOON_S


def test_case_110_own_lease_is_no_peer(rig: LeasedRig) -> None:
    """Our own lease is never programmed as a peer, nor shown as one."""
    assert US.subnet not in rig.daemon.peers()
    rig.daemon.put(US.subnet, value(str(US.ip), US.mac))
    rig.daemon.put(NEW, value(NEW_IP, NEW_MAC))
    rig.daemon.sync()
    assert NEW in rig.daemon.peers()
    assert US.subnet not in rig.daemon.peers()
    lines = rig.daemon.say("peers", "--all").splitlines()
    assert [line for line in lines if US.subnet in line and line.endswith("our own")]


def test_case_111_duplicate_subnet(rig: LeasedRig) -> None:
    """Of two leases of one subnet the older one counts; the other raises an alarm, and waits."""
    rig.daemon.put_config({**NETWORK, "EnableIPv6": True, "IPv6Network": "fd00:244::/48"})
    old, new = "10.244.9.0-24&fd00:244:0:9::-64", "10.244.9.0-24&fd00:244:0:a::-64"
    rig.daemon.put_raw(old, json.dumps(value(NEW_IP, NEW_MAC)))
    rig.daemon.smuggle(new, value(OTHER_IP, OTHER_MAC))
    reason = f"its subnet {NEW} is also leased to {NEW_IP}"
    rig.daemon.sync()
    assert f"lease {new} refused: {reason}" in rig.daemon.log()
    assert rig.route_of(NEW_POD) == (NEW_IP, NEW_MAC)
    both = [peer["refused"] for peer in rig.daemon.status()["peers"] if NEW in peer["subnet"]]
    assert both == [None, reason]
    rig.daemon.delete(old)
    rig.daemon.sync()
    assert rig.route_of(NEW_POD) == (OTHER_IP, OTHER_MAC)


HOSTILE = {
    "everything": ("0.0.0.0-0", value(NEW_IP, NEW_MAC), "0.0.0.0/0 is outside the network"),
    "more than the network": ("10.0.0.0-8", value(NEW_IP, NEW_MAC), "10.0.0.0/8 is outside the network"),
    "whole network": ("10.244.0.0-16", value(NEW_IP, NEW_MAC), "is the whole network"),
    "half the network": ("10.244.128.0-17", value(NEW_IP, NEW_MAC), "is no /24, as the network's are"),
    "part of our subnet": ("10.244.1.128-25", value(NEW_IP, NEW_MAC), "is no /24"),
    "our subnet": ("10.244.1.0-24&fd00:244::-64", value(NEW_IP, NEW_MAC), "overlaps our own"),
    "our subnet, spelt oddly": ("10.244.1.0/24", value(NEW_IP, NEW_MAC), "flannel writes 10.244.1.0-24"),
    "the underlay": ("192.0.2.0-24", value(NEW_IP, NEW_MAC), "192.0.2.0/24 is outside the network"),
    "an API server": ("192.0.2.254-32", value(NEW_IP, NEW_MAC), "192.0.2.254/32 is outside the network"),
    "PublicIP in the overlay": ("10.244.9.0-24", value("10.244.2.1", NEW_MAC), "lies inside the overlay"),
    "PublicIP loopback": ("10.244.9.0-24", value("127.0.0.1", NEW_MAC), "a loopback address"),
    "PublicIP unspecified": ("10.244.9.0-24", value("0.0.0.0", NEW_MAC), '"PublicIP" is missing'),
    "PublicIP multicast": ("10.244.9.0-24", value("224.0.0.1", NEW_MAC), "a multicast address"),
    "PublicIP ours": ("10.244.9.0-24", value(str(US.ip), NEW_MAC), "is an address of this host"),
    "PublicIP ours too": ("10.244.9.0-24", value("192.0.2.101", NEW_MAC), "is an address of this host"),
    "PublicIP broadcast": ("10.244.9.0-24", value("192.0.2.255", NEW_MAC), "is a broadcast address"),
    "PublicIP of a peer": ("10.244.9.0-24", value(str(DUAL.ip), NEW_MAC), None),
}


@pytest.mark.parametrize(("key", "lease", "reason"), HOSTILE.values(), ids=HOSTILE.keys())
def test_case_114_hostile_lease(
    rig: LeasedRig, key: str, lease: dict[str, object], reason: str | None
) -> None:
    """A lease that claims what is nobody's to claim is refused, counted and listed; the others work on."""
    rig.daemon.smuggle(key, lease)
    rig.daemon.put("10.244.8.0/24", value("198.18.0.8", "02:4f:00:00:04:08"))
    rig.daemon.sync()
    assert rig.route_of("10.244.8.5") == ("198.18.0.8", "02:4f:00:00:04:08")
    if reason is not None:
        found = [peer for peer in rig.daemon.status()["peers"] if peer["refused"]]
        figure("hostile leases that were not refused", [0 if len(found) == 1 else 1], "a lease")
        assert [peer["id"] for peer in found] == [None]
        assert reason in found[0]["refused"]
        assert reason in rig.daemon.log()
    assert rig.route_of(DUAL.pod()) == TO_DUAL
    inner, frame = frames.good("vxlan")
    rig.accepted(frame, inner)


def test_case_114_public_ip_behind_our_device(rig: LeasedRig) -> None:
    """To an address that this host routes into the overlay packets go by the underlay, and never round."""
    rig.dut.ip(f"route add {NEW_IP}/32 dev overlay0")
    try:
        rig.daemon.put(NEW, value(NEW_IP, NEW_MAC))
        rig.daemon.sync()
        assert rig.route_of(NEW_POD) == (NEW_IP, NEW_MAC)
        assert rig.route_of(DUAL.pod()) == TO_DUAL
    finally:
        rig.dut.ip(f"route del {NEW_IP}/32 dev overlay0")


FLAPS = 600  # in some seconds, each a table unless somebody holds them back


@pytest.mark.alone
@pytest.mark.parametrize("rig", [EtcdLeasedDaemon], ids=["etcd"], indirect=True)
def test_flapping_lease(rig: LeasedRig) -> None:
    """A lease that changes all the time is taken up now and then, and as it ends; others are as ever."""

    def tables() -> int:
        with ForwarderClient(rig.daemon.run_dir / "forwarder.sock") as client:
            message, fds = client.inspect()
        for fd in fds.values():
            os.close(fd)
        return message.generation

    before, begun_s = tables(), time.monotonic()
    for turn in range(FLAPS):
        rig.daemon.put(NEW, value(f"198.18.2.{turn % 250 + 1}", NEW_MAC))
        if turn == FLAPS // 2:
            asked_s = time.monotonic()
            rig.daemon.put("10.244.8.0/24", value("198.18.0.8", "02:4f:00:00:04:08"))
            wait_for(lambda: "10.244.8.0/24" in rig.daemon.peers(), "another lease is a peer")
            assert time.monotonic() - asked_s < SOON_S
    took_s = time.monotonic() - begun_s
    warning = "lease 10.244.9.0-24 changes so often that only 10 times a second are taken up"
    assert warning in rig.daemon.status()["warnings"]
    assert warning in rig.daemon.log()
    rig.daemon.sync()
    assert rig.route_of(NEW_POD) == (f"198.18.2.{(FLAPS - 1) % 250 + 1}", NEW_MAC)
    assert rig.route_of("10.244.8.5") == ("198.18.0.8", "02:4f:00:00:04:08")
    assert tables() - before <= BURST + PER_S * (took_s + 1.0) + 1
    assert tables() - before < FLAPS


def test_refused_lease_is_shown(rig: LeasedRig) -> None:
    """People are shown how many leases are refused, and which, and why."""
    key, lease, reason = HOSTILE["the underlay"]
    rig.daemon.smuggle(key, lease)
    rig.daemon.sync()
    assert str(reason) in rig.daemon.say("peers", "--all")
    assert "refused 1" in rig.daemon.say("status")


def test_case_112_malformed_leases(rig: LeasedRig) -> None:
    """A store full of rubbish is refused entry by entry, with reasons, while good leases work and come."""
    rubbish = {
        "10.244.20.0-24": "{",
        "10.244.21.0-24": "[]",
        "10.244.22.0-24": '{"PublicIP": 7, "BackendType": "vxlan"}',
        "10.244.23.0-24": "x" * (1 << 20),
        "10.244.24.0-24": '{"PublicIP": "\u2460\U0001f600", "BackendType": "vxlan"}',
        "10.244.25.0-24": '{"PublicIP": ' + "9" * 5000 + "}",
        "10.244.26.0-24": json.dumps(value("198.18.0.26", NEW_MAC, BackendType="wireguard")),
        "10.244.27.0-24": "[" * 5000,
        "10.244.28.0-24": json.dumps(value("198.18.0.28", "ff:ff:ff:ff:ff:ff")),
        "node-b": json.dumps(value("198.18.0.29", NEW_MAC)),
        "10.244.30.1-24": json.dumps(value("198.18.0.30", NEW_MAC)),
        "\x1b[2J\nready": "{}",
        "y" * 100_000: "{}",
        "\u0661\u0660.244.31.0-24": json.dumps(value("198.18.0.31", NEW_MAC)),
    }
    for key, text in rubbish.items():
        rig.daemon.put_raw(key, text)
    rig.daemon.put(NEW, value(NEW_IP, NEW_MAC, Unknown="field", publicip6=None))
    rig.daemon.sync()
    refused = {name: peer["refused"] for name, peer in rig.daemon.peers().items() if peer["refused"]}
    assert set(refused) == {Entry(key, None).title for key in rubbish}
    assert max(map(len, refused.values())) < 400
    assert rig.route_of(NEW_POD) == (NEW_IP, NEW_MAC)
    assert rig.route_of(DUAL.pod()) == TO_DUAL
    assert "14 unreadable: overlayd peers --all" in rig.daemon.say("peers")
    for text in (rig.daemon.log(), rig.daemon.say("peers", "--all"), rig.daemon.say("status")):
        assert "\x1b" not in text
        assert max(map(len, text.splitlines())) < 700
    assert all(key in rig.daemon.say("peers", "--all") for key in ("node-b", "10.244.27.0-24"))
    assert "refused 14" in rig.daemon.say("status")


def test_case_113_names_in_any_case(rig: LeasedRig) -> None:
    """Field names match in any case, as in Go."""
    data = {"vni": 1, "VTEPMAC": NEW_MAC}
    rig.daemon.put(NEW, {"publicip": NEW_IP, "BACKENDTYPE": "vxlan", "backenddata": data})
    rig.daemon.sync()
    assert rig.route_of(NEW_POD) == (NEW_IP, NEW_MAC)


@pytest.mark.alone
def test_lease_expires(rig: LeasedRig) -> None:
    """A lease that nobody renews is gone when its time is over, though nobody writes to the store."""
    started_s = time.monotonic()
    rig.daemon.put(NEW, value(NEW_IP, NEW_MAC), ttl_s=2.0)
    rig.daemon.sync()
    assert rig.route_of(NEW_POD) == (NEW_IP, NEW_MAC)
    wait_for(lambda: NEW not in rig.daemon.peers(), "the peer is gone")
    rig.daemon.sync()
    assert 2.0 <= time.monotonic() - started_s < 3.0
    rig.unsent(frames.inner4(US.pod(), NEW_POD), "no_peer")


def test_listed_before_it_is_in_force(rig: LeasedRig) -> None:
    """As long as a change is not in force, `status` says how long control has been at it; then null."""
    with stopped(rig.daemon.forwarder_pid()):
        rig.daemon.put(NEW, value(NEW_IP, NEW_MAC))
        wait_for(lambda: NEW in {peer["subnet"] for peer in rig.daemon.status()["peers"]}, "it is listed")
        assert rig.daemon.status()["control"]["pass_s"] is not None
    assert NEW in rig.daemon.peers()
    assert rig.daemon.status()["control"]["pass_s"] is None
    assert rig.route_of(NEW_POD) == (NEW_IP, NEW_MAC)


def test_network_changes_live(rig: LeasedRig) -> None:
    """A change of the network config that cuts nobody off is in force at once, subnet.env included."""
    rig.daemon.put_config({**NETWORK, "Backend": {**NETWORK["Backend"], "MTU": 1400}})
    wait_for(lambda: "FLANNEL_MTU=1350" in rig.daemon.subnet_file.read_text(), "the new MTU")
    assert rig.daemon.status()["mtu"] == 1350
    assert rig.route_of(DUAL.pod()) == TO_DUAL


@pytest.mark.parametrize("text", ["{", "{}", '{"Network": "10.245.0.0/16", "Backend": {"Type": "vxlan"}}'])
def test_network_of_no_use(rig: LeasedRig, text: str) -> None:
    """A network config that is broken, or in which our pods could not stay, changes only the status."""
    rig.daemon.put_config(text)
    rig.daemon.sync()
    status = rig.daemon.status()
    assert not status["ready"] or status["warnings"]
    assert rig.route_of(DUAL.pod()) == TO_DUAL
