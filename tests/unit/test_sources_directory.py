"""Following a directory: publications, and what is told of which change."""

import asyncio
import json
import threading
from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from nodeseal.documents import document
from nodeseal.documents.document import Mapping, OnItem, Problem, Problems
from nodeseal.mesh.model import Mesh, Mode, Phase, WorkloadName
from nodeseal.sources.directory import publications, state, watch
from nodeseal.sources.directory import source as directory_module
from nodeseal.sources.directory.publications import publish, withdraw
from nodeseal.sources.directory.source import DirectorySource, load
from nodeseal.sources.directory.state import StateFile
from nodeseal.sources.source import MeshStateError, PublicationError
from support import source_changes
from support.source_changes import Next

A = WorkloadName("default", "a")
B = WorkloadName("default", "b")
STATE = (
    "trust_domain: example.org\n"
    "workloads:\n"
    "- {name: a, node: node1, address: 10.0.0.1, enrolled: true}\n"
    "- {name: b, node: node2, address: 10.0.0.2, enrolled: true}\n"
)
MORE = STATE + "- {name: c, node: node2, address: 10.0.0.3}\n"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "mesh"
    path.mkdir()
    (path / "m.yaml").write_text(STATE)
    return path


def replace(path: Path, text: str) -> None:
    new = path.with_name(".new")
    new.write_text(text)
    new.replace(path)


def move(source: Path, target: Path) -> None:
    source.rename(target)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def following(directory: Path) -> AbstractAsyncContextManager[Next]:
    """The changes of the directory as a node sees it."""
    return source_changes.following(DirectorySource(directory, "node1", directory))


def mesh_of(item: Mesh | MeshStateError) -> Mesh:
    assert isinstance(item, Mesh), item
    return item


def error_of(item: Mesh | MeshStateError) -> str:
    assert isinstance(item, MeshStateError), item
    return str(item)


def phases_of(item: Mesh | MeshStateError) -> dict[str, Phase]:
    return {key.name: workload.phase for key, workload in mesh_of(item).workloads.items()}


# Publications


def test_a_published_workload_is_enrolled(directory: Path) -> None:
    publish(directory, "node1", [A])
    assert phases_of(load(directory)) == {"a": Phase.ENROLLED, "b": Phase.ABSENT}


def test_a_withdrawn_workload_is_not(directory: Path) -> None:
    publish(directory, "node1", [A])
    withdraw(directory, "node1")
    assert phases_of(load(directory)) == {"a": Phase.ABSENT, "b": Phase.ABSENT}
    assert list((directory / "enrolled").iterdir()) == []


def test_withdrawing_twice_is_fine(directory: Path) -> None:
    withdraw(directory, "node1")
    withdraw(directory, "node1")


def test_publishing_nothing_is_a_publication(directory: Path) -> None:
    publish(directory, "node1", [])
    assert phases_of(load(directory))["a"] is Phase.ABSENT
    assert (directory / "enrolled" / "node1.yaml").exists()


def test_publishing_the_same_again_writes_nothing(directory: Path) -> None:
    publish(directory, "node1", [A])
    path = directory / "enrolled" / "node1.yaml"
    before = path.stat().st_ino
    publish(directory, "node1", [A, A])
    assert path.stat().st_ino == before


def test_a_publication_leaves_no_temporary_file(directory: Path) -> None:
    publish(directory, "node1", [A])
    assert [path.name for path in (directory / "enrolled").iterdir()] == ["node1.yaml"]


@pytest.mark.parametrize("node", ["", "a/b", "..", ".hidden", "a\0b"])
def test_a_node_that_cannot_be_a_file_name_is_refused(directory: Path, node: str) -> None:
    with pytest.raises(PublicationError, match="cannot be a file name"):
        publish(directory, node, [])


def test_a_directory_that_cannot_be_written_is_one_clear_line(directory: Path) -> None:
    (directory / "enrolled").write_text("in the way")
    with pytest.raises(PublicationError) as caught:
        publish(directory, "node1", [A])
    assert str(caught.value).startswith(f"cannot publish the enrolled workloads in {directory}/enrolled/node1.yaml: ")
    assert "\n" not in str(caught.value)


