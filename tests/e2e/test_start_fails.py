# SPDX-License-Identifier: Apache-2.0
"""A start that cannot succeed ends with one line that says what to do, and leaves the host as it was.

host namespace
overlayd run (ends with 1)
under0 192.0.2.1 ─── veth ─── far0, same namespace
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from pathlib import Path

import pytest

from bench.lab import Namespace
from dataplane import native
from tests.e2e.hoststate import look
from tests.e2e.pair import START_S, peers_file
from tests.e2e.rig import ROOT, Daemon

NO_TUN = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /dev/net && exec "$@"', "sh"]


@pytest.fixture
def host() -> Iterator[Namespace]:
    """Yield a host with an underlay interface."""
    with closing(Namespace(f"start{os.getpid() % 100000}")) as space:
        space.ip("link set lo up\nlink add under0 type veth peer name far0\n")
        space.ip("link set under0 up\nlink set far0 up\naddr add 192.0.2.1/24 dev under0\n")
        space.run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
        yield space


@pytest.fixture
def daemon(host: Namespace, tmp_path: Path) -> Daemon:
    """Return a daemon that is not started."""
    return Daemon(host, tmp_path / "node", peers_file(), ["--public-ip", "192.0.2.1"])


def without(capability: str) -> list[str]:
    """Return what runs a command without a capability."""
    return ["setpriv", f"--bounding-set=-{capability}", f"--inh-caps=-{capability}"]


def hold_port(host: Namespace) -> AbstractContextManager[object]:
    """Bind the VXLAN port with a socket of this process."""
    sock = host.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("0.0.0.0", 8472))
    return closing(sock)


def make_vxlan(host: Namespace) -> AbstractContextManager[object]:
    """Make the device that flannel makes; it goes with the host."""
    host.ip("link add flannel.1 type vxlan id 1 dstport 8472 dev under0 nolearning\nlink set flannel.1 up\n")
    return nullcontext()


def make_veth(host: Namespace) -> AbstractContextManager[object]:
    """Let a device of another kind have our name."""
    host.ip("link add overlay0 type veth peer name overlay1\n")
    return nullcontext()


def hold_tun(host: Namespace) -> AbstractContextManager[object]:
    """Let another process have the TUN open."""
    script = "from dataplane import native; native.tun_open('overlay0', 0); print(flush=True); input()"
    command = host.command(str(ROOT / ".venv/bin/python"), "-c", script)
    stack = ExitStack()
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    stack.callback(process.communicate)  # closes its input, which ends it
    assert process.stdout is not None
    process.stdout.readline()
    return stack


def nothing(host: Namespace) -> AbstractContextManager[object]:
    """Leave the host as it is."""
    assert host.name
    return nullcontext()


Trouble = Callable[[Namespace], AbstractContextManager[object]]

CASES: dict[str, tuple[Trouble, list[str], str]] = {
    "port_of_process": (
        hold_port,
        [],
        "UDP port 8472 is held by another process (ss -lunp sport = 8472 says which). Stop it, or choose",
    ),
    "port_of_kernel": (
        make_vxlan,
        [],
        "UDP port 8472 is held by kernel device flannel.1 (vni 1). Stop flanneld and remove the device,",
    ),
    "name_of_veth": (
        make_veth,
        [],
        "overlay0 is there and is no TUN device. Remove it, or choose another --tun-name",
    ),
    "tun_is_held": (hold_tun, [], "TUN device overlay0 is held by another process. Stop it, or choose"),
    "no_tun": (nothing, NO_TUN, "there is no TUN here (/dev/net/tun). Fix: mkdir -p /dev/net; mknod"),
    "no_net_admin": (nothing, without("net_admin"), "overlayd run needs CAP_NET_ADMIN"),
}


@pytest.mark.parametrize(("make_trouble", "prefix", "expected"), CASES.values(), ids=CASES.keys())
def test_failed_start_says_why_and_leaves_nothing(
    host: Namespace, daemon: Daemon, make_trouble: Trouble, prefix: list[str], expected: str
) -> None:
    """One line on standard error, status 1, and host and run directory as before."""
    command = daemon.run_command()
    inner = len(host.command())
    with make_trouble(host):
        before = look(host)
        failed = subprocess.run(
            [*command[:inner], *prefix, *command[inner:]],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=START_S,
        )
        assert look(host) == before
    assert failed.returncode == 1, failed.stderr
    head, _, tail = expected.partition("*")
    assert head in failed.stderr
    assert tail in failed.stderr
    assert failed.stderr.startswith("overlayd: ")
    assert failed.stderr.count("\n") == 1
    assert not daemon.run_dir.exists()


def test_kernel_datapath_needs_an_underlay_of_each_family(host: Namespace, daemon: Daemon) -> None:
    """Pods of both families over one: the kernel could not make the second device, and the reason is that."""
    peers = peers_file()
    peers["network"] |= {"EnableIPv6": True, "IPv6Network": "fd00:244::/48"}
    leases = peers["leases"].items()
    peers["leases"] = {f"{net}&fd00:244:0:{at}::/64": lease for at, (net, lease) in enumerate(leases, 1)}
    daemon.write_peers(peers)
    daemon.flags += ["--datapath", "kernel"]
    before = look(host)
    command = daemon.run_command()
    failed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=START_S)
    assert failed.returncode == 1
    assert failed.stderr == (
        "overlayd: the kernel datapath cannot carry pods of both IP versions over IPv4 alone: give this "
        "node an IPv6 address too (--public-ipv6), or --datapath userspace\n"
    )
    assert look(host) == before


def test_start_that_fails_late_takes_back_what_it_made(host: Namespace, daemon: Daemon) -> None:
    """IPIP without CAP_NET_RAW fails after the TUN was made: the TUN is gone again; a good start works."""
    daemon.flags += ["--encap", "ipip"]
    before = look(host)
    command = daemon.run_command()
    inner = len(host.command())
    failed = subprocess.run(
        [*command[:inner], *without("net_raw"), *command[inner:]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=START_S,
    )
    assert (failed.returncode, failed.stderr.count("\n")) == (1, 1)
    assert "needs CAP_NET_RAW" in failed.stderr
    assert look(host) == before
    assert not daemon.run_dir.exists()
    try:
        daemon.start()
        assert daemon.status()["forwarder"]["state"] == native.State.RUNNING.name.lower()
    finally:
        daemon.close()
    assert look(host) == before
