# SPDX-License-Identifier: Apache-2.0
"""Ports that are reserved for tunnels beside those of others, and whether bridges pass the firewall."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataplane import sysctls


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the tests a setting of their own."""
    path = tmp_path / sysctls.RESERVED
    path.parent.mkdir(parents=True)
    monkeypatch.setattr(sysctls, "_sysctl", lambda name: tmp_path / name)
    return path


@pytest.mark.parametrize(
    ("before", "wanted", "ours", "after", "now_ours"),
    [
        pytest.param("", {8472}, set(), "8472-8472", {8472}, id="first"),
        pytest.param("8470-8471,9000", {8472}, set(), "8470-8472,9000-9000", {8472}, id="beside others"),
        pytest.param("8472", {8472}, set(), "8472", set(), id="another's already"),
        pytest.param("8472", {8472}, {8472}, "8472", {8472}, id="ours already"),
        pytest.param("8470-8474", {8473}, {8472}, "8470-8471,8473-8474", set(), id="another port now"),
        pytest.param("8470-8474", set(), {8472}, "8470-8471,8473-8474", set(), id="the end"),
        pytest.param("8472", set(), {8472}, "\n", set(), id="nothing left"),
        pytest.param("9000", set(), {8472}, "9000", set(), id="gone already"),
    ],
)
def test_reserve_ports(
    setting: Path, before: str, wanted: set[int], ours: set[int], after: str, now_ours: set[int]
) -> None:
    """Our ports join those of others, and leave them as they were; whose they are is remembered."""
    setting.write_text(before, encoding="ascii")
    assert sysctls.reserve_ports(wanted, ours) == now_ours
    assert setting.read_text(encoding="ascii") == after


def test_no_such_setting(setting: Path) -> None:
    """Where ports cannot be reserved, none is ours."""
    assert sysctls.reserve_ports({8472}, set()) == set()


def test_bridges(tmp_path: Path) -> None:
    """There is something to tell only if there are bridges, and no br_netfilter in the families in use."""
    proc = tmp_path / "proc"

    def check(*, has_ipv6: bool = False) -> list[str]:
        return sysctls.check_bridges(has_ipv6=has_ipv6, sys=tmp_path, proc=proc)

    assert check() == []
    (tmp_path / "class/net/cni0/bridge").mkdir(parents=True)
    (warning,) = check()
    assert "net.bridge.bridge-nf-call-iptables" in warning
    assert "modprobe br_netfilter" in warning
    (proc / "net/bridge").mkdir(parents=True)
    (proc / "net/bridge/bridge-nf-call-iptables").touch()
    assert check() == []
    assert "bridge-nf-call-ip6tables" in check(has_ipv6=True)[0]
