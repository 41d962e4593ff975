"""Writes what is installed here, as SPDX 2.3 in JSON: Debian's packages, and those of this interpreter.

The generators that there are know one of both, or bring more packages than they would find here. Nothing in it differs
from build to build: the time is SOURCE_DATE_EPOCH, the namespace a digest of the rest.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

STATUS = Path("/var/lib/dpkg/status")
_NOT_AN_ID = re.compile(r"[^A-Za-z0-9.-]+")
Package = dict[str, Any]


def document(packages: list[Package], created: int) -> dict[str, Any]:
    """https://spdx.github.io/spdx-spec/v2.3/; `created`: in seconds since 1970."""
    digest = hashlib.sha256(json.dumps(packages, sort_keys=True).encode()).hexdigest()
    name = "SPDXRef-DOCUMENT"
    return {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": name,
        "name": "nodeseal-image",
        "documentNamespace": f"https://nodeseal.io/spdx/{digest}",
        "creationInfo": {
            "created": datetime.fromtimestamp(created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "creators": ["Tool: nodeseal-image"],
        },
        "packages": packages,
        "relationships": [
            {"spdxElementId": name, "relationshipType": "DESCRIBES", "relatedSpdxElement": one["SPDXID"]}
            for one in packages
        ],
    }


def debian_packages(status: str) -> Iterator[Package]:
    """Of dpkg's list, those that are installed."""
    for paragraph in status.split("\n\n"):
        fields = dict(re.findall(r"^([A-Za-z-]+): (.*)$", paragraph, re.MULTILINE))
        if fields.get("Status", "").endswith(" installed"):
            name, version, machine = fields["Package"], fields["Version"], fields["Architecture"]
            reference = f"pkg:deb/debian/{quote(name)}@{quote(version)}?arch={machine}"
            yield _package("deb", name, version, reference, fields.get("Maintainer"))


def python_packages() -> Iterator[Package]:
    """Those that this interpreter can import."""
    found = {}
    for one in importlib.metadata.distributions():
        name = re.sub(r"[-_.]+", "-", one.metadata["Name"]).lower()
        found[name] = _package("pypi", name, one.version, f"pkg:pypi/{quote(name)}@{quote(one.version)}", None)
    yield from (found[name] for name in sorted(found))


def _package(kind: str, name: str, version: str, reference: str, supplier: str | None) -> Package:
    return {
        "SPDXID": f"SPDXRef-{kind}-{_NOT_AN_ID.sub('-', name)}",
        "name": name,
        "versionInfo": version,
        "supplier": f"Person: {supplier}" if supplier else "NOASSERTION",
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": False,
        "licenseConcluded": "NOASSERTION",
        "licenseDeclared": "NOASSERTION",
        "copyrightText": "NOASSERTION",
        "externalRefs": [
            {"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": reference}
        ],
    }


if __name__ == "__main__":
    found = [*debian_packages(STATUS.read_text(encoding="utf-8")), *python_packages()]
    json.dump(document(found, int(os.environ["SOURCE_DATE_EPOCH"])), sys.stdout, indent=1)
    print()