def test_files_of_either_suffix_are_read(directory: Path) -> None:
    for name, number in (("two.yml", 2), ("three.YAML", 3), ("four.Yml", 4)):
        workload = f"{{name: w{number}, node: node1, address: 10.0.1.{number}}}"
        (directory / name).write_text(f"workloads:\n- {workload}\n")
    for name, number in (("five.json", 5), ("six.JSON", 6)):
        workload = {"name": f"w{number}", "node": "node1", "address": f"10.0.1.{number}"}
        (directory / name).write_text(json.dumps({"workloads": [workload]}))
    assert {f"w{number}" for number in range(2, 7)} <= {name.name for name in load(directory).workloads}


def test_the_same_in_a_file_of_the_other_suffix_is_said(directory: Path) -> None:
    (directory / "m.yml").write_text(STATE)
    with pytest.raises(MeshStateError) as caught:
        load(directory)
    assert not caught.value.used
    assert "m.yml:1: trust_domain: expected it in one file only, found it again (first at m.yaml:1)" in str(
        caught.value
    )


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (
            "more.jsonl",
            "more.jsonl: expected the files of the mesh state as *.yaml, *.yml or *.json, found another suffix: it is "
            "not read",
        ),
        (
            "more/w.yaml",
            "more/: expected the files of the mesh state in the directory itself, found some in a directory below it: "
            "they are not read",
        ),
        (
            "enrolled/node2.yml",
            "enrolled/node2.yml: expected publications as <node>.yaml, found another suffix: it is not read",
        ),
        (
            "enrolled/node2.json",
            "enrolled/node2.json: expected publications as <node>.yaml, found another suffix: it is not read",
        ),
    ],
)
def test_what_looks_like_a_part_and_is_not_read_is_told(directory: Path, name: str, line: str) -> None:
    (directory / name).parent.mkdir(exist_ok=True)
    (directory / name).write_text("workloads: []\n")

    async def follow() -> None:
        async with following(directory) as following_item:
            assert mesh_of(await following_item()).workloads.keys() == {A, B}
            error = await following_item()
            assert isinstance(error, MeshStateError)
            assert (str(error), error.used) == (line, True)
            (directory / name).unlink()
            if (directory / name).parent.name == "more":
                (directory / name).parent.rmdir()
            assert isinstance(await following_item(), Mesh)

    asyncio.run(follow())
    load(directory)


@pytest.mark.parametrize("name", [".m.yml", "m.yaml~", "m.yaml.bak", "README.md", "empty/", "enrolled/.node1.claim"])
def test_what_is_nobodys_intention_is_passed_over_without_a_word(directory: Path, name: str) -> None:
    (directory / name).parent.mkdir(exist_ok=True)
    if name.endswith("/"):
        (directory / name).mkdir()
    else:
        (directory / name).write_text("not: [what")
    _mesh, problems = directory_module._Reader(directory).take(directory_module._Snapshot(directory, frozenset()))
    assert problems == []


def test_another_nodes_workload_is_not_enrolled_by_a_publication(directory: Path) -> None:
    publish(directory, "node1", [A, B])

    async def check() -> None:
        async with following(directory) as item:
            assert phases_of(await item()) == {"a": Phase.ENROLLED, "b": Phase.ABSENT}
            assert error_of(await item()) == (
                "enrolled/node1.yaml: enrolled: expected workloads of node1, found default/b, of node2"
            )

    asyncio.run(check())


def test_a_publication_under_another_nodes_file_name_is_not_trusted(directory: Path) -> None:
    publish(directory, "node1", [A])
    (directory / "enrolled" / "node1.yaml").rename(directory / "enrolled" / "node2.yaml")

    async def check() -> None:
        async with following(directory) as item:
            # Unreadable and never read before: what is wanted on node2 counts as enrolled.
            assert phases_of(await item()) == {"a": Phase.ABSENT, "b": Phase.ENROLLED}
            assert "enrolled/node2.yaml:2: node: expected 'node2', as the file is named, found 'node1'" in error_of(
                await item()
            )

    asyncio.run(check())


def test_an_unknown_workload_in_a_publication_is_passed_over(directory: Path) -> None:
    publish(directory, "node1", [A, WorkloadName("default", "gone")])

    async def check() -> None:
        async with following(directory) as item:
            assert phases_of(await item())["a"] is Phase.ENROLLED
            replace(directory / "m.yaml", MORE)
            assert "c" in phases_of(await item())

    asyncio.run(check())


