# SPDX-License-Identifier: Apache-2.0
"""The containers of the DaemonSet, as contained.py makes them, on a host beside one of the kernel.

    pod a 10.244.1.2 ─ host a: control, forwarder             host b: flannel.1 ─ pod b 10.244.2.2
                       etcd, on loopback  192.0.2.2 ── router ── 192.0.2.6

etcd wants certificates, as the manifest's ConfigMap and Secret have it. Once with this machine's own root as
the image, and once (soak) with that of the recipe, which has no compiler.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.lab import Kernel, Lab, wait_for
from dataplane.cniconf import OUTPUT
from tests.e2e import image as recipe
from tests.e2e.contained import ROOT, START_S, Image, Node, Pod, pod_spec, read_recipe
from tests.e2e.test_privilege import CAPABILITY_SETS, NET_ADMIN, NET_RAW, threads_of
from tests.e2e.test_wheel import wheel as wheel  # a fixture
from tests.etcd import Etcd, Seat
from tests.pki import Authority

UNDER_WAY_MAX = 25  # pings, half a second, when ping is told to end
PREFIX = "/coreos.com/network"
NETWORK = {"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}
ABSENT = ("gcc", "cc", "clang", "make", "ld", "pip", "pip3", "curl", "wget")


@pytest.fixture(
    scope="module",
    params=[
        "here",
        pytest.param("recipe", marks=[pytest.mark.soak, pytest.mark.timeout(1500)]),
    ],
)
def image(request: pytest.FixtureRequest) -> Image:
    """Return what the containers are made of."""
    if request.param == "here":
        return Image.here()
    return Image.built(recipe.build(request.getfixturevalue("wheel")))


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Yield the drawing, without overlayd."""
    with Lab(f"e2ect{os.getpid() % 100000}", names=("a", "b")) as built:
        a, b = built.nodes["a"], built.nodes["b"]
        b.program_kernel([a], Kernel())
        # Stricter than what the overlay device needs, as some distributions have it.
        a.host.run("sysctl", "-qw", "net.ipv4.conf.default.rp_filter=1")
        yield built


@pytest.fixture(scope="module")
def node(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """Yield host a with an etcd and what an operator fills in, before any pod."""
    tmp_path = tmp_path_factory.mktemp("node")
    authority = Authority(tmp_path / "pki", "authority")
    key, certificate = authority.issue("server")
    trust = ["--client-cert-auth", "--trusted-ca-file", str(authority.certificate)]
    flags = ["--key-file", str(key), "--cert-file", str(certificate), *trust]
    etcd = Etcd(tmp_path / "etcd", 1, flags, seat=Seat("https", within=lab.nodes["a"].host))
    try:
        key, certificate = authority.issue("node")
        files = {"ca.crt": authority.certificate, "tls.crt": certificate, "tls.key": key}
        secret = {name: path.read_text(encoding="ascii") for name, path in files.items()}
        etcd.control_flags += ["--cacert", str(authority.certificate)]
        etcd.control_flags += ["--key", str(key), "--cert", str(certificate)]
        etcd.wait_healthy()
        etcd.put(f"{PREFIX}/config", json.dumps(NETWORK))
        for one in lab.nodes.values():
            etcd.put(f"{PREFIX}/subnets/{one.subnet().replace('/', '-')}", json.dumps(one.lease()))
        files_of_host = tmp_path / "host"
        state = files_of_host / "var" / "lib" / "overlayd"
        state.mkdir(parents=True)
        (state / "vtep-mac").write_text(f"{lab.nodes['a'].mac}\n", encoding="ascii")
        config = {"OVERLAYD_ETCD_ENDPOINTS": etcd.urls[0]}
        yield Node(lab.nodes["a"].host, files_of_host, config, {"overlayd-etcd": secret})
    finally:
        etcd.close()


@pytest.fixture(scope="module")
def pod(node: Node, image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pod]:
    """Yield the pod on host a, ready; nothing of it is left on that host."""
    built = Pod(node, image, tmp_path_factory.mktemp("pod"))
    try:
        built.start()
        built.wait_ready()
        yield built
        assert [container.stop() for container in built.containers.values()] == [0, 0, 0]
        assert built["control"].run("down").returncode == 0
    finally:
        built.close()


def capabilities(pid: int) -> dict[str, int]:
    """Return the capability sets of a process, the same in all of its threads."""
    (found,) = {tuple(int(thread[name], 16) for name in CAPABILITY_SETS) for thread in threads_of(pid)}
    return dict(zip(CAPABILITY_SETS, found, strict=True))


def ask_probe(pod: Pod, name: str) -> int:
    """Return the status by which a probe of the control container is answered, as a kubelet asks."""
    where: dict[str, Any] = pod["control"].spec[name]["httpGet"]
    fetch = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1], timeout=5).status)"
    url = f"http://{where['host']}:{where['port']}{where['path']}"
    done = pod["control"].node.namespace.run("python3", "-c", fetch, url)
    return int(done.stdout)


def status_of(pod: Pod) -> dict[str, Any]:
    """Return what `overlayd status --json` says."""
    found: dict[str, Any] = json.loads(pod["control"].run("status", "--json").stdout)
    return found


def ping(lab: Lab, source: str, target: str) -> subprocess.CompletedProcess[str]:
    """Send three pings from a pod to another."""
    address = lab.nodes[target].pod_ip()
    return lab.nodes[source].pod.run("ping", "-c", "3", "-i", "0.05", "-W", "5", address, check=False)


