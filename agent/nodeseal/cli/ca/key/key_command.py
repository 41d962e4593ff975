"""What the commands of `nodeseal ca key` have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nodeseal.cli.ca.ca_command import say
from nodeseal.contracts.output import CaServiceKeys

if TYPE_CHECKING:
    from pathlib import Path


def tell(output: str, state: Path, *remarks: str) -> int:
    """Which keys there are now, for a script or a person. Raises AuthorityError."""
    from nodeseal.authority.state_keys import ServiceKeys

    keys = ServiceKeys.read(state)
    following = keys.next.pin if keys.next is not None else None
    former = keys.former.pin if keys.former is not None else None
    lines = [f"service key SHA-256  {keys.present.pin}"]
    if following is not None:
        lines.append(f"next key             {following}")
    if former is not None:
        lines.append(f"former key           {former}")
    say(output, CaServiceKeys(keys.present.pin, following, former), *lines, *remarks)
    return 0
