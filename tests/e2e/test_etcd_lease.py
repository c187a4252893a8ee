# SPDX-License-Identifier: Apache-2.0
"""Leases that are lost in a real etcd, ours and those of others: drawing in rig.py, etcd beside the node.

etcd listens twice: for the node, which can be cut off, and for the test.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property

from bench.lab import wait_for
from dataplane.store.keyvalue import Record
from tests.e2e.frames import DUAL, US
from tests.e2e.leased import LEASES, LeasedRig, its_daemon, shared_rig, value
from tests.e2e.leased_etcd import EtcdLeasedDaemon
from tests.etcd import Etcd, Seat, free_port

TTL_S = 3
LATE_S = 30.0
MANY = {
    f"10.244.{number}.0/24": (f"198.18.0.{number}", f"02:4f:00:00:11:{number:02x}")
    for number in range(20, 26)
}
OWN_KEY = f"subnets/{US.subnet.replace('/', '-')}"
TO_DUAL = (str(DUAL.ip), DUAL.mac)


class CutDaemon(EtcdLeasedDaemon):
    """An `overlayd run` that can be cut off from its etcd."""

    @cached_property
    def etcd(self) -> Etcd:
        """Start it when it is first asked for; close() ends it."""
        self.port = free_port()
        ours, theirs = (f"http://127.0.0.1:{port}" for port in (free_port(), self.port))
        etcd = Etcd(
            self.directory / "etcd",
            flags=["--listen-client-urls", f"{ours},{theirs}"],
            seat=Seat(within=self.namespace),
        )
        etcd.members[0].url = ours
        etcd.members[0].wait_listening()
        return etcd

    def store_flags(self) -> list[str]:
        """Return the flags that name the store."""
        return ["--store", "etcd", "--etcd-endpoints", f"http://127.0.0.1:{self.port}"]

    @contextmanager
    def cut_off(self) -> Iterator[None]:
        """Drop all that this node sends to etcd meanwhile."""
        chain = "add table inet cut; add chain inet cut out { type filter hook output priority 0; }; "
        self.namespace.run("nft", f"{chain} add rule inet cut out tcp dport {self.port} drop")
        try:
            yield
        finally:
            self.namespace.run("nft", "delete table inet cut")


def shorten(rig: LeasedRig) -> None:
    """Let the node's own lease not last long."""
    rig.daemon.stop()
    rig.daemon.flags += ["--subnet-lease-ttl", str(TTL_S)]
    rig.daemon.put(US.subnet, LEASES[US.subnet], ttl_s=3600)  # no reservation
    rig.daemon.start()


rig = shared_rig(CutDaemon, shorten)
daemon = its_daemon(CutDaemon)


def own(daemon: CutDaemon) -> Record | None:
    """Return our lease as it stands in etcd."""
    return daemon.find(OWN_KEY)


def held(daemon: CutDaemon) -> set[str]:
    """Return the subnets of peers that are held."""
    return {subnet for subnet, peer in daemon.peers().items() if peer["held_for_s"] is not None}


def taken_back(daemon: CutDaemon) -> bool:
    """Tell whether our lease says what it said."""
    found = own(daemon)
    return found is not None and f'"PublicIP":"{US.ip}"' in str(found.value)


def test_case_118_lease_runs_out_in_a_partition(rig: LeasedRig, daemon: CutDaemon) -> None:
    """Cut off for longer than its lease lasts, a node forwards on, and takes the same subnet back."""
    before = own(daemon)
    assert before is not None
    with daemon.cut_off():
        wait_for(lambda: own(daemon) is None, "our lease runs out", LATE_S)
        daemon.wait_ready("has expired, and the store does not renew it")
        assert rig.route_of(DUAL.pod()) == TO_DUAL
    wait_for(lambda: taken_back(daemon), "our lease is taken back", LATE_S)
    daemon.wait_ready()
    after = own(daemon)
    assert after is not None
    assert after.created > before.created
    assert daemon.status()["subnet"] == US.subnet
    assert rig.route_of(DUAL.pod()) == TO_DUAL


def test_case_118_many_leases_run_out(rig: LeasedRig, daemon: CutDaemon) -> None:
    """Peers whose leases all run out at once are held: packets reach them until they have renewed."""
    for subnet, (ip, mac) in MANY.items():
        daemon.put(subnet, value(ip, mac), ttl_s=TTL_S)
    wait_for(lambda: daemon.peers().keys() >= MANY.keys(), "they are peers")
    wait_for(lambda: len(daemon.records()) == 4, "their leases run out", LATE_S)
    wait_for(lambda: held(daemon) == MANY.keys(), "they are held")
    daemon.sync()  # and the table says so
    for subnet, way in MANY.items():
        assert rig.route_of(subnet.replace(".0/24", ".5")) == way
    for subnet, (ip, mac) in MANY.items():
        daemon.put(subnet, value(ip, mac))
    daemon.sync()
    assert held(daemon) == set()


def test_case_122_another_owner(rig: LeasedRig, daemon: CutDaemon) -> None:
    """If another node wrote our key we say so, carry on, and write nothing until it is free."""
    daemon.put(US.subnet, value("198.18.0.66", "02:4f:00:00:04:66"))
    thief = own(daemon)
    daemon.wait_ready("is taken: its lease was rewritten for 198.18.0.66")
    assert rig.route_of(DUAL.pod()) == TO_DUAL
    assert f"our subnet {OWN_KEY[8:]} is taken" in daemon.log()
    # Beyond the time at which the lease would have been renewed, and then run out.
    daemon.put("10.244.30.0/24", value("198.18.0.30", "02:4f:00:00:04:30"), ttl_s=TTL_S)
    wait_for(lambda: daemon.find("subnets/10.244.30.0-24") is None, "time passes", LATE_S)
    daemon.sync()
    assert own(daemon) == thief
    assert rig.route_of(DUAL.pod()) == TO_DUAL
    daemon.delete(US.subnet)
    wait_for(lambda: taken_back(daemon), "our lease is taken back", LATE_S)
    daemon.wait_ready()
