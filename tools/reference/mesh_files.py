"""docs/reference/mesh-files.md: the files of a mesh state."""

from __future__ import annotations

from nodeseal.documents.bulk import TRUST_DOMAIN
from nodeseal.documents.readers import READERS
from tools.reference import fields, markdown, schemas
from tools.reference.fields import Message

ENTRIES: dict[str, Message] = {name: reader.entry for name, reader in READERS.items()}

_HEAD = (
    "The fields of the files in a mesh directory, as YAML or as JSON. [The mesh state](../mesh-state.md) says what "
    "they mean and has examples; `nodeseal mesh check` says what is wrong with a file, and where.",
    "A file is a mapping with any of these fields. The lists of all files are put together.",
)


def page() -> str:
    """The whole page."""
    lists = [f"`{name}` (list of {markdown.link(entry)})" for name, entry in ENTRIES.items()]
    items = [f"`{TRUST_DOMAIN}` (string): The trust domain of all identities; in one of the files.", *lists]
    blocks = ["# Files of a mesh state", *map(markdown.paragraph, _HEAD), "\n".join(map(markdown.item, items))]
    for message in fields.messages(*ENTRIES.values()):
        blocks += markdown.section(message, level=2, optional=True)
    return markdown.page(blocks)


def schema() -> str:
    """Of a file."""
    lists = {name: {"type": "array", "items": {"$ref": f"#/$defs/{entry.__name__}"}} for name, entry in ENTRIES.items()}
    properties = {TRUST_DOMAIN: {"type": "string"}, **lists}
    whole = {"type": "object", "properties": properties, "additionalProperties": False}
    return schemas.schema("A file of a mesh state of nodeseal", tuple(ENTRIES.values()), whole)
