# SPDX-License-Identifier: Apache-2.0
"""`make demo`: pods on hosts that lease their subnets talk; one host is plain kernel VXLAN, one joins live.

`down` removes a lab that was kept.

Each act checks what it shows; the first thing that is not as it should be ends the demo with status 1.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from bench.frames import forged_packet, vxlan_payload
from bench.iperf import run_iperf, tcp_gbit_s
from bench.lab import OVERLAYD, FrameCounter, Kernel, Lab, Node, remove_lab, wait_for
from dataplane.store.database import Database

PREFIX = "ovl-demo"
MTU = 1450
PORT = 8472
FORGED = 5  # packets per stranger
PINGS = 10
IPERF_S = 2
SECOND = Kernel("kernel9", vni=9, port=8473, second_octet=245)

JOIN_S = 1.0  # from a new lease in the store to the first answer of its pod
NETWORK = '{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}'
NETWORK_IPIP = NETWORK.replace("vxlan", "ipip")
KERNEL_SUBNET = 3  # 10.244.3.0/24

PICTURE = """
       pod a            pod b            pod c             pod d
         |                |                |                 |
       host a           host b           host c            host d
      overlayd         overlayd     kernel VXLAN only  overlayd, later
     192.0.2.2        192.0.2.6       192.0.2.10        192.0.2.14
         +----------------+---- router ----+-----------------+     (no way out of this machine)

     store.db, a sqlite file: the network, and who has leased which subnet of it
