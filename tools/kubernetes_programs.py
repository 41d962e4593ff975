"""Builds Kubernetes' programs for tests: `python -m tools.kubernetes_programs DIRECTORY VERSION PROGRAM...`, and Helm:
`python -m tools.kubernetes_programs DIRECTORY VERSION helm`, with Helm's own version.

Kubernetes is a Go module whose own parts are replaced by folders of its repository. So a module of one's own requires
it, and replaces each of those parts by the one that was released with it: v0.X of Kubernetes v1.X. The program "etcd"
is the one that this version is tested with: Debian 12's is too old for it, watches get no bookmarks there. Needs Go, as
recent as the version asks for.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

MODULE = "k8s.io/kubernetes"
ETCD = "go.etcd.io/etcd/server/v3"
HELM = "helm.sh/helm/v4"
_REPLACED = re.compile(r"^\s*(k8s\.io/\S+) => \./staging/", re.MULTILINE)
_GO = re.compile(r"^go (\S+)$", re.MULTILINE)
_VERSION_PACKAGES = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")


def main(arguments: list[str]) -> int:
    """The exit status."""
    if len(arguments) < 3:
        print("usage: python -m tools.kubernetes_programs DIRECTORY VERSION PROGRAM...", file=sys.stderr)
        return 2
    directory, version, programs = Path(arguments[0]), arguments[1], arguments[2:]
    try:
        if programs == ["helm"]:
            build_helm(directory, version)
        else:
            build(directory, version, programs)
    except FileNotFoundError:
        print("go is missing: install Go 1.26 or later, from go.dev/dl", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"{' '.join(error.cmd[:3])} failed", file=sys.stderr)
        return 1
    return 0


def build(directory: Path, version: str, programs: list[str]) -> None:
    """Puts them into `directory`/bin. Raises FileNotFoundError, subprocess.CalledProcessError."""
    directory.mkdir(parents=True, exist_ok=True)
    found = _go(directory, "mod", "download", "-json", f"{MODULE}@v{version}", capture=True)
    (directory / "go.mod").write_text(module_file(Path(json.loads(found)["GoMod"]).read_text(), version, programs))
    _go(directory, "mod", "tidy")
    major, minor, *_ = version.split(".")
    names = {"gitVersion": f"v{version}", "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    flags = [f"-X {package}.{name}={value}" for package in _VERSION_PACKAGES for name, value in names.items()]
    for program in programs:
        target = str(directory / "bin" / program)
        _go(directory, "build", "-ldflags", " ".join(["-s", "-w", *flags]), "-o", target, _package(program))


def build_helm(directory: Path, version: str) -> None:
    """Puts it into `directory`/bin. Raises FileNotFoundError, subprocess.CalledProcessError."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "go.mod").write_text(f"module nodeseal.test/helm\n\ntool {HELM}/cmd/helm\n")
    _go(directory, "get", f"{HELM}/cmd/helm@v{version}")
    flags = f"-s -w -X {HELM}/internal/version.version=v{version}"
    _go(directory, "build", "-ldflags", flags, "-o", str(directory / "bin" / "helm"), f"{HELM}/cmd/helm")


def module_file(theirs: str, version: str, programs: list[str]) -> str:
    """go.mod of a module that has these programs as its tools. `theirs`: Kubernetes' own."""
    go = _GO.search(theirs)
    assert go is not None
    parts = "\n".join(f"\t{name} => {name} v0{version[1:]}" for name in _REPLACED.findall(theirs))
    tools = "\n".join(f"\t{_package(program)}" for program in programs)
    return (
        f"module nodeseal.test/kubernetes\n\ngo {go[1]}\n\nrequire {MODULE} v{version}\n\n"
        f"replace (\n{parts}\n)\n\ntool (\n{tools}\n)\n"
    )


def _package(program: str) -> str:
    return ETCD if program == "etcd" else f"{MODULE}/cmd/{program}"


def _go(directory: Path, *words: str, capture: bool = False) -> str:
    done = subprocess.run(
        ["go", *words],
        cwd=directory,
        env={**os.environ, "CGO_ENABLED": "0", "GOWORK": "off"},
        stdout=subprocess.PIPE if capture else None,
        text=True,
        check=True,
    )
    return done.stdout or ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
