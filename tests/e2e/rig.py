# SPDX-License-Identifier: Apache-2.0
"""The rig: one real `overlayd run` between two devices whose far ends are the test's.

        dut namespace                                        wire namespace
        overlayd run  overlay0 10.244.1.0/32
        under0 192.0.2.1, fd00:192::1  ──────── veth ─────── wire0   taps: tunnel packets in and out
               192.0.2.101, …:101                            (no address: answers nothing)
        pod0   10.244.1.1/24 ────────────────── veth ─────── podw0   taps: pods' packets in and out
        overlay0  tap: what overlayd delivers

Neighbours are permanent, so nothing but the packets of a test crosses the veths.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from scapy.layers.l2 import Ether
from scapy.packet import Packet

from bench.lab import Namespace, stopped, wait_for
from dataplane import control, native
from dataplane.errors import NotRunning, RuntimeFailure
from dataplane.slots import Fd
from tests.e2e import frames, warm
from tests.e2e.frames import DUAL, US
from tests.e2e.tap import Frame, Tap
from tests.e2e.warm import Forked

OVERLAYD = [sys.executable, "-m", "dataplane"]
ROOT = Path(__file__).resolve().parents[2]
QUIET_S = 0.05
ANSWER_S = 10.0  # to a request, on a loaded machine
START_S = 20.0  # a loaded machine; a start takes well under 1 s

live: set[Rig] = set()  # rigs whose conservation is checked after each test


# --- counters ---------------------------------------------------------------------------------------


def conserves(totals: native.Totals) -> bool:
    """Tell whether offered = forwarded + drops in both directions."""
    return all(way.offered == way.forwarded + sum(way.drops.values()) for way in (totals.tx, totals.rx))


def risen(before: native.Totals, after: native.Totals) -> dict[str, int]:
    """Return by how much each drop counter rose, both directions together, without those that stood still."""
    rise: dict[str, int] = {}
    for was, now in ((before.tx, after.tx), (before.rx, after.rx)):
        for name, count in now.drops.items():
            if count != was.drops.get(name, 0):
                rise[name] = rise.get(name, 0) + count - was.drops.get(name, 0)
    return rise


def hasten(namespace: Namespace) -> None:
    """Let the kernel be done soon with what it says of its own accord on a new device: multicast reports."""
    namespace.run("sysctl", "-qw", "net.ipv6.conf.default.mldv2_unsolicited_report_interval=1")


# --- the daemon -------------------------------------------------------------------------------------


class Daemon:
    """An `overlayd run` in a namespace, with a run and a state directory of its own."""

    def __init__(
        self, namespace: Namespace, directory: Path, peers: dict[str, Any], flags: Sequence[str]
    ) -> None:
        """Write its peers file; nothing is started yet."""
        self.namespace = namespace
        self.directory = directory
        self.run_dir = directory / "run"
        self.peers_path = directory / "peers.json"
        self.log_path = directory / "log"
        self.subnet_file = directory / "subnet.env"
        self.flags = list(flags)
        self.process: Forked | subprocess.Popen[bytes] | None = None
        self._counters: tuple[native.Counters, int] | None = None
        directory.mkdir(parents=True)
        self.write_peers(peers)

    def write_peers(self, peers: dict[str, Any] | str) -> None:
        """Replace the peers file in one step."""
        draft = self.peers_path.with_suffix(".new")
        draft.write_text(peers if isinstance(peers, str) else json.dumps(peers), encoding="utf-8")
        draft.replace(self.peers_path)

    def command(self, *args: str) -> list[str]:
        """Return an overlayd command line for this node."""
        return self.namespace.command(*OVERLAYD, *args, "--run-dir", str(self.run_dir))

    def run_command(self) -> list[str]:
        """Return the command line of `overlayd run`.

        Unless flags say otherwise, it asks no peer how much its path takes, since tests count each packet,
        and keeps no spare forwarder, which most tests have no use for and all would have to start.
        """
        state = ["--state-dir", str(self.directory / "state"), "--subnet-file", str(self.subnet_file)]
        if "--path-probes" not in self.flags:
            state += ["--path-probes", "false"]
        if "--spare" not in self.flags:
            state += ["--spare", "false"]
        return [*self.command("run", "--store", f"file://{self.peers_path}", *state), *self.flags]

    def environment(self) -> dict[str, str] | None:
        """Return the environment of `overlayd run`; None: ours."""
        return None

    def launch(self) -> None:
        """Start it."""
        self.process = warm.start(self.namespace, self.run_command(), self.log_path, self.environment())

    def start(self) -> None:
        """Start it, and wait until it is ready."""
        self.launch()
        wait_for(self._is_ready, f"overlayd run of {self.directory} ready", START_S)
        if self._counters is None:
            self._counters = self._open_counters()

    def _is_ready(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"overlayd run ended with {self.process.returncode}: {self.log()}")
        try:
            return self.status()["ready"] is True
        except RuntimeFailure:
            return False

    def _open_counters(self) -> tuple[native.Counters, int]:
        with control.ForwarderClient(self.run_dir / "forwarder.sock") as client:
            _, fds = client.inspect()
        for role, fd in fds.items():
            if role != Fd.COUNTERS:
                os.close(fd)
        return native.Counters(fds[Fd.COUNTERS]), fds[Fd.COUNTERS]

    def log(self) -> str:
        """Return what it wrote so far."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def status(self) -> dict[str, Any]:
        """Return what `overlayd status --json` says."""
        return control.ask(self.run_dir, {"cmd": "status"}, ANSWER_S)

    def settled_status(self) -> dict[str, Any]:
        """Return it when no change is being carried out: then all that it lists is in force."""
        status: dict[str, Any] = {}

        def is_settled() -> bool:
            status.update(self.status())
            return status["control"]["pass_s"] is None

        wait_for(is_settled, "nothing is being carried out")
        return status

    @property
    def counters(self) -> native.Counters:
        """The counters in shared memory."""
        assert self._counters is not None, "not started"
        return self._counters[0]

    def forwarder_pid(self) -> int:
        """Return the pid of the living forwarder, 0 if there is none."""
        try:
            with control.ForwarderClient(self.run_dir / "forwarder.sock") as client:
                return client.pid
        except NotRunning:
            return 0

    def kernel(self, name: str) -> int:
        """Return a counter of the kernel in this namespace: `Udp.InCsumErrors`, `Udp6InCsumErrors`."""
        assert self.process is not None
        proc = Path(f"/proc/{self.process.pid}/net")
        if "." not in name:
            lines = (proc / "snmp6").read_text(encoding="ascii").splitlines()
            return int(dict(line.split() for line in lines)[name])
        group, field = name.split(".")
        lines = (proc / "snmp").read_text(encoding="ascii").splitlines()
        keys, values = (line.split() for line in lines if line.startswith(f"{group}: "))
        return int(values[keys.index(field)])

    def tun_dropped(self) -> int:
        """Return how many packets the kernel dropped because the queue of the TUN was full."""
        assert self.process is not None
        lines = Path(f"/proc/{self.process.pid}/net/dev").read_text(encoding="ascii").splitlines()
        counts = next(
            line.partition(":")[2].split() for line in lines if line.strip().startswith("overlay0:")
        )
        return int(counts[11])

    def settled(self, rx: int = 0, tx: int = 0) -> native.Totals:
        """Return the totals once `rx` and `tx` packets were offered and all of them accounted for."""
        totals = self.counters.totals()

        def is_settled() -> bool:
            nonlocal totals
            totals = self.counters.totals()
            return totals.rx.offered >= rx and totals.tx.offered >= tx and conserves(totals)

        wait_for(is_settled, lambda: f"counters settle at rx {rx}, tx {tx} offered: {self.log()}", 5.0)
        return totals

    def wait_quiet(self) -> None:
        """Wait until the kernel has reported the multicast groups of the new device (see hasten())."""
        last, since = -1, time.monotonic()

        def is_quiet() -> bool:
            nonlocal last, since
            offered = self.settled().tx.offered
            if offered != last:
                last, since = offered, time.monotonic()
            return time.monotonic() - since > QUIET_S

        wait_for(is_quiet, "the host falls silent")

    def stop(self) -> None:
        """End `overlayd run`; the forwarder stays."""
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            assert self.process.wait(START_S) == 0, self.log()
            self.process = None

    def close(self) -> None:
        """End everything and take all of it down."""
        try:
            self.stop()
            warm.run(self.namespace, self.command("down"), START_S).check_returncode()
        finally:
            if self.process is not None and self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            if self._counters is not None:
                self._counters[0].close()
                os.close(self._counters[1])
                self._counters = None
            if pid := self.forwarder_pid():
                os.kill(pid, signal.SIGKILL)


