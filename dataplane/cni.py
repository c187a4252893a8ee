# SPDX-License-Identifier: Apache-2.0
"""A network for CNI's reference plugins, from subnet.env: what flannel's own plugin would delegate to them.

bridge makes a pod's link, host-local gives it an address of our subnet, portmap opens ports of the host.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataplane.flannel import read_net4, read_net6
from dataplane.model import Address, Network

WRITER = "overlayd cni-conf"  # under a key that CNI passes over: the file may be replaced by us
VERSIONS = ("0.3.1", "0.4.0", "1.0.0")
ENDINGS = (".conf", ".conflist", ".json")  # what container runtimes look at
DATA_DIR = Path("/var/lib/cni/networks")  # host-local's own default
LOWEST_MTU, HIGHEST_MTU = 576, 65535
LEAST_ADDRESSES = 4  # the subnet's own, the bridge's, a pod's, and IPv4's broadcast
SHOWN = 3  # addresses of pods, in a warning
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True)
class SubnetEnv:
    """What subnet.env says."""

    networks: tuple[Network, ...]
    subnets: tuple[Network, ...]  # at most one of each family
    mtu: int  # bytes, of pods' links
    has_masq: bool  # somebody masquerades already


@dataclass(frozen=True, slots=True)
class Wish:
    """What may be chosen of the network. As in flannel's own, so that its pods find their records again."""

    name: str = "cbr0"
    bridge: str = "cni0"
    version: str = "1.0.0"
    data_dir: Path = DATA_DIR
    has_portmap: bool = True
    has_hairpin: bool = True
    has_masq: bool | None = None  # None: if nobody else does it


def name(text: str) -> str:
    """Read the name of a network, as CNI allows them: records are kept in a directory of that name."""
    if NAME.fullmatch(text) is None:
        raise ValueError(f'"{text}": allowed are 1 to 64 letters, digits, and _ . - behind the first')
    return text


# --- subnet.env --------------------------------------------------------------------------------------


def parse_subnet_env(text: str) -> SubnetEnv:
    """Read subnet.env, ours or flannel's; ValueError names every key that is missing, or the bad one."""
    fields = {
        key.strip(): value.strip() for key, _, value in (line.partition("=") for line in text.splitlines())
    }
    families = [
        (f"FLANNEL_{infix}NETWORK", f"FLANNEL_{infix}SUBNET", read)
        for infix, read in (("", read_net4), ("IPV6_", read_net6))
    ]
    there = [family for family in families if fields.get(family[0]) or fields.get(family[1])] or families[:1]
    wanted = [key for family in there for key in family[:2]] + ["FLANNEL_MTU", "FLANNEL_IPMASQ"]
    missing = [key for key in wanted if not fields.get(key)]
    if missing:
        raise ValueError(f"lacks {', '.join(missing)}")
    networks: list[Network] = []
    subnets: list[Network] = []
    for network_key, subnet_key, read in there:
        networks += [read(part, network_key) for part in fields[network_key].split(",")]
        subnets.append(_check_room(read(fields[subnet_key], subnet_key), subnet_key))
    return SubnetEnv(tuple(networks), tuple(subnets), _read_mtu(fields), _read_masq(fields))


def _check_room(subnet: Network, where: str) -> Network:
    """Return a subnet that has room for the bridge and a pod."""
    if subnet.num_addresses < LEAST_ADDRESSES:
        longest = subnet.max_prefixlen - 2
        raise ValueError(f"{where}: {subnet} has no room for pods; allowed are prefixes up to /{longest}")
    return subnet


def _read_mtu(fields: Mapping[str, str]) -> int:
    text = fields["FLANNEL_MTU"]
    is_number = text.isascii() and text.isdigit() and len(text) <= 5
    if not is_number or not LOWEST_MTU <= int(text) <= HIGHEST_MTU:
        raise ValueError(f'FLANNEL_MTU: "{text}" is not allowed; allowed are {LOWEST_MTU} to {HIGHEST_MTU}')
    return int(text)


