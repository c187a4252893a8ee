# SPDX-License-Identifier: Apache-2.0
"""TCP over a path that is smaller than pods believe, where nobody is told: `--mss-clamp` makes it fit.

    pod a ─ host a: overlayd ───── router ───── host b: flannel.1, flannel-v6.1 ─ pod b
     1430            pods 1290      1360 to b                                      1430

Nobody is told: the router is silent, and the pods are deaf. Drawn in full at bench/lab.py.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from bench.lab import Namespace, Node, wait_for
from tests.e2e.narrow import deafen, narrow
from tests.e2e.rig import START_S
from tests.e2e.test_kernel_peer import transfer
from tests.e2e.walled import Walled

UNDERLAY, PODS = 1360, 1290
HEADERS = {4: 40 + 12, 6: 60 + 12}  # with timestamps, which the kernel's TCP uses
DATA = os.urandom(1 << 18)
WAYS = [(family, is_to_us) for family in (4, 6) for is_to_us in (False, True)]


@pytest.fixture(scope="module")
def walled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walled]:
    """Yield the drawing; overlayd knows what the path takes."""
    built = Walled(tmp_path_factory.mktemp("walled"))
    try:
        built.lab.set_profile("wire")
        deafen(built.a.pod, built.b.pod)
        narrow(built.lab, "b", UNDERLAY)
        fit_network(built)
        yield built
    finally:
        built.close()


def fit_network(walled: Walled) -> None:
    """Have a network whose MTU fits the path."""
    config = walled.daemon.find("config")
    assert config is not None
    assert config.value is not None
    walled.daemon.put_config(config.value.replace('"vxlan"}', f'"vxlan", "MTU": {UNDERLAY}}}'))
    wait_for(lambda: walled.daemon.settled_status()["mtu"] == PODS, "the MTU follows", START_S)


def ends(walled: Walled, family: int, is_to_us: bool) -> tuple[Namespace, Namespace, str]:
    """Return the pod that connects, the other one, and its address."""
    nodes: tuple[Node, Node] = (walled.b, walled.a) if is_to_us else (walled.a, walled.b)
    return nodes[0].pod, nodes[1].pod, nodes[1].pod_ip6 if family == 6 else nodes[1].pod_ip()


def reaches(source: Namespace, address: str) -> bool:
    """Tell whether a small packet and its answer pass."""
    return source.run("ping", "-c1", "-W1", address, check=False).returncode == 0


def sizes(source: Namespace, target: Namespace, address: str) -> tuple[int, int]:
    """Return how large segments are that either end of a connection sends."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with (
        target.socket(family, socket.SOCK_STREAM) as listener,
        source.socket(family, socket.SOCK_STREAM) as near,
    ):
        listener.bind((address, 0))
        listener.listen()
        listener.settimeout(START_S)
        near.settimeout(START_S)
        near.connect(listener.getsockname())
        with listener.accept()[0] as far:
            one, other = (sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) for sock in (near, far))
            return one, other


def test_by_choice(walled: Walled) -> None:
    """Without the flag nothing is lowered, and what a pod sends stays too large: it is not even told."""
    source, target, address = ends(walled, 4, False)
    assert min(sizes(source, target, address)) > PODS - HEADERS[4]
    told = walled.daemon.kernel("Icmp.OutDestUnreachs")
    with target.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind((address, 0))
        listener.listen()
        with source.socket(socket.AF_INET, socket.SOCK_STREAM) as near:
            near.connect(listener.getsockname())
            with listener.accept()[0] as far:
                near.setblocking(False)
                near.send(DATA)
                wait_for(lambda: walled.daemon.kernel("Icmp.OutDestUnreachs") > told + 1, "it sends again")
                far.setblocking(False)
                with pytest.raises(BlockingIOError):
                    far.recv(1)
    assert "mss" not in walled.nft("list", "ruleset")


@pytest.mark.parametrize("datapath", ["userspace", "kernel"])
def test_fits(walled: Walled, datapath: str) -> None:
    """Both ends send segments that fit, whoever begins; data arrive at once; smaller ones are not raised."""
    walled.datapath = datapath
    walled.restart("--mss-clamp")
    for family, is_to_us in WAYS:
        source, target, address = ends(walled, family, is_to_us)
        wait_for(lambda s=source, a=address: reaches(s, a), "pods talk")  # type: ignore[misc]
        fitting = PODS - HEADERS[family]
        assert sizes(source, target, address) == (fitting, fitting)
        transfer(source, target, address, DATA)
    walled.a.set_pod_mtu(1280)
    try:
        assert max(sizes(*ends(walled, 4, False))) == 1280 - HEADERS[4]
    finally:
        walled.a.set_pod_mtu(1430)
