"""The socket on which the network plugin asks: one connection, one question, one answer.

A pod that starts is held up by what is answered here, and a node may start all of its pods at once. Whoever asks what
cannot be read, or asks slowly, costs its own connection. One too many is closed without an answer, and so are all when
the agent goes: the plugin then asks again, the agent that comes next if need be.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from ipaddress import ip_interface
from pathlib import Path

from nodeseal.cni.enrolled_namespaces import EnrolledNamespaces
from nodeseal.cni.let_through import LetThroughPods
from nodeseal.contracts.pod_start import (
    ANSWER_HEAD,
    MAGIC,
    QUESTION_HEAD,
    QUESTION_MAX,
    ErrorCode,
    MessageError,
    NetworkConfiguration,
    Question,
    Reply,
    WithoutEnrolment,
    read,
    written,
)
from nodeseal.linux.control_socket import listen, peer_credentials
from nodeseal.mesh.address import Address
from nodeseal.mesh.model import WorkloadName
from nodeseal.node.arrivals import Arrivals, Refused
from nodeseal.sources.arrival import Arrival

log = logging.getLogger("nodeseal.agent")

CLIENTS_MAX = 512
"""A node has 110 pods, unless somebody has raised that, to 500 at most."""
_BACKLOG = 512
_READ_S = 10.0
_WRITE_S = 10.0
_PATIENCE_MAX_S = 200.0


class PluginServer:
    """Belongs to the event loop."""

    def __init__(
        self, path: Path, arrivals: Arrivals, let_through: LetThroughPods, namespaces: EnrolledNamespaces
    ) -> None:
        self._path = path
        self._arrivals = arrivals
        self._let_through = let_through
        self._namespaces = namespaces
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listens. The caller holds the agent's lock, so that a socket file that is there is a stale one. Whoever
        connected to that is refused, and asks again. OSError."""
        listener = listen(str(self._path), socket.SOCK_STREAM, _BACKLOG)
        try:
            self._server = await asyncio.start_unix_server(self._connected, sock=listener, backlog=_BACKLOG)
        except BaseException:
            listener.close()
            raise

    async def stop(self) -> None:
        """Ends the listening and the connections; who waits for an answer asks the next agent."""
        if self._server is None:
            return
        self._server.close()
        for client in list(self._clients):
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        try:
            _pid, uid = peer_credentials(writer.get_extra_info("socket"))
            if uid in (0, os.geteuid()) and len(self._clients) <= CLIENTS_MAX:
                await self._answer(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, TimeoutError):
            pass  # it went, or is none of ours
        finally:
            writer.transport.abort() if task.cancelling() else writer.close()
            self._clients.discard(task)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(_READ_S):
            magic, size, patience_ms = QUESTION_HEAD.unpack(await reader.readexactly(QUESTION_HEAD.size))
            if magic != MAGIC or not 0 < size <= QUESTION_MAX:
                return
            data = await reader.readexactly(size)
        try:
            reply = await self._reply(read(data, Question), min(patience_ms / 1000, _PATIENCE_MAX_S))
        except MessageError as error:
            reply = Reply("1.1.0", ErrorCode.DECODE, "nodeseal: the question cannot be read", str(error))
        body = written(reply)
        writer.write(ANSWER_HEAD.pack(MAGIC, len(body)) + body)
        async with asyncio.timeout(_WRITE_S):
            await writer.drain()

    async def _reply(self, question: Question, seconds: float) -> Reply:
        """Raises MessageError."""
        version = question.config.version
        if question.command == "ADD":
            return await self._add(question, version, seconds)
        if question.command == "DEL":
            self._let_through.forget(question.container_id)
            await self._arrivals.depart(arrival_of(question))
        elif question.command == "CHECK":
            return self._check(question, version)
        return Reply(version)

    async def _add(self, question: Question, version: str, seconds: float) -> Reply:
        arrival = arrival_of(question)
        outcome = await self._arrivals.arrive(arrival, seconds)
        if not isinstance(outcome, Refused):
            self._let_through.forget(question.container_id)
            return Reply(version)
        if self._is_open(question.config, arrival.name.namespace):
            log.warning("pod %s starts without being enrolled: %s", arrival.name, outcome.why)
            self._let_through.note(question)
            return Reply(version)
        text = f"nodeseal cannot enrol the pod {arrival.name}, so it does not start"
        return Reply(version, ErrorCode.TRY_AGAIN, text, outcome.why)

    def _is_open(self, config: NetworkConfiguration, namespace: str) -> bool:
        by_namespace = config.on_failure is WithoutEnrolment.BY_NAMESPACE
        return (
            config.on_failure is WithoutEnrolment.OPEN
            or namespace in config.open_namespaces
            or (by_namespace and self._namespaces.lack(namespace))
        )

    def _check(self, question: Question, version: str) -> Reply:
        why = self._arrivals.why_not_enrolled(arrival_of(question))
        if why is None:
            return Reply(version)
        return Reply(version, ErrorCode.TRY_AGAIN, "nodeseal does not have the pod enrolled", why)


def arrival_of(question: Question) -> Arrival:
    """Raises MessageError."""
    name = WorkloadName(question.argument("K8S_POD_NAMESPACE"), question.argument("K8S_POD_NAME"))
    if question.command == "ADD" and not (all(name) and question.container_id and question.netns.startswith("/")):
        raise MessageError("a pod has a namespace, a name, a container id and the absolute path of a network namespace")
    ips = question.config.result.ips if question.config.result is not None else ()
    return Arrival(
        name,
        question.argument("K8S_POD_UID"),
        question.container_id,
        question.netns,
        tuple(dict.fromkeys(_address(ip.address) for ip in ips)),
    )


def _address(text: str) -> Address:
    try:
        return ip_interface(text).ip
    except ValueError:
        raise MessageError(f"{text[:80]!a} is no address with the length of its network") from None
