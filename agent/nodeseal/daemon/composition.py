"""Which source and which issuer a node has: the one place that knows the kinds of them."""

from __future__ import annotations

from pathlib import Path

from nodeseal.identity.by_namespace import IssuersByNamespace
from nodeseal.identity.delivered import DeliveredIssuer
from nodeseal.identity.embedded import EmbeddedIssuer
from nodeseal.identity.issuer import Issuer, IssuerError
from nodeseal.local.config import Config
from nodeseal.local.issuers import Ca, ClusterCa, DeliveredCa, OwnCa, ServiceCa, WorkloadApiCa
from nodeseal.local.mesh_source import KubernetesMesh
from nodeseal.sources.directory.source import DirectorySource
from nodeseal.sources.source import Reference, Source


def source_of(config: Config) -> Source:
    """The source that the configuration asks for."""
    if isinstance(config.mesh, KubernetesMesh):
        # Here, so that no other node has an HTTP client in its memory.
        from nodeseal.sources.kubernetes.source import KubernetesSource

        return KubernetesSource(config.mesh, config.node, config.run_dir, config.cgroup)
    return DirectorySource(config.mesh, config.node, config.run_dir)


def followed(mesh: Path) -> Source:
    """The source of that mesh state for who follows it and publishes nothing."""
    return DirectorySource(mesh, "", Path())


def source_at(reference: Reference, run_dir: Path) -> Source:
    """The source that gave this reference to an agent of this run directory. Raises ValueError when there is none."""
    if "kubernetes" in reference:
        from nodeseal.sources.kubernetes.source import KubernetesSource

        return KubernetesSource.at(reference, run_dir)
    return DirectorySource.at(reference, run_dir)


def issuer_of(config: Config) -> Issuer:
    """The issuer that the configuration asks for. Raises IssuerError when it cannot be used."""
    default = _issuer(config.ca, config)
    if not config.issuers:
        return default
    others = {name: issuer for one in config.issuers for issuer in [_issuer(one.ca, config)] for name in one.namespaces}
    return IssuersByNamespace(default, others)


def _issuer(ca: Ca, config: Config) -> Issuer:
    match ca:
        case OwnCa():
            return EmbeddedIssuer(ca.directory, config.certificate_lifetime, config.certificate_key)
        case DeliveredCa():
            return DeliveredIssuer(ca)
        case ServiceCa():
            # Here, so that no other node has an HTTP client in its memory.
            from nodeseal.identity.remote import RemoteIssuer

            return RemoteIssuer(ca, config.node, config.run_dir, config.certificate_key)
        case ClusterCa():
            from nodeseal.identity.in_cluster import ClusterIssuer

            return ClusterIssuer(ca, config.node, config.run_dir, config.certificate_key)
        case WorkloadApiCa():
            # Nor gRPC: 15 MB, and threads of its own. Not every node has it installed.
            try:
                from nodeseal.identity.workload_api import WorkloadApiIssuer
            except ModuleNotFoundError as error:
                raise IssuerError(
                    f"a Workload API (the setting 'ca') needs the Python package {error.name}, which is not installed: "
                    "pip install 'nodeseal[spiffe]'"
                ) from None
            return WorkloadApiIssuer(ca)
