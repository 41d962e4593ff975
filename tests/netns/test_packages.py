"""The packages: a source distribution and a wheel, built, installed elsewhere, and run there without the checkout."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from nodeseal import __version__
from nodeseal.capture.bpf import sources
from nodeseal_lab.lab import LAB_ROOT, take_down

ROOT = Path(__file__).resolve().parents[2]
NOT_SOURCES = shutil.ignore_patterns(
    ".git", ".venv", "build", "*.egg-info", "*.so", "__pycache__", ".*_cache", "tests", "bench"
)
DEPENDENCIES = Path(sysconfig.get_path("purelib"))
"""Of these tests. Named by a path, nodeseal's own entry there (an editable installation) is not looked at."""
INTERPRETER = str(Path(sys.executable).resolve())
"""Outside of these tests' virtual environment: it has nothing of nodeseal."""
WAIT_S = 300.0


@dataclass(frozen=True)
class Packages:
    """What was built: the source distribution from a copy of the checkout, a wheel from each of them."""

    sdist: Path
    wheel: Path
    wheel_of_sdist: Path


@dataclass(frozen=True)
class Installed:
    """How the command of an installation is called."""

    package: Path
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)

    def run(self, *arguments: str, directory: Path) -> str:
        """The command's output; it succeeds."""
        done = subprocess.run(
            [*self.command, *arguments],
            cwd=directory,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | dict(self.environment),
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=False,
        )
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stdout


def run(*command: str, directory: Path) -> None:
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def pip(*arguments: str, directory: Path, python: Path | None = None) -> None:
    """pip of these tests, for `python` if it is given."""
    other = ("--python", str(python)) if python is not None else ()
    quiet = ("-q", "--no-input", "--disable-pip-version-check")
    run(sys.executable, "-m", "pip", *other, *arguments, *quiet, directory=directory)


def build_wheel(source: Path, target: Path) -> Path:
    pip("wheel", "--no-deps", "--no-build-isolation", "-w", str(target), str(source), directory=target.parent)
    (wheel,) = target.iterdir()
    return wheel


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    made = tmp_path_factory.mktemp("packages")
    sources = made / "sources"
    shutil.copytree(ROOT, sources, symlinks=True, ignore=NOT_SOURCES)
    hook = f"from setuptools import build_meta; build_meta.build_sdist({str(made)!r})"
    run(sys.executable, "-c", hook, directory=sources)
    (sdist,) = made.glob("*.tar.gz")
    return Packages(sdist, build_wheel(sources, made / "wheel"), build_wheel(sdist, made / "wheel-of-sdist"))


@pytest.fixture(scope="module")
def into_a_directory(packages: Packages, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """`pip install --target` of the wheel."""
    target = tmp_path_factory.mktemp("target")
    pip("install", "--no-deps", "--target", str(target), str(packages.wheel), directory=target)
    path = os.pathsep.join(map(str, (target, DEPENDENCIES)))
    return Installed(target / "nodeseal", (INTERPRETER, "-m", "nodeseal"), {"PYTHONPATH": path})


@pytest.fixture(scope="module")
def into_an_environment(packages: Packages, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """`pip install` of the source distribution in a fresh virtual environment."""
    place = tmp_path_factory.mktemp("environment") / "venv"
    run(INTERPRETER, "-m", "venv", "--without-pip", "--system-site-packages", str(place), directory=ROOT)
    (site,) = (place / "lib").glob("python3*/site-packages")
    (site / "dependencies.pth").write_text(f"{DEPENDENCIES}\n")
    options = ("--no-deps", "--ignore-installed", "--no-build-isolation")
    pip("install", *options, str(packages.sdist), python=place / "bin" / "python", directory=place)
    return Installed(site / "nodeseal", (str(place / "bin" / "nodeseal"),))


@pytest.fixture(params=["into_a_directory", "into_an_environment"])
def installed(request: pytest.FixtureRequest) -> Installed:
    found: Installed = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def lab_name() -> Iterator[str]:
    name = f"p{secrets.token_hex(3)}"
    yield name
    take_down(name)


def names_in_wheel(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_source_distribution_builds_the_same_wheel(packages: Packages) -> None:
    assert names_in_wheel(packages.wheel_of_sdist) == names_in_wheel(packages.wheel)


def test_source_distribution_has_the_sources_of_everything(packages: Packages) -> None:
    with tarfile.open(packages.sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    wanted = [*ROOT.glob("cext/**/*.[ch]"), *ROOT.glob("cext/*.py"), *ROOT.glob("docs/**/*.*"), *ROOT.glob("deploy/*")]
    assert {str(path.relative_to(ROOT)) for path in wanted} - held == set()
    assert {f"agent/nodeseal/{path.relative_to(ROOT)}" for path in ROOT.glob("bpf/**/*.[ch]")} - held == set()


def test_wheel_is_for_this_python_and_every_later_one(packages: Packages) -> None:
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert packages.wheel.name == f"nodeseal-{__version__}-cp311-abi3-{platform}.whl"
    assert "nodeseal/_core.abi3.so" in names_in_wheel(packages.wheel)


def test_package_is_used_from_where_it_was_installed(installed: Installed, tmp_path: Path) -> None:
    assert [path.relative_to(installed.package) for path in sources.files(installed.package / "bpf")] == [
        path.relative_to(ROOT) for path in sources.files(ROOT / "bpf")
    ]
    assert installed.run("version", directory=tmp_path) == f"nodeseal {__version__}\n"


def test_installed_command_has_the_chart(installed: Installed, tmp_path: Path) -> None:
    expected = (ROOT / "tests" / "unit" / "golden" / "install.yaml").read_text()
    assert installed.run("install", directory=tmp_path) == expected


def test_check_finds_all_that_a_node_needs(installed: Installed, tmp_path: Path) -> None:
    installed.run("check", directory=tmp_path)


def test_lab_runs(installed: Installed, tmp_path: Path, lab_name: str) -> None:
    installed.run("lab", "up", "--name", lab_name, directory=tmp_path)
    fetch = ("lab", "exec", "--name", lab_name, "shipper", "--", "curl", "-sS", "--max-time", "20")
    assert installed.run(*fetch, "http://pipeline:8080/", directory=tmp_path) == "pipeline: ready\n"
    run_dir = str(LAB_ROOT / lab_name / "node1")
    answer = json.loads(installed.run("connections", "--run-dir", run_dir, "-o", "json", directory=tmp_path))
    fetched = [row for row in answer["connections"] if row["destination_workload"] == "default/pipeline"]
    assert fetched
    assert all(row["mtls"] for row in fetched)
    installed.run("lab", "down", "--name", lab_name, directory=tmp_path)
