# SPDX-License-Identifier: Apache-2.0
"""`overlayd bench`, cut down, from the command line to the files. The lab is drawn in bench/lab.py."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from bench import result
from bench.lab import NETNS, wait_for
from bench.matrix import QUICK
from bench.systems import PREFIX, remove_labs

ROOT = Path(__file__).resolve().parents[2]
BENCH = [sys.executable, "-m", "dataplane", "bench"]

# Another overlay for the matrix, by the contract of docs/bench.md: two ends of one VXLAN, which ask by ARP.
OTHER = """#!/bin/sh -e
case $BENCH_HOST in a) near=1 far=2 ;; b) near=2 far=1 ;; esac
case $1 in
up) echo "$BENCH_HOST $BENCH_UNDERLAY $BENCH_PEER_UNDERLAY $BENCH_MTU" >>{log}
    ip link add against mtu "$BENCH_MTU" type vxlan id 7 dstport 4789 \\
        local "$BENCH_UNDERLAY" remote "$BENCH_PEER_UNDERLAY" dev "$BENCH_DEVICE"
    ip addr add 198.51.100.$near/24 dev against
    ip link set against up
    ip route add "$BENCH_PEER_SUBNET" via 198.51.100.$far ;;
address) ip -n "$BENCH_POD_NAMESPACE" -4 -o addr show dev eth0 | sed 's/.*inet \\([0-9.]*\\).*/\\1/' ;;
down) echo "down $BENCH_HOST" >>{log} ;;
esac
"""


def list_labs(pid: int) -> list[str]:
    """Return the namespaces of a bench."""
    return [path.name for path in NETNS.glob(f"{PREFIX}{pid}-*")]


@contextlib.contextmanager
def running(*args: str) -> Iterator[subprocess.Popen[str]]:
    """Run a bench; whatever happens, none of its labs stays."""
    process = subprocess.Popen(
        [*BENCH, *args], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
        remove_labs(f"{PREFIX}{process.pid}")


def read_rows(folder: Path) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Return the samples of a result folder by load and system."""
    return {(row.load, row.system): row.samples for row in result.read(folder / "result.json").rows}


