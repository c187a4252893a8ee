# SPDX-License-Identifier: Apache-2.0
"""The cases of flannel's own tests of its formats, each named after its original, with our parser.

What differs: a Backend is required here. The tests of its subnet manager are in test_lease.py.
"""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from dataplane import flannel
from dataplane.model import NetworkConfig, SubnetRange

BACKEND = {"Backend": {"Type": "vxlan"}}


def parse(fields: dict[str, object]) -> NetworkConfig:
    """Read a config to which the backend is added."""
    return flannel.parse_network({**fields, **BACKEND}, strict=False)


def shown(subnets: SubnetRange | None, version: int) -> tuple[str, str, int]:
    """Return SubnetMin, SubnetMax and SubnetLen as flannel prints them."""
    assert subnets is not None
    kind = type(ip_address("0.0.0.0" if version == 4 else "::"))
    return str(kind(subnets.first)), str(kind(subnets.last)), subnets.length


def test_config_defaults() -> None:
    """TestConfigDefaults: lower-case names; the first subnet is left out; /24."""
    config = parse({"network": "10.3.0.0/16"})
    assert str(config.network) == "10.3.0.0/16"
    assert shown(config.subnets, 4) == ("10.3.1.0", "10.3.255.0", 24)


def test_ipv6_config_defaults() -> None:
    """TestIPv6ConfigDefaults: the first subnet is left out; /64."""
    config = parse({"enableIPv6": True, "ipv6Network": "fc00::/48", "enableIPv4": False})
    assert str(config.network6) == "fc00::/48"
    assert shown(config.subnets6, 6) == ("fc00:0:0:1::", "fc00:0:0:ffff::", 64)
    assert config.subnets is None


def test_config_overrides() -> None:
    """TestConfigOverrides: what is told is kept."""
    config = parse(
        {"Network": "10.3.0.0/16", "SubnetMin": "10.3.5.0", "SubnetMax": "10.3.8.0", "SubnetLen": 28}
    )
    assert str(config.network) == "10.3.0.0/16"
    assert shown(config.subnets, 4) == ("10.3.5.0", "10.3.8.0", 28)


def test_ipv6_config_overrides() -> None:
    """TestIPv6ConfigOverrides: what is told is kept."""
    config = parse(
        {
            "EnableIPv6": True,
            "enableIPv4": False,
            "IPv6Network": "fc00::/48",
            "IPv6SubnetLen": 124,
            "IPv6SubnetMin": "fc00:0:0:1::",
            "IPv6SubnetMax": "fc00:0:0:f::",
        }
    )
    assert str(config.network6) == "fc00::/48"
    assert shown(config.subnets6, 6) == ("fc00:0:0:1::", "fc00:0:0:f::", 124)


def test_small_network_defaults() -> None:
    """A network longer than /22 gives subnets two bits longer than itself."""
    assert shown(parse({"Network": "10.3.0.0/23"}).subnets, 4) == ("10.3.0.128", "10.3.1.128", 25)


def test_subnet_node_v4() -> None:
    """TestSubnetNodev4: a key survives the way there and back."""
    key = flannel.parse_key("10.12.13.0-24")
    assert (str(key.subnet), key.subnet6) == ("10.12.13.0/24", None)
    assert flannel.format_key(key) == "10.12.13.0-24"


def test_subnet_node_v6() -> None:
    """TestSubnetNodev6: so does one of both families."""
    key = flannel.parse_key("10.12.13.0-24&fd00:12:13::-56")
    assert (str(key.subnet), str(key.subnet6)) == ("10.12.13.0/24", "fd00:12:13::/56")
    assert flannel.format_key(key) == "10.12.13.0-24&fd00:12:13::-56"


@pytest.mark.parametrize(
    "key",
    [
        *("10", "10.12.13.0", "10.12.13-24", "10.12.13.300-24", "10.12.13.0-24hi", "&2001::-56"),
        *("10.12.13.0-24&:12:13:-56", "10.12.13.0-24&20011::-56", "10.12.13.0-24&2001-56"),
        *("10.12.13.0-24&2001::", "10.12.13.0-24&2001::-56hi"),
    ],
)
def test_subnet_node_invalid(key: str) -> None:
    """TestSubnetNodeInvalid: what is no key is refused."""
    with pytest.raises(ValueError, match="is no subnet"):
        flannel.parse_key(key)
