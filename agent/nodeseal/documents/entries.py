"""The objects of a mesh state's files, as they are written by people and programs: docs/mesh-state.md tells what they
mean.

JSON files are read by these types, YAML files by nodeseal.documents.readers, which gives each mistake its line. Both
have the same fields with the same meanings.
"""

from typing import Annotated, TypeAlias

from msgspec import UNSET, Meta, Struct, UnsetType

from nodeseal.mesh.federated import Profile
from nodeseal.mesh.model import Connect, Mode, OnFailure
from nodeseal.mesh.workload import MOST_ADDRESSES

# Only told to others (JSON Schema): whoever makes an object of the model checks more than a pattern can say.
Fingerprint: TypeAlias = Annotated[str, Meta(extra_json_schema={"pattern": "^[0-9a-f]{64}$"})]
Name: TypeAlias = Annotated[
    str, Meta(extra_json_schema={"pattern": "^[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?$"})
]
IpAddress: TypeAlias = Annotated[
    str, Meta(extra_json_schema={"anyOf": [{"format": "ipv4"}, {"format": "ipv6"}]}, description="IPv4 or IPv6.")
]
Addresses: TypeAlias = Annotated[
    list[IpAddress], Meta(min_length=1, max_length=2, description="In the stead of `address`: one of each family.")
]
WorkloadAddresses: TypeAlias = Annotated[
    list[IpAddress],
    Meta(
        min_length=1,
        max_length=MOST_ADDRESSES,
        description="In the stead of `address`: all of its own. The first of each family is its primary.",
    ),
]
Port: TypeAlias = Annotated[int, Meta(ge=1, le=65535)]
Ports: TypeAlias = Annotated[
    list[Port | str], Meta(max_length=64, description='Ports, or ranges of them such as "8000-8010".')
]
Networks: TypeAlias = Annotated[
    list[str], Meta(max_length=64, description="Addresses, or ranges of them such as 10.0.0.0/8.")
]


class ExcludedInbound(Struct, forbid_unknown_fields=True, frozen=True, gc=False, rename={"networks": "from"}):
    """What passes by nodeseal on its way to the workload."""

    ports: Annotated[Ports | UnsetType, Meta(description="The workload's own.")] = UNSET
    networks: Annotated[Networks | UnsetType, Meta(description="Those of clients.")] = UNSET


class ExcludedOutbound(Struct, forbid_unknown_fields=True, frozen=True, gc=False, rename={"networks": "to"}):
    """What passes by nodeseal on its way from the workload."""

    ports: Annotated[Ports | UnsetType, Meta(description="Those that it dials.")] = UNSET
    networks: Annotated[Networks | UnsetType, Meta(description="Whom it dials.")] = UNSET


class ExcludeEntry(Struct, forbid_unknown_fields=True, frozen=True, gc=False):
    """Ports and ranges of addresses that pass by nodeseal."""

    inbound: ExcludedInbound | UnsetType = UNSET
    outbound: ExcludedOutbound | UnsetType = UNSET


class LimitsEntry(Struct, forbid_unknown_fields=True, frozen=True, gc=False):
    """What a workload may take of its node's core; `none`, or 0, is no limit."""

    connections: Annotated[int | str | UnsetType, Meta(description="At once.")] = UNSET
    memory: Annotated[int | str | UnsetType, Meta(description="Bytes, or with KiB, MiB or GiB.")] = UNSET
    new_connections: Annotated[int | str | UnsetType, Meta(description="A second.")] = UNSET


class HostEntry(Struct, forbid_unknown_fields=True, frozen=True, gc=False):
    """Where a process of the node is found."""

    cgroup: Annotated[str, Meta(description="Its path in the cgroup v2 tree.")]
    ports: Annotated[Ports | UnsetType, Meta(description="Where it is reached.")] = UNSET


class WorkloadEntry(Struct, forbid_unknown_fields=True, frozen=True, gc=False):
    """A workload: one instance of an application."""

    name: Annotated[Name, Meta(description="Unique in its namespace.")]
    node: Annotated[Name, Meta(description="The node that it runs on.")]
    namespace: Annotated[Name | UnsetType, Meta(description="`default` if it is absent.")] = UNSET
    service_account: Annotated[Name | UnsetType, Meta(description="`default` if it is absent.")] = UNSET
    address: IpAddress | UnsetType = UNSET
    addresses: WorkloadAddresses | UnsetType = UNSET
    netns: Annotated[
        str | UnsetType, Meta(description="Its network namespace: a path, or a name under /run/netns.")
    ] = UNSET
    host: HostEntry | UnsetType = UNSET
    enrolled: Annotated[bool | UnsetType, Meta(description="Whether it is to have mutual TLS.")] = UNSET
    on_failure: Annotated[
        OnFailure | UnsetType, Meta(description="Its new connections while neither agent nor core runs.")
    ] = UNSET
    connect: Annotated[
        Connect | UnsetType,
        Meta(description="When connect() returns; as the node's configuration says if it is absent."),
    ] = UNSET
    mode: Annotated[Mode | UnsetType, Meta(description="What happens to plaintext that reaches it.")] = UNSET
    trust_domain: Annotated[
        str | UnsetType,
        Meta(description="Of its identity: one that the mesh is `federated` with; the mesh's if absent."),
    ] = UNSET
    identity: Annotated[
        str | UnsetType,
        Meta(description="Its whole SPIFFE id, with any path, if it is of a domain that the mesh is `federated` with."),
    ] = UNSET
    limits: LimitsEntry | UnsetType = UNSET
    exclude: ExcludeEntry | UnsetType = UNSET


