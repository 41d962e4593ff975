"""The node's own addresses: all that are in the agent's network namespace, followed as they come and go."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Iterable

from nodeseal.backoff import Backoff
from nodeseal.mesh.address import Address, parse_address

log = logging.getLogger("nodeseal.agent")

# linux/rtnetlink.h: RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR
_ADDRESSES_CHANGE = 0x10 | 0x100
_SETTLE_S = 0.1  # addresses come in bunches


def node_addresses() -> frozenset[Address]:
    """The addresses of the calling thread's network namespace that others can know it by: neither those of the loopback
    nor IPv6 ones on the link, which are unique there only. Raises OSError."""
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        with IPRoute() as links:
            texts = [item.get_attr("IFA_LOCAL") or item.get_attr("IFA_ADDRESS") for item in links.get_addr()]
    except NetlinkError as error:
        raise OSError(error.code, str(error)) from None
    addresses = {parse_address(text) for text in texts}
    return frozenset(
        address
        for address in addresses
        if not (address.is_loopback or address.is_unspecified or (address.version == 6 and address.is_link_local))
    )


def in_order(addresses: Iterable[Address]) -> list[Address]:
    """IPv4 first, each family by its numbers."""
    return sorted(addresses, key=lambda address: (address.version, address.packed))


async def follow() -> AsyncIterator[frozenset[Address]]:
    """The node's addresses, now and whenever they have changed. Never ends; a failure is logged and tried again."""
    backoff = Backoff(1.0, 60.0)
    known: frozenset[Address] | None = None
    while True:
        try:
            with _listener() as listener:
                while True:
                    addresses = await asyncio.to_thread(node_addresses)
                    backoff.reset()
                    if addresses != known:
                        known = addresses
                        yield addresses
                    await _news(listener)
                    await asyncio.sleep(_SETTLE_S)
                    _drain(listener)
        except OSError as error:
            log.warning("the node's addresses cannot be followed: %s", error.strerror or error)
        await asyncio.sleep(backoff.next())


def _listener() -> socket.socket:
    listener = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
    )
    try:
        listener.bind((0, _ADDRESSES_CHANGE))
    except OSError:
        listener.close()
        raise
    return listener


async def _news(listener: socket.socket) -> None:
    """Waits for a message. One that was lost because there were too many (ENOBUFS, netlink(7)) is news as well."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def note() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(listener, note)
    try:
        await ready
    finally:
        loop.remove_reader(listener)


def _drain(listener: socket.socket) -> None:
    while True:
        try:
            listener.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:  # ENOBUFS: what is there is read all the same
            with contextlib.suppress(OSError):
                listener.recv(1 << 16)
