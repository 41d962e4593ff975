"""The run directory in the hands of the one agent that is active."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from nodeseal.daemon.errors import StartError
from nodeseal.linux.lock_file import LockFile
from nodeseal.local import run_directory


class HeldDirectory:
    """The directory, made if need be, with its lock held until release() or the process's end."""

    def __init__(self, run_dir: Path) -> None:
        """Raises AlreadyLocked, or StartError when the directory cannot be used."""
        self.path = run_dir
        self._existed = run_dir.is_dir()
        try:
            run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._before = {entry.name for entry in run_dir.iterdir()}
            self._close_if_new()
            self.lock = LockFile(run_dir / run_directory.AGENT_LOCK)
        except OSError as error:
            raise StartError(f"cannot use the run directory {run_dir}: {error.strerror or error}") from None

    @contextlib.contextmanager
    def let_go_at_the_end(self) -> Iterator[None]:
        """Gives the directory up at its end. After a StartError nothing is in it that was not there before."""
        failed = False
        try:
            yield
        except StartError:
            failed = True
            raise
        finally:
            self._release(undo=failed)

    def _close_if_new(self) -> None:
        """For root alone, if nothing is in it yet but of agents that stand by: a kubelet makes it for all to see."""
        if self._before <= {path.name for path in run_directory.standby_locks(self.path)}:
            self.path.chmod(0o700)

    def _release(self, *, undo: bool) -> None:
        others = run_directory.standby_locks(self.path)
        for path in run_directory.own_files(self.path) if undo else ():
            if path.name not in self._before and path not in others:
                with contextlib.suppress(OSError):
                    path.unlink()
        with contextlib.suppress(OSError):
            (self.path / run_directory.AGENT_PID).unlink()
        self.lock.release(remove=undo)
        if undo and not self._existed:
            with contextlib.suppress(OSError):
                self.path.rmdir()