# --- the rig ----------------------------------------------------------------------------------------

SETUP = f"""
link set lo up
link set under0 address {frames.DUT_MAC} up
link set pod0 address {frames.POD_GATEWAY_MAC} up
addr add {US.ip}/24 dev under0
addr add {frames.OTHER_ADDRESS}/24 dev under0
addr add {US.ip6}/64 dev under0 nodad
addr add {frames.OTHER_ADDRESS6}/64 dev under0 nodad
addr add {US.pod(1)}/24 dev pod0
addr add {US.pod6(1)}/64 dev pod0 nodad
neigh add {US.pod()} lladdr {frames.POD_MAC} dev pod0 nud permanent
neigh add {US.pod6()} lladdr {frames.POD_MAC} dev pod0 nud permanent
neigh add 192.0.2.254 lladdr {frames.WIRE_MAC} dev under0 nud permanent
route add 198.18.0.0/15 via 192.0.2.254 dev under0
"""
NEIGHBOURS = "".join(
    f"neigh add {address} lladdr {frames.WIRE_MAC} dev under0 nud permanent\n"
    for node in (*frames.PEERS, frames.STRANGER)
    for address in (node.ip, node.ip6)
    if address
)
DEFAULT_FLAGS = ("--public-ip", "192.0.2.1", "--public-ipv6", "fd00:192::1", "--encap", "ipip")