def test_a_publication_that_was_never_readable_counts_as_all_that_is_wanted(directory: Path) -> None:
    (directory / "m.yaml").write_text(MORE)
    (directory / "enrolled").mkdir()
    (directory / "enrolled" / "node2.yaml").write_text("}")
    assert phases_of(load(directory)) == {"a": Phase.ABSENT, "b": Phase.ENROLLED, "c": Phase.ABSENT}


def test_publications_that_were_never_listed_count_as_all_that_is_wanted(directory: Path) -> None:
    (directory / "enrolled").symlink_to(directory / "m.yaml")
    assert phases_of(load(directory)) == {"a": Phase.ENROLLED, "b": Phase.ENROLLED}

    async def check() -> None:
        async with following(directory) as item:
            assert phases_of(await item()) == {"a": Phase.ENROLLED, "b": Phase.ENROLLED}
            assert "enrolled/: expected a directory that can be read" in error_of(await item())

    asyncio.run(check())


def test_a_publication_that_becomes_unreadable_keeps_counting(directory: Path) -> None:
    publish(directory, "node1", [A])
    publish(directory, "node2", [])

    async def check() -> None:
        async with following(directory) as item:
            before = phases_of(await item())
            replace(directory / "enrolled" / "node1.yaml", "node: node1\nenrolled: 5\n")
            assert "enrolled/node1.yaml:2: enrolled: expected a list of workloads" in error_of(await item())
            # Others go on being followed meanwhile, and the problem is told again after the new model.
            publish(directory, "node2", [B])
            assert phases_of(await item()) == {**before, "b": Phase.ENROLLED}
            assert "enrolled/node1.yaml" in error_of(await item())
            publish(directory, "node1", [])
            assert phases_of(await item()) == {"a": Phase.ABSENT, "b": Phase.ENROLLED}

    asyncio.run(check())


# Following


def test_the_present_state_comes_first(directory: Path) -> None:
    async def check() -> None:
        async with following(directory) as item:
            assert mesh_of(await item()) == load(directory)

    asyncio.run(check())


@pytest.mark.parametrize("in_place", [False, True], ids=["renamed", "in-place"])
def test_an_edit_is_followed(directory: Path, in_place: bool) -> None:
    async def check() -> None:
        async with following(directory) as item:
            await item()
            if in_place:
                (directory / "m.yaml").write_text(MORE)
            else:
                replace(directory / "m.yaml", MORE)
            assert "c" in phases_of(await item())

    asyncio.run(check())


def test_an_edit_of_a_json_file_is_followed(directory: Path) -> None:
    def text(mode: str) -> str:
        workloads = [{"name": f"w{n}", "node": "node1", "address": f"10.0.1.{n}", "mode": mode} for n in (1, 2)]
        return json.dumps({"workloads": workloads})

    async def follow() -> None:
        (directory / "more.json").write_text(text("permissive"))
        async with following(directory) as following_item:
            assert len(mesh_of(await following_item()).workloads) == 4
            replace(directory / "more.json", text("strict"))
            mesh = mesh_of(await following_item())
            assert mesh.workloads[WorkloadName("default", "w1")].mode is Mode.STRICT
            replace(directory / "more.json", text("strict")[:-1])
            error = await following_item()
            assert str(error).startswith("more.json:1: expected JSON, found the end of the file at column ")

    asyncio.run(follow())


def test_new_and_removed_files_are_followed(directory: Path) -> None:
    async def check() -> None:
        async with following(directory) as item:
            await item()
            extra = directory / "extra.yaml"
            extra.write_text("workloads: [{name: d, node: n, address: 10.0.0.4}]\n")
            assert "d" in phases_of(await item())
            extra.unlink()
            assert "d" not in phases_of(await item())

    asyncio.run(check())


def test_publications_are_followed_from_the_first(directory: Path) -> None:
    async def check() -> None:
        async with following(directory) as item:
            await item()
            publish(directory, "node2", [B])
            assert phases_of(await item())["b"] is Phase.ENROLLED
            withdraw(directory, "node2")
            assert phases_of(await item())["b"] is Phase.ABSENT

    asyncio.run(check())


