# SPDX-License-Identifier: Apache-2.0
"""Without root: all of it in a user namespace, whose root is nobody outside.

user namespace
  network namespace a                      network namespace b
  overlay0 10.244.1.0/32                   overlay0 10.244.2.0/32
  overlayd run, overlayd forwarder         the same
  under0 192.0.2.1 ─────────── veth ────── under0 192.0.2.2
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from bench.lab import Namespace, wait_for
from tests.e2e.pair import NODES, START_S, peers_file
from tests.e2e.rig import ROOT, Daemon

INTO = ("-U", "-n", "--preserve-credentials")


class RootlessSpace(Namespace):
    """A network namespace of a user namespace, held by a process that sleeps in it."""

    def __init__(self, name: str, *command: str) -> None:
        """Make it by a command that becomes the one behind it."""
        self.name = name
        self.holder = subprocess.Popen([*command, "sleep", "infinity"])
        wait_for(lambda: self._program() == "sleep", f"namespace {name}", START_S)

    def _program(self) -> str:
        return Path(f"/proc/{self.holder.pid}/comm").read_text(encoding="ascii").strip()

    def command(self, *args: str) -> list[str]:
        """Return the command line that runs a program in here, as this namespace's root."""
        return ["nsenter", "-t", str(self.holder.pid), *INTO, *args]

    def ip(self, batch: str) -> None:
        """Run lines of `ip` in here."""
        subprocess.run(self.command("ip", "-batch", "-"), input=batch.encode(), check=True)

    def close(self) -> None:
        """End the holder, and with it the namespace once nobody else is in there."""
        self.holder.kill()
        self.holder.wait()


def has_user_namespaces() -> bool:
    """Tell whether the kernel has them; then whatever else is in the way of this test is a failure."""
    most = Path("/proc/sys/user/max_user_namespaces")
    return Path("/proc/self/ns/user").exists() and most.read_text(encoding="ascii").strip() != "0"


@pytest.fixture
def spaces() -> Iterator[dict[str, RootlessSpace]]:
    """Yield the two hosts, joined."""
    if not has_user_namespaces():
        pytest.skip("this kernel has no user namespaces, or allows none")
    with ExitStack() as stack:
        a = RootlessSpace("a", "unshare", "-rUn")
        stack.callback(a.close)
        b = RootlessSpace("b", *a.command("unshare", "-n"))
        stack.callback(b.close)
        a.ip(f"link add under0 type veth peer name under0 netns {b.holder.pid}\n")
        for space in (a, b):
            address = NODES[space.name][0]
            space.run("sysctl", "-qw", "net.ipv6.conf.under0.disable_ipv6=1", "net.ipv4.ip_forward=1")
            space.ip(f"link set lo up\nlink set under0 up\naddr add {address}/24 dev under0\n")
        yield {"a": a, "b": b}


def expected_warnings() -> set[str]:
    """Return how the warnings begin that only root of the machine could help with."""
    limits = [Path(f"/proc/sys/net/core/{name}") for name in ("rmem_max", "wmem_max")]
    found = {"socket buffer" for path in limits if int(path.read_text(encoding="ascii")) < 8 << 20}
    bpf = Path("/proc/sys/kernel/unprivileged_bpf_disabled")
    return found | ({"one queue instead of 4"} if bpf.read_text(encoding="ascii").strip() != "0" else set())


def check_processes(daemon: Daemon) -> None:
    """Assert that both processes are what they are with root: with few capabilities, or none."""
    assert daemon.process is not None
    forwarder = Path(f"/proc/{daemon.status()['forwarder']['pid']}/status").read_text(encoding="ascii")
    assert "CapEff:\t0000000000000000\n" in forwarder
    assert "Seccomp:\t2\n" in forwarder
    control = Path(f"/proc/{daemon.process.pid}/status").read_text(encoding="ascii")
    assert "CapEff:\t0000000000003400\n" in control
    assert os.stat(f"/proc/{daemon.process.pid}/ns/user") != os.stat("/proc/self/ns/user")  # noqa: PTH116


def test_packets_flow_without_root(spaces: dict[str, RootlessSpace], tmp_path: Path) -> None:
    """Root of a user namespace runs two nodes that talk; what it may not do is told, and nothing fails."""
    with ExitStack() as stack:
        daemons = []
        for name, space in spaces.items():
            flags = ["--public-ip", NODES[name][0], "--encap", "ipip", "--ip-masq"]
            daemon = Daemon(space, tmp_path / name, peers_file(), flags)
            stack.callback(daemon.close)
            daemon.start()
            daemons.append(daemon)
        for space, other in zip(spaces.values(), ("10.244.2.0", "10.244.1.0"), strict=True):
            space.run("ping", "-c", "3", "-i", "0.01", "-W", "5", other)
        for daemon in daemons:
            totals = daemon.settled(rx=6, tx=6)
            assert (totals.rx.drops, totals.tx.drops) == ({}, {})
            told = daemon.status()["warnings"]
            for begin in expected_warnings():
                assert any(warning.startswith(begin) for warning in told), told
            assert all(warning.startswith(tuple(expected_warnings())) for warning in told), told
            check_processes(daemon)
            assert (
                "masquerade"
                in daemon.namespace.run("nft", "list", "table", "inet", "overlayd-overlay0").stdout
            )
            daemon.stop()
            subprocess.run(daemon.command("down"), cwd=ROOT, check=True, timeout=START_S)
            assert "overlay0" not in daemon.namespace.run("ip", "link").stdout
