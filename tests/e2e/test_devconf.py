# SPDX-License-Identifier: Apache-2.0
"""Settings of a device by netlink, told to a real kernel; that containers need it shows test_container.py."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from bench.lab import Namespace
from dataplane import devconf, sysctls
from dataplane.errors import KernelError
from dataplane.repairs import Changes

DEVICE = "veth0"
NAMES = (f"net/ipv4/conf/{DEVICE}/rp_filter", f"net/ipv6/conf/{DEVICE}/addr_gen_mode")


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Namespace]:
    """Yield a namespace with a device, in which this thread is, and take settings to be read-only."""
    namespace = Namespace(f"devconf{os.getpid()}")
    try:
        namespace.ip(f"link add {DEVICE} type veth peer name veth1\n")
        monkeypatch.setattr(sysctls, "is_read_only", lambda: True)
        with namespace.inside():
            yield namespace
    finally:
        namespace.close()


def read() -> list[str]:
    """Return the settings as the kernel has them."""
    return [str(sysctls.read_sysctl(name)) for name in NAMES]


def test_settings_are_set(host: Namespace) -> None:
    """Where settings are read-only, the two that netlink can set are set, and others are not asked for."""
    wanted = sysctls.device_sysctls(DEVICE, has_ipv6=True)
    assert list(wanted) == list(NAMES)
    assert read() == ["0", "0"]
    sysctls.set_sysctls(wanted, Changes())
    assert read() == ["2", "1"]
    sysctls.set_sysctls({NAMES[0]: "0", NAMES[1]: "0"}, Changes())
    assert read() == ["0", "0"]


def test_what_cannot_be(host: Namespace) -> None:
    """A value that the kernel refuses is an error that names the setting, and nothing is set."""
    with pytest.raises(KernelError, match="addr_gen_mode to 77"):
        sysctls.set_sysctls({NAMES[1]: "77"}, Changes())
    with pytest.raises(OSError, match="no interface"):
        devconf.put("nothing0", "rp_filter", 2)
    assert read() == ["0", "0"]


def test_elsewhere() -> None:
    """Where settings can be written, all four are, and nothing is read-only."""
    assert not sysctls.is_read_only()
    assert len(sysctls.device_sysctls(DEVICE, has_ipv6=False)) == 4
