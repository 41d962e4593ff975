"""The BPF programs as the compiler gets them: one text for each, with the headers that several have in common."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from nodeseal.capture.bpf import sources
from nodeseal.capture.bpf.compile import compile_in_child
from nodeseal.capture.errors import CaptureError
from support.namespaces import needs_root


def write(directory: Path, **texts: str) -> Path:
    """Sources by name, "__" for a slash, and nodeseal.h."""
    for name, text in {"nodeseal_h": "", **texts}.items():
        path = directory / re.sub(r"_(?=[ch]$)", ".", name).replace("__", "/")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return directory


def test_every_program_is_there() -> None:
    assert sorted(path.stem for path in sources.source_directory().glob("*.c")) == sorted(sources.PROGRAMS)


def test_header_stands_once_where_it_is_included_first(tmp_path: Path) -> None:
    directory = write(
        tmp_path,
        a_c='#include "lib/one.h"\n#include "lib/two.h"\nint a;\n',
        lib__one_h='#include "lib/two.h"\nint one;\n',
        lib__two_h="int two;\n",
    )
    assert sources.text_of(directory, "a").splitlines() == [
        '#line 1 "a.c"',
        '#line 1 "lib/one.h"',
        '#line 1 "lib/two.h"',
        "int two;",
        '#line 2 "lib/one.h"',
        "int one;",
        '#line 2 "a.c"',
        "",
        "int a;",
    ]


def test_line_numbers_stay_right_after_a_header_that_is_there_already(tmp_path: Path) -> None:
    directory = write(tmp_path, a_c='#include "b.h"\n#include "b.h"\nint a;\n', b_h="int b;\n")
    assert sources.text_of(directory, "a").endswith('#line 2 "a.c"\n\nint a;\n')


def test_header_that_is_missing_is_named(tmp_path: Path) -> None:
    directory = write(tmp_path, a_c='#include "lib/none.h"\n')
    with pytest.raises(CaptureError, match=r"cannot read .*/lib/none\.h: No such file or directory; install nodeseal"):
        sources.text_of(directory, "a")


def test_maps_and_functions_stand_once() -> None:
    texts = [path.read_text() for path in sources.files(sources.source_directory())]
    maps = [
        name for text in texts for name in re.findall(r"^BPF_(?:F_)?TABLE\((?:.+?, ){3}(\w+), ", text, re.MULTILINE)
    ]
    functions = [
        name for text in texts for name in re.findall(r"^(?:static )?[\w *]+?\b(\w+)\([^;]*?\)\n\{", text, re.MULTILINE)
    ]
    assert {"bypass", "counters", "enrolled", "host_listeners"} < set(maps)
    assert {"count", "mark", "steer_ingress"} < set(functions)
    # Who a socket belongs to is asked in two ways: lib/mark.h names the functions that differ.
    twice = {name for name, times in Counter(maps + functions).items() if times > 1}
    assert twice == {"is_own", "owner_of", "unguarded"}


@needs_root
def test_message_of_the_compiler_names_the_file_and_the_line(tmp_path: Path) -> None:
    for path in sources.files(original := sources.source_directory()):
        copy = tmp_path / path.relative_to(original)
        copy.parent.mkdir(exist_ok=True)
        copy.write_text(path.read_text())
    header = tmp_path / "lib" / "counters.h"
    header.write_text(header.read_text().replace("*value += 1;", "*valeu += 1;"))
    line = next(number for number, line in enumerate(header.read_text().splitlines(), 1) if "valeu" in line)
    with pytest.raises(
        CaptureError, match=rf"^cannot compile .*/mark_connect\.c: lib/counters\.h:{line}:\d+: error: use of"
    ):
        compile_in_child(tmp_path)
