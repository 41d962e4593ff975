"""One thing that is wrong with a node, for people. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from nodeseal.mesh.reasons import ProblemWord


@dataclass(frozen=True, slots=True)
class Problem:
    """See nodeseal.node.problems for where they are collected. `text`: what and where, one line without a full stop;
    `remedy`: what to do, the same; `about`: the workload or node that it concerns, if it is one."""

    word: ProblemWord
    text: str
    remedy: str
    about: str | None = None
