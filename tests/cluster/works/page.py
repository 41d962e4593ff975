"""Writes docs/kubernetes-what-keeps-working.md from the rows: `python -m cluster.works.page`, with tests/ in
PYTHONPATH; `make reference` calls it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tools.reference.markdown import item, page, paragraph

from cluster.works.rows import NOT_TRIED, PARTS

PAGE = Path(__file__).resolve().parents[3] / "docs" / "kubernetes-what-keeps-working.md"


def main() -> None:
    """In the repository that this file is in."""
    PAGE.write_text(text())


def text() -> str:
    """The page."""
    return page(_blocks())


def _blocks() -> Iterator[str]:
    yield "# What keeps working in a cluster"
    yield paragraph(
        "Each row of this page was tried on real nodes: `make cluster-works` tries all of them, in permissive pods and "
        "in strict ones, and the page is made of the same rows. Where a connection to a Service goes is in "
        "[kubernetes-services.md](kubernetes-services.md), which `python -m cluster services` compares with the real "
        "kube-proxy."
    )
    for heading, rows in PARTS.items():
        yield f"## {heading}"
        yield "\n".join(
            item(f"`{row.name}`: {row.what} **Permissive:** {row.permissive} **Strict:** {row.strict}") for row in rows
        )
    yield "## What was not tried"
    yield "\n".join(map(item, NOT_TRIED))


if __name__ == "__main__":
    main()
