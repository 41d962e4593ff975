"""`nodeseal ca status`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nodeseal.cli.ca.service_command import config_option, iso, shown
from nodeseal.cli.errors import CommandError, UsageError
from nodeseal.cli.options import PATH, output_option
from nodeseal.cli.output import print_json
from nodeseal.cli.table import note, render
from nodeseal.cli.tree import Command
from nodeseal.contracts.output import CaServiceCertificate, CaServiceRefused, CaServiceState, CaStatus

if TYPE_CHECKING:
    from nodeseal.contracts.authority import Health
    from nodeseal.identity.service_client import ServiceClient
    from nodeseal.local.issuers import ServiceCa

EXIT_STATUS = {"ok": 0, "warning": 1, "error": 2}
_REFUSED_SHOWN = 5
_AWAY = "away"
_ON_THIS_MACHINE = {"0.0.0.0": "127.0.0.1", "::": "127.0.0.1"}  # which a pod without IPv6 has as well


@click.command("status", cls=Command)
@click.argument("addresses", metavar="[ADDRESS]...", nargs=-1, help="of further ones, such as https://10.0.0.2:15018")
@click.option("--agent", type=PATH, metavar="FILE", help="On a node: ask the service that this configuration names.")
@config_option
@output_option
def command(addresses: tuple[str, ...], agent: Path | None, config: Path, output: str) -> int:
    """Shows how the certificate service is: which process issues and which stand by, until when its CA is valid, how
    many nodes and certificates there are, what waits, what was refused, and what is wrong. The exit status is 0 if all
    is well, 1 if something will be wrong or may be, and 2 if something is or nobody
    issues.

    On the service's machine it asks at the addresses in --config. From elsewhere the service tells strangers no more
    than its state and its CA's end; a node is told the rest, by its own certificate."""
    from nodeseal.authority.errors import AuthorityError
    from nodeseal.identity.issuer import IssuerError
    from nodeseal.local.config import ConfigError

    try:
        now = datetime.now(UTC)
        services = _of_agent(agent) if agent is not None else _of_service(config)
        found = describe(asyncio.run(_ask([*services.addresses, *addresses], services)), now)
        if agent is None and found.nodes is None:
            found = _with_store(found, config, now)
    except (AuthorityError, ConfigError, IssuerError) as error:
        failure = CommandError(str(error))
        failure.status = EXIT_STATUS["error"]
        raise failure from None
    if output == "json":
        print_json(found)
    else:
        print(text(found))
    return EXIT_STATUS[found.level]


@dataclass(frozen=True, slots=True)
class Services:
    """Whom to ask, and how. `proof`: a node certificate to be shown; None: none."""

    addresses: tuple[str, ...]
    client: Callable[[str], ServiceClient]
    proof: Path | None = None


def _of_service(path: Path) -> Services:
    """What listens on this machine. Raises AuthorityError."""
    from nodeseal.authority import service_config
    from nodeseal.authority.state_keys import ServiceKeys
    from nodeseal.identity.service_client import ClusterClient
    from nodeseal.local.issuers import ServiceCa

    config = service_config.load(path)
    addresses = []
    for where in config.listen:
        host = _ON_THIS_MACHINE.get(str(where.address), str(where.address))
        addresses.append(f"https://[{host}]:{where.port}" if ":" in host else f"https://{host}:{where.port}")
    if isinstance(config.place, service_config.ClusterConfig):
        anchors = _shown_anchors(config.state)
        domain = config.place.trust_domain
        return Services(tuple(addresses), lambda address: ClusterClient(domain, None, (address,), anchors))
    keys = ServiceKeys.read(config.state)
    # In the second after a switch the former one is used still.
    pins = tuple(one.pin for one in (keys.present, keys.former) if one is not None)
    return _services(ServiceCa(tuple(addresses), "", pins, None, None, None), None)


def _shown_anchors(state: Path) -> str:
    """Raises AuthorityError."""
    from nodeseal.authority.errors import AuthorityError
    from nodeseal.contracts.authority import BUNDLE_KEY

    try:
        return (state / BUNDLE_KEY).read_text(encoding="ascii")
    except (OSError, ValueError):
        raise AuthorityError(f"no certificate service has its CA yet in {state}; see its log") from None


def _of_agent(path: Path) -> Services:
    """What an agent's configuration names, and the node's certificate. Raises ConfigError."""
    from nodeseal.local import config as agent_config
    from nodeseal.local.issuers import ClusterCa, ServiceCa
    from nodeseal.local.run_directory import NODE_CERTIFICATE

    config = agent_config.load(path)
    if isinstance(config.ca, ClusterCa):
        raise UsageError(
            f"the agent of {path} has the certificate service of its cluster: ask with `kubectl -n "
            f"{config.ca.namespace} exec deployment/{config.ca.service} -- nodeseal ca status`"
        )
    if not isinstance(config.ca, ServiceCa):
        raise UsageError(f"the agent of {path} has no certificate service: its `ca` is another issuer")
    return _services(config.ca, (config.ca.keep or config.run_dir) / NODE_CERTIFICATE)


def _services(ca: ServiceCa, proof: Path | None) -> Services:
    from nodeseal.identity.service_client import ServiceClient

    return Services(ca.services, lambda address: ServiceClient(replace(ca, services=(address,))), proof)


Asked = Sequence[tuple[str, "Health | str"]]
"""Each address, and what is answered there or why nothing is."""