"""


class Failure(Exception):
    """Something is not as it should be."""


def say(text: str = "") -> None:
    """Tell the audience."""
    print(text, flush=True)


def check(holds: bool, reason: str) -> None:
    """Go on only if it holds."""
    if not holds:
        raise Failure(reason)


# --- asking the hosts ---------------------------------------------------------------------------------


def read_status(node: Node) -> dict[str, Any]:
    """Return what `overlayd status --json` says on a host; empty while it is not running."""
    found = subprocess.run(node.overlayd("status", "--json"), capture_output=True, text=True)
    status: dict[str, Any] = json.loads(found.stdout) if found.stdout else {}
    return status


def read_drops(status: dict[str, Any]) -> dict[str, int]:
    """Return the drop counters of both directions by name, and those of the firewall."""
    drops = {
        f"{way} {name}": count
        for way in ("tx", "rx")
        for name, count in status.get(way, {}).get("drops", {}).items()
    }
    return drops | {name: count for name, count in status.get("guard", {}).items() if count}


def balance(status: dict[str, Any], way: str) -> tuple[int, int, int]:
    """Return offered, forwarded and the sum of drops."""
    return status[way]["offered"], status[way]["forwarded"], sum(status[way]["drops"].values())


def ping(node: Node, target: str, *flags: str) -> tuple[float | None, str]:
    """Ping from a pod; return the round trip in ms, None without an answer, and what ping said."""
    found = node.pod.run("ping", "-n", "-c", "1", "-W", "2", *flags, target, check=False)
    times = [word for word in found.stdout.split() if word.startswith("time=")]
    return (float(times[0].removeprefix("time=")) if times else None), found.stdout + found.stderr


# --- the acts -------------------------------------------------------------------------------------------


class Demo:
    """The lab and what runs in it."""

    def __init__(self) -> None:
        """Nothing is built yet."""
        self.act = "setting up"
        self.lab: Lab | None = None
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def nodes(self) -> dict[str, Node]:
        """The hosts by name."""
        assert self.lab is not None
        return self.lab.nodes

    @contextlib.contextmanager
    def acting(self, number: int, title: str) -> Iterator[None]:
        """Announce an act; what fails in it is reported under its title."""
        self.act = title
        say(f"\n{number}. {title}")
        yield

    @property
    def store(self) -> str:
        """The lease store of all hosts."""
        assert self.lab is not None
        return f"sqlite://{self.lab.directory}/store.db"

    def command(self, *args: str) -> str:
        """Run an overlayd command on the store; return what it printed."""
        found = subprocess.run([*OVERLAYD, *args, "--store", self.store], capture_output=True, text=True)
        check(found.returncode == 0, f"overlayd {' '.join(args)}: {found.stderr}")
        return found.stdout

    def start(self, names: str, store: str) -> None:
        """Start overlayd on hosts and wait until they are ready."""
        for name in names:
            self.running[name] = self.nodes[name].start_overlayd(store)
        for name in names:
            node = self.nodes[name]

            def is_ready(node: Node = node, name: str = name) -> bool:
                code = self.running[name].poll()
                check(
                    code is None, f"overlayd run ended with status {code} on host {name}: {node.log()[-500:]}"
                )
                return bool(read_status(node).get("ready"))

            def told(node: Node = node, name: str = name) -> str:
                return f"overlayd is ready on host {name}: {node.log()[-500:]}"

            wait_for(is_ready, told, 15.0)

    def join_pods(self, names: str) -> None:
        """Give pods an address of the subnet that their host has leased, and learn the hosts' MACs."""
        leases = {
            lease["public_ip"]: lease for lease in json.loads(self.command("lease", "ls", "--json"))["leases"]
        }
        for name in names:
            node = self.nodes[name]
            subnet = node.take_subnet()
            check(leases[node.address]["key"] == subnet.replace("/", "-"), f"subnet.env of host {name} lies")
            node.mac = leases[node.address]["vtep_mac"]
            node.join_pod(MTU)

    def build(self) -> None:
        """Act 1: the lab and the store."""
        with self.acting(1, "Four hosts, each a network namespace, a router between them, and a store"):
            say(PICTURE)
            self.lab = Lab(PREFIX, "abcd", has_pods=False)
            say(f"   overlayd network set '{NETWORK}'")
            self.command("network", "set", NETWORK)
            c = self.nodes["c"]
            c.third = KERNEL_SUBNET
            put = ("lease", "put", c.subnet(), "--public-ip", c.address, "--vtep-mac", c.mac)
            say(f"   overlayd {' '.join(put)}")
            self.command(*put)
            say("   host c has no software of ours: a VXLAN device, programmed as flannel programs it.")

    def come_up(self) -> None:
        """Act 2: overlayd on two hosts."""
        with self.acting(2, "overlayd starts on hosts a and b: each leases a subnet"):
            self.start("ab", self.store)
            self.join_pods("ab")
            a, b, c = (self.nodes[name] for name in "abc")
            c.join_pod(MTU)
            c.program_kernel([a, b], Kernel())
            for node in (a, b):
                node.add_second_network(SECOND.second_octet)
            say("   overlayd lease ls")
            self.print_indented(self.command("lease", "ls"))
            say("   host a$ overlayd status")
            self.show(a, "status")
            say("   host a$ overlayd peers")
            self.show(a, "peers")

    @staticmethod
    def print_indented(text: str) -> None:
        """Print what a command said."""
        say("\n".join(f"     {line}" for line in text.splitlines()))

    def show(self, node: Node, command: str) -> None:
        """Print what a command says on a host."""
        found = subprocess.run(node.overlayd(command), capture_output=True, text=True)
        self.print_indented(found.stdout)

    def ping_all(self) -> None:
        """Act 3: every pod to every other."""
        with self.acting(3, "Every pod pings every other (round trip in ms)"):
            names = "abc"
            say("      from \\ to " + "".join(f"{f'pod {name}':>9}" for name in names))
            for name in names:
                node, cells = self.nodes[name], []
                for other in (self.nodes[name] for name in names):
                    if other is node:
                        cells.append(f"{'-':>9}")
                        continue
                    time_ms, said = ping(node, other.pod_ip())
                    check(time_ms is not None, f"pod {name} gets no answer from pod {other.name}: {said}")
                    cells.append(f"{time_ms:9.2f}")
                say(f"      pod {name}     " + "".join(cells))
            self.ping_from_kernel_node()

    def ping_from_kernel_node(self) -> None:
        a, c = self.nodes["a"], self.nodes["c"]
        found = c.host.run("ping", "-n", "-c", "1", "-W", "2", "-I", c.address, a.pod_ip(), check=False)
        check(found.returncode == 0, f"host c cannot ping pod a from its node address: {found.stdout}")
        say(f"   and host c pings pod a from its node address {c.address}.")

    def join_and_leave(self) -> None:
        """Act 4: a host comes and goes."""
        with self.acting(4, "Host d joins live and is reached, leaves and is unreachable"):
            a, d = self.nodes["a"], self.nodes["d"]
            d.subnet_file.write_text(f"FLANNEL_SUBNET=10.244.{d.third}.1/24\n", encoding="ascii")
            d.join_pod(MTU)
            say(f"   host d had {d.subnet()} when it ran last, says its subnet.env, and gets that again.")
            started_s = time.monotonic()
            self.running["d"] = d.start_overlayd(self.store)
            leased_s = self.wait_for_lease(d)
            wait_for(lambda: ping(a, d.pod_ip(), "-W", "0.2")[0] is not None, "pod a reaches pod d", JOIN_S)
            reached_s = time.monotonic()
            say(
                f"   leased {leased_s - started_s:.2f} s after `overlayd run`,"
                f" reached from pod a {reached_s - leased_s:.2f} s after that"
            )
            found = subprocess.run(d.overlayd("lease", "release"), capture_output=True, text=True)
            left_s = time.monotonic()
            check(found.returncode == 0, f"overlayd lease release: {found.stderr}")
            said = ""

            def is_unreachable() -> bool:
                nonlocal said
                said = ping(a, d.pod_ip(), "-W", "0.2")[1]
                return "Unreachable" in said

            wait_for(is_unreachable, "pod d is unreachable", JOIN_S)
            line = next(line for line in said.splitlines() if "Unreachable" in line)
            say(f"   released; {time.monotonic() - left_s:.2f} s later a ping says: {line}")
            subprocess.run(d.overlayd("down"), check=True, capture_output=True)
            self.running.pop("d").wait(10)

    def wait_for_lease(self, node: Node) -> float:
        """Wait until a host has its lease in the store; return when that was."""
        assert self.lab is not None
        database = Database(self.lab.directory / "store.db", may_create=False)
        try:
            wait_for(
                lambda: any(node.address in (record.value or "") for record in database.snapshot().records),
                lambda: f"host {node.name} has a lease: {node.log()[-500:]}",
                10.0,
            )
            return time.monotonic()
        finally:
            database.close()

    def find_mtu(self) -> None:
        """Act 5: the largest packet."""
        with self.acting(5, f"The largest packet: {MTU} bytes fit, {MTU + 1} do not"):
            headers = 28  # IPv4 and ICMP
            for target in (self.nodes["b"], self.nodes["c"]):
                passes, said = ping(self.nodes["a"], target.pod_ip(), "-M", "do", "-s", str(MTU - headers))
                check(passes is not None, f"{MTU} bytes do not reach pod {target.name}: {said}")
                refused, said = ping(
                    self.nodes["a"], target.pod_ip(), "-M", "do", "-s", str(MTU + 1 - headers)
                )
                check(refused is None, f"{MTU + 1} bytes reach pod {target.name}")
                words = next((line for line in said.splitlines() if "too long" in line.lower()), "no answer")
                say(f"   a to {target.name}: {MTU} bytes pass in {passes:.2f} ms; {MTU + 1}: {words.strip()}")

    def measure(self) -> None:
        """Act 6: throughput beside the kernel's."""
        with self.acting(
            6, f"TCP between pods a and b, {IPERF_S} s each, beside kernel VXLAN in the same lab"
        ):
            a, b = self.nodes["a"], self.nodes["b"]
            a.program_kernel([b], SECOND)
            b.program_kernel([a], SECOND)
            ours = tcp_gbit_s(run_iperf(a, b, b.pod_ip(), IPERF_S))
            kernel = tcp_gbit_s(run_iperf(a, b, b.pod_ip(SECOND.second_octet), IPERF_S))
            ratio = f"ratio {ours / kernel:.2f}"
            say(f"   overlayd {ours:5.2f} Gbit/s   kernel VXLAN {kernel:5.2f} Gbit/s   {ratio}")
            for node in (a, b):
                node.host.ip(f"link del {SECOND.device}\n")

    def refuse_strangers(self) -> None:
        """Act 7: forged packets."""
        with self.acting(7, f"Strangers: {FORGED} forged packets each, refused and counted"):
            assert self.lab is not None
            a, b, c, _ = self.nodes.values()
            believable = vxlan_payload(b.pod_ip(), a.pod_ip(), b.mac, a.mac)
            stolen = vxlan_payload(b.pod_ip(), a.pod_ip(), c.mac, a.mac)
            packet = forged_packet(b.address, a.address, PORT, believable)

            def send(sender: socket.socket, data: bytes, port: int = PORT) -> None:
                with contextlib.suppress(PermissionError):  # by its own host's firewall, which counts it
                    sender.sendto(data, (a.address, port))

            with self.lab.router.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                self.forge("rx unknown_vtep", "the router, which is no peer", lambda: send(sock, believable))
            with c.host.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                self.forge("rx spoofed", "host c, in the name of pod b", lambda: send(sock, stolen))
            with a.pod.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
                self.forge("laundered", "pod a, posing as host b", lambda: send(sock, packet, 0))
            with b.host.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                who = "a process of host b, as overlayd"
                self.forge("laundered", who, lambda: send(sock, believable), where=b)

    def forge(self, counter: str, who: str, send: Callable[[], object], where: Node | None = None) -> None:
        """Send forged packets to host a: none may reach the overlay, all must be counted under one name.

        They are counted on host a unless `where` says that another host keeps them back.
        """
        a = self.nodes["a"]
        counting = where or a
        before = read_drops(read_status(counting))
        overlay = FrameCounter(a.host, "overlay0")
        try:
            for _ in range(FORGED):
                send()
            risen: dict[str, int] = {}

            def is_counted() -> bool:
                nonlocal risen
                now = read_drops(read_status(counting))
                risen = {
                    name: now[name] - before.get(name, 0) for name in now if now[name] != before.get(name, 0)
                }
                return sum(risen.values()) >= FORGED

            try:
                wait_for(is_counted, f"{FORGED} packets from {who} are counted", 5.0)
            except AssertionError as err:
                raise Failure(f"{err}; counters that moved: {risen or 'none'}") from None
            check(not overlay.take(), f"packets of {who} came out of the overlay")
        finally:
            overlay.close()
        check(risen == {counter: FORGED}, f"packets of {who} moved {risen}, not {counter}")
        say(f"   {who:<34} {counter.removeprefix('rx ')} +{risen[counter]}, nothing came out")

    def prove_balance(self, names: str = "ab") -> None:
        """Check that every packet is accounted for."""
        for name in names:
            node = self.nodes[name]
            status: dict[str, Any] = {}

            def is_balanced(node: Node = node) -> bool:
                nonlocal status
                status = read_status(node)
                return all(
                    offered == sent + drops
                    for offered, sent, drops in (balance(status, "tx"), balance(status, "rx"))
                )

            try:
                wait_for(is_balanced, "offered = forwarded + drops", 5.0)
            except AssertionError:
                raise Failure(
                    f"packets are missing on host {name}: {balance(status, 'tx')} {balance(status, 'rx')}"
                ) from None
            parts = [
                f"{way} {offered} = {sent} + {drops}"
                for way in ("tx", "rx")
                for offered, sent, drops in (balance(status, way),)
            ]
            say(f"   host {name}: {', '.join(parts)}")

    def switch_to_ipip(self) -> None:
        """Act 9: the same over IPIP."""
        with self.acting(9, "Hosts a and b again, over IPIP"):
            assert self.lab is not None
            a, b = self.nodes["a"], self.nodes["b"]
            for name in "ab":
                found = subprocess.run(self.nodes[name].overlayd("down"), capture_output=True, text=True)
                check(found.returncode == 0, f"overlayd down on host {name}: {found.stderr}")
                self.running.pop(name).wait(10)
            refused = subprocess.run(
                [*OVERLAYD, "network", "set", NETWORK_IPIP, "--store", self.store],
                capture_output=True,
                text=True,
            )
            check(refused.returncode == 2, "a network with leases lets its backend be changed")
            say(f"   {refused.stderr.strip()}")
            self.command("network", "set", NETWORK_IPIP, "--force")
            before = [node.subnet() for node in (a, b)]
            self.start("ab", self.store)
            check([node.take_subnet() for node in (a, b)] == before, "hosts a and b got other subnets")
            wire = FrameCounter(self.lab.router, "ra")
            try:
                found = a.pod.run(
                    "ping", "-n", "-c", str(PINGS), "-i", "0.05", "-W", "2", b.pod_ip(), check=False
                )
                check(f" {PINGS} received" in found.stdout, f"pings over IPIP are lost: {found.stdout}")
                protocols = [frame[23] for frame in wire.take() if frame[12:14] == b"\x08\x00"]
            finally:
                wire.close()
            check(protocols.count(4) == PINGS, f"{protocols.count(4)} IPIP frames left host a, not {PINGS}")
            check(socket.IPPROTO_UDP not in protocols, "UDP frames left host a")
            say(f"   {PINGS} pings and answers; {PINGS} frames of protocol 4 left host a, none of UDP.")
            self.prove_balance()

    def play(self) -> None:
        """All acts."""
        self.build()
        self.come_up()
        self.ping_all()
        self.join_and_leave()
        self.find_mtu()
        self.measure()
        self.refuse_strangers()
        with self.acting(8, "Every packet is accounted for: offered = forwarded + drops"):
            self.prove_balance()
        self.switch_to_ipip()


