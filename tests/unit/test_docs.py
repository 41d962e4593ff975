"""What the documentation says that the code or the system can contradict."""

from __future__ import annotations

import functools
import hashlib
import re
import tomllib
from pathlib import Path

import pytest

from nodeseal.cli.lab import up
from nodeseal.local import config
from nodeseal.local.issuers import OwnCa
from support.command_line import parsed

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def page(name: str) -> str:
    return (ROOT / name).read_text()


@pytest.mark.parametrize("path", [*PAGES, Path(up.__file__)], ids=lambda path: path.name)
def test_requests_that_fail_say_so(path: Path) -> None:
    """A reset is what readers are to see: with -s alone curl says nothing of it."""
    assert re.findall(r"curl (?:\S+ )*?-s\b.*", path.read_text()) == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_lines_fit(path: Path) -> None:
    assert [line for line in path.read_text().splitlines() if len(line) > 110] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if target.startswith("http"):
            continue
        name, _, heading = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        assert file.exists(), target
        if heading:
            assert heading in anchors(file.read_text()), target


def anchors(text: str) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_default_workers_are_told_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def workers(cpus: int) -> int:
        monkeypatch.setattr("os.sched_getaffinity", lambda _pid: set(range(cpus)))
        return config.default_workers()

    assert [workers(cpus) for cpus in (1, 2, 4, 8, 64)] == [1, 1, 2, 4, 4]
    for name in ("CONTRIBUTING.md", "docs/operating.md"):
        assert "one for every two CPUs, at most 4" in " ".join(page(name).split())


def test_times_of_long_runs_are_the_same_everywhere() -> None:
    chaos = re.search(r"--minutes.*default=([\d.]+)", page("tests/chaos/__main__.py"))
    assert chaos is not None
    assert f"15 minutes: {float(chaos[1]):g} of chaos" in page("CONTRIBUTING.md")
    assert f"(root, 15 minutes; MINUTES={float(chaos[1]):g} " in page("Makefile")
    for name, text in (
        ("bench/__main__.py", "in under 3 minutes"),
        ("Makefile", "QUICK=1: under 3)"),
        ("CONTRIBUTING.md", "(QUICK=1: under 3)"),
        ("docs/performance.md", "under 3 minutes"),
    ):
        assert text in page(name)


def test_steps_on_a_host_are_commands_that_there_are() -> None:
    section = page("docs/operating.md").partition("## On a host\n")[2].partition("\n## ")[0]
    lines = re.findall(r"^nodeseal (.*?)(?: +#.*)?$", section, re.MULTILINE)
    assert len(lines) >= 5
    for line in lines:
        assert parsed(*line.split())


def test_configuration_on_a_host_is_taken(tmp_path: Path) -> None:
    """And the mesh state beside it, as it stands there."""
    from nodeseal.sources.directory.source import load

    section = page("docs/operating.md").partition("## On a host\n")[2]
    files = dict(re.findall(r"^cat > (\S+) <<'END'\n(.*?)^END$", section, re.MULTILINE | re.DOTALL))
    (tmp_path / "mesh").mkdir()
    (tmp_path / "mesh" / "mesh.yaml").write_text(files["/etc/nodeseal/mesh/mesh.yaml"])
    (tmp_path / "agent.yaml").write_text(files["/etc/nodeseal/agent.yaml"])
    read = config.load(tmp_path / "agent.yaml")
    assert (read.node, read.mesh, read.ca) == ("node1", Path("/etc/nodeseal/mesh"), OwnCa(Path("/etc/nodeseal/ca")))
    (workload,) = load(tmp_path / "mesh").workloads.values()
    assert (workload.node, workload.netns, workload.wanted) == ("node1", "/run/netns/web", True)


def test_examples_of_the_mesh_state_are_taken(tmp_path: Path) -> None:
    """All together are one state, as files beside each other are: in both forms."""
    from nodeseal.sources.directory.source import load

    blocks = re.findall(r"^```(yaml|json)\n(.*?)^```$", page("docs/mesh-state.md"), re.MULTILINE | re.DOTALL)
    blocks = [(suffix, text) for suffix, text in blocks if not text.startswith("# enrolled/")]
    assert {suffix for suffix, _text in blocks} == {"yaml", "json"}
    for number, (suffix, text) in enumerate(blocks):
        (tmp_path / f"{number}.{suffix}").write_text(text)
    names = {name.name for name in load(tmp_path).workloads}
    assert names == {"shipper", "siem", "pipeline", "collector", "archive", "database", "ingress", "ledger"}


@pytest.mark.parametrize("source", sorted((ROOT / "docs" / "pictures").glob("*.dot")), ids=lambda path: path.name)
def test_pictures_are_drawn_from_their_sources(source: Path) -> None:
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    assert f"<!-- made of {digest} -->" in source.with_suffix(".svg").read_text(), "make pictures"


def test_picture_of_the_layers_has_them_in_their_order() -> None:
    """Of the rooms that share a layer, none knows another: their order says nothing."""
    contracts = tomllib.loads(page("pyproject.toml"))["tool"]["importlinter"]["contracts"]
    (layers,) = (one["layers"] for one in contracts if one["name"] == "Layers point one way")
    rooms = [[room.strip().removeprefix("nodeseal.") for room in layer.split("|")] for layer in layers]
    rows = re.findall(r"<tr>(.*?)</tr>", page("docs/pictures/layers.dot"), re.DOTALL)
    drawn = [re.findall(r"<b>(\w+)</b>", row) for row in rows]
    assert [sorted(layer) for layer in drawn] == [sorted(layer) for layer in rooms]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_files_that_are_named_are_there(path: Path) -> None:
    """Of this repository, by a path's end: `worker.h`, `loop/worker.h` and `cext/src/loop/worker.h` are all clear."""
    there = _files()
    named = re.findall(r"`([\w./-]+\.(?:py|[ch]|svg|dot))`", path.read_text())
    assert [name for name in named if not any(file.endswith(f"/{name}") for file in there)] == []


@functools.cache
def _files() -> list[str]:
    """The files of the repository that pages speak of, each with a slash before it."""
    folders = ("agent", "bench", "bpf", "cext", "deploy", "docs", "lab", "tests", "tools")
    return [f"/{path.relative_to(ROOT)}" for folder in folders for path in (ROOT / folder).rglob("*.*")]
