"""What an operator does to a CA directory while agents run from it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from nodeseal.authority.renewal import renew


def renew_intermediate(directory: Path, lifetime: timedelta = timedelta(days=1)) -> int:
    """`nodeseal ca renew`; the serial number of the intermediate that it made."""
    return renew(directory, now=datetime.now(UTC), lifetime=lifetime).serial_number
