# SPDX-License-Identifier: Apache-2.0
"""subnet.env: byte for byte as flannel writes it, never half of it, and read back at the next start."""

from __future__ import annotations

import os
import stat
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

import pytest

from dataplane import flannel, subnetfile
from dataplane.errors import RuntimeFailure
from dataplane.model import NetworkConfig, SubnetKey
from tests.crash import DIED, write_up_to
from tests.leases import DUAL, NET, NET6

KEY4 = SubnetKey(IPv4Network("10.244.7.0/24"))
KEY6 = SubnetKey(None, IPv6Network("fd00:244:0:7::/64"))
BOTH = SubnetKey(KEY4.subnet, KEY6.subnet6)


@pytest.mark.parametrize(
    ("network", "key", "lines"),
    [
        pytest.param(
            *(NET, KEY4),
            ["FLANNEL_NETWORK=10.244.0.0/16", "FLANNEL_SUBNET=10.244.7.1/24"],
            id="IPv4",
        ),
        pytest.param(
            *(DUAL, BOTH),
            [
                *("FLANNEL_NETWORK=10.244.0.0/16", "FLANNEL_SUBNET=10.244.7.1/24"),
                *("FLANNEL_IPV6_NETWORK=fd00:244::/48", "FLANNEL_IPV6_SUBNET=fd00:244:0:7::1/64"),
            ],
            id="dual stack",
        ),
        pytest.param(
            *(NET6, KEY6),
            ["FLANNEL_IPV6_NETWORK=fd00:244::/48", "FLANNEL_IPV6_SUBNET=fd00:244:0:7::1/64"],
            id="IPv6",
        ),
    ],
)
def test_written_as_flannel_does(
    network: NetworkConfig, key: SubnetKey, lines: list[str], tmp_path: Path
) -> None:
    """The lines are flannel's, in flannel's order, and name the same subnet when they are read again."""
    path = tmp_path / "flannel" / "subnet.env"
    assert subnetfile.write(path, network, key, 1450)
    assert path.read_text() == "".join(
        f"{line}\n" for line in (*lines, "FLANNEL_MTU=1450", "FLANNEL_IPMASQ=false")
    )
    assert subnetfile.read_previous(path) == key


def test_mode_and_quiet(tmp_path: Path) -> None:
    """Everybody may read it whatever the umask is; it is written only when it says something else."""
    path = tmp_path / "subnet.env"
    before = os.umask(0o077)
    try:
        assert subnetfile.write(path, NET, KEY4, 1450)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    inode = path.stat().st_ino
    assert not subnetfile.write(path, NET, KEY4, 1450)
    assert path.stat().st_ino == inode
    assert subnetfile.write(path, NET, KEY4, 1400)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("", None, id="empty"),
        pytest.param("FLANNEL_MTU=1450\n", None, id="no subnet"),
        pytest.param("FLANNEL_SUBNET=10.244.7/24\n", None, id="bad CIDR"),
        pytest.param("FLANNEL_SUBNET=\nFLANNEL_IPV6_SUBNET=x\n", None, id="two bad CIDRs"),
        pytest.param("FLANNEL_SUBNET=10.244.7.1/24\nFLANNEL_IPV6_SUBNET=x\n", KEY4, id="one bad CIDR"),
        pytest.param("\0\xff\ud800", None, id="rubbish"),
        pytest.param("OTHER=1\nFLANNEL_SUBNET=10.244.7.1/24", KEY4, id="other lines, no newline at the end"),
    ],
)
def test_read_what_there_is(text: str, expected: SubnetKey | None, tmp_path: Path) -> None:
    """What cannot be read was not there: a bad file stops no start."""
    path = tmp_path / "subnet.env"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    assert subnetfile.read_previous(path) == expected


def test_missing_or_no_file(tmp_path: Path) -> None:
    """A missing file, or something that is no file, names no subnet."""
    assert subnetfile.read_previous(tmp_path / "none") is None
    assert subnetfile.read_previous(tmp_path) is None


def test_not_writable(tmp_path: Path) -> None:
    """A file that cannot be written is an error of one line that names it."""
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "subnet.env"
    with pytest.raises(RuntimeFailure, match=f"^cannot write {path}: File exists$"):
        subnetfile.write(path, NET, KEY4, 1450)


def test_case_131_crash_in_the_middle_of_a_write(tmp_path: Path) -> None:
    """Wherever a write of a state file breaks off, the file is either the old or the new one, whole."""
    path = tmp_path / "subnet.env"
    old, new = (flannel.format_subnet_env(NET, KEY4, mtu, has_masq=False) for mtu in (1450, 8950))
    for cut in range(len(new) + 1):
        subnetfile.write(path, NET, KEY4, 1450)
        code = write_up_to(cut, lambda: subnetfile.write(path, NET, KEY4, 8950))
        assert code == (0 if cut == len(new) else DIED)
        assert path.read_text() == (new if cut == len(new) else old)
        assert subnetfile.read_previous(path) == KEY4
