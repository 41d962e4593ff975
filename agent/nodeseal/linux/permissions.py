"""Who else can get at a file that only root, and the user that we are, should."""

import os
import stat

PRIVATE = 0o077
"""The permissions that nobody else has on what is secret."""
UNCHANGED = 0o022
"""The ones that nobody else has on what is trusted."""


def others_can(status: os.stat_result, bits: int) -> str | None:
    """Why others have the permissions `bits` (as in the mode) on a file; None when they have not.

    The owner must be root or this user. Of access control lists the group's bits tell: they are the mask (acl(5)).
    """
    if status.st_uid not in (0, os.geteuid()):
        return f"it belongs to the user with the number {status.st_uid}"
    if status.st_mode & bits:
        return f"its mode is {stat.S_IMODE(status.st_mode):04o}"
    return None
