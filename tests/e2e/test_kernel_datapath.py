# SPDX-License-Identifier: Apache-2.0
"""--datapath kernel on a live node: it starts, is restarted, changed and taken down.

pod a ─ host a: overlayd, kernel datapath        host b: flannel.1 ─ pod b      (drawn at bench/lab.py)
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.lab import Kernel, wait_for
from dataplane.native import Counters
from tests.e2e.leased import LeasedDaemon, value
from tests.e2e.rig import START_S
from tests.e2e.staged import Staged
from tests.e2e.test_kernel_peer import mac6, peers_file, program_kernel6

STALL_S = 2.0
DEVICES = {"overlay0.1", "overlay0-v6.1"}


class KernelDaemon(LeasedDaemon):
    """An overlayd that may have no forwarder."""

    def _open_counters(self) -> tuple[Counters, int]:
        return None  # type: ignore[return-value]


class Live(Staged):
    """The drawing above."""

    daemon: KernelDaemon

    def __init__(self, directory: Path, datapath: str) -> None:
        """Build it, and start overlayd on host a."""
        super().__init__("kern")
        for node in (self.a, self.b):
            node.set_pod_mtu(1430)
        self.b.program_kernel([self.a], Kernel())
        program_kernel6(self.b, self.a)
        leases = peers_file([self.a, self.b])
        own = leases["leases"][f"{self.a.subnet()}&fd00:244:0:1::/64"]
        own["BackendV6Data"]["VtepMAC"] = mac6(self.a)
        self.flags = ["--public-ip", self.a.address, "--public-ipv6", self.a.address6]
        self.daemon = KernelDaemon(self.a.host, directory / "node", leases, [])
        state = self.daemon.directory / "state"
        (state / "vtep-mac").write_text(f"{self.a.mac}\n")
        (state / "vtep-mac6").write_text(f"{mac6(self.a)}\n")
        self.start(datapath)

    def start(self, datapath: str, *flags: str) -> None:
        """Start overlayd on a datapath."""
        self.daemon.flags = [*self.flags, "--datapath", datapath, *flags]
        self.daemon.start()

    def look(self) -> object:
        """Return all that overlayd has told the kernel, without indexes."""
        commands = [
            *(("ip", "-6", "route", "show", "proto", number) for number in ("111", "112")),
            *(("ip", "route", "show", "proto", number) for number in ("111", "112")),
        ]
        for name in sorted(DEVICES):
            commands += [
                ("ip", "neigh", "show", "dev", name, "nud", "permanent"),
                ("bridge", "fdb", "show", "dev", name),
                ("ip", "-brief", "address", "show", "dev", name),
            ]
        runs = [self.a.host.run(*command, check=False) for command in commands]
        return [sorted(line.strip() for line in run.stdout.splitlines()) for run in runs]


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    """Yield the node on the kernel datapath."""
    with Live(tmp_path, "kernel") as built:
        yield built


def test_devices_hear_no_router(live: Live) -> None:
    """Devices of the kernel believe no router, and have no address of their own invention."""
    for name in DEVICES:
        settings = [
            f"net.ipv6.conf.{name.replace('.', '/')}.{setting}" for setting in ("accept_ra", "addr_gen_mode")
        ]
        assert live.a.host.run("sysctl", "-n", *settings).stdout.split() == ["0", "1"]
        assert live.a.host.run("ip", "address", "show", "dev", name, "scope", "link").stdout == ""


@pytest.mark.parametrize("family", [4, 6])
def test_carries(live: Live, family: int) -> None:
    """Pods of both families talk, by devices of the kernel and without a forwarder; status says so."""
    with live.stream(family) as stream:
        assert stream.longest_s() < STALL_S
    assert live.devices() >= DEVICES
    assert "overlay0" not in live.devices()
    assert live.daemon.forwarder_pid() == 0
    status = live.daemon.status()
    assert (status["datapath"], status["mtu"], status["vni"], status["port"]) == ("kernel", 1430, 1, 8472)
    text = live.daemon.say("status")
    assert "READY  kernel vxlan vni 1 port 8472" in text
    assert "forwarder" not in text


def test_down_removes_everything(live: Live) -> None:
    """`overlayd down` leaves no device and no route."""
    assert live.daemon.say("down") == ""
    assert not DEVICES & live.devices()
    assert live.show("route", "show", "proto", "112") == live.show("route", "show", "proto", "111") == []
    assert live.daemon.process is not None
    live.daemon.process.wait(START_S)
    live.daemon.process = None


def test_restart_changes_nothing(live: Live) -> None:
    """Control may end and come back: the kernel is not told anything anew, unless other flags ask for it."""
    before, index = live.look(), live.show("link", "show", "overlay0.1")[0]["ifindex"]
    with live.stream() as stream:
        live.daemon.stop()
        assert live.look() == before
        live.start("kernel")
        assert stream.longest_s() < STALL_S
    assert live.look() == before
    assert live.show("link", "show", "overlay0.1")[0]["ifindex"] == index
    assert live.daemon.log().count("told the kernel") == 2
    live.daemon.stop()
    live.start("kernel", "--dscp", "inherit", "--outer-ttl", "inherit")
    shown = live.a.host.run("ip", "-d", "link", "show", "overlay0.1").stdout
    assert "tos inherit" in shown
    assert "ttl inherit" in shown
    assert not shown.startswith(f"{index}:")
    assert live.look() == before


def test_peer_changes(live: Live) -> None:
    """A peer that gets another MAC address, leaves, or comes is told to the kernel, and nothing else is."""
    subnet = f"{live.b.subnet()}&fd00:244:0:2::/64"
    key = subnet.replace("/", "-")
    found = live.daemon.find(f"subnets/{key}")
    assert found is not None
    lease = json.loads(str(found.value))
    before = live.look()
    live.daemon.put(key, {**lease, "BackendData": {"VNI": 1, "VtepMAC": "02:00:00:00:00:99"}})
    live.daemon.sync()
    neighbour = live.show("neigh", "show", "10.244.2.0", "dev", "overlay0.1")
    assert neighbour[0]["lladdr"] == "02:00:00:00:00:99"
    live.daemon.delete(key)
    live.daemon.sync()
    assert live.show("route", "show", "proto", "112") == []
    live.daemon.put(key, lease)
    live.daemon.sync()
    assert live.look() == before


def test_auto_takes_the_kernel(live: Live) -> None:
    """Where nobody tells, the kernel's devices are taken if there are any, and status says why."""
    before = live.look()
    live.daemon.stop()
    live.start("auto")
    assert live.look() == before
    status = live.daemon.status()
    reason = "auto: the kernel has VXLAN devices"
    assert (status["datapath"], status["datapath_reason"]) == ("kernel", reason)
    assert f"({reason})" in live.daemon.say("status")
    assert f'datapath=kernel chosen_by="{reason}"' in live.daemon.log()
    assert "ovl-probe" not in live.devices()


