"""`nodeseal lab up`."""

from __future__ import annotations

import click

from nodeseal.cli.lab.lab_command import name_option, reporting
from nodeseal.cli.lab.tables import status_tables
from nodeseal.cli.options import output_option
from nodeseal.cli.output import print_json
from nodeseal.cli.progress import waiting
from nodeseal.cli.tree import Command
from nodeseal_lab.plan import DEFAULT_NAME, ISSUERS, NODE_RULES


@click.command("up", cls=Command)
@name_option()
@click.option("--nodes", type=int, default=2, show_default=True, metavar="N", help="Number of nodes.")
@click.option(
    "--pod",
    "pods",
    multiple=True,
    metavar="NAME:NODE[:plain]",
    help="One more pod, enrolled unless plain (repeatable); it runs nothing of its own.",
)
@click.option(
    "--host-workload",
    "host_workloads",
    multiple=True,
    metavar="NAME:NODE:PORT[:plain]",
    help="A process of the node itself, in a cgroup of its own, that serves HTTP at PORT (repeatable).",
)
@click.option(
    "--node-rules",
    type=click.Choice(NODE_RULES),
    default=None,
    metavar="KIND",
    help=f"Netfilter rules of other programs on the nodes: {', '.join(NODE_RULES)}.",
)
@click.option(
    "--issuer",
    type=click.Choice(ISSUERS),
    default=ISSUERS[0],
    show_default=True,
    help="Where certificates come from: each agent, or `nodeseal ca serve` on the first node.",
)
@click.option(
    "--trust-domain",
    "trust_domains",
    multiple=True,
    metavar="NODE:TRUST_DOMAIN",
    help="A node of another trust domain, with a CA and mesh state of its own, federated with the others (repeatable).",
)
@click.option(
    "--certificate-lifetime",
    default="",
    metavar="TIME",
    help="How long workloads' certificates are valid, such as 90s, to see them renewed; default: 24h.",
)
@click.option("--ipv6", is_flag=True, help="IPv6 addresses as well; names stand for those.")
@click.option("--not-enrolled", is_flag=True, help="Start with no pod enrolled.")
@click.option("--unsupervised", is_flag=True, help="Leave an agent that ends at that.")
@output_option
@reporting
def command(
    name: str,
    nodes: int,
    pods: tuple[str, ...],
    host_workloads: tuple[str, ...],
    node_rules: str | None,
    issuer: str,
    trust_domains: tuple[str, ...],
    certificate_lifetime: str,
    ipv6: bool,
    not_enrolled: bool,
    unsupervised: bool,
    output: str,
) -> int:
    """Makes a lab and leaves it running."""
    from nodeseal_lab.interruption import signals_interrupt
    from nodeseal_lab.lab import Lab
    from nodeseal_lab.plan import Plan, PodRequest, TrustDomainRequest, in_url

    more = [PodRequest.parse(text) for text in pods]
    more += [PodRequest.parse_host_workload(text) for text in host_workloads]
    plan = Plan.build(
        name,
        nodes=nodes,
        more_pods=more,
        enrol=not not_enrolled,
        ipv6=ipv6,
        node_rules=node_rules or "",
        issuer=issuer,
        trust_domains=[TrustDomainRequest.parse(text) for text in trust_domains],
        certificate_lifetime=certificate_lifetime,
    )
    with signals_interrupt(), waiting(f"making the lab '{name}'"):
        status = Lab.up(plan, supervised=not unsupervised).status()
    if output == "json":
        print_json(status)
        return 0
    option = "" if name == DEFAULT_NAME else f" --name {name}"
    pipeline = in_url(plan.pod("pipeline").named_address)
    print(f"lab '{name}' is up\n\n{status_tables(status)}\n")
    print("try:")
    print(f"  nodeseal lab exec{option} shipper -- curl -sS http://{pipeline}:8080/   (or http://pipeline:8080/)")
    print("  nodeseal connections")
    print(f"  nodeseal lab down{option}")
    return 0
