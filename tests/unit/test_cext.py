"""The C core's parts under AddressSanitizer and UndefinedBehaviorSanitizer: every TEST of tests/cext/test_*.c.

Each of the core's sources is compiled to one object that all test programs link, and so is what test programs share: a
source of tests/cext that has a header, linked to those that include it. What did not change since the last run is not
built again. Every C test then runs in a process of its own, so that a failing one is named and cannot disturb the
others. No privileges are needed.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support import fips_module
from support.kept import kept_in

CHECKOUT = Path(__file__).resolve().parents[2]
TESTS = CHECKOUT / "tests" / "cext"
SOURCES = CHECKOUT / "cext" / "src"

COMPILE = [
    "gcc",
    "-std=gnu11",
    "-g",
    "-O1",
    "-fno-omit-frame-pointer",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    "-Wall",
    "-Wextra",
    "-Werror",
    *(f"-I{directory}" for directory in (CHECKOUT / "cext" / "include", SOURCES, TESTS)),
]
LIBRARIES = ["-lssl", "-lcrypto", "-lnghttp2", "-lpthread"]
TEST_PATTERN = re.compile(r"^TEST\((\w+)\)$", re.MULTILINE)
INCLUDE_PATTERN = re.compile(r'^#include "(\w+)\.h"$', re.MULTILINE)
WRAP_PATTERN = re.compile(r"__wrap_(\w+)\(")
COMPILE_SECONDS = 120
RUN_SECONDS = 60

# The pointer is volatile, not what it points to: else the compiler leaves malloc out, and nothing leaks.
LEAK = "#include <stdlib.h>\nint main(void) { char *volatile p = malloc(9); p = NULL; return p != NULL; }\n"
UNDER_PTRACE = "LeakSanitizer has encountered a fatal error"


def names_in(program: Path) -> list[str]:
    """The names of the C tests in a source, in order."""
    return TEST_PATTERN.findall(program.read_text(encoding="utf-8"))


PROGRAMS = sorted(TESTS.glob("test_*.c"))
SHARED = sorted(set(TESTS.glob("*.c")) - set(PROGRAMS))
CASES = [
    pytest.param(program.stem, name, id=f"{program.stem}-{name}") for program in PROGRAMS for name in names_in(program)
]

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")


def gcc(*arguments: str | Path) -> None:
    """Runs the compiler. Raises AssertionError with what it said."""
    command = [*COMPILE, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_SECONDS)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"


class Builder:
    """Builds into a directory what is not there yet; a file's name says what it was made of."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._built: set[Path] = set()
        headers = sorted([*CHECKOUT.glob("cext/**/*.h"), *TESTS.glob("*.h")])
        compiler = subprocess.run(["gcc", "--version"], capture_output=True, check=True, timeout=COMPILE_SECONDS).stdout
        self._context = b"\0".join([compiler, repr(COMPILE).encode(), *(header.read_bytes() for header in headers)])

    def build(self, source: Path, *arguments: str | Path) -> Path:
        """The output of the compiler for a source. `arguments`: what else it is given; of files in the directory the
        names are enough."""
        digest = hashlib.sha256(self._context + repr(arguments).encode() + source.read_bytes()).hexdigest()[:16]
        output = self._directory / f"{source.stem}-{digest}"
        if not output.exists():
            draft = output.with_suffix(".new")
            gcc(source, *arguments, "-o", draft)
            draft.rename(output)
        self._built.add(output)
        return output

    def forget_others(self) -> None:
        """Removes what was built of what is no longer there."""
        for path in set(self._directory.iterdir()) - self._built:
            path.unlink()


def shared_by(program: Path) -> list[Path]:
    """The sources that a test program shares with others: of the headers that it includes, or that these include."""
    found = [program]
    for source in found:  # grows meanwhile
        names = INCLUDE_PATTERN.findall(source.read_text(encoding="utf-8"))
        files = [TESTS / f"{name}.{suffix}" for name in names for suffix in "hc"]
        found += [file for file in files if file.exists() and file not in found]
    return [file for file in found if file in SHARED]


def link(builder: Builder, program: Path, core: Iterable[Path], shared: dict[Path, Path]) -> Path:
    """Builds one test program; functions that it, or what it shares, defines as __wrap_NAME replace NAME everywhere."""
    parts = shared_by(program)
    text = "".join(source.read_text(encoding="utf-8") for source in (program, *parts))
    wraps = (f"-Wl,--wrap={name}" for name in sorted(set(WRAP_PATTERN.findall(text))))
    return builder.build(program, *wraps, *(shared[part] for part in parts), *core, *LIBRARIES)


@pytest.fixture(scope="session")
def programs() -> dict[str, Path]:
    """The compiled test programs by name."""
    with kept_in("cext") as directory, ThreadPoolExecutor(os.cpu_count()) as pool:
        builder = Builder(directory)

        def objects(sources: list[Path]) -> dict[Path, Path]:
            return dict(zip(sources, pool.map(lambda source: builder.build(source, "-c"), sources), strict=True))

        core, shared = objects(sorted(SOURCES.rglob("*.c"))), objects(SHARED)
        linked = pool.map(lambda program: link(builder, program, core.values(), shared), PROGRAMS)
        outputs = {program.stem: output for program, output in zip(PROGRAMS, linked, strict=True)}
        builder.forget_others()
    return outputs


@pytest.fixture(scope="session")
def sanitizer_options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of the test programs; looks for leaks where LeakSanitizer works (not under ptrace, say)."""
    build = tmp_path_factory.mktemp("leak")
    (build / "leak.c").write_text(LEAK, encoding="utf-8")
    gcc(build / "leak.c", "-o", build / "leak")
    environment = dict(os.environ, UBSAN_OPTIONS="print_stacktrace=1")
    environment["ASAN_OPTIONS"] = "detect_leaks=1:abort_on_error=0"
    if (configuration := fips_module.configuration(build)) is not None:
        environment["NODESEAL_TEST_FIPS"] = str(configuration)
    probe = subprocess.run([build / "leak"], env=environment, capture_output=True, text=True, timeout=RUN_SECONDS)
    if UNDER_PTRACE in probe.stderr:
        environment["ASAN_OPTIONS"] = "detect_leaks=0:abort_on_error=0"
    else:
        assert "detected memory leaks" in probe.stderr, f"the leak of a test program was not seen\n{probe.stderr}"
    return environment


@pytest.mark.parametrize(("program", "name"), CASES)
def test_c(program: str, name: str, programs: dict[str, Path], sanitizer_options: dict[str, str]) -> None:
    done = subprocess.run(
        [programs[program], name], env=sanitizer_options, capture_output=True, text=True, timeout=RUN_SECONDS
    )
    assert done.returncode == 0, f"{program} {name} ended with {done.returncode}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("program", [program.stem for program in PROGRAMS])
def test_program_lists_every_test_of_its_source(
    program: str, programs: dict[str, Path], sanitizer_options: dict[str, str]
) -> None:
    done = subprocess.run(
        [programs[program], "--list"], env=sanitizer_options, capture_output=True, text=True, timeout=RUN_SECONDS
    )
    assert done.stdout.split() == names_in(TESTS / f"{program}.c")


def test_a_name_that_is_no_test_fails(programs: dict[str, Path], sanitizer_options: dict[str, str]) -> None:
    command = [str(next(iter(programs.values()))), "no_such_test"]
    done = subprocess.run(command, env=sanitizer_options, capture_output=True, text=True, timeout=RUN_SECONDS)
    assert done.returncode == 2
