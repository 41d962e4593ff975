"""Stacks of samples: read from `perf script`, folded, and summed up by module and symbol. No I/O.

A stack is a tuple of frames, the outermost first. What is folded away, so that pictures of different runs and
machines look alike:

* the frames above a thread's own first function (clone3, start_thread) and the two of the kernel's entry, which are
  part of every stack; and frames of no module, which an unwinder leaves where it gave up;
* several frames without a symbol in a row, as stripped libraries have them: one frame that is named for the module.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import PurePath
from typing import NamedTuple

GROUPS = ("kernel", "libcrypto", "libssl", "nghttp2", "libc", "core", "python", "other")

CORE_MODULE = "_core.abi3.so"

_THREAD = re.compile(r"^\S.*?\s+(\d+)/\d+\s*$")
_FRAME = re.compile(r"^\s+[0-9a-f]+ (.*) \((.*)\)$")
_NO_MODULE = "[unknown]"
_BEGINNINGS = frozenset({"clone3", "__clone3", "clone", "start_thread", "_start", "__libc_start_main"})
_KERNEL_ENTRY = frozenset({"entry_SYSCALL_64_after_hwframe", "do_syscall_64", "x64_sys_call"})
_LIBRARIES = (
    ("libcrypto", "libcrypto"),
    ("libssl", "libssl"),
    ("libnghttp2", "nghttp2"),
    ("libc.so", "libc"),
    ("libc-", "libc"),
    ("ld-linux", "libc"),
    ("[vdso]", "libc"),
    (CORE_MODULE, "core"),
    ("python", "python"),
    ("libpython", "python"),
    ("_cffi_backend", "python"),
)


class Frame(NamedTuple):
    """A function in a module, `symbol` "[MODULE]" when it has no name."""

    symbol: str
    module: str

    @property
    def named(self) -> bool:
        return not self.symbol.startswith("[")


Stack = tuple[Frame, ...]
Folded = Counter[Stack]


class SymbolTime(NamedTuple):
    """Samples in a function itself. `place`: for a function without a name, the named one of its module around it."""

    samples: int
    frame: Frame
    place: str


def group_of(module: str) -> str:
    """One of GROUPS. What is not nodeseal's, such as another proxy's program, is "other"."""
    for beginning, group in _LIBRARIES:
        if module.startswith(beginning):
            return group
    # "[kernel.kallsyms]", or a kernel module's name in brackets; BPF programs run in the kernel too.
    in_kernel = (module.startswith("[") and module != _NO_MODULE) or module.startswith("bpf_prog_")
    return "kernel" if in_kernel else "other"


def fold_script(text: str, side_of: Callable[[int], str] = lambda _: "") -> Folded:
    """Folds the output of `perf script -F comm,pid,tid,ip,sym,dso`. `side_of(pid)`: a name that becomes the outermost
    frame; none when it is empty."""
    folded: Folded = Counter()
    for sample in text.split("\n\n"):
        lines = sample.strip("\n").split("\n")
        thread = _THREAD.match(lines[0])
        if thread is None:
            continue
        frames = [Frame(*match.groups()) for line in lines[1:] if (match := _FRAME.match(line))]
        side = side_of(int(thread[1]))
        stack = ((Frame(side, ""),) if side else ()) + tidy(tuple(reversed(frames)))
        if stack:
            folded[stack] += 1
    return folded


def tidy(stack: Stack) -> Stack:
    """Folds away what the module's docstring says. `module` of the frames given: a path, as perf prints it."""
    frames: list[Frame] = []
    for number, (symbol, path) in enumerate(stack, 1):
        module = PurePath(path).name or path
        beginning = not frames and symbol in _BEGINNINGS
        entry = symbol in _KERNEL_ENTRY and number < len(stack)
        if module == _NO_MODULE or beginning or entry:
            continue
        frame = Frame(f"[{module.strip('[]')}]" if symbol == "[unknown]" else symbol, module)
        if frames and not frame.named and frames[-1] == frame:
            continue
        frames.append(frame)
    if not frames and stack:
        return (Frame("[unknown]", _NO_MODULE),)
    return tuple(frames)


def group_shares(folded: Folded) -> dict[str, float]:
    """The share of each of GROUPS in the samples, by the innermost frame; 0..1."""
    counts = Counter[str]()
    for stack, samples in folded.items():
        counts[group_of(stack[-1].module)] += samples
    total = folded.total()
    return {group: counts[group] / total if total else 0.0 for group in GROUPS}


def top_symbols(folded: Folded, limit: int) -> list[SymbolTime]:
    """The functions with the most samples of their own, the most first."""
    counts = Counter[tuple[Frame, str]]()
    for stack, samples in folded.items():
        counts[stack[-1], _place(stack)] += samples
    return [SymbolTime(samples, frame, place) for (frame, place), samples in counts.most_common(limit)]


def _place(stack: Stack) -> str:
    leaf = stack[-1]
    if leaf.named:
        return ""
    around = (frame.symbol for frame in reversed(stack[:-1]) if frame.module == leaf.module and frame.named)
    return next(around, "")


def core_functions(folded: Folded, limit: int) -> list[tuple[str, int, list[tuple[str, int]]]]:
    """By the core's own functions: the innermost one of each stack with its samples, and what it was waiting for: the
    function called from there out of the core ("-" when it was itself running). The most first."""
    counts = Counter[str]()
    callees: dict[str, Counter[str]] = {}
    for stack, samples in folded.items():
        inner = max((number for number, frame in enumerate(stack) if frame.module == CORE_MODULE), default=None)
        if inner is None:
            continue
        name = stack[inner].symbol
        callee = stack[inner + 1].symbol if inner + 1 < len(stack) else "-"
        counts[name] += samples
        callees.setdefault(name, Counter())[callee] += samples
    return [(name, samples, callees[name].most_common(5)) for name, samples in counts.most_common(limit)]
