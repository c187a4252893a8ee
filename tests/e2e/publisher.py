# SPDX-License-Identifier: Apache-2.0
"""Puts large tables in force in a forwarder, says how long that takes: a program, for test_table_size.py.

    python -m tests.e2e.publisher RUN_DIR PEERS TIMES

It takes the place of `overlayd run`, which must not be running. It reads a line of JSON: what the node has,
and its true peers, {"own": subnet, "source": prefix, "peers": [[subnet, underlay address, MAC], …]}; each
table holds these, and PEERS that are not there. It says `ready`, and after another line it publishes first
a table from values alone, then TIMES tables with one peer changed each. It writes the milliseconds as JSON:
{"whole": 90.0, "changed": [9.1, …]}.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from dataplane import native
from dataplane.control import ForwarderClient, newest_epoch
from dataplane.model import Encap, MacAddress, Peer, SubnetEntry, Table
from dataplane.rundir import RunDir

FIRST_SUBNET = int(IPv4Address("11.0.0.0"))
FIRST_VTEP = int(IPv4Address("198.18.0.0"))


def make_table(count: int, rows: list[tuple[str, str, str]], own: str, source: str) -> Table:
    """Return a table of the peers in `rows` and `count` others."""
    peers, subnets = [], []
    for i, (subnet, address, mac) in enumerate(rows):
        vtep = IPv4Address(address)
        peers.append(Peer(i, (vtep,)))
        octets = MacAddress(bytes.fromhex(mac.replace(":", "")))
        subnets.append(SubnetEntry(IPv4Network(subnet), i, Encap.VXLAN, vtep, octets))
    for i in range(count):
        peer_id, vtep = len(rows) + i, IPv4Address(FIRST_VTEP + i)
        peers.append(Peer(peer_id, (vtep,)))
        octets = MacAddress((0x02 << 40 | i).to_bytes(6, "big"))
        net = IPv4Network((FIRST_SUBNET + (i << 8), 24))
        subnets.append(SubnetEntry(net, peer_id, Encap.VXLAN, vtep, octets))
    ours = (IPv4Network(own),)
    return Table(tuple(peers), tuple(subnets), ours, (*ours, IPv4Network(source)))


def change_one(table: Table, at: int, address: IPv4Address) -> Table:
    """Return the table with one peer moved to another underlay address."""
    peers, subnets = list(table.peers), list(table.subnets)
    peers[at] = replace(peers[at], addresses=(address,))
    subnets[at] = replace(subnets[at], vtep=address)
    return replace(table, peers=tuple(peers), subnets=tuple(subnets))


def publish(client: ForwarderClient, table: Table, generation: int) -> float:
    """Put a table in force; return the milliseconds until the forwarder has answered."""
    start_s = time.perf_counter()
    fd = native.fib_create(table, generation)
    client.publish(fd)
    took_s = time.perf_counter() - start_s
    os.close(fd)
    return 1e3 * took_s


def main() -> None:
    """Publish what the command line asks for."""
    run_dir, count, times = RunDir(Path(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3])
    true = json.loads(sys.stdin.readline())
    table = make_table(count, true["peers"], true["own"], true["source"])
    dice = random.Random(100_000)
    print("ready", flush=True)
    sys.stdin.readline()
    with ForwarderClient(run_dir.forwarder_socket, newest_epoch(run_dir) + 1, timeout_s=10.0) as client:
        generation = client.hello().generation
        whole_ms = publish(client, table, generation + 1)
        changed_ms = []
        for i in range(times):
            at = dice.randrange(len(true["peers"]), len(table.peers))
            table = change_one(table, at, IPv4Address(FIRST_VTEP + 2 * count + i))
            changed_ms.append(publish(client, table, generation + 2 + i))
    json.dump({"whole": whole_ms, "changed": changed_ms}, sys.stdout)


if __name__ == "__main__":
    main()
