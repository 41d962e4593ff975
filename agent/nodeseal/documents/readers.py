"""The readers of all kinds of objects that a mesh state's files may hold."""

from typing import Any, Final

from nodeseal.documents.federated import FEDERATED_READER
from nodeseal.documents.reader import Reader
from nodeseal.documents.revocation import REVOCATION_READER
from nodeseal.documents.service import SERVICE_READER
from nodeseal.documents.trust_anchor import TRUST_ANCHOR_READER
from nodeseal.documents.workload import WORKLOAD_READER
from nodeseal.mesh.federated import FEDERATED
from nodeseal.mesh.revocation import REVOCATIONS
from nodeseal.mesh.service import SERVICES
from nodeseal.mesh.trust_anchor import TRUST_ANCHORS
from nodeseal.mesh.workload import WORKLOADS

READERS: Final[dict[str, Reader[Any, Any]]] = {
    WORKLOADS.name: WORKLOAD_READER,
    SERVICES.name: SERVICE_READER,
    TRUST_ANCHORS.name: TRUST_ANCHOR_READER,
    REVOCATIONS.name: REVOCATION_READER,
    FEDERATED.name: FEDERATED_READER,
}
"""By the kind's name, which is also the name of the field of a file that lists its objects."""
