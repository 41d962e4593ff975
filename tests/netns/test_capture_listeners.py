"""The listeners' marks, which what they accept inherits."""

import socket
from ipaddress import IPv4Address

import pytest

from nodeseal.capture import constants, listeners
from nodeseal.linux import socket_options
from nodeseal.linux.namespace import NetworkNamespace
from support.namespaces import Namespaces

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("role", "mark"),
    [
        # Resets that answer a captured application have to stay on lo.
        (listeners.OUTBOUND, constants.MARK_CAPTURED),
        (listeners.INBOUND, constants.MARK_CORE),
        (listeners.HBONE, constants.MARK_CORE),
    ],
)
def test_listener_carries_the_mark_of_its_connections(role: int, mark: int) -> None:
    with Namespaces() as net, NetworkNamespace.open(net.create("node").name) as namespace:
        fd = listeners.make_listener(namespace, role, (IPv4Address("127.0.0.1"),))
    with socket.socket(fileno=fd) as listener:
        assert listener.getsockopt(socket.SOL_SOCKET, socket_options.SO_MARK) == mark
