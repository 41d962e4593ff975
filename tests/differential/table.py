"""Writes docs/what-applications-notice.md from the cases: `python -m differential.table`, with tests/ in PYTHONPATH;
`make reference` calls it."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from tools.reference.markdown import item, page, paragraph

from differential.case import CASES, Case, Notice
from differential.setting import EVERYWHERE, Relation

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "what-applications-notice.md"
ALL_VERSIONS = (4, 6)


def main() -> None:
    """In the repository that this file is in."""
    PAGE.write_text(text())


def all_cases() -> list[Case]:
    """Of all modules, in the order of their names."""
    for path in sorted(HERE.glob("test_*.py")):
        importlib.import_module(f"differential.{path.stem}")
    return sorted(CASES, key=lambda case: (case.module, case.function.__code__.co_firstlineno))


def text() -> str:
    """The page."""
    return page(_blocks(all_cases()))


def _blocks(cases: Sequence[Case]) -> Iterator[str]:
    settings = sum(len(case.settings) for case in cases)
    same = sum(1 for case in cases for setting in case.settings if not any(n.holds(setting) for n in case.notices))
    yield "# What applications notice"
    yield paragraph(
        f"The differential suite (tests/differential) runs {len(cases)} cases in a lab that is enrolled and in the "
        "same lab without nodeseal, and compares what the applications saw: errors, times, addresses, ports, bytes and "
        f"their order. With the relations and families in which each runs, these are {settings} comparisons. In {same} "
        f"of them nothing differs, and in {settings - same} there is a difference that this page names. The page is "
        "made from the cases (`make reference`). A difference that is not here fails the tests, and so does one that "
        "is here and is gone."
    )
    yield paragraph(
        "The labs have `connect: truthful` and `plaintext: native`. With `plaintext: proxied`, plaintext is relayed by "
        "the core of the end that is enrolled: what is said below of sizes of segments, marks, urgent data and silence "
        "between two enrolled workloads holds for it as well. The server sees another port of the client then, and "
        "who is not enrolled is accepted before it is known whether the application listens."
    )
    yield "## What differs, and why"
    reasons: dict[str, dict[tuple[Case, str], list[str]]] = {}
    for case in cases:
        for notice in case.notices:
            where = _where(_relations(case, notice), _versions(case, notice))
            noticed = reasons.setdefault(notice.why, {}).setdefault((case, where), [])
            noticed.append(f"{notice.key}: {notice.what}")
    if not reasons:
        yield "Nothing."
    for why, found in reasons.items():
        yield paragraph(why)
        yield "\n".join(
            item(f"{case.summary} **{'; '.join(noticed)}** ({where})") for (case, where), noticed in found.items()
        )
    yield "## What was compared"
    yield paragraph("A client and a server are pods on different nodes, and both enrolled, where nothing else is said.")
    modules: dict[str, list[Case]] = {}
    for case in cases:
        modules.setdefault(case.module, []).append(case)
    for module, those in modules.items():
        yield f"### {_heading(module)}"
        yield "\n".join(item(f"{case.summary}{_more(case)}") for case in those)


def _heading(module: str) -> str:
    doc = importlib.import_module(module).__doc__ or ""
    return " ".join(doc.split("\n\n")[0].split()).partition(":")[0].rstrip(".")


def _relations(case: Case, notice: Notice) -> list[Relation]:
    return _unique(setting.relation for setting in case.settings if notice.holds(setting))


def _versions(case: Case, notice: Notice) -> list[int]:
    return _unique(setting.version for setting in case.settings if notice.holds(setting))


def _more(case: Case) -> str:
    relations = _unique(setting.relation for setting in case.settings)
    versions = _unique(setting.version for setting in case.settings)
    if [one.name for one in relations] == ["mesh"] and versions == [4]:
        return ""
    return f" ({_where(relations, versions)})"


def _where(relations: Sequence[Relation], versions: Sequence[int]) -> str:
    where = "in every relation" if tuple(relations) == EVERYWHERE else "; ".join(one.words for one in relations)
    families = "IPv4 and IPv6" if tuple(versions) == ALL_VERSIONS else f"IPv{versions[0]}"
    return f"{where}; {families}"


def _unique(values: Iterator[Relation] | Iterator[int]) -> list:  # type: ignore[type-arg]
    return list(dict.fromkeys(values))


if __name__ == "__main__":
    main()
