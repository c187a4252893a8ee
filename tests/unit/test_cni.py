# SPDX-License-Identifier: Apache-2.0
"""`overlayd cni-conf`: from subnet.env to the file that container runtimes read, and what it refuses."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from dataplane import cli, cni
from dataplane.cni import SubnetEnv, Wish
from dataplane.flannel import format_subnet_env, parse_network
from dataplane.model import SubnetKey

FOUR = """FLANNEL_NETWORK=10.244.0.0/16
FLANNEL_SUBNET=10.244.1.1/24
FLANNEL_MTU=1450
FLANNEL_IPMASQ=true
"""
SIX = """FLANNEL_IPV6_NETWORK=fd00:244::/48
FLANNEL_IPV6_SUBNET=fd00:244:0:1::1/64
"""
ENV = cni.parse_subnet_env(FOUR + SIX)


def bridge_of(env: str, wish: Wish = Wish()) -> dict[str, Any]:  # noqa: B008 (it is frozen)
    """Return what the bridge plugin is told."""
    plugins: list[dict[str, Any]] = cni.build(cni.parse_subnet_env(env), wish)["plugins"]
    return plugins[0]


# --- what is written ---------------------------------------------------------------------------------


def test_what_flannels_plugin_would_delegate() -> None:
    """The plugins are told what flannel's own would tell them, and ports of the host are mapped."""
    assert cni.build(cni.parse_subnet_env(FOUR), Wish()) == {
        "cniVersion": "1.0.0",
        "name": "cbr0",
        "writtenBy": "overlayd cni-conf",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "mtu": 1450,
                "isGateway": True,
                "isDefaultGateway": True,
                "ipMasq": False,
                "hairpinMode": True,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": "10.244.1.0/24"}]],
                    "routes": [{"dst": "10.244.0.0/16", "gw": "10.244.1.1"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }


@pytest.mark.parametrize(
    ("env", "ranges", "routes"),
    [
        pytest.param(FOUR + SIX, ["10.244.1.0/24", "fd00:244:0:1::/64"], ["10.244.0.0/16", "fd00:244::/48"]),
        pytest.param(SIX + FOUR.partition("24\n")[2], ["fd00:244:0:1::/64"], ["fd00:244::/48"]),
        pytest.param(
            FOUR.replace("/16", "/16,10.245.0.0/16"), ["10.244.1.0/24"], ["10.244.0.0/16", "10.245.0.0/16"]
        ),
    ],
    ids=["both families", "IPv6 alone", "several networks"],
)
def test_families(env: str, ranges: list[str], routes: list[str]) -> None:
    """A pod gets an address of each family that there is, and a route to each network."""
    ipam = bridge_of(env)["ipam"]
    assert [one[0]["subnet"] for one in ipam["ranges"]] == ranges
    assert [route["dst"] for route in ipam["routes"]] == routes
    gateways = {"4": "10.244.1.1", "6": "fd00:244:0:1::1"}
    assert all(route["gw"] == gateways["6" if ":" in route["dst"] else "4"] for route in ipam["routes"])


@pytest.mark.parametrize("told", [None, True, False])
@pytest.mark.parametrize("has_masq", [True, False])
def test_masquerade_is_done_once(told: bool | None, has_masq: bool) -> None:
    """The plugin masquerades where subnet.env says that nobody does, unless told otherwise."""
    env = FOUR.replace("IPMASQ=true", f"IPMASQ={str(has_masq).lower()}")
    expected = not has_masq if told is None else told
    assert bridge_of(env, Wish(has_masq=told))["ipMasq"] is expected


def test_our_own_subnet_file_is_read() -> None:
    """What we write ourselves as subnet.env is what is read."""
    networks = {"Network": "10.244.0.0/16", "EnableIPv6": True, "IPv6Network": "fd00:244::/48"}
    network = parse_network({**networks, "Backend": {"Type": "vxlan"}})
    key = SubnetKey(*ENV.subnets)  # type: ignore[arg-type]
    text = format_subnet_env(network, key, 1430, has_masq=False)
    assert cni.parse_subnet_env(text) == replace(ENV, mtu=1430, has_masq=False)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param(
            "",
            "lacks FLANNEL_NETWORK, FLANNEL_SUBNET, FLANNEL_MTU, FLANNEL_IPMASQ",
            id="empty",
        ),
        pytest.param(FOUR.replace("FLANNEL_MTU=1450\n", ""), "lacks FLANNEL_MTU", id="MTU"),
        pytest.param(FOUR.replace("true", ""), "lacks FLANNEL_IPMASQ", id="no value"),
        pytest.param(
            FOUR.replace("1.1/24", "1.1/32"),
            "FLANNEL_SUBNET: 10.244.1.1/32 has no room for pods; allowed are prefixes up to /30",
            id="no room",
        ),
        pytest.param(FOUR + SIX.partition("\n")[0], "lacks FLANNEL_IPV6_SUBNET", id="half of IPv6"),
        pytest.param(
            FOUR.replace("1450", "14500000"), 'FLANNEL_MTU: "14500000" is not allowed', id="MTU high"
        ),
        pytest.param(FOUR.replace("1450", "-1"), "allowed are 576 to 65535", id="MTU low"),
        pytest.param(FOUR.replace("true", "yes"), "allowed are true, false", id="masquerade"),
        pytest.param(FOUR.replace("10.244.1.1/24", "10.244.1.1"), "is no IPv4 network", id="subnet"),
        pytest.param(FOUR + SIX.replace("fd00:244::/48", "x"), "is no IPv6 network", id="IPv6 network"),
    ],
)
def test_bad_subnet_file(text: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A subnet file that is incomplete or wrong is told of by name in one line, and nothing is written."""
    assert make(tmp_path, text) == 1
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1
    assert not (tmp_path / "net.d").exists()


# --- the file ----------------------------------------------------------------------------------------


def make(directory: Path, env: str | None, *flags: str) -> int:
    """Run `overlayd cni-conf` on a subnet file of this text; it keeps everything in a directory."""
    subnet_file = directory / "subnet.env"
    if env is not None:
        subnet_file.write_text(env)
    output = directory / "net.d" / "10-overlayd.conflist"
    paths = ("--subnet-file", subnet_file, "--output", output, "--data-dir", directory / "networks")
    return cli.main(["cni-conf", *map(str, paths), *flags])


def written(directory: Path) -> Path:
    """Return the file."""
    return directory / "net.d" / "10-overlayd.conflist"


def test_written_for_all_to_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file has mode 0644 whatever the umask, follows subnet.env, and is left alone when it is right."""
    before = os.umask(0o077)
    try:
        assert make(tmp_path, FOUR) == 0
    finally:
        os.umask(before)
    path = written(tmp_path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert capsys.readouterr().out == f"wrote {path}: 10.244.1.0/24, MTU 1450\n"
    inode = path.stat().st_ino
    assert make(tmp_path, None) == 0
    assert path.stat().st_ino == inode
    assert "nothing to change in" in capsys.readouterr().out
    assert make(tmp_path, FOUR.replace("1450", "1430")) == 0
    assert json.loads(path.read_text())["plugins"][0]["mtu"] == 1430
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With `--output -` it is printed, and that alone."""
    flags = ("--output", "-", "--no-portmap", "--no-hairpin", "--name", "pods", "--bridge", "br0")
    more = ("--plugin-masq", "true", "--cni-version", "0.3.1")
    assert make(tmp_path, FOUR, *flags, *more) == 0
    out, err = capsys.readouterr()
    conf = json.loads(out)
    assert (conf["name"], conf["cniVersion"], len(conf["plugins"]), err) == ("pods", "0.3.1", 1, "")
    bridge = conf["plugins"][0]
    assert (bridge["bridge"], bridge["ipMasq"], bridge["hairpinMode"]) == ("br0", True, False)
    assert bridge["ipam"]["dataDir"] == str(tmp_path / "networks")
    assert not written(tmp_path).exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": "cbr0", "plugins": [{"type": "flannel"}]}'])
def test_foreign_file_stays(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that somebody else wrote is replaced only by --force; then it is ours."""
    path = written(tmp_path)
    path.parent.mkdir()
    path.write_text(text)
    assert make(tmp_path, FOUR) == 1
    assert path.read_text() == text
    assert "was not written by overlayd cni-conf" in capsys.readouterr().err
    assert make(tmp_path, FOUR, "--force") == 0
    assert make(tmp_path, FOUR.replace("1450", "1430")) == 0


def test_no_subnet_file_yet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where there is no subnet file, the line says who writes it."""
    assert make(tmp_path, None) == 1
    assert "overlayd run writes it" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["", "..", "a/b", "-x", "a b", "x" * 65, "ä"])
def test_bad_name(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A name that CNI would not take, or that is no directory of records, is refused."""
    assert make(tmp_path, FOUR, f"--name={name}") == 2
    assert "allowed are 1 to 64 letters" in capsys.readouterr().err


# --- pods that are there ---------------------------------------------------------------------------------


def test_pods_of_another_subnet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Addresses that were given out of another subnet are named, with what to do; those of ours are not."""
    records = tmp_path / "networks" / "cbr0"
    records.mkdir(parents=True)
    names = ("10.244.1.5", "lock", "last_reserved_ip.0", "fd00:244:0:1::9")
    for name in (*names, "10.244.7.10", "10.244.7.9", "10.244.7.5", "fd00:7::1"):
        (records / name).write_text("id\r\neth0")
    assert make(tmp_path, FOUR + SIX) == 0
    error = capsys.readouterr().err
    assert "cbr0 hold addresses of another subnet (10.244.7.5, 10.244.7.9, 10.244.7.10 and 1 more)" in error
    assert "ip link delete cni0" in error


@pytest.mark.parametrize(
    ("mtus", "words"),
    [
        pytest.param([], None, id="no pods"),
        pytest.param([1450, 1450], None, id="right"),
        pytest.param([1450, 1500], "an MTU of 1500, but 1450 is right (packets larger than that are lost)"),
        pytest.param([1400], "an MTU of 1400, but 1450 is right (that works, with smaller packets)"),
    ],
)
def test_pods_of_another_mtu(mtus: list[int], words: str | None) -> None:
    """Links that have another MTU than subnet.env says are told of, and whether that does harm."""
    said = cni.warn_of_mtu(ENV, Wish(), mtus)
    assert said is None if words is None else said is not None and words in said


def test_addresses_of_the_family_that_went(tmp_path: Path) -> None:
    """An IPv6 address is none of ours when the network has no IPv6 any more."""
    four = SubnetEnv(ENV.networks[:1], ENV.subnets[:1], 1450, has_masq=True)
    assert cni.warn_of_addresses(ENV, Wish(), [ip_address("fd00:244:0:1::9")]) is None
    assert "fd00:244:0:1::9" in str(cni.warn_of_addresses(four, Wish(), [ip_address("fd00:244:0:1::9")]))


def test_another_network_comes_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that container runtimes would take instead of ours is named; others are not."""
    directory = written(tmp_path).parent
    directory.mkdir()
    for name in ("10-flannel.conflist", "00-notes.txt", "99-loopback.conf"):
        (directory / name).write_text("{}")
    assert make(tmp_path, FOUR) == 0
    error = capsys.readouterr().err
    assert error.count("warning") == 1
    assert f"{directory}/10-flannel.conflist comes before 10-overlayd.conflist" in error
