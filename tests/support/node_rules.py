"""Which netfilter rules the nodes of the tests' labs have: `pytest --node-rules KIND`, none otherwise.

As with the number of workers (workers.py), the choice travels in the environment; a test may give its lab another one.
"""

from __future__ import annotations

import os

from nodeseal_lab.plan import NODE_RULES

ENVIRONMENT = "NODESEAL_TEST_NODE_RULES"


def parse_node_rules(text: str) -> str:
    """A kind by its name. Raises ValueError, with what was expected."""
    if text not in NODE_RULES:
        raise ValueError(f"expected {', '.join(NODE_RULES[:-1])} or {NODE_RULES[-1]}, found '{text}'")
    return text


def asked_node_rules() -> str:
    """The kind that was asked for; "" when none was. Raises ValueError."""
    text = os.environ.get(ENVIRONMENT)
    return parse_node_rules(text) if text else ""