class ServicePortEntry(Struct, forbid_unknown_fields=True, frozen=True, gc=False):
    """A port of a service."""

    port: Annotated[Port, Meta(description="The virtual one.")]
    target_port: Annotated[
        Port | UnsetType, Meta(description="Where the endpoints listen; the same if it is absent.")
    ] = UNSET


class ServiceEntry(Struct, forbid_unknown_fields=True, frozen=True, gc=False):
    """A service: a virtual address that stands for any of its endpoints."""

    name: Annotated[Name, Meta(description="Unique among the services of its namespace.")]
    ports: list[ServicePortEntry]
    endpoints: Annotated[list[str], Meta(description="Workloads, as name or namespace/name.")]
    namespace: Annotated[Name | UnsetType, Meta(description="`default` if it is absent.")] = UNSET
    address: IpAddress | UnsetType = UNSET
    addresses: Addresses | UnsetType = UNSET


class TrustAnchorEntry(Struct, forbid_unknown_fields=True, frozen=True, gc=False):
    """A root by which peers of the mesh's trust domain are verified; `nodeseal trust` writes these."""

    pem: Annotated[str, Meta(description="One certificate, in PEM form.")]


class RevocationEntry(Struct, forbid_unknown_fields=True, frozen=True, gc=False):
    """What the mesh does not talk with any more: `identity`, `node`, `serials` or `anchor`; `nodeseal revoke` writes
    the first three, and `nodeseal trust remove --force` the last."""

    identity: Annotated[str | UnsetType, Meta(description="A SPIFFE id, whoever has a certificate with it.")] = UNSET
    node: Annotated[Name | UnsetType, Meta(description="A node: nothing is issued to it.")] = UNSET
    identities: Annotated[
        list[str] | UnsetType, Meta(description="With `node`: SPIFFE ids that are its alone, and are revoked as well.")
    ] = UNSET
    serials: Annotated[
        list[str] | UnsetType,
        Meta(
            description="Serial numbers of certificates, in hexadecimal, whoever issued them; with `node`: of what was "
            "issued to it."
        ),
    ] = UNSET
    anchor: Annotated[
        Fingerprint | UnsetType,
        Meta(description="The fingerprint of a trust anchor that was removed: whoever it verified."),
    ] = UNSET
    trust_domain: Annotated[
        str | UnsetType, Meta(description="With `serials`: of these certificates' SPIFFE ids; the mesh's if absent.")
    ] = UNSET
    reason: Annotated[str | UnsetType, Meta(description="For people.")] = UNSET
    since: Annotated[str | UnsetType, Meta(description="When it was revoked, ISO 8601 in UTC.")] = UNSET


class BundleEndpointEntry(Struct, forbid_unknown_fields=True, frozen=True, gc=False):
    """A SPIFFE bundle endpoint, from which each node fetches a bundle."""

    url: Annotated[str, Meta(description="`https://...`; it is fetched as it is, redirects are not followed.")]
    profile: Annotated[Profile, Meta(description="How the endpoint is known: by the Web PKI, or by an X.509-SVID.")]
    spiffe_id: Annotated[
        str | UnsetType,
        Meta(description="With `https_spiffe`: the endpoint's own id. It says whose bundle verifies it."),
    ] = UNSET
    ca_file: Annotated[
        str | UnsetType,
        Meta(
            description="With `https_web`: the path of a file of CAs (PEM) on every node, in the stead of the system's."
        ),
    ] = UNSET


class FederatedEntry(Struct, forbid_unknown_fields=True, frozen=True, gc=False):
    """A trust domain whose workloads may be peers, with exactly one of the ways to its bundle. Beside an endpoint there
    may be `bundle` or `bundle_file`: what counts until the endpoint has given one."""

    trust_domain: str
    bundle: Annotated[
        str | UnsetType, Meta(description="Its trust anchors: certificates in PEM form, or a SPIFFE bundle (JWKS).")
    ] = UNSET
    bundle_file: Annotated[
        str | UnsetType, Meta(description="Instead: the path of a file with the same, on every node. It is followed.")
    ] = UNSET
    bundle_endpoint: Annotated[
        BundleEndpointEntry | UnsetType, Meta(description="Instead: where each node fetches it, again and again.")
    ] = UNSET
    bundle_from_workload_api: Annotated[
        bool | UnsetType, Meta(description="Instead: each node takes what the Workload API of its `ca` gives.")
    ] = UNSET
