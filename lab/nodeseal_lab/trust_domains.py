"""The trust domains of a lab: each has a certificate authority, a mesh directory and a bundle of its own.

```
ca/ mesh/                       those of the lab's own trust domain
domains/DOMAIN/ca, .../mesh     those of another one; its enrolled/ is that of the lab's own, so that all see all
bundles/DOMAIN.pem              the roots of each, which the others follow; there is none without another domain
```
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from nodeseal_lab.errors import LabError
from nodeseal_lab.files import write_atomically
from nodeseal_lab.mesh_state import write_mesh
from nodeseal_lab.plan import TRUST_DOMAIN, Plan

_ENROLLED = "enrolled"


def ca_of(directory: Path, trust_domain: str) -> Path:
    """The directory of its certificate authority, in the lab's `directory`."""
    return _place(directory, trust_domain) / "ca"


def mesh_of(directory: Path, trust_domain: str) -> Path:
    """Its mesh directory."""
    return _place(directory, trust_domain) / "mesh"


def bundle_of(directory: Path, trust_domain: str) -> Path:
    """The file with its roots, for the other domains."""
    return directory / "bundles" / f"{trust_domain}.pem"


def write_meshes(directory: Path, plan: Plan) -> None:
    """The mesh directory of each domain."""
    bundles = {domain: bundle_of(directory, domain) for domain in plan.trust_domains}
    for domain in plan.trust_domains:
        write_mesh(mesh_of(directory, domain), plan, domain, bundles)
        if domain != TRUST_DOMAIN:
            published = mesh_of(directory, TRUST_DOMAIN) / _ENROLLED
            published.mkdir(exist_ok=True)
            (mesh_of(directory, domain) / _ENROLLED).symlink_to(published)


def make_authorities(directory: Path, plan: Plan) -> None:
    """The certificate authority of each domain, and its bundle. Raises LabError."""
    from nodeseal.authority.creation import init_authority
    from nodeseal.authority.errors import AuthorityError

    for domain in plan.trust_domains:
        ca = ca_of(directory, domain)
        try:
            init_authority(ca, trust_domain=domain, now=datetime.now(UTC))
        except AuthorityError as error:
            raise LabError(f"cannot make the lab's certificate authority: {error}") from error
        if len(plan.trust_domains) > 1:
            bundle = bundle_of(directory, domain)
            bundle.parent.mkdir(exist_ok=True)
            write_atomically(bundle, (ca / "root.pem").read_text())


def _place(directory: Path, trust_domain: str) -> Path:
    return directory if trust_domain == TRUST_DOMAIN else directory / "domains" / trust_domain
