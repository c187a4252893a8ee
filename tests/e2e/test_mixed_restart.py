# SPDX-License-Identifier: Apache-2.0
"""Three nodes, one of them flannel's, one of ours that starts from nothing: nobody must learn anything anew.

k  flannel.1 10.244.9.0     a  overlay0, overlayd     b  overlay0, overlayd, which restarts
   under0 192.0.2.9            under0 192.0.2.1          under0 192.0.2.2
        └───────────────────────── bridge ──────────────────────┘
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import permutations
from pathlib import Path

import pytest

from bench.lab import Namespace, wait_for
from tests.e2e.pair import restart
from tests.e2e.rig import OVERLAYD, ROOT, START_S, Daemon

NODES = {"k": "192.0.2.9", "a": "192.0.2.1", "b": "192.0.2.2"}
KERNEL_SUBNET, KERNEL_MAC = "10.244.9.0", "02:4f:00:00:00:09"
NETWORK = '{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan", "VNI": 1, "Port": 8472}}'


class StoredDaemon(Daemon):
    """An `overlayd run` that takes its lease from a store of the whole machine."""

    def store_flags(self) -> list[str]:
        """Return the flags that name the store."""
        return ["--store", f"sqlite://{self.directory.parent / 'store.db'}"]

    def run_command(self) -> list[str]:
        """Return the command line of `overlayd run`."""
        command = super().run_command()
        place = command.index("--store")
        return [*command[:place], *self.store_flags(), *command[place + 2 :]]

    def lease(self) -> tuple[str, str]:
        """Return subnet and VTEP MAC of this node, as the others see them."""
        mac = (self.directory / "state" / "vtep-mac").read_text(encoding="ascii").strip()
        return str(self.status()["subnet"]), mac


class Mixed:
    """The drawing above."""

    def __init__(self, directory: Path) -> None:
        """Build it; the kernel's node knows its peers from now on, and nobody tells it anything later."""
        self._stack = ExitStack()
        try:
            self._build(directory)
        except BaseException:
            self._stack.close()
            raise

    def _build(self, directory: Path) -> None:
        prefix = f"mix{os.getpid() % 100000}"
        self.spaces = {name: Namespace(f"{prefix}{name}") for name in (*NODES, "switch")}
        for space in self.spaces.values():
            self._stack.callback(space.close)
        switch = self.spaces["switch"]
        switch.ip("link add br0 type bridge\nlink set br0 up\n")
        for name, address in NODES.items():
            switch.ip(f"link add to-{name} type veth peer name under0 netns {self.spaces[name].name}\n")
            switch.ip(f"link set to-{name} master br0 up\n")
            self.spaces[name].run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
            self.spaces[name].ip(f"link set lo up\nlink set under0 up\naddr add {address}/24 dev under0\n")
        self.daemons = {}
        for name in ("a", "b"):
            flags = ["--public-ip", NODES[name]]
            daemon = StoredDaemon(self.spaces[name], directory / name, {}, flags)
            self._stack.callback(daemon.close)
            self.daemons[name] = daemon
            if name == "a":
                self.say("network", "set", NETWORK)
                kernel = ["--public-ip", NODES["k"], "--vtep-mac", KERNEL_MAC]
                self.say("lease", "put", f"{KERNEL_SUBNET}/24", *kernel)
            daemon.start()
        self._program()

    def say(self, *args: str) -> None:
        """Tell the store something."""
        command = [*OVERLAYD, *args, *self.daemons["a"].store_flags()]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=START_S)

    def _program(self) -> None:
        """Set the kernel's node up, as flannel would."""
        space = self.spaces["k"]
        space.ip(
            f"link add flannel.1 address {KERNEL_MAC} mtu 1450 type vxlan id 1 dev under0 "
            f"local {NODES['k']} dstport 8472 nolearning\n"
            f"addr add {KERNEL_SUBNET}/32 dev flannel.1\nlink set flannel.1 up\n"
        )
        for name, daemon in self.daemons.items():
            subnet, mac = daemon.lease()
            net = subnet.partition("/")[0]
            space.ip(f"neigh replace {net} lladdr {mac} dev flannel.1 nud permanent\n")
            space.run(
                "bridge", "fdb", "replace", mac, "dev", "flannel.1", "dst", NODES[name], "self", "permanent"
            )
            space.ip(f"route replace {subnet} via {net} dev flannel.1 onlink\n")

    def addresses(self) -> dict[str, str]:
        """Return what each node has in the overlay."""
        ours = {name: daemon.lease()[0].partition("/")[0] for name, daemon in self.daemons.items()}
        return {"k": KERNEL_SUBNET, **ours}

    def all_talk(self) -> bool:
        """Tell whether each node reaches each."""
        ips = self.addresses()

        def reaches(one: str, two: str) -> bool:
            ping = ["ping", "-nqc1", "-W1", "-I", ips[one], ips[two]]
            return self.spaces[one].run(*ping, check=False).returncode == 0

        return all(reaches(one, two) for one, two in permutations(NODES, 2))

    def close(self) -> None:
        """Take all of it down."""
        self._stack.close()


@pytest.fixture
def mixed(tmp_path: Path) -> Iterator[Mixed]:
    """Yield the three nodes."""
    built = Mixed(tmp_path)
    try:
        yield built
    finally:
        built.close()


def test_case_150_node_that_restarts_is_the_same_node(mixed: Mixed) -> None:
    """A node of ours that starts from nothing is who it was, to all others, and nobody was told anything."""
    wait_for(mixed.all_talk, "all nodes talk", START_S)
    daemon = mixed.daemons["b"]
    before = daemon.lease()
    known = mixed.spaces["k"].run("bridge", "fdb", "show", "dev", "flannel.1").stdout
    daemon.stop()
    subprocess.run(daemon.command("down"), cwd=ROOT, check=True, timeout=START_S)
    assert "overlay0" not in mixed.spaces["b"].run("ip", "-o", "link").stdout
    restart(daemon)
    assert daemon.lease() == before
    wait_for(mixed.all_talk, "all nodes talk again", START_S)
    assert mixed.spaces["k"].run("bridge", "fdb", "show", "dev", "flannel.1").stdout == known
    for one in mixed.daemons.values():
        one.settled()
