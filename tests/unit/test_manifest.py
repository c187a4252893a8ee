# SPDX-License-Identifier: Apache-2.0
"""The Kubernetes manifest and the container recipe: each claim that docs/install.md makes of them.

There is no API server: the API's schemas judge the form. What pods do with it, e2e/test_container.py shows.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from dataplane import VERSION, config
from dataplane.cli import RUN_DIR
from dataplane.cniconf import OUTPUT
from dataplane.options import FLAGS
from tests.e2e.contained import CONTAINERFILE, find_object, pod_spec, read_manifest, read_recipe
from tests.e2e.image import PACKAGES, read_packages

BY_NAME = {container["name"]: container for container in pod_spec()["containers"]}
CONTROL, FORWARDER, CNI = (BY_NAME[name] for name in ("control", "forwarder", "cni"))
VOLUMES = {volume["name"]: volume for volume in pod_spec()["volumes"]}
BUILD_PACKAGES = PACKAGES.with_name("build.packages")


def told() -> dict[str, list[str]]:
    """Return the flags of control, by their names: those of its command line, and those of the ConfigMap."""
    command, *words = CONTROL["args"]
    assert command == "run"
    given: dict[str, list[str]] = {}
    for word in words:
        name, _, value = word.removeprefix("--").partition("=")
        given.setdefault(name, []).append(value)
    return given


def mounts(container: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return where a container has which volume."""
    return {mount["mountPath"]: VOLUMES[mount["name"]] for mount in container["volumeMounts"]}


@pytest.mark.parametrize("version", ["1.25", "1.30", kubernetes_validate.latest_version()])
def test_form(version: str) -> None:
    """Every object is what the API's schemas allow, old and new, and has no field that they do not know."""
    documents = read_manifest()
    assert [document["kind"] for document in documents] == [
        *("Namespace", "ServiceAccount", "ConfigMap", "DaemonSet")
    ]
    for document in documents:
        kubernetes_validate.validate(document, version, strict=True)


def test_schemas_judge() -> None:
    """The schemas refuse a field that does not exist, and one of the wrong type: the test above can fail."""
    for change in ({"hostNetwrok": True}, {"hostNetwork": "yes"}):
        document = find_object("DaemonSet")
        document["spec"]["template"]["spec"] |= change
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(document, "1.30", strict=True)


def test_flags_are_those_of_run() -> None:
    """Each flag and variable is one of `overlayd run`, and all together are a configuration that it takes."""
    variables = find_object("ConfigMap")["data"]
    assert set(variables) <= {flag.variable for flag in FLAGS}
    assert all(isinstance(value, str) for value in variables.values())
    assert set(told()) <= {flag.name for flag in FLAGS}
    found = config.parse(told(), variables)
    assert (found.forwarder, found.replace) == ("wait", True)
    assert found.etcd is not None
    assert FORWARDER["args"] == ["forwarder"]
    assert CNI["args"] == ["cni-conf", "--follow"]


def test_paths_are_the_defaults() -> None:
    """Volumes lie where both commands look by themselves, and at the same place on the host."""
    found = config.parse(told(), find_object("ConfigMap")["data"])
    shared = mounts(FORWARDER)
    assert list(shared) == [str(found.run_dir)] == [RUN_DIR]
    mounted = mounts(CONTROL) | mounts(CNI)
    host = {path: volume["hostPath"] for path, volume in mounted.items() if "hostPath" in volume}
    assert set(host) == {
        *(RUN_DIR, str(found.state_dir), str(found.subnet_file.parent), "/dev/net/tun"),
        str(Path(OUTPUT).parent),
    }
    assert all(path == volume["path"] for path, volume in host.items())
    assert host["/dev/net/tun"]["type"] == "CharDevice"
    assert {volume["type"] for volume in host.values()} == {"CharDevice", "DirectoryOrCreate"}
    etcd = found.etcd
    assert etcd is not None
    (secret,) = (path for path, volume in mounts(CONTROL).items() if "secret" in volume)
    for file in (etcd.cafile, etcd.certfile, etcd.keyfile):
        assert file is not None
        assert str(file.parent) == secret
    assert mounts(CONTROL)[secret]["secret"]["defaultMode"] == 0o400


