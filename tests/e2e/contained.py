# SPDX-License-Identifier: Apache-2.0
"""Containers, made from the manifest as a kubelet and a container runtime would; there is neither here.

        host: a namespace of the lab, and a directory that stands for its file system
        ├── control     own pids, mounts, host name; root and /proc/sys read-only; CAP_NET_ADMIN, CAP_NET_RAW;
        │               /run/overlayd, /run/flannel, /var/lib/overlayd, /dev/net/tun of the host; a Secret
        ├── forwarder   the same with no capability, and of the host /run/overlayd alone
        └── cni         no capability either; /run/flannel, to be read, and /etc/cni/net.d

Not as there: no filter of system calls, no cgroup and so none of its limits or devices, neither AppArmor
nor SELinux.
Run as a program it becomes what its first argument, in JSON, says: the inside of one container.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bench.lab import Namespace, wait_for

ROOT = Path(__file__).resolve().parents[2]
MANIFEST = ROOT / "packaging" / "kubernetes" / "overlayd.yaml"
CONTAINERFILE = ROOT / "packaging" / "container" / "Containerfile"
START_S = 30.0
MNT_DETACH = 2
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
# As container runtimes have them for all that is not privileged.
READ_ONLY = ("proc/bus", "proc/fs", "proc/irq", "proc/sys", "proc/sysrq-trigger")

_libc = ctypes.CDLL(None, use_errno=True)


def read_manifest() -> list[dict[str, Any]]:
    """Return the objects of the manifest."""
    return [document for document in yaml.safe_load_all(MANIFEST.read_text(encoding="utf-8")) if document]


def find_object(kind: str) -> dict[str, Any]:
    """Return the one object of a kind."""
    (found,) = (document for document in read_manifest() if document["kind"] == kind)
    return found


def pod_spec() -> dict[str, Any]:
    """Return what the DaemonSet says of its pods."""
    spec: dict[str, Any] = find_object("DaemonSet")["spec"]["template"]["spec"]
    return spec


def read_recipe(word: str) -> list[str]:
    """Return what each line of the Containerfile's last stage says that begins with a word."""
    text = CONTAINERFILE.read_text(encoding="utf-8").replace("\\\n", " ")
    stage = text.rpartition("\nFROM ")[2]
    return re.findall(rf"^{word} (.*)$", stage, flags=re.MULTILINE)


@dataclass(frozen=True)
class Image:
    """What containers are made of: a root, and how to start the program in it."""

    root: Path
    entrypoint: tuple[str, ...]
    environ: Mapping[str, str]
    directory: str = "/"
    mounts: tuple[tuple[str, str, bool], ...] = ()  # source, target, is it read-only

    @classmethod
    def here(cls) -> Image:
        """Return one of this machine's own root and this checkout, which is there at once."""
        parts = {str(ROOT), sys.prefix, sys.base_prefix}
        command = (sys.executable, "-m", "dataplane")
        mounts = tuple((part, part, True) for part in sorted(parts))
        return cls(Path("/"), command, {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}, str(ROOT), mounts)

    @classmethod
    def built(cls, root: Path) -> Image:
        """Return one of a root that was built by the recipe, started as the recipe says."""
        (entrypoint,) = read_recipe("ENTRYPOINT")
        variables = dict(line.split("=", 1) for line in read_recipe("ENV"))
        return cls(root, tuple(json.loads(entrypoint)), variables)


@dataclass(frozen=True)
class Node:
    """A host for pods."""

    namespace: Namespace
    files: Path  # stands for its file system
    config: Mapping[str, str]  # what its operator wrote over that of the ConfigMap
    secrets: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def path(self, path: str) -> Path:
        """Return where a path of it is; devices are this machine's."""
        return Path(path) if path.startswith("/dev/") else self.files / path.lstrip("/")


