# SPDX-License-Identifier: Apache-2.0
"""An IPIP device of the kernel beside ours.

dut namespace: under0 192.0.2.1, and tunl0. This kernel has no IPIP devices, so tunl0 is one end of a veth,
and what netlink says of its kind is changed in the process under test. All else is real.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from bench.lab import Namespace, wait_for
from tests.e2e import frames
from tests.e2e.frames import US
from tests.e2e.rig import DEFAULT_FLAGS, ROOT, START_S, Daemon

DISGUISE = """
import sys
from dataplane import vxlan
kind = vxlan.kind
vxlan.kind = lambda link: "ipip" if link.get_attr("IFLA_IFNAME") == "tunl0" else kind(link)
from dataplane.cli import main
sys.exit(main())
"""


class Disguised(Daemon):
    """An overlayd to which tunl0 is of kind `ipip`."""

    def command(self, *args: str) -> list[str]:
        """Return an overlayd command line for this node."""
        python = (sys.executable, "-c", DISGUISE)
        return self.namespace.command(*python, *args, "--run-dir", str(self.run_dir))


def test_case_031_ipip_device(tmp_path: Path) -> None:
    """With one that is up, run ends and leaves nothing behind; with one that is down it warns and works."""
    dut = Namespace(f"rival-{os.getpid()}")
    try:
        dut.ip("link add under0 type veth peer name wire0")
        dut.ip("link add tunl0 type veth peer name tunl9")
        dut.ip(f"link set under0 up\naddr add {US.ip}/24 dev under0\naddr add {US.ip6}/64 dev under0 nodad")
        dut.ip("link set wire0 up\nlink set tunl0 up")
        daemon = Disguised(dut, tmp_path / "node", frames.peers_file(), DEFAULT_FLAGS)
        before = dut.run("ip", "-o", "link").stdout
        ended = subprocess.run(
            daemon.run_command(), cwd=ROOT, capture_output=True, text=True, timeout=START_S, check=False
        )
        assert ended.returncode == 1
        assert "IPIP device tunl0 is up" in ended.stderr.splitlines()[-1]
        assert "Traceback" not in ended.stderr
        assert dut.run("ip", "-o", "link").stdout == before

        dut.ip("link set tunl0 down")
        try:
            daemon.start()
            assert any("tunl0 is there, and down" in text for text in daemon.status()["warnings"])
            dut.ip("link set tunl0 up")
            wait_for(
                lambda: any("tunl0 is up" in text for text in daemon.status()["warnings"]),
                "one that comes up later is told of",
            )
        finally:
            daemon.close()
    finally:
        dut.close()
