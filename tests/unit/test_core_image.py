"""The copy of what a core needs: whole, verified, and gone with its last user."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nodeseal.cores import image as image_module
from nodeseal.cores.core_files import CoreFiles, FileSet, core_files
from nodeseal.cores.image import Image, ImageError, remove_unused, unusable
from nodeseal.linux import elf


@pytest.fixture
def files(tmp_path: Path) -> CoreFiles:
    """A program behind a symbolic link, and a library whose directory is one."""
    source = tmp_path / "source"
    (source / "real").mkdir(parents=True)
    (source / "real" / "library").write_text("library")
    (source / "lib").symlink_to("real")
    (source / "program-3").write_text("program")
    (source / "program-3").chmod(0o755)
    (source / "program").symlink_to(source / "program-3")
    found = FileSet()
    assert found.add(source / "program") == source / "program-3"
    assert found.add(source / "lib" / "library") == source / "real" / "library"
    return CoreFiles(found, (str(source / "program"),), {})


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "image"


def at(image: Image, path: Path) -> Path:
    return image.root / path.relative_to("/")


def test_each_file_is_found_by_its_name(files: CoreFiles, directory: Path, tmp_path: Path) -> None:
    image = Image(directory, files)
    inside = at(image, tmp_path / "source")
    assert (inside / "real" / "library").read_text() == "library"
    assert str((inside / "lib").readlink()) == "real"
    assert (inside / "program").readlink() == tmp_path / "source" / "program-3"
    assert os.access(inside / "program-3", os.X_OK)
    assert not os.access(inside / "real" / "library", os.X_OK)
    image.close()


def test_copy_that_is_there_is_used(files: CoreFiles, directory: Path) -> None:
    first = Image(directory, files)
    number = first.root.stat().st_ino
    first.close()
    second = Image(directory, files)
    assert (second.root, second.root.stat().st_ino) == (first.root, number)
    second.close()


@pytest.mark.parametrize("damage", ["changed", "emptied", "missing", "more", "not a program"])
def test_damaged_copy_is_made_anew(files: CoreFiles, directory: Path, tmp_path: Path, damage: str) -> None:
    first = Image(directory, files)
    library = at(first, tmp_path / "source" / "real" / "library")
    match damage:
        case "changed":
            library.write_text("Library")
        case "emptied":  # as after a power cut
            library.write_text("")
        case "missing":
            library.unlink()
        case "more":
            library.with_name("another").write_text("")
        case _:
            at(first, tmp_path / "source" / "program-3").chmod(0o644)
    first.close()
    second = Image(directory, files)
    assert second.root == first.root
    assert library.read_text() == "library"
    assert not library.with_name("another").exists()
    assert os.access(at(second, tmp_path / "source" / "program-3"), os.X_OK)
    assert sorted(path.name for path in directory.iterdir()) == [second.digest, f"{second.digest}.lock"]
    second.close()


def test_another_version_is_another_copy(files: CoreFiles, directory: Path, tmp_path: Path) -> None:
    first = Image(directory, files)
    (tmp_path / "source" / "real" / "library").write_text("library 2")
    second = Image(directory, files)
    assert second.root != first.root
    assert remove_unused(directory) == []
    first.close()
    assert remove_unused(directory) == [first.root]
    assert second.root.is_dir()
    second.close()
    assert remove_unused(directory) == [second.root]
    assert list(directory.iterdir()) == []


def test_copy_stays_while_a_process_that_got_its_lock_runs(files: CoreFiles, directory: Path) -> None:
    image = Image(directory, files)
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=(image.lock,))
    image.close()
    assert remove_unused(directory) == []
    child.communicate()
    assert remove_unused(directory) == [image.root]


def test_nothing_is_left_of_a_copy_that_failed(
    files: CoreFiles, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copyfile(source: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(image_module.shutil, "copyfile", copyfile)
    with pytest.raises(ImageError, match="No space left on device"):
        Image(directory, files)
    assert [path.suffix for path in directory.iterdir()] == [".lock"]


def test_nothing_stays_of_whoever_is_killed_while_it_copies(
    files: CoreFiles, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def copyfile(source: Path, target: Path) -> Path:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(image_module, "_remove", lambda _root: None)
        patch.setattr(image_module.shutil, "copyfile", copyfile)
        with pytest.raises(Killed):
            Image(directory, files)
    assert len(list(directory.iterdir())) == 2, "the draft and the lock"
    assert remove_unused(directory) == []
    assert list(directory.iterdir()) == []


def test_draft_stays_as_long_as_anybody_makes_it(files: CoreFiles, directory: Path) -> None:
    making = Image(directory, files)
    draft = image_module._draft(making.root)
    draft.mkdir()
    remove_unused(directory)
    assert draft.is_dir()
    making.close()
    remove_unused(directory)
    assert list(directory.iterdir()) == []


def test_directory_that_others_can_change_is_refused(files: CoreFiles, directory: Path) -> None:
    directory.mkdir()
    directory.chmod(0o777)
    with pytest.raises(ImageError, match="others can change"):
        Image(directory, files)


def test_unusable_directories(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert unusable(tmp_path / "file" / "image") == f"{tmp_path / 'file'} is not a directory"
    assert unusable(tmp_path / "new" / "image") is None


def test_links_that_lead_round_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="too many symbolic links"):
        FileSet().add(tmp_path / "a")


def test_what_a_core_imports_is_among_its_files() -> None:
    program = (
        "import sys; from nodeseal.splice import native, process; native.load(); import hashlib; "
        "print(*(m.__file__ for m in sys.modules.values() if getattr(m, '__file__', None)), sep='\\n')"
    )
    found = core_files()
    done = subprocess.run(
        (*found.command[:3], "-c", program), env=found.environment, capture_output=True, text=True, check=True
    )
    assert "nodeseal/splice/process.py" in done.stdout
    copied = found.found.files
    assert [line for line in done.stdout.splitlines() if Path(line).resolve() not in copied] == []


def test_linker_and_libraries_of_a_program() -> None:
    linker = elf.interpreter(Path(sys.executable).resolve())
    assert linker.name.startswith("ld-linux")
    found = elf.libraries(Path(sys.executable).resolve(), linker)
    assert found is not None
    assert any(path.name.startswith("libc.so") for path in found)
    with pytest.raises(ValueError, match="is no 64-bit ELF program"):
        elf.interpreter(Path(__file__))
