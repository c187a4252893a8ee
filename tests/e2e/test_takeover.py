# SPDX-License-Identifier: Apache-2.0
"""overlayd takes over from flannel on a live node, and nobody notices.

    pod a 10.244.1.2 ─ host a: flannel.1, then overlayd        host b: flannel.1 ─ pod b 10.244.2.2
                          192.0.2.2 ──────── router ──────── 192.0.2.6

What flanneld left stands on host a: device, addresses, routes, subnet.env, its lease. Drawn at bench/lab.py.
"""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.lab import Kernel
from tests.e2e.leased import LeasedDaemon
from tests.e2e.staged import Staged
from tests.e2e.test_kernel_peer import mac6, peers_file, program_kernel6

STALL_S = 2.0
NETWORK: dict[str, Any] = {"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}


class Taken(Staged):
    """The drawing above, before the take-over."""

    daemon: LeasedDaemon

    def __init__(self, directory: Path, *, is_dual: bool = False) -> None:
        """Build it; nothing of ours runs yet."""
        super().__init__("take")
        for node, peer in ((self.a, self.b), (self.b, self.a)):
            node.program_kernel([peer], Kernel())
            if is_dual:
                program_kernel6(node, peer)
        leases = {node.subnet(): node.lease() for node in (self.a, self.b)}
        peers = peers_file([self.a, self.b]) if is_dual else {"network": NETWORK, "leases": leases}
        devices = "flannel.1,flannel-v6.1" if is_dual else "flannel.1"
        flags = ["--takeover", devices, "--public-ip", self.a.address]
        if is_dual:
            flags += ["--public-ipv6", self.a.address6]
        self.daemon = LeasedDaemon(self.a.host, directory / "node", peers, flags)
        (self.daemon.directory / "state" / "vtep-mac").unlink()
        self.daemon.subnet_file.write_text(
            "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"
        )


@pytest.fixture
def taken(tmp_path: Path) -> Iterator[Taken]:
    """Yield the node as flannel left it."""
    with Taken(tmp_path) as built:
        yield built


def test_take_over(taken: Taken) -> None:
    """Subnet, VTEP MAC and lease stay what they were, byte for byte, and so does an open connection."""
    before = taken.daemon.find("subnets/10.244.1.0-24")
    assert before is not None
    with taken.stream() as stream:
        stream.longest_s()
        taken.daemon.start()
        assert stream.longest_s() < STALL_S
    assert taken.devices() >= {"overlay0"}
    assert "flannel.1" not in taken.devices()
    after = taken.daemon.find("subnets/10.244.1.0-24")
    assert after is not None
    assert after.value == before.value
    assert (taken.daemon.directory / "state" / "vtep-mac").read_text() == f"{taken.a.mac}\n"
    status = taken.daemon.status()
    assert (status["subnet"], status["mtu"]) == (taken.a.subnet(), 1450)
    assert "FLANNEL_SUBNET=10.244.1.1/24\n" in taken.daemon.subnet_file.read_text()


def kernel_state(taken: Taken) -> list[list[str]]:
    """Return all the kernel knows of flannel.1, without indexes and counters."""
    shown = (
        ("bridge", "fdb", "show", "dev", "flannel.1"),
        ("ip", "neigh", "show", "dev", "flannel.1", "nud", "permanent"),
        ("ip", "route", "show", "dev", "flannel.1"),
        ("ip", "-brief", "address", "show", "dev", "flannel.1", "scope", "global"),
    )
    texts = [taken.a.host.run(*command).stdout for command in shown]
    link = json.loads(taken.a.host.run("ip", "-json", "-details", "link", "show", "flannel.1").stdout)[0]
    data = {key: value for key, value in link["linkinfo"]["info_data"].items() if key != "port_range"}
    texts.append(f"{link['address']} {link['mtu']} {link['flags']} {sorted(data.items(), key=str)}")
    return [sorted(line.strip() for line in text.splitlines()) for text in texts]


def test_way_back(taken: Taken) -> None:
    """Handed over, the kernel is as flannel had left it, to the last entry, and the connection lives."""
    before = kernel_state(taken)
    with taken.stream() as stream:
        taken.daemon.start()
        assert stream.longest_s() < STALL_S
        assert taken.daemon.say("down", "--hand-over", "flannel.1") == ""
        assert stream.longest_s() < STALL_S
    assert kernel_state(taken) == before
    assert "overlay0" not in taken.devices()
    assert taken.daemon.find("subnets/10.244.1.0-24") is not None


def test_both_families(tmp_path: Path) -> None:
    """With IPv6 pods both devices are taken over and handed back, each with its own MAC address."""
    devices = {"flannel.1", "flannel-v6.1"}
    with Taken(tmp_path, is_dual=True) as taken:
        before = taken.daemon.find("subnets/10.244.1.0-24&fd00:244:0:1::-64")
        with taken.stream(4) as one, taken.stream(6) as other:
            taken.daemon.start()
            assert max(one.longest_s(), other.longest_s()) < STALL_S
            assert not devices & taken.devices()
            assert taken.daemon.say("down", "--hand-over", "flannel.1", "--hand-over", "flannel-v6.1") == ""
            assert max(one.longest_s(), other.longest_s()) < STALL_S
        assert devices <= taken.devices()
        found = taken.a.host.run("ip", "link", "show", "flannel-v6.1").stdout
        assert mac6(taken.a) in found
        after = taken.daemon.find("subnets/10.244.1.0-24&fd00:244:0:1::-64")
        assert before is not None
        assert after is not None
        assert json.loads(str(after.value)) == json.loads(str(before.value))


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        pytest.param(("flannel.1", "flannel-v6.1"), "give 1, one for pods of each IP version", id="too many"),
        pytest.param(("cni0",), "cannot hand over to cni0: there is such a device", id="name is taken"),
    ],
)
def test_no_way_back(taken: Taken, names: tuple[str, ...], reason: str) -> None:
    """Where nothing can be handed over, all goes on as it is."""
    taken.daemon.start()
    words = [word for name in names for word in ("--hand-over", name)]
    with taken.stream() as stream:
        assert reason in taken.daemon.say("down", *words)
        assert stream.longest_s() < STALL_S
    assert taken.daemon.status()["ready"]
    assert "overlay0" in taken.devices()


