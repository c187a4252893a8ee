# SPDX-License-Identifier: Apache-2.0
"""A node with overlayd whose firewall is looked at, and datagrams that tell whom they seem to come from.

    pod a ─ host a: overlayd             host b: flannel.1, flannel-v6.1 ─ pod b
            192.0.2.2 ─────── router ─────── 192.0.2.6
                              192.0.2.1, 192.0.2.5: outside

Drawn in full at bench/lab.py and test_kernel_datapath.py.
"""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from bench.lab import Namespace, wait_for
from tests.e2e.test_kernel_datapath import Live

TABLE = "overlayd-overlay0"
PORT = 7000
WAIT_S = 5.0
GROUPS = {4: "239.1.1.1", 6: "ff15::1"}


def listen(place: Namespace, family: int, port: int = PORT) -> socket.socket:
    """Open a UDP socket there that waits for datagrams to a port."""
    sock = place.socket(socket.AF_INET6 if family == 6 else socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(WAIT_S)
    if family == 6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.bind(("::" if family == 6 else "0.0.0.0", port))
    return sock


def speak(place: Namespace, to: tuple[str, int], data: bytes, source: tuple[str, int] = ("", 0)) -> None:
    """Send one datagram from there."""
    family = socket.AF_INET6 if ":" in to[0] else socket.AF_INET
    with place.socket(family, socket.SOCK_DGRAM) as sock:
        sock.bind(source)
        sock.sendto(data, to)


class Walled(Live):
    """The drawing above."""

    def __init__(self, directory: Path, *flags: str, datapath: str = "userspace") -> None:
        """Build it, and start overlayd on host a with these flags."""
        self.more = flags
        self.datapath = datapath
        super().__init__(directory, datapath)

    def start(self, datapath: str, *flags: str) -> None:
        """Start overlayd on a datapath."""
        super().start(datapath, *self.more, *flags)

    def restart(self, *flags: str) -> None:
        """Start overlayd anew with other flags."""
        self.daemon.stop()
        self.more = flags
        self.start(self.datapath)

    def nft(self, *args: str) -> str:
        """Run nft on host a; return what it prints."""
        return self.a.host.run("nft", *args).stdout

    def load(self, rules: str) -> None:
        """Have nft on host a read rules."""
        path = self.daemon.directory / "rules.nft"
        path.write_text(rules)
        self.nft("-f", str(path))

    def ours(self) -> list[dict[str, Any]]:
        """Return our table as nft lists it, without handles and counts; empty if it is not there."""
        done = self.a.host.run("nft", "-j", "list", "table", "inet", TABLE, check=False)
        found = json.loads(done.stdout)["nftables"][1:] if done.returncode == 0 else []
        for item in found:
            for body in item.values():
                for name in ("handle", "packets", "bytes"):
                    body.pop(name, None)
        return list(found)

    def guard(self) -> dict[str, int]:
        """Return what the guard has counted, as status says it."""
        counted: dict[str, int] = self.daemon.status()["guard"]
        return counted

    def wait_ours(self, before: list[dict[str, Any]], what: str, deadline_s: float = WAIT_S) -> None:
        """Wait until our table is what it was."""
        wait_for(lambda: self.ours() == before, lambda: f"{what}: {self.daemon.log()[-2000:]}", deadline_s)