async def _ask(addresses: Sequence[str], services: Services) -> Asked:
    """Raises IssuerError."""
    answers = await asyncio.gather(*(_ask_one(address, services) for address in dict.fromkeys(addresses)))
    return list(zip(dict.fromkeys(addresses), answers, strict=True))


async def _ask_one(address: str, services: Services) -> Health | str:
    import ssl

    from nodeseal.contracts.authority import HEALTH
    from nodeseal.identity.service_client import ServiceAway, ServiceRefused

    client = services.client(address)
    try:
        if services.proof is not None:
            try:
                await client.show(services.proof)
            except (OSError, ssl.SSLError):  # it has not joined, or is another user's
                await client.show(None)
        found = await client.ask(HEALTH)
    except ServiceAway as away:
        return str(away).removeprefix(f"{address}: ")
    except ServiceRefused as refused:
        return str(refused)
    finally:
        await client.close()
    assert found is not None
    return found


def describe(asked: Asked, now: datetime) -> CaStatus:
    """What was answered, as a whole."""
    from nodeseal.contracts.authority import ACTIVE, IMPAIRED

    services = [
        CaServiceState(address, _AWAY, why=said)
        if isinstance(said, str)
        else CaServiceState(address, said.state, iso(said.since) if said.since is not None else None, said.version)
        for address, said in asked
    ]
    issuer = next((said for _address, said in asked if not isinstance(said, str) and said.state == ACTIVE), None)
    issuer = issuer or next(
        (said for _address, said in asked if not isinstance(said, str) and said.state == IMPAIRED), None
    )
    away = [f"nobody answers at {one.address}: {one.why}" for one in services if one.state == _AWAY]
    errors, warnings = [], []
    if issuer is None:
        errors = ["no process issues; start one: nodeseal ca serve", *away]
    else:
        warnings = [*away, *issuer.warnings]
        if issuer.state == IMPAIRED:
            errors = list(issuer.problems) or ["the service is impaired; it says why on its own machine"]
    if issuer is not None and any(one.not_after <= now for one in issuer.certificates):
        errors.append("the CA has expired: nodeseal ca renew")
    told = issuer if issuer is not None and issuer.version else None
    return CaStatus(
        level="error" if errors else "warning" if warnings else "ok",
        services=services,
        trust_domain=next((said.trust_domain for _address, said in asked if not isinstance(said, str)), None),
        certificates=[
            CaServiceCertificate(one.role, iso(one.not_after), (one.not_after - now).days)
            for one in (issuer.certificates if issuer is not None else ())
        ],
        nodes=told.nodes if told is not None else None,
        issued_last_hour=told.issued_last_hour if told is not None else None,
        valid=told.valid if told is not None else None,
        waiting=told.waiting if told is not None else None,
        refused=_counts(told) if told is not None else None,
        errors=errors,
        warnings=warnings,
    )


def _counts(told: Health) -> list[CaServiceRefused]:
    return [CaServiceRefused(one.word, one.count) for one in sorted(told.refused, key=lambda one: -one.count)]


def _with_store(found: CaStatus, path: Path, now: datetime) -> CaStatus:
    """What the files say where nobody issues. Raises AuthorityError."""
    from msgspec import structs

    from nodeseal.authority import service_config
    from nodeseal.authority.description import describe
    from nodeseal.authority.ledger import DATABASE, Ledger

    config = service_config.load(path)
    if isinstance(config.place, service_config.DirectoryConfig):
        ca = describe(config.place.ca, now)
        certificates = [CaServiceCertificate(one.role, one.not_after, one.days_left) for one in ca.certificates]
        certificates.sort(key=lambda one: one.role)
        found = structs.replace(found, trust_domain=ca.trust_domain, certificates=certificates)
    if not (config.state / DATABASE).exists():
        return found
    with Ledger(config.state) as ledger:
        counts = ledger.counts(now)
    return structs.replace(found, nodes=counts.nodes, issued_last_hour=counts.last_hour, valid=counts.valid)


def text(found: CaStatus) -> str:
    """For a person."""
    rows = [
        (one.address, one.state, shown(datetime.fromisoformat(one.since)) if one.since else "-", one.version or "-")
        for one in found.services
    ]
    parts = [render(("SERVICE", "STATE", "SINCE", "VERSION"), rows, fold=(0,)), ""]
    if found.trust_domain:
        parts.append(f"trust domain  {found.trust_domain}")
    for one in found.certificates:
        left = f"{one.days_left} day{'s' if one.days_left != 1 else ''} left" if one.days_left >= 0 else "expired"
        parts.append(f"{one.role:12}  until {one.not_after[:10]}, {left}")
    if found.nodes is not None:
        parts += [
            f"nodes         {found.nodes:,} with a valid certificate",
            f"certificates  {found.issued_last_hour:,} issued in the last hour, {found.valid:,} valid now",
        ]
    if found.waiting is not None:
        parts += [
            f"requests      {found.waiting:,} wait to be signed",
            note(f"refused       {_refused(found.refused or [])}", ""),
        ]
    parts += [note(f"error: {line}", "") for line in found.errors]
    parts += [note(f"warning: {line}", "") for line in found.warnings]
    return "\n".join(parts)


def _refused(counts: Sequence[CaServiceRefused]) -> str:
    """The most frequent reasons."""
    if not counts:
        return "nothing"
    told = ", ".join(f"{one.count:,} {one.word}" for one in counts[:_REFUSED_SHOWN])
    rest = sum(one.count for one in counts[_REFUSED_SHOWN:])
    return f"{told}, {rest:,} for other reasons" if rest else told