class Container:
    """One container of a pod on a node."""

    def __init__(self, node: Node, image: Image, name: str, directory: Path) -> None:
        """Take what the manifest says; nothing is started."""
        self.node = node
        self.image = image
        self.directory = directory / name
        self.log_path = directory / f"{name}.log"
        self.pod = pod_spec()
        (self.spec,) = (one for one in self.pod["containers"] if one["name"] == name)
        self.process: subprocess.Popen[bytes] | None = None

    def _mounts(self) -> list[tuple[str, str, bool]]:
        volumes = {volume["name"]: volume for volume in self.pod["volumes"]}
        found = list(self.image.mounts)
        for mount in self.spec.get("volumeMounts", []):
            source = self._volume(volumes[mount["name"]])
            found.append((str(source), mount["mountPath"], mount.get("readOnly", False)))
        return found

    def _volume(self, volume: Mapping[str, Any]) -> Path:
        """Return a volume, made as its type says."""
        if "secret" in volume:
            secret = volume["secret"]
            path: Path = self.directory / volume["name"]
            path.mkdir(parents=True, exist_ok=True)
            for name, text in self.node.secrets[secret["secretName"]].items():
                (path / name).write_text(text, encoding="utf-8")
                (path / name).chmod(secret["defaultMode"])
            return path
        path = self.node.path(volume["hostPath"]["path"])
        if volume["hostPath"]["type"] == "DirectoryOrCreate":
            path.mkdir(mode=0o755, parents=True, exist_ok=True)
        else:
            assert (volume["hostPath"]["type"], path.is_char_device()) == ("CharDevice", True)
        return path

    def _environ(self) -> dict[str, str]:
        found = dict(self.image.environ)
        for source in self.spec.get("envFrom", []):
            if "configMapRef" in source:
                found |= find_object("ConfigMap")["data"] | self.node.config
            else:
                found |= self.node.secrets.get(source["secretRef"]["name"], {})
        return found

    def command(self, args: Sequence[str] | None = None) -> list[str]:
        """Return the command line that runs the container, or one like it with other arguments."""
        security = self.spec["securityContext"]
        assert security["privileged"] is False
        assert security["capabilities"]["drop"] == ["ALL"]
        scratch = self.directory / "scratch"
        scratch.mkdir(parents=True, exist_ok=True)
        inside = {
            "image": str(self.image.root),
            "scratch": str(scratch),
            "is_read_only": security["readOnlyRootFilesystem"],
            "no_new_privs": security["allowPrivilegeEscalation"] is False,
            "mounts": self._mounts(),
            "capabilities": security["capabilities"].get("add", []),
            "environ": {"HOSTNAME": self.node.namespace.name, "HOME": "/", **self._environ()},
            "directory": self.image.directory,
            "command": [*self.image.entrypoint, *(self.spec["args"] if args is None else args)],
        }
        unshare = ("unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child")
        program = (sys.executable, "-m", "tests.e2e.contained", json.dumps(inside))
        return self.node.namespace.command(*unshare, *program)

    def start(self) -> None:
        """Start it."""
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(self.command(), stdout=log, stderr=log, cwd=ROOT)

    def run(self, *args: str) -> subprocess.CompletedProcess[str]:
        """Run another command of overlayd in one like it, to its end."""
        command = self.command(args)
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=START_S)

    @property
    def pid(self) -> int:
        """Its first process, as the host numbers it."""
        assert self.process is not None
        outer = self.process.pid
        found = Path(f"/proc/{outer}/task/{outer}/children").read_text(encoding="ascii").split()
        return int(found[0]) if found else 0

    def log(self) -> str:
        """Return what it wrote."""
        return self.log_path.read_text(encoding="utf-8", errors="replace") if self.log_path.exists() else ""

    def stop(self) -> int:
        """End it as a kubelet does; return its status."""
        assert self.process is not None
        os.kill(self.pid, signal.SIGTERM)
        return self.process.wait(START_S)

    def close(self) -> None:
        """End it at once, if it still runs."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()  # and what is in it
            self.process.wait()


class Pod:
    """All containers of the DaemonSet on a node."""

    def __init__(self, node: Node, image: Image, directory: Path) -> None:
        """Start none of them yet."""
        directory.mkdir(parents=True, exist_ok=True)
        names = [container["name"] for container in pod_spec()["containers"]]
        self.containers = {name: Container(node, image, name, directory) for name in names}

    def start(self) -> None:
        """Start all, as a kubelet does: none waits for another."""
        for container in self.containers.values():
            container.start()

    def __getitem__(self, name: str) -> Container:
        return self.containers[name]

    def wait_ready(self) -> None:
        """Wait until `overlayd status`, in the container, says that the node is ready."""

        def is_ready() -> bool:
            for container in self.containers.values():
                assert container.process is not None
                assert container.process.poll() is None, container.log()
            return self["control"].run("status").returncode == 0

        wait_for(is_ready, lambda: f"the pod is ready: {self.log()}", START_S)

    def log(self) -> str:
        """Return what all wrote."""
        return "".join(f"{name}: {container.log()}" for name, container in self.containers.items())

    def stop(self) -> None:
        """End all that still run as a kubelet does, and whatever stays at once."""
        try:
            for container in self.containers.values():
                if container.process is not None and container.process.poll() is None:
                    container.stop()
        finally:
            self.close()

    def close(self) -> None:
        """End all that still run, at once."""
        for container in self.containers.values():
            container.close()


# --- inside ---------------------------------------------------------------------------------------------


def _mount(*words: str | Path) -> None:
    subprocess.run(["mount", *map(str, words)], check=True)


def _bind(source: str | Path, target: Path, *, is_read_only: bool = False) -> None:
    _mount("--bind", source, target)
    if is_read_only:
        _mount("-o", "remount,bind,ro", target)


def _make_root(inside: Mapping[str, Any]) -> Path:
    """Mount the image, with a place for each mount, and what a runtime mounts in every container."""
    scratch = Path(inside["scratch"])
    _mount("-t", "tmpfs", "tmpfs", scratch)
    upper, work, root = (scratch / name for name in ("upper", "work", "root"))
    for path in (upper, work, root):
        path.mkdir()
    layers = f"lowerdir={inside['image']},upperdir={upper},workdir={work}"
    _mount("-t", "overlay", "overlay", "-o", layers, root)
    _mount("-t", "proc", "-o", "nosuid,nodev,noexec", "proc", root / "proc")
    for place in (root / name for name in READ_ONLY):
        if place.exists():  # a kernel need not have all
            _bind(place, place, is_read_only=True)
    _mount("-t", "sysfs", "-o", "ro,nosuid,nodev,noexec", "sysfs", root / "sys")
    _mount("-t", "tmpfs", "-o", "nosuid,mode=755", "tmpfs", root / "dev")
    (root / "dev" / "shm").mkdir()
    for name in DEVICES:
        (root / "dev" / name).touch()
        _bind(f"/dev/{name}", root / "dev" / name)
    for name, target in (("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        (root / "dev" / name).symlink_to(f"/proc/self/{target}")
    return root


def _become(inside: Mapping[str, Any]) -> None:
    """Become the program of the container."""
    root = _make_root(inside)
    for source, target, is_read_only in inside["mounts"]:
        place = root / target.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        if Path(source).is_dir():
            place.mkdir(exist_ok=True)
        else:
            place.touch()
        _bind(source, place, is_read_only=is_read_only)
    if inside["is_read_only"]:
        _mount("-o", "remount,ro", root)
    os.chdir(root)
    subprocess.run(["pivot_root", ".", "."], check=True)
    if _libc.umount2(b".", MNT_DETACH):  # by ourselves: from here on programs are the image's
        raise OSError(ctypes.get_errno(), "umount2")
    os.chdir(inside["directory"])
    bounds = ",".join(["-all", *(f"+{name.lower()}" for name in inside["capabilities"])])
    limits = ["--inh-caps=-all", "--ambient-caps=-all", f"--bounding-set={bounds}"]
    if inside["no_new_privs"]:
        limits.append("--no-new-privs")
    os.execvpe("setpriv", ["setpriv", *limits, *inside["command"]], dict(inside["environ"]))


if __name__ == "__main__":
    _become(json.loads(sys.argv[1]))
