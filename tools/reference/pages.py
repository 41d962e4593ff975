"""Every file that is made of the code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tools.reference import certificate_service, core_protocol, json_output, local_api, markdown, mesh_files, words

_INDEX = (
    ("local-api", "The local API", "what the agent answers on its Unix socket, with `curl`"),
    ("json-output", "JSON output", "what each command prints with `-o json`"),
    ("mesh-files", "Files of a mesh state", "the fields of the files in a mesh directory"),
    ("certificate-service", "The certificate service's API", "what agents and `nodeseal ca serve` say to each other"),
    ("core-protocol", "The core protocol", "what an agent and a core say to each other"),
)


def index() -> str:
    """docs/reference/README.md."""
    items = [
        markdown.item(f"[{title}]({name}.md): {what}; [JSON Schema](schema/{name}.json)")
        for name, title, what in _INDEX
    ]
    items.append(markdown.item("[Words](../words.md): every reason that nodeseal gives"))
    said = "These pages are made of the code: `make reference` writes them, and a test fails when one is stale."
    return markdown.page(["# Reference", markdown.paragraph(said), "\n".join(items)])


PAGES: Final[dict[str, Callable[[], str]]] = {
    "docs/words.md": words.page,
    "docs/reference/README.md": index,
    "docs/reference/local-api.md": local_api.page,
    "docs/reference/json-output.md": json_output.page,
    "docs/reference/mesh-files.md": mesh_files.page,
    "docs/reference/certificate-service.md": certificate_service.page,
    "docs/reference/core-protocol.md": core_protocol.page,
    "docs/reference/schema/local-api.json": local_api.schema,
    "docs/reference/schema/json-output.json": json_output.schema,
    "docs/reference/schema/mesh-files.json": mesh_files.schema,
    "docs/reference/schema/certificate-service.json": certificate_service.schema,
    "docs/reference/schema/core-protocol.json": core_protocol.schema,
}
"""Path in the repository -> what makes its content."""