class Rig:
    """Namespaces, taps and the daemon; see the head of this file for the drawing."""

    def __init__(
        self,
        directory: Path,
        peers: dict[str, Any] | None = None,
        flags: Sequence[str] = DEFAULT_FLAGS,
        name: str = "",
        kind: type[Daemon] = Daemon,
    ) -> None:
        """Build it and start the daemon; `name` tells rigs that stand at the same time apart."""
        prefix = f"e2e{os.getpid() % 100000}{name}"
        self._overlay: Tap | None = None
        with ExitStack() as stack:
            self.dut = Namespace(f"{prefix}-dut")
            stack.callback(self.dut.close)
            self.far = Namespace(f"{prefix}-wire")
            stack.callback(self.far.close)
            self._build()
            self.wire = Tap(self.far, "wire0")
            stack.callback(self.wire.close)
            self.pod = Tap(self.far, "podw0")
            stack.callback(self.pod.close)
            self.daemon = kind(self.dut, directory, frames.peers_file() if peers is None else peers, flags)
            stack.callback(self.daemon.close)
            self.daemon.start()
            self.watch_overlay()
            self.daemon.wait_quiet()
            self._stack = stack.pop_all()
        live.add(self)

    def _build(self) -> None:
        for namespace in (self.dut, self.far):
            namespace.run(
                "sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0", "net.ipv6.conf.all.forwarding=1"
            )
        self.dut.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        hasten(self.dut)
        self.far.run("sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1")
        far = self.far.name
        self.dut.ip(f"link add under0 type veth peer name wire0 netns {far}\n")
        self.dut.ip(f"link add pod0 type veth peer name podw0 netns {far}\n")
        self.far.ip(
            f"link set wire0 address {frames.WIRE_MAC} up\nlink set podw0 address {frames.POD_MAC} up\n"
        )
        self.dut.ip(SETUP + NEIGHBOURS)
        # As on a real card, what leaves has its outer checksum: so that it can be looked at.
        self.dut.run("ethtool", "-K", "under0", "tx", "off")

    def watch_overlay(self) -> None:
        """Open the tap on the TUN, anew after that was down."""
        if self._overlay is not None:
            self._overlay.close()
        self._overlay = Tap(self.dut, "overlay0")

    @property
    def overlay(self) -> Tap:
        """The tap on the TUN: what overlayd delivers."""
        assert self._overlay is not None
        return self._overlay

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Check conservation one last time and take all of it down."""
        live.discard(self)
        with self._stack:
            if self.daemon.process is not None:
                self.daemon.settled()
            self.overlay.close()

    @contextmanager
    def without_control(self) -> Iterator[None]:
        """Let `overlayd run` stand still meanwhile: it would repair the host, or learn from it, at once."""
        assert self.daemon.process is not None
        with stopped(self.daemon.process.pid):
            yield

    # --- underlay to overlay

    def accepted(self, good: Frame | Sequence[Frame], inner: Frame) -> None:
        """Inject a tunnel packet (or its fragments): exactly `inner` comes out, and nothing is dropped."""
        pieces = [good] if isinstance(good, Packet | bytes) else good
        before = self.daemon.settled()
        self.overlay.take()
        self.wire.send(*pieces)
        seen = self.overlay.wait(lambda frame: True, "an accepted packet")
        after = self.daemon.settled(rx=before.rx.offered + 1)
        seen += self.overlay.take()
        assert [bytes(inner)] == seen
        assert risen(before, after) == {}
        assert after.rx.forwarded == before.rx.forwarded + 1

    def refused(self, bad: Frame | Sequence[Frame], counter: str, via: str = "vxlan") -> None:
        """Inject bad tunnel packets, then a good one: only that comes out, and only `counter` rises.

        It must rise by the number of bad packets. A counter of the kernel is written
        `kernel:Udp.InCsumErrors`; then no counter of ours may rise.
        """
        pieces = [bad] if isinstance(bad, Packet | bytes) else bad
        is_kernels = counter.startswith("kernel:")
        inner, frame = frames.good(via)
        before = self.daemon.settled()
        kernel_before = self.daemon.kernel(counter[7:]) if is_kernels else 0
        self.overlay.take()
        self.wire.send(*pieces, frame)
        seen = self.overlay.wait(lambda got: got == bytes(inner), "the good packet")
        after = self.daemon.settled(rx=before.rx.offered + 1 + (0 if is_kernels else len(pieces)))
        if is_kernels:
            wait_for(lambda: self.daemon.kernel(counter[7:]) == kernel_before + len(pieces), counter)
            after = self.daemon.settled()
        seen += self.overlay.take()
        assert [bytes(inner)] == seen
        assert risen(before, after) == ({} if is_kernels else {counter: len(pieces)})
        assert after.rx.forwarded == before.rx.forwarded + 1

    # --- overlay to underlay

    def to_pod_side(self, packet: Packet) -> bytes:
        """Return a pod's packet in the Ethernet frame in which it reaches the host."""
        kind = 0x86DD if frames.family_of(packet) == 6 else 0x0800
        return bytes(Ether(src=frames.POD_MAC, dst=frames.POD_GATEWAY_MAC, type=kind) / packet)

    def sent(self, packet: Packet) -> bytes:
        """Let a pod send a packet; return the one frame that leaves for it."""
        before = self.daemon.settled()
        self.wire.take()
        self.pod.send(self.to_pod_side(packet))
        seen = self.wire.wait(frames.is_tunnel, "a tunnel packet")
        after = self.daemon.settled(tx=before.tx.offered + 1)
        tunnel = [frame for frame in seen + self.wire.take() if frames.is_tunnel(frame)]
        assert len(tunnel) == 1
        assert risen(before, after) == {}
        assert after.tx.forwarded == before.tx.forwarded + 1
        return tunnel[0]

    def unsent(self, bad: Packet | Sequence[Packet], counter: str) -> None:
        """Let a pod send bad packets, then a good one: only that leaves, and only `counter` rises."""
        pieces = [bad] if isinstance(bad, Packet) else bad
        good = frames.inner4(US.pod(), DUAL.pod())
        before = self.daemon.settled()
        self.wire.take()
        self.pod.send(*(self.to_pod_side(packet) for packet in (*pieces, good)))
        payload = frames.payload_of(good)
        seen = self.wire.wait(lambda frame: payload in frame, "the good packet")
        after = self.daemon.settled(tx=before.tx.offered + 1 + len(pieces))
        tunnel = [frame for frame in seen + self.wire.take() if frames.is_tunnel(frame)]
        assert len(tunnel) == 1
        assert risen(before, after) == {counter: len(pieces)}
        assert after.tx.forwarded == before.tx.forwarded + 1
