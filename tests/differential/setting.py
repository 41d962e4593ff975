"""Between whom a case runs, and over which family."""

from __future__ import annotations

from dataclasses import dataclass

REGISTRY_PORT = 5000
PIPELINE_PORT = 8080
"""Of the service in front of `pipeline`, see nodeseal_lab.plan."""

PODS = ("guest:node1:plain", "far:node2", "several:node2", "roamer:node1", "inn:node2")
HOST_WORKLOADS = ("vector:node1:9100", f"registry:node2:{REGISTRY_PORT}")
"""What a lab has beside its default pods."""


NAMED, UNNAMED = 200, 201
"""The last parts of further addresses of the two pods below, on their devices. The mesh state has the former alone."""
SEVERAL = ("siem", "several")


@dataclass(frozen=True, slots=True)
class Relation:
    """Which workload dials which, by their names in the lab. Nobody is enrolled in the other lab."""

    name: str
    client: str
    server: str
    words: str
    """After "Where", for the table."""
    port: int = 0
    """Where the server has to listen; 0: anywhere."""
    service: bool = False
    """The client dials the service's address."""


MESH = Relation("mesh", "shipper", "pipeline", "both are enrolled")
NEIGHBOURS = Relation("neighbours", "shipper", "siem", "both are enrolled, on one node")
OUTWARD = Relation("outward", "shipper", "intruder", "only the client is enrolled")
INWARD = Relation("inward", "guest", "pipeline", "only the server is enrolled")
SERVICE = Relation("service", "shipper", "pipeline", "the client dials a service", PIPELINE_PORT, service=True)
FROM_NODE = Relation("from-node", "vector", "pipeline", "the client is a process of its node")
NODE_OUTWARD = Relation(
    "node-outward", "vector", "intruder", "the client is a process of its node, and only it is enrolled"
)
TO_NODE = Relation("to-node", "shipper", "registry", "the server is a process of its node", REGISTRY_PORT)

# Whose many connections leave any port in TIME_WAIT.
ROAMER_MESH = Relation("roamer-mesh", "roamer", "inn", "both are enrolled")
ROAMER_OUTWARD = Relation("roamer-outward", "roamer", "intruder", "only the client is enrolled")
SEVERAL_MESH = Relation("several-mesh", "siem", "several", "both are enrolled")
# Whose network is cut: the others' tunnels are to go on meanwhile.
FAR_MESH = Relation("far-mesh", "siem", "far", "both are enrolled")
FAR_OUTWARD = Relation("far-outward", "siem", "intruder", "only the client is enrolled")

PODS_ONLY = (MESH, OUTWARD, INWARD)
EVERYWHERE = (MESH, NEIGHBOURS, OUTWARD, INWARD, SERVICE, FROM_NODE, NODE_OUTWARD, TO_NODE)


@dataclass(frozen=True, slots=True)
class Setting:
    """A relation and a version of IP."""

    relation: Relation
    version: int

    def __str__(self) -> str:
        return f"{self.relation.name}-ipv{self.version}"
