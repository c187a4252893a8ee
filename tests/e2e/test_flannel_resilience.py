# SPDX-License-Identifier: Apache-2.0
"""flannel's e2e cases "flannel resilience", each named after its original, and what their suite leaves out.

Drawn at site.py; VXLAN between two of our nodes. Not theirs: that no TCP connection is lost, a node that
leaves, an outage of etcd, a lease that runs out.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator

import pytest

from bench.lab import wait_for
from tests.e2e.rig import START_S, risen
from tests.e2e.site import HOSTS, Member, Overlay, Running, Site, can_ping
from tests.e2e.stream import Stream

NET = Overlay("net", {"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}})
STILL_S = 10.0  # the longest a connection may stand still, on a busy machine
TTL_S = 3


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Yield hosts and etcd."""
    built = Site(tmp_path_factory.mktemp("site"), "resilient")
    yield built
    built.close()


@pytest.fixture(scope="module")
def running(site: Site) -> Iterator[Running]:
    """Yield two nodes with a pod each."""
    with site.run(NET) as running:
        yield running


def five_pings(running: Running) -> None:
    """Let the pods ping each other five times each way."""
    near, far = running.pair(NET.name)
    for source, target in ((near, far), (far, near)):
        assert can_ping(source.pod, source.pod_ip[4], target.pod_ip[4], 5)


def key_of(member: Member) -> str:
    """Return the key of a node's lease."""
    return f"{NET.prefix}/subnets/{subnet_of(member).replace('/', '-')}"


def subnet_of(member: Member) -> str:
    """Return a node's subnet."""
    return member.own[4].rpartition(".")[0] + ".0/24"


def test_recovers_pod_connectivity_after_a_pod_is_deleted_and_recreated(site: Site, running: Running) -> None:
    """Theirs: a pod goes and another takes its place; it reaches the other node, and is reached."""
    five_pings(running)
    running.members[NET.name, "a"].recreate_pod(f"{site.prefix}-pod-net-a")
    five_pings(running)


def test_preserves_connectivity_and_subnet_leases_across_a_restart(site: Site, running: Running) -> None:
    """Theirs: after a rolling restart FLANNEL_SUBNET is what it was; and no connection was lost meanwhile."""
    near, far = running.pair(NET.name)
    before = [member.daemon.subnet_file.read_text() for member in (near, far)]
    keys = site.etcd.ctl("get", "--prefix", "--keys-only", f"{NET.prefix}/subnets")
    with Stream(near.pod, far.pod, far.pod_ip[4]) as stream:
        for member in (near, far):
            member.daemon.stop()
            member.daemon.start()
            assert stream.longest_s() < STILL_S
    assert [member.daemon.subnet_file.read_text() for member in (near, far)] == before
    assert site.etcd.ctl("get", "--prefix", "--keys-only", f"{NET.prefix}/subnets") == keys
    five_pings(running)


def test_node_leaves(site: Site, running: Running) -> None:
    """A node gives its lease back and is taken down: nothing of it stays in store, table or host."""
    near, far = running.pair(NET.name)
    daemon = far.daemon
    done = site.hosts["b"].run(*daemon.command("lease", "release")[4:])
    assert done.returncode == 0
    assert daemon.process is not None
    assert daemon.process.wait(START_S) == 0
    daemon.down()
    wait_for(lambda: not near.daemon.peers(), "a forgets b", START_S)
    assert site.etcd.get(key_of(far)) is None
    assert "111" not in site.hosts["b"].run("ip", "route", "show", "proto", "111").stdout
    assert NET.tun not in site.hosts["b"].run("ip", "link").stdout
    before = near.daemon.settled_if_ours()
    assert before is not None
    assert not can_ping(near.pod, near.pod_ip[4], far.pod_ip[4], 1)
    after = near.daemon.settled_if_ours()
    assert after is not None
    assert risen(before, after) == {"no_peer": 1}
    daemon.start()
    wait_for(lambda: near.daemon.peers() == {subnet_of(far)}, "a knows b again", START_S)
    running.settle()
    five_pings(running)


def test_case_116_etcd_outage(site: Site, running: Running) -> None:
    """While etcd is gone packets flow, the node says so, restarted or not; then etcd is followed again."""
    near, far = running.pair(NET.name)
    (member,) = site.etcd.members
    with Stream(near.pod, far.pod, far.pod_ip[4]) as stream:
        member.stop()
        for node in (near, far):
            wait_for(lambda d=node.daemon: d.status()["store"]["error"], "the node says so", START_S)  # type: ignore[misc]
        near.daemon.stop()
        near.daemon.launch()
        assert stream.longest_s() < STILL_S
        five_pings(running)
        member.start()
        site.etcd.wait_healthy()
        near.daemon.wait_ready()
        for node in (near, far):
            wait_for(lambda d=node.daemon: d.status()["store"]["error"] is None, "all is well", START_S)  # type: ignore[misc]
        assert stream.longest_s() < STILL_S
    other = {"PublicIP": "192.0.2.77", "BackendType": "vxlan"}
    other |= {"BackendData": {"VNI": 1, "VtepMAC": "02:00:00:00:00:77"}}  # type: ignore[dict-item]
    site.etcd.put(f"{NET.prefix}/subnets/10.5.255.0-24", json.dumps(other))
    for node in (near, far):
        wait_for(lambda d=node.daemon: "10.5.255.0/24" in d.peers(), "news come", START_S)  # type: ignore[misc]
    site.etcd.ctl("del", f"{NET.prefix}/subnets/10.5.255.0-24")
    for node in (near, far):
        wait_for(lambda d=node.daemon: len(d.peers()) == 1, "news come", START_S)  # type: ignore[misc]
    five_pings(running)


def test_lease_runs_out(site: Site, running: Running) -> None:
    """The lease of a node that stands still runs out, and others forget it; it takes the same one back."""
    near, far = running.pair(NET.name)
    far.daemon.stop()
    far.daemon.flags += ["--subnet-lease-ttl", str(TTL_S)]
    site.etcd.ctl("del", key_of(far))
    far.daemon.start()
    assert far.daemon.process is not None
    far.daemon.process.send_signal(signal.SIGSTOP)
    try:
        wait_for(lambda: site.etcd.get(key_of(far)) is None, "the lease runs out", START_S)
        wait_for(lambda: not near.daemon.peers(), "a forgets b", START_S)
    finally:
        far.daemon.process.send_signal(signal.SIGCONT)
    wait_for(lambda: near.daemon.peers() == {subnet_of(far)}, "a knows b again", START_S)
    wait_for(lambda: far.daemon.status()["ready"], "b is ready", START_S)
    running.settle()
    five_pings(running)
    assert set(HOSTS) == {host for _, host in running.members}
