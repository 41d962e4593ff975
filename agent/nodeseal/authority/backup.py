"""A copy of the certificate service's state, whole, while the service runs."""

from __future__ import annotations

import shutil
from pathlib import Path

from nodeseal.authority import store
from nodeseal.authority.errors import AuthorityError
from nodeseal.authority.ledger import DATABASE, Ledger
from nodeseal.authority.state_keys import NODES, SERVICE, SERVICE_FORMER, SERVICE_NEXT
from nodeseal.linux import directories


def back_up(state: Path, directory: Path) -> list[str]:
    """Makes `directory`, which must not be there, with mode 0700. The names of the files in it, each with mode 0600.
    Raises AuthorityError, and leaves nothing then.

    No key depends on what is in the database, so that they belong to whatever moment that is copied at.
    """
    if not (state / DATABASE).exists():
        raise AuthorityError(f"there is no state of a certificate service in {state}; correct the setting `state`")
    try:
        directory.mkdir(mode=0o700)
    except OSError as error:
        raise AuthorityError(f"cannot make {directory}: {error.strerror or error}; name a new directory") from error
    try:
        keys = [SERVICE, NODES, *(name for name in (SERVICE_NEXT, SERVICE_FORMER) if (state / name).exists())]
        for name in keys:
            store.create(directory / name, store.read(state / name, private=True), 0o600)
        with Ledger(state) as ledger:
            ledger.copy_to(directory / DATABASE)
        directories.sync(directory)
    except (AuthorityError, OSError) as error:
        shutil.rmtree(directory, ignore_errors=True)
        if isinstance(error, AuthorityError):
            raise
        raise AuthorityError(f"cannot write {directory}: {error.strerror or error}; name another place") from error
    return [*keys, DATABASE]