def test_mac_of_two_nodes_is_told(live: Live) -> None:
    """status warns while two nodes have one VTEP MAC, of which the kernel can reach one."""

    def is_told() -> bool:
        return any(f"have one VTEP MAC, {live.b.mac}" in text for text in live.daemon.status()["warnings"])

    live.daemon.put("10.244.77.0/24", value("192.0.2.99", live.b.mac))
    wait_for(is_told, "the MAC is told", 5.0)
    live.daemon.delete("10.244.77.0/24")
    wait_for(lambda: not is_told(), "it is not any more", 5.0)


@pytest.mark.alone
def test_datapath_changes_and_back(live: Live) -> None:
    """From the kernel to userspace and back, with the same connections; nothing of the other one is left."""
    before = live.look()
    with live.stream(4) as one, live.stream(6) as other:
        for datapath in ("userspace", "kernel", "userspace", "kernel"):
            live.daemon.stop()
            live.start(datapath)
            assert max(one.longest_s(), other.longest_s()) < STALL_S
            assert live.daemon.status()["datapath"] == datapath
            assert ("overlay0" in live.devices()) == (datapath == "userspace")
            assert bool(DEVICES & live.devices()) == (datapath == "kernel")
    assert live.look() == before
    assert live.daemon.forwarder_pid() == 0