def test_pod_carries_with_what_the_manifest_gives(lab: Lab, pod: Pod) -> None:
    """With two capabilities and a root that is read-only, probes are answered and pods reach the kernel's."""
    control, forwarder = pod["control"], pod["forwarder"]
    assert all(ask_probe(pod, f"{name}Probe") == 200 for name in ("startup", "liveness", "readiness"))
    for pair in (("a", "b"), ("b", "a")):
        done = ping(lab, *pair)
        assert done.returncode == 0, done.stdout + pod.log()
    for pid, most in ((control.pid, NET_ADMIN | NET_RAW), (forwarder.pid, 0)):
        sets = capabilities(pid)
        assert (sets["CapPrm"], sets["CapBnd"]) == (most, most)
        assert all(thread["NoNewPrivs"] == "1" for thread in threads_of(pid))
        # The network is the host's; of pids and mounts each has its own.
        for kind in ("pid", "mnt"):
            assert Path(f"/proc/{pid}/ns/{kind}").readlink() != Path(f"/proc/self/ns/{kind}").readlink()
    assert capabilities(pod["cni"].pid)["CapBnd"] == 0
    conf = json.loads((control.node.files / OUTPUT[1:]).read_text(encoding="utf-8"))
    assert conf["plugins"][0]["ipam"]["ranges"] == [[{"subnet": lab.nodes["a"].subnet()}]]
    status = status_of(pod)
    assert status["tx"]["forwarded"] >= 6
    assert status["warnings"] == [
        warning for warning in status["warnings"] if "queue" in warning or "Read-only" in warning
    ]


def test_settings_of_the_device_without_proc_sys(lab: Lab, pod: Pod) -> None:
    """Where /proc/sys is read-only the device has its settings nevertheless, and the host keeps its own."""
    read = lab.nodes["a"].host.run
    names = [f"net.{name}" for name in ("ipv4.conf.overlay0.rp_filter", "ipv6.conf.overlay0.addr_gen_mode")]
    assert read("sysctl", "-n", *names).stdout.split() == ["2", "1"]
    assert read("sysctl", "-n", "net.ipv4.conf.default.rp_filter").stdout == "1\n"
    assert "Read-only file system" in pod["control"].run("status").stdout  # of reserved ports, as a warning


@pytest.mark.soak
def test_containers_restart_alone(lab: Lab, pod: Pod) -> None:
    """Either container is ended and started again, as by a kubelet: the other goes on, and pods talk."""
    for name in ("control", "forwarder"):
        other = {"control": "forwarder", "forwarder": "control"}[name]
        before = pod[other].pid
        assert pod[name].stop() == 0
        pod[name].start()
        pod.wait_ready()
        assert pod[other].pid == before
        wait_for(lambda: ping(lab, "a", "b").returncode == 0, f"pods talk after {name} was restarted")


def test_new_pod_takes_over(lab: Lab, node: Node, pod: Pod, tmp_path: Path) -> None:
    """A second pod on the host, as in an update, takes over from the first: pods that talk miss no packet."""
    first = status_of(pod)
    new = Pod(node, pod["control"].image, tmp_path / "new")
    command = lab.nodes["a"].pod.command("ping", "-i", "0.02", "-W", "5", lab.nodes["b"].pod_ip())
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as stream:
        try:
            new.start()
            # Both controls have the probes' port: this is asked of the new one, whose kubelet would not know.
            wait_for(lambda: "took over forwarder" in new["control"].log(), "the new control", START_S)
            new.wait_ready()
            wait_for(lambda: status_of(new)["forwarder"]["spare"] is not None, "the new spare", START_S)
            restarts = status_of(new)["forwarder"]["restarts"]
            assert [container.stop() for container in pod.containers.values()] == [0, 0, 0]
            wait_for(lambda: status_of(new)["forwarder"]["restarts"] > restarts, "the new forwarder", START_S)
            new.wait_ready()
            last = status_of(new)
        finally:
            stream.send_signal(signal.SIGINT)
            said = stream.communicate(timeout=START_S)[0]
            new.stop()
    came = [int(number) for number in re.findall(r"icmp_seq=(\d+)", said)]
    (sent,) = map(int, re.findall(r"(\d+) packets transmitted", said))
    assert sent > 50
    assert came == list(range(1, len(came) + 1)), said + new.log()
    assert len(came) > sent - UNDER_WAY_MAX
    assert last["tx"]["forwarded"] > first["tx"]["forwarded"]  # they are the same counters
    pod.start()
    pod.wait_ready()


@pytest.mark.soak
@pytest.mark.timeout(1500)
def test_image_holds_what_it_needs_alone(wheel: Path) -> None:
    """The root of the recipe has no compiler, no headers, no pip and nothing that fetches programs."""
    built = recipe.build(wheel)
    found = [path for name in ABSENT for path in built.glob(f"**/bin/{name}") if path.is_file()]
    assert found == []
    assert list(built.glob("usr/include/**/*.h")) == []
    (entrypoint,) = read_recipe("ENTRYPOINT")
    done = subprocess.run(
        ["chroot", built, *json.loads(entrypoint), "--version"], capture_output=True, text=True, cwd=ROOT
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert pod_spec()["containers"][0]["image"].partition(":")[2] == done.stdout.split()[1]