@pytest.mark.slow
@pytest.mark.alone
def test_quick_bench_takes_every_sample_and_leaves_nothing(tmp_path: Path) -> None:
    """Every load has one good sample of every system, with its devices; files are there, namespaces gone."""
    with running("--quick", "--repetitions", "1", "--output", str(tmp_path)) as process:
        out, err = process.communicate(timeout=170)
        assert process.returncode == 0, err
        assert list_labs(process.pid) == []
    rows = read_rows(tmp_path)
    wanted = {(load, system) for load in QUICK.blocks[0].loads for system in QUICK.systems}
    assert set(rows) == wanted
    for key, samples in rows.items():
        assert [sample.get("error") for sample in samples] == [None], key
        assert all(value > 0 for value in samples[0]["figures"].values()), key
    found = result.read(tmp_path / "result.json")
    for row in found.rows:
        namespaces = found.devices[row.devices]["namespaces"]
        assert {"a", "b", "router", "pod-a", "pod-b"} == set(namespaces)
        assert namespaces["a"]["features"]["under0"]["tcp-segmentation-offload"].startswith("off")
    kernel = found.devices["wire/kernel-vxlan"]["namespaces"]["a"]["links"]
    (device,) = (link for link in kernel if link["ifname"] == "flannel.1")
    assert device["linkinfo"]["info_data"]["port"] == 8472
    table = (tmp_path / "table.txt").read_text(encoding="utf-8")
    assert table in out
    plots = sorted(tmp_path.glob("*.svg"))
    assert len(plots) == 4
    for path in plots:
        ElementTree.fromstring(path.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_another_overlay_joins_the_matrix(tmp_path: Path) -> None:
    """An executable is called with up, address and down on both hosts, and its row has samples."""
    executable, log = tmp_path / "other.sh", tmp_path / "log"
    executable.write_text(OTHER.replace("{log}", str(log)), encoding="ascii")
    executable.chmod(executable.stat().st_mode | stat.S_IXUSR)
    choice = ("--quick", "--repetitions", "1", "--load", "tcp-1", "--system", "other")
    with running(*choice, "--against", str(executable), "--output", str(tmp_path / "out")) as process:
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert list_labs(process.pid) == []
    assert log.read_text(encoding="ascii").splitlines() == [
        "a 192.0.2.2 192.0.2.6 1450",
        "b 192.0.2.6 192.0.2.2 1450",
        "down a",
        "down b",
    ]
    rows = read_rows(tmp_path / "out")
    assert set(rows) == {("tcp-1", "kernel-vxlan"), ("tcp-1", "other")}
    assert rows["tcp-1", "other"][0]["figures"]["gbit_s"] > 0


def test_overlay_that_cannot_come_up_is_named(tmp_path: Path) -> None:
    """An executable that fails ends the bench with its words in one line, and nothing stays."""
    executable = tmp_path / "broken"
    executable.write_text("#!/bin/sh\necho no luck today >&2\nexit 3\n", encoding="ascii")
    executable.chmod(0o755)
    choice = ("--quick", "--load", "tcp-1", "--system", "broken", "--against", str(executable))
    with running(*choice, "--output", str(tmp_path / "out")) as process:
        _, err = process.communicate(timeout=60)
        assert process.returncode == 1
        assert list_labs(process.pid) == []
    assert "no luck today" in err
    assert "broken up ended with status 3 on host a" in err
    assert "Traceback" not in err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_bench_keeps_its_samples(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C leaves with status 130, without namespaces, and with the samples made so far."""
    choice = ("--quick", "--load", "tcp-1", "--system", "none", "--repetitions", "50")
    with running(*choice, "--output", str(tmp_path)) as process:
        wait_for(lambda: (tmp_path / "result.json").exists(), "a round is over", 60.0)
        os.kill(process.pid, number)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130, err
        assert list_labs(process.pid) == []
    assert "interrupted" in err
    found = result.read(tmp_path / "result.json")
    assert found.finished is None
    assert all(row.samples for row in found.rows)


def test_missing_tool_is_named_with_its_package(tmp_path: Path) -> None:
    """Without a tool nothing begins, and one line names the Debian package."""
    for tool in ("ip", "bridge", "ss", "ping", "sysctl", "gcc", "nft", "ethtool", "iperf3"):
        (tmp_path / tool).symlink_to("/bin/true")
    code = (
        "import sys\nfrom bench import run\nrun.SYSTEM_PATH = ''\n"
        "from dataplane.cli import main\nsys.exit(main(['bench', '--quick']))\n"
    )
    environment = {**os.environ, "PATH": str(tmp_path)}
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=30
    )
    assert found.returncode == 1
    assert found.stderr == "overlayd: tools are missing: apt-get install sockperf\n"


def test_comparison_of_two_files_needs_no_lab(tmp_path: Path) -> None:
    """Two result files are compared on any machine; a damaged one ends with status 2 and its place."""
    made = result.Result({"cpu": "x"}, {"name": "quick"}, "then", "later", {"wire/none": {"namespaces": {}}})
    made.add("wire", "tcp-1", "none", {"round": 0, "figures": {"gbit_s": 2.0}})
    result.write(made, tmp_path / "a.json")
    made.rows[0].samples[0]["figures"]["gbit_s"] = 3.0
    result.write(made, tmp_path / "b.json")
    damaged = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    del damaged["rows"][0]["devices"]
    (tmp_path / "c.json").write_text(json.dumps(damaged), encoding="utf-8")

    def compare(a: str, b: str) -> subprocess.CompletedProcess[str]:
        command = [*BENCH, "--compare", str(tmp_path / a), str(tmp_path / b)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)

    good = compare("a.json", "b.json")
    assert good.returncode == 0, good.stderr
    assert "+50 %" in good.stdout
    bad = compare("a.json", "c.json")
    assert bad.returncode == 2
    assert 'c.json, rows[0] lacks "devices"' in bad.stderr
