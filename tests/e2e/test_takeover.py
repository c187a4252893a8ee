# SPDX-License-Identifier: Apache-2.0
"""overlayd takes over from flannel on a live node, and nobody notices.

    pod a 10.244.1.2 ─ host a: flannel.1, then overlayd        host b: flannel.1 ─ pod b 10.244.2.2
                          192.0.2.2 ──────── router ──────── 192.0.2.6

What flanneld left stands on host a: device, addresses, routes, subnet.env, its lease. Drawn at bench/lab.py.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.lab import Kernel, Lab, wait_for
from tests.e2e.leased import LeasedDaemon
from tests.e2e.stream import Stream

STALL_S = 2.0
NETWORK: dict[str, Any] = {"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}


class Taken:
    """The drawing above, before the take-over."""

    def __init__(self, directory: Path, *flags: str) -> None:
        """Build it; nothing of ours runs yet."""
        self.lab = Lab(f"e2etake{os.getpid() % 100000}", names=("a", "b"))
        self.a, self.b = self.lab.nodes["a"], self.lab.nodes["b"]
        for node, peer in ((self.a, self.b), (self.b, self.a)):
            node.program_kernel([peer], Kernel())
        leases = {node.subnet(): node.lease() for node in (self.a, self.b)}
        peers = {"network": NETWORK, "leases": leases}
        flags = ("--takeover", "flannel.1", "--public-ip", self.a.address, *flags)
        self.daemon = LeasedDaemon(self.a.host, directory / "node", peers, flags)
        (self.daemon.directory / "state" / "vtep-mac").unlink()
        self.daemon.subnet_file.write_text(
            "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"
        )

    def devices(self) -> set[str]:
        """Return the names of the devices of host a."""
        found = self.a.host.run("ip", "-json", "link", "show").stdout
        return {link["ifname"] for link in json.loads(found)}

    def stream(self) -> Stream:
        """Return a connection from pod b to pod a."""
        return Stream(self.b.pod, self.a.pod, self.a.pod_ip())


@pytest.fixture
def taken(tmp_path: Path) -> Iterator[Taken]:
    """Yield the node as flannel left it."""
    built = Taken(tmp_path)
    try:
        yield built
    finally:
        try:
            built.daemon.close()
        finally:
            built.lab.close()


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


def test_port_is_held_by_another(taken: Taken) -> None:
    """When the start fails before the device would go, flannel's datapath carries on."""
    taken.daemon.flags += ["--tun-name", "cni0"]
    with taken.stream() as stream:
        found = subprocess.run(taken.daemon.run_command(), capture_output=True, text=True, timeout=20)
        assert found.returncode == 1
        assert stream.longest_s() < STALL_S
    wait_for(lambda: "flannel.1" in taken.devices(), "flannel.1 is there")