def test_a_bad_edit_is_told_and_a_good_one_clears_it(directory: Path) -> None:
    async def check() -> None:
        async with following(directory) as item:
            first = mesh_of(await item())
            replace(directory / "m.yaml", STATE.replace("10.0.0.2", "10.0.0.999"))
            assert error_of(await item()) == (
                "m.yaml:4: workloads[1].address: expected an IPv4 or IPv6 address, found '10.0.0.999'"
            )
            replace(directory / "m.yaml", STATE)
            assert mesh_of(await item()) == first

    asyncio.run(check())


def test_publications_are_followed_while_the_state_is_broken(directory: Path) -> None:
    async def check() -> None:
        async with following(directory) as item:
            await item()
            replace(directory / "m.yaml", "}")
            error = error_of(await item())
            publish(directory, "node2", [B])
            assert phases_of(await item())["b"] is Phase.ENROLLED
            assert error_of(await item()) == error

    asyncio.run(check())


def test_a_broken_state_at_the_start_is_told_and_then_followed(directory: Path) -> None:
    (directory / "m.yaml").write_text("}")

    async def check() -> None:
        async with following(directory) as item:
            assert "m.yaml:1: expected YAML" in error_of(await item())
            replace(directory / "m.yaml", STATE)
            assert set(phases_of(await item())) == {"a", "b"}

    asyncio.run(check())


def test_what_alters_nothing_is_not_told(directory: Path) -> None:
    async def check() -> None:
        async with following(directory) as item:
            await item()
            replace(directory / "m.yaml", "# a comment\n" + STATE)
            (directory / "notes.txt").write_text("x")
            (directory / "m.yaml").touch()
            # The next thing that is told is the next that alters something.
            replace(directory / "m.yaml", MORE)
            assert "c" in phases_of(await item())

    asyncio.run(check())


def test_a_file_that_is_being_written_is_not_taken_half(directory: Path) -> None:
    async def check() -> None:
        async with following(directory) as item:
            await item()
            with (directory / "m.yaml").open("w") as file:
                file.write(STATE.splitlines(keepends=True)[0])
                file.flush()
                # Something else that makes the directory be read: the half file must not count.
                publish(directory, "node2", [B])
                assert phases_of(await item()) == {"a": Phase.ABSENT, "b": Phase.ENROLLED}
                file.write("workloads: [{name: z, node: n, address: 10.0.0.9}]\n")
            assert set(phases_of(await item())) == {"z"}

    asyncio.run(check())


def test_a_directory_that_goes_and_comes_back_is_followed(directory: Path) -> None:
    async def check() -> None:
        async with following(directory) as item:
            await item()
            away = directory.with_name("away")
            move(directory, away)
            assert "expected a directory that can be read, found none" in error_of(await item())
            (away / "m.yaml").write_text(MORE)
            away.rename(directory)
            assert "c" in phases_of(await item())
            publish(directory, "node1", [A])
            assert phases_of(await item())["a"] is Phase.ENROLLED

    asyncio.run(check())


def test_a_missing_directory_leaves_publications_as_they_were(directory: Path) -> None:
    publish(directory, "node2", [])

    async def check() -> None:
        async with following(directory) as item:
            before = phases_of(await item())
            move(directory, directory.with_name("away"))
            error_of(await item())
            directory.with_name("away").rename(directory)
            assert phases_of(await item()) == before

    asyncio.run(check())


def test_a_directory_that_is_swapped_by_a_link_is_followed(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "SAFETY", 0.05)
    other = directory.with_name("other")
    other.mkdir()
    (other / "m.yaml").write_text(MORE)
    link = directory.with_name("current")
    link.symlink_to(directory)

    async def check() -> None:
        async with following(link) as item:
            await item()
            new = link.with_name("new")
            new.symlink_to(other)
            new.replace(link)
            assert "c" in phases_of(await item())

    asyncio.run(check())


@pytest.mark.parametrize("in_place", [False, True], ids=["renamed", "in-place"])
def test_without_inotify_changes_are_found_by_comparing(
    directory: Path, in_place: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "open_inotify", lambda: None)
    monkeypatch.setattr(watch, "POLL", 0.05)

    async def check() -> None:
        async with following(directory) as item:
            await item()
            if in_place:
                (directory / "m.yaml").write_text(MORE)
            else:
                replace(directory / "m.yaml", MORE)
            assert "c" in phases_of(await item())
            publish(directory, "node1", [A])
            assert phases_of(await item())["a"] is Phase.ENROLLED

    asyncio.run(check())