def test_probes_are_answered() -> None:
    """Probes ask where control listens, on loopback alone, for the pages that it has."""
    found = config.parse(told(), find_object("ConfigMap")["data"])
    asked = {name: CONTROL[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
    assert [probe["path"] for probe in asked.values()] == ["/healthz", "/healthz", "/readyz"]
    for probe in asked.values():
        assert (probe["host"], probe["port"]) == (str(found.healthz_ip), found.healthz_port)
    assert str(found.healthz_ip) == str(found.metrics_ip) == "127.0.0.1"


def test_privileges() -> None:
    """No container is privileged or gets more than it has; control has two capabilities, nobody else any."""
    for name, container in BY_NAME.items():
        security = container["securityContext"]
        assert security["privileged"] is security["allowPrivilegeEscalation"] is False
        assert security["readOnlyRootFilesystem"] is True
        assert security["capabilities"]["drop"] == ["ALL"]
        wanted = ["NET_ADMIN", "NET_RAW"] if name == "control" else []
        assert security["capabilities"].get("add", []) == wanted
        assert ("/dev/net/tun" in mounts(container)) is (name == "control")
    pod = pod_spec()
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert {"hostPID", "hostIPC"}.isdisjoint(pod)
    assert pod["automountServiceAccountToken"] is False
    assert not any("Role" in document["kind"] for document in read_manifest())


def test_update() -> None:
    """A new pod starts beside the old one: nothing that two on one host could not both have is asked for."""
    strategy = find_object("DaemonSet")["spec"]["updateStrategy"]
    assert strategy == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    assert pod_spec()["hostNetwork"] is True
    assert not any("ports" in container for container in BY_NAME.values())


def test_everywhere_and_last_to_go() -> None:
    """Pods run on every Linux node, are the last to be evicted or killed, and are never throttled."""
    pod = pod_spec()
    assert pod["tolerations"] == [{"operator": "Exists"}]
    assert pod["nodeSelector"] == {"kubernetes.io/os": "linux"}
    assert pod["priorityClassName"] == "system-node-critical"
    for container in BY_NAME.values():
        resources = container["resources"]
        assert set(resources["requests"]) == {"cpu", "memory"}
        assert set(resources["limits"]) == {"memory"}


def test_recipe() -> None:
    """The image is that of this version: with Debian's packages of the list alone, and no compiler."""
    text = CONTAINERFILE.read_text(encoding="utf-8")
    bases = re.findall(r"^FROM (\S+)", text, flags=re.MULTILINE)
    assert set(bases) == {"debian:12-slim"}
    assert {container["image"] for container in BY_NAME.values()} == {f"overlayd:{VERSION}"}
    (labels,) = read_recipe("LABEL")
    assert f'org.opencontainers.image.version="{VERSION}"' in labels
    (entrypoint,) = read_recipe("ENTRYPOINT")
    assert json.loads(entrypoint) == ["/opt/overlayd/bin/overlayd"]
    (install,) = read_recipe("RUN")
    assert f"/tmp/{PACKAGES.name}" in install
    for path in (PACKAGES, BUILD_PACKAGES):
        assert f"{path.relative_to(CONTAINERFILE.parents[2])} " in text
    assert read_packages(PACKAGES) == ["python3", "libstdc++6", "nftables"]
    assert {"gcc", "python3-dev"} <= set(read_packages(BUILD_PACKAGES))
    sources = re.findall(r"^COPY (?!--|packaging)(.*) \S+$", text, flags=re.MULTILINE)
    assert all((Path(CONTAINERFILE).parents[2] / name).exists() for line in sources for name in line.split())