def test_take_over_again(taken: Taken) -> None:
    """A later start finds nothing to take over, keeps the MAC address, and changes nothing."""
    taken.daemon.start()
    with taken.stream() as stream:
        taken.daemon.stop()
        taken.daemon.start()
        assert stream.longest_s() < STALL_S
    assert "nothing to take over" in taken.daemon.log()
    assert taken.daemon.status()["ready"]


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        pytest.param("id 7 dstport 8472 local 192.0.2.2", "flannel.1 has VNI 7, the network 1", id="VNI"),
        pytest.param(
            "id 1 dstport 4789 local 192.0.2.2", "flannel.1 has port 4789, the network 8472", id="port"
        ),
        pytest.param(
            "id 1 dstport 8472 local 192.0.2.3",
            "flannel.1 sends from 192.0.2.3, we would from 192.0.2.2. Give --public-ip 192.0.2.3",
            id="address",
        ),
    ],
)
def test_device_of_another_network(taken: Taken, device: str, reason: str) -> None:
    """A device that belongs to another network is left as it is, and the start fails with what differs."""
    taken.a.host.ip(
        f"link del flannel.1\nlink add flannel.1 type vxlan {device} nolearning\nlink set flannel.1 up\n"
    )
    found = subprocess.run(taken.daemon.run_command(), capture_output=True, text=True, timeout=20)
    assert found.returncode == 1
    assert f"cannot take over: {reason}" in found.stderr
    assert "flannel.1" in taken.devices()
    assert "overlay0" not in taken.devices()


def test_start_fails_before(taken: Taken) -> None:
    """When the start fails before the device would go, flannel's datapath carries on, untouched."""
    before = kernel_state(taken)
    taken.daemon.flags += ["--tun-name", "cni0"]
    with taken.stream() as stream:
        found = subprocess.run(taken.daemon.run_command(), capture_output=True, text=True, timeout=20)
        assert found.returncode == 1
        assert stream.longest_s() < STALL_S
    assert kernel_state(taken) == before


@pytest.mark.alone
def test_start_fails_after(taken: Taken) -> None:
    """When the port cannot be had although the device went, the device is made again as it was."""
    before = kernel_state(taken)
    taken.daemon.flags += ["--public-ipv6", taken.a.address6]
    with taken.a.host.socket(socket.AF_INET6, socket.SOCK_DGRAM) as holder, taken.stream() as stream:
        holder.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        holder.bind(("::", 8472))
        found = subprocess.run(taken.daemon.run_command(), capture_output=True, text=True, timeout=20)
        assert found.returncode == 1
        assert "UDP port 8472 is held by" in found.stderr
        assert "gave back device=flannel.1" in found.stderr
        assert stream.longest_s() < STALL_S
    assert kernel_state(taken) == before
    assert "overlay0" not in taken.devices()
