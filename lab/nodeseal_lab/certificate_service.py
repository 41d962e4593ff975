"""The certificate service of a lab: `nodeseal ca serve` on its first node, and a token with which each node joins."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from nodeseal.authority import state_keys
from nodeseal.authority.errors import AuthorityError
from nodeseal.authority.ledger import Ledger
from nodeseal.authority.state_keys import StateKeys
from nodeseal.contracts.authority import DEFAULT_PORT
from nodeseal_lab.errors import LabError
from nodeseal_lab.files import write_atomically
from nodeseal_lab.plan import TRUST_DOMAIN, Plan
from nodeseal_lab.processes import ProcessRecord, ProcessTable

SERVICE = "certificate service"
"""The role of its record."""

_TOKEN_LIFETIME = timedelta(hours=1)


def prepare(directory: Path, plan: Plan, ca: Path, mesh: Path) -> dict[str, dict[str, Any]]:
    """Writes the service's configuration into the lab's directory, and a token into the run directory of each node of
    the lab's own trust domain, which is there. The setting `ca` of each such node's agent, by the node's name. Raises
    LabError."""
    config, state = _config(directory), directory / "ca-state"
    listen = [f"{plan.nodes[0].address}:{DEFAULT_PORT}"]
    settings: dict[str, Any] = {"ca": str(ca), "mesh": str(mesh), "state": str(state), "listen": listen}
    if plan.certificate_lifetime:
        settings["certificate_lifetime"] = plan.certificate_lifetime
    write_atomically(config, yaml.safe_dump(settings, sort_keys=False))
    now = datetime.now(UTC)
    tokens = {node.name: directory / node.name / "token" for node in plan.nodes if node.trust_domain == TRUST_DOMAIN}
    try:
        state_keys.prepare(state)
        pin = StateKeys.load(state, TRUST_DOMAIN, now).pin
        with Ledger(state) as ledger:
            for node, path in tokens.items():
                token, _made = ledger.make_token(node, _TOKEN_LIFETIME, now)
                path.touch(mode=0o600)
                path.write_text(f"{token}\n", encoding="ascii")
    except (AuthorityError, OSError) as error:
        raise LabError(f"cannot prepare the lab's certificate service: {error}") from error
    return {
        node: {
            "service": [f"https://{where}" for where in listen],
            "trust_domain": TRUST_DOMAIN,
            "pin": pin,
            "token_file": str(path),
        }
        for node, path in tokens.items()
    }


def start(directory: Path, plan: Plan, table: ProcessTable) -> ProcessRecord:
    """Starts it in the network namespace of the first node. Raises LabError."""
    argv = [sys.executable, "-m", "nodeseal", "ca", "serve", "--config", str(_config(directory))]
    return table.start(SERVICE, argv, netns=plan.nodes[0].netns, output=directory / "ca.log")


def _config(directory: Path) -> Path:
    return directory / "ca.yaml"
