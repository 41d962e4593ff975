"""What is known of the cluster is on the node's disk, whole or not at all, and for root alone."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from nodeseal.kubernetes.objects import Meta, Pod, PodIp, PodSpec, PodStatus
from nodeseal.local.run_directory import cluster_copies, cluster_copy
from nodeseal.sources.kubernetes import saved

PODS = [Pod(Meta(f"p{n}", "shop", f"u{n}", {"a": "b"}), PodSpec("node1"), PodStatus("Running", [PodIp("10.0.0.1")]))
        for n in range(450)]  # fmt: skip


def test_what_is_saved_is_read_again(tmp_path: Path) -> None:
    size = saved.save(tmp_path, "pods", PODS, "4711")
    path = cluster_copy(tmp_path, "pods")
    assert saved.load(tmp_path, "pods", Pod) == saved.Saved(PODS, "4711", size)
    assert path.stat().st_size == size
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert cluster_copies(tmp_path) == [path]
    saved.save(tmp_path, "pods", [], "4712")
    found = saved.load(tmp_path, "pods", Pod)
    assert found is not None
    assert (list(found.items), found.version) == ([], "4712")
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_nothing_is_there_at_first(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert saved.load(tmp_path, "pods", Pod) is None
    assert not caplog.records


@pytest.mark.parametrize("cut", ["half", "line", "head", "all", "form", "kind", "garbage", "deep"])
def test_what_is_not_whole_is_passed_over_and_told(tmp_path: Path, cut: str, caplog: pytest.LogCaptureFixture) -> None:
    saved.save(tmp_path, "pods", PODS, "1")
    path = cluster_copy(tmp_path, "pods")
    data = path.read_bytes()
    lines = data.splitlines(keepends=True)
    path.write_bytes(
        {
            "half": data[: len(data) // 2],
            "line": b"".join(lines[:-1]),
            "head": b"".join(lines[1:]),
            "all": b"",
            "form": data.replace(b'"form":1', b'"form":2'),
            "kind": data.replace(b'"kind":"pods"', b'"kind":"nodes"'),
            "garbage": lines[0] + b"\xff\n",
            "deep": lines[0] + b"[" * 100_000 + b"\n",
        }[cut]
    )
    assert saved.load(tmp_path, "pods", Pod) is None
    (record,) = caplog.records
    assert str(path) in record.getMessage()


def test_what_another_version_has_saved_is_listed_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(saved, "__version__", "0.0.1")
        saved.save(tmp_path, "pods", PODS, "4711")
    found = saved.load(tmp_path, "pods", Pod)
    assert found is not None
    assert (list(found.items), found.version) == (PODS, "")


def test_failure_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved.save(tmp_path, "pods", PODS, "1")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(saved.os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            saved.save(tmp_path, "pods", [], "2")
    found = saved.load(tmp_path, "pods", Pod)
    assert found is not None
    assert found.version == "1"
    assert len(list(tmp_path.iterdir())) == 1


def test_draft_that_a_former_agent_left_is_no_obstacle(tmp_path: Path) -> None:
    draft = cluster_copy(tmp_path, "pods").with_name(".cluster-pods.jsonl.new")
    draft.symlink_to(tmp_path / "elsewhere")
    saved.save(tmp_path, "pods", PODS, "1")
    assert not (tmp_path / "elsewhere").exists()
    assert not draft.is_symlink()