def moved_counters(demo: Demo) -> str:
    """Say which drop counters stand above zero on the hosts that still answer."""
    found = []
    for name in demo.running:
        drops = read_drops(read_status(demo.nodes[name]))
        found += [f"host {name} {counter} {count}" for counter, count in drops.items()]
    return ", ".join(found) or "none"


def tell_what_to_try(demo: Demo) -> None:
    """Print what can be done with a lab that stays."""
    a = demo.nodes["a"]
    run_dir = f"--run-dir {a.run_dir}"
    say("\nThe lab stays (KEEP=1). Try, as root in this directory:")
    say(f"  ip netns exec {a.pod.name} ping {demo.nodes['b'].pod_ip()}")
    say(f"  {' '.join(OVERLAYD)} status {run_dir}")
    say(f"  {' '.join(OVERLAYD)} peers {run_dir}")
    say(f"  ip netns exec {demo.nodes['a'].host.name} tcpdump -ni under0")
    say(f"  {' '.join(OVERLAYD)} lease ls --store {demo.store}")
    say("  make demo-down")


def main() -> int:
    """Play the demo; return the exit status."""
    demo, started_s = Demo(), time.monotonic()
    keeps = os.environ.get("KEEP") == "1"
    try:
        demo.play()
    except (Failure, AssertionError, subprocess.SubprocessError, OSError) as err:
        detail = (getattr(err, "stderr", None) or "").strip()
        say(f"\ndemo: FAILED at {demo.act}: {err} {detail}\n      drops: {moved_counters(demo)}")
        return 1
    except KeyboardInterrupt:
        say("\ndemo: interrupted")
        keeps = False
        return 130
    else:
        if keeps:
            tell_what_to_try(demo)
        say(f"\n(in {time.monotonic() - started_s:.0f} s)\ndemo: ok")
        return 0
    finally:
        if not keeps:
            remove_lab(PREFIX)


if __name__ == "__main__":
    if sys.argv[1:] == ["down"]:
        remove_lab(PREFIX)
        sys.exit(0)
    sys.exit(main())
