"""What an active agent does for the start of pods: it answers the network plugin, and keeps it installed."""

from __future__ import annotations

import asyncio
import logging

from nodeseal.cni import installation
from nodeseal.cni.enrolled_namespaces import EnrolledNamespaces
from nodeseal.cni.installation import Installation
from nodeseal.cni.let_through import LetThroughPods
from nodeseal.cni.server import PluginServer
from nodeseal.cni.upkeep import Upkeep
from nodeseal.local import run_directory
from nodeseal.local.config import Config
from nodeseal.node.lasting import lasting
from nodeseal.node.node import Node

log = logging.getLogger("nodeseal.agent")


class PodStarts:
    """Of a node whose configuration has `cni`, and nothing at all of any other. Belongs to the event loop."""

    def __init__(self, config: Config, node: Node) -> None:
        self._config = config
        self._node = node
        self._server: PluginServer | None = None
        self._let_through = LetThroughPods(config.run_dir, node.arrivals.is_enrolled)
        self._namespaces = EnrolledNamespaces(config.run_dir, node.source.enrolled_namespaces)
        self._tasks: list[asyncio.Task[None]] = []

    async def answer(self) -> None:
        """From the start of the agent on: a pod that is none of ours does not wait until it is ready. OSError."""
        if self._config.pod_start is None:
            return
        path = self._config.run_dir / run_directory.PLUGIN_SOCKET
        self._server = PluginServer(path, self._node.arrivals, self._let_through, self._namespaces)
        await self._server.start()

    async def keep(self) -> None:
        """Once the agent is ready, and until it ends."""
        if self._config.pod_start is None:
            # An agent before this one may have had it.
            removed, failed = await asyncio.to_thread(installation.remove, self._config.run_dir)
            for line in removed:
                log.info("the network plugin is not asked for any more: removed %s", line)
            for line in failed:
                log.warning("the network plugin is not asked for any more: %s", line)
            return
        # Before any list names the plugin, so that it finds them.
        self._namespaces.keep()
        upkeep = Upkeep(Installation(self._config.pod_start, self._config.run_dir))
        self._node.further_parts += [upkeep, self._let_through]
        for name, work in (
            ("network plugin", upkeep.run),
            ("let through", self._let_through.run),
            ("enrolled namespaces", self._namespaces.run),
        ):
            self._tasks.append(asyncio.create_task(lasting(name, work), name=name))

    async def stop(self) -> None:
        """The plugin stays where it is, and waits for the agent that comes next."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._server is not None:
            await self._server.stop()
