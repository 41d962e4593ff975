"""The lab's stand-in for systemd or the kubelet: an agent that ends is started again, as it was started before.

It is a process of its own, started by `lab up` and ended first by `lab down`, so that nothing comes back:

    python -m nodeseal_lab.supervisor /run/nodeseal-lab/NAME

Cores are not its business: each is started by its agent. The agents are in sessions of their own and do not notice
when the supervisor ends. It keeps nothing on disk but the records of what it starts, so that one which was killed can
be started again at any time: an agent that runs is found by the lock that it holds, whoever started it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from nodeseal.backoff import Backoff
from nodeseal.linux.pidfd import open_process
from nodeseal_lab import agents
from nodeseal_lab.errors import LabError
from nodeseal_lab.lab import Lab
from nodeseal_lab.plan import Node
from nodeseal_lab.processes import ProcessRecord

log = logging.getLogger("nodeseal_lab")

FIRST_DELAY_SECONDS = 0.1
LONGEST_DELAY_SECONDS = 10.0
STABLE_SECONDS = 10.0
"""An agent that ran for so long did not fail at its start: the next one does not wait for what came before it."""
_LOOK_SECONDS = 0.1


class Keeper:
    """Keeps one node's agent running. `running` gives the pid of the one that runs; `start` starts another, gives its
    pid and may raise LabError. Times are seconds of a clock that the caller reads."""

    def __init__(self, name: str, running: Callable[[], int | None], start: Callable[[], int]) -> None:
        self.name = name
        self.handle = -1
        """A pidfd of the agent that is watched; -1: none is."""
        self._running = running
        self._start = start
        self._pid = 0
        self._since = 0.0
        self._start_at = 0.0
        self._backoff = Backoff(FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS)

    def look(self, now: float) -> None:
        """Without an agent to watch: finds the one that runs, or starts one when its time has come. Raises LabError."""
        if self.handle >= 0:
            return
        pid = self._running()
        if pid is None and now >= self._start_at:
            try:
                pid = self._start()
            except LabError:
                self._start_at = now + self._backoff.next()
                raise
            log.info("%s: started again, pid %d", self.name, pid)
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                self.handle = open_process(pid)
                self._pid, self._since = pid, now

    def ended(self, now: float) -> None:
        """The watched agent has ended: the next start is due after a while that grows if it does not live for long."""
        os.close(self.handle)
        self.handle = -1
        # It is this process's child unless `lab up` started it, or somebody by hand.
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid, os.WNOHANG)
        if now - self._since >= STABLE_SECONDS:
            self._backoff.reset()
        delay = self._backoff.next()
        self._start_at = now + delay
        log.warning("%s: the agent, pid %d, ended; another one in %.1f s", self.name, self._pid, delay)


class LabAgents:
    """The agents of a lab as the keepers see them."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._commands: dict[str, tuple[str, ...]] = {}

    def keeper(self, node: Node) -> Keeper:
        """Of one node."""
        return Keeper(node.name, lambda: self._running(node), lambda: self._start(node))

    def _running(self, node: Node) -> int | None:
        """The agent that has its lock, or one that was started and does not have it yet."""
        for record in self._records(node):
            self._commands[node.name] = record.argv
            if record.alive:
                return record.pid
        return agents.agent_pid(self._lab.run_dirs[node.name])

    def _start(self, node: Node) -> int:
        for record in self._records(node):
            self._lab.processes.forget(record)
        run_dir = self._lab.run_dirs[node.name]
        record = agents.start_agent(self._lab.processes, node, run_dir, self._commands.get(node.name))
        assert record.pid is not None
        return record.pid

    def _records(self, node: Node) -> list[ProcessRecord]:
        role = agents.role_of(node.name)
        return [record for record in self._lab.processes.records() if record.role == role and record.pid is not None]


def supervise(keepers: Sequence[Keeper], told: int, gone: Callable[[], bool]) -> None:
    """Keeps the agents running until the descriptor `told` becomes readable, or `gone` says that the lab is."""
    poll = select.poll()
    poll.register(told, select.POLLIN)
    while not gone():
        for keeper in keepers:
            if keeper.handle >= 0:
                continue
            try:
                keeper.look(time.monotonic())
            except LabError as error:
                log.error("%s: %s", keeper.name, error)
            if keeper.handle >= 0:
                poll.register(keeper.handle, select.POLLIN)
        # Nobody tells of an agent that somebody starts by hand, nor of one that has its lock by now.
        ready = {fd for fd, _ in poll.poll(_LOOK_SECONDS * 1000 if any(k.handle < 0 for k in keepers) else None)}
        if told in ready:
            return
        for keeper in keepers:
            if keeper.handle in ready:
                poll.unregister(keeper.handle)
                keeper.ended(time.monotonic())


def main(argv: Sequence[str]) -> int:
    """Supervises the lab of a directory until SIGTERM or SIGINT."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    directory = Path(argv[0])
    told, tell = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    # A handler that returns lets a start in hand finish, with its record: `lab down` then finds the process.
    signal.set_wakeup_fd(tell)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    try:
        lab = Lab.open(directory.name, directory.parent)
    except LabError as error:
        log.error("%s", error)
        return 1
    lab_agents = LabAgents(lab)
    log.info("supervisor of lab '%s', pid %d", lab.plan.name, os.getpid())
    supervise([lab_agents.keeper(node) for node in lab.plan.nodes], told, lambda: not lab.directory.is_dir())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