def _read_masq(fields: Mapping[str, str]) -> bool:
    text = fields["FLANNEL_IPMASQ"]
    if text not in ("true", "false"):
        raise ValueError(f'FLANNEL_IPMASQ: "{text}" is not allowed; allowed are true, false')
    return text == "true"


# --- the network ---------------------------------------------------------------------------------------


def build(env: SubnetEnv, wish: Wish) -> dict[str, Any]:
    """Return the list of plugins that makes pods in this subnet."""
    ipam: dict[str, Any] = {
        "type": "host-local",
        "ranges": [[{"subnet": str(subnet)}] for subnet in env.subnets],
        "routes": [{"dst": str(dst), "gw": str(_gateway(env, dst.version))} for dst in env.networks],
    }
    if wish.data_dir != DATA_DIR:
        ipam["dataDir"] = str(wish.data_dir)
    bridge = {
        "type": "bridge",
        "bridge": wish.bridge,
        "mtu": env.mtu,
        "isGateway": True,
        "isDefaultGateway": True,
        "ipMasq": not env.has_masq if wish.has_masq is None else wish.has_masq,
        "hairpinMode": wish.has_hairpin,
        "ipam": ipam,
    }
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {
        "cniVersion": wish.version,
        "name": wish.name,
        "writtenBy": WRITER,
        "plugins": [bridge, portmap] if wish.has_portmap else [bridge],
    }


def _gateway(env: SubnetEnv, version: int) -> Address:
    """Return the bridge's address: the plugin's CHECK finds only routes whose gateway is told."""
    (subnet,) = (subnet for subnet in env.subnets if subnet.version == version)
    return subnet[1]


def format_conf(conf: Mapping[str, Any]) -> str:
    """Return it as the text of a file."""
    return json.dumps(conf, indent=2) + "\n"


def is_ours(text: str) -> bool:
    """Tell whether a file that is there was written by this command, and not changed into somebody's own."""
    try:
        found = json.loads(text)
    except ValueError:
        return False
    return isinstance(found, dict) and found.get("writtenBy") == WRITER


# --- what does not fit it ------------------------------------------------------------------------------


def warn_of_addresses(env: SubnetEnv, wish: Wish, held: Iterable[Address]) -> str | None:
    """Say which pods hold addresses that are not in our subnet: nobody routes those any more."""
    strange = [str(ip) for ip in sorted(held, key=lambda ip: (ip.version, ip)) if not _contains(env, ip)]
    if not strange:
        return None
    more = f" and {len(strange) - SHOWN} more" if len(strange) > SHOWN else ""
    return (
        f"pods of {wish.name} hold addresses of another subnet ({', '.join(strange[:SHOWN])}{more}): "
        f"make them anew; once they are gone: ip link delete {wish.bridge}"
    )


def _contains(env: SubnetEnv, address: Address) -> bool:
    return any(address.version == subnet.version and address in subnet for subnet in env.subnets)


def warn_of_mtu(env: SubnetEnv, wish: Wish, mtus: Iterable[int]) -> str | None:
    """Say which MTUs pods' links have that are not what subnet.env says."""
    other = sorted({mtu for mtu in mtus if mtu != env.mtu})
    if not other:
        return None
    kind = "packets larger than that are lost" if other[-1] > env.mtu else "that works, with smaller packets"
    return (
        f"pods on {wish.bridge} have an MTU of {', '.join(map(str, other))}, "
        f"but {env.mtu} is right ({kind}): make them anew"
    )


def warn_of_others(path: Path, names: Iterable[str]) -> str | None:
    """Say which files a container runtime takes instead: it takes the first of its directory."""
    first = sorted(name for name in names if name.endswith(ENDINGS) and name < path.name)
    if not first:
        return None
    return (
        f"{path.parent / first[0]} comes before {path.name}, and container runtimes take the first: "
        "move it away"
    )
