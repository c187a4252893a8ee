# SPDX-License-Identifier: Apache-2.0
"""flannel's functional and e2e cases, each named after its original: two of our nodes, an etcd with TLS.

Drawn at site.py. The originals: functional/etcd_test.go ("etcd backends"), e2e/connectivity_test.go ("flannel
backends"). docs/flannel-tests.md lists them all.
"""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from collections.abc import Iterator
from ipaddress import ip_interface, ip_network
from typing import Any

import pytest

from bench.lab import Namespace
from tests.e2e.rig import risen
from tests.e2e.site import Overlay, Running, Site, can_ping

DUAL = {"EnableIPv6": True, "IPv6Network": "fd00:10::/48"}
BACKENDS: dict[str, dict[str, Any]] = {
    "vxlan": {"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}},
    "udp": {"Network": "10.5.0.0/16", "Backend": {"Type": "udp"}},
    "ipip": {"Network": "10.5.0.0/16", "Backend": {"Type": "ipip"}},
    "host-gw": {"Network": "10.5.0.0/16", "Backend": {"Type": "host-gw"}},
    "vxlan-dual": {"Network": "10.5.0.0/16", **DUAL, "Backend": {"Type": "vxlan"}},
    "host-gw-dual": {"Network": "10.5.0.0/16", **DUAL, "Backend": {"Type": "host-gw"}},
}
MTU = {"vxlan": 1450, "udp": 1472, "ipip": 1480, "vxlan-dual": 1430}  # the others: the underlay's
TRANSFER_BYTES = 8 << 20
TRANSFER_S = 20.0  # on a busy machine; it takes well under one


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Yield hosts and etcd."""
    built = Site(tmp_path_factory.mktemp("site"), "backends")
    yield built
    built.close()


# udp is tried with more in test_flannel_udp.py, ipip in test_flannel_multi.py.
LONG = {"udp", "ipip", "host-gw-dual"}
PARAMS = [pytest.param(name, marks=[pytest.mark.soak] if name in LONG else []) for name in BACKENDS]


@pytest.fixture(scope="module", params=PARAMS)
def backend(request: pytest.FixtureRequest) -> str:
    """Yield each backend in turn."""
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def running(site: Site, backend: str) -> Iterator[Running]:
    """Yield two nodes of a backend, with what they have leased written down and a pod each."""
    overlay = Overlay("net", BACKENDS[backend])
    with site.run(overlay) as running:
        yield running
    for key in site.etcd.ctl("get", "--prefix", "--keys-only", overlay.prefix).split():
        site.etcd.ctl("del", key)


@pytest.fixture(autouse=True)
def nothing_dropped(running: Running) -> Iterator[None]:
    """Assert that honest traffic costs not one packet, and that all of them are accounted for."""
    before = running.totals()
    yield
    for was, now in zip(before, running.totals(), strict=True):
        assert risen(was, now) == {}


def families(running: Running) -> tuple[int, ...]:
    """Return the families that pods have."""
    return tuple(running.pair("net")[0].own)


# --- functional/etcd_test.go --------------------------------------------------------------------------------


def test_functional_subnet_env(running: Running, backend: str) -> None:
    """Theirs, "waiting for subnet.env": both say network, MTU of the backend, and a subnet of their own."""
    envs = [member.daemon.env() for member in running.pair("net")]
    for env in envs:
        assert env["FLANNEL_NETWORK"] == "10.5.0.0/16"
        assert env["FLANNEL_MTU"] == str(MTU.get(backend, 1500))
        assert env["FLANNEL_IPMASQ"] == "false"
    for key, network in (("FLANNEL_SUBNET", "10.5.0.0/16"), ("FLANNEL_IPV6_SUBNET", "fd00:10::/48")):
        subnets = [ip_interface(env[key]).network for env in envs if key in env]
        assert len(subnets) == len(set(subnets)) == (2 if key == "FLANNEL_SUBNET" or "dual" in backend else 0)
        assert all(subnet.subnet_of(ip_network(network)) for subnet in subnets)  # type: ignore[arg-type]


def test_functional_pings_between_two_flannel_hosts(running: Running) -> None:
    """Theirs, "pings between two flannel hosts": each from its own FLANNEL_SUBNET's address, both ways."""
    near, far = running.pair("net")
    for family in families(running):
        assert can_ping(near.host, near.own[family], far.own[family])
        assert can_ping(far.host, far.own[family], near.own[family])


# --- e2e/connectivity_test.go -------------------------------------------------------------------------------


def test_e2e_provides_pod_to_pod_connectivity(running: Running) -> None:
    """Theirs, "provides pod-to-pod connectivity": five pings each way, and the largest there are."""
    near, far = running.pair("net")
    for family in families(running):
        for source, target in ((near, far), (far, near)):
            assert can_ping(source.pod, source.pod_ip[family], target.pod_ip[family], 5)
            size = int(near.daemon.env()["FLANNEL_MTU"]) - (28 if family == 4 else 48)
            whole = ("ping", "-n", "-q", "-c", "1", "-W", "2", "-M", "do", "-s", str(size))
            assert source.pod.run(*whole, target.pod_ip[family], check=False).returncode == 0


def transfer(sender: Namespace, receiver: Namespace, address: str) -> None:
    """Send a stream; what arrives within TRANSFER_S is what was sent, byte for byte."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    data, digest = os.urandom(1 << 20), hashlib.sha256()
    with receiver.socket(family, socket.SOCK_STREAM) as listener:
        listener.settimeout(TRANSFER_S)
        listener.bind((address, 0))
        listener.listen(1)

        def receive() -> None:
            taken, _ = listener.accept()
            with taken:
                taken.settimeout(TRANSFER_S)
                while piece := taken.recv(1 << 16):
                    digest.update(piece)

        reader = threading.Thread(target=receive, daemon=True)
        reader.start()
        with sender.socket(family, socket.SOCK_STREAM) as sock:
            sock.settimeout(TRANSFER_S)
            sock.connect(listener.getsockname())
            for _ in range(TRANSFER_BYTES // len(data)):
                sock.sendall(data)
        reader.join(TRANSFER_S)
    assert not reader.is_alive()
    assert digest.digest() == hashlib.sha256(data * (TRANSFER_BYTES // len(data))).digest()


def test_e2e_passes_iperf3_throughput_test(running: Running) -> None:
    """Theirs, "passes iperf3 throughput test", without a threshold: a transfer completes within its time."""
    near, far = running.pair("net")
    for family in families(running):
        transfer(near.pod, far.pod, far.pod_ip[family])


def test_e2e_each_host_reaches_the_other_pod(running: Running) -> None:
    """Not theirs: a host reaches the other's pods from the address of its overlay device."""
    near, far = running.pair("net")
    for family in families(running):
        for source, target in ((near, far), (far, near)):
            done = source.host.run(
                "ping", "-n", "-q", "-c", "2", "-W", "2", "-i", "0.05", target.pod_ip[family]
            )
            assert " 0% packet loss" in done.stdout
