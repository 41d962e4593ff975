"""docs/words.md, made of nodeseal.mesh.reasons."""

from __future__ import annotations

from nodeseal.mesh.reasons import ProblemWord, WhyLimited, WhyNotEnrolled, WhyPlaintext, WhyRefused, Word
from tools.reference import markdown

_HEAD = (
    "# Words",
    "Every reason that nodeseal gives is one of these words, the same in tables, in JSON and in the log. A reason that "
    "is none of them is a sentence, from the system or from OpenSSL, and says itself what is wrong.",
    "This page is made of the code by `make reference`; edit `agent/nodeseal/mesh/reasons.py` instead.",
)
PARTS: tuple[tuple[str, str, type[Word]], ...] = (
    (
        "What is wrong with a node",
        "`nodeseal status` lists these below its table, and `nodeseal status --check` ends with 2 if there is an "
        "error, with 1 if there are only warnings.",
        ProblemWord,
    ),
    (
        "Why a workload is not enrolled",
        "`nodeseal status` shows it in the column ENROLLED, as `no: word`.",
        WhyNotEnrolled,
    ),
    (
        "Why a connection has no mutual TLS",
        "`nodeseal connections` shows it in the column MTLS WITH, as `no: word`.",
        WhyPlaintext,
    ),
    (
        "Why a connection is refused",
        "`nodeseal connections` shows it in the column MTLS WITH, of a workload's own connections that were closed in "
        "the last minute, and in the column WHY of its second table, of peers that were refused.",
        WhyRefused,
    ),
    (
        "Which limit a connection met",
        "The same columns. [Limits](operating.md#limits) says what counts.",
        WhyLimited,
    ),
)
"""Of each part its title, what is said of it, and its words."""


def page() -> str:
    """The whole page, in Markdown."""
    blocks = [_HEAD[0], *map(markdown.paragraph, _HEAD[1:])]
    for title, text, words in PARTS:
        blocks += [f"## {title}", markdown.paragraph(text), "\n".join(map(_item, words))]
    return markdown.page(blocks)


def _item(word: Word) -> str:
    level = f" ({word.level.value})" if isinstance(word, ProblemWord) else ""
    remedy = f" *{word.remedy}*" if word.remedy else ""
    return markdown.item(f"`{word.value}`{level}: {word.meaning}{remedy}")
