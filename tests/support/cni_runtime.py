"""What a container runtime does with network plugins, in a node of a lab: it calls the real ones, one after the other.

The order, and what each plugin is given, are libcni's (github.com/containernetworking/cni, libcni/api.go).
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nodeseal_lab.namespaces import NETNS_DIR, create_namespace, remove_namespace
from nodeseal_lab.topology import BRIDGE

PLUGINS = Path("/usr/lib/cni")
"""Debian's package containernetworking-plugins."""
_SUFFIXES = (".conf", ".conflist", ".json")
_CALL_S = 240


class PluginError(Exception):
    """The first plugin that failed, with what it printed."""

    def __init__(self, kind: str, output: str) -> None:
        super().__init__(f"{kind}: {output}")
        self.kind = kind
        self.printed = json.loads(output) if output.startswith("{") else {}


@dataclass(frozen=True)
class Sandbox:
    """A pod's: its network namespace, and what it is called."""

    name: str
    netns: str
    address: str

    @property
    def path(self) -> Path:
        """Of the namespace."""
        return NETNS_DIR / self.netns


class ContainerRuntime:
    """Of one node. `lists` and `programs` are its directories; plugins are looked for in PLUGINS, too."""

    def __init__(self, node_netns: str, directory: Path, prefix: str, gateway: str) -> None:
        self.lists, self.programs = directory / "net.d", directory / "bin"
        self.lists.mkdir(parents=True)
        self.programs.mkdir()
        self._node = node_netns
        self._prefix = prefix
        self._sandboxes: list[Sandbox] = []
        ipam = {"type": "static", "routes": [{"dst": "0.0.0.0/0", "gw": gateway}]}
        bridge = {"type": "bridge", "bridge": BRIDGE, "ipMasq": False, "ipam": ipam, "capabilities": {"ips": True}}
        network = {"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge, {"type": "tuning"}]}
        (self.lists / "10-pods.conflist").write_text(json.dumps(network, indent=2))

    def sandbox(self, name: str, address: str) -> Sandbox:
        """A network namespace with nothing in it."""
        made = Sandbox(name, f"{self._prefix}{name}", address)
        create_namespace(made.netns)
        self._sandboxes.append(made)
        return made

    def add(self, sandbox: Sandbox) -> dict[str, Any]:
        """Makes the pod's network. The result. Raises PluginError; what was made stays, see delete."""
        self._call("ADD", {"type": "loopback", "cniVersion": "1.0.0", "name": "lo"}, sandbox, {})
        result: dict[str, Any] | None = None
        for plugin in self._plugins():
            extra = {"prevResult": result} if result is not None else {}
            result = json.loads(self._call("ADD", plugin, sandbox, extra))
        assert result is not None
        self._result_of(sandbox).write_text(json.dumps(result))
        return result

    def delete(self, sandbox: Sandbox) -> None:
        """Removes the pod's network, in the reverse order. Raises PluginError."""
        file = self._result_of(sandbox)
        extra = {"prevResult": json.loads(file.read_text())} if file.exists() else {}
        for plugin in reversed(self._plugins()):
            self._call("DEL", plugin, sandbox, extra)
        file.unlink(missing_ok=True)

    def remove(self, sandbox: Sandbox) -> None:
        """The namespace."""
        remove_namespace(sandbox.netns)

    def close(self) -> None:
        """Removes what is left."""
        for sandbox in self._sandboxes:
            remove_namespace(sandbox.netns)

    def _result_of(self, sandbox: Sandbox) -> Path:
        return self.lists.parent / f"{sandbox.netns}.result"

    def _plugins(self) -> list[dict[str, Any]]:
        first = min(path for path in self.lists.iterdir() if path.suffix in _SUFFIXES)
        network = json.loads(first.read_text())
        common = {"cniVersion": network["cniVersion"], "name": network["name"]}
        return [{**plugin, **common} for plugin in network["plugins"]]

    def _call(self, command: str, plugin: Mapping[str, Any], sandbox: Sandbox, extra: Mapping[str, Any]) -> str:
        configuration = {**plugin, **extra}
        if configuration.pop("capabilities", {}).get("ips"):
            configuration["runtimeConfig"] = {"ips": [f"{sandbox.address}/24"]}
        pod = f"K8S_POD_NAMESPACE=default;K8S_POD_NAME={sandbox.name};K8S_POD_INFRA_CONTAINER_ID={sandbox.netns}"
        variables = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": sandbox.netns,
            "CNI_NETNS": str(sandbox.path) if sandbox.path.exists() else "",
            "CNI_IFNAME": "eth0",
            "CNI_ARGS": f"IgnoreUnknown=1;{pod};K8S_POD_UID=uid-of-{sandbox.name}",
            "CNI_PATH": f"{self.programs}:{PLUGINS}",
        }
        programs = (directory / plugin["type"] for directory in (self.programs, PLUGINS))
        program = next(path for path in programs if path.exists())
        done = subprocess.run(
            ["nsenter", f"--net={NETNS_DIR / self._node}", str(program)],
            input=json.dumps(configuration),
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            timeout=_CALL_S,
        )
        if done.returncode != 0:
            raise PluginError(plugin["type"], done.stdout or done.stderr)
        return done.stdout
