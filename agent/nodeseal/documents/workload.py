"""Workloads as they are written in the files of a mesh state."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from sys import intern

from msgspec import UNSET

from nodeseal.documents.document import Node, Problem, Problems, shown
from nodeseal.documents.entries import WorkloadEntry
from nodeseal.documents.exclude import read_exclusions
from nodeseal.documents.host import read_host
from nodeseal.documents.limits import read_limits
from nodeseal.documents.reader import Placed, Reader, Stated
from nodeseal.documents.schema import Fields, is_name, read_text, unusable
from nodeseal.mesh.address import Address, parse_address
from nodeseal.mesh.federated import FEDERATED
from nodeseal.mesh.host import OWN_NAMESPACE
from nodeseal.mesh.spiffe import Identity, SpiffeId, SpiffeIdError, parse_identity
from nodeseal.mesh.workload import MOST_ADDRESSES, Connect, Mode, OnFailure, Workload, WorkloadName

DEFAULT = "default"
"""The namespace and the service account of who does not say otherwise."""

_IDENTITY_EXPECTED = "a SPIFFE id of another trust domain, such as spiffe://partner.example/billing/api"
_NETNS = re.compile(r"(?!.*(?:^|/)\.\.?(?:/|$))(?:[A-Za-z0-9._-]{1,255}|/[\x21-\x7e]{1,4094})")


def read_workload(problems: Problems, node: Node, path: str) -> Workload | None:
    """None after noting a problem."""
    before = problems.count
    fields = Fields(problems, node, path)
    workload = Workload(
        key=WorkloadName(intern(fields.name("namespace", DEFAULT)), fields.name("name")),
        service_account=intern(fields.name("service_account", DEFAULT)),
        node=intern(fields.name("node")),
        # Processes of a node share its address: one of each family.
        addresses=fields.addresses(0 if fields.has("host") else MOST_ADDRESSES),
        netns=fields.text("netns", "", expected="a path or a name under /run/netns", pattern=_NETNS.pattern) or None,
        wanted=fields.truth("enrolled", False),
        mode=fields.choice("mode", Mode.PERMISSIVE),
        exclude=read_exclusions(fields),
        on_failure=fields.choice("on_failure", OnFailure.CLOSED),
        limits=read_limits(fields, "limits"),
        host=read_host(fields),
        connect=fields.choice("connect", Connect.EARLY) if fields.has("connect") else None,
        trust_domain=fields.text("trust_domain", "", expected="a trust domain") or None,
    )
    if (identity := _read_identity(fields)) is not None:
        workload = replace(workload, trust_domain=identity.trust_domain, spiffe_id=identity)
    if workload.host is not None:
        # In one order for all of them: the core knows them by the first.
        addresses = tuple(sorted(workload.addresses, key=lambda address: address.version))
        workload = replace(workload, netns=OWN_NAMESPACE, addresses=addresses)
    fields.close()
    return workload if problems.count == before else None


def _read_identity(fields: Fields) -> Identity | None:
    """The field `identity`; None if it is absent, or after noting a problem."""
    text = fields.text("identity", "", expected=_IDENTITY_EXPECTED)
    if not text:
        return None
    for other in ("trust_domain", "service_account"):
        if fields.has(other):
            expected = "nothing, as 'identity' says it"
            fields.problems.add(fields.line_of(other), fields.at(other), expected, f"'{other}' as well")
    try:
        return parse_identity(text)
    except SpiffeIdError:
        fields.problems.add(fields.line_of("identity"), fields.at("identity"), _IDENTITY_EXPECTED, shown(text))
        return None


def take_workload(entry: WorkloadEntry) -> Workload | None:
    """The same for one in a namespace, without exclusions and limits of its own; None for others and for wrong ones."""
    if entry.exclude is not UNSET or entry.limits is not UNSET or entry.host is not UNSET:
        return None
    if entry.trust_domain is not UNSET or entry.identity is not UNSET:
        return None
    netns = None if entry.netns is UNSET else entry.netns
    if not is_name(entry.name) or (netns is not None and _NETNS.fullmatch(netns) is None):
        return None
    try:
        return Workload(
            WorkloadName(_name(DEFAULT if entry.namespace is UNSET else entry.namespace), entry.name),
            _name(DEFAULT if entry.service_account is UNSET else entry.service_account),
            _name(entry.node),
            _take_addresses(entry),
            netns,
            entry.enrolled is True,
            Mode.PERMISSIVE if entry.mode is UNSET else entry.mode,
            on_failure=OnFailure.CLOSED if entry.on_failure is UNSET else entry.on_failure,
            connect=None if entry.connect is UNSET else entry.connect,
        )
    except ValueError:
        return None


def _take_addresses(entry: WorkloadEntry) -> tuple[Address, ...]:
    """Raises ValueError."""
    if entry.addresses is UNSET:
        return (_address(entry.address),)
    if entry.address is not UNSET:
        raise ValueError
    addresses = tuple(map(_address, entry.addresses))
    if len(set(addresses)) != len(addresses):
        raise ValueError
    return addresses


def _address(text: object) -> Address:
    if not isinstance(text, str) or unusable(address := parse_address(text)):
        raise ValueError
    return address


@lru_cache(4096)
def _name(text: str) -> str:
    """One object for each of the few names that come again and again. Raises ValueError for what is none."""
    if not is_name(text):
        raise ValueError
    return intern(text)


def read_workload_name(problems: Problems, node: Node, path: str, namespace: str | None) -> WorkloadName | None:
    """Reads "ns/name", or with a `namespace` to fall back on also "name"; None after noting a problem."""
    expected = "a workload as namespace/name" if namespace is None else "a workload as name or namespace/name"
    text = read_text(problems, node, path, expected)
    if not text:
        return None
    parts = text.split("/") if namespace is None or "/" in text else [namespace, text]
    if len(parts) != 2 or not all(parts):
        problems.add(node.line, path, expected, shown(text))
        return None
    return WorkloadName(intern(parts[0]), parts[1])


def _check_identities(stated: Stated, lists: Iterable[Placed[Workload]]) -> Iterator[Problem]:
    """Service accounts of which no identity can be made, each where it is used first."""
    wrong: dict[tuple[str, str], SpiffeIdError] = {}
    lists = list(lists)
    # Few different ones, of many workloads: which these are is looked at when something is wrong.
    for pair in {(item.key.namespace, item.service_account) for placed in lists for item in placed.items if item}:
        try:
            SpiffeId(stated.trust_domain, *pair)
        except SpiffeIdError as error:
            wrong[pair] = error
    for placed in lists:
        for index, workload in placed.valid():
            domain = workload.trust_domain
            if domain is None or domain in stated.keys[FEDERATED.name]:
                continue
            if workload.spiffe_id is not None:
                expected = "an id of a trust domain that the mesh is 'federated' with"
                yield placed.problem(index, "identity", expected, shown(str(workload.spiffe_id)))
            elif domain != stated.trust_domain:
                yield placed.problem(index, "trust_domain", "one that the mesh is 'federated' with", shown(domain))
    for placed in lists if wrong else ():
        for index, workload in placed.valid():
            pair = (workload.key.namespace, workload.service_account)
            if pair in wrong:
                expected = "a service account that makes a valid SPIFFE id"
                yield placed.problem(index, "service_account", expected, f"one for which: {wrong.pop(pair)}")


WORKLOAD_READER: Reader[Workload, WorkloadEntry] = Reader(
    WorkloadEntry, read_workload, take_workload, _check_identities
)
