# SPDX-License-Identifier: Apache-2.0
"""Where a soak happens: two overlayd nodes and one of the kernel on a real etcd, which knows many more.

    pod a                 pod b                   pod c
      │                     │                       │
    host a                host b                  host c                  etcd
    overlayd, left alone  overlayd, gets it all   kernel VXLAN            203.0.113.2
      └──────────────────── router (bench/lab.py) ┴───────────────────────┘

`a` keeps its processes, so its memory has one slope; those of `b` are killed. The other peers are nobody:
their leases come, move and go, and no packet is sent to them but probes of their paths.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import time
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from bench.lab import Kernel, Lab, Namespace, Node, wait_for
from dataplane.errors import RuntimeFailure
from tests.e2e.pair import kill
from tests.e2e.rig import Daemon
from tests.etcd import Etcd, Seat
from tests.gateway import Gateway
from tests.soak.verdict import Window

ETCD = "203.0.113.2"
NETWORK = {"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}
OVERLAYD = ("a", "b")
STRANGERS = range(50, 200)  # third octets of the subnets of the other peers
PLACES = 4  # of each of them
GONE = 0.3  # how likely one that is there goes, instead of moving
START_S = 30.0


class SoakDaemon(Daemon):
    """An `overlayd run` on the etcd of the soak, as it comes, in a process whose memory is its own."""

    etcd_url = ""

    def run_command(self) -> list[str]:
        """Return the command line of `overlayd run`."""
        command = super().run_command()
        place = command.index("--store")
        return [*command[:place], "--etcd-endpoints", self.etcd_url, *command[place + 2 :]]

    def environment(self) -> dict[str, str]:
        """Return ours: so it is not forked from a process that others are forked from, too."""
        return dict(os.environ)


class Strangers:
    """The leases of the other peers: what the store has, and changes of that."""

    def __init__(self, rng: random.Random) -> None:
        """Have some, not written yet."""
        self._rng = rng
        self.leases = {key_of(octet): self._lease(octet) for octet in STRANGERS}

    def _lease(self, octet: int) -> str:
        turn = self._rng.randrange(PLACES)
        data = {"VNI": 1, "VtepMAC": f"02:51:{turn:02x}:00:00:{octet:02x}"}
        return json.dumps({"PublicIP": f"198.18.{turn}.{octet}", "BackendType": "vxlan", "BackendData": data})

    def change(self, gateway: Gateway) -> None:
        """Write one change: a peer comes, moves or goes."""
        octet = self._rng.choice(STRANGERS)
        key = key_of(octet)
        if key in self.leases and self._rng.random() < GONE:
            gateway.delete(key)
            del self.leases[key]
        else:
            lease = self._lease(octet)
            gateway.put(key, lease)
            self.leases[key] = lease


def key_of(octet: int) -> str:
    """Return the key of a lease."""
    return f"subnets/10.244.{octet}.0-24"


class Field:
    """The drawing above."""

    def __init__(self, prefix: str, rng: random.Random) -> None:
        """Build it, start everything, and wait until pods reach each other."""
        self.strangers = Strangers(rng)
        self.daemons: dict[str, SoakDaemon] = {}
        self.windows: list[Window] = []
        self.is_store_away = False
        with ExitStack() as stack:
            self.lab = stack.enter_context(Lab(prefix))
            self.etcd = self._start_etcd(stack)
            self._write_leases()
            self.nodes["c"].program_kernel((self.nodes[name] for name in OVERLAYD), Kernel())
            for name in OVERLAYD:
                self._start_overlayd(stack, self.nodes[name])
            for name in OVERLAYD:
                self._wait_reached(name, "c")
            self._wait_reached("a", "b")
            self._stack = stack.pop_all()

    @property
    def nodes(self) -> dict[str, Node]:
        """The hosts."""
        return self.lab.nodes

    def _start_etcd(self, stack: ExitStack) -> Etcd:
        space, router = Namespace(f"{self.lab.prefix}-etcd"), self.lab.router
        space.ip(f"link set lo up\nlink add under0 type veth peer name petcd netns {router.name}\n")
        router.ip("link set petcd up\naddr add 203.0.113.1/24 dev petcd\n")
        space.ip(f"link set under0 up\naddr add {ETCD}/24 dev under0\nroute add default via 203.0.113.1\n")
        etcd = Etcd(self.lab.directory / "etcd", seat=Seat(address=ETCD, within=space))
        stack.callback(etcd.close)
        etcd.wait_healthy()
        self.gateway = etcd.members[0].gateway()
        stack.callback(self.gateway.close)
        return etcd

    def _write_leases(self) -> None:
        own = {key_of(node.index): json.dumps(node.lease()) for node in self.nodes.values()}
        self.gateway.put_all({"config": json.dumps(NETWORK), **own, **self.strangers.leases})

    def _start_overlayd(self, stack: ExitStack, node: Node) -> None:
        flags = ["--public-ip", node.address, "--path-probes", "true", "--spare", "true"]
        daemon = SoakDaemon(node.host, node.directory / "overlayd", {}, flags)
        state = daemon.directory / "state"
        state.mkdir()
        (state / "vtep-mac").write_text(f"{node.mac}\n", encoding="ascii")
        daemon.etcd_url = self.etcd.urls[0]
        stack.callback(daemon.close)
        daemon.start()
        self.daemons[node.name] = daemon

    def _wait_reached(self, name: str, target: str) -> None:
        pod, address = self.nodes[name].pod, self.nodes[target].pod_ip()
        wait_for(
            lambda: pod.run("ping", "-n", "-c", "1", "-W", "1", address, check=False).returncode == 0,
            f"pod {name} reaches pod {target}",
            START_S,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._stack.close()

    # --- what happens -------------------------------------------------------------------------------

    def change(self) -> bool:
        """Let a peer come, move or go; False while the store is away."""
        try:
            self.strangers.change(self.gateway)
        except (OSError, http.client.HTTPException, AssertionError):
            if not self.is_store_away:
                raise
            return False
        self.is_store_away = False
        return True

    def is_well(self) -> bool:
        """Tell whether the store is there, the nodes are ready, and a spare waits on each."""
        if self.is_store_away:
            return False
        try:
            found = [daemon.status() for daemon in self.daemons.values()]
        except RuntimeFailure:
            return False
        return all(status["ready"] and status["forwarder"]["spare"] for status in found)

    def stop_store(self) -> None:
        """End etcd at once."""
        self.is_store_away = True
        self.etcd.members[0].stop()

    def start_store(self) -> None:
        """Start etcd on what it has."""
        self.etcd.members[0].start()

    def compact(self) -> None:
        """Let etcd forget all changes up to now."""
        self.gateway.compact()

    def kill_control(self) -> None:
        """End control of `b` at once, and start it again, as a supervisor does."""
        kill(self.daemons["b"])
        self.daemons["b"].launch()

    def kill_forwarder(self) -> None:
        """End the forwarder of `b` at once; the window is until another one carries."""
        daemon = self.daemons["b"]
        pid, moment = daemon.forwarder_pid(), time.monotonic()
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: daemon.forwarder_pid() not in (0, pid), "another forwarder", START_S)
        self.windows.append(Window("forwarder killed", moment, time.monotonic()))

    def settle(self) -> None:
        """Wait until all is well again."""

        def is_settled() -> bool:
            return self.change() and self.is_well() if self.is_store_away else self.is_well()

        wait_for(is_settled, lambda: f"all is well: {self.daemons['b'].log()[-500:]}", START_S)

    def misled(self) -> dict[str, str]:
        """Return the nodes whose peers are not those of the store after a while, and what they differ in."""
        wanted = {key.removeprefix("subnets/").replace("-", "/") for key in self.strangers.leases}
        wanted |= {node.subnet() for node in self.nodes.values()}
        found: dict[str, str] = {}
        for name, daemon in self.daemons.items():
            expected = wanted - {self.nodes[name].subnet()}

            def differing(daemon: Daemon = daemon, expected: set[str] = expected) -> set[str]:
                return {peer["subnet"] for peer in daemon.status()["peers"]} ^ expected

            try:
                wait_for(lambda differing=differing: not differing(), "peers as in the store", START_S)  # type: ignore[misc]
            except AssertionError:
                found[name] = " ".join(sorted(differing()))
        return found
