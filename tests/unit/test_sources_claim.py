"""One agent per node: the claim on the publication."""

import asyncio
from pathlib import Path

import pytest

from nodeseal.local import generations
from nodeseal.sources.directory.claim import DirectoryClaim, withdraw_own
from nodeseal.sources.directory.publications import publish
from nodeseal.sources.source import ClaimError

NODE = "node1"


@pytest.fixture
def mesh(tmp_path: Path) -> Path:
    directory = tmp_path / "mesh"
    directory.mkdir()
    return directory


def release(claim: DirectoryClaim, *, undo: bool = False) -> None:
    asyncio.run(claim.release(undo=undo))


def claim_file(mesh: Path) -> Path:
    return mesh / "enrolled" / ".node1.claim"


def test_second_agent_of_a_node_is_refused_and_told_the_pid(mesh: Path, tmp_path: Path) -> None:
    first = DirectoryClaim(mesh, NODE, tmp_path / "a")
    with pytest.raises(ClaimError, match=r"another agent \(pid \d+\) runs for the node node1 .*; stop it first"):
        DirectoryClaim(mesh, NODE, tmp_path / "b")
    release(first)


def test_agents_of_two_nodes_share_a_mesh_directory(mesh: Path, tmp_path: Path) -> None:
    first, second = DirectoryClaim(mesh, NODE, tmp_path / "a"), DirectoryClaim(mesh, "node2", tmp_path / "b")
    release(first)
    release(second)


def test_node_stays_with_the_run_directory_whose_core_is_left(mesh: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "a"
    run_dir.mkdir()
    release(DirectoryClaim(mesh, NODE, run_dir))
    generations.lock_path(run_dir, 1).write_text("1\n")
    with pytest.raises(ClaimError, match=f"in use by the run directory {run_dir}"):
        DirectoryClaim(mesh, NODE, tmp_path / "b")
    assert claim_file(mesh).read_text() == f"{run_dir}\n"
    release(DirectoryClaim(mesh, NODE, run_dir))


def test_node_is_free_once_the_former_run_directory_is_cleaned_up(mesh: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "a"
    run_dir.mkdir()
    release(DirectoryClaim(mesh, NODE, run_dir))
    release(DirectoryClaim(mesh, NODE, tmp_path / "b"))
    publish(mesh, NODE, [])
    assert not withdraw_own(run_dir, mesh, NODE)
    assert (mesh / "enrolled" / "node1.yaml").exists()
    assert withdraw_own(tmp_path / "b", mesh, NODE) == mesh / "enrolled" / "node1.yaml"
    assert not (mesh / "enrolled" / "node1.yaml").exists()


def test_publication_of_an_agent_that_runs_is_not_withdrawn(mesh: Path, tmp_path: Path) -> None:
    """Run directories of two machines may have one name: the claim that is held tells."""
    running = DirectoryClaim(mesh, NODE, tmp_path / "a")
    publish(mesh, NODE, [])
    assert not withdraw_own(tmp_path / "a", mesh, NODE)
    release(running)
    assert (mesh / "enrolled" / "node1.yaml").exists()
    assert withdraw_own(tmp_path / "a", mesh, NODE)


def test_failed_start_leaves_no_claim_behind(mesh: Path, tmp_path: Path) -> None:
    release(DirectoryClaim(mesh, NODE, tmp_path / "a"), undo=True)
    assert list(mesh.iterdir()) == []


def test_failed_start_leaves_the_claim_of_before(mesh: Path, tmp_path: Path) -> None:
    release(DirectoryClaim(mesh, NODE, tmp_path / "a"))
    release(DirectoryClaim(mesh, NODE, tmp_path / "a"), undo=True)
    assert claim_file(mesh).exists()


def test_withdrawing_twice_is_harmless(mesh: Path, tmp_path: Path) -> None:
    release(DirectoryClaim(mesh, NODE, tmp_path / "a"))
    for _time in range(2):
        assert not withdraw_own(tmp_path / "a", mesh, NODE)
        assert not claim_file(mesh).exists()


def test_unwritable_mesh_directory_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ClaimError, match=r"cannot write .*\.node1\.claim: "):
        DirectoryClaim(tmp_path / "missing", NODE, tmp_path / "a")
