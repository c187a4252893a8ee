# SPDX-License-Identifier: Apache-2.0
"""The type of a live network changes to host-gw and back: drawn at linked.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.lab import wait_for
from tests.e2e.cluster import NETWORK
from tests.e2e.linked import Linked
from tests.e2e.stream import Stream

STALL_S = 5.0


@pytest.mark.soak
@pytest.mark.parametrize("datapath", ["userspace", "kernel"])
def test_host_gw_and_back(tmp_path: Path, datapath: str) -> None:
    """All nodes follow the config, connections live, and each type leaves nothing of the other one behind."""
    flags = ("--datapath", datapath)
    built = Linked(tmp_path, {**NETWORK, "Backend": {"Type": "vxlan"}}, {"a": flags, "e": flags})
    try:
        built.settle(("a", "e"))
        node, near, there = built.daemons["a"], built.hosts["a"], built.hosts["e"]
        with Stream(near.pod, there.pod, there.pod_ip) as stream:
            for kind, reached in (("host-gw", "direct"), ("vxlan", "vxlan")):
                node.put_config({**NETWORK, "Backend": {"Type": kind}})
                wait_for(
                    lambda way=reached: node.reached() == {there.ip: way},  # type: ignore[misc]
                    lambda way=reached: f"a reaches e by {way}: {node.log()[-1500:]}",  # type: ignore[misc]
                    20.0,
                )
                built.settle(("a", "e"), ("e", "a"))
                stream.longest_s()
                assert stream.longest_s() < STALL_S
                node.wait_ready()
                links = near.host.run("ip", "-br", "link").stdout
                assert ("overlay0" in links) == (kind == "vxlan")
                assert bool(node.forwarder_pid()) == (kind == "vxlan" and datapath == "userspace")
                plain = [line for line in built.routes("a", "show", "proto", "112") if "under0" in line]
                assert len(plain) == (2 if kind == "host-gw" else 0)
    finally:
        built.close()