def test_ending_the_iteration_closes_the_descriptor(directory: Path) -> None:
    async def check() -> None:
        before = descriptors()
        async with following(directory) as item:
            await item()
        assert descriptors() == before

    asyncio.run(check())


# Large states


def test_the_event_loop_goes_on_while_a_state_is_read(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        loop = asyncio.get_running_loop()
        reading, told = asyncio.Event(), threading.Event()
        combine = directory_module.combine

        def slow_combine(shown: str, files: Iterable[StateFile]) -> Mesh | list[Problem]:
            loop.call_soon_threadsafe(reading.set)
            assert told.wait(20)
            return combine(shown, files)

        monkeypatch.setattr(directory_module, "combine", slow_combine)
        async with following(directory) as item, asyncio.timeout(20):
            waiting = asyncio.create_task(item())
            await reading.wait()
            assert not waiting.done()
            told.set()
            assert phases_of(await waiting) == {"a": Phase.ABSENT, "b": Phase.ABSENT}

    asyncio.run(check())


def test_what_changes_while_a_state_is_read_comes_after_it(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        combine, texts = directory_module.combine, [MORE]

        def combine_and_change(shown: str, files: Iterable[StateFile]) -> Mesh | list[Problem]:
            if texts:
                replace(directory / "m.yaml", texts.pop())
            return combine(shown, files)

        monkeypatch.setattr(directory_module, "combine", combine_and_change)
        async with following(directory) as item:
            assert set(phases_of(await item())) == {"a", "b"}
            assert set(phases_of(await item())) == {"a", "b", "c"}

    asyncio.run(check())


def test_a_change_of_one_file_reads_no_other_again(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        (directory / "n.yaml").write_text("workloads: [{name: n, node: node3, address: 10.0.0.9}]\n")
        publish(directory, "node1", [A])
        read: list[str] = []
        read_document = document.read_document

        def noting(data: bytes, problems: Problems, on_item: OnItem | None = None) -> Mapping | None:
            read.append(problems.file)
            return read_document(data, problems, on_item)

        monkeypatch.setattr(state, "read_document", noting)
        monkeypatch.setattr(publications, "read_document", noting)
        async with following(directory) as item:
            await item()
            assert sorted(read) == ["enrolled/node1.yaml", "m.yaml", "n.yaml"]
            replace(directory / "m.yaml", MORE)
            await item()
            publish(directory, "node2", [B])
            await item()
            assert sorted(read[3:]) == ["enrolled/node2.yaml", "m.yaml"]

    asyncio.run(check())


def test_workloads_that_do_not_change_stay_the_same_objects(directory: Path) -> None:
    async def check() -> None:
        publish(directory, "node1", [A])
        async with following(directory) as item:
            first = mesh_of(await item())
            replace(directory / "m.yaml", MORE.replace("name: b", "mode: strict, name: b"))
            second = mesh_of(await item())
        assert first.workloads[A].phase is Phase.ENROLLED
        assert second.workloads[A] is first.workloads[A]
        assert second.workloads[B] != first.workloads[B]

    asyncio.run(check())


def test_workloads_stay_the_same_objects_when_others_come_before_them(directory: Path) -> None:
    reader = directory_module._Reader(directory)
    first, _ = reader.take(directory_module._Snapshot(directory, frozenset()))
    replace(
        directory / "m.yaml", STATE.replace("- {name: a", "- {name: c, node: node2, address: 10.0.0.3}\n- {name: a")
    )
    second, _ = reader.take(directory_module._Snapshot(directory, frozenset()))
    assert first is not None
    assert second is not None
    assert [second.workloads[name] is first.workloads[name] for name in (A, B)] == [True, True]
    assert len(second.workloads) == 3


def test_a_publication_that_comes_back_as_it_was_counts_again(directory: Path) -> None:
    publish(directory, "node1", [A])
    reader = directory_module._Reader(directory)

    def take() -> Phase:
        mesh, problems = reader.take(directory_module._Snapshot(directory, frozenset()))
        assert mesh is not None
        assert not problems
        return mesh.workloads[A].phase

    assert take() is Phase.ENROLLED
    withdraw(directory, "node1")
    assert take() is Phase.ABSENT
    publish(directory, "node1", [A])
    assert take() is Phase.ENROLLED
