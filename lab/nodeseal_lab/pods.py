"""`lab exec`: this process becomes a command inside a pod."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from nodeseal_lab.cgroups import enter_cgroup
from nodeseal_lab.errors import LabError, MissingToolError
from nodeseal_lab.lab import Lab, require_root
from nodeseal_lab.namespaces import NETNS_DIR, enter
from nodeseal_lab.processes import MARKER, child_environment

_CLONE_NEWNS = 0x00020000
_MS_BIND, _MS_REC, _MS_SLAVE = 1 << 12, 1 << 14, 1 << 19
_MNT_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)


def exec_in_pod(lab: Lab, pod: str, argv: Sequence[str]) -> NoReturn:
    """Replaces this process by the command, in the pod's network namespace, with the names of the lab's pods and
    services in its /etc/hosts. The command keeps this process's terminal, and its exit status is the command's own.

    It is recorded as one of the lab's processes, so `lab down` ends it. Raises LabError, UnknownPodError,
    MissingToolError."""
    require_root("nodeseal lab exec")
    where = lab.plan.pod(pod)
    if shutil.which(argv[0]) is None:
        if argv[0] in ("curl", "tcpdump"):
            raise MissingToolError([argv[0]])
        raise LabError(f"cannot run '{argv[0]}' in pod {pod}: no such program on PATH")
    lab.processes.forget_ended()
    if where.cgroup:
        enter_cgroup(where.cgroup)
    enter(where.netns)
    _private_mounts(lab)
    record = lab.processes.new_record(f"exec {pod}", argv)
    record = lab.processes.running_as(record, os.getpid())
    # Python ignores SIGPIPE, and what is ignored stays ignored across exec.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        os.execvpe(argv[0], list(argv), child_environment() | {MARKER: record.id})  # noqa: S606
    except OSError as error:
        lab.processes.forget(record)
        raise LabError(f"cannot run '{argv[0]}' in pod {pod}: {error.strerror}") from error


def _private_mounts(lab: Lab) -> None:
    """A mount namespace of this process's own, with the lab's hosts file in place of /etc/hosts.

    The copies of the lab's own mounts (bpf file systems, network namespaces) are dropped from it: a command that is
    left running must not keep alive what `nodeseal cleanup` removes."""
    if _libc.unshare(_CLONE_NEWNS) != 0:
        _fail("a private mount namespace")
    if _libc.mount(b"none", b"/", None, _MS_REC | _MS_SLAVE, None) != 0:
        if ctypes.get_errno() == errno.EINVAL:
            # In a chroot whose root is no mount point a mount of ours could reach the rest of the machine.
            print("nodeseal: pod names do not resolve in this chroot, addresses do", file=sys.stderr)
            return
        _fail("its mounts private")
    if _libc.mount(os.fsencode(lab.directory / "hosts"), b"/etc/hosts", None, _MS_BIND, None) != 0:
        _fail("the pods' names known in /etc/hosts")
    ours = (f"{lab.directory}/", f"{NETNS_DIR}/")
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for mount in reversed(mounts):
        if mount.startswith(ours):
            with contextlib.suppress(OSError):
                _libc.umount2(os.fsencode(mount), _MNT_DETACH)


def _fail(what: str) -> NoReturn:
    raise LabError(f"cannot make {what}: {os.strerror(ctypes.get_errno())}")
