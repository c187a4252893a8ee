# SPDX-License-Identifier: Apache-2.0
"""Which sockets a configuration needs."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest

from dataplane.backend.sockets import wanted_sockets
from dataplane.errors import RuntimeFailure
from dataplane.model import Encap
from dataplane.native import ForwarderConfig
from dataplane.slots import Fd, role_of

IP4, IP6 = IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1")


def config(*encaps: Encap, queues: int = 1, sources: int = 1, bare_port: int = 8285) -> ForwarderConfig:
    """Return a configuration with both families and these encapsulations."""
    return ForwarderConfig(
        *(1, 8472, 2, 1430),
        queues=queues,
        sources=sources,
        underlay4=IP4,
        underlay6=IP6,
        encaps=frozenset(encaps),
        bare_port=bare_port,
    )


@pytest.mark.parametrize(
    ("encaps", "roles"),
    [
        pytest.param((Encap.VXLAN,), {Fd.UDP4, Fd.UDP4_TX, Fd.UDP6, Fd.UDP6_TX}, id="vxlan"),
        pytest.param((Encap.IPIP,), {Fd.RAW4, Fd.RAW4_TX}, id="ipip"),
        pytest.param((Encap.FLANNEL_UDP,), {Fd.BARE4, Fd.UDP4_TX}, id="udp"),
        pytest.param(
            (Encap.VXLAN, Encap.FLANNEL_UDP),
            {Fd.UDP4, Fd.UDP4_TX, Fd.UDP6, Fd.UDP6_TX, Fd.BARE4},
            id="udp beside vxlan",
        ),
    ],
)
def test_roles(encaps: tuple[Encap, ...], roles: set[Fd]) -> None:
    """Each encapsulation has the sockets of its families, and those of UDP send by the same ones."""
    assert {role_of(slot) for slot in wanted_sockets(config(*encaps))} == roles


@pytest.mark.parametrize("queues", [1, 2, 14, 15])
def test_bare_sockets_are_one_less_at_most(queues: int) -> None:
    """Queues share the bare packets; there are 15 sockets at most, since a worker knows no more sources."""
    keys = wanted_sockets(config(Encap.FLANNEL_UDP, queues=queues, sources=3))
    found = [key for slot, key in keys.items() if role_of(slot) is Fd.BARE4]
    assert len(found) == (1 if queues == 1 else min(queues + 1, 15))
    assert found == [(8285,), *[(8285, IP4)] * (len(found) - 1)]
    assert len([slot for slot in keys if role_of(slot) is Fd.UDP4_TX]) == 3


def test_one_port_for_two_is_refused() -> None:
    """VXLAN and bare packets cannot have one port: nobody could tell them apart."""
    with pytest.raises(RuntimeFailure, match="UDP port 8472 is that of vxlan and of udp"):
        wanted_sockets(config(Encap.VXLAN, Encap.FLANNEL_UDP, bare_port=8472))
    assert wanted_sockets(config(Encap.FLANNEL_UDP, bare_port=8472))
