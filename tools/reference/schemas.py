"""JSON Schema (draft 2020-12) of messages, with what the reference says of each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from tools.reference import fields
from tools.reference.fields import Message

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_REFERENCE = "#/$defs/{name}"


def schema(title: str, messages: Sequence[Message], whole: Mapping[str, Any] | None = None) -> str:
    """Of all `messages` and what is in them, under "$defs"; `whole`: what a document must be, by default any of
    them."""
    references, definitions = msgspec.json.schema_components(messages, ref_template=_REFERENCE)
    for message in fields.messages(*messages):
        definition = definitions[message.__name__]
        definition.pop("title", None)
        meanings = {field.name: field.meaning for field in fields.fields(message)}
        for name, one in definition.get("properties", {}).items():
            if meanings.get(name):
                one["description"] = meanings[name]
    content = {"$schema": _DIALECT, "title": title, **(whole or {"anyOf": list(references)}), "$defs": definitions}
    return json.dumps(content, indent=2, default=str) + "\n"
