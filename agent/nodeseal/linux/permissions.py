"""Who else can get at a file that only root, and the user that we are, should."""

import os
import stat
from pathlib import Path

PRIVATE = 0o077
"""The permissions that nobody else has on what is secret."""
UNCHANGED = 0o022
"""The ones that nobody else has on what is trusted."""


def keep_owner(descriptor: int, directory: Path) -> None:
    """A file that root has just made in another user's directory is that user's, as all others in there. Raises
    OSError."""
    status = directory.stat()
    if os.geteuid() == 0 and status.st_uid != 0:
        os.fchown(descriptor, status.st_uid, status.st_gid)


def others_can(status: os.stat_result, bits: int, directory: Path | None = None) -> str | None:
    """Why others have the permissions `bits` (as in the mode) on a file; None when they have not.

    The owner must be root or this user; for root also the owner of `directory`, where the file is. Of access control
    lists the group's bits tell: they are the mask (acl(5)).
    """
    owners = {0, os.geteuid()}
    if directory is not None and os.geteuid() == 0:
        owners.add(directory.stat().st_uid)
    if status.st_uid not in owners:
        return f"it belongs to the user with the number {status.st_uid}"
    if status.st_mode & bits:
        return f"its mode is {stat.S_IMODE(status.st_mode):04o}"
    return None
