# SPDX-License-Identifier: Apache-2.0
"""As much of a container runtime as CNI asks for: runs the plugins of a list, one after the other.

Of ADD each plugin gets the result of the one before it; CHECK and DEL get the last result, and DEL goes
through the list backwards. The plugins are those of Debian, and run in the namespace of a host.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.lab import NETNS, Namespace

PLUGINS = Path("/usr/lib/cni")
TIMEOUT_S = 30.0
INTERFACE = "eth0"


class PluginError(Exception):
    """A plugin refused; its text is what it said."""


@dataclass(frozen=True, slots=True)
class Port:
    """A port of the host that leads to one of a pod."""

    host: int
    pod: int
    protocol: str = "tcp"

    def as_json(self) -> dict[str, object]:
        """Return it as a runtime tells portmap."""
        return {"hostPort": self.host, "containerPort": self.pod, "protocol": self.protocol}


class Pod:
    """A pod's namespace, and what the plugins said when they joined it."""

    def __init__(self, name: str, ports: Sequence[Port] = ()) -> None:
        """Make the namespace; no plugin has run yet."""
        self.name = name
        self.ports = tuple(ports)
        self.space = Namespace(name)
        self.result: dict[str, Any] = {}

    def address(self, family: int = 4) -> str:
        """Return its address of a family."""
        return self._entry(family)["address"].partition("/")[0]

    def gateway(self, family: int = 4) -> str:
        """Return its gateway of a family."""
        return str(self._entry(family)["gateway"])

    def _entry(self, family: int) -> dict[str, str]:
        return next(entry for entry in self.result["ips"] if (":" in entry["address"]) == (family == 6))

    def host_link(self) -> str:
        """Return the name of the host's end of its link."""
        return str(self.result["interfaces"][1]["name"])


class Runtime:
    """The plugins of one host, as the file of a network lists them."""

    def __init__(self, host: Namespace, conf: Path) -> None:
        """Read the file, which a runtime finds in /etc/cni/net.d."""
        self._host = host
        self._conf: dict[str, Any] = json.loads(conf.read_text(encoding="utf-8"))

    def add(self, pod: Pod) -> None:
        """Join a pod to the network; PluginError: it is not, and the plugins have been told DEL."""
        result: dict[str, Any] | None = None
        try:
            for plugin in self._conf["plugins"]:
                result = self._exec("ADD", plugin, pod, result)
        except PluginError:
            self.delete(pod)
            raise
        assert result is not None
        pod.result = result

    def check(self, pod: Pod) -> None:
        """Have each plugin look whether all is as it was left; PluginError: it is not."""
        for plugin in self._conf["plugins"]:
            self._exec("CHECK", plugin, pod, pod.result)

    def delete(self, pod: Pod) -> None:
        """Take a pod out of the network."""
        for plugin in reversed(self._conf["plugins"]):
            self._exec("DEL", plugin, pod, pod.result or None)

    def _exec(
        self, command: str, plugin: dict[str, Any], pod: Pod, result: dict[str, Any] | None
    ) -> dict[str, Any] | None:
        conf = {**plugin, "name": self._conf["name"], "cniVersion": self._conf["cniVersion"]}
        if result is not None:
            conf["prevResult"] = result
        if pod.ports and plugin.get("capabilities", {}).get("portMappings"):
            conf["runtimeConfig"] = {"portMappings": [port.as_json() for port in pod.ports]}
        environment = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": pod.name,
            "CNI_NETNS": str(NETNS / pod.name),
            "CNI_IFNAME": INTERFACE,
            "CNI_PATH": str(PLUGINS),
        }
        words = ["env", *(f"{name}={value}" for name, value in environment.items())]
        done = subprocess.run(
            self._host.command(*words, str(PLUGINS / plugin["type"])),
            input=json.dumps(conf),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
        if done.returncode:
            raise PluginError(f"{plugin['type']} {command} {pod.name}: {done.stdout}{done.stderr}")
        found: dict[str, Any] | None = json.loads(done.stdout) if done.stdout.strip() else None
        return found
