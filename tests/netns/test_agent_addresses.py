"""The node's own addresses, read from a real kernel and followed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from functools import partial
from ipaddress import ip_address

from nodeseal.linux.addresses import follow, in_order, node_addresses
from nodeseal.mesh.address import Address
from nodeseal_lab.namespaces import enter
from support.namespaces import Namespace, Namespaces


def addresses(*texts: str) -> frozenset[Address]:
    return frozenset(map(ip_address, texts))


def node(net: Namespaces) -> Namespace:
    one, other = net.create("node"), net.create("other")
    net.join(one, "eth0", "10.99.1.1/24", other, "eth0", "10.99.1.2/24")
    one.ip("address", "add", "127.0.0.9/8", "dev", "lo")
    one.ip("address", "add", "10.96.0.10/32", "dev", "lo")
    return one


def test_addresses_that_others_can_know_the_node_by() -> None:
    with Namespaces() as net:
        one = node(net)
        one.ip("address", "add", "fd99::1/64", "dev", "eth0", "nodad")
        # Neither the loopback's nor fe80::...
        assert one.run(node_addresses) == addresses("10.99.1.1", "10.96.0.10", "fd99::1")


def test_changes_are_followed() -> None:
    with Namespaces() as net:
        one = node(net)

        async def story() -> None:
            found = follow()
            before = addresses("10.99.1.1", "10.96.0.10")
            assert await anext(found) == before
            one.ip("address", "add", "10.99.1.7/24", "dev", "eth0")
            assert await anext(found) == before | addresses("10.99.1.7")
            one.ip("address", "del", "10.99.1.7/24", "dev", "eth0")
            assert await anext(found) == before
            await close(found)

        # asyncio.to_thread takes its thread from the loop's executor: all of them are in the namespace.
        async def main() -> None:
            from concurrent.futures import ThreadPoolExecutor

            asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1, initializer=partial(enter, one.name)))
            await asyncio.wait_for(story(), 30)

        one.run(lambda: asyncio.run(main()))
        assert threading.current_thread() is threading.main_thread()


async def close(found: AsyncIterator[frozenset[Address]]) -> None:
    await found.aclose()  # type: ignore[attr-defined]


def test_order_is_that_of_families_and_numbers() -> None:
    shown = [str(one) for one in in_order(addresses("fd00::1", "10.0.0.10", "10.0.0.9"))]
    assert shown == ["10.0.0.9", "10.0.0.10", "fd00::1"]
