# SPDX-License-Identifier: Apache-2.0
"""VXLAN devices of the kernel, made and read back: what is read is what was asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from itertools import product

import pytest
from pyroute2 import IPRoute

from bench.lab import Namespace
from dataplane import vxlan
from dataplane.model import MacAddress, VxlanDevice


@pytest.fixture
def ipr() -> Iterator[IPRoute]:
    """Yield netlink into a namespace of its own."""
    space = Namespace(f"e2edev{os.getpid() % 100000}")
    try:
        with IPRoute(netns=space.name) as opened:
            yield opened
    finally:
        space.close()


def test_device_is_what_was_asked_for(ipr: IPRoute) -> None:
    """A device with any TTL and DSCP rule is found to be as it must be, so it is not made anew."""
    mac = MacAddress(bytes.fromhex("024f00000401"))
    locals_ = (IPv4Address("192.0.2.1"), IPv6Address("fd00:192::1"), None)
    for number, (ttl, has_dscp, local) in enumerate(product((0, 1, 7, 255, None), (False, True), locals_), 1):
        device = VxlanDevice(f"v{number}", mac, number, 8472, local, 1400, ttl=ttl, has_inner_dscp=has_dscp)
        vxlan.make(ipr, device, None)
        assert vxlan.read(ipr, device.name) == device
        vxlan.remove(ipr, device.name)
