"""The first process of a node: makes the node's root file system the root, then starts and reaps what it is told to.

node_process.py SETTINGS, where SETTINGS is a JSON file: {"root", "orders", "binds": [[from, to]],
"cgroups": [[path, kind, options]], "sysctls": {name: value}}. To be run in new mount, PID, cgroup and UTS
namespaces, as their first process; it is alone in its file since it runs with the system's own Python.

Orders come over the Unix socket `orders`, one JSON line a connection, answered by one:
{"start": NAME, "argv": [...]}              starts a program, its output in /var/log/NAME.log; the answer has its "pid"
{"signal": NAME, "number": 9}               to that program alone
{"ask": NAME}                               {"pid": N, "status": null while it runs, else its wait status}
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

_BUFFER = 1 << 16


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text())
    # Made while its path is there; it stays reachable from the host.
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    path = Path(settings["orders"])
    path.unlink(missing_ok=True)
    make_root(settings)
    listener.bind(str(path))
    listener.listen(16)
    enter_root(Path(settings["root"]))
    Services(listener).serve()


def make_root(settings: dict[str, Any]) -> None:
    """Mounts everything below the new root."""
    root = Path(settings["root"])
    mount("--bind", root, root)
    for source, target in settings["binds"]:
        place = root / target.lstrip("/")
        place.mkdir(parents=True, exist_ok=True)
        mount("--bind", source, place)
        mount("-o", "remount,bind,ro", place)
    for name in ("dev", "proc", "run", "sys"):
        (root / name).mkdir(exist_ok=True)
    mount("--rbind", "/dev", root / "dev")
    mount("-t", "proc", "proc", root / "proc")
    mount("-t", "sysfs", "sysfs", root / "sys")
    mount("-t", "bpf", "bpf", root / "sys/fs/bpf")
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", root / "run")
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", root / "sys/fs/cgroup")
    for name, kind, options in settings["cgroups"]:
        place = root / name.lstrip("/")
        place.mkdir(exist_ok=True)
        mount("-t", kind, *(("-o", options) if options else ()), kind, place)
    # Settings of the whole machine, which a kubelet would write: it sees the values that it wants.
    own = root / "run/machine"
    own.mkdir()
    for name, value in settings["sysctls"].items():
        file = own / name.replace("/", ".")
        file.write_text(f"{value}\n")
        mount("--bind", file, root / "proc/sys" / name)


def enter_root(root: Path) -> None:
    """Makes it the root of this mount namespace, and lets go of the old one."""
    socket.sethostname(root.parent.name)
    old = root / "old"
    old.mkdir(exist_ok=True)
    subprocess.run(["pivot_root", str(root), str(old)], check=True)
    os.chdir("/")
    subprocess.run(["umount", "-l", "/old"], check=True)
    Path("/old").rmdir()
    # As systemd has it: mounts go to the pods that ask for it, and come from them.
    mount("--make-rshared", "/")


class Services:
    """The programs by name."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._pids: dict[str, int] = {}
        self._statuses: dict[int, int] = {}

    def serve(self) -> None:
        """For ever: the node ends by SIGKILL to this process."""
        wakeups, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(waker)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
        while True:
            ready, _, _ = select.select([self._listener.fileno(), wakeups], [], [])
            if wakeups in ready:
                os.read(wakeups, _BUFFER)
            self._reap()
            if self._listener.fileno() in ready:
                connection, _ = self._listener.accept()
                # Whoever asked may be gone.
                with connection, contextlib.suppress(OSError, ValueError):
                    line = connection.makefile().readline()
                    connection.sendall(json.dumps(self._obey(json.loads(line))).encode() + b"\n")

    def _obey(self, order: dict[str, Any]) -> dict[str, Any]:
        try:
            if name := order.get("start"):
                self._pids[name] = self._start(name, order["argv"])
            elif name := order.get("signal"):
                if self._pids[name] not in self._statuses:
                    os.kill(self._pids[name], order["number"])
            else:
                name = order["ask"]
            return {"pid": self._pids[name], "status": self._statuses.get(self._pids[name])}
        except (OSError, LookupError) as error:
            return {"error": f"{type(error).__name__}: {error}"}

    def _start(self, name: str, argv: list[str]) -> int:
        output = f"/var/log/{name}.log"
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ]
        defaults = [signal.SIGPIPE, signal.SIGXFSZ]
        return os.posix_spawnp(argv[0], argv, os.environ, file_actions=actions, setsid=True, setsigdef=defaults)

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] in self._pids.values():
                    self._statuses[ended[0]] = ended[1]


def mount(*words: str | Path) -> None:
    subprocess.run(["mount", *map(str, words)], check=True)


if __name__ == "__main__":
    main()
