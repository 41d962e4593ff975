"""docs/words.md, made of nodeseal.mesh.reasons: `python -m nodeseal.cli.words > docs/words.md` (or `make words`)."""

from __future__ import annotations

import textwrap

from nodeseal.mesh.reasons import ProblemWord, WhyLimited, WhyNotEnrolled, WhyPlaintext, WhyRefused, Word

_WIDTH = 110
_HEAD = (
    "# Words",
    "Every reason that nodeseal gives is one of these words, the same in tables, in JSON and in the log. A reason that "
    "is none of them is a sentence, from the system or from OpenSSL, and says itself what is wrong.",
    "This page is made of the code by `make words`; edit `agent/nodeseal/mesh/reasons.py` instead.",
)
_PARTS: tuple[tuple[str, str, type[Word]], ...] = (
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


def page() -> str:
    """The whole page, in Markdown."""
    blocks = [_HEAD[0], *(textwrap.fill(text, _WIDTH, break_on_hyphens=False) for text in _HEAD[1:])]
    for title, text, words in _PARTS:
        blocks += [f"## {title}", textwrap.fill(text, _WIDTH, break_on_hyphens=False), _table(words)]
    return "\n\n".join(blocks) + "\n"


def _table(words: type[Word]) -> str:
    level = issubclass(words, ProblemWord)
    lines = ["| word | level | meaning | what to do |", "|---|---|---|---|"] if level else []
    lines = lines or ["| word | meaning | what to do |", "|---|---|---|"]
    for word in words:
        cells = [f"`{word.value}`"]
        if isinstance(word, ProblemWord):
            cells.append(word.level.value)
        lines.append(f"| {' | '.join([*cells, word.meaning, word.remedy])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(page(), end="")
